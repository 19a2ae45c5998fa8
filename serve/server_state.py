"""GET /version, /load and the health routes: what the server is, how busy it is, and whether its ranks compute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

import tinycluster
from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import QueueFullError, UnavailableError
from tinycluster.engine.request import RequestOptions, SamplingParams
from tinycluster.serve.registry import ModelRegistry

PROBE_TIMEOUT_S = 10.0
ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
BEFORE_ALL_OTHERS = RequestOptions(priority=-(2**31))


class Probes:
    """A question to an engine; callers that come while one is on its way share it."""

    def __init__(self, ask: Callable[[Engine], Coroutine[Any, Any, None]]) -> None:
        self._ask = ask
        self._running: dict[str, asyncio.Task[None]] = {}

    async def probe(self, engine: Engine) -> None:
        """Whatever the question raises."""
        task = self._running.get(engine.name)
        if task is None:
            task = self._running[engine.name] = asyncio.create_task(self._ask(engine))
            task.add_done_callback(lambda _: self._running.pop(engine.name))
        # A caller that leaves must not end what the others wait for.
        await asyncio.shield(task)


async def _generate_one_token(engine: Engine) -> None:
    """UnavailableError unless the token came within PROBE_TIMEOUT_S, or the queue is full of others' tokens."""
    try:
        generation = engine.submit([engine.config.bos_token_id or 0], ONE_TOKEN, BEFORE_ALL_OTHERS)
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            async for _delta in generation:
                pass
    except QueueFullError:
        await asyncio.to_thread(engine.check_ready)
    except TimeoutError:
        raise UnavailableError(f"{engine.name} generated nothing within {PROBE_TIMEOUT_S:.0f} s") from None


async def _check_ready(engine: Engine) -> None:
    # It waits for a step, so everybody who asks while one hangs would hold a thread.
    await asyncio.to_thread(engine.check_ready)


def add_server_routes(app: FastAPI, registry: ModelRegistry) -> None:
    tokens, steps = Probes(_generate_one_token), Probes(_check_ready)

    async def ask_all(probes: Probes) -> Response:
        registry.get(registry.engines[0].name if registry.engines else None)
        await asyncio.gather(*(probes.probe(engine) for engine in registry.engines))
        return JSONResponse({"status": "ready"})

    @app.get("/health")
    async def health() -> Response:
        """200 while the process answers; says nothing about the ranks."""
        return JSONResponse({"status": "alive"})

    @app.get("/health/ready")
    async def ready() -> Response:
        """200 if a real forward pass went through every rank of every model in the last 10 s, else 503."""
        return await ask_all(steps)

    @app.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": tinycluster.__version__})

    @app.get("/load")
    async def load() -> Response:
        return JSONResponse(
            {"server_load": sum(engine.num_running + engine.num_waiting for engine in registry.engines)}
        )

    @app.get("/health_generate")
    async def health_generate() -> Response:
        """200 once every model has generated a token, which went through all of its ranks; else 503."""
        return await ask_all(tokens)
