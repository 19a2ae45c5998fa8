"""What a server says of its cluster, asked from the command line."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import ValidationError

from tinycluster.cluster.log_lines import printable
from tinycluster.engine.errors import ConfigError, TinyclusterError, UnavailableError
from tinycluster.serve.openapi_cluster import ClusterSnapshot
from tinycluster.serve.options import authorization

CONNECT_TIMEOUT_S = 5.0
SILENCE_S = 15.0
"""Events come each second."""


class ClusterClient:
    """UnavailableError where the server is not there or shows something else, ConfigError where it refuses."""

    def __init__(self, url: str, key: str | None, verify: ssl.SSLContext | bool = True) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
        with self._known_errors():
            self._http = httpx.Client(base_url=self._url, headers=authorization(key), timeout=timeout, verify=verify)

    def __enter__(self) -> ClusterClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def snapshot(self) -> dict[str, Any]:
        with self._known_errors():
            answer = self._http.get("/api/cluster")
            self._check(answer)
            return _as_snapshot(answer.content)

    def snapshots(self) -> Iterator[dict[str, Any]]:
        """One at once and then one a second, until the server ends."""
        with self._known_errors(), self._http.stream("GET", "/api/cluster/events") as answer:
            if answer.is_error:
                answer.read()
            self._check(answer)
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield _as_snapshot(line[len("data: ") :].encode())

    @contextmanager
    def _known_errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ConfigError(f"--url {self._url!r} is not a URL like http://127.0.0.1:8000") from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _check(self, answer: httpx.Response) -> None:
        if not answer.is_error:
            return
        try:
            message = printable(str(answer.json()["error"]["message"]))
        except (ValueError, LookupError, TypeError):
            message = f"it answers {answer.status_code} to /api/cluster; is it a tinycluster server?"
        kind = UnavailableError if answer.is_server_error else ConfigError
        raise kind(f"{self._url}: {message}")

    def _unreachable(self, error: httpx.HTTPError) -> TinyclusterError:
        reason = str(error).partition("\n")[0] or "the connection ended"
        return UnavailableError(f"no answer from {self._url}: {reason}; is `tinycluster serve` running there?")


def _as_snapshot(content: bytes) -> dict[str, Any]:
    """With the fields that a newer server adds; those that are shown are there."""
    try:
        # Strict: what is shown as a number must be one.
        ClusterSnapshot.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _unreadable(f"{place}: {first['msg']}" if place else "it is no JSON object") from None
    shown: dict[str, Any] = json.loads(content, parse_int=_count, parse_float=_number, parse_constant=_number)
    return shown


def _count(text: str) -> int:
    _number(text)
    return int(text)


def _number(text: str) -> float:
    """What cannot be told by 64 bits is no size and no time, and would be too much for some that show it."""
    number = float(text)
    if not abs(number) < 2**63:
        raise _unreadable(f"{text[:20]} is no number of a cluster")
    return number


def _unreadable(reason: str) -> UnavailableError:
    return UnavailableError(
        f"the server's answer is no view of a cluster that this version can read ({reason}); "
        "is it a tinycluster server of the same version?"
    )
