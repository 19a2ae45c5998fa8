"""One line per request when it has ended, its id in the response, and no text of a user anywhere in it."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.log_file import LogFile
from tinycluster.serve.app import create_app
from tinycluster.serve.exchange import Exchange
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.request_log import RequestLog

CANARY = "tell-nobody-\r\n\u202e"


class Logged:
    """A server that logs. `line()` is that of the next request that ended."""

    def __init__(self, engine: FakeEngine, folder: Path, running: ExitStack) -> None:
        registry, self.engine = ModelRegistry(), engine
        registry.add(engine)  # type: ignore[arg-type]
        app = create_app(registry)
        self.path = folder / "logs" / "server.log"
        file = LogFile(self.path)
        self._ended: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
        app.state.exchange_ends += [RequestLog(file, is_json=True), self._ended.put]
        listener = listen("127.0.0.1", 0)
        server = HttpServer(app, listener)
        running.callback(file.close)
        running.callback(registry.clear)
        running.callback(server.stop)
        server.start()
        self.client = running.enter_context(httpx.Client(base_url=url_of(listener), timeout=20))

    def line(self) -> dict[str, Any] | None:
        before = getattr(self, "_num_seen", 0)
        self._ended.get(timeout=20)
        lines = self.path.read_text().splitlines()
        self._num_seen = len(lines)
        assert len(lines) - before in (0, 1)
        return json.loads(lines[-1]) if len(lines) > before else None


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def logged(tmp_path: Path, running: ExitStack) -> Logged:
    return Logged(FakeEngine(), tmp_path, running)


def chat(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **fields}


def test_an_answer_is_one_line_with_its_numbers(logged: Logged) -> None:
    answer = logged.client.post("/v1/chat/completions", json=chat("hello", user=CANARY))
    line = logged.line()
    assert line is not None
    assert line["id"] == answer.headers["x-request-id"]
    usage = answer.json()["usage"]
    told = {"prompt_tokens": 5, "completion_tokens": 5, "cached_tokens": 2, "finish": "stop", "model": "fake"}
    assert told.items() <= line.items()
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 5)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2
    assert (line["method"], line["route"], line["status"], line["key"]) == ("POST", "/v1/chat/completions", 200, None)
    assert 0 < line["ttft_ms"] <= line["duration_ms"]
    assert 0 <= line["tpot_ms"] <= line["duration_ms"]
    assert (line["level"], line["logger"]) == ("info", "requests")


def test_times_are_those_of_the_tokens(tmp_path: Path, running: ExitStack) -> None:
    """The second token comes when the test lets it, so a bound on both sides is known."""
    gate = threading.Semaphore(0)
    logged = Logged(FakeEngine(gate=gate), tmp_path, running)
    asked_s = time.monotonic()
    with logged.client.stream("POST", "/v1/completions", json={"prompt": "abc", "stream": True}) as answer:
        events = answer.iter_lines()
        next(events)
        first_s = time.monotonic()
        gate.release(3)
        list(events)
    ended_s = time.monotonic()
    line = logged.line()
    assert line is not None
    assert line["ttft_ms"] <= (first_s - asked_s) * 1e3
    assert line["ttft_ms"] + 2 * line["tpot_ms"] <= (ended_s - asked_s) * 1e3
    assert line["finish"] == "stop"


def test_a_client_that_leaves_is_told_as_aborted(tmp_path: Path, running: ExitStack) -> None:
    logged = Logged(FakeEngine(gate=threading.Semaphore(0)), tmp_path, running)
    with logged.client.stream("POST", "/v1/completions", json={"prompt": "abc", "stream": True}) as answer:
        next(answer.iter_lines())
    line = logged.line()
    assert line is not None
    assert (line["status"], line["finish"], line["completion_tokens"], line["tpot_ms"]) == (200, "abort", 1, None)


@pytest.mark.parametrize(
    ("body", "status"),
    [(chat("full"), 429), (chat("hello", temperature=CANARY), 400), (chat("hello", model=CANARY), 404)],
    ids=["full", "wrong", "stranger"],
)
def test_a_refusal_has_a_line_without_the_clients_words(logged: Logged, body: dict[str, Any], status: int) -> None:
    answer = logged.client.post("/v1/chat/completions", json=body)
    line = logged.line()
    assert line is not None
    assert (answer.status_code, line["status"]) == (status, status)
    assert set(line) == {"time", "level", "logger", "id", "key", "method", "route", "status", "duration_ms"}
    assert "tell-nobody" not in logged.path.read_text()


def test_an_answer_that_its_engine_could_not_end_is_told_as_an_error(logged: Logged) -> None:
    body = {"prompt": "lost", "stream": True}
    logged.client.post("/v1/completions", json=body)
    line = logged.line()
    assert line is not None
    assert (line["status"], line["finish"], line["completion_tokens"]) == (200, "error", 1)


def test_no_users_text_is_in_the_log(logged: Logged) -> None:
    headers = {"authorization": "Bearer tell-nobody", "x-request-id": "tell nobody", "user-agent": "tell-nobody"}
    logged.client.post("/v1/chat/completions", json=chat(CANARY), headers=headers)
    logged.line()
    logged.client.get("/tell-nobody", headers=headers)
    line = logged.line()
    assert line is not None
    assert (line["route"], line["status"]) == (None, 404)
    assert "nobody" not in logged.path.read_text()


def test_a_good_id_of_the_client_is_kept_and_another_one_is_made(logged: Logged) -> None:
    given = [
        logged.client.get("/health", headers={"x-request-id": wanted}).headers["x-request-id"]
        for wanted in ("trace-1.a_B", "x" * 65, "a b", "")
    ]
    assert given[0] == "trace-1.a_B"
    assert all(other.startswith("req_") for other in given[1:])
    assert len(set(given)) == 4


def test_a_successful_read_has_no_line(logged: Logged) -> None:
    logged.client.get("/v1/models")
    assert logged.line() is None


def test_several_choices_are_one_line(logged: Logged) -> None:
    logged.client.post("/v1/completions", json={"prompt": ["ab", "abcd"], "n": 2, "max_tokens": 3})
    line = logged.line()
    assert line is not None
    told = {"prompt_tokens": 6, "completion_tokens": 2 * 2 + 2 * 3, "finish": "length,stop"}
    assert told.items() <= line.items()
