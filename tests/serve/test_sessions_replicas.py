"""Two servers over one database: what one generates, the other shows, follows, stops and deletes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.serve.chatting import all_events, events_of, say, session, text_of
from tests.serve.fake_engine import FakeEngine
from tinycluster.serve import answer_events
from tinycluster.serve.app import create_app
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.storage.storage import open_storage

TEXT = "".join(f"{number} é😀 " for number in range(30))


class Replicas:
    """`here` has an engine that goes on one character for every release of `gate`; `there` is the other server."""

    def __init__(self, here: httpx.Client, there: httpx.Client, gate: threading.Semaphore, engine: FakeEngine) -> None:
        self.here, self.there, self.gate, self.engine = here, there, gate, engine

    def begun(self) -> tuple[str, str]:
        """Session and answer of a turn that one server has begun, of which some text is stored."""
        with self.here.stream("POST", "/api/chat", json={"input": TEXT, "message_id": "mine"}) as answer:
            start = next(events_of(answer.iter_lines())).data
        self.gate.release(40)
        session_id, answer_id = start["session"]["id"], start["answer"]["id"]
        while not session(self.there, session_id)["messages"][1]["content"]:
            pass
        return session_id, answer_id


@pytest.fixture
def replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replicas]:
    monkeypatch.setattr(answer_events, "POLL_S", 0.02)
    gate = threading.Semaphore(0)
    engines = [FakeEngine(gate=gate), FakeEngine()]
    with ExitStack() as running:
        clients = []
        for engine in engines:
            storage = open_storage(f"sqlite:///{tmp_path / 'sessions.db'}")
            running.callback(storage.close)
            registry = ModelRegistry()
            registry.add(engine)  # type: ignore[arg-type]
            app = create_app(registry)
            app.state.storage = storage
            listener = listen("127.0.0.1", 0)
            server = HttpServer(app, listener)
            running.callback(registry.clear)
            running.callback(server.stop)
            server.start()
            clients.append(running.enter_context(httpx.Client(base_url=url_of(listener), timeout=20)))
        yield Replicas(clients[0], clients[1], gate, engines[0])
        gate.release(10_000)


def test_an_answer_is_followed_on_the_other_server(replicas: Replicas) -> None:
    session_id, answer_id = replicas.begun()
    with replicas.there.stream("GET", f"/api/sessions/{session_id}/messages/{answer_id}/events") as answer:
        events = events_of(answer.iter_lines())
        first = next(events)
        assert TEXT.startswith(first.data["text"])
        assert first.id == f"{answer_id}/{len(first.data['text'])}"
        replicas.gate.release(10_000)
        rest = list(events)
    assert text_of([first, *rest]) == TEXT
    assert rest[-2].data["message"]["state"] == "complete"
    assert session(replicas.here, session_id) == session(replicas.there, session_id)


def test_a_message_that_is_repeated_on_the_other_server_is_one_turn(replicas: Replicas) -> None:
    session_id, answer_id = replicas.begun()
    with ThreadPoolExecutor(2) as threads:
        body = {"input": TEXT, "message_id": "mine"}
        streamed = threads.submit(replicas.there.post, "/api/chat", json=body)
        whole = threads.submit(replicas.there.post, "/api/chat", json=body | {"stream": False})
        replicas.gate.release(10_000)
        events = all_events(streamed.result())
        assert whole.result().json()["message"] == events[-1].data["message"]
    assert (events[0].data["session"]["id"], events[0].data["answer"]["id"]) == (session_id, answer_id)
    assert text_of(events) == TEXT
    assert len(session(replicas.there, session_id)["messages"]) == 2


def test_a_stop_on_the_other_server_ends_the_answer(replicas: Replicas) -> None:
    session_id, answer_id = replicas.begun()
    path = f"/api/sessions/{session_id}/messages/{answer_id}"
    message = replicas.there.post(f"{path}/stop").json()
    assert (message["state"], message["finish_reason"]) == ("complete", "cancelled")
    assert TEXT.startswith(message["content"])
    replicas.gate.release(33)
    while replicas.engine.running:
        pass
    followed = all_events(replicas.here.get(f"{path}/events"))
    assert followed[-1].data["message"] == message
    assert session(replicas.here, session_id)["messages"][1] == message
    assert say(replicas.there, "b", session_id=session_id)["message"]["content"] == "b"


def test_a_session_that_is_deleted_on_the_other_server_ends_its_answers(replicas: Replicas) -> None:
    session_id, answer_id = replicas.begun()
    assert replicas.there.delete(f"/api/sessions/{session_id}").status_code == 200
    replicas.gate.release(33)
    while replicas.engine.running:
        pass
    path = f"/api/sessions/{session_id}/messages/{answer_id}/events"
    assert replicas.here.get(path).status_code == 404
