"""One request's stream of text and tokens, read by a thread or by an event loop while the driver writes it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

from tinycluster.engine.detokenizer import Detokenizer
from tinycluster.engine.errors import TinyclusterError
from tinycluster.engine.request import FinishReason, PromptProgress, RequestOutput, TokenLogprobs


class Delta(NamedTuple):
    """What a step added. `text` may lag behind the tokens: half a character or half a stop string is held back.

    The other fields are those of RequestOutput.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logits: tuple[bytes, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    progress: PromptProgress | None = None


class TextAssembler:
    """Turns a request's outputs into deltas and finds stop strings, which only the text shows."""

    def __init__(self, detokenizer: Detokenizer, include_stop: bool) -> None:
        self._detokenizer, self._include_stop = detokenizer, include_stop

    def add(self, output: RequestOutput) -> Delta:
        """The delta of one output. A stop string ends the request earlier than the scheduler knows."""
        text = ""
        for index, token in enumerate(output.token_ids):
            if not (self._is_end(output, index) and not self._include_stop):
                text += self._detokenizer.push(token)
            if self._detokenizer.stopped_by is not None:
                return _delta(output, index + 1, text, "stop", self._detokenizer.stopped_by)
        if output.finish_reason is not None:
            text += self._detokenizer.flush()
        return _delta(output, len(output.token_ids), text, output.finish_reason, output.stop_reason)

    @staticmethod
    def _is_end(output: RequestOutput, index: int) -> bool:
        """Whether this token only ended the request: its text is not part of the answer."""
        return output.finish_reason == "stop" and index == len(output.token_ids) - 1


def _delta(
    output: RequestOutput, num_kept: int, text: str, finish_reason: FinishReason | None, stop_reason: str | int | None
) -> Delta:
    """The delta of an output of which the first `num_kept` tokens count."""
    return Delta(
        output.token_ids[:num_kept],
        text,
        finish_reason,
        stop_reason,
        output.logits[:num_kept],
        output.logprobs[:num_kept],
        output.prompt_logprobs,
        output.progress,
    )


class Generation:
    """Iterate it, blocking or asynchronously, once. Leaving the iteration early aborts the request.

    A request that fails raises UnavailableError from the iterator.
    """

    def __init__(self, request_id: int, abort: Callable[[int], None]) -> None:
        self.request_id = request_id
        self._abort = abort
        self.scheduled_s: float | None = None
        """When the driver first planned it for a step, on time.monotonic."""
        self._arrived: queue.SimpleQueue[Delta | TinyclusterError] = queue.SimpleQueue()
        self._reader: tuple[asyncio.AbstractEventLoop, _Bell] | None = None

    def abort(self) -> None:
        """End the request in any state; its blocks are free before the next step is planned. Any thread may call it."""
        self._abort(self.request_id)

    def __iter__(self) -> Iterator[Delta]:
        return self.iterate()

    def iterate(self, timeout_s: float | None = None) -> Iterator[Delta]:
        """As iteration, but TimeoutError when nothing arrives for `timeout_s`."""
        is_finished = False
        try:
            while not is_finished:
                delta = self._take(timeout_s)
                is_finished = delta.finish_reason is not None
                yield delta
        finally:
            if not is_finished:
                self.abort()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        loop = asyncio.get_running_loop()
        bell = _Bell(loop)
        self._reader = (loop, bell)
        is_finished = False
        try:
            while not is_finished:
                rung = bell.listen()
                while not self._arrived.empty():
                    delta = self._take(0)
                    is_finished = delta.finish_reason is not None
                    yield delta
                if not is_finished:
                    await rung
        finally:
            self._reader = None
            if not is_finished:
                self.abort()

    def _take(self, timeout_s: float | None) -> Delta:
        try:
            item = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"nothing arrived for {timeout_s} s") from None
        if isinstance(item, TinyclusterError):
            raise item
        return item


class _Bell:
    """One reader waits for it at a time; it costs half of what asyncio.Event does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rung: asyncio.Future[None] = loop.create_future()

    def listen(self) -> asyncio.Future[None]:
        """Done as soon as the bell rings after this call."""
        if self._rung.done():
            self._rung = self._loop.create_future()
        return self._rung

    def ring(self) -> None:
        if not self._rung.done():
            self._rung.set_result(None)


class HandOver:
    """Puts a step's deltas into their generations, then wakes every event loop once, however many requests it reads."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[_Bell]] = {}

    def put(self, generation: Generation, item: Delta | TinyclusterError) -> None:
        # The item goes first: a reader that registers in between looks into the queue before it waits.
        generation._arrived.put(item)
        if (reader := generation._reader) is not None:
            loop, bell = reader
            self._waiting.setdefault(loop, []).append(bell)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for loop, bells in waiting.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads these any more
                loop.call_soon_threadsafe(_ring_all, bells)


def _ring_all(bells: list[_Bell]) -> None:
    for bell in bells:
        bell.ring()


def hand_over_now(generation: Generation, item: Delta | TinyclusterError) -> None:
    """One item, at once."""
    hand_over = HandOver()
    hand_over.put(generation, item)
    hand_over.flush()
