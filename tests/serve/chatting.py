"""Events of the session API as clients read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import httpx

STREAM_END = "[DONE]"


class Event(NamedTuple):
    kind: str
    data: Any
    id: str | None = None


def events_of(lines: Iterable[str]) -> Iterator[Event]:
    """Each event as soon as its empty line has come; comments are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            assert name not in fields, line
            fields[name] = value
        elif fields:
            text = fields["data"]
            data = text if text == STREAM_END else json.loads(text)
            yield Event(fields.get("event", "message"), data, fields.get("id"))
            fields = {}


def all_events(answer: httpx.Response) -> list[Event]:
    """Of a whole stream, which ends as it should."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = list(events_of(answer.text.split("\n")))
    assert events[-1].data == STREAM_END
    assert [event.kind for event in events].count("done") + [event.kind for event in events].count("error") == 1
    return events[:-1]


def text_of(events: Iterable[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.kind == "delta")


def say(client: httpx.Client, text: str, **fields: Any) -> dict[str, Any]:
    """{session_id, message} of a turn that ends well."""
    answer = client.post("/api/chat", json={"input": text, "stream": False, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def session(client: httpx.Client, session_id: str) -> dict[str, Any]:
    answer = client.get(f"/api/sessions/{session_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert param is None or error["param"] == param, error
    assert code is None or error["code"] == code, error
    return str(error["message"])
