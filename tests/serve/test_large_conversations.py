"""Large conversations delay nobody else: they are read and written by threads, or refused before that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.serve.chatting import refused, say, session
from tests.serve.fake_engine import FakeEngine, WholeChat
from tests.serve.stored_server import stored_server
from tinycluster.serve import json_pieces, responses, responses_prompt, sessions_turn

TEXT = "x" * 10_000
Record = Callable[[ModuleType, str], list[str]]


@pytest.fixture(scope="module")
def chat() -> Iterator[httpx.Client]:
    engine = FakeEngine(tokenizer=WholeChat(), max_model_len=1_000_000)
    with stored_server(engine=engine) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """record(module, function) -> the names of the threads that call it from then on."""

    def start(module: ModuleType, name: str) -> list[str]:
        threads: list[str] = []
        original = getattr(module, name)

        def recorded(*given: Any) -> Any:
            threads.append(threading.current_thread().name)
            return original(*given)

        monkeypatch.setattr(module, name, recorded)
        return threads

    return start


def conversation(chat: httpx.Client, num_messages: int, text: str = TEXT) -> str:
    """Its id. It ends with an assistant's message."""
    items = [{"role": role, "content": text} for role in ("user", "assistant") for _ in range(num_messages // 2)]
    answer = chat.post("/v1/conversations", json={"items": items})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def answers_about(chat: httpx.Client, session_id: str) -> list[httpx.Response]:
    api, v1 = f"/api/sessions/{session_id}", f"/v1/conversations/{session_id}/items"
    return [
        chat.get(api),
        chat.patch(api, json={"title": "t"}),
        chat.post(f"{api}/fork", json={}),
        chat.get(v1, params={"order": "asc"}),
    ]


def test_a_large_conversation_is_written_by_threads_and_in_pieces(chat: httpx.Client, record: Record) -> None:
    session_id = conversation(chat, 20)
    threads = record(json_pieces, "pieces_of")
    shown, renamed, forked, listed = answers_about(chat, session_id)
    exported = chat.get(f"/api/sessions/{session_id}/export")
    assert len(threads) == 5
    assert "http" not in threads
    for answer in (shown, renamed, forked, exported):
        document = answer.json()
        messages = document["sessions"][0]["messages"] if answer is exported else document["messages"]
        assert [message["content"] for message in messages] == [TEXT] * 20
        assert answer.headers["content-length"] == str(len(answer.content))
        assert answer.headers["content-type"] == "application/json"
    assert [item["content"][0]["text"] for item in listed.json()["data"]] == [TEXT] * 20
    added = chat.post(f"/v1/conversations/{session_id}/items", json={"items": [{"role": "user", "content": TEXT * 8}]})
    assert added.json()["data"][0]["content"][0]["text"] == TEXT * 8
    assert len(threads) == 6


def test_a_small_conversation_is_worth_no_thread(chat: httpx.Client, record: Record) -> None:
    session_id = conversation(chat, 2, "a")
    threads = record(json_pieces, "pieces_of")
    prepared = record(sessions_turn, "messages_of")
    for answer in answers_about(chat, session_id):
        assert answer.status_code == 200
    say(chat, "b", session_id=session_id)
    assert threads == []
    assert prepared == ["http"]


def test_a_large_conversation_is_prepared_by_a_thread(chat: httpx.Client, record: Record) -> None:
    session_id = conversation(chat, 20)
    prepared, items = record(sessions_turn, "messages_of"), record(responses, "item_of")
    say(chat, "b", session_id=session_id)
    body = {"input": "c", "conversation": session_id}
    answer = chat.post("/v1/responses", json=body).json()
    # The prompt and its repetition, and the responses' own words.
    assert len(answer["output"][0]["content"][0]["text"]) == 2 * (20 * len(TEXT) + 1) + 1
    assert len(prepared) == 1
    assert len(items) == 22
    assert "http" not in {*prepared, *items}
    threads = record(json_pieces, "pieces_of")
    listed = chat.get(f"/v1/responses/{answer['id']}/input_items", params={"limit": 1}).json()
    assert [item["content"][0]["text"] for item in listed["data"]] == ["c"]
    assert "http" not in threads
    assert len(threads) == 1


def test_what_no_model_could_read_is_refused_before_it_is_prepared(
    chat: httpx.Client, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = conversation(chat, 20)
    monkeypatch.setattr(sessions_turn, "LONGEST_TOKEN_CHARS", 0.2)
    monkeypatch.setattr(responses_prompt, "MAX_CONTEXT_BYTES", 20 * len(TEXT) - 1)
    prepared, items = record(sessions_turn, "messages_of"), record(responses, "item_of")
    code = "context_length_exceeded"
    message = refused(chat.post("/api/chat", json={"input": "a", "session_id": session_id}), 400, "input", code)
    assert "200001 characters" in message
    refused(chat.post("/v1/responses", json={"input": "a", "conversation": session_id}), 400, "input", code)
    assert prepared == items == []
    assert len(session(chat, session_id)["messages"]) == 20


def test_a_title_is_made_for_new_sessions_only(chat: httpx.Client, record: Record) -> None:
    titles = record(sessions_turn, "title_of")
    session_id = say(chat, "a\nb")["session_id"]
    say(chat, "c", session_id=session_id)
    assert len(titles) == 1
    assert session(chat, session_id)["title"] == "a"
