"""Which Ray is joined and when one is started; Ray itself is played, the sockets are real."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.engines import settings_for
from tinycluster.cluster import ray_cluster
from tinycluster.cluster.ray_cluster import answers, join_or_start
from tinycluster.engine.errors import ConfigError

DEAD = "127.0.0.1:1"


class PlayedRay:
    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.refusal: Exception | None = None

    def is_initialized(self) -> bool:
        return bool(self.starts)

    def init(self, **options: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.starts.append(options)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PlayedRay:
    ray = PlayedRay()
    monkeypatch.setattr(ray_cluster, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return ray


@pytest.fixture
def head() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def note(folder: Path, address: str) -> None:
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address + "\n")


def test_without_a_running_ray_one_is_started_with_room_for_every_rank(played: PlayedRay, tmp_path: Path) -> None:
    join_or_start(settings_for(tmp_path, address="auto", mesh={"tensor": 100, "pipeline": 3}))
    (options,) = played.starts
    assert (options["address"], options["num_cpus"], options["include_dashboard"]) == ("local", 300, False)
    assert options["object_store_memory"] <= 200 * 10**6


def test_what_ray_start_left_running_is_joined(played: PlayedRay, tmp_path: Path, head: str) -> None:
    note(tmp_path, head)
    join_or_start(settings_for(tmp_path, address="auto"))
    assert "address" not in played.starts[0]
    assert "num_cpus" not in played.starts[0]


def test_a_note_of_a_ray_that_is_gone_is_not_waited_for(played: PlayedRay, tmp_path: Path) -> None:
    note(tmp_path, DEAD)
    join_or_start(settings_for(tmp_path, address="auto"))
    assert played.starts[0]["address"] == "local"


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_given_address_is_joined(
    played: PlayedRay, tmp_path: Path, head: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_environment:
        monkeypatch.setenv("RAY_ADDRESS", head)
    join_or_start(settings_for(tmp_path, address="auto" if by_environment else head))
    assert played.starts[0]["address"] == head


@pytest.mark.parametrize("address", [DEAD, "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "[::1]:1"])
def test_a_given_address_that_does_not_answer_is_a_mistake(played: PlayedRay, tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="no Ray answers at"):
        join_or_start(settings_for(tmp_path, address=address))
    assert not answers(address)


def test_a_ray_that_refuses_us_is_a_mistake_with_a_remedy(played: PlayedRay, tmp_path: Path, head: str) -> None:
    played.refusal = ConnectionError("Failed to connect\nat length")
    with pytest.raises(ConfigError, match=r"cannot join .*: Failed to connect; .*auth_token"):
        join_or_start(settings_for(tmp_path, address=head))


def test_a_ray_that_is_joined_already_is_used(played: PlayedRay, tmp_path: Path) -> None:
    for _ in range(2):
        join_or_start(settings_for(tmp_path, address="auto"))
    assert len(played.starts) == 1
