"""The server under load, in a process of its own: `python -m tests.load.child SETTINGS ENGINE`, both JSON.

It prints its URL, then answers each line of its stdin with a line of JSON, until its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

from tests.serve.fake_engine import ALONE, FakeEngine, FakeGeneration
from tinycluster.cluster.config import Settings
from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import RequestOptions, SamplingParams
from tinycluster.serve.allocator import frozen_objects
from tinycluster.serve.app import create_app
from tinycluster.serve.configure import configure
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry


class Idle(FakeGeneration):
    """Its first token comes, its second never does."""

    async def __aiter__(self) -> AsyncIterator[Delta]:
        async for delta in super().__aiter__():
            yield delta
            await asyncio.get_running_loop().create_future()


class IdleEngine(FakeEngine):
    """Answers like its parent, but for the prompt "idle"."""

    def submit_choices(
        self, prompt_token_ids: Sequence[int], choices: Sequence[SamplingParams], options: RequestOptions = ALONE
    ) -> list[FakeGeneration]:
        made = super().submit_choices(prompt_token_ids, choices, options)
        if bytes(prompt_token_ids) == b"idle":
            for generation in made:
                generation.__class__ = Idle
        return made


def engine_of(settings: Settings, engine: str, running: ExitStack) -> Any:
    """ "mock" answers at once; "real" is the model of the settings."""
    if engine == "mock":
        return IdleEngine()
    from tinycluster.cluster.launch import start_engine

    started = start_engine(settings.models[0], settings)
    running.callback(started.close)
    return started


def main() -> None:
    settings, registry = Settings.model_validate(json.loads(sys.argv[1])), ModelRegistry()
    with ExitStack() as running:
        engine = engine_of(settings, sys.argv[2], running)
        registry.add(engine)
        listener = listen("127.0.0.1", 0)
        app = create_app(registry)
        running.enter_context(configure(app, settings))
        server = HttpServer(app, listener)
        running.callback(server.stop)
        running.callback(server.drain)
        running.enter_context(frozen_objects())
        server.start()
        print(url_of(listener), flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(line.strip(), server, engine)), flush=True)


def _answer(question: str, server: HttpServer, engine: Any) -> Any:
    if question == "tasks":
        loop = server._server._loop
        assert loop is not None
        return len(asyncio.all_tasks(loop))
    if question == "running":
        return engine.num_running + engine.num_waiting
    if question == "blocks":
        return engine.cache_use.num_used
    return None


if __name__ == "__main__":
    main()
