"""Comments in a stream that is silent for long, so that nothing between server and client takes it for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

COMMENT = b": keep-alive\n\n"


class KeepAlive:
    """Inside `async with`, `send_comment` is called whenever nothing was sent for `period_s` to twice as long.

    One timer per stream looks at `num_sent`, which whoever sends counts up: a token costs one addition.
    """

    def __init__(self, send_comment: Callable[[], Awaitable[None]], period_s: float) -> None:
        self._send_comment, self._period_s = send_comment, period_s
        self._task: asyncio.Task[None] | None = None
        self._num_seen = 0
        self.num_sent = 0

    async def __aenter__(self) -> KeepAlive:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._period_s, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _look(self) -> None:
        # A comment that is still being sent waits for a client that does not read: another would wait behind it.
        if self.num_sent == self._num_seen and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._comment())
        self._num_seen = self.num_sent
        self._timer = self._loop.call_later(self._period_s, self._look)

    async def _comment(self) -> None:
        await self._send_comment()
