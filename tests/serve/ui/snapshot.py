"""A cluster of three nodes in which a mesh of two stages of two ranks is at work, and a second model is loading."""

from __future__ import annotations

from typing import Any

GIB = 2**30


def rank(number: int, node: str, compute: float, communicate: float) -> dict[str, Any]:
    stage, tensor = divmod(number, 2)
    load = {"compute": compute, "communicate": communicate, "wait": 0.95 - compute - communicate}
    peers = [
        {"peer": other, "sent_bytes": 7 * 2**20 + other, "received_bytes": 2**20}
        for other in range(4)
        if other != number
    ]
    return {
        "rank": number,
        "stage": stage,
        "tensor": tensor,
        "node": node,
        "pid": 4000 + number,
        "device": "cpu",
        "threads": 4,
        "units": {"heads": 5 - tensor, "mlp": 12 - tensor, "vocab": 0 if stage == 0 else 384},
        "layers": [15 * stage, 15 * stage + 14],
        "weight_bytes": 28 * 2**20 + number,
        "kv_bytes": 256 * 2**20,
        "load": load,
        "seconds": {name: part * 100 for name, part in load.items()},
        "links": peers,
        "heartbeat_age_s": 0.4,
    }


def model(**more: Any) -> dict[str, Any]:
    places = [(0, "rack-a", 0.61, 0.14), (1, "rack-b", 0.52, 0.17), (2, "rack-a", 0.66, 0.12), (3, "rack-c", 0.38, 0.2)]
    return {
        "name": "smollm2",
        "state": "ready",
        "mesh": {"tensor": 2, "pipeline": 2},
        "max_model_len": 4096,
        "kv": {"blocks": 4096, "used": 1311, "cached": 890, "free": 1895, "block_tokens": 16},
        "running": 7,
        "waiting": 2,
        "requests_total": 18241,
        "requests_per_s": 3.2,
        "prompt_tokens_per_s": 812.5,
        "generation_tokens_per_s": 118.4,
        "ttft_p50_ms": 212.0,
        "itl_p50_ms": 8.4,
        "recoveries": {"count": 1, "last_s": 2.31},
        "bubble_s": 12.5,
        "ranks": [rank(*place) for place in places],
        **more,
    }


def loading(name: str) -> dict[str, Any]:
    nothing = {"mesh": None, "max_model_len": None, "kv": None, "running": 0, "waiting": 0, "ranks": []}
    return model(name=name, state="loading", ttft_p50_ms=None, itl_p50_ms=None, **nothing)


def snapshot(*models: dict[str, Any]) -> dict[str, Any]:
    nodes = [
        {
            "name": name,
            "address": f"10.0.0.{at + 1}",
            "cpus": 8,
            "memory_bytes": 32 * GIB,
            "is_alive": at < 2,
            "ranks": [],
        }
        for at, name in enumerate(("rack-a", "rack-b", "rack-c"))
    ]
    shown = list(models) or [model(), loading("qwen3-8b")]
    return {"time": 1_700_000_000.0, "version": "0.1.0", "uptime_s": 93_784.0, "nodes": nodes, "models": shown}
