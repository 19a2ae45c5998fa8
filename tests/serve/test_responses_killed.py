"""Servers that are killed: what a client was told is complete is there afterwards, and nothing is there twice."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from tests.serve.stored_server import stored_process

NUM_CLIENTS = 4


class Teller(threading.Thread):
    """Says things in a conversation of its own until the server is gone; `told` are the answers that were complete."""

    def __init__(self, url: str, number: int, has_told: threading.Event) -> None:
        super().__init__()
        self._url, self._number, self._has_told = url, number, has_told
        self.conversation_id = ""
        self.asked: list[str] = []
        self.told: list[dict[str, Any]] = []

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self._url, timeout=20) as client:
                self.conversation_id = client.post("/v1/conversations", json={}).json()["id"]
                while True:
                    self._say(client, f"{self._number}.{len(self.asked)}")
        except httpx.TransportError:
            self._has_told.set()

    def _say(self, client: httpx.Client, text: str) -> None:
        self.asked.append(text)
        body = {"input": text, "conversation": self.conversation_id, "stream": len(self.asked) % 2 == 0}
        with client.stream("POST", "/v1/responses", json=body) as answer:
            if body["stream"]:
                for line in answer.iter_lines():
                    if line.startswith('data: {"type": "response.completed"'):
                        self.told.append(json.loads(line.removeprefix("data: "))["response"])
            else:
                self.told.append(json.loads(answer.read()))
        if len(self.told) >= 5:
            self._has_told.set()


def test_a_killed_server_has_every_answer_that_was_complete_once(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    with stored_process(f"sqlite:///{path}") as (process, url):
        has_told = [threading.Event() for _ in range(NUM_CLIENTS)]
        tellers = [Teller(url, number, event) for number, event in enumerate(has_told)]
        for teller in tellers:
            teller.start()
        for event in has_told:
            event.wait()
        process.kill()
        for teller in tellers:
            teller.join()
    assert sum(len(teller.told) for teller in tellers) >= NUM_CLIENTS * 5
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with stored_process(f"sqlite:///{path}") as (_, url), httpx.Client(base_url=url, timeout=20) as client:
        for teller in tellers:
            for response in teller.told:
                assert client.get(f"/v1/responses/{response['id']}").json() == response
            assert said(client, teller.conversation_id) in whole_turns(teller)


def said(client: httpx.Client, conversation_id: str) -> list[str]:
    texts: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {} if page["last_id"] is None else {"after": page["last_id"]}
        path = f"/v1/conversations/{conversation_id}/items"
        page = client.get(path, params={"order": "asc", "limit": 100, **after}).json()
        texts += [item["content"][0]["text"] for item in page["data"]]
    return texts


def whole_turns(teller: Teller) -> list[list[str]]:
    """Question and answer, which repeats it, of each turn that was told; the last one may be there untold."""
    told = teller.asked[: len(teller.told)]
    return [[text for asked in turns for text in (asked, asked)] for turns in (told, teller.asked)]


def test_what_a_killed_server_was_generating_has_failed(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'responses.db'}"
    with stored_process(database, "gated") as (process, url):
        made = httpx.post(f"{url}/v1/responses", json={"input": "abc", "background": True}).json()
        assert httpx.get(f"{url}/v1/responses/{made['id']}").json()["status"] == "in_progress"
        process.kill()
        process.wait()
    with stored_process(database) as (_, url):
        found = httpx.get(f"{url}/v1/responses/{made['id']}").json()
        assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
        body = {"input": "on", "previous_response_id": made["id"]}
        assert httpx.post(f"{url}/v1/responses", json=body).status_code == 200
