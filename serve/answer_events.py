"""The events of an answer, as text, and the order in which somebody gets them who follows one from some character on.

start      the session, the user's message and the answer        only to who has asked
progress   how much of the prompt is computed                    until the text begins
delta      text; its id is "ANSWER/CHARACTERS SO FAR"
done       the answer and its session, as they are stored        or: error
[DONE]
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple, Protocol

from tinycluster.engine.request import PromptProgress
from tinycluster.serve.answer_run import AnswerRun, Reader
from tinycluster.serve.chunks import DONE
from tinycluster.serve.errors import ErrorReply
from tinycluster.serve.stream import Write

POLL_S = 0.5
"""An answer that another process generates is looked for in the storage so often; checkpoints come once a second."""


class Stored(NamedTuple):
    """An answer as it is stored. `done` is the data of the event of that name, None before the end."""

    text: str
    done: str | None


class StoredAnswer(Protocol):
    def __call__(self) -> Awaitable[Stored]:
        """HttpError 404 where it is gone."""
        ...


def started(session: Mapping[str, Any], message: Mapping[str, Any] | None, answer: Mapping[str, Any]) -> str:
    return f"event: start\ndata: {json.dumps({'session': session, 'message': message, 'answer': answer})}\n\n"


def failed(reply: ErrorReply) -> str:
    return f"event: error\ndata: {reply.body().decode()}\n\n"


async def live(run: AnswerRun, offset: int, start: str = "") -> AsyncGenerator[Write]:
    """`start`, if any, goes out at once, with what there is of the run after `offset` characters; then what is new
    whenever there is something."""
    parts = [start] if start else []
    # Whoever comes back for the rest of the text needs no progress of the prompt.
    progress = run.progress if offset else None
    reader = Reader()
    run.readers.add(reader)
    try:
        while True:
            if run.progress is not progress:
                progress = run.progress
                parts.append(_progress(progress))
            if text := run.text.since(offset):
                offset += len(text)
                parts.append(_delta(run.answer_id, text, offset))
            if is_over := run.is_over:
                parts.append(_end_of(run))
            if not parts:
                await reader.news()
                continue
            yield Write("".join(parts).encode(), is_over)
            if is_over:
                return
            parts = []
    finally:
        run.readers.discard(reader)


async def stored(
    answer_id: str, look: StoredAnswer, find_run: Callable[[], AnswerRun | None], offset: int, start: str = ""
) -> AsyncGenerator[Write]:
    """As `live`, of an answer that is not generated in this process, or not yet: from the storage, until it has ended.

    Where the storage has less than `offset` characters at the end (a server died with the rest), `done` has all of
    the answer that is left.
    """
    if start:
        yield Write(start.encode(), False)
    while (run := find_run()) is None:
        found = await look()
        parts = []
        if len(found.text) > offset:
            parts.append(_delta(answer_id, found.text[offset:], len(found.text)))
            offset = len(found.text)
        if found.done is not None:
            yield Write("".join([*parts, _done(found.done), DONE]).encode(), True)
            return
        if parts:
            yield Write(parts[0].encode(), False)
        await asyncio.sleep(POLL_S)
    async with aclosing(live(run, offset)) as writes:
        async for write in writes:
            yield write


def _delta(answer_id: str, text: str, num_chars: int) -> str:
    return f'event: delta\nid: {answer_id}/{num_chars}\ndata: {{"text": {quoted(text)}}}\n\n'


def _progress(progress: PromptProgress | None) -> str:
    assert progress is not None
    shown = {"total": progress.num_tokens, "cached": progress.num_cached, "processed": progress.num_computed}
    return f"event: progress\ndata: {json.dumps(shown)}\n\n"


def _done(data: str) -> str:
    return f"event: done\ndata: {data}\n\n"


def _end_of(run: AnswerRun) -> str:
    if run.failure is not None:
        return failed(run.failure) + DONE
    assert run.done is not None
    return _done(run.done) + DONE
