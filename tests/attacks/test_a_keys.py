"""Section A: keys. Routes come from the route table, so that a new one is attacked without being named here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.attacks.conftest import FAKE, ROUTES, routes
from tests.attacks.contract import GOOD, Victim
from tests.attacks.keyed import keyed_victim, make, revoke, url_of
from tests.attacks.wire import Reply, exchange, request
from tinycluster.serve.access import level_of

PUBLIC = {route.path for _, route in routes() if level_of(route.path) == "public"}
TAKING_IDS = sorted(
    {
        (method, route.path)
        for _, route in routes()
        for method in route.methods or ()
        if "{" in route.path and level_of(route.path) == "user" and not route.path.startswith("/v1/models/")
    }
)


class Keyed(NamedTuple):
    server: Victim
    keys: dict[str, str]
    folder: Path

    def ask(self, who: str, method: str, path: str, body: Any = None) -> Reply:
        content = None if body is None else json.dumps(body).encode()
        return exchange(self.server.address, request(method, path, bearer(self.keys[who]), body=content))


def bearer(key: str) -> bytes:
    return b"Authorization: Bearer %b\r\n" % key.encode()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keys")
    with keyed_victim(folder, FAKE) as (server, keys):
        yield Keyed(server, keys, folder)


def unauthorized(reply: Reply) -> None:
    assert reply.status == 401, reply
    assert reply.error()["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"


def closed_routes() -> list[tuple[str, str]]:
    return [(method, path) for path, methods in ROUTES if path not in filled_public() for method in sorted(methods)]


def filled_public() -> set[str]:
    return {path for path, route in routes() if route.path in PUBLIC}


def test_row_1_no_route_but_the_public_ones_answers_without_a_key(keyed: Keyed) -> None:
    """Row 1."""
    with keyed.server.attack():
        for method, path in closed_routes():
            unauthorized(exchange(keyed.server.address, request(method, path)))
            unauthorized(exchange(keyed.server.address, request(method, path, body=GOOD)))
    assert {re.sub(r"\{.*", "", path) for path in PUBLIC} <= {
        "/",
        "/cluster",
        "/health",
        "/health/ready",
        "/health_generate",
        "/ui/",
    }


@pytest.mark.parametrize(
    "line",
    [
        "Bearer tc-" + "A" * 43,
        "Bearer",
        "Bearer ",
        "Basic KEY",
        "KEY",
        "Bearer  KEY",
        "Bearer KEY x",
        "Bearer KEY,",
        "Bearer\tKEY",
        "Bearer KEYA",
        "Bearer SHORT",
        'Bearer "KEY"',
        "Bearer K%45Y",
        "Bearer KEY\r\nAuthorization: Bearer KEY",
        "Bearer KEY\r\nAuthorization: Bearer tc-x",
        "Basic x\r\nAuthorization: Bearer KEY",
        "Bearer ключ",
    ],
)
def test_row_2_only_one_form_of_a_good_key_is_one(keyed: Keyed, line: str) -> None:
    """Row 2."""
    key = keyed.keys["alice"]
    line = line.replace("KEY", key).replace("SHORT", key[:-1])
    for path in ("/v1/models", "/api/me"):
        raw = request("GET", path, b"Authorization: " + line.encode() + b"\r\n")
        unauthorized(exchange(keyed.server.address, raw))


@pytest.mark.parametrize("end", [b"\0", b"\x01", b"\x7f"])
def test_row_2_a_control_character_after_a_key_is_refused(keyed: Keyed, end: bytes) -> None:
    """Row 2: by the parser, before anybody looks at the key. A space there is not part of a header's value (RFC 9110,
    section 5.5), and never reaches the server's code."""
    line = bearer(keyed.keys["alice"]).removesuffix(b"\r\n") + end + b"\r\n"
    assert exchange(keyed.server.address, request("GET", "/v1/models", line)).status in (400, 401)


def test_row_4_what_is_no_route_is_not_one_for_nobody(keyed: Keyed) -> None:
    """Row 4: other spellings of paths, without a key."""
    for target in ("//v1/models", "/v1/../v1/models", "/V1/models", "/v1/models/", "/v1/models;x", "/%2fv1/models"):
        assert exchange(keyed.server.address, request("GET", target)).status in (400, 401, 404)


def test_row_6_a_key_is_written_down_nowhere(keyed: Keyed) -> None:
    """Row 6: database, log, arguments and environments of all of the server's processes, errors, metrics and lists."""
    canary = keyed.keys["bob"]
    answers = [keyed.ask("bob", "GET", "/metrics").body, keyed.ask("bob", "POST", "/v1/completions", {}).body]
    answers += [keyed.ask("admin", "GET", path).body for path in ("/metrics", "/api/keys", "/openapi.json")]
    places = [Path(f"/proc/{pid}/{name}") for pid in keyed.server.processes() for name in ("cmdline", "environ")]
    places += [path for path in keyed.folder.rglob("*") if path.is_file()]
    assert any(path.name.endswith(".db") for path in places)
    found = [str(path) for path in places if canary.encode() in path.read_bytes()]
    assert found == []
    assert not [answer for answer in answers if canary.encode() in answer]
    assert canary not in keyed.server.log()


