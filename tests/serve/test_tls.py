"""https by certificate files, with a certificate that the test makes."""

from __future__ import annotations

import io
import logging
import os
import select
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serve.certificates import Certificate, make_certificate
from tests.serve.command_line import tinycluster
from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.config import TlsSettings
from tinycluster.engine.errors import ConfigError
from tinycluster.serve import http_server
from tinycluster.serve.app import create_app
from tinycluster.serve.connection import USUAL, ConnectionLimits
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry
from tinycluster.serve.tls import tls_context

HASTY = ConnectionLimits(header_timeout_s=5.0)
"""For tests that wait for its end. A good client on a busy machine needs some time, too."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def url(certificate: Certificate) -> Iterator[str]:
    with running_server(certificate, USUAL) as url:
        yield url


@pytest.fixture
def trusted(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate.certificate)


@pytest.fixture
def client(url: str, trusted: ssl.SSLContext) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, verify=trusted, timeout=20) as client:
        yield client


@contextmanager
def running_server(certificate: Certificate, limits: ConnectionLimits) -> Iterator[str]:
    registry = ModelRegistry()
    registry.add(FakeEngine())
    listener = listen("127.0.0.1", 0)
    tls = tls_context(TlsSettings.model_validate(certificate.settings))
    server = HttpServer(create_app(registry), listener, limits, tls)
    server.start()
    try:
        yield url_of(listener, is_tls=True)
    finally:
        server.stop()
        registry.clear()


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("https://").rpartition(":")
    return host, int(port)


def check_good(client: httpx.Client) -> None:
    reply = client.post("/v1/completions", json={"prompt": "hello"})
    assert reply.json()["choices"][0]["text"] == "hello"


def test_answers_and_streams_come_by_https(client: httpx.Client) -> None:
    check_good(client)
    with client.stream("POST", "/v1/completions", json={"prompt": "hello", "stream": True}) as stream:
        assert list(stream.iter_lines())[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize(
    "request_", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["silent", "served"]
)
def test_a_client_that_stays_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    certificate: Certificate,
    trusted: ssl.SSLContext,
    request_: bytes,
) -> None:
    """It answers the server's farewell only when it reads again."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(http_server, "STOP_S", 20)
    with ExitStack() as stays:
        with running_server(certificate, USUAL) as url:
            plain = stays.enter_context(socket.create_connection(address_of(url), timeout=60))
            client = stays.enter_context(trusted.wrap_socket(plain, server_hostname="localhost"))
            client.sendall(request_)
            assert not request_ or client.recv(9) == b"HTTP/1.1 "
        assert [record.message for record in caplog.records] == []


