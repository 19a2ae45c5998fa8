"""Ranks as real processes, one of which is killed without warning."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIZE = 3
LIMIT_S = 30


class RankProcess:
    def __init__(self, kind: str, rank: int) -> None:
        script = Path(__file__).with_name("rank_process.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), kind, str(rank), str(SIZE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(fields) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline())
        return heard

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=LIMIT_S)


@pytest.fixture(params=["shared_memory", "tcp"])
def ranks(request: pytest.FixtureRequest) -> Iterator[list[RankProcess]]:
    """A running group whose ranks have all compared thirty sums with the expected ones."""
    processes = [RankProcess(request.param, rank) for rank in range(SIZE)]
    secret = secrets.token_hex(16)
    try:
        addresses = [process.hear()["address"] for process in processes]
        for process in processes:
            process.tell(addresses=addresses, secret=secret)
        assert [process.hear() for process in processes] == [{"ready": True}] * SIZE
        assert not Path(f"/dev/shm/tinycluster-{secret}").exists()
        yield processes
    finally:
        for process in processes:
            process.end()
    assert not Path(f"/dev/shm/tinycluster-{secret}").exists()


def test_a_killed_rank_ends_the_others_long_before_the_deadline(ranks: list[RankProcess]) -> None:
    ranks[1].process.kill()
    errors = [ranks[rank].hear()["error"] for rank in (0, 2)]
    assert any("rank 1 died" in error or "rank 1 left or died" in error for error in errors), errors
    assert [ranks[rank].process.wait(LIMIT_S) for rank in (0, 2)] == [0, 0]
