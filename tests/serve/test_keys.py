"""A server with keys, over real HTTP: who is let in, what each may, and what it is told of its limits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serve.clock import Clock
from tests.serve.fake_engine import FakeEngine
from tests.serve.keyed_server import KeyedServer, keyed_server
from tinycluster.serve.key_ring import MAX_AGE_S

ASK = {"prompt": "hello", "max_tokens": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    with keyed_server(tmp_path_factory.mktemp("keys")) as server:
        yield server


@pytest.fixture(scope="module")
def user(server: KeyedServer) -> Iterator[httpx.Client]:
    with server.client(server.make("user")) as client:
        yield client


@pytest.fixture(scope="module")
def admin(server: KeyedServer) -> Iterator[httpx.Client]:
    with server.client(server.make("admin", role="admin")) as client:
        yield client


def error(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    return dict(reply.json()["error"])


def test_a_key_opens_what_its_role_may(user: httpx.Client, admin: httpx.Client) -> None:
    assert user.post("/v1/completions", json=ASK).status_code == 200
    assert error(user.get("/metrics"), 403)["code"] == "permission_denied"
    assert admin.get("/metrics").status_code == 200
    assert admin.get("/v1/models").status_code == 200


def test_everybody_learns_who_they_are(server: KeyedServer, user: httpx.Client, admin: httpx.Client) -> None:
    assert user.get("/api/me").json() == {"auth": "keys", "name": "user", "role": "user"}
    assert admin.get("/api/me").json() == {"auth": "keys", "name": "admin", "role": "admin"}
    reply = httpx.get(f"{server.url}/api/me")
    assert error(reply, 401)["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"


def test_a_request_belongs_to_its_key(server: KeyedServer, user: httpx.Client) -> None:
    user.post("/v1/completions", json=ASK)
    owner = server.engine.options[-1].client
    assert owner.startswith("key_")


def test_an_admin_makes_lists_and_revokes_keys(server: KeyedServer, admin: httpx.Client) -> None:
    began_s = time.time()
    reply = admin.post("/api/keys", json={"name": "made", "expires_in": 3600, "max_running": 2, "weight": 2.5})
    made = reply.json()
    assert reply.headers["cache-control"] == "no-store"
    assert (made["name"], made["role"], made["state"], made["max_running"]) == ("made", "user", "good", 2)
    assert int(began_s) <= made["expires_at"] - 3600 <= made["created_at"] <= time.time()
    assert made["hint"] == made["key"][-4:]
    with server.client(made["key"]) as client:
        assert client.get("/v1/models").status_code == 200
        assert server.engine.client_weights[made["id"]] == 2.5
        (listed,) = [key for key in admin.get("/api/keys").json()["keys"] if key["id"] == made["id"]]
        assert listed == {name: value for name, value in made.items() if name != "key"}
        assert admin.delete(f"/api/keys/{made['id']}").json() == {"id": made["id"], "deleted": True}
        wait_until(lambda: client.get("/v1/models").status_code == 401)
    assert error(admin.delete("/api/keys/key_of_nobody"), 404)["param"] == "key_id"


def wait_until(condition: Any) -> None:
    """Poll a condition that another thread makes true; the test's timeout bounds the wait."""
    while not condition():
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": " "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "\u202ea"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "key_x"}, "name"),
        ({"name": "admin"}, "name"),
        ({"name": "n", "role": "root"}, "role"),
        ({"name": "n", "expires_in": 0}, "expires_in"),
        ({"name": "n", "weight": 0}, "weight"),
        ({"name": "n", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "n", "max_running": 1.5}, "max_running"),
    ],
)
def test_a_key_that_cannot_be_made_is_a_400_that_names_the_field(
    admin: httpx.Client, body: dict[str, Any], param: str
) -> None:
    assert error(admin.post("/api/keys", json=body), 400)["param"] == param


def test_a_revoked_key_is_refused_within_a_second_and_its_stream_ends(tmp_path: Path) -> None:
    """Its stream ends with the reason as its last event."""
    gate, clock = threading.Semaphore(0), Clock()
    with keyed_server(tmp_path, FakeEngine(gate=gate), clock) as server, server.client(server.make("a")) as client:
        with client.stream("POST", "/v1/completions", json={**ASK, "stream": True}) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            server.revoke("a")
            clock.now_s += MAX_AGE_S
            assert client.get("/v1/models").status_code == 401
            # The fake engine sees that it was ended with its next token.
            wait_until(lambda: not server.engine.running)
            gate.release()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "invalid_api_key"
        assert server.engine.running == set()


