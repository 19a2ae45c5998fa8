"""A client's connection: uvicorn's, with a bound on everything that happens before a request is the application's.

| what                                                             | answer                           |
|------------------------------------------------------------------|----------------------------------|
| not HTTP/1.0 or 1.1, malformed, ambiguous about its body's end   | 400                              |
| the header, or the end of the last one, does not come in time    | 408, nothing if no byte came     |
| a request target, header fields, or a whole message too large    | 414, 431, 413                    |
| a method that HTTP/1.1 parsers do not know, CONNECT              | 501                              |
| an answer of which the client reads nothing for some time        | none more                        |
| more connections than the process may hold                       | the one idle longest is closed   |

After each of these the connection is closed: where one message ends and the next begins is no longer sure. llhttp
refuses most malformed messages by itself (RFC 9112, sections 2.2, 5, 6.3 and 7.1).
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tinycluster.serve.allocator import give_back_freed_memory
from tinycluster.serve.errors import ErrorReply

REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ \S+ HTTP/1\.[01]\r\n")
LARGE_BYTES, GIVE_BACK_S = 2**17, 1.0
FAREWELL_S = 1.0
"""For what has been answered to reach a client of TLS when the server ends."""
RESET = struct.pack("ii", 1, 0)
CONNECTION_FIELDS = (b"connection", b"upgrade", b"http2-settings")


@dataclass(frozen=True)
class ConnectionLimits:
    """max_message_bytes: header, body and what chunks add to it, together. Bodies have a limit of their own (body.py).
    max_body_pieces: chunks, or parts that arrived separately.
    send_timeout_s: for how long a client may read nothing of an answer; found out at most twice as late."""

    max_target_bytes: int = 16 * 2**10
    max_header_bytes: int = 64 * 2**10
    max_header_fields: int = 100
    max_message_bytes: int = 32 * 2**20
    max_body_pieces: int = 100_000
    header_timeout_s: float = 20.0
    send_timeout_s: float = 30.0
    max_connections: int = 8192


USUAL = ConnectionLimits()


class Connections(ServerState):
    """All of a server. When it leaves, uvicorn ends those that it knows of."""

    is_leaving = False


class RefusedError(Exception):
    """Raised in the parser's callbacks, which end the parsing."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.reply = ErrorReply(status, message, code=code)


class Waiting(Protocol):
    """A connection that may have to make room for another."""

    @property
    def waits_since_s(self) -> float | None: ...

    def give_way(self) -> None: ...


