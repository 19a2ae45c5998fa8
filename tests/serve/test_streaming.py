"""Streams over real sockets: one write per engine step, and a client that leaves frees its blocks at once."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Message

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.generation import Delta
from tinycluster.serve import stream
from tinycluster.serve.choices import Choices
from tinycluster.serve.chunks import Chunks
from tinycluster.serve.stream import EventStream, Write, events

HEAD = {"id": "x", "created": 1, "model": "fake"}


class Scripted:
    """A generation that plays its deltas, each when its turn is set: choices with the same turns step together."""

    def __init__(self, deltas: list[Delta], turns: list[asyncio.Event]) -> None:
        self.deltas, self.turns, self.is_aborted = deltas, turns, False

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for delta, turn in zip(self.deltas, self.turns, strict=True):
            await turn.wait()
            yield delta

    def abort(self) -> None:
        self.is_aborted = True


def text_deltas(text: str) -> list[Delta]:
    return [Delta((ord(c),), c, "stop" if i == len(text) - 1 else None) for i, c in enumerate(text)]


@pytest.mark.parametrize("num_choices", [1, 3])
def test_all_choices_of_an_engine_step_go_out_in_one_write(num_choices: int) -> None:
    async def run() -> list[Write]:
        turns = [asyncio.Event() for _ in "abc"]
        choices = Choices([Scripted(text_deltas("abc"), turns) for _ in range(num_choices)], 5)
        writes = []
        turns[0].set()
        async for write in events(choices, Chunks("text_completion", HEAD, include_usage=False)):
            writes.append(write)
            if len(writes) < 3:
                turns[len(writes)].set()
        return writes

    writes = asyncio.run(run())
    assert [write.is_last for write in writes] == [False, False, True]
    for write, text in zip(writes, "abc", strict=True):
        lines = write.content.decode().removesuffix("data: [DONE]\n\n").strip().split("\n\n")
        parts = [json.loads(line[6:])["choices"][0] for line in lines]
        assert [part["text"] for part in parts if part["text"]] == [text] * num_choices
    assert writes[-1].content.endswith(b"\n\ndata: [DONE]\n\n")


def test_a_step_without_new_text_writes_nothing() -> None:
    async def run() -> list[Write]:
        turn = asyncio.Event()
        turn.set()
        deltas = [Delta((1,), ""), Delta((2,), "é"), Delta((3,), "", "stop")]
        choices = Choices([Scripted(deltas, [turn] * 3)], 1)
        return [write async for write in events(choices, Chunks("chat.completion", HEAD, include_usage=False))]

    writes = asyncio.run(run())
    assert [write.content.count(b"data: {") for write in writes] == [1, 1, 1]


@pytest.mark.parametrize("text", ['"', "\\", "\n\n", "data: x", "\x00", "é", "\u2028", "😀", "</script>"])
def test_every_text_survives_the_event_format(text: str) -> None:
    event = Chunks("chat.completion", HEAD, include_usage=False).delta(0, Delta((1,), text))
    assert event.endswith("\n\n")
    assert event.count("\n") == 2
    assert json.loads(event.removeprefix("data: "))["choices"][0]["delta"] == {"content": text}


def wait_for(condition: Any) -> None:
    """Poll a condition that another thread makes true; the test's timeout bounds the wait."""
    ended = threading.Event()
    while not condition():
        ended.wait(0.002)


def open_request(url: str, body: dict[str, Any]) -> socket.socket:
    """A raw connection with a request on its way."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname or "", address.port or 0))
    text = json.dumps(body)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(text)}"
    connection.sendall(f"{head}\r\n\r\n{text}".encode())
    return connection


@pytest.mark.parametrize("options", [{"stream": True}, {"stream": False}, {"stream": True, "n": 3}])
def test_a_client_that_leaves_frees_its_blocks(start_server: StartServer, options: dict[str, Any]) -> None:
    """Though no token comes that could not be sent."""
    engine = FakeEngine(gate=threading.Semaphore(0))
    connection = open_request(start_server(engine), {"prompt": "abcdef"} | options)
    wait_for(lambda: len(engine.running) == options.get("n", 1))
    if options["stream"]:
        assert connection.recv(1)
    connection.close()
    wait_for(lambda: not engine.running)


def test_a_finished_stream_holds_no_blocks_and_keeps_the_connection(start_server: StartServer) -> None:
    engine = FakeEngine()
    url = start_server(engine)
    with httpx.Client() as client:
        for _ in range(3):
            answer = client.post(url + "/v1/completions", json={"prompt": "abc", "stream": True})
            assert answer.text.endswith("data: [DONE]\n\n")
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-accel-buffering"] == "no"
    assert not engine.running


def test_comments_keep_a_silent_stream_alive_over_http(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.01)
    gate = threading.Semaphore(0)
    body = {"prompt": "ab", "stream": True}
    with httpx.stream("POST", start_server(FakeEngine(gate=gate)) + "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        # The first token may be late, too.
        assert '"a"' in next(line for line in lines if line.startswith("data: "))
        assert [next(lines), next(lines), next(lines)] == ["", ": keep-alive", ""]
        gate.release(9)
        rest = [line for line in lines if line and not line.startswith(":")]
    assert '"b"' in rest[0]
    assert rest[-1] == "data: [DONE]"


def test_the_end_of_a_stream_is_part_of_its_last_write() -> None:
    async def run() -> list[Message]:
        turn, never, sent = asyncio.Event(), asyncio.Event(), list[Message]()
        turn.set()

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            await never.wait()
            return {"type": "http.disconnect"}

        chunks = Chunks("text_completion", HEAD, include_usage=True)
        await EventStream(Choices([Scripted(text_deltas("abc"), [turn] * 3)], 1), chunks)(
            {"type": "http"}, receive, send
        )
        return sent

    start, *bodies = asyncio.run(run())
    assert start["type"] == "http.response.start"
    assert [body["more_body"] for body in bodies] == [True, True, False]
    assert b'"completion_tokens": 3' in bodies[-1]["body"]
    assert bodies[-1]["body"].endswith(b"\n\ndata: [DONE]\n\n")


def test_many_streams_get_their_own_text(start_server: StartServer) -> None:
    url = start_server(FakeEngine())

    async def ask(client: httpx.AsyncClient, number: int) -> str:
        answer = await client.post(url + "/v1/completions", json={"prompt": f"<{number}>", "stream": True})
        pieces = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
        return "".join(piece["choices"][0]["text"] for piece in pieces)

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(timeout=30) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(64)))

    assert asyncio.run(ask_all()) == [f"<{number}>" for number in range(64)]
