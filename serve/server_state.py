"""GET /version, /load and /health_generate: what the server is, how busy it is, and whether its ranks compute."""

from __future__ import annotations

import asyncio

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
    """One token through every rank of an engine; callers that come while one is on its way share it."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}

    async def probe(self, engine: Engine) -> None:
        """UnavailableError unless the token came within PROBE_TIMEOUT_S, or the queue is full of others' tokens."""
        task = self._running.get(engine.name)
        if task is None:
            task = self._running[engine.name] = asyncio.create_task(_generate_one_token(engine))
            task.add_done_callback(lambda _: self._running.pop(engine.name))
        # A caller that leaves must not end what the others wait for.
        await asyncio.shield(task)


async def _generate_one_token(engine: Engine) -> None:
    try:
        generation = engine.submit([engine.config.bos_token_id or 0], ONE_TOKEN, BEFORE_ALL_OTHERS)
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            async for _delta in generation:
                pass
    except QueueFullError:
        await asyncio.to_thread(engine.check_ready)
    except TimeoutError:
        raise UnavailableError(f"{engine.name} generated nothing within {PROBE_TIMEOUT_S:.0f} s") from None


def add_server_routes(app: FastAPI, registry: ModelRegistry) -> None:
    probes = Probes()

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
        registry.get(registry.engines[0].name if registry.engines else None)
        await asyncio.gather(*(probes.probe(engine) for engine in registry.engines))
        return JSONResponse({"status": "ready"})
