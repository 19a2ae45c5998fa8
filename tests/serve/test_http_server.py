"""The HTTP server's own thread."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from functools import partial

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from tinycluster.serve import http_server
from tinycluster.serve.connection import Connection
from tinycluster.serve.http_server import HttpServer

HERE = PlainTextResponse("here")


def http_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "http"]


def started(app: ASGIApp = HERE) -> tuple[HttpServer, socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(app, listener)
    server.start()
    return server, listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def await_end() -> None:
    """`stop` waits only for some seconds."""
    for thread in http_threads():
        thread.join()


def test_a_server_that_stops_does_not_wait_for_its_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TICK_S", 3600.0)
    server, _, url = started()
    assert httpx.get(url).text == "here"
    server.drain()
    server.stop()
    await_end()


def test_a_server_may_stop_twice_or_before_it_has_started() -> None:
    server, _, _ = started()
    server.stop()
    server.stop()
    HttpServer(HERE, socket.create_server(("127.0.0.1", 0))).stop()
    await_end()


def test_answers_carry_the_date() -> None:
    server, _, url = started()
    assert httpx.get(url).headers["date"].endswith("GMT")
    server.stop()


def test_a_connection_that_the_loop_tells_of_late_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An event loop accepts a connection in one turn and tells of it in another. In between the server may leave."""
    caplog.set_level(logging.ERROR)
    server, listener, _ = started()
    tell = Connection.connection_made

    def tell_when_all_others_have_ended(connection: Connection, transport: asyncio.Transport) -> None:
        is_accepted.set()
        if listener.fileno() == -1:
            tell(connection, transport)
        else:
            connection.loop.call_later(0.01, tell_when_all_others_have_ended, connection, transport)

    is_accepted = threading.Event()
    monkeypatch.setattr(Connection, "connection_made", tell_when_all_others_have_ended)
    with socket.create_connection(listener.getsockname(), timeout=60) as client:
        is_accepted.wait()
        server.stop()
        assert client.recv(1) == b""
    assert [record.message for record in caplog.records] == []


def test_whoever_does_not_read_an_answer_holds_up_the_end_no_longer_than_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(http_server, "STOP_S", 1)
    server, listener, _ = started(PlainTextResponse(bytes(64 * 2**20)))
    with socket.create_connection(listener.getsockname(), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(9, socket.MSG_WAITALL) == b"HTTP/1.1 "
        server.stop()
        await_end()
        assert "timeout graceful shutdown exceeded" in caplog.records[0].message
        assert len(b"".join(iter(partial(client.recv, 2**20), b""))) < 64 * 2**20
