"""One turn of a conversation: from what a client asks to an answer that is being generated.

read the path ─► render, tokenize, check ─► store message and pending answer ─► ask the engine ─► run
                                            └────── the engine refuses: nothing of it stays ─┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import ContextLengthError, RequestError, TinyclusterError
from tinycluster.serve.answer_run import Ending
from tinycluster.serve.answer_runs import AnswerRuns
from tinycluster.serve.body import PARSE_IN_THREAD_BYTES
from tinycluster.serve.errors import ErrorReply, HttpError, not_found
from tinycluster.serve.fields import validated
from tinycluster.serve.generation_routes import submit_request
from tinycluster.serve.identity import Terms
from tinycluster.serve.messages import Message as ChatMessage
from tinycluster.serve.prompts import chat_prompt
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.responses_items import messages_of
from tinycluster.serve.sessions_fields import ChatTurn
from tinycluster.serve.sessions_shown import MESSAGE_BYTES, done_data, title_of
from tinycluster.serve.storage.conversations import Conversations
from tinycluster.serve.storage.errors import CommitUnknownError
from tinycluster.serve.storage.records import (
    HEAD,
    OPEN_STATES,
    Conversation,
    Message,
    NewMessage,
    NewTurn,
    Turn,
    new_message_id,
)

log = logging.getLogger(__name__)

MAX_PATH_MESSAGES = 2048
LONGEST_TOKEN_CHARS = 256
"""More than any token of a vocabulary in use has (128 spaces): a text of more characters needs no tokenizer."""


@dataclass(frozen=True)
class Place:
    """Where a turn belongs: `path` are the messages that its prompt has before the new one."""

    session: Conversation | None
    parent_id: str | None
    path: Sequence[Message]

    @property
    def system(self) -> str | None:
        found = None if self.session is None else self.session.settings.get("system")
        return found if isinstance(found, str) and found else None


class StoredAnswer:
    """Keeper of one answer."""

    def __init__(self, conversations: Conversations, turn: Turn) -> None:
        self._conversations, self._turn = conversations, turn

    async def checkpoint(self, text: str) -> bool:
        return await self._conversations.checkpoint(self._turn.answer.id, text)

    async def finish(self, ending: Ending) -> str:
        finished = await self._conversations.finish(
            self._turn.answer.id,
            text=ending.text,
            state=ending.state,
            finish_reason=ending.finish_reason,
            usage=ending.usage,
        )
        if finished is not None:
            return done_data(finished.conversation, finished.answer)
        session = self._turn.conversation
        return done_data(*await find_answer(self._conversations, session.owner, session.id, self._turn.answer.id))


async def find_answer(
    conversations: Conversations, owner: str, session_id: str, message_id: str
) -> tuple[Conversation, Message]:
    """Both as they are stored now. HttpError 404."""
    found = await conversations.with_message(owner, session_id, message_id)
    if found is None:
        raise not_found("session", "session_id")
    session, message = found
    if message is None:
        raise not_found("message", "message_id")
    return session, message


class Turns:
    """Begins turns. Of two requests with the same client, session and message id at once the second waits for the
    first, and then gets its answer."""

    def __init__(self, registry: ModelRegistry, runs: AnswerRuns) -> None:
        self._registry, self._runs = registry, runs
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def begin(self, conversations: Conversations, terms: Terms, asked: ChatTurn, asked_s: float) -> Turn:
        """The turn, stored, and its answer in the making, unless it is a repeated one.

        RequestError, HttpError 404 and 409, QueueFullError and UnavailableError: then nothing is stored.
        """
        if asked.message_id is None:
            return await self._begin(conversations, terms, asked, asked_s)
        lock = self._locks.setdefault((terms.client, asked.message_id), asyncio.Lock())
        async with lock:
            first = await conversations.turn(terms.client, asked.session_id, asked.message_id)
            if first is None:
                return await self._begin(conversations, terms, asked, asked_s)
            return _repeated(first, asked)

    async def _begin(self, conversations: Conversations, terms: Terms, asked: ChatTurn, asked_s: float) -> Turn:
        place = await _place(conversations, terms.client, asked)
        engine = self._registry.get(asked.model or (place.session.model if place.session is not None else None))
        engine.check_room()
        with self._runs.place():
            prompt = await _prompt(engine, asked, place)
            turn = await self._store(conversations, terms.client, _new_turn(asked, place, engine.name))
            if turn is None:
                raise not_found("session", "session_id")
            if turn.is_repeated:
                return _repeated(turn, asked)
            await self._start(conversations, terms, turn, asked, engine, prompt, asked_s)
            return turn

    async def _store(self, conversations: Conversations, owner: str, new: NewTurn) -> Turn | None:
        try:
            return await conversations.begin_turn(owner, new)
        except CommitUnknownError:
            # The client is told that nothing is stored, and an answer that nobody writes must not stay open.
            self._runs.retry(partial(conversations.discard_unknown, owner, new))
            raise

    async def _start(
        self,
        conversations: Conversations,
        terms: Terms,
        turn: Turn,
        asked: ChatTurn,
        engine: Engine,
        prompt: Sequence[int],
        asked_s: float,
    ) -> None:
        session = turn.conversation
        # The engine reports the prompt's progress to streams only, and a run is one whoever reads it.
        asked = asked.model_copy(update={"session_id": session.id, "stream": True, "return_progress": True})
        try:
            choices = await submit_request(terms, asked, engine, [prompt])
        except BaseException as error:
            await self._discard(conversations, turn)
            if isinstance(error, RequestError) and error.param in ("messages", "prompt"):
                raise type(error)(error.message, "input", error.code) from None
            raise
        self._runs.start(session.id, turn.answer.id, choices, StoredAnswer(conversations, turn), asked_s)

    async def _discard(self, conversations: Conversations, turn: Turn) -> None:
        """Without the storage the turn stays a while, but it never looks as if somebody worked at it."""
        work = partial(conversations.discard_turn, turn)
        try:
            await work()
        except TinyclusterError as error:
            log.warning("a turn that was refused could not be discarded yet: %s", error)
            self._runs.retry(work)


def _repeated(first: Turn, asked: ChatTurn) -> Turn:
    """The turn that a message's id has begun before, of this server or another. HttpError 409 for another message."""
    if first.message.text != asked.input:
        message = "message_id is of a message with another text"
        raise HttpError(ErrorReply(409, message, param="message_id", code="message_id_taken"))
    return first


