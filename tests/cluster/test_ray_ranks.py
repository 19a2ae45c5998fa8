"""Ranks as processes on a Ray of two nodes with two CPUs each: the same answers as ranks that are threads; lost ranks
and lost drivers end with a clear error and leave nothing behind."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.cluster.engines import GREEDY, SAMPLED, Answer, answer_all, answers, engine_for, prompt_of, settings_for
from tests.cluster.processes import WAIT_S, rank_pids, shared_memory_files, watched
from tests.cluster.reports import Reports
from tinycluster.cluster import ray as ray_module
from tinycluster.cluster.driver import Engine
from tinycluster.cluster.handshake import Credentials, Listener
from tinycluster.cluster.launch import start_engine
from tinycluster.cluster.log_file import LogOptions
from tinycluster.cluster.quiet_ray import ray
from tinycluster.cluster.ray import RayRanks
from tinycluster.cluster.ray_nodes import ray_nodes
from tinycluster.engine.errors import PlacementError, UnavailableError
from tinycluster.engine.request import SamplingParams

pytestmark = pytest.mark.usefixtures("ray_address")
PROMPTS = [prompt_of(1), prompt_of(37, first=5), prompt_of(64, first=11)]
LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
DRIVER = """
import sys
from pathlib import Path
from tests.cluster.engines import engine_for, prompt_of
from tests.cluster.processes import rank_pids
from tinycluster.engine.request import SamplingParams

engine = engine_for(Path(sys.argv[1]), address="auto", mesh={"tensor": 2})
print(*rank_pids(engine), flush=True)
while True:
    list(engine.submit(prompt_of(5), SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)))
"""


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray of two nodes with two CPUs and an address each, in folders of its own. This process is connected to it."""
    node = {"num_cpus": 2, "object_store_memory": 80 * 10**6, "include_dashboard": False}
    # Not pytest's folder: the path of a Unix socket may have 107 characters.
    folder = tempfile.mkdtemp(prefix="tc-ray-")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", folder)
        environment.setenv("RAY_TMPDIR", folder)
        cluster = Cluster(initialize_head=True, head_node_args={**node, "node_ip_address": "127.0.0.2"})
        try:
            cluster.add_node(**node, node_ip_address="127.0.0.3")
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> list[list[Answer]]:
    return [answers(tiny_model, PROMPTS, sampling) for sampling in (GREEDY, SAMPLED)]


def nodes_of(engine: Engine) -> list[str]:
    ranks = engine._ranks
    assert isinstance(ranks, RayRanks)
    return [introduction.host for introduction in ranks._introductions]


def test_ranks_have_the_priority_of_the_command_that_started_their_ray(tiny_model: Path) -> None:
    with closing(engine_for(tiny_model, address="auto", mesh={"tensor": 2})) as engine:
        priorities = {os.getpriority(os.PRIO_PROCESS, pid) for pid in rank_pids(engine)}
    assert priorities == {os.getpriority(os.PRIO_PROCESS, os.getpid())}


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


def test_ranks_in_processes_of_their_own_send_their_timelines_on_the_drivers_clock(tiny_model: Path) -> None:
    with closing(engine_for(tiny_model, address="auto", mesh={"tensor": 2})) as engine:
        start_ns = time.monotonic_ns()
        engine.start_tracing()
        answer_all(engine, PROMPTS, GREEDY)
        first, second = engine.stop_tracing()
        end_ns = time.monotonic_ns()
    assert len(first.steps) >= GREEDY.max_tokens
    for one, other in zip(first.steps, second.steps, strict=True):
        assert one.step_id == other.step_id
        # They meet in every step.
        assert start_ns < max(one.start_ns, other.start_ns) < min(one.end_ns, other.end_ns) < end_ns


def test_ranks_on_two_nodes_report_their_time_and_traffic_and_write_logs(tiny_model: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_model, address="auto", mesh={"tensor": 2, "pipeline": 2})
    logs = LogOptions(tmp_path / "logs")
    with closing(start_engine(settings.models[0], settings, logs=logs)) as engine:
        reports = Reports(engine)
        answer_all(engine, PROMPTS, GREEDY)
        told = reports.next()
        places = [card.place for card in engine.model.ranks]
        assert [place.pid for place in places] == rank_pids(engine)
        hosts = nodes_of(engine)
    nodes = {node.node_id: node for node in ray_nodes()}
    assert {(node.num_cpus, node.is_alive) for node in nodes.values()} == {(2, True)}
    assert [nodes[place.node_id].address for place in places] == hosts
    bytes_of = {(rank, link.peer): link for rank, report in enumerate(told) for link in report.links}
    assert set(bytes_of) == {(0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (2, 0), (1, 3), (3, 1)}
    assert all(bytes_of[b, a].received_bytes == link.sent_bytes for (a, b), link in bytes_of.items())
    assert all(report.compute_ns > 0 < report.wait_ns for report in told)
    assert [report.bubble_ns > 0 for report in told] == [False, False, True, True]
    for rank in range(4):
        assert f"rank {rank} is ready" in (tmp_path / "logs" / f"rank-{rank}.log").read_text()


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


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_rank_ends_all_requests_and_leaves_nothing(tiny_model: Path, signal_number: signal.Signals) -> None:
    before, failures = shared_memory_files(), queue.SimpleQueue[UnavailableError]()
    limits = {"max_model_len": 128, "max_running": 1}
    settings = settings_for(tiny_model, address="auto", mesh={"tensor": 2}, limits=limits)
    engine = start_engine(settings.models[0], settings, on_failure=failures.put)
    with closing(engine), watched(pids := rank_pids(engine)) as processes:
        # One runs and 19 wait, so that none can end before the rank does.
        readers = [iter(engine.submit(prompt_of(5), LONG)) for _ in range(20)][::-1]
        next(readers[-1])
        processes.send(1, signal_number)
        lost = rf"lost rank 1 on node [\d.]+ \(process {pids[1]}\): .*; restart the server"
        for reader in readers[:-1]:
            with pytest.raises(UnavailableError, match=lost):
                next(reader)
        assert str(pids[1]) in str(failures.get(timeout=WAIT_S))
        with pytest.raises(UnavailableError, match=lost):
            engine.check_ready()
        assert processes.all_ended()
    assert shared_memory_files() == before


def test_ranks_end_with_a_driver_that_is_killed(tiny_model: Path, ray_address: str) -> None:
    before = shared_memory_files()
    environment = {**os.environ, "RAY_ADDRESS": ray_address, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    command = [sys.executable, "-c", DRIVER, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as driver:
        assert driver.stdout is not None
        with watched(map(int, driver.stdout.readline().split())) as processes:
            driver.kill()
            assert processes.all_ended()
    assert shared_memory_files() == before