def test_a_stream_that_only_shows_ends_with_its_key_too(tmp_path: Path) -> None:
    with keyed_server(tmp_path) as server, server.client(server.make("a", role="admin")) as client:
        with client.stream("GET", "/api/cluster/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: snapshot"
            server.revoke("a")
            rest = [line for line in lines if line]
        assert rest[-2] == "event: error"
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "invalid_api_key"
        assert client.get("/v1/models").status_code == 401


def test_limits_are_told_with_every_answer_and_kept(tmp_path: Path) -> None:
    """By a clock that stands still: nothing flows back between the requests."""
    limits = {"requests_per_minute": 3, "tokens_per_minute": 1000}
    with keyed_server(tmp_path, clock=Clock()) as server, server.client(server.make("limited", **limits)) as client:
        first, second = (client.post("/v1/completions", json=ASK) for _ in range(2))
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "3"
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        # Each is five tokens of the prompt and five of the answer.
        assert first.headers["x-ratelimit-remaining-tokens"] == "990"
        assert second.headers["x-ratelimit-remaining-tokens"] == "980"
        assert client.post("/v1/completions", json={"prompt": 7}).status_code == 400
        refused = client.post("/v1/completions", json=ASK)
    assert error(refused, 429)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "20"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers.get_list("x-ratelimit-limit-requests") == ["3"]


def test_a_key_without_limits_is_told_of_none(user: httpx.Client) -> None:
    reply = user.post("/v1/completions", json=ASK)
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


def test_no_more_requests_run_than_the_key_may_have(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    with (
        keyed_server(tmp_path, FakeEngine(gate=gate)) as server,
        server.client(server.make("a", max_running=2)) as client,
        server.client(server.make("b")) as other,
        ThreadPoolExecutor(3) as threads,
    ):
        running = [threads.submit(client.post, "/v1/completions", json=ASK) for _ in range(2)]
        while len(server.engine.running) < 2:
            time.sleep(0.001)
        refused = client.post("/v1/completions", json=ASK)
        beside = threads.submit(other.post, "/v1/completions", json=ASK)
        while len(server.engine.running) < 3:
            time.sleep(0.001)
        gate.release(100)
        assert [future.result().status_code for future in [*running, beside]] == [200] * 3
        assert (error(refused, 429)["code"], refused.headers["retry-after"]) == ("rate_limit_exceeded", "1")
        assert client.post("/v1/completions", json=ASK).status_code == 200


def test_openais_client_takes_a_key_and_knows_our_refusals(server: KeyedServer) -> None:
    def client(text: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key=text, max_retries=0)

    with client(server.make("openai", requests_per_minute=1)) as good, client("tc-" + "A" * 43) as wrong:
        assert good.completions.create(model="fake", prompt="hello").choices[0].text == "hello"
        with pytest.raises(openai.RateLimitError, match="1 requests per minute"):
            good.completions.create(model="fake", prompt="hello")
        with pytest.raises(openai.AuthenticationError, match="revoked or has expired"):
            wrong.completions.create(model="fake", prompt="hello")


def test_two_servers_over_one_database_know_the_same_keys(tmp_path: Path) -> None:
    clock = Clock()
    with (
        keyed_server(tmp_path) as first,
        keyed_server(tmp_path, clock=clock) as second,
        first.client(first.make("a")) as one,
        httpx.Client(base_url=second.url, headers=one.headers) as two,
    ):
        assert (one.get("/v1/models").status_code, two.get("/v1/models").status_code) == (200, 200)
        first.revoke("a")
        clock.now_s += MAX_AGE_S
        assert two.get("/v1/models").status_code == 401


def test_without_keys_everybody_is_admin_but_makes_no_keys(client: httpx.Client) -> None:
    """A key that anybody made today would be good tomorrow, when keys are asked for."""
    assert client.get("/api/me").json() == {"auth": "none", "name": None, "role": "admin"}
    assert client.get("/api/keys").json() == {"keys": []}
    assert error(client.post("/api/keys", json={"name": "x"}), 403)["code"] == "permission_denied"
    assert error(client.delete("/api/keys/x"), 403)["code"] == "permission_denied"
