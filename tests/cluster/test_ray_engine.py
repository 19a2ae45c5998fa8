"""Ranks as processes on a Ray of two nodes with two CPUs each: the same answers as ranks that are threads."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.engines import GREEDY, SAMPLED, Answer, answer_all, answers, engine_for, prompt_of
from tests.cluster.processes import rank_pids, shared_memory_files, watched
from tinycluster.cluster import ray as ray_module
from tinycluster.cluster.driver import Engine
from tinycluster.cluster.handshake import Credentials, Listener
from tinycluster.cluster.ray import RayRanks
from tinycluster.engine.errors import PlacementError, UnavailableError

pytestmark = pytest.mark.usefixtures("ray_address")
PROMPTS = [prompt_of(1), prompt_of(37, first=5), prompt_of(64, first=11)]


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> list[list[Answer]]:
    return [answers(tiny_model, PROMPTS, sampling) for sampling in (GREEDY, SAMPLED)]


def nodes_of(engine: Engine) -> list[str]:
    ranks = engine._ranks
    assert isinstance(ranks, RayRanks)
    return [introduction.host for introduction in ranks._introductions]


@pytest.mark.parametrize(
    ("mesh", "num_nodes_of_stage"),
    [
        ({"tensor": 2}, [1]),
        ({"tensor": 2, "pipeline": 2}, [1, 1]),
        ({"tensor": 4, "spread": True}, [2]),
    ],
    ids=["shared memory", "stages on two nodes", "tensor ranks on two nodes"],
)
def test_processes_give_the_same_as_threads(
    tiny_model: Path, expected: list[list[Answer]], mesh: dict[str, Any], num_nodes_of_stage: list[int]
) -> None:
    before = shared_memory_files()
    with closing(engine_for(tiny_model, address="auto", mesh=mesh)) as engine, watched(rank_pids(engine)) as processes:
        nodes, tensor = nodes_of(engine), mesh["tensor"]
        stages = [nodes[start : start + tensor] for start in range(0, len(nodes), tensor)]
        assert [len(set(stage)) for stage in stages] == num_nodes_of_stage
        assert len(set(nodes)) == (2 if len(nodes) > 2 else 1)
        assert [answer_all(engine, PROMPTS, sampling) for sampling in (GREEDY, SAMPLED)] == expected
        engine.check_ready()
        engine.close()
        assert processes.all_ended()
    assert shared_memory_files() == before


def test_a_mesh_that_does_not_fit_says_what_is_missing(tiny_model: Path) -> None:
    sentence = "needs 3 CPUs in one node, the largest node has 2"
    with pytest.raises(PlacementError, match=sentence):
        engine_for(tiny_model, address="auto", mesh={"tensor": 3}, cluster={"placement_timeout": 0.2})


def test_nodes_with_other_versions_are_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_module, "versions", lambda: "tinycluster 9.9 on Python 3.11.7")
    with pytest.raises(PlacementError, match=r"the driver has tinycluster 9\.9.*install the same versions"):
        engine_for(tiny_model, address="auto")


def test_a_rank_that_cannot_prove_itself_is_named_at_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_door(host: str, credentials: Credentials, *arguments: Any) -> Listener:
        return Listener(host, replace(credentials, secret=b"x" * 32), *arguments)

    monkeypatch.setattr(ray_module, "Listener", other_door)
    with pytest.raises(UnavailableError, match=r"rank 0 on node .* did not start: .*connection"):
        engine_for(tiny_model, address="auto")
