"""Section A, rows 9 and 10: what is another key's does not exist, on every route that takes an id."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from tests.serve.keyed_server import KeyedServer, keyed_server
from tinycluster.serve.access import LEVELS
from tinycluster.serve.app import create_app
from tinycluster.serve.registry import ModelRegistry

CANARY = "canary"
BODIES: Mapping[str, Any] = {
    "POST /v1/conversations/{}": {"metadata": {"stolen": "yes"}},
    "POST /v1/conversations/{}/items": {"items": [{"role": "user", "content": "stolen"}]},
    "PATCH /api/sessions/{}": {"title": "stolen"},
    "POST /api/sessions/{}/fork": {},
}
"""Without a body that is right a route could refuse for another reason."""
FOREIGN = {"response_id": "resp_0", "conversation_id": "conv_0", "session_id": "conv_0", "item_id": "msg_0"}
NOBODYS = {**FOREIGN, "message_id": "msg_0"}
"""Ids that nobody has, by the parameter of the path that they are for."""


@dataclass
class Tenant:
    """One key, and the ids of what it owns: `owned` by the parameter of a path that they are for."""

    client: httpx.Client
    owned: dict[str, str] = field(default_factory=dict)

    def settle(self, message_id: str) -> None:
        asked = {"input": f"{CANARY} chat", "stream": False, "message_id": message_id}
        turn = self.client.post("/api/chat", json=asked).json()
        made = self.client.post("/v1/responses", json={"input": f"{CANARY} response", "background": True}).json()
        answer_id, session_id = turn["message"]["id"], turn["session_id"]
        self.owned = {"response_id": made["id"], "conversation_id": session_id, "session_id": session_id}
        self.owned |= {"item_id": answer_id, "message_id": answer_id}
        while self.client.get(f"/v1/responses/{made['id']}").json()["status"] == "in_progress":
            pass

    def seen(self) -> list[Any]:
        paths = [
            f"/v1/responses/{self.owned['response_id']}",
            f"/api/sessions/{self.owned['session_id']}",
            f"/v1/conversations/{self.owned['conversation_id']}",
            *("/api/sessions", "/api/sessions/export", "/api/settings"),
        ]
        return [self.client.get(path).json() for path in paths]


@contextmanager
def known(client: httpx.Client) -> Iterator[httpx.Client]:
    """When the server has seen the new key, which takes it up to a second."""
    with client:
        while client.get("/api/me").status_code == 401:
            pass
        yield client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    with keyed_server(tmp_path_factory.mktemp("tenants")) as server:
        yield server


@pytest.fixture(scope="module")
def alice(server: KeyedServer) -> Iterator[Tenant]:
    with known(server.client(server.make("alice"))) as client:
        tenant = Tenant(client)
        tenant.settle("msg_chosen")
        client.put("/api/settings", json={"theme": CANARY})
        yield tenant


@pytest.fixture(scope="module", params=["user", "admin"])
def bob(server: KeyedServer, request: pytest.FixtureRequest) -> Iterator[Tenant]:
    """An admin sees the cluster and the keys, but nobody's conversations."""
    with known(server.client(server.make(f"bob the {request.param}", role=request.param))) as client:
        yield Tenant(client)


