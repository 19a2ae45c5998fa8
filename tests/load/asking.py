"""A client that costs little: requests as bytes over one connection that is kept, answers read to their end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Answer:
    """`first_s` is when its first byte after the head came, `total_s` when it was complete, both since the request."""

    status: int
    body: bytes
    first_s: float
    total_s: float

    def json(self) -> Any:
        return json.loads(self.body)


class Asker:
    """One connection of one client with one key."""

    def __init__(self, address: tuple[str, int], key: str) -> None:
        self._address, self._key = address, key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Asker:
        self._streams = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._streams is not None
        self._streams[1].close()

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        assert self._streams is not None
        reader, writer = self._streams
        began_s = time.perf_counter()
        writer.write(self._request(method, path, body))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" in head:
            pieces, first_s = await _chunks(reader, began_s)
        else:
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            pieces, first_s = [await reader.readexactly(length)], time.perf_counter() - began_s
        return Answer(status, b"".join(pieces), first_s, time.perf_counter() - began_s)

    async def begin(self, method: str, path: str, body: Mapping[str, Any]) -> int:
        """Ask for a stream and read its head and first part only; the status."""
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(self._request(method, path, body))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readline()
        return int(head.split(b" ", 2)[1])

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._address[0]}", f"Content-Length: {len(content)}"]
        lines += [f"Authorization: Bearer {self._key}"] * bool(self._key)
        lines += ["Content-Type: application/json"] * (body is not None)
        return "\r\n".join([*lines, "", ""]).encode() + content


async def _chunks(reader: asyncio.StreamReader, began_s: float) -> tuple[list[bytes], float]:
    pieces: list[bytes] = []
    first_s = 0.0
    while num_bytes := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(num_bytes))
        first_s = first_s or time.perf_counter() - began_s
        await reader.readline()
    await reader.readline()
    return pieces, first_s