class Connection(HttpToolsProtocol):
    """Between requests, in a header or in a body; while an answer runs, the next request may already arrive."""

    server_state: Connections

    def __init__(self, *, limits: ConnectionLimits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._in_header = self._in_body = self._is_refused = False
        self._num_message_bytes = self._num_header_bytes = self._num_pieces = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.server_state.is_leaving:  # accepted before, told of after uvicorn has ended all others
            self.give_way()
            return
        self._timer = self.loop.call_later(self._limits.header_timeout_s, self._time_out)
        if len(self.connections) > self._limits.max_connections:
            make_room(self.connections, self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._num_message_bytes += len(data)
        try:
            self.parser.feed_data(data)
            self._check_message()
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except RefusedError as refused:
            self._refuse(refused.reply)
        except httptools.HttpParserError as error:
            self._refuse(_reply_for(error, data))

    def _check_message(self) -> None:
        if self._in_header and self._num_message_bytes > self._limits.max_header_bytes:
            raise RefusedError(431, "The request's header is too large", "header_too_large")
        if self._num_message_bytes > self._limits.max_message_bytes:
            raise RefusedError(413, "The request is too large", "content_too_large")
        # The next header has a deadline, and so has the rest of a body that was refused unread.
        if not self._in_header and self._is_answering:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._limits.header_timeout_s, self._time_out)

    @property
    def _is_answering(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def on_message_begin(self) -> None:
        self._in_header, self._in_body = True, False
        self._num_message_bytes = self._num_header_bytes = self._num_pieces = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self._limits.max_target_bytes:
            raise RefusedError(414, "The request target is too long", "uri_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_header_bytes += len(name) + len(value) + 4
        if self._num_header_bytes > self._limits.max_header_bytes:
            raise RefusedError(431, "The request's header is too large", "header_too_large")
        # A trailer must not change the header that the application has already read (RFC 9110, 6.5.1).
        if self._in_header:
            if len(self.headers) == self._limits.max_header_fields:
                raise RefusedError(431, "The request has too many header fields", "header_too_large")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_header, self._in_body = False, True
        if self.parser.get_method() == b"CONNECT":
            raise RefusedError(501, "This server is no proxy", "not_implemented")
        _check_head(self.parser.get_http_version(), self.url, self.headers)
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_pieces += 1
        if self._num_pieces > self._limits.max_body_pieces:
            raise RefusedError(400, "The body comes in too many pieces")
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._num_message_bytes > LARGE_BYTES:
            # Later, for the application still holds what it has made of the message: up to a hundred times its size.
            self.loop.call_later(GIVE_BACK_S, self.loop.run_in_executor, None, give_back_freed_memory)
        self._watch_reading()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._watch_reading()
        super().pause_writing()

    def _watch_reading(self) -> None:
        if self._unread_timer is None:
            self._look_whether_it_reads(0)

    def _look_whether_it_reads(self, num_bytes_before: int) -> None:
        """End the connection if as much as before waits to be read; else look again after send_timeout_s."""
        num_bytes = self.transport.get_write_buffer_size()
        self._unread_timer = None
        if num_bytes and num_bytes == num_bytes_before:
            # A reset, or the system would keep what it has for the client for minutes.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        elif num_bytes:
            self._unread_timer = self.loop.call_later(
                self._limits.send_timeout_s, self._look_whether_it_reads, num_bytes
            )

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """A server may ignore a wish to upgrade (RFC 9110, 7.8), but this parser loses the body of such a request:
        it is parsed again without the wish."""
        head = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        head += [b"%b: %b" % field for field in self.headers if field[0] not in CONNECTION_FIELDS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"\r\n".join([*head, b"", rest]))

    def _refuse(self, reply: ErrorReply) -> None:
        """Answer and close; only close where the client would take this for the answer to an earlier request."""
        self._is_refused = True
        is_first = not self._is_answering
        if self._in_body and self._is_answering and not self.pipeline and not self.cycle.response_started:
            is_first = self.cycle.disconnected = True
            self.cycle.message_event.set()
        if is_first and not self.transport.is_closing():
            self.transport.write(_raw(reply))
        self.transport.close()

    def _time_out(self) -> None:
        self._timer = None
        if self._in_header:
            self._refuse(ErrorReply(408, "The request's header did not come in time", code="request_timeout"))
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shutdown(self) -> None:
        super().shutdown()
        if not self._is_answering:
            self.loop.call_later(FAREWELL_S, self._end)

    def _end(self) -> None:
        if self in self.connections:
            self.give_way()

    def give_way(self) -> None:
        # A client of TLS could take its time for the end.
        if self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.transport.abort()

    @property
    def waits_since_s(self) -> float | None:
        """Since when there is no request; None while one is answered."""
        if self._is_answering:
            return None
        if self.timeout_keep_alive_task is not None:
            return self.timeout_keep_alive_task.when() - self.timeout_keep_alive
        return None if self._timer is None else self._timer.when() - self._limits.header_timeout_s


def make_room(connections: Iterable[Any], newest: Waiting) -> None:
    """Close the one that has waited for a request the longest, or the newest where all others are at work."""
    waiting: list[Waiting] = [each for each in connections if each.waits_since_s is not None]
    min(waiting, key=lambda each: each.waits_since_s or 0.0, default=newest).give_way()


def _check_head(version: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    if version not in ("1.0", "1.1"):
        raise RefusedError(400, "This server speaks HTTP/1.1")
    if not target.startswith(b"/") and target != b"*":
        raise RefusedError(400, "The request target must be a path")
    if b"#" in target:
        raise RefusedError(400, "The request target must not have a fragment")
    for name, value in headers:
        # The parser takes any list that ends in "chunked", but would not undo the other codings.
        if name == b"transfer-encoding" and (value.strip().lower() != b"chunked" or version == "1.0"):
            raise RefusedError(400, "The only Transfer-Encoding is chunked, of HTTP/1.1")


def _reply_for(error: httptools.HttpParserError, data: bytes) -> ErrorReply:
    if isinstance(error.__context__, RefusedError):
        return error.__context__.reply
    is_method = isinstance(error, httptools.HttpParserInvalidMethodError) or data.startswith(b"PRI ")
    if is_method and REQUEST_LINE.match(data):
        return ErrorReply(501, "This method is not known here", code="not_implemented")
    return ErrorReply(400, "The request is not valid HTTP/1.1")


def _raw(reply: ErrorReply) -> bytes:
    body = reply.body()
    head = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