def routes_with_ids() -> list[tuple[str, str]]:
    """Method and path of every route that takes an id of something that somebody owns."""
    found = []
    for route in create_app(ModelRegistry()).routes:
        assert isinstance(route, Route)
        path = re.sub(r":\w+}", "}", route.path)
        if "{" in path and LEVELS[re.sub(r"{\w+}", "{}", path)] == "user" and not path.startswith("/v1/models/"):
            found += [(method, path) for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


def ask(client: httpx.Client, method: str, path: str, ids: Mapping[str, str]) -> httpx.Response:
    body = BODIES.get(f"{method} {re.sub(r'{[^}]*}', '{}', path)}")
    return client.request(method, path.format(**ids), json=body)


def without(text: str, ids: Mapping[str, str]) -> str:
    for name, one in ids.items():
        text = text.replace(one, f"<{name[-2:]}>")
    return text


ROUTES_WITH_IDS = routes_with_ids()


@pytest.mark.parametrize(("method", "path"), ROUTES_WITH_IDS)
def test_row_9_what_is_another_keys_is_missed_as_what_nobody_has(
    alice: Tenant, bob: Tenant, method: str, path: str
) -> None:
    """Row 9: the same 404, to the last byte, and nothing has changed."""
    before = alice.seen()
    theirs, nobodys = ask(bob.client, method, path, alice.owned), ask(bob.client, method, path, NOBODYS)
    assert (theirs.status_code, nobodys.status_code) == (404, 404), (theirs.text, nobodys.text)
    assert without(theirs.text, alice.owned) == without(nobodys.text, NOBODYS)
    assert CANARY not in theirs.text
    assert alice.seen() == before


def test_row_9_the_routes_that_take_ids_are_known() -> None:
    assert len(ROUTES_WITH_IDS) >= 18
    assert {name for _, path in ROUTES_WITH_IDS for name in re.findall(r"{(\w+)}", path)} == set(NOBODYS)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/responses", {"input": "x", "previous_response_id": "<response_id>"}, 400),
        ("/v1/responses", {"input": "x", "conversation": "<conversation_id>"}, 404),
        ("/v1/responses", {"input": "x", "conversation": {"id": "<conversation_id>"}, "stream": True}, 404),
        ("/api/chat", {"input": "x", "session_id": "<session_id>"}, 404),
        ("/api/chat", {"regenerate": "msg_chosen", "session_id": "<session_id>"}, 404),
        ("/api/chat", {"input": "x", "session_id": "<session_id>", "parent_id": "<message_id>"}, 404),
    ],
)
def test_row_9_an_id_in_a_body_opens_no_more(
    alice: Tenant, bob: Tenant, path: str, body: dict[str, Any], status: int
) -> None:
    """Row 9: what a request continues is its own key's."""

    def asked(ids: Mapping[str, str]) -> httpx.Response:
        text = re.sub(r"<(\w+)>", lambda match: ids[match[1]], json.dumps(body))
        return bob.client.post(path, content=text, headers={"content-type": "application/json"})

    before, theirs, nobodys = alice.seen(), asked(alice.owned), asked(NOBODYS)
    assert (theirs.status_code, nobodys.status_code) == (status, status), theirs.text
    assert without(theirs.text, alice.owned) == without(nobodys.text, NOBODYS)
    assert alice.seen() == before


def test_row_9_lists_searches_exports_and_settings_are_ones_own(alice: Tenant, bob: Tenant) -> None:
    """Row 9: what lists anything shows nothing of another key."""
    for path in ("/api/sessions", f"/api/sessions?search={CANARY}", "/api/sessions/export", "/api/settings", "/api/me"):
        assert CANARY not in bob.client.get(path).text
    foreign = bob.client.get("/api/sessions", params={"before": alice.owned["session_id"]})
    assert foreign.status_code == bob.client.get("/api/sessions", params={"before": "conv_0"}).status_code == 400


def test_row_9_the_id_that_another_key_chose_is_free(alice: Tenant, bob: Tenant) -> None:
    """Row 9: a message id that a client chooses finds its own turn only."""
    before = alice.seen()
    body = {"input": "mine", "message_id": "msg_chosen", "stream": False}
    first, again = (bob.client.post("/api/chat", json=body).json() for _ in range(2))
    assert first["message"]["id"] == again["message"]["id"] != alice.owned["message_id"]
    assert (first["session_id"] == alice.owned["session_id"], first["message"]["content"]) == (False, "mine")
    assert alice.seen() == before


def test_row_10_a_message_belongs_to_its_own_session_only(alice: Tenant, bob: Tenant) -> None:
    """Row 10: one's own session with another's message, another's with one's own, and two of one's own mixed up."""
    bob.settle("msg_other")
    second = bob.client.post("/api/chat", json={"input": "second", "stream": False}).json()
    mixed: list[dict[str, str]] = [
        {**bob.owned, "item_id": alice.owned["item_id"], "message_id": alice.owned["message_id"]},
        {**alice.owned, "item_id": bob.owned["item_id"], "message_id": bob.owned["message_id"]},
        {**bob.owned, "item_id": second["message"]["id"], "message_id": second["message"]["id"]},
    ]
    before = alice.seen(), bob.seen()
    pairs = [(method, path) for method, path in ROUTES_WITH_IDS if path.count("{") == 2]
    assert len(pairs) >= 4
    for ids in mixed:
        for method, path in pairs:
            reply = ask(bob.client, method, path, ids)
            assert reply.status_code == 404, (method, path, reply.text)
            assert CANARY not in reply.text
        for change in ({"parent_id": ids["message_id"]}, {"regenerate": ids["message_id"]}):
            question = {"input": "x"} if "parent_id" in change else {}
            body = {**question, "session_id": ids["session_id"], **change, "stream": False}
            assert bob.client.post("/api/chat", json=body).status_code == 404
        for method, path, body in (
            ("PATCH", "", {"head_id": ids["message_id"]}),
            ("POST", "/fork", {"message_id": ids["message_id"]}),
        ):
            reply = bob.client.request(method, f"/api/sessions/{ids['session_id']}{path}", json=body)
            assert reply.status_code in (400, 404), reply.text
    assert (alice.seen(), bob.seen()) == before
