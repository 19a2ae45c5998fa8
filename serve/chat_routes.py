"""POST /api/chat, and the events and the stop of an answer: what concerns answers while they are generated.

An answer belongs to the server. Clients follow it, leave, and come back to any place of it, each as often as it likes.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from tinycluster.engine.errors import RequestError
from tinycluster.serve.answer_events import POLL_S, Stored, failed, live, started, stored
from tinycluster.serve.answer_runs import AnswerRuns
from tinycluster.serve.body import read_as
from tinycluster.serve.disconnect import unless_disconnected
from tinycluster.serve.errors import HttpError, not_found
from tinycluster.serve.identity import client_of, terms_of
from tinycluster.serve.keep_alive import COMMENT
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.request_storage import conversations_of
from tinycluster.serve.sessions_fields import parse_turn
from tinycluster.serve.sessions_shown import done_data, message_shown, session_summary
from tinycluster.serve.sessions_turn import Turns, find_answer
from tinycluster.serve.storage.conversations import Conversations
from tinycluster.serve.storage.records import OPEN_STATES, Conversation, Message
from tinycluster.serve.stream import EventResponse, Write

PLACE = re.compile(r"(?:([^/]+)/)?([0-9]{1,12})", re.ASCII)
"""The id of an event: the answer's, and the number of its characters so far."""


class Answers:
    """What is generated, and what is stored of it. `conversations` is the repository of the request's application."""

    def __init__(self, registry: ModelRegistry, runs: AnswerRuns) -> None:
        self._turns, self._runs = Turns(registry, runs), runs

    async def chat(self, request: Request) -> Response:
        asked_s = time.monotonic()
        asked = await read_as(parse_turn, request)
        conversations = conversations_of(request)
        turn = await self._turns.begin(conversations, terms_of(request), asked, asked_s)
        session, answer = turn.conversation, turn.answer
        if asked.is_streamed:
            message = None if asked.input is None else message_shown(turn.message)
            start = started(session_summary(session), message, message_shown(answer))
            return EventResponse(self._events(conversations, session, answer.id, 0, start), failed)
        done = await unless_disconnected(request.receive, self._end_of(conversations, session, answer.id))
        return JSONResponse({"session_id": session.id, "message": done["message"]})

    async def follow(self, request: Request, session_id: str, message_id: str) -> Response:
        """From the character on after which the client has none. An answer from an earlier process has them too."""
        conversations = conversations_of(request)
        session, answer = await self._find(request, session_id, message_id)
        offset = _offset(request, answer.id)
        # The client shall know at once that it is connected, even if the answer says nothing for long.
        begin = COMMENT.decode()
        return EventResponse(self._events(conversations, session, answer.id, offset, begin), failed)

    async def stop(self, request: Request, session_id: str, message_id: str) -> Response:
        """The answer as it is then. One that another process generates is cut at what is stored of it."""
        conversations = conversations_of(request)
        session, answer = await self._find(request, session_id, message_id)
        run = self._runs.get(answer.id)
        if run is not None:
            run.stop()
            done = await self._end_of(conversations, session, answer.id)
            return JSONResponse(done["message"])
        if answer.state in OPEN_STATES:
            await conversations.finish(answer.id, finish_reason="cancelled")
        _, answer = await find_answer(conversations, session.owner, session.id, answer.id)
        return JSONResponse(message_shown(answer))

    async def _find(self, request: Request, session_id: str, message_id: str) -> tuple[Conversation, Message]:
        found, message = await find_answer(conversations_of(request), client_of(request), session_id, message_id)
        if message.role != "assistant":
            raise not_found("answer", "message_id")
        return found, message

    def _events(
        self, conversations: Conversations, session: Conversation, answer_id: str, offset: int, start: str
    ) -> AsyncGenerator[Write]:
        run = self._runs.get(answer_id)
        if run is not None:
            return live(run, offset, start)
        look = partial(_look, conversations, session, answer_id)
        return stored(answer_id, look, partial(self._runs.get, answer_id), offset, start)

    async def _end_of(self, conversations: Conversations, session: Conversation, answer_id: str) -> dict[str, Any]:
        """The data of the event `done`. HttpError where the answer failed."""
        while (run := self._runs.get(answer_id)) is None:
            found = await _look(conversations, session, answer_id)
            if found.done is not None:
                return dict(json.loads(found.done))
            await asyncio.sleep(POLL_S)
        await run.ended()
        if run.failure is not None:
            raise HttpError(run.failure)
        return dict(json.loads(run.done or "{}"))


async def _look(conversations: Conversations, session: Conversation, answer_id: str) -> Stored:
    found, answer = await find_answer(conversations, session.owner, session.id, answer_id)
    return Stored(answer.text, None if answer.state in OPEN_STATES else done_data(found, answer))


def _offset(request: Request, answer_id: str) -> int:
    """How many characters of the answer the client has."""
    name = "Last-Event-ID" if "last-event-id" in request.headers else "after"
    text = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    match = PLACE.fullmatch(text)
    if match is None or match[1] not in (None, answer_id):
        raise RequestError(f"{name} must be the id of an event of this answer, got {text[:80]!r}", name)
    return int(match[2])


def add_chat_routes(app: FastAPI, registry: ModelRegistry, runs: AnswerRuns) -> None:
    answers = Answers(registry, runs)

    @app.post("/api/chat")
    async def chat(request: Request) -> Response:
        return await answers.chat(request)

    @app.get("/api/sessions/{session_id:session}/messages/{message_id}/events")
    async def follow_answer(request: Request, session_id: str, message_id: str) -> Response:
        return await answers.follow(request, session_id, message_id)

    @app.post("/api/sessions/{session_id:session}/messages/{message_id}/stop")
    async def stop_answer(request: Request, session_id: str, message_id: str) -> Response:
        return await answers.stop(request, session_id, message_id)
