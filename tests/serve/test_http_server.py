"""The HTTP server's own thread."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tinycluster.serve import http_server
from tinycluster.serve.http_server import HttpServer


def http_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "http"]


def started() -> tuple[HttpServer, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(PlainTextResponse("here"), listener)
    server.start()
    return server, f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_stops_does_not_wait_for_its_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TICK_S", 3600.0)
    server, url = started()
    assert httpx.get(url).text == "here"
    server.drain()
    server.stop()
    assert http_threads() == []


def test_a_server_may_stop_twice_or_before_it_has_started() -> None:
    server, _ = started()
    server.stop()
    server.stop()
    HttpServer(PlainTextResponse("never"), socket.create_server(("127.0.0.1", 0))).stop()
    assert http_threads() == []


def test_answers_carry_the_date() -> None:
    server, url = started()
    assert httpx.get(url).headers["date"].endswith("GMT")
    server.stop()
