"""Storages over every database; a test's coroutine runs in a loop of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.serve.storage.postgresql import PostgresqlServer, running_postgresql
from tinycluster.serve.storage.storage import Storage, open_storage


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


class Urls(dict[str, str]):
    """Of empty databases by their kind, made when they are asked for."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def __missing__(self, kind: str) -> str:
        if kind == "memory":
            return kind
        if kind == "sqlite":
            folder: Path = self._request.getfixturevalue("tmp_path")
            self[kind] = f"sqlite:///{folder / 'conversations.db'}"
        else:
            server: PostgresqlServer = self._request.getfixturevalue("postgresql")
            self[kind] = server.new_database()
        return self[kind]


@pytest.fixture
def urls(request: pytest.FixtureRequest) -> Urls:
    return Urls(request)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, urls: Urls) -> str:
    return urls[request.param]


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    with closing(open_storage(url)) as storage:
        yield storage
