"""Servers that are killed: `python -m tests.serve.killed_server sqlite:///FILE`.

Every line of its stdin starts one, as a fork of this process, which has imported everything before: a new server costs
no more than what it does itself. The answer is a line of JSON with its URL and process id. Without a line more it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.serve.fake_engine import FakeEngine, FakeGeneration
from tinycluster.cluster.config import Settings
from tinycluster.cluster.generation import Delta
from tinycluster.serve.app import create_app
from tinycluster.serve.configure import configure
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry

TOKENS_PER_S = 2000


class PacedGeneration(FakeGeneration):
    """Tokens come one by one, at random moments."""

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for delta in self:
            await asyncio.sleep(random.expovariate(TOKENS_PER_S))
            yield delta


class PacedEngine(FakeEngine):
    def _generation(self, *arguments: Any) -> FakeGeneration:
        fake = super()._generation(*arguments)
        return PacedGeneration(self, fake._request_id, *arguments)


def serve(url: str) -> None:
    """Until it is killed, or its parent ends it by SIGTERM."""
    random.seed()
    settings = Settings.model_validate(
        {
            "models": [{"name": "fake", "source": "nowhere"}],
            "cluster": {"address": "local"},
            "storage": {"url": url},
            "telemetry": {"log_dir": str(Path(url.removeprefix("sqlite:///")).parent / "logs")},
        }
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with ExitStack() as running:
        registry = ModelRegistry()
        registry.add(PacedEngine())
        app = create_app(registry)
        running.enter_context(configure(app, settings))
        listener = listen("127.0.0.1", 0)
        server = HttpServer(app, listener)
        running.callback(server.stop)
        server.start()
        print(json.dumps({"url": url_of(listener), "pid": os.getpid()}), flush=True)
        signal.sigwait({signal.SIGTERM})


def main() -> None:
    """One server at a time: the one before is dead, or is ended."""
    url, pid = sys.argv[1], None
    for _ in sys.stdin:
        end(pid)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                serve(url)
                status = 0
            finally:
                sys.stderr.flush()
                # What the parent is in the middle of is not the child's to go on with.
                os._exit(status)
    end(pid)


def end(pid: int | None) -> None:
    if pid is not None:
        try:
            os.kill(pid, signal.SIGTERM)
        finally:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
