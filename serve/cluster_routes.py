"""GET /api/cluster, and /api/cluster/events: the same each second, made once however many listen."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinycluster.serve.cluster_view import ClusterView
from tinycluster.serve.disconnect import ClientGoneError, unless_disconnected
from tinycluster.serve.registry import ModelRegistry

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class ClusterFeed:
    """Snapshots for everybody who listens, as events. Nothing runs while nobody does."""

    def __init__(self, view: ClusterView, period_s: float = PERIOD_S) -> None:
        self.view, self._period_s = view, period_s
        self._num_listeners = 0
        self._sampler: asyncio.Task[None] | None = None
        self._next: asyncio.Future[bytes]
        self.num_samples = 0

    @property
    def is_over(self) -> bool:
        """Every engine has ended: so will the server, and a stream must not hold it up."""
        engines = self.view.registry.engines
        return bool(engines) and all(engine.has_failed for engine in engines)

    async def event(self) -> bytes:
        self.num_samples += 1
        return b"event: snapshot\ndata: %s\n\n" % json.dumps(await self.view.snapshot()).encode()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """`next_event` may be awaited inside."""
        self._num_listeners += 1
        if self._sampler is None:
            self._next = asyncio.get_running_loop().create_future()
            self._sampler = asyncio.create_task(self._sample())
        try:
            yield
        finally:
            self._num_listeners -= 1
            if self._num_listeners == 0:
                self._sampler.cancel()
                self._sampler = None

    async def next_event(self) -> bytes:
        # Shielded: a listener that leaves must not cancel what the others wait for.
        return await asyncio.shield(self._next)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                content = await self.event()
            except Exception:
                log.exception("no snapshot of the cluster could be made")
                continue
            told, self._next = self._next, asyncio.get_running_loop().create_future()
            told.set_result(content)


class SnapshotStream(Response):
    """One event at once, then one per period, until the client leaves or the engines have ended.

    A client that reads slowly gets the newest snapshot next and misses those between.
    """

    def __init__(self, feed: ClusterFeed) -> None:
        super().__init__(media_type="text/event-stream")
        self._feed = feed
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError):
            await unless_disconnected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        content = await self._feed.event()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with self._feed.listening():
            while not self._feed.is_over:
                await send({"type": "http.response.body", "body": content, "more_body": True})
                content = await self._feed.next_event()
        await send({"type": "http.response.body", "body": content})


def add_cluster_routes(app: FastAPI, registry: ModelRegistry) -> None:
    """`app.state.cluster` is the feed; configure.py tells its view what the settings know."""
    feed: ClusterFeed = ClusterFeed(ClusterView(registry))
    app.state.cluster = feed

    @app.get("/api/cluster")
    async def show_cluster() -> Response:
        return JSONResponse(await feed.view.snapshot())

    @app.get("/api/cluster/events")
    async def follow_cluster(_: Request) -> Response:
        return SnapshotStream(feed)
