"""An answer of a conversation while it is generated. It is the server's: it goes on whoever reads it, or nobody.

    pending ─first checkpoint─► streaming ─► complete      the model's end, or a user's stop
                                         └─► interrupted   the engine, the storage or the server failed or ended

Readers are told of an end only after it is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

from tinycluster.cluster.generation import Delta
from tinycluster.engine.errors import TinyclusterError, UnavailableError
from tinycluster.engine.request import PromptProgress
from tinycluster.serve.checkpoints import Checkpoints
from tinycluster.serve.choices import Choices
from tinycluster.serve.errors import ErrorReply, reply_for
from tinycluster.serve.growing_text import GrowingText

log = logging.getLogger(__name__)

RETRY_S = 2.0
"""An end that could not be stored is tried again this often, until the server ends."""


@dataclass(frozen=True)
class Ending:
    state: Literal["complete", "interrupted"]
    text: str
    finish_reason: str | None
    usage: dict[str, Any]


class Keeper(Protocol):
    """Where one answer is kept. Each returns after its commit, and raises UnavailableError where there is none."""

    async def checkpoint(self, text: str) -> bool:
        """False where the answer has ended or is gone, so that nobody waits for more of it; then this changes nothing.
        The end may overtake it."""
        ...

    async def finish(self, ending: Ending) -> str:
        """The data of the event `done`: the answer and its session as they are kept then. An answer that has ended
        otherwise stays as it is."""
        ...


async def until_available(work: Callable[[], Awaitable[object]]) -> None:
    """Do what failed for want of the storage again and again, until it is done or fails for another reason."""
    while True:
        await asyncio.sleep(RETRY_S)
        try:
            await work()
        except UnavailableError:
            continue
        except TinyclusterError as error:
            log.info("what could not be stored is not needed any more: %s", error)
        return


class Reader:
    """One who follows a run. It holds nothing of the text: whatever is new is in the run."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._bell: asyncio.Future[None] | None = None

    def news(self) -> asyncio.Future[None]:
        """Done with the next change after this call."""
        self._bell = self._loop.create_future()
        return self._bell

    def ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)


class AnswerRun:
    """Made and used on one event loop. `asked_s` and `clock` are seconds of the same clock.

    `done` is the data of the event of that name, `failure` what readers are told instead: one of them comes with the
    end. `task` is done when nothing more happens, which may be later.
    """

    def __init__(
        self, answer_id: str, choices: Choices, keeper: Keeper, clock: Callable[[], float], asked_s: float
    ) -> None:
        self.answer_id = answer_id
        self.text = GrowingText()
        self.progress: PromptProgress | None = None
        self.done: str | None = None
        self.failure: ErrorReply | None = None
        self.readers: set[Reader] = set()
        self._choices, self._keeper, self._clock = choices, keeper, clock
        self._asked_s = self._first_s = self._last_s = asked_s
        self._finish_reason: str | None = None
        self._is_stopped_by_user = False
        self._checkpoints = Checkpoints(self._checkpoint)
        self._generating = asyncio.create_task(self._generate())
        self.task = asyncio.create_task(self._run())

    @property
    def is_over(self) -> bool:
        """Whether the end is decided and stored, or could not be stored."""
        return self.done is not None or self.failure is not None

    def stop(self) -> None:
        """A user wants no more; the answer is complete as it is. Nothing after the end."""
        if not self._generating.done():
            self._is_stopped_by_user = True
            self._generating.cancel()

    def interrupt(self) -> None:
        """The server wants no more. Nothing after the end."""
        self._generating.cancel()

    async def ended(self) -> None:
        """Returns when the run is over; may be cancelled."""
        reader = Reader()
        self.readers.add(reader)
        try:
            while not self.is_over:
                await reader.news()
        finally:
            self.readers.discard(reader)

    def give_up(self) -> None:
        """Stop trying to store the end."""
        if self.is_over:
            self.task.cancel()

    async def _run(self) -> None:
        try:
            await asyncio.wait({self._generating})
            self._choices.abort()
            self._checkpoints.end()
            await self._conclude(*self._ending())
            await self._checkpoints.over()
        finally:
            self._generating.cancel()
            self._choices.abort()

    async def _generate(self) -> None:
        async with aclosing(self._choices.steps()) as steps:
            async for step in steps:
                for _, delta in step:
                    self._take(delta)
                for reader in self.readers:
                    reader.ring()

    def _take(self, delta: Delta) -> None:
        if delta.progress is not None:
            self.progress = delta.progress
        if delta.token_ids:
            self._last_s = self._clock()
            if self._choices.num_completion_tokens == len(delta.token_ids):
                self._first_s = self._last_s
        if delta.text:
            self.text.append(delta.text)
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            self._checkpoints.end()
        else:
            self._checkpoints.add(len(delta.token_ids))

    async def _checkpoint(self) -> None:
        if not await self._keeper.checkpoint(str(self.text)):
            self.interrupt()

    def _ending(self) -> tuple[Ending, ErrorReply | None]:
        """How generating has ended, and what readers are told if it is no good end."""
        complete = Ending("complete", str(self.text), self._finish_reason, self.usage())
        interrupted = replace(complete, state="interrupted", finish_reason=None)
        if self._generating.cancelled():
            if self._is_stopped_by_user:
                return replace(complete, finish_reason="cancelled"), None
            return interrupted, None
        error = self._generating.exception()
        if error is None:
            return complete, None
        if not isinstance(error, TinyclusterError):
            log.error("an answer failed", exc_info=error)
        return interrupted, reply_for(error if isinstance(error, Exception) else UnavailableError("It ended early"))

    async def _conclude(self, ending: Ending, failure: ErrorReply | None) -> None:
        try:
            done = await self._keeper.finish(ending)
        except Exception as error:
            if not isinstance(error, TinyclusterError):
                log.exception("the end of an answer could not be stored")
            self._tell(None, reply_for(error))
            if isinstance(error, UnavailableError):
                late = replace(ending, state="interrupted", finish_reason=None)
                await until_available(partial(self._keeper.finish, late))
        else:
            self._tell(done if failure is None else None, failure)

    def _tell(self, done: str | None, failure: ErrorReply | None) -> None:
        self.done, self.failure = done, failure
        for reader in self.readers:
            reader.ring()

    def usage(self) -> dict[str, Any]:
        """Tokens so far; times in milliseconds from the question on, speed in tokens per second after the first."""
        counted = self._choices.usage()
        num_tokens, seconds = counted["completion_tokens"], self._last_s - self._first_s
        return {
            "prompt_tokens": counted["prompt_tokens"],
            "cached_tokens": counted["prompt_tokens_details"]["cached_tokens"],
            "completion_tokens": num_tokens,
            "ttft_ms": round(1000 * (self._first_s - self._asked_s), 3) if num_tokens else None,
            "tokens_per_s": round((num_tokens - 1) / seconds, 3) if num_tokens > 1 and seconds > 0 else None,
        }
