"""A connection that breaks at any place, as often as it likes, loses no character of an answer and repeats none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.chatting import Event, all_events, events_of, refused, say, session, text_of
from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.serve.scripted_run import settled, started
from tests.serve.virtual_time import in_virtual_time
from tinycluster.serve.answer_events import Stored, live, stored
from tinycluster.serve.errors import HttpError, not_found
from tinycluster.serve.growing_text import GrowingText
from tinycluster.serve.stream import Write

PIECES = [
    "e",
    "\u0301",
    "😀",
    "👨\u200d👩",
    "\r",
    "\n",
    "\r\n",
    "\x00",
    "\u2028",
    "ab",
    "\ud7ff",
    "\U0010ffff",
    ": x\n\n",
]
Texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), min_size=1, max_size=12)


def parsed(writes: list[Write]) -> list[Event]:
    return list(events_of("".join(write.content.decode() for write in writes).split("\n")))


async def some(writes: AsyncGenerator[Write], count: int) -> list[Write]:
    """The first `count` writes, as far as they come without waiting; then the connection is gone."""
    taken: list[Write] = []
    try:
        while len(taken) < count:
            pending = asyncio.ensure_future(anext(writes))
            await settled()
            if not pending.done():
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
                break
            taken.append(pending.result())
            if taken[-1].is_last:
                break
    finally:
        await writes.aclose()
    return taken


@settings(max_examples=150, deadline=None)
@given(pieces=Texts, cuts=st.lists(st.integers(0, 6), max_size=12))
def test_every_cut_of_a_live_answer_resumes_where_it_was(pieces: list[str], cuts: list[int]) -> None:
    """Between the cuts the answer grows; after the end the storage gives the rest."""

    async def run() -> None:
        answer, generation, kept = started()
        got, offset = "", 0
        waiting = [*pieces]
        for cut in [*cuts, *[3] * len(pieces)]:
            if waiting:
                text = waiting.pop(0)
                generation.feed(text, None if waiting else "stop")
                await settled()
            for event in parsed(await some(live(answer, offset), cut)):
                if event.kind == "delta":
                    got += event.data["text"]
                    assert event.id is not None
                    offset = int(event.id.rpartition("/")[2])
                    assert got == "".join(pieces)[:offset]
        ending = kept.endings[0]
        assert ending.text == "".join(pieces)

        async def look() -> Stored:
            return Stored(ending.text, "{}")

        got += text_of(parsed([write async for write in stored("msg_1", look, lambda: None, offset)]))
        assert got == ending.text

    in_virtual_time(run())


@settings(max_examples=100, deadline=None)
@given(pieces=Texts, offset=st.integers(0, 40))
def test_a_text_is_the_same_from_every_character_on(pieces: list[str], offset: int) -> None:
    text, whole = GrowingText(), ""
    for piece in pieces:
        text.append(piece)
        whole += piece
        assert text.num_chars == len(whole)
        assert text.since(offset) == whole[offset:]
    assert str(text) == whole


def test_an_answer_of_another_process_is_followed_in_the_storage() -> None:
    async def run() -> list[Event]:
        steps = iter([("", None), ("ab", None), ("ab", None), ("abcd", None), ("abcde", '{"message": 1}')])

        async def look() -> Stored:
            return Stored(*next(steps))

        return parsed([write async for write in stored("msg_1", look, lambda: None, 1)])

    events = in_virtual_time(run())
    assert [event.data.get("text") for event in events[:-2]] == ["b", "cd", "e"]
    assert [event.id for event in events[:-2]] == ["msg_1/2", "msg_1/4", "msg_1/5"]
    assert events[-2].kind == "done"


def test_an_answer_that_begins_here_meanwhile_is_followed_live() -> None:
    async def run() -> str:
        answer, generation, _ = started()
        runs = iter([None, answer])

        async def look() -> Stored:
            return Stored("", None)

        generation.feed("abc", "stop")
        return text_of(parsed([write async for write in stored("msg_1", look, lambda: next(runs), 0)]))

    assert in_virtual_time(run()) == "abc"


def test_an_answer_that_vanishes_ends_with_an_error() -> None:
    async def run() -> None:
        async def look() -> Stored:
            raise not_found("message", "message_id")

        with pytest.raises(HttpError):
            await anext(stored("msg_1", look, lambda: None, 0))

    in_virtual_time(run())


def first_bytes(client: httpx.Client, path: str, num_bytes: int) -> bytes:
    """Of a body; then the connection is closed."""
    received = b""
    with client.stream("GET", path) as answer:
        for part in answer.iter_bytes():
            received += part
            if len(received) >= num_bytes:
                break
    return received[:num_bytes]


def test_every_byte_at_which_a_stream_may_break_is_a_place_to_resume_from(start_server: StartServer) -> None:
    """Over HTTP, from the storage: a client takes whole events only."""
    url = start_server(FakeEngine(step_chars=2))
    text = 'é😀\r\n"e\u0301\n\nx'
    with httpx.Client(base_url=url, timeout=20) as client:
        first = say(client, text)
        path = f"/api/sessions/{first['session_id']}/messages/{first['message']['id']}/events"
        whole = client.get(path).content
        end_of_text = whole.index(b"event: done")
        for cut in range(0, end_of_text + 40, 3):
            events = list(events_of(first_bytes(client, path, cut).decode().split("\n")[:-1]))
            last_id = next((event.id for event in reversed(events) if event.id is not None), None)
            headers = {} if last_id is None else {"last-event-id": last_id}
            rest = all_events(client.get(path, headers=headers))
            assert text_of(events) + text_of(rest) == text, cut


@pytest.fixture
def slow(start_server: StartServer) -> Iterator[tuple[httpx.Client, threading.Semaphore, FakeEngine]]:
    """A server whose answers go on one character for every release of the semaphore."""
    gate = threading.Semaphore(0)
    engine = FakeEngine(gate=gate)
    with httpx.Client(base_url=start_server(engine), timeout=20) as client:
        yield client, gate, engine


def first_events(client: httpx.Client, text: str, num_deltas: int, gate: threading.Semaphore) -> list[Event]:
    """A turn of which the client reads so many deltas and then leaves."""
    events: list[Event] = []
    # The first of the steps computes half of the prompt and waits for nothing.
    gate.release(num_deltas)
    with client.stream("POST", "/api/chat", json={"input": text}) as answer:
        for event in events_of(answer.iter_lines()):
            events.append(event)
            if len(text_of(events)) == num_deltas:
                return events
    raise AssertionError(events)


def place_of(events: list[Event]) -> str:
    start: Any = events[0].data
    return f"/api/sessions/{start['session']['id']}/messages/{start['answer']['id']}"


def test_an_answer_goes_on_without_its_client_and_is_resumed_live(slow: Any) -> None:
    client, gate, engine = slow
    events = first_events(client, "abcdefgh", 3, gate)
    assert text_of(events) == "abc"
    with client.stream("GET", f"{place_of(events)}/events", headers={"last-event-id": events[-1].id}) as answer:
        following = events_of(answer.iter_lines())
        gate.release(1)
        assert next(following).data == {"text": "d"}
        assert engine.num_running == 1
        gate.release(100)
        rest = list(following)
    assert text_of(rest) == "efgh"
    assert rest[-2].data["message"]["state"] == "complete"
    again = all_events(client.get(f"{place_of(events)}/events", params={"after": "5"}))
    assert text_of(again) == "fgh"


def test_many_follow_one_answer_from_their_own_places(slow: Any) -> None:
    client, gate, _ = slow
    events = first_events(client, "abcdefgh", 2, gate)
    got: dict[int, str] = {}

    def follow(offset: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=20) as own:
            answer = own.get(f"{place_of(events)}/events", params={"after": str(offset)})
            got[offset] = text_of(all_events(answer))

    followers = [threading.Thread(target=follow, args=(offset,)) for offset in range(10)]
    for follower in followers:
        follower.start()
    gate.release(100)
    for follower in followers:
        follower.join()
    assert got == {offset: "abcdefgh"[offset:] for offset in range(10)}


def test_a_session_shows_what_there_is_of_a_running_answer(slow: Any) -> None:
    client, gate, _ = slow
    events = first_events(client, "abcdefgh", 3, gate)
    answer = session(client, events[0].data["session"]["id"])["messages"][1]
    assert (answer["content"], answer["state"], answer["usage"]["completion_tokens"]) == ("abc", "streaming", 3)
    # Nothing can be built on it yet.
    body = {"input": "x", "session_id": events[0].data["session"]["id"]}
    refused(client.post("/api/chat", json=body), 409, code="answer_in_progress")
    gate.release(100)
    all_events(client.get(f"{place_of(events)}/events"))


def test_a_stopped_answer_is_complete_as_it_is(slow: Any) -> None:
    client, gate, engine = slow
    events = first_events(client, "abcdefgh", 3, gate)
    message = client.post(f"{place_of(events)}/stop").json()
    assert (message["content"], message["state"], message["finish_reason"]) == ("abc", "complete", "cancelled")
    assert engine.num_running == 0
    assert client.post(f"{place_of(events)}/stop").json() == message
    followed = all_events(client.get(f"{place_of(events)}/events"))
    assert (text_of(followed), followed[-1].data["message"]) == ("abc", message)


def test_a_deleted_session_ends_its_answers(slow: Any) -> None:
    client, gate, engine = slow
    events = first_events(client, "abcdefgh", 3, gate)
    session_id = events[0].data["session"]["id"]
    with client.stream("GET", f"{place_of(events)}/events") as answer:
        following = events_of(answer.iter_lines())
        while text_of([next(following)]) != "abc":
            pass
        assert client.delete(f"/api/sessions/{session_id}").status_code == 200
        rest = list(following)
    assert [event.kind for event in rest] == ["error", "message"]
    assert rest[0].data["error"]["code"] == "not_found"
    assert engine.num_running == 0
    refused(client.get(f"{place_of(events)}/events"), 404)


@pytest.mark.parametrize("last", ["x", "-1", "msg_other/3", "1/2/3", "٣", "9" * 13, "1.5"])
def test_a_place_that_is_none_is_refused(chat: httpx.Client, last: str) -> None:
    first = say(chat, "a")
    path = f"/api/sessions/{first['session_id']}/messages/{first['message']['id']}/events"
    refused(chat.get(path, params={"after": last}), 400, "after")
    if last.isascii():
        refused(chat.get(path, headers={"last-event-id": last}), 400, "Last-Event-ID")


def test_a_place_beyond_what_is_stored_gets_the_answer_as_it_is_kept(chat: httpx.Client) -> None:
    first = say(chat, "abc")
    path = f"/api/sessions/{first['session_id']}/messages/{first['message']['id']}/events"
    events = all_events(chat.get(path, params={"after": f"{first['message']['id']}/99"}))
    assert [event.kind for event in events] == ["done"]
    assert events[0].data["message"] == first["message"]
