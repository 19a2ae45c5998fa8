"""JSON that may be large, written value by value in a thread and sent in pieces, so that nobody waits for all of it.

One json.dumps of tens of megabytes keeps every thread of the process waiting until it ends, and so does copying them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinycluster.serve.body import PARSE_IN_THREAD_BYTES

PIECE_BYTES = 64 * 2**10


async def json_response(num_bytes: int, make: Callable[[], Any], depth: int) -> Response:
    """What `make` makes. `num_bytes` is about its length: what is small is made and written at once.

    Of something large the lists and objects down to `depth` are written value by value: those that may be long.
    """
    if num_bytes < PARSE_IN_THREAD_BYTES:
        return JSONResponse(make())
    return JsonPieces(await asyncio.to_thread(lambda: list(pieces_of(make(), depth))))


class JsonPieces(Response):
    media_type = "application/json"

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        super().__init__(headers={"content-length": str(sum(map(len, pieces)))})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def pieces_of(value: Any, depth: int) -> Iterator[bytes]:
    """The value as UTF-8, cut after so many bytes that a piece is worth its sending."""
    waiting: list[bytes] = []
    num_waiting = 0
    for text in _texts_of(value, depth):
        waiting.append(text.encode())
        num_waiting += len(waiting[-1])
        if num_waiting >= PIECE_BYTES:
            yield b"".join(waiting)
            waiting, num_waiting = [], 0
    yield b"".join(waiting)


def _texts_of(value: Any, depth: int) -> Iterator[str]:
    if depth and isinstance(value, dict) and value:
        for number, (name, member) in enumerate(value.items()):
            yield f"{',' if number else '{'}{json.dumps(name)}:"
            yield from _texts_of(member, depth - 1)
        yield "}"
    elif depth and isinstance(value, list) and value:
        for number, element in enumerate(value):
            yield "," if number else "["
            yield from _texts_of(element, depth - 1)
        yield "]"
    else:
        # As JSONResponse writes it.
        yield json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
