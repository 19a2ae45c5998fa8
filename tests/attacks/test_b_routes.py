"""Section B, continued: what every route does with methods, types and paths that it does not take."""

from __future__ import annotations

import gzip
import zlib

import pytest

from tests.attacks.conftest import ROUTES, TAKING_BODIES
from tests.attacks.contract import GOOD, Victim
from tests.attacks.wire import exchange, refused, request
from tinycluster.serve.body import MAX_BODY_BYTES

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "PURGE"]


@pytest.mark.parametrize("method", METHODS)
def test_row_26_a_wrong_method_is_a_405_with_allow_on_every_route(attacked: Victim, method: str) -> None:
    """Row 26."""
    for path, methods in ROUTES:
        if method not in methods:
            reply = exchange(attacked.address, request(method, path), has_body=method != "HEAD")
            assert reply.status == 405, (method, path, reply)
            assert set(reply.headers["allow"].split(", ")) == methods
            if method != "HEAD":
                assert reply.error()["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["__CLASS__", "CONNECT", "PRI", "get", "Get", "FOO", "DISPATCH", "_METHODS"])
def test_row_26_a_method_that_nobody_knows_is_a_501(attacked: Victim, method: str) -> None:
    """Row 26: no verb reaches an attribute of a Python object."""
    for path in ("/health", "*", "localhost:80"):
        refused(exchange(attacked.address, request(method, path)), 405, 501)


FORM = b"&".join(b"a%d=b" % number for number in range(10**6))[: MAX_BODY_BYTES - 1]
MULTIPART = (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n" * 10**5)[: MAX_BODY_BYTES - 1]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"application/x-www-form-urlencoded", FORM),
        (b"multipart/form-data; boundary=x", MULTIPART),
        (b"text/plain", GOOD),
        (b"application/jsonx", GOOD),
        (b"application/json, text/plain", GOOD),
        (b"", GOOD),
        (None, GOOD),
    ],
    ids=["form", "multipart", "text", "jsonx", "two", "empty", "missing"],
)
def test_row_27_another_media_type_is_a_415_on_every_route(attacked: Victim, kind: bytes | None, body: bytes) -> None:
    """Row 27: forms of 10^6 and multipart of 10^5 fields are refused before their bodies are looked at."""
    for path in TAKING_BODIES:
        lines = [] if kind is None else [b"Content-Type: " + kind + b"\r\n"]
        raw = request("POST", path, *lines, b"Content-Length: %d\r\n" % len(body)) + body
        reply = exchange(attacked.address, raw)
        assert (reply.status, reply.error()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "identity, gzip", "x-gzip", "GZIP"])
def test_row_28_a_compressed_body_is_a_415_on_every_route(attacked: Victim, coding: str) -> None:
    """Row 28: nothing is decompressed, so a bomb is as large as it is on the wire."""
    bomb = gzip.compress(zlib.compress(bytes(2**24)))
    for path in TAKING_BODIES:
        reply = exchange(attacked.address, request("POST", path, f"Content-Encoding: {coding}\r\n".encode(), body=bomb))
        assert (reply.status, reply.error()["code"]) == (415, "unsupported_media_type")


def test_row_29_ten_thousand_ranges_are_no_work(attacked: Victim) -> None:
    """Row 29: no route serves ranges; the field is ignored, or too large."""
    paths = [path for path, methods in ROUTES if "GET" in methods]
    plain = [exchange(attacked.address, request("GET", path)).status for path in paths]
    for count in (10_000, 20_000):
        ranges = b"Range: bytes=" + b",".join(b"%d-" % number for number in range(count)) + b"\r\n"
        for path, status in zip(paths, plain, strict=True):
            with attacked.within_cpu_s(0.1):
                reply = exchange(attacked.address, request("GET", path, ranges))
            assert reply.status == (status if count == 10_000 else 431)


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%5c..%5cx",
        "/%00",
        "/static../x",
        "/v1/%2e%2e/%2e%2e/x",
        "/.git/config",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%2e%2e/%2e%2e/x",
        "/docs",
        "/openapi.yaml",
        "/__debug__",
    ],
)
def test_row_30_no_path_leads_to_a_file(attacked: Victim, path: str) -> None:
    """Row 30: there are no static files yet; every spelling of a way out is a 404 without a look at the disk."""
    attacked.ask("watch")
    reply = exchange(attacked.address, request("GET", path))
    assert reply.status in (400, 404)
    reply.error()
    assert attacked.ask("events") == []


@pytest.mark.parametrize(
    "query", ["a" * 2**20, "&".join(f"a={number}" for number in range(10**4))], ids=["1MB", "10000"]
)
def test_row_31_a_target_over_16_kib_is_a_414_on_every_route(attacked: Victim, query: str) -> None:
    """Row 31."""
    for path, methods in ROUTES:
        refused(exchange(attacked.address, request(min(methods), f"{path}?{query}")), 414)
