"""How the cores of a node are dealt to its ranks."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.engines import engine_for
from tinycluster.cluster.cores import NodeCores, RankThreads, container_quota, deal, node_cores

FIVE = NodeCores("box", (2, 3, 4, 6, 7))


@pytest.mark.parametrize(
    ("num_ranks", "threads", "expected"),
    [
        (1, None, [(5, (2, 3, 4, 6, 7))]),
        (2, None, [(2, (2, 3)), (2, (4, 6))]),
        (2, 2, [(2, (2, 3)), (2, (4, 6))]),
        (5, None, [(1, (2,)), (1, (3,)), (1, (4,)), (1, (6,)), (1, (7,))]),
        (2, 1, [(1, ()), (1, ())]),
        (2, 3, [(3, ()), (3, ())]),
        (6, None, [(1, ())] * 6),
        (10, None, [(1, (core,)) for core in FIVE.ids] * 2),
        (5, 2, [(2, ())] * 5),
    ],
)
def test_ranks_that_fill_a_machine_are_bound_to_cores_of_their_own(
    num_ranks: int, threads: int | None, expected: list[tuple[int, tuple[int, ...]]]
) -> None:
    assert deal([FIVE] * num_ranks, threads=threads, pin=True) == tuple(RankThreads(*pair) for pair in expected)


def test_binding_can_be_switched_off() -> None:
    assert deal([FIVE] * 2, threads=None, pin=False) == (RankThreads(2), RankThreads(2))


def test_machines_are_dealt_one_by_one_and_nodes_that_are_one_machine_share_it() -> None:
    other = NodeCores("other box", FIVE.ids)
    same = NodeCores("box", FIVE.ids)
    dealt = deal([FIVE, other, same, other], threads=None, pin=True)
    assert dealt == tuple(RankThreads(2, cores) for cores in ((2, 3), (2, 3), (4, 6), (4, 6)))


def test_a_quota_limits_the_threads_and_leaves_them_unbound() -> None:
    node = NodeCores("box", FIVE.ids, quota=2.5)
    assert deal([node], threads=None, pin=True) == (RankThreads(2),)
    assert deal([node] * 2, threads=None, pin=True) == (RankThreads(1),) * 2
    assert deal([NodeCores("box", FIVE.ids, quota=0.5)], threads=None, pin=True) == (RankThreads(1),)
    assert NodeCores("box", FIVE.ids, quota=64.0).are_own


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "broken"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_the_quota_of_a_container_is_read_in_both_versions_of_cgroups(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert container_quota(tmp_path) == quota


def test_binding_holds_for_one_thread_and_those_that_it_starts() -> None:
    before, seen = os.sched_getaffinity(0), list[set[int]]()

    def look() -> None:
        seen.append(os.sched_getaffinity(0))

    def bound() -> None:
        RankThreads(1, (min(before),)).pin()
        look()
        started = threading.Thread(target=look)
        started.start()
        started.join()

    rank = threading.Thread(target=bound)
    rank.start()
    rank.join()
    assert seen == [{min(before)}] * 2
    assert os.sched_getaffinity(0) == before


def test_ranks_that_are_threads_are_bound_and_their_process_is_not(tiny_model: Path) -> None:
    before, cores = os.sched_getaffinity(0), node_cores()
    with closing(engine_for(tiny_model, mesh={"tensor": 2})):
        ranks = [thread for thread in threading.enumerate() if thread.name in ("rank-0", "rank-1")]
        bound = [os.sched_getaffinity(rank.native_id or 0) for rank in sorted(ranks, key=lambda rank: rank.name)]
    expected = [{core} for core in cores.ids[:2]] if cores.are_own and len(cores.ids) > 1 else [before] * 2
    assert bound == expected
    assert os.sched_getaffinity(0) == before


def test_the_threads_of_one_rank_have_a_core_each(tiny_model: Path) -> None:
    cores = node_cores()
    before = {task.name for task in Path("/proc/self/task").iterdir()}
    with closing(engine_for(tiny_model, threads="auto")):
        started = [int(task.name) for task in Path("/proc/self/task").iterdir() if task.name not in before]
        bound = [tuple(os.sched_getaffinity(thread)) for thread in started]
    single = [core for cores_of_thread in bound if len(cores_of_thread) == 1 for core in cores_of_thread]
    if cores.are_own and len(cores.ids) > 1:
        assert set(single) == set(cores.ids)
    else:
        assert not single or len(cores.ids) == 1
