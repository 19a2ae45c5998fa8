"""Requests as bytes: what no HTTP library would send, and answers read without one."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
TIMEOUT_S = 60.0
# What an answer must not tell: our files, our libraries, where our objects lie.
LEAKS = re.compile(
    r"Traceback|\.py\b|0x[0-9a-f]{6,}|pydantic|starlette|fastapi|uvicorn|httptools|site-packages|line \d+,"
)


@dataclass(frozen=True)
class Reply:
    """`is_closed`: the server ended the connection after it. status 0: it ended it without an answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_closed: bool = False

    def error(self) -> dict[str, Any]:
        """The error object, checked against the contract that every refusal keeps."""
        assert self.headers["content-type"] == "application/json", self
        body = json.loads(self.body)
        assert set(body) == {"error"}, body
        assert set(body["error"]) == {"message", "type", "param", "code"}, body
        assert isinstance(body["error"]["message"], str)
        assert isinstance(body["error"]["type"], str)
        assert not LEAKS.search(self.body.decode()), body
        return dict(body["error"])


def request(method: str, path: str, *headers: bytes, body: bytes | None = None) -> bytes:
    """A plain request; `headers` are whole lines. A body gets its length and type."""
    head = f"{method} {path} HTTP/1.1\r\n".encode() + HOST + b"".join(headers)
    if body is not None:
        head += JSON + b"Content-Length: %d\r\n" % len(body)
    return head + b"\r\n" + (body or b"")


def refused(reply: Reply, *statuses: int) -> None:
    """Refused with one of these statuses and the connection closed."""
    assert reply.status in statuses, reply
    reply.error()
    assert reply.is_closed


def chunked(pieces: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def exchange(address: tuple[str, int], raw: bytes | Iterable[bytes], *, has_body: bool = True) -> Reply:
    """Send, then read one answer. A server may answer and close before everything is sent."""
    with socket.create_connection(address, timeout=TIMEOUT_S) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in (raw,) if isinstance(raw, bytes) else raw:
                connection.sendall(part)
        return read_reply(connection, has_body=has_body)


def read_reply(connection: socket.socket, *, has_body: bool = True) -> Reply:
    """The next answer; of a stream that never ends its first event. `has_body` False: to a HEAD request."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = receive(connection)
        if not part:
            return Reply(0, is_closed=True)
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    is_closing = headers.get("connection") == "close"
    length = int(headers.get("content-length", "-1")) if has_body else 0
    is_closed = False
    while is_closing or (len(body) < length if length >= 0 else not body.endswith(b"0\r\n\r\n")):
        part = receive(connection)
        if not part:
            is_closed = True
            break
        body += part
        if b"event: snapshot\n" in body and b"\n\n" in body:
            break
    return Reply(int(first.split()[1]), headers, body, is_closed)


def receive(connection: socket.socket, most: int = 2**16) -> bytes:
    """What has come; nothing at the end, which is a reset where the server closed before it had read everything."""
    try:
        return connection.recv(most)
    except ConnectionResetError:
        return b""