def test_row_7_a_revoked_key_is_refused_within_a_second(keyed: Keyed) -> None:
    """Row 7; an expired one at once."""
    url = url_of(keyed.folder)
    line = bearer(make(url, "short"))
    raw = request("GET", "/v1/models", line)
    keyed.server.wait_for(lambda: exchange(keyed.server.address, raw).status == 200)
    revoke(url, "short")
    began_s = keyed.server.cpu_s()
    keyed.server.wait_for(lambda: exchange(keyed.server.address, raw).status == 401)
    assert keyed.server.cpu_s() - began_s < 2
    expired = bearer(make(url, "expired", expires_in=0.001))
    unauthorized(exchange(keyed.server.address, request("GET", "/v1/models", expired)))


def things_of(keyed: Keyed, who: str, word: str) -> dict[str, str]:
    """One of everything that has an id, by the name that paths have for it. `word` is in all of them."""
    chat = json.loads(keyed.ask(who, "POST", "/api/chat", {"input": word, "stream": False}).body)
    response = json.loads(keyed.ask(who, "POST", "/v1/responses", {"input": word}).body)
    item = {"type": "message", "role": "user", "content": word}
    conversation = json.loads(keyed.ask(who, "POST", "/v1/conversations", {"items": [item]}).body)
    path = f"/v1/conversations/{conversation['id']}/items"
    (listed,) = json.loads(keyed.ask(who, "GET", path).body)["data"]
    return {
        "session_id": chat["session_id"],
        "message_id": chat["message"]["id"],
        "response_id": response["id"],
        "conversation_id": conversation["id"],
        "item_id": listed["id"],
    }


def filled(path: str, ids: dict[str, str]) -> str:
    """KeyError for a path with an id that `things_of` does not make: a new kind of thing must be attacked, too."""
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: ids[match[1]], path)


BODIES = {
    ("POST", "/v1/conversations/{conversation_id}"): {"metadata": {"a": "b"}},
    ("POST", "/v1/conversations/{conversation_id}/items"): {"items": [{"role": "user", "content": "x"}]},
    ("PATCH", "/api/sessions/{session_id:session}"): {"title": "stolen"},
    ("POST", "/api/sessions/{session_id:session}/fork"): {},
}
"""Of the others an empty object, or none, is a right body."""


def test_row_9_nobody_finds_what_belongs_to_another_key(keyed: Keyed) -> None:
    """Row 9: every route that takes an id answers as for an id that nobody has, and changes nothing."""
    mine = things_of(keyed, "alice", "ALICES SECRET")
    nobodys = {name: re.sub(r"[0-9a-f]{8}$", "0" * 8, value) for name, value in mine.items()}
    assert TAKING_IDS
    assert not set(mine.values()) & set(nobodys.values())
    for method, path in TAKING_IDS:
        body = None if method in ("GET", "DELETE") else BODIES.get((method, path), {})
        stolen = keyed.ask("bob", method, filled(path, mine), body)
        absent = keyed.ask("bob", method, filled(path, nobodys), body)
        assert (stolen.status, absent.status) == (404, 404), (method, path, stolen)
        # Only the id that was asked for is different.
        known = [(mine, stolen), (nobodys, absent)]
        told = [re.sub("|".join(ids.values()), "ID", reply.body.decode()) for ids, reply in known]
        assert told[0] == told[1]
    for method, path in TAKING_IDS:
        if method == "GET":
            assert keyed.ask("alice", "GET", filled(path, mine)).status == 200, path


def test_row_9_no_list_and_no_export_shows_what_belongs_to_another_key(keyed: Keyed) -> None:
    """Row 9: every GET without an id."""
    things_of(keyed, "alice", "ALICES SECRET")
    lists = [route.path for path, route in routes() if "{" not in route.path and "GET" in (route.methods or ())]
    for path in lists:
        if path.endswith("/events"):
            continue
        for who in ("bob", "admin"):
            assert b"ALICES SECRET" not in keyed.ask(who, "GET", path).body, path
    assert b"ALICES SECRET" in keyed.ask("alice", "GET", "/api/sessions/export").body
    assert json.loads(keyed.ask("bob", "GET", "/api/sessions?search=SECRET").body)["sessions"] == []


