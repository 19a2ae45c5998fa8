"""Section A: who may ask what. Rows about keys and accounts come with them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.attacks.conftest import FAKE, ROUTES, TAKING_BODIES
from tests.attacks.contract import GOOD, Victim, victim
from tests.attacks.keyed import keyed_victim
from tests.attacks.wire import JSON, exchange, request

OPTIONS = {**FAKE, "allowed_hosts": ["API.Example.com"]}


@pytest.fixture(scope="module", params=["none", "keys"])
def fake_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Every row holds with server.auth none, and for those who have no key."""
    if request.param == "none":
        with victim(OPTIONS) as server:
            yield server
    else:
        with keyed_victim(tmp_path_factory.mktemp("keys"), OPTIONS, "admin") as (server, _):
            yield server


def with_hosts(method: str, path: str, *hosts: bytes) -> bytes:
    lines = b"".join(b"Host: %b\r\n" % host for host in hosts)
    return f"{method} {path} HTTP/1.1\r\n".encode() + lines + b"Content-Length: 0\r\n" + JSON + b"\r\n"


@pytest.mark.parametrize(
    "hosts",
    [
        (b"x/health?",),
        (b"x?",),
        (b"x#",),
        (b"x/skip",),
        (b"",),
        (),
        (b"localhost", b"localhost"),
        (b"a b",),
        (b"u@x",),
        (b"x:1:2",),
        (b"[::1",),
        (b"x\\y",),
        (b"x:port",),
        (b"-x",),
    ],
    ids=str,
)
def test_row_3_a_host_that_is_none_is_refused_on_every_route(attacked: Victim, hosts: tuple[bytes, ...]) -> None:
    """Row 3: what follows a host must not move the path, and two hosts must not let anyone choose."""
    for path, methods in ROUTES:
        reply = exchange(attacked.address, with_hosts(min(methods), path, *hosts))
        assert (reply.status, reply.error()["param"]) == (400, None)


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models",
        "/v1/../v1/models",
        "/V1/models",
        "%2fv1/models",
        "/%2fv1/models",
        "/v1/models/",
        "/v1/models;x",
        "/./v1/models",
        "/v1//models",
        "/v1%2fmodels%00",
        "http://localhost/v1/models",
        "/v1/models#x",
        "v1/models",
    ],
)
def test_row_4_another_spelling_of_a_path_is_another_path(attacked: Victim, target: str) -> None:
    """Row 4: a guard in front of us that compares paths must not be passed by a spelling that only we understand."""
    reply = exchange(attacked.address, request("GET", target))
    assert reply.status in ((400, 401, 404) if attacked.authorization else (400, 404))
    reply.error()


@pytest.mark.parametrize("name", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-HTTP-Method-Override"])
def test_row_4_no_header_renames_the_path_or_the_method(attacked: Victim, name: str) -> None:
    """Row 4: headers of other servers' conventions mean nothing here."""
    reply = exchange(attacked.address, request("GET", "/nothing", f"{name}: /v1/models\r\n".encode()))
    assert reply.error()["code"] == "not_found"
    reply = exchange(attacked.address, request("GET", "/v1/completions", f"{name}: POST\r\n".encode()))
    assert reply.error()["code"] == "method_not_allowed"


def test_row_12_no_route_speaks_websocket(attacked: Victim) -> None:
    """Row 12: a wish for another protocol is ignored; the answer is HTTP's."""
    upgrade = [
        b"Connection: Upgrade\r\n",
        b"Sec-WebSocket-Version: 13\r\n",
        b"Sec-WebSocket-Key: " + b"A" * 22 + b"==\r\n",
    ]
    for path, _ in ROUTES:
        reply = exchange(attacked.address, request("GET", path, b"Upgrade: websocket\r\n", *upgrade))
        assert reply.status != 101
        assert "upgrade" not in reply.headers


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"https://evil.example:8000",
        b"HTTP://EVIL.EXAMPLE",
        b"http://localhost.evil.example",
        b"http://93.184.215.14",
        b"http://[2606:2800:21f:cb07::1]",
        b"http://",
        b"http://localhost@evil.example",
        b"http://localhost evil",
        b"null",
        b"http://localhost\r\nOrigin: http://evil.example",
    ],
    ids=repr,
)
def test_row_12_and_13_a_page_of_a_stranger_is_a_403_on_every_route(attacked: Victim, origin: bytes) -> None:
    """Rows 12 and 13: streams, deletions and posts without a body, which a browser sends without asking first."""
    for path, methods in ROUTES:
        for method in methods:
            reply = exchange(attacked.address, request(method, path, b"Origin: " + origin + b"\r\n", body=GOOD))
            assert (reply.status, reply.error()["type"]) == (403, "permission_denied")


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://192.168.7.9", "https://api.example.com", "http://node7", "app://x", ""]
)
def test_row_13_a_page_of_ours_and_a_program_are_answered(attacked: Victim, origin: str) -> None:
    """Row 13, the other side."""
    reply = exchange(attacked.address, request("GET", "/health", f"Origin: {origin}\r\n".encode()))
    assert reply.status == 200


def test_row_13_what_a_form_sends_is_taken_by_no_route(attacked: Victim) -> None:
    """Row 13: of an old browser that does not say whose page it is."""
    for path in TAKING_BODIES:
        for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"):
            lines = [b"Content-Type: " + kind + b"\r\n", b"Content-Length: %d\r\n" % len(GOOD)]
            reply = exchange(attacked.address, request("POST", path, attacked.authorization, *lines) + GOOD)
            assert reply.error()["code"] == "unsupported_media_type"


def test_row_14_no_other_origin_may_read_an_answer(attacked: Victim) -> None:
    """Row 14: no answer has a header of CORS, and a preflight is a method that no route takes."""
    origin = b"Origin: http://localhost:3000\r\n"
    asks = [b"Access-Control-Request-Method: POST\r\n", b"Access-Control-Request-Headers: content-type\r\n"]
    for path, methods in ROUTES:
        for raw in (request("OPTIONS", path, origin, *asks), request(min(methods), path, origin, body=b"{}")):
            reply = exchange(attacked.address, raw)
            assert not [name for name in reply.headers if name.startswith("access-control-")]
            assert raw.startswith(b"OPTIONS") == (reply.status == 405)


@pytest.mark.parametrize(
    "host", [b"evil.example", b"evil.example:8000", b"127.0.0.1.evil.example", b"localhost.evil.example"]
)
def test_row_15_a_name_of_the_public_dns_is_refused_on_every_route(attacked: Victim, host: bytes) -> None:
    """Row 15: DNS rebinding."""
    for path, methods in ROUTES:
        reply = exchange(attacked.address, with_hosts(min(methods), path, host))
        assert (reply.status, reply.error()["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"127.0.0.1:80",
        b"[::1]:8000",
        b"192.168.7.9",
        b"node7",
        b"llm.default.svc.cluster.local",
        b"LOCALHOST.",
        b"api.example.com",
        b"api.example.com:443",
    ],
)
def test_row_15_addresses_private_names_and_listed_names_are_answered(attacked: Victim, host: bytes) -> None:
    """Row 15, the other side: nobody can point these names to somebody else's network."""
    reply = exchange(attacked.address, with_hosts("GET", "/health", host))
    assert (reply.status, json.loads(reply.body)) == (200, {"status": "alive"})
