"""GET /api/cluster and its events, over fake engines."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest

import tinycluster
from tests.serve.conftest import StartServer
from tests.serve.fake_engine import RANK, FakeEngine
from tinycluster.cluster.nodes import Node, this_machine
from tinycluster.cluster.rank_report import LinkBytes, RankReport
from tinycluster.serve.cluster_routes import ClusterFeed
from tinycluster.serve.cluster_view import ClusterView
from tinycluster.serve.openapi_cluster import ClusterSnapshot
from tinycluster.serve.registry import ModelRegistry


def snapshots(lines: Iterator[str]) -> Iterator[ClusterSnapshot]:
    for line in lines:
        if line.startswith("data: "):
            yield ClusterSnapshot.model_validate_json(line.removeprefix("data: "))


def test_a_snapshot_shows_machine_models_and_ranks(start_server: StartServer) -> None:
    engine = FakeEngine("a", num_waiting=3, running={1, 2})
    now_s = time.monotonic()
    engine.rank_times.take(0, RankReport(10**9, 0, 0, 0, 0, 0), now_s)
    links = (LinkBytes(1, 70, 90),)
    engine.rank_times.take(0, RankReport(2 * 10**9, 5 * 10**8, 10**8, 2 * 10**8, 2 * 10**8, 10**8, links), now_s)
    engine.statistics.submitted(7, now_s - 2.0).emitted(1, now_s - 1.5)
    shown = httpx.get(f"{start_server(engine)}/api/cluster").json()
    ClusterSnapshot.model_validate(shown)
    (machine,) = this_machine()
    assert (shown["version"], shown["uptime_s"] >= 0) == (tinycluster.__version__, True)
    (node,) = shown["nodes"]
    assert node["ranks"] == [{"model": "a", "rank": 0}]
    assert (node["name"], node["cpus"], node["memory_bytes"]) == (machine.name, machine.num_cpus, machine.memory_bytes)
    (model,) = shown["models"]
    assert (model["name"], model["state"], model["mesh"]) == ("a", "ready", {"tensor": 1, "pipeline": 1})
    assert model["kv"] == {"blocks": 8, "used": 2, "cached": 1, "free": 5, "block_tokens": 16}
    assert (model["running"], model["waiting"], model["requests_total"]) == (2, 3, 1)
    assert (model["ttft_p50_ms"], model["itl_p50_ms"]) == (pytest.approx(500), None)
    assert model["recoveries"] == {"count": 0, "last_s": None}
    assert model["bubble_s"] == 0.1
    (rank,) = model["ranks"]
    assert rank["load"] == {"compute": 0.5, "communicate": 0.1, "wait": 0.2}
    assert rank["seconds"] == {"compute": 0.5, "communicate": 0.1, "wait": 0.2, "idle": 0.2, "bubble": 0.1}
    assert rank["links"] == [{"peer": 1, "sent_bytes": 70, "received_bytes": 90}]
    assert (rank["layers"], rank["weight_bytes"], rank["pid"]) == ([0, 0], RANK.weight_bytes, RANK.place.pid)
    assert 0 <= rank["heartbeat_age_s"] < 60


def test_a_configured_model_is_loading_until_the_registry_has_it_and_may_fail() -> None:
    registry = ModelRegistry()
    view = ClusterView(registry, expected=("a", "b"))

    def states() -> dict[str, str]:
        shown = ClusterSnapshot.model_validate(asyncio.run(view.snapshot()))
        return {model.name: model.state for model in shown.models}

    assert states() == {"a": "loading", "b": "loading"}
    engine = FakeEngine("a")
    registry.add(engine)  # type: ignore[arg-type]
    assert states() == {"a": "ready", "b": "loading"}
    engine.has_failed = True
    assert states() == {"a": "failed", "b": "loading"}


def test_events_show_what_changes_and_are_made_once_for_all_listeners(start_server: StartServer) -> None:
    engine = FakeEngine()
    url = start_server(engine)
    with (
        httpx.stream("GET", f"{url}/api/cluster/events", timeout=20) as first,
        httpx.stream("GET", f"{url}/api/cluster/events", timeout=20) as second,
    ):
        assert first.headers["content-type"] == "text/event-stream; charset=utf-8"
        seen, also = snapshots(first.iter_lines()), snapshots(second.iter_lines())
        assert (next(seen).models[0].waiting, next(also).models[0].waiting) == (0, 0)
        engine.num_waiting = 5
        # Any number of older ones may be on their way.
        mine, theirs = (next(shown for shown in each if shown.models[0].waiting == 5) for each in (seen, also))
        assert mine == theirs


def test_events_end_when_the_engines_have_ended(start_server: StartServer) -> None:
    engine = FakeEngine()
    with httpx.stream("GET", f"{start_server(engine)}/api/cluster/events", timeout=20) as answer:
        seen = snapshots(answer.iter_lines())
        next(seen)
        engine.has_failed = True
        assert [shown.models[0].state for shown in seen][-1] == "failed"


def test_nothing_is_made_while_nobody_listens() -> None:
    async def listen_and_leave() -> None:
        feed = ClusterFeed(ClusterView(ModelRegistry()), period_s=0.0)
        async with feed.listening():
            assert json.loads((await feed.next_event()).split(b"data: ")[1])["models"] == []
            (sampler,) = asyncio.all_tasks() - {asyncio.current_task()}
        num_samples = feed.num_samples
        await asyncio.wait([sampler])
        assert sampler.cancelled()
        assert feed.num_samples == num_samples > 0
        async with feed.listening():
            await feed.next_event()
        assert feed.num_samples > num_samples

    asyncio.run(listen_and_leave())


def test_all_first_requests_at_once_show_the_nodes_and_ask_for_them_once() -> None:
    may_answer, num_asked = threading.Event(), 0

    def slow() -> Sequence[Node]:
        nonlocal num_asked
        num_asked += 1
        may_answer.wait(10)
        return this_machine()

    async def look() -> list[int]:
        view = ClusterView(ModelRegistry(), list_nodes=slow)
        first, second, third = (asyncio.create_task(view.snapshot()) for _ in range(3))
        # Each of them has begun, and whoever leaves takes nothing from the others.
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        may_answer.set()
        return [len(shown["nodes"]) for shown in await asyncio.gather(second, third)]

    assert asyncio.run(look()) == [1, 1]
    assert num_asked == 1


def test_nodes_that_cannot_be_listed_are_those_that_were_known() -> None:
    def unreachable() -> tuple[()]:
        raise ConnectionError("no head")

    view = ClusterView(ModelRegistry())
    assert len(asyncio.run(view.snapshot())["nodes"]) == 1
    view.list_nodes, view._nodes_asked_s = unreachable, float("-inf")
    assert len(asyncio.run(view.snapshot())["nodes"]) == 1
