"""Clients that chat with a server that is killed again and again, and the journal of what it has told them.

A client repeats what it was not answered under the same message id, and sometimes resumes the stream instead. The
right answer to a message is the message.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.serve.chatting import Event, events_of, session

LETTERS = ["a", "é", "😀", "e\u0301", "\n", "\r\n", "👨\u200d👩", " word", "漢", "\x00", '"']
MAX_LETTERS = 80
LEAVES, RESUMES, NEW_SESSION = 0.1, 0.5, 0.15


@dataclass
class Said:
    """A user's message, and what the server has said of it. `answer_id` comes with the start: then the message is
    acknowledged; with `done` the answer is, in this state."""

    text: str
    message_id: str
    session_id: str | None
    answer_id: str | None = None
    done: dict[str, Any] | None = None
    got: str = ""


@dataclass
class Journal:
    said: dict[str, Said] = field(default_factory=dict)
    num_broken: int = 0
    num_resumed: int = 0


class Client(threading.Thread):
    """One owner of sessions, until `leave` or until its server is gone; `failures` are what no server may do."""

    def __init__(self, name: str, journal: Journal, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.headers = {"authorization": f"Bearer {name}"}
        self.failures: list[BaseException] = []
        self._journal, self._random = journal, random.Random(seed)
        self._open: Said | None = None
        self._session_id: str | None = None
        self._url = ""
        self._is_over = threading.Event()
        self._has_url = threading.Event()

    def serve_from(self, url: str | None) -> None:
        """The server's new place, None while it is down."""
        self._url = url or ""
        (self._has_url.clear if url is None else self._has_url.set)()

    def leave(self) -> None:
        self._is_over.set()
        self._has_url.set()

    def run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._has_url.wait()
                try:
                    self._chat()
                except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol):
                    self._journal.num_broken += 1
                    # The next server is on its way.
                    self._is_over.wait(0.02)
        except BaseException as failure:
            self.failures.append(failure)

    def _chat(self) -> None:
        with httpx.Client(base_url=self._url, headers=self.headers, timeout=60, verify=False) as client:
            while not self._is_over.is_set():
                said = self._open or self._new()
                self._open = said
                if said.answer_id is not None and self._random.random() < RESUMES:
                    self._resume(client, said)
                else:
                    self._say(client, said)
                self._open = None if said.done is not None else said

    def _new(self) -> Said:
        letters = self._random.choices(LETTERS, k=self._random.randint(1, MAX_LETTERS))
        if self._random.random() < NEW_SESSION:
            self._session_id = None
        # Upper case, so that none is a message of the fake engine's that fails.
        said = Said("X" + "".join(letters), f"{self.name}-{uuid.uuid4().hex}", self._session_id)
        self._journal.said[said.message_id] = said
        return said

    def _say(self, client: httpx.Client, said: Said) -> None:
        body = {"input": said.text, "message_id": said.message_id, "session_id": said.session_id}
        with client.stream("POST", "/api/chat", json=body) as answer:
            if answer.status_code != 200:
                raise AssertionError(f"{answer.status_code}: {answer.read().decode()}")
            said.got = ""
            self._read(said, events_of(answer.iter_lines()))

    def _resume(self, client: httpx.Client, said: Said) -> None:
        self._journal.num_resumed += 1
        path = f"/api/sessions/{said.session_id}/messages/{said.answer_id}/events"
        headers = {"last-event-id": f"{said.answer_id}/{len(said.got)}"}
        with client.stream("GET", path, headers=headers) as answer:
            if answer.status_code != 200:
                raise AssertionError(f"{answer.status_code}: {answer.read().decode()}")
            self._read(said, events_of(answer.iter_lines()))

    def _read(self, said: Said, events: Iterable[Event]) -> None:
        for event in events:
            if event.kind == "start":
                if said.answer_id is not None:
                    assert event.data["answer"]["id"] == said.answer_id
                assert said.session_id in (None, event.data["session"]["id"])
                assert (event.data["message"]["id"], event.data["message"]["content"]) == (said.message_id, said.text)
                said.session_id = self._session_id = event.data["session"]["id"]
                said.answer_id = event.data["answer"]["id"]
            elif event.kind == "delta":
                said.got += event.data["text"]
                assert said.text.startswith(said.got)
                if self._random.random() < LEAVES / MAX_LETTERS:
                    return
            elif event.kind == "done":
                message = event.data["message"]
                # What a dead server has not stored is gone with it; what this one has, it sends.
                assert message["content"] == said.got or message["state"] == "interrupted"
                said.done = message
            else:
                assert event.kind in ("progress", "message"), event


def check(url: str, clients: Iterable[Client], journal: Journal) -> int:
    """AssertionError where the API does not list what was acknowledged, once each, or anything else; how many."""
    count = 0
    for client in clients:
        mine = {each.message_id: each for each in journal.said.values() if each.message_id.startswith(client.name)}
        with httpx.Client(base_url=url, headers=client.headers, timeout=60, verify=False) as api:
            found: dict[str, str] = {}
            for session_id in sessions_of(api):
                tree = session(api, session_id)
                users = [message for message in tree["messages"] if message["role"] == "user"]
                assert users, "an empty session"
                for user in users:
                    assert user["id"] not in found, "a message twice"
                    found[user["id"]] = session_id
                    check_turn(mine[user["id"]], user, tree)
                assert len(tree["messages"]) == 2 * len(users)
        for said in mine.values():
            if said.answer_id is not None:
                assert found.get(said.message_id) == said.session_id, "an acknowledged message is lost"
        count += len(found)
    return count


def sessions_of(api: httpx.Client) -> list[str]:
    ids: list[str] = []
    while True:
        query = {"limit": 100} | ({"before": ids[-1]} if ids else {})
        page = api.get("/api/sessions", params=query).json()
        ids += [each["id"] for each in page["sessions"]]
        if not page["has_more"]:
            assert len(ids) == len(set(ids))
            return ids


def check_turn(said: Said, user: dict[str, Any], tree: dict[str, Any]) -> None:
    assert user["content"] == said.text
    answers = [message for message in tree["messages"] if message["parent_id"] == user["id"]]
    assert len(answers) == 1, "not one answer"
    answer = answers[0]
    assert said.answer_id in (None, answer["id"])
    assert answer["state"] in ("complete", "interrupted")
    assert said.text.startswith(answer["content"])
    if answer["state"] == "complete":
        assert answer["content"] == said.text
        assert answer["finish_reason"] == "stop"
    if said.done is not None:
        assert answer == said.done, "an acknowledged answer has changed"


def wait_until(condition: Any, limit_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
