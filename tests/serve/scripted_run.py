"""Runs over a generation that a test feeds, and a keeper that a test may let fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import FinishReason
from tinycluster.serve.answer_run import AnswerRun, Ending
from tinycluster.serve.choices import Choices
from tinycluster.serve.storage.errors import StorageError


class Fed:
    """A generation that gives what it is fed."""

    def __init__(self) -> None:
        self._fed: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self.is_aborted = False

    def feed(self, text: str, finish_reason: FinishReason | None = None, num_tokens: int = 1) -> None:
        self._fed.put_nowait(Delta((7,) * num_tokens, text, finish_reason))

    def fail(self, error: Exception) -> None:
        self._fed.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            item = await self._fed.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if item.finish_reason is not None:
                return

    def abort(self) -> None:
        self.is_aborted = True


class Kept:
    """A keeper that writes down what it is told, and when. While `is_gone` or `has_ended` it acts so."""

    def __init__(self) -> None:
        self.checkpoints: list[tuple[float, str]] = []
        self.endings: list[Ending] = []
        self.num_tries = 0
        self.takes_s = 0.0
        self.is_gone = self.has_ended = False

    async def checkpoint(self, text: str) -> bool:
        await self._work()
        self.checkpoints.append((asyncio.get_running_loop().time(), text))
        return not self.has_ended

    async def finish(self, ending: Ending) -> str:
        await self._work()
        self.endings.append(ending)
        return json.dumps({"message": {"content": ending.text, "state": ending.state}})

    async def _work(self) -> None:
        self.num_tries += 1
        await asyncio.sleep(self.takes_s)
        if self.is_gone:
            raise StorageError("the disk is full")


def started() -> tuple[AnswerRun, Fed, Kept]:
    """A run at second 100 of the loop's clock."""
    generation, kept = Fed(), Kept()
    loop = asyncio.get_running_loop()
    run = AnswerRun("msg_1", Choices([generation], 11), kept, loop.time, loop.time())
    return run, generation, kept


async def settled() -> None:
    """Everything that can happen now has happened."""
    for _ in range(20):
        await asyncio.sleep(0)
