"""Responses in progress in this process, from before the first token until their end is stored, or cannot be."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tinycluster.engine.errors import TinyclusterError, UnavailableError
from tinycluster.serve.conversation_items import new_message_of, title_of_items
from tinycluster.serve.errors import reply_for
from tinycluster.serve.responses_events import ResponseEvents
from tinycluster.serve.responses_prompt import Submitted
from tinycluster.serve.responses_store import Context, as_text
from tinycluster.serve.storage.records import NewMessage
from tinycluster.serve.storage.responses import KeptResponse
from tinycluster.serve.storage.storage import Storage

log = logging.getLogger(__name__)

TRY_AGAIN_S = (1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60)
"""Pauses before a background response's end is given to a storage that did not take it once more."""
DRAIN_S = 1.0
"""Background responses get so long to end by themselves when the server stops, and then STORE_S to be stored."""
STORE_S = 3.0
WATCH_PERIOD_S = 2.0
"""How soon a background response notices that another server has cancelled or deleted it."""

Key = tuple[str, str]
"""Owner and id."""


class Run:
    """One response: its generation, its events and how it is stored. `num_said` of the context's items are its own."""

    def __init__(
        self,
        storage: Storage,
        owner: str,
        response: dict[str, Any],
        context: Context,
        num_said: int,
        submitted: Submitted,
    ) -> None:
        self.storage, self.owner, self.response, self.context = storage, owner, response, context
        self._num_said = num_said
        self._is_begun = False
        self.choices = submitted.choices
        self.events = ResponseEvents(response, time.time, self.keep, submitted.parser, submitted.logprobs)
        self.is_unwanted = not response["store"]
        self.is_kept = False
        self.is_settled = asyncio.Event()
        """Its end is stored, or storage did not take it."""
        self.task: asyncio.Task[None] | None = None

    @property
    def key(self) -> Key:
        return self.owner, str(self.response["id"])

    def encoded(self) -> str:
        return self.events.encoded()

    async def begin(self) -> None:
        """Let every server know of it. StorageError where storage fails."""
        await self.storage.responses.put(self.owner, await self._kept(self.response))
        self._is_begun = True

    async def generate(self) -> None:
        """To its end, which is then stored."""
        async for step in self.choices.steps():
            for choice, delta in step:
                self.events.delta(choice, delta)
        self.events.usage(self.choices.usage())
        await self.events.commit()

    async def keep(self, response: Mapping[str, Any]) -> None:
        """Store the response as it ends, and with it what was said in its conversation. StorageError: nothing is."""
        if not self.is_unwanted:
            kept, said = await self._kept(response), self._said(response)
            if self._is_begun:
                await self.storage.responses.end(self.owner, kept, said, title_of_items(said))
            else:
                await self.storage.responses.put(self.owner, kept, said, title_of_items(said))
        self.is_kept = True
        self.is_settled.set()

    def stop(self) -> None:
        """Whoever asked for it does not want the rest, unless it is whole already."""
        if self.events.is_over or self.events.is_ending:
            return
        self.events.cancel()
        self.choices.abort()
        if self.task is not None:
            self.task.cancel()

    async def _kept(self, response: Mapping[str, Any]) -> KeptResponse:
        return await as_text(response, self.events.written, self.context)

    def _said(self, response: Mapping[str, Any]) -> Sequence[NewMessage]:
        if response["conversation"] is None or response["status"] not in ("completed", "incomplete"):
            return ()
        asked = self.context.items[len(self.context.items) - self._num_said :]
        answered = (new_message_of(item, response["model"]) for item in response["output"])
        return [*map(new_message_of, asked), *answered]


class Runs:
    """Those that somebody may ask for before they are stored."""

    def __init__(self) -> None:
        self._runs: dict[Key, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch_task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def get(self, owner: str, response_id: str) -> Run | None:
        return self._runs.get((owner, response_id))

    def add(self, run: Run) -> None:
        if not run.is_unwanted:
            self._runs[run.key] = run

    def forget(self, owner: str, response_id: str) -> None:
        self._runs.pop((owner, response_id), None)

    def leave(self, run: Run) -> None:
        """Nobody reads its events any more: what has not ended well by now is cancelled or has failed."""
        run.events.cancel()
        if run.is_kept or not run.events.is_told:
            self._runs.pop(run.key, None)
        else:
            self._spawn(self._keep_end(run))

    def begin(self, run: Run) -> None:
        """Generate in the background; storage knows of it already."""
        self.add(run)
        run.task = self._spawn(self._generate(run))
        if self._watch_task is None or self._watch_task.done():
            self._watch_task = self._spawn(self._watch())

    async def end(self) -> None:
        """The server stops: what has not ended soon has failed. Storage gets one more chance to take each end."""
        if self._watch_task is not None:
            self._watch_task.cancel()
        await self._wait(DRAIN_S)
        self._ending.set()
        for run in self._runs.values():
            if run.task is not None and not (run.events.is_over or run.events.is_ending):
                run.task.cancel()
        await self._wait(STORE_S)
        for task in self._tasks:
            task.cancel()

    async def _wait(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _generate(self, run: Run) -> None:
        """What goes wrong is in the response."""
        try:
            await run.generate()
        except asyncio.CancelledError:
            # By stop(), or because the server ends.
            run.events.failed(reply_for(UnavailableError("The server stopped before the response was complete")))
        except Exception as error:
            if not isinstance(error, TinyclusterError):
                log.exception("a background response failed")
            run.events.failed(reply_for(error))
        finally:
            run.choices.abort()
        await self._keep_end(run, TRY_AGAIN_S)

    async def _keep_end(self, run: Run, pauses_s: Sequence[float] = ()) -> None:
        """Store what did not end well, with another try after each of the pauses."""
        try:
            for pause_s in (0, *pauses_s):
                if pause_s:
                    await self._pause(pause_s)
                if run.is_kept or await _is_kept_now(run) or self._ending.is_set():
                    return
        finally:
            self._runs.pop(run.key, None)

    async def _pause(self, pause_s: float) -> None:
        """Until the server ends, if that is sooner."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), pause_s)

    async def _watch(self) -> None:
        """While anything runs in the background: what another server has ended or deleted is stopped."""
        while background := [run for run in self._runs.values() if run.task is not None and not run.events.is_over]:
            await asyncio.sleep(WATCH_PERIOD_S)
            try:
                still_open = await background[0].storage.responses.in_progress([run.key for run in background])
            except UnavailableError:
                continue
            for run in background:
                if run.key not in still_open:
                    run.stop()


async def _is_kept_now(run: Run) -> bool:
    try:
        await run.keep(run.response)
    except UnavailableError as error:
        log.warning("the end of %s could not be stored: %s", run.key[1], error)
    run.is_settled.set()
    return run.is_kept
