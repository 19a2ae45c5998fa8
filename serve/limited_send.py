"""Sending to a client that may not read. A timer per token of every client, as of asyncio.timeout, would cost a lot."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Message, Send


class LimitedSend:
    """An ASGI `send` for one task: inside `async with`, one send that takes longer than `limit_s` is a TimeoutError.

    One timer looks from time to time whether a send is stuck, so that it may end up to twice as late.
    """

    def __init__(self, send: Send, limit_s: float) -> None:
        self._send, self._limit_s = send, limit_s
        self._began_s: float | None = None
        self._is_late = False

    async def __call__(self, message: Message) -> None:
        self._began_s = self._loop.time()
        await self._send(message)
        self._began_s = None

    async def __aenter__(self) -> LimitedSend:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._loop = task, asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._limit_s, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._is_late and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise TimeoutError from error

    def _look(self) -> None:
        now_s = self._loop.time()
        if self._began_s is not None and now_s - self._began_s >= self._limit_s:
            self._is_late = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(self._limit_s, self._look)
