"""Sessions on a disk that is full and on a database that another process holds: 503 before an answer begins, an error
event after; never an end that is not stored. And what a server that stops leaves behind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from tests.serve.chatting import Event, all_events, events_of, refused, say, session, text_of
from tests.serve.fake_engine import FakeEngine
from tinycluster.serve import answer_run, answer_runs
from tinycluster.serve.app import create_app
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.storage import sqlite_file
from tinycluster.serve.storage.errors import CommitUnknownError
from tinycluster.serve.storage.records import Finished, NewMessage, NewTurn, Turn
from tinycluster.serve.storage.storage import open_storage

TEXT = "".join(f"{number} é😀 " for number in range(60))
MUCH = "x" * 30_000
"""More than the free space of the pages that a small database has."""


class Place:
    """A server over a file, and ways to make the file useless for a while."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Semaphore(0)
        self.engine = FakeEngine(gate=self.gate, max_model_len=10**6, step_chars=1000)
        self._path, self._monkeypatch = path, monkeypatch
        self.storage = open_storage(f"sqlite:///{path}")

    @contextmanager
    def serving(self) -> Iterator[httpx.Client]:
        registry = ModelRegistry()
        registry.add(self.engine)  # type: ignore[arg-type]
        listener = listen("127.0.0.1", 0)
        app = create_app(registry)
        app.state.storage = self.storage
        server = HttpServer(app, listener)
        server.start()
        try:
            with httpx.Client(base_url=url_of(listener), timeout=20) as client:
                yield client
        finally:
            server.drain()
            server.stop()
            registry.clear()

    @contextmanager
    def locked(self) -> Iterator[None]:
        with closing(sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def full(self) -> Iterator[None]:
        """SQLite's own limit of pages: none may be added to those that are there."""
        with self._monkeypatch.context() as patched:
            patched.setattr(sqlite_file, "PRAGMAS", (*sqlite_file.PRAGMAS, "max_page_count = 1"))
            self._reopen()
            yield
        self._reopen()

    def _reopen(self) -> None:
        store: Any = self.storage.database._store
        store._written.reopen()


Fault = Callable[[Place], AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {"locked": Place.locked, "full": Place.full}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(answer_run, "RETRY_S", 0.02)
    # A server that stops gives up what takes longer to be stored.
    monkeypatch.setattr(answer_runs, "STORE_S", 60.0)
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.05)
    made = Place(tmp_path / "sessions.db", monkeypatch)
    yield made
    made.storage.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_stored_is_a_503_and_the_engine_is_not_asked(place: Place, fault: str, stream: bool) -> None:
    place.gate.release(1000)
    with place.serving() as client:
        first = say(client, "a")
        for fields in ({}, {"session_id": first["session_id"]}):
            body = {"input": MUCH, "message_id": "mine", "stream": stream, **fields}
            with FAULTS[fault](place):
                answer = client.post("/api/chat", json=body)
                refused(answer, 503, code="service_unavailable")
                assert int(answer.headers["retry-after"]) > 0
                refused(client.post("/api/sessions/import", json={"document": document(MUCH)}), 503)
                # Reading goes on.
                assert len(session(client, first["session_id"])["messages"]) == 2
        assert len(place.engine.submitted) == 1
        assert len(client.get("/api/sessions").json()["sessions"]) == 1
        assert say(client, MUCH, message_id="mine")["message"]["content"] == MUCH


def document(text: str) -> dict[str, Any]:
    messages = [{"id": "m", "role": "user", "content": text}]
    return {"format": "tinycluster.sessions", "version": 1, "sessions": [{"messages": messages}]}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_end_that_cannot_be_stored_is_an_error_and_never_done(place: Place, fault: str) -> None:
    with place.serving() as client, ExitStack() as broken:
        events: list[Event] = []
        with client.stream("POST", "/api/chat", json={"input": MUCH, "message_id": "mine"}) as answer:
            for event in events_of(answer.iter_lines()):
                events.append(event)
                if event.kind == "start":
                    broken.enter_context(FAULTS[fault](place))
                    place.gate.release(10_000)
        assert [event.kind for event in events[-2:]] == ["error", "message"]
        assert not [event for event in events if event.kind == "done"]
        assert events[-2].data["error"]["code"] == "service_unavailable"
        assert text_of(events) == MUCH
        session_id, answer_id = events[0].data["session"]["id"], events[0].data["answer"]["id"]
        # Nothing says that it is there, and whoever asks again hears the same.
        assert session(client, session_id)["messages"][1]["state"] == "interrupted"
        again = all_events(client.post("/api/chat", json={"input": MUCH, "message_id": "mine"}))
        assert again[-1].kind == "error"
        broken.close()
        path = f"/api/sessions/{session_id}/messages/{answer_id}/events"
        while (last := all_events(client.get(path))[-1]).kind == "error":
            pass
        assert (last.data["message"]["state"], last.data["message"]["content"]) == ("interrupted", MUCH)
        assert session(client, session_id)["messages"][1] == last.data["message"]


def test_a_refused_turn_that_cannot_be_discarded_is_discarded_later(place: Place) -> None:
    place.gate.release(1000)
    with place.serving() as client, ExitStack() as broken:
        submit = place.engine.submit_choices

        def refuse(*arguments: Any) -> Any:
            broken.enter_context(place.locked())
            return submit(*arguments)

        place.engine.submit_choices = refuse  # type: ignore[method-assign]
        refused(client.post("/api/chat", json={"input": "full"}), 429, code="queue_full")
        assert len(client.get("/api/sessions").json()["sessions"]) == 1
        broken.close()
        while client.get("/api/sessions").json()["sessions"]:
            pass


def test_a_turn_whose_commit_was_not_acknowledged_is_taken_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.gate.release(1000)
    begin = place.storage.conversations.begin_turn

    async def lose(owner: str, asked: NewTurn) -> NoReturn:
        await begin(owner, asked)
        raise CommitUnknownError("gone")

    with place.serving() as client:
        with monkeypatch.context() as patched:
            patched.setattr(place.storage.conversations, "begin_turn", lose)
            refused(client.post("/api/chat", json={"input": "a", "message_id": "mine"}), 503)
        while client.get("/api/sessions").json()["sessions"]:
            pass
        assert say(client, "b", message_id="mine")["message"]["content"] == "b"


def test_an_id_that_another_server_takes_meanwhile_for_another_message_is_a_conflict(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.gate.release(1000)

    async def not_yet(*_: object) -> None:
        return None

    with place.serving() as client:
        say(client, "a", message_id="mine")
        monkeypatch.setattr(place.storage.conversations, "turn", not_yet)
        refused(client.post("/api/chat", json={"input": "b", "message_id": "mine"}), 409, code="message_id_taken")
        assert say(client, "a", message_id="mine")["message"]["content"] == "a"


def test_a_stop_of_another_servers_answer_keeps_its_last_checkpoint(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = place.storage.conversations
    finish = conversations.finish

    async def finish_late(answer_id: str, **end: Any) -> Finished | None:
        await conversations.checkpoint(answer_id, "so far and further")
        return await finish(answer_id, **end)

    async def began_elsewhere() -> Turn:
        turn = await conversations.begin_turn("", NewTurn(None, NewMessage("user", "a")))
        assert turn is not None
        await conversations.checkpoint(turn.answer.id, "so far")
        return turn

    turn = asyncio.run(began_elsewhere())
    monkeypatch.setattr(conversations, "finish", finish_late)
    with place.serving() as client:
        stopped = client.post(f"/api/sessions/{turn.conversation.id}/messages/{turn.answer.id}/stop").json()
        assert (stopped["content"], stopped["finish_reason"]) == ("so far and further", "cancelled")


def test_a_checkpoint_is_there_before_the_end(place: Place) -> None:
    place.engine.step_chars = 1
    with place.serving() as client:
        with client.stream("POST", "/api/chat", json={"input": TEXT}) as answer:
            events = events_of(answer.iter_lines())
            answer_id = next(events).data["answer"]["id"]
            place.gate.release(50)
            while not (stored := stored_answer(place, answer_id))[1]:
                pass
            assert stored[0] == "streaming"
            assert TEXT.startswith(stored[1])
            assert len(stored[1]) < len(TEXT)
            place.gate.release(10_000)
            list(events)
        assert stored_answer(place, answer_id) == ("complete", TEXT)


def stored_answer(place: Place, answer_id: str) -> tuple[str, str]:
    with closing(sqlite3.connect(place._path)) as connection:
        found = connection.execute("SELECT state, text FROM messages WHERE id = ?", (answer_id,)).fetchone()
    return str(found[0]), str(found[1])


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_server_that_stops_stores_what_there_is_of_an_answer(place: Place, is_watched: bool) -> None:
    place.engine.step_chars = 1
    with ExitStack() as leaving, place.serving() as client:
        answer = leaving.enter_context(client.stream("POST", "/api/chat", json={"input": TEXT}))
        events = events_of(answer.iter_lines())
        answer_id = next(events).data["answer"]["id"]
        place.gate.release(4)
        got = ""
        while len(got) < 4:
            got += text_of([next(events)])
        if not is_watched:
            leaving.close()
    assert stored_answer(place, answer_id) == ("interrupted", TEXT[:4])
    assert not place.engine.running
