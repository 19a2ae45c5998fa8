"""Sessions as their owner lists, changes, copies, takes away and brings back; and the settings of the page."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.chatting import refused, say, session
from tinycluster.serve.sessions_shown import title_of
from tinycluster.serve.storage import turns
from tinycluster.serve.storage.records import MAX_MESSAGES


def test_sessions_are_listed_searched_changed_and_deleted(chat: httpx.Client) -> None:
    ids = [say(chat, f"word{number} Ärger")["session_id"] for number in range(5)]
    listed = chat.get("/api/sessions").json()
    assert [found["id"] for found in listed["sessions"]] == ids[::-1]
    page = chat.get("/api/sessions", params={"limit": 2}).json()
    assert ([found["id"] for found in page["sessions"]], page["has_more"]) == (ids[:-3:-1], True)
    followed = page["next"]
    page = chat.get("/api/sessions", params={"limit": 3, "before": ids[-2]}).json()
    assert ([found["id"] for found in page["sessions"]], page["has_more"]) == (ids[2::-1], False)
    page = chat.get("/api/sessions", params={"limit": 3, "before": followed}).json()
    assert ([found["id"] for found in page["sessions"]], page["next"]) == (ids[2::-1], None)
    found = chat.get("/api/sessions", params={"search": "WORD3 ä"}).json()["sessions"]
    assert [each["id"] for each in found] == [ids[3]]
    changed = chat.patch(f"/api/sessions/{ids[0]}", json={"title": "renamed\u202e\n<b>"}).json()
    assert changed["title"] == "renamed\u202e\n<b>"
    assert chat.get("/api/sessions").json()["sessions"][0]["id"] == ids[0]
    assert chat.delete(f"/api/sessions/{ids[0]}").json() == {"id": ids[0], "deleted": True}
    refused(chat.get(f"/api/sessions/{ids[0]}"), 404, "session_id")
    refused(chat.delete(f"/api/sessions/{ids[0]}"), 404, "session_id")
    for query in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"before": "conv_none"}, {"search": "a" * 201}):
        refused(chat.get("/api/sessions", params=query), 400, next(iter(query)))


def test_a_title_that_was_given_stays(chat: httpx.Client) -> None:
    first = say(chat, "first words")
    chat.patch(f"/api/sessions/{first['session_id']}", json={"title": "mine"})
    say(chat, "other words", session_id=first["session_id"])
    assert session(chat, first["session_id"])["title"] == "mine"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("hello", "hello"),
        ("\n\n  two   words \nmore", "two words"),
        ("word " * 20, "word word word word word word word word word word word word…"),
        ("x" * 80, "x" * 59 + "…"),
        ("\x00\x1b[31mred\u202e", "[31mred"),
        ("👨\u200d👩 family", "👨\u200d👩 family"),
        (" \n\t", "New conversation"),
        ("\n" * 5000 + "late", "late"),
        ("a" + " " * 5000 + "b", "a"),
    ],
)
def test_a_title_is_the_first_line_cut_at_a_word(text: str, title: str) -> None:
    assert title_of(text) == title
    assert len(title) <= 60


def test_a_branch_is_forked_with_its_messages(chat: httpx.Client) -> None:
    first = say(chat, "a")
    session_id = first["session_id"]
    say(chat, "b", session_id=session_id)
    whole = chat.post(f"/api/sessions/{session_id}/fork", json={}).json()
    part = chat.post(f"/api/sessions/{session_id}/fork", json={"message_id": first["message"]["id"]}).json()
    assert [message["content"] for message in whole["messages"]] == ["a", "a", "b", "aab"]
    assert [message["content"] for message in part["messages"]] == ["a", "a"]
    assert len({session_id, whole["id"], part["id"]}) == 3
    assert say(chat, "c", session_id=part["id"])["message"]["content"] == "aac"
    assert len(session(chat, session_id)["messages"]) == 4
    missed = chat.post(f"/api/sessions/{session_id}/fork", json={"message_id": "msg_none"})
    refused(missed, 404)
    assert missed.json()["error"]["param"] == "message_id"


def test_a_session_takes_no_more_messages_than_can_be_shown(
    chat: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MAX_MESSAGES", 5)
    first = say(chat, "a")
    body = {"input": "b", "session_id": first["session_id"], "stream": False}
    assert chat.post("/api/chat", json=body).status_code == 200
    refused(chat.post("/api/chat", json=body), 400, "session_id")
    assert len(session(chat, first["session_id"])["messages"]) == 4


def test_an_import_takes_no_more_messages_than_can_be_shown(chat: httpx.Client) -> None:
    messages = [{"id": str(number), "role": "user", "content": ""} for number in range(MAX_MESSAGES + 1)]
    document = {"format": "tinycluster.sessions", "version": 1, "sessions": [{"messages": messages}]}
    answer = chat.post("/api/sessions/import", json={"document": document})
    assert str(MAX_MESSAGES) in refused(answer, 400, "document.sessions[0].messages")


def test_the_head_can_be_moved_to_another_branch(chat: httpx.Client) -> None:
    first = say(chat, "a")
    session_id = first["session_id"]
    say(chat, "b", session_id=session_id)
    answer = chat.patch(f"/api/sessions/{session_id}", json={"head_id": first["message"]["id"]})
    assert answer.json()["head_id"] == first["message"]["id"]
    assert say(chat, "c", session_id=session_id)["message"]["content"] == "aac"
    refused(chat.patch(f"/api/sessions/{session_id}", json={"head_id": "msg_none"}), 400, "head_id")


def test_sessions_are_taken_away_and_brought_back(chat: httpx.Client) -> None:
    first = say(chat, "a\x00😀", system="be brief ")
    session_id = first["session_id"]
    chat.post("/api/chat", json={"regenerate": first["message"]["parent_id"], "session_id": session_id})
    say(chat, "z")
    one = chat.get(f"/api/sessions/{session_id}/export").json()
    every = chat.get("/api/sessions/export").json()
    assert (len(one["sessions"]), len(every["sessions"])) == (1, 2)
    with httpx.Client(base_url=chat.base_url, headers={"authorization": "Bearer b"}, timeout=20) as stranger:
        assert stranger.get("/api/sessions/export").json()["sessions"] == []
        imported = stranger.post("/api/sessions/import", json={"document": one}).json()["sessions"]
        assert [each["title"] for each in imported] == ["a😀"]
        copy = session(stranger, imported[0]["id"])
        original = session(chat, session_id)
        assert [message["content"] for message in copy["messages"]] == [m["content"] for m in original["messages"]]
        assert {m["id"] for m in copy["messages"]}.isdisjoint(m["id"] for m in original["messages"])
        assert copy["settings"] == {"system": "be brief "}
        answer = say(stranger, "b", session_id=copy["id"])
        assert answer["message"]["content"] == "be brief a\x00😀be brief a\x00😀b"
    refused(chat.get("/api/sessions/conv_none/export"), 404, "session_id")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"format": "other"}, "document.format"),
        ({"version": 2}, "document.version"),
        ({"sessions": [{"messages": [{"id": "a", "role": "user"}]}]}, "document.sessions[0].messages[0].content"),
        ({"sessions": [{"head_id": "b"}]}, "document.sessions[0].head_id"),
    ],
    ids=str,
)
def test_a_wrong_document_is_refused_as_a_whole(chat: httpx.Client, change: dict[str, Any], param: str) -> None:
    document = {"format": "tinycluster.sessions", "version": 1, "sessions": [{"title": "t"}]} | change
    refused(chat.post("/api/sessions/import", json={"document": document}), 400, param)
    assert chat.get("/api/sessions").json()["sessions"] == []


@pytest.mark.parametrize(
    "message",
    [
        {"id": "a", "role": "tool", "content": "x"},
        {"id": "a", "role": "user", "content": "x", "item": {"type": "message"}},
        {"id": "a", "role": "user", "content": "x", "item": {"type": "function_call_output", "call_id": 5}},
        {"id": "a", "role": "user", "content": "x", "item": {"type": "message", "role": "user", "content": [5]}},
    ],
    ids=str,
)
def test_what_was_imported_and_makes_no_sense_cannot_be_answered(chat: httpx.Client, message: dict[str, Any]) -> None:
    document = {
        "format": "tinycluster.sessions",
        "version": 1,
        "sessions": [{"head_id": "a", "messages": [message]}],
    }
    imported = chat.post("/api/sessions/import", json={"document": document}).json()["sessions"][0]
    refused(chat.post("/api/chat", json={"input": "b", "session_id": imported["id"]}), 400, "input")
    assert len(session(chat, imported["id"])["messages"]) == 1


def test_settings_are_each_users_own(chat: httpx.Client) -> None:
    assert chat.get("/api/settings").json() == {}
    assert chat.put("/api/settings", json={"theme": "dark", "deep": [{"a": None}]}).json()["theme"] == "dark"
    assert chat.get("/api/settings").json() == {"theme": "dark", "deep": [{"a": None}]}
    with httpx.Client(base_url=chat.base_url, headers={"authorization": "Bearer b"}, timeout=20) as stranger:
        assert stranger.get("/api/settings").json() == {}
    refused(chat.put("/api/settings", json={"x": "y" * 2**16}), 400)
    refused(chat.put("/api/settings", json=[]), 400)
    refused(chat.patch(f"/api/sessions/{say(chat, 'a')['session_id']}", json={"settings": {"x": "y" * 2**16}}), 400)


def test_deep_objects_are_stored_or_refused(chat: httpx.Client) -> None:
    session_id = say(chat, "a")["session_id"]
    for depth in (50, 500, 900, 1000, 2000, 5000, 10_000, 30_000):
        deep = ('{"a":' * depth + "1" + "}" * depth).encode()
        document = b'{"format": "tinycluster.sessions", "version": 1, "sessions": [{"settings": %b}]}' % deep
        for method, path, body in (
            ("PUT", "/api/settings", deep),
            ("PATCH", f"/api/sessions/{session_id}", b'{"settings": %b}' % deep),
            ("POST", "/api/sessions/import", b'{"document": %b}' % document),
        ):
            answer = chat.request(method, path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400), (depth, path, answer.text)
        for path in ("/api/settings", f"/api/sessions/{session_id}", "/api/sessions/export"):
            assert chat.get(path).status_code == 200, (depth, path)
