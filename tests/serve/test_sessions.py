"""The session API over real HTTP: turns, branches, repetition, limits, and what one client finds of another's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.serve.chatting import all_events, refused, say, session, text_of
from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tinycluster.serve import sessions_turn


def test_a_turn_is_streamed_from_its_start_to_its_stored_end(chat: httpx.Client) -> None:
    events = all_events(chat.post("/api/chat", json={"input": "héllo 😀\nmore", "max_tokens": 100, "seed": 7}))
    start, done = events[0], events[-1]
    assert [event.kind for event in (start, done)] == ["start", "done"]
    assert {event.kind for event in events[1:-1]} == {"progress", "delta"}
    assert start.data["session"]["title"] == "héllo 😀"
    user, answer = start.data["message"], start.data["answer"]
    assert (user["role"], user["content"], user["parent_id"], user["state"]) == (
        "user",
        "héllo 😀\nmore",
        None,
        "complete",
    )
    assert (answer["role"], answer["parent_id"], answer["state"], answer["content"]) == (
        "assistant",
        user["id"],
        "pending",
        "",
    )
    assert text_of(events) == "7:héllo 😀\nmore"
    message = done.data["message"]
    assert message["content"] == text_of(events)
    assert (message["state"], message["finish_reason"], message["model"]) == ("complete", "stop", "fake")
    assert message["parameters"] == {"max_tokens": 100, "seed": 7}
    assert message["usage"]["prompt_tokens"] == len("héllo 😀\nmore".encode())
    assert message["usage"]["completion_tokens"] == len(message["content"].encode())
    assert message["usage"]["cached_tokens"] == 2
    assert message["usage"]["ttft_ms"] > 0
    assert message["usage"]["tokens_per_s"] > 0
    stored = session(chat, start.data["session"]["id"])
    assert stored["messages"] == [user, message]
    assert stored["head_id"] == message["id"]


def test_every_delta_says_how_many_characters_there_are_so_far(chat: httpx.Client) -> None:
    events = all_events(chat.post("/api/chat", json={"input": "e\u0301😀\r\nx"}))
    deltas = [event for event in events if event.kind == "delta"]
    so_far = 0
    for delta in deltas:
        so_far += len(delta.data["text"])
        assert delta.id == f"{events[0].data['answer']['id']}/{so_far}"
    assert text_of(events) == "e\u0301😀\r\nx"


def test_a_conversation_goes_on_where_it_was(chat: httpx.Client) -> None:
    first = say(chat, "a")
    second = say(chat, "b", session_id=first["session_id"])
    assert (first["message"]["content"], second["message"]["content"]) == ("a", "aab")
    shown = session(chat, first["session_id"])
    assert [message["content"] for message in shown["messages"]] == ["a", "a", "b", "aab"]
    assert [message["parent_id"] for message in shown["messages"]][1:] == [m["id"] for m in shown["messages"]][:-1]


def test_edits_and_regenerations_are_branches(chat: httpx.Client) -> None:
    first = say(chat, "a")
    session_id = first["session_id"]
    user_id = first["message"]["parent_id"]
    again = chat.post("/api/chat", json={"regenerate": user_id, "session_id": session_id, "stream": False}).json()
    assert (again["message"]["parent_id"], again["message"]["content"]) == (user_id, "a")
    assert again["message"]["id"] != first["message"]["id"]
    on_first = say(chat, "b", session_id=session_id, parent_id=first["message"]["id"])
    edited = say(chat, "c", session_id=session_id, parent_id=None)
    assert (on_first["message"]["content"], edited["message"]["content"]) == ("aab", "c")
    shown = session(chat, session_id)
    assert shown["head_id"] == edited["message"]["id"]
    assert len([message for message in shown["messages"] if message["parent_id"] is None]) == 2
    assert len([message for message in shown["messages"] if message["parent_id"] == user_id]) == 2


def test_a_new_answer_starts_with_no_message_of_the_user(chat: httpx.Client) -> None:
    first = say(chat, "a")
    body = {"regenerate": first["message"]["parent_id"], "session_id": first["session_id"]}
    events = all_events(chat.post("/api/chat", json=body))
    assert events[0].data["message"] is None
    assert events[0].data["answer"]["parent_id"] == first["message"]["parent_id"]


def test_the_system_prompt_comes_from_the_session_or_the_turn(chat: httpx.Client) -> None:
    first = say(chat, "a", system="S1 ")
    session_id = first["session_id"]
    assert first["message"]["content"] == "S1 a"
    assert session(chat, session_id)["settings"] == {"system": "S1 "}
    other = say(chat, "b", session_id=session_id, parent_id=None, system="S2 ")
    assert other["message"]["content"] == "S2 b"
    chat.patch(f"/api/sessions/{session_id}", json={"settings": {"system": "S3 ", "more": [1]}})
    assert say(chat, "c", session_id=session_id, parent_id=None)["message"]["content"] == "S3 c"
    assert say(chat, "d", session_id=session_id, parent_id=None, system="")["message"]["content"] == "d"


def test_the_same_message_id_gets_the_same_answer(chat: httpx.Client) -> None:
    first = say(chat, "a", message_id="mine-1")
    for fields in ({}, {"session_id": first["session_id"]}):
        assert say(chat, "a", message_id="mine-1", **fields) == first
    events = all_events(chat.post("/api/chat", json={"input": "a", "message_id": "mine-1"}))
    assert events[0].data["message"]["id"] == "mine-1"
    assert text_of(events) == "a"
    assert events[-1].data["message"] == first["message"]
    assert len(session(chat, first["session_id"])["messages"]) == 2
    assert len(chat.get("/api/sessions").json()["sessions"]) == 1


def test_a_message_id_is_good_for_one_message(chat: httpx.Client) -> None:
    first = say(chat, "a", message_id="mine-1")
    refused(chat.post("/api/chat", json={"input": "b", "message_id": "mine-1"}), 409, "message_id")
    other = say(chat, "b")["session_id"]
    body = {"input": "a", "message_id": "mine-1", "session_id": other}
    refused(chat.post("/api/chat", json=body), 400, "message_id")
    body = {"input": "a", "message_id": first["message"]["id"]}
    refused(chat.post("/api/chat", json=body), 400, "message_id")
    # Another client's ids are its own.
    with httpx.Client(base_url=chat.base_url, headers={"authorization": "Bearer b"}, timeout=20) as stranger:
        assert say(stranger, "b", message_id="mine-1")["message"]["content"] == "b"


def test_requests_with_one_message_id_at_once_are_one_turn(start_server: StartServer) -> None:
    gate = threading.Semaphore(0)
    engine = FakeEngine(gate=gate)
    with httpx.Client(base_url=start_server(engine), timeout=20) as client, ThreadPoolExecutor(8) as threads:
        body = {"input": "abcdef", "message_id": "once"}
        asked = [threads.submit(client.post, "/api/chat", json=body) for _ in range(8)]
        while not engine.submitted:
            threading.Event().wait(0.001)
        gate.release(100)
        streams = [all_events(future.result()) for future in asked]
        assert len({events[-1].data["message"]["id"] for events in streams}) == 1
        assert [text_of(events) for events in streams] == ["abcdef"] * 8
        assert len(engine.submitted) == 1
        shown = session(client, streams[0][0].data["session"]["id"])
        assert len(shown["messages"]) == 2


def test_what_the_engine_refuses_is_not_stored(chat: httpx.Client) -> None:
    refused(chat.post("/api/chat", json={"input": "full", "message_id": "m"}), 429, code="queue_full")
    assert chat.get("/api/sessions").json() == {"sessions": [], "has_more": False, "next": None}
    first = say(chat, "f", message_id="n")
    body = {"input": "ull", "session_id": first["session_id"], "parent_id": None, "system": "f", "message_id": "m"}
    refused(chat.post("/api/chat", json=body), 429, code="queue_full")
    shown = session(chat, first["session_id"])
    assert len(shown["messages"]) == 2
    assert shown["head_id"] == first["message"]["id"]
    # The id is free for the next try.
    assert say(chat, "x", message_id="m")["message"]["content"] == "x"


def test_a_failing_engine_leaves_an_interrupted_answer(chat: httpx.Client) -> None:
    events = all_events(chat.post("/api/chat", json={"input": "lost"}))
    assert [event.kind for event in events] == ["start", "progress", "delta", "error"]
    assert events[-1].data["error"]["message"] == "rank 1 was lost"
    user, answer = session(chat, events[0].data["session"]["id"])["messages"]
    assert (user["content"], answer["state"], answer["content"]) == ("lost", "interrupted", "l")
    answer = chat.post("/api/chat", json={"input": "late at once", "stream": False})
    refused(answer, 408, code="deadline_exceeded")


def test_a_bug_tells_nothing_but_that_there_is_one(chat: httpx.Client) -> None:
    events = all_events(chat.post("/api/chat", json={"input": "bug"}))
    assert events[-1].kind == "error"
    assert events[-1].data["error"]["code"] == "internal_error"
    assert session(chat, events[0].data["session"]["id"])["messages"][1]["state"] == "interrupted"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": 5}, "input"),
        ({"input": "a", "regenerate": "m", "session_id": "s"}, "input"),
        ({"regenerate": "m"}, "session_id"),
        ({"input": "a", "parent_id": "m"}, "session_id"),
        ({"regenerate": "m", "session_id": "s", "message_id": "n"}, "message_id"),
        ({"regenerate": "m", "session_id": "s", "parent_id": "n"}, "parent_id"),
        ({"input": "a", "message_id": "a/b"}, "message_id"),
        ({"input": "a", "message_id": "a" * 65}, "message_id"),
        # Clients would take these out of a path, and delete the whole conversation instead of one item.
        ({"input": "a", "message_id": "."}, "message_id"),
        ({"input": "a", "message_id": ".."}, "message_id"),
        ({"input": "a", "session_id": "a b"}, "session_id"),
        ({"input": "a", "temperature": 3}, "temperature"),
        ({"input": "a", "top_k": "1"}, "top_k"),
        ({"input": "a", "max_tokens": 0}, "max_tokens"),
        ({"input": "a", "n": 2}, "n"),
        ({"input": "a", "tools": [{}]}, "tools"),
        ({"input": "a", "messages": []}, "messages"),
        ({"input": "a", "stream": 1}, "stream"),
        ({"input": "a", "stream_options": {}}, "stream_options"),
        ({"input": "a", "logprobs": True}, "logprobs"),
        ({"input": "a", "system": ["x"]}, "system"),
        ({"input": "a" * 2000}, "input"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(chat: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(chat.post("/api/chat", json=fields), 400, param)
    assert chat.get("/api/sessions").json()["sessions"] == []


def test_a_prompt_that_is_too_long_is_refused_with_all_that_came_before(chat: httpx.Client) -> None:
    first = say(chat, "a" * 400)
    body = {"input": "b" * 250, "session_id": first["session_id"]}
    refused(chat.post("/api/chat", json=body), 400, "input", "context_length_exceeded")
    assert len(session(chat, first["session_id"])["messages"]) == 2


def test_a_path_has_a_largest_number_of_messages(chat: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_turn, "MAX_PATH_MESSAGES", 4)
    first = say(chat, "a")
    say(chat, "b", session_id=first["session_id"])
    body = {"input": "c", "session_id": first["session_id"]}
    refused(chat.post("/api/chat", json=body), 400, "input", "context_length_exceeded")
    say(chat, "c", session_id=first["session_id"], parent_id=first["message"]["id"])


def test_an_unknown_model_is_a_404_before_anything_is_stored(chat: httpx.Client) -> None:
    refused(chat.post("/api/chat", json={"input": "a", "model": "other"}), 404, "model", "model_not_found")
    assert chat.get("/api/sessions").json()["sessions"] == []


def test_a_session_keeps_its_model(start_server: StartServer) -> None:
    with httpx.Client(base_url=start_server(FakeEngine(), FakeEngine(name="other")), timeout=20) as client:
        refused(client.post("/api/chat", json={"input": "a"}), 400, "model")
        first = say(client, "a", model="other")
        assert say(client, "b", session_id=first["session_id"])["message"]["model"] == "other"
        client.patch(f"/api/sessions/{first['session_id']}", json={"model": "fake"})
        assert say(client, "c", session_id=first["session_id"])["message"]["model"] == "fake"


def test_nothing_of_another_client_is_found_and_ids_do_not_mix(chat: httpx.Client) -> None:
    mine = say(chat, "a")
    session_id, answer_id = mine["session_id"], mine["message"]["id"]
    other = say(chat, "b")
    with httpx.Client(base_url=chat.base_url, headers={"authorization": "Bearer b"}, timeout=20) as stranger:
        assert stranger.get("/api/sessions").json()["sessions"] == []
        for client, place in ((stranger, session_id), (chat, "conv_none"), (chat, "no id at all")):
            missing = [
                client.get(f"/api/sessions/{place}"),
                client.patch(f"/api/sessions/{place}", json={"title": "x"}),
                client.delete(f"/api/sessions/{place}"),
                client.post(f"/api/sessions/{place}/fork", json={}),
                client.get(f"/api/sessions/{place}/messages/{answer_id}/events"),
                client.post(f"/api/sessions/{place}/messages/{answer_id}/stop"),
            ]
            if " " not in place:
                missing.append(client.post("/api/chat", json={"input": "a", "session_id": place}))
                body = {"session_id": place, "regenerate": mine["message"]["parent_id"]}
                missing.append(client.post("/api/chat", json=body))
            messages = {refused(answer, 404, code="not_found") for answer in missing}
            assert messages == {"There is no such session"}
    for path in ("events", "stop"):
        method = "GET" if path == "events" else "POST"
        for message_id in (other["message"]["id"], mine["message"]["parent_id"], "msg_none"):
            refused(chat.request(method, f"/api/sessions/{session_id}/messages/{message_id}/{path}"), 404)
    for fields in ({"parent_id": other["message"]["id"]}, {"parent_id": "msg_none"}):
        refused(chat.post("/api/chat", json={"input": "a", "session_id": session_id, **fields}), 404, "parent_id")
    body = {"regenerate": other["message"]["parent_id"], "session_id": session_id}
    refused(chat.post("/api/chat", json=body), 404, "regenerate")
    body = {"regenerate": answer_id, "session_id": session_id}
    refused(chat.post("/api/chat", json=body), 400, "regenerate")
    assert len(session(chat, session_id)["messages"]) == 2


def test_the_engine_is_told_of_the_session(start_server: StartServer) -> None:
    engine = FakeEngine()
    with httpx.Client(base_url=start_server(engine), timeout=20) as client:
        first = say(client, "a", priority=3, cache_salt="s")
        say(client, "b", session_id=first["session_id"])
    assert [options.session_id for options in engine.options] == [first["session_id"]] * 2
    assert engine.options[0].priority == 3


def test_texts_of_any_characters_are_kept(chat: httpx.Client) -> None:
    text = "\x00\x1b[31m\u202e\u2028\ufdd0😀e\u0301\r\n</script>"
    first = say(chat, text)
    assert first["message"]["content"] == text
    assert [message["content"] for message in session(chat, first["session_id"])["messages"]] == [text, text]
