"""When a growing answer is stored: a second after its first unstored token, or with the 32nd, whichever comes first.

Each time all of the text is written, so from 2048 tokens on it is a 64th of the tokens instead of 32: however fast they
come, what is written in all grows with the length of the text, and not with its square.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tinycluster.engine.errors import TinyclusterError

log = logging.getLogger(__name__)

MAX_UNSTORED_S = 1.0
MAX_UNSTORED_TOKENS = 32
MAX_UNSTORED_PART = 64
"""The part of the tokens that may be unstored is one by this."""


class Checkpoints:
    """Calls `store` beside the stream of tokens, never twice at once. What fails is tried again a second later."""

    def __init__(self, store: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._storing: asyncio.Task[None] | None = None
        self._num_tokens = self._num_unstored = 0
        self._is_over = self._has_failed = False

    def add(self, num_tokens: int) -> None:
        """So many tokens more."""
        self._num_tokens += num_tokens
        self._num_unstored += num_tokens
        if self._storing is None and not self._is_over:
            is_due = self._num_unstored >= max(MAX_UNSTORED_TOKENS, self._num_tokens // MAX_UNSTORED_PART)
            if is_due and not self._has_failed:
                self._begin()
            elif self._timer is None and self._num_unstored:
                self._timer = self._loop.call_later(MAX_UNSTORED_S, self._begin)

    def end(self) -> None:
        """No more of them; one may still be at work. One that was due and has not begun is left to the end itself."""
        self._is_over = True
        self._stop_timer()

    async def over(self) -> None:
        """Returns when none is at work."""
        if self._storing is not None:
            await asyncio.wait({self._storing})

    def _begin(self) -> None:
        self._stop_timer()
        self._storing = self._loop.create_task(self._run())

    async def _run(self) -> None:
        num_storing, self._num_unstored = self._num_unstored, 0
        try:
            if not self._is_over:
                await self._store()
            self._has_failed = False
        except TinyclusterError as error:
            if not self._has_failed:
                log.warning("an answer could not be stored so far: %s", error)
            self._has_failed = True
            self._num_unstored += num_storing
        except Exception:
            log.exception("an answer could not be stored so far")
            self._has_failed = True
        finally:
            self._storing = None
            self.add(0)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
