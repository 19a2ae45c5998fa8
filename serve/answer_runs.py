"""The answers that one server generates for conversations, until each end is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from tinycluster.engine.errors import QueueFullError
from tinycluster.serve.answer_run import AnswerRun, Keeper, until_available
from tinycluster.serve.choices import Choices

MAX_RUNS = 1024
"""Clients may leave and ask for more, while the answers that nobody reads go on."""
RETRY_AFTER_S = 5
DRAIN_S = 1.0
"""Answers get so long to end by themselves when the server stops, and then STORE_S to be stored as they are."""
STORE_S = 3.0


class AnswerRuns:
    """Used on one event loop at a time."""

    def __init__(self, max_runs: int = MAX_RUNS, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_runs, self._clock = max_runs, clock
        self._runs: dict[str, tuple[str, AnswerRun]] = {}
        self._num_starting = 0
        self._retrying: set[asyncio.Task[None]] = set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for one more run, to be started inside. QueueFullError where there is none."""
        if len(self._runs) + self._num_starting >= self._max_runs:
            raise QueueFullError(f"The server writes {self._max_runs} answers already", RETRY_AFTER_S)
        self._num_starting += 1
        try:
            yield
        finally:
            self._num_starting -= 1

    def start(self, session_id: str, answer_id: str, choices: Choices, keeper: Keeper, asked_s: float) -> AnswerRun:
        run = AnswerRun(answer_id, choices, keeper, self._clock, asked_s)
        self._runs[answer_id] = (session_id, run)
        run.task.add_done_callback(lambda _: self._forget(answer_id))
        return run

    def get(self, answer_id: str) -> AnswerRun | None:
        """Ids of answers are the server's own: whoever knows one has found it among the owner's."""
        found = self._runs.get(answer_id)
        return None if found is None else found[1]

    def _forget(self, answer_id: str) -> None:
        del self._runs[answer_id]

    def interrupt_session(self, session_id: str) -> None:
        for of_session, run in list(self._runs.values()):
            if of_session == session_id:
                run.interrupt()

    def retry(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do `work` until it does not fail for want of the storage, or the server ends."""
        task = asyncio.create_task(until_available(work))
        self._retrying.add(task)
        task.add_done_callback(self._retrying.discard)

    async def end(self) -> None:
        """The server stops: every answer that has not ended soon is interrupted, and stored as it is."""
        await self._wait(DRAIN_S)
        for _, run in self._runs.values():
            run.interrupt()
            run.give_up()
        for task in self._retrying:
            task.cancel()
        await self._wait(STORE_S)

    async def _wait(self, timeout_s: float) -> None:
        running = [run.task for _, run in self._runs.values()]
        if running:
            await asyncio.wait(running, timeout=timeout_s)
