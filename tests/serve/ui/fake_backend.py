"""The session API in memory, under a test's control: answers that wait, connections that break, refusals, keys."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response

Json = dict[str, Any]
USAGE = {"prompt_tokens": 24, "cached_tokens": 8, "completion_tokens": 12, "ttft_ms": 210.4, "tokens_per_s": 41.27}
LOOK_AGAIN_S = 0.005
LONGEST_WAIT_S = 20


def answer_to(text: str) -> str:
    return f"You said: {text}"


@dataclass
class Refusal:
    status: int
    message: str
    code: str | None = None

    def response(self) -> Response:
        body = {"error": {"message": self.message, "type": "x", "param": None, "code": self.code}}
        return JSONResponse(body, self.status)


class BrokenConnectionError(Exception):
    """Ends a response without its end, as a network that breaks does."""


@dataclass
class Answer:
    """An answer in the making: readers see `text[:num_written]`. A test that holds answers back moves that on."""

    message: Json
    session: Json
    text: str
    num_written: int
    is_stopped: bool = False

    def write(self, num_chars: int | None = None) -> None:
        """So many characters more, or all."""
        limit = len(self.text) if num_chars is None else self.num_written + num_chars
        self.num_written = min(limit, len(self.text))
        self.message |= {"content": self.text[: self.num_written], "state": "streaming"}
        if self.num_written == len(self.text):
            self.end("stop")

    def end(self, reason: str) -> None:
        # The server's thread tells readers what the message is as soon as it sees that the answer is stopped.
        self.message |= {"state": "complete", "finish_reason": reason, "usage": USAGE}
        self.is_stopped = True

    def interrupt(self) -> None:
        """The server that wrote it is gone."""
        self.message |= {"state": "interrupted"}
        self.is_stopped = True


@dataclass
class FakeBackend:
    """`answers` are texts by the message that they answer. `holds` keeps every answer back until it is written."""

    sessions: dict[str, Json] = field(default_factory=dict)
    messages: dict[str, list[Json]] = field(default_factory=dict)
    running: dict[str, Answer] = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    models: list[str] = field(default_factory=lambda: ["smollm2", "qwen3-8b"])
    default_sampling: dict[str, Json] = field(default_factory=dict)
    """By model."""
    answers: dict[str, str] = field(default_factory=dict)
    holds: bool = False
    piece_chars: int = 7
    break_after: int | None = None
    """The next stream breaks after so many pieces."""
    is_away: bool = False
    """Every connection breaks at once."""
    is_silent: bool = False
    """The cluster's connections stay open and say nothing."""
    is_slow: bool = False
    """POST /api/chat waits. Who leaves in the meantime has not been heard."""
    refusals: list[Refusal] = field(default_factory=list)
    """Of the next requests to /api/chat."""
    keys: dict[str, str] = field(default_factory=dict)
    """Roles by key; without any, no key is asked for."""
    asked: list[Json] = field(default_factory=list)
    resumed_from: list[str | None] = field(default_factory=list)
    snapshot: Json = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    """A page has changed something, or reads an answer on."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def wait_for(self, has_come: Callable[[], bool]) -> None:
        """For what a page sends when it will: the browser tells nobody of requests whose page has been left.
        Nothing happens in this thread meanwhile, so that no request may wait for a test that waits here."""
        with self.changed:
            assert self.changed.wait_for(has_come, LONGEST_WAIT_S)

    def tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def new_session(self, title: str, model: str | None = "smollm2") -> Json:
        number = next(self._numbers)
        made = {"id": f"conv_{number:04}", "title": title, "model": model, "updated_at": time.time() + number / 1000}
        self.sessions[made["id"]] = {**made, "settings": {}, "created_at": time.time(), "head_id": None}
        self.messages[made["id"]] = []
        return self.sessions[made["id"]]

    def add_message(self, session: Json, role: str, content: str, **more: Any) -> Json:
        """At the head of the session, unless `parent_id` is given."""
        made = {
            "id": f"msg_{next(self._numbers):04}",
            "parent_id": session["head_id"],
            "role": role,
            "content": content,
            "state": "complete",
            "model": "smollm2" if role == "assistant" else None,
            "created_at": time.time(),
            "finish_reason": "stop" if role == "assistant" else None,
            "parameters": {},
            "usage": USAGE if role == "assistant" else None,
            **more,
        }
        self.messages[session["id"]].append(made)
        session["head_id"] = made["id"]
        session["updated_at"] = time.time() + next(self._numbers) / 1000
        return made

    def talk(self, title: str, *texts: str) -> Json:
        """A session in which the reader and the model take turns."""
        session = self.new_session(title)
        for number, text in enumerate(texts):
            self.add_message(session, "assistant" if number % 2 else "user", text)
        return session

    def shown(self, session_id: str) -> Json:
        return {**self.sessions[session_id], "messages": self.messages[session_id]}

    @property
    def last_answer(self) -> Answer:
        return list(self.running.values())[-1]

    def begin(self, body: Mapping[str, Any]) -> tuple[Json, Json | None, Answer]:
        if (known := self._known(body.get("message_id"))) is not None:
            return known
        session = self.sessions[body["session_id"]] if body.get("session_id") else self.new_session(body["input"][:60])
        message = self._question(session, body)
        answer = self.add_message(
            session, "assistant", "", parent_id=message["id"], state="pending", finish_reason=None, usage=None
        )
        text = self.answers.get(message["content"], answer_to(message["content"]))
        run = self.running[answer["id"]] = Answer(answer, session, text, 0)
        if not self.holds:
            run.write()
        return session, message, run

    def _known(self, message_id: str | None) -> tuple[Json, Json | None, Answer] | None:
        """The turn of a message that has come before."""
        for run in self.running.values():
            if message_id is not None and run.message["parent_id"] == message_id:
                messages = self.messages[run.session["id"]]
                return run.session, next(m for m in messages if m["id"] == message_id), run
        return None

    def _question(self, session: Json, body: Mapping[str, Any]) -> Json:
        if body.get("regenerate"):
            return next(m for m in self.messages[session["id"]] if m["id"] == body["regenerate"])
        more = {"parent_id": body["parent_id"]} if "parent_id" in body else {}
        return self.add_message(session, "user", body["input"], id=body["message_id"], **more)

    async def events(self, run: Answer, offset: int, start: str = "") -> AsyncIterator[str]:
        yield start
        if offset == 0 and not run.num_written:
            yield event("progress", {"total": 24, "cached": 8, "processed": 12})
        while offset < run.num_written or not run.is_stopped:
            if self.is_away or self.break_after == 0:
                self.break_after = None
                raise BrokenConnectionError
            if offset == run.num_written:
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            piece = run.text[offset : min(run.num_written, offset + self.piece_chars)]
            offset += len(piece)
            self.break_after = None if self.break_after is None else self.break_after - 1
            yield event("delta", {"text": piece}, f"{run.message['id']}/{offset}")
        yield event("done", {"message": run.message, "session": summary(run.session)}) + "data: [DONE]\n\n"


def event(name: str, told: Json, event_id: str | None = None) -> str:
    id_line = f"id: {event_id}\n" if event_id else ""
    return f"event: {name}\n{id_line}data: {json.dumps(told)}\n\n"


def summary(session: Json) -> Json:
    return {name: session[name] for name in ("id", "title", "model", "updated_at")}