async def _place(conversations: Conversations, owner: str, asked: ChatTurn) -> Place:
    if asked.session_id is None:
        return Place(None, None, ())
    leaf = asked.regenerate or (asked.parent_id if asked.has_parent else HEAD)
    found = await conversations.with_path(owner, asked.session_id, leaf)
    if found is None:
        raise not_found("session", "session_id")
    session, path = found
    param = "regenerate" if asked.regenerate is not None else "parent_id"
    if path is None:
        raise not_found("message", param)
    if any(message.state in OPEN_STATES for message in path):
        message = "The answer before this message is still being written; wait for its end or stop it"
        raise HttpError(ErrorReply(409, message, param=param, code="answer_in_progress"))
    if asked.regenerate is not None and path[-1].role != "user":
        raise RequestError("regenerate must be the id of a user's message", "regenerate")
    return Place(session, path[-1].id if path else None, path)


async def _prompt(engine: Engine, asked: ChatTurn, place: Place) -> Sequence[int]:
    """The token ids of the whole conversation, or the error for which there will be no answer to it."""
    if len(place.path) >= MAX_PATH_MESSAGES:
        raise ContextLengthError(f"The conversation has more than {MAX_PATH_MESSAGES} messages", "input")
    num_chars = sum(len(message.text) for message in place.path) + len(asked.input or "")
    if num_chars > engine.max_model_len * LONGEST_TOKEN_CHARS:
        message = f"The conversation has {num_chars} characters; {engine.name} takes less than {engine.max_model_len}"
        raise ContextLengthError(f"{message} tokens", "input")
    is_large = num_chars + MESSAGE_BYTES * len(place.path) >= PARSE_IN_THREAD_BYTES
    messages = await asyncio.to_thread(_messages, asked, place) if is_large else _messages(asked, place)
    prompt = await chat_prompt(engine, messages)
    if len(prompt) >= engine.max_model_len:
        message = f"The conversation has {len(prompt)} tokens; {engine.name} takes less than {engine.max_model_len}"
        raise ContextLengthError(message, "input")
    return prompt


def _messages(asked: ChatTurn, place: Place) -> list[ChatMessage]:
    items = [message.item or _item(message.role, message.text) for message in place.path]
    if asked.input is not None:
        items.append(_item("user", asked.input))
    system = asked.system if asked.system is not None else place.system
    try:
        return [validated(ChatMessage, message) for message in messages_of(system or None, items)]
    except RequestError as error:
        raise RequestError(f"The conversation cannot be answered: {error.message}", "input") from None
    except (LookupError, TypeError, AttributeError):
        # What was imported may be anything.
        raise RequestError("The conversation holds something that is no message", "input") from None


def _item(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"text": text}]}


def _new_turn(asked: ChatTurn, place: Place, model: str) -> NewTurn:
    return NewTurn(
        conversation_id=asked.session_id,
        message=None if asked.input is None else NewMessage("user", asked.input, id=asked.message_id),
        parent_id=place.parent_id,
        answer_id=new_message_id(),
        model=model,
        parameters=asked.parameters(),
        title=title_of(asked.input or "") if asked.session_id is None else "",
        settings={} if asked.system is None else {"system": asked.system},
    )
