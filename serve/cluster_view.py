"""What the cluster looks like at one moment, as JSON: nodes, models and their ranks. GET /api/cluster shows it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tinycluster
from tinycluster.cluster.driver import Engine
from tinycluster.cluster.nodes import ListNodes, Node, this_machine
from tinycluster.cluster.rank_card import RankCard
from tinycluster.serve.registry import ModelRegistry

log = logging.getLogger(__name__)

NODES_LAST_S = 5.0
"""How old the list of nodes may be: to ask for it may take another process's time."""
NODES_WITHIN_S = 2.0


@dataclass
class ClusterView:
    """`expected` are the configured models: those that the registry has not yet are loading."""

    registry: ModelRegistry
    list_nodes: ListNodes = this_machine
    expected: Sequence[str] = ()
    started_s: float = field(default_factory=time.monotonic)
    _nodes: Sequence[Node] = ()
    _nodes_asked_s: float = float("-inf")
    _asking: asyncio.Task[None] | None = None

    async def snapshot(self) -> dict[str, Any]:
        """Rates and loads are those of the last second, percentiles those of the last requests and tokens."""
        nodes = await self._fresh_nodes()
        now_s = time.monotonic()
        engines = {engine.name: engine for engine in self.registry.engines}
        loading = [_loading(name) for name in self.expected if name not in engines]
        return {
            "time": time.time(),
            "version": tinycluster.__version__,
            "uptime_s": now_s - self.started_s,
            "nodes": [_node(node, engines.values()) for node in nodes],
            "models": [_model(engine, now_s) for engine in engines.values()] + loading,
        }

    async def _fresh_nodes(self) -> Sequence[Node]:
        """The last known ones while nobody answers."""
        if time.monotonic() - self._nodes_asked_s >= NODES_LAST_S:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            # Others may wait for the same answer: whoever leaves must not end it.
            await asyncio.shield(self._asking)
        return self._nodes

    async def _ask(self) -> None:
        try:
            self._nodes = await asyncio.wait_for(asyncio.to_thread(self.list_nodes), NODES_WITHIN_S)
        except Exception as error:
            log.warning("the nodes of the cluster cannot be listed: %s", error)
        self._nodes_asked_s = time.monotonic()


def _node(node: Node, engines: Any) -> dict[str, Any]:
    ranks = [
        {"model": engine.name, "rank": card.rank}
        for engine in engines
        for card in engine.model.ranks
        if card.place.node_id == node.node_id
    ]
    return {
        "id": node.node_id,
        "name": node.name,
        "address": node.address,
        "cpus": node.num_cpus,
        "memory_bytes": node.memory_bytes,
        "is_alive": node.is_alive,
        "ranks": ranks,
    }


def _model(engine: Engine, now_s: float) -> dict[str, Any]:
    statistics, use = engine.statistics, engine.cache_use
    ranks = [_rank(engine, card, now_s) for card in engine.model.ranks]
    return {
        "name": engine.name,
        "state": "failed" if engine.has_failed else "ready",
        "mesh": {"tensor": engine.mesh.tensor, "pipeline": engine.mesh.pipeline},
        "max_model_len": engine.max_model_len,
        "kv": {
            "blocks": use.num_blocks,
            "used": use.num_used,
            "cached": use.num_cached,
            "free": use.num_free,
            "block_tokens": use.block_tokens,
        },
        "running": engine.num_running,
        "waiting": engine.num_waiting,
        "requests_total": statistics.num_requests,
        "requests_per_s": statistics.requests_rate.per_second(now_s),
        "prompt_tokens_per_s": statistics.prompt_tokens_rate.per_second(now_s),
        "generation_tokens_per_s": statistics.generation_tokens_rate.per_second(now_s),
        "ttft_p50_ms": _as_ms(statistics.last_first_token_s.median()),
        "itl_p50_ms": _as_ms(statistics.last_inter_token_s.median()),
        "recoveries": {"count": sum(statistics.recovery_s.counts), "last_s": statistics.last_recovery_s},
        "bubble_s": sum(engine.rank_times.report(card.rank).bubble_ns for card in engine.model.ranks) / 1e9,
        "ranks": ranks,
    }


def _rank(engine: Engine, card: RankCard, now_s: float) -> dict[str, Any]:
    report, load = engine.rank_times.report(card.rank), engine.rank_times.load(card.rank)
    return {
        "rank": card.rank,
        "stage": card.stage,
        "tensor": card.tensor,
        "node": card.place.node,
        "node_id": card.place.node_id,
        "pid": card.place.pid,
        "device": card.device,
        "threads": card.place.num_threads,
        "units": {"heads": card.num_heads, "mlp": card.num_mlp_units, "vocab": card.num_vocab_units},
        "layers": [card.layers.start, card.layers.stop - 1] if card.layers else None,
        "weight_bytes": card.weight_bytes,
        "kv_bytes": card.kv_bytes,
        "load": {"compute": load.compute, "communicate": load.communicate, "wait": load.wait},
        "seconds": {
            "compute": report.compute_ns / 1e9,
            "communicate": report.communicate_ns / 1e9,
            "wait": report.wait_ns / 1e9,
            "idle": report.idle_ns / 1e9,
            "bubble": report.bubble_ns / 1e9,
        },
        "links": [
            {"peer": link.peer, "sent_bytes": link.sent_bytes, "received_bytes": link.received_bytes}
            for link in report.links
        ],
        "heartbeat_age_s": engine.rank_times.age_s(card.rank, now_s),
    }


def _loading(name: str) -> dict[str, Any]:
    """The same keys as a model that is ready."""
    return {
        "name": name,
        "state": "loading",
        "mesh": None,
        "max_model_len": None,
        "kv": None,
        **dict.fromkeys(("running", "waiting", "requests_total"), 0),
        **dict.fromkeys(("requests_per_s", "prompt_tokens_per_s", "generation_tokens_per_s"), 0),
        **dict.fromkeys(("ttft_p50_ms", "itl_p50_ms"), None),
        "recoveries": {"count": 0, "last_s": None},
        "bubble_s": 0.0,
        "ranks": [],
    }


def _as_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