def test_a_client_that_does_not_know_the_certificate_is_not_answered(url: str) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize(
    ("oldest", "newest", "is_taken"),
    [
        (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_tls_is_1_2_or_newer(
    url: str, certificate: Certificate, oldest: ssl.TLSVersion, newest: ssl.TLSVersion, is_taken: bool
) -> None:
    context = ssl.create_default_context(cafile=certificate.certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = oldest, newest
    with socket.create_connection(address_of(url), timeout=20) as plain:
        if is_taken:
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                assert connection.version() == newest.name.replace("_", ".")
        else:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    "sent",
    [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 1000, b""],
    ids=["plain HTTP", "half a hello", "zeros", "nothing"],
)
def test_what_is_no_tls_is_closed_and_does_no_harm(
    certificate: Certificate, trusted: ssl.SSLContext, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """The handshake has a time as a header has; nothing is logged of what strangers send."""
    with caplog.at_level(logging.WARNING), running_server(certificate, HASTY) as url:
        with socket.create_connection(address_of(url), timeout=20) as connection:
            connection.sendall(sent)
            received = connection.recv(1000)
            assert not received.startswith(b"HTTP/")
            while received:
                received = connection.recv(1000)
        with httpx.Client(base_url=url, verify=trusted, timeout=20) as client:
            check_good(client)
    assert caplog.records == []


@pytest.mark.parametrize("is_shaken", [False, True], ids=["in the handshake", "after it"])
def test_of_too_many_connections_those_that_say_nothing_are_closed(certificate: Certificate, is_shaken: bool) -> None:
    """With room for 10, 20 of 30 are gone, also those that do not answer the end of TLS."""
    trusted = ssl.create_default_context(cafile=certificate.certificate)
    with running_server(certificate, ConnectionLimits(max_connections=10)) as url, ExitStack() as stack:
        connections = []
        for _ in range(30):
            connection = stack.enter_context(socket.create_connection(address_of(url), timeout=20))
            if is_shaken:
                tls = stack.enter_context(trusted.wrap_socket(connection, server_hostname="localhost"))
                tls.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert tls.recv(8) == b"HTTP/1.1"
                # Nothing more of TLS is read, and so nothing answered.
                connection = stack.enter_context(socket.socket(fileno=os.dup(tls.fileno())))
                connection.settimeout(20)
            connections.append(connection)
        left = list(connections)
        while len(left) > 10:
            readable, _, _ = select.select(left, [], [], 60)
            assert readable
            left = [connection for connection in left if connection not in readable or not has_ended(connection)]
        with httpx.Client(base_url=url, verify=trusted, timeout=20) as client:
            check_good(client)


def has_ended(connection: socket.socket) -> bool:
    """Waits for something to read."""
    try:
        return not connection.recv(10_000)
    except ConnectionResetError:
        return True


def test_a_server_that_stops_ends_handshakes_too(certificate: Certificate) -> None:
    with ExitStack() as stack:
        with running_server(certificate, ConnectionLimits(max_connections=10)) as url:
            connection = stack.enter_context(socket.create_connection(address_of(url), timeout=20))
            other = stack.enter_context(socket.create_connection(address_of(url), timeout=20))
            other.sendall(b"\x16\x03\x01")
        assert has_ended(connection)
        assert has_ended(other)


def test_a_tls_hello_on_a_plain_port_is_refused_and_does_no_harm() -> None:
    registry = ModelRegistry()
    registry.add(FakeEngine())
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(registry), listener)
    server.start()
    try:
        url = url_of(listener)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url.replace("http:", "https:") + "/health")
        assert httpx.get(f"{url}/health").status_code == 200
    finally:
        server.stop()
        registry.clear()


def test_the_chat_speaks_https_with_a_certificate_of_ones_own(
    url: str, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    outcome = tinycluster("chat", "--url", url, "--ca", str(certificate.certificate))
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, "hello\n", "")


def test_the_chat_says_that_it_does_not_know_the_certificate(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    outcome = tinycluster("chat", "--url", url)
    assert outcome.exit_code == 1
    assert "certificate" in outcome.stderr


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, certificate: Certificate) -> None:
    other = make_certificate(tmp_path, "other")
    locked = make_certificate(tmp_path, "locked", password="secret")
    empty = tmp_path / "empty.pem"
    empty.touch()
    cases = [
        (tmp_path / "none.pem", certificate.key, "server.tls.certificate .*none.pem: No such file"),
        (certificate.certificate, tmp_path / "none.key", "server.tls.key .*none.key: No such file"),
        (tmp_path, certificate.key, "server.tls.certificate .*: Is a directory"),
        (empty, certificate.key, "server.tls.certificate .*empty.pem is not a PEM certificate"),
        (certificate.key, certificate.key, "server.tls.certificate .*server.key is not a PEM certificate"),
        (certificate.certificate, empty, "server.tls.key .*empty.pem must be a PEM key without a password"),
        (certificate.certificate, other.key, "server.tls.key .*other.key is not the key of .*server.pem"),
        (locked.certificate, locked.key, "server.tls.key .*locked.key must be a PEM key without a password"),
    ]
    for first, second, sentence in cases:
        with pytest.raises(ConfigError, match=sentence):
            tls_context(TlsSettings(certificate=first, key=second))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "server.tls={certificate: '', key: x}"], "server.tls.certificate must not be empty"),
        (["--set", "server.tls={certificate: /no.pem, key: /no.key}"], "server.tls.certificate /no.pem: No such file"),
        (["--set", "server.tls={certificate: x, key: y}", "--front", "proxy"], "server.tls needs server.front: direct"),
    ],
)
def test_a_server_that_cannot_speak_tls_does_not_start(arguments: list[str], sentence: str) -> None:
    outcome = tinycluster("serve", "smollm2", *arguments)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr


def test_urls_say_https() -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        assert url_of(listener, is_tls=True).startswith("https://127.0.0.1:")
