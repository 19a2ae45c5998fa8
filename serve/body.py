"""A request's body: plain JSON of bounded size and depth, one object, no duplicate keys, no NaN, no infinity."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from starlette.requests import ClientDisconnect, Request

from tinycluster.engine.errors import RequestError
from tinycluster.serve.disconnect import ClientGoneError
from tinycluster.serve.errors import ErrorReply, HttpError
from tinycluster.serve.exchange import exchange_of

MAX_BODY_BYTES = 4 * 2**20
BODY_TIMEOUT_S = 30.0
MIN_BODY_BYTES_PER_S = 8 * 2**10
"""What has come of a body buys more time for the rest, so that a slow line is told from a client that stalls."""
PARSE_IN_THREAD_BYTES = 64 * 2**10
"""Larger bodies are parsed and checked off the event loop, so that they do not delay other clients' tokens."""
MAX_COMMAS = 2**18
"""What the parser reads in one go, while nothing else in the process runs. A value after the first has a comma."""
MAX_DEPTH = 512
"""Of arrays and objects in each other. What is taken in is written out again, with whatever stack is left there."""
CLOSE = MappingProxyType({"connection": "close"})


Checked = TypeVar("Checked")


async def read_as(check: Callable[[dict[str, Any]], Checked], request: Request) -> Checked:
    """What `check` makes of the body's object. HttpError 408, 413, 415; RequestError where there is no such object."""
    _check_media_type(request)
    body = await _read(request)
    if (exchange := exchange_of(request.scope)) is not None:
        exchange.read_s = time.monotonic()
    if len(body) < PARSE_IN_THREAD_BYTES:
        return check(parse_object(body))
    return await asyncio.to_thread(lambda: check(parse_object(body)))


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise _unsupported("The Content-Type must be application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise _unsupported("A compressed body is not accepted; send it without Content-Encoding")


def _unsupported(message: str) -> HttpError:
    return HttpError(ErrorReply(415, message, code="unsupported_media_type"))


async def _read(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        _check_size(int(announced))
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S) as deadline:
            began_s = asyncio.get_running_loop().time()
            async for chunk in request.stream():
                body += chunk
                _check_size(len(body))
                deadline.reschedule(began_s + BODY_TIMEOUT_S + len(body) / MIN_BODY_BYTES_PER_S)
    except ClientDisconnect:
        raise ClientGoneError from None
    except TimeoutError:
        raise HttpError(
            ErrorReply(408, "The body did not come in time", code="request_timeout", headers=CLOSE)
        ) from None
    return bytes(body)


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        message = f"The body is larger than the limit of {MAX_BODY_BYTES} bytes"
        # Closing spares the server from reading the rest of a body that it has refused.
        raise HttpError(ErrorReply(413, message, code="content_too_large", headers=CLOSE))


def parse_object(body: bytes) -> dict[str, Any]:
    if body.count(b",") > MAX_COMMAS:
        raise RequestError(f"The body has more than {MAX_COMMAS} values or commas")
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise RequestError("The body is not valid UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {_place(error)}") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if b"\\u" in body:
        _check_surrogates(value)
    if not isinstance(value, dict):
        raise RequestError(f"The body must be a JSON object, got {_kind(value)}")
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for outer in level for part in _parts(outer)]
    if any(isinstance(part, dict | list) for part in level):
        raise _too_deep()


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep() -> RequestError:
    return RequestError(f"The body is nested more than {MAX_DEPTH} deep")


def _check_surrogates(value: object) -> None:
    # JSON's escapes can write half of a surrogate pair, which no encoding and no tokenizer takes.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError("The body holds half of a surrogate pair") from None


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise RequestError("The body has an object with the same key twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise RequestError(f"The body holds {name}, which JSON does not have")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise RequestError("The body holds a number that is too large")
    return value


def _place(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.partition('(')[0].strip().lower()} at character {error.pos}"
    return "a number is too long"


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
