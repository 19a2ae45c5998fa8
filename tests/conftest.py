from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from hypothesis import settings

import tests.blas  # noqa: F401 (first of all: it is read when numpy is imported)
from tests.leaks import MARK, Places, new_files, remaining_processes
from tinycluster.engine.progress import NoProgress
from tinycluster.engine.source import default_cache_dir, resolve

CONFIG = Path(__file__).parent.parent / "configs" / "smollm2.yaml"

# A slow machine is not a wrong answer.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# httpx waits 5 s for each step of a request where a test says nothing else: one object is the default of all of it.
_usual: httpx.Timeout = inspect.signature(httpx.Client).parameters["timeout"].default
_usual.connect = _usual.read = _usual.write = _usual.pool = 60.0


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct, downloaded once into the product's own cache."""
    model = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["models"][0]
    return resolve(model["source"], sha256=model["sha256"], cache_dir=default_cache_dir(), progress=NoProgress())


@pytest.fixture(scope="session", autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """After the last test: no process, no shared memory and no file that was not there before, except caches."""
    places = Places(Path(__file__).parent.parent, Path.home())
    before, mark = places.files(), uuid.uuid4().hex
    os.environ[MARK] = mark
    yield
    del os.environ[MARK]
    assert remaining_processes(mark) == {}
    assert new_files(places, before) == []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scheduler-examples", type=int, default=500, help="Histories that the scheduler's state machine goes through."
    )
    parser.addoption(
        "--storage-kill-cycles",
        type=int,
        default=50,
        help="How often a process is killed while it writes conversations.",
    )
    parser.addoption(
        "--storage-histories", type=int, default=40, help="Histories that the storage's state machine goes through."
    )
    parser.addoption(
        "--kill-cycles", type=int, default=10, help="How often the server of the sessions' kill test is killed."
    )
    parser.addoption(
        "--attack-requests", type=int, default=1000, help="Requests, and schemas, of the attacks that need many."
    )


@pytest.fixture(scope="session")
def kill_cycles(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--kill-cycles"))


@pytest.fixture(scope="session")
def attack_requests(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--attack-requests"))


@pytest.fixture(scope="session")
def scheduler_examples(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--scheduler-examples"))


@pytest.fixture(scope="session")
def storage_kill_cycles(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--storage-kill-cycles"))