def test_row_9_ids_in_bodies_are_no_way_in(keyed: Keyed) -> None:
    """Row 9: what continues, answers or branches from something of another."""
    mine = things_of(keyed, "alice", "ALICES SECRET")
    asked = [
        ("/v1/responses", {"input": "x", "previous_response_id": mine["response_id"]}),
        ("/v1/responses", {"input": "x", "conversation": mine["conversation_id"]}),
        ("/api/chat", {"input": "x", "session_id": mine["session_id"]}),
        ("/api/chat", {"session_id": mine["session_id"], "regenerate": mine["message_id"]}),
    ]
    for path, body in asked:
        reply = keyed.ask("bob", "POST", path, body)
        assert reply.status in (400, 404), (path, body, reply)
        assert b"ALICES SECRET" not in reply.body


def test_row_10_ids_of_two_keys_in_one_path_find_nothing(keyed: Keyed) -> None:
    """Row 10: a session of one's own with a message of another, and the other way round."""
    mine, others = things_of(keyed, "bob", "of bob"), things_of(keyed, "alice", "of alice")
    for method, path in TAKING_IDS:
        names = re.findall(r"\{(\w+)", path)
        if len(names) == 2:
            for mixed in ({**mine, names[1]: others[names[1]]}, {**others, names[1]: mine[names[1]]}):
                body = None if method in ("GET", "DELETE") else {}
                assert keyed.ask("bob", method, filled(path, mixed), body).status == 404, (method, path)


def test_row_11_a_users_key_is_none_on_the_routes_of_admins(keyed: Keyed) -> None:
    """Row 11."""
    for path, route in routes():
        if level_of(route.path) == "admin":
            for method in route.methods or ():
                reply = keyed.ask("alice", method, path, None if method == "GET" else {})
                assert (reply.status, reply.error()["code"]) == (403, "permission_denied"), (method, path)


def test_row_11_nobody_becomes_admin_by_being_first(tmp_path: Path) -> None:
    """Row 11: keys are made by those who have the database, or an admin's key. There is nothing to sign up to."""
    body = json.dumps({"name": "me", "role": "admin"}).encode()
    with keyed_victim(tmp_path, FAKE) as (server, keys), ThreadPoolExecutor(10) as clients:
        raw = request("POST", "/api/keys", body=body)
        for reply in clients.map(lambda _: exchange(server.address, raw), range(50)):
            unauthorized(reply)
        listed = exchange(server.address, request("GET", "/api/keys", bearer(keys["admin"])))
        assert len(json.loads(listed.body)["keys"]) == len(keys)


def test_row_12_streams_need_a_key(keyed: Keyed) -> None:
    """Row 12: with an Origin of ours, which is no key."""
    for path in ("/api/cluster/events", "/api/sessions/a/messages/b/events"):
        unauthorized(exchange(keyed.server.address, request("GET", path, b"Origin: http://localhost\r\n")))
    streamed = json.dumps({"prompt": "x", "stream": True}).encode()
    unauthorized(exchange(keyed.server.address, request("POST", "/v1/completions", body=streamed)))


def test_row_39_names_and_texts_with_control_characters_begin_no_line_of_the_log(keyed: Keyed) -> None:
    """Row 39: as a key's name they are refused, as a title or a text they are kept as they are."""
    odd = "a\0b\x1b[31m\r\nINFO forged\u202e"
    assert keyed.ask("admin", "POST", "/api/keys", {"name": odd}).status == 400
    chat = json.loads(keyed.ask("alice", "POST", "/api/chat", {"input": odd, "stream": False, "user": odd}).body)
    path = f"/api/sessions/{chat['session_id']}"
    assert keyed.ask("alice", "PATCH", path, {"title": odd}).status in (200, 400)
    kept = json.loads(keyed.ask("alice", "GET", path).body)
    assert kept["messages"][0]["content"] == odd
    assert keyed.ask("alice", "POST", "/v1/completions", {"prompt": "x", "model": odd}).status == 404
    assert not re.search(r"^INFO forged", keyed.server.log(), re.MULTILINE)


def test_row_16_an_address_with_a_thousand_wrong_keys_is_slowed_and_good_keys_are_not(tmp_path: Path) -> None:
    """Row 16: the next wrong key is a 429, a good key of the same address is not."""
    with keyed_victim(tmp_path, FAKE) as (server, keys), server.attack():
        raw = request("GET", "/v1/models", bearer("tc-" + "A" * 43))
        with ThreadPoolExecutor(8) as clients:
            replies = list(clients.map(lambda _: exchange(server.address, raw), range(1000)))
        assert {reply.status for reply in replies} == {401}
        slowed = exchange(server.address, raw)
        assert (slowed.status, slowed.error()["code"]) == (429, "rate_limit_exceeded")
        assert int(slowed.headers["retry-after"]) > 0
        forged = request("GET", "/v1/models", bearer("tc-" + "A" * 43), b"X-Forwarded-For: 192.0.2.1\r\n")
        assert exchange(server.address, forged).status == 429
        assert exchange(server.address, request("GET", "/v1/models", bearer(keys["alice"]))).status == 200
        unauthorized(exchange(server.address, request("GET", "/v1/models")))
