"""What stands in answers and chunks beside the text: usage, ids of tokens, progress, fingerprints, keep-alives."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tests.serve.virtual_time import in_virtual_time
from tinycluster.cluster.generation import Delta
from tinycluster.serve.choices import Choices
from tinycluster.serve.chunks import Chunks
from tinycluster.serve.stream import KEEP_ALIVE_S, EventStream

CHAT = "/v1/chat/completions"
ABCD = {"messages": [{"role": "user", "content": "abcd"}]}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    *events, end = response.text.strip().split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_usage_tells_cached_tokens_once_per_prompt(client: httpx.Client) -> None:
    usage = client.post("/v1/completions", json={"prompt": ["abcd", "efg", "h"], "n": 2}).json()["usage"]
    assert usage["prompt_tokens"] == 8
    assert usage["prompt_tokens_details"]["cached_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] == 24
    assert set(usage["completion_tokens_details"].values()) == {0}


def test_every_chunk_has_the_usage_so_far_if_asked_for(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(client.post(CHAT, json={**ABCD, "stream": True, "stream_options": options}))
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 1, 2, 3, 4, 4, 4]
    assert events[-1]["choices"] == []
    assert all(event["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 for event in events)


def test_the_usage_so_far_needs_include_usage(client: httpx.Client) -> None:
    body = {**ABCD, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    assert all("usage" not in event for event in events_of(client.post(CHAT, json=body)))


def test_token_ids_of_a_chat(client: httpx.Client) -> None:
    body = {**ABCD, "return_token_ids": True, "max_tokens": 3}
    answer = client.post(CHAT, json=body).json()
    assert answer["prompt_token_ids"] == list(b"abcd")
    assert answer["choices"][0]["token_ids"] == list(b"abc")
    first, *events = events_of(client.post(CHAT, json={**body, "stream": True}))
    assert first["prompt_token_ids"] == list(b"abcd")
    assert all("prompt_token_ids" not in event for event in events)
    assert [event["choices"][0].get("token_ids") for event in events] == [[97], [98], [99], None]


def test_token_ids_of_completions_belong_to_their_choice(client: httpx.Client) -> None:
    body = {"prompt": ["ab", "c"], "return_token_ids": True}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [list(b"ab"), list(b"c")]
    assert [choice["token_ids"] for choice in choices] == [list(b"ab"), list(b"c")]
    prompts: dict[int, list[int]] = {}
    for event in events_of(client.post("/v1/completions", json={**body, "stream": True})):
        (choice,) = event["choices"]
        if "prompt_token_ids" in choice:
            assert choice["index"] not in prompts
            prompts[choice["index"]] = choice["prompt_token_ids"]
    assert prompts == {0: list(b"ab"), 1: list(b"c")}


@pytest.mark.parametrize(("path", "body"), [(CHAT, ABCD), ("/v1/completions", {"prompt": "abcd"})])
def test_progress_comes_step_by_step_before_the_text(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    events = events_of(client.post(path, json={**body, "stream": True, "return_progress": True}))
    kinds = ["progress" if "prompt_progress" in event else "text" for event in events[path == CHAT :]]
    assert kinds == ["progress", "progress", *["text"] * 5]
    found = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert all(progress.pop("time_ms") >= 0 for progress in found)
    assert found == [{"total": 4, "cache": 2, "processed": processed} for processed in (2, 4)]


def test_progress_is_for_streams_and_on_request(client: httpx.Client) -> None:
    assert "prompt_progress" not in client.post(CHAT, json={**ABCD, "return_progress": True}).text
    assert "prompt_progress" not in client.post(CHAT, json={**ABCD, "stream": True}).text


def test_the_fingerprint_is_the_models_and_stands_in_every_chunk(start_server: StartServer) -> None:
    url = start_server(FakeEngine("one"), FakeEngine("two"))

    def fingerprint(model: str) -> str:
        return str(httpx.post(url + CHAT, json={**ABCD, "model": model}).json()["system_fingerprint"])

    assert fingerprint("one") == fingerprint("one") != fingerprint("two")
    events = events_of(httpx.post(url + CHAT, json={**ABCD, "model": "one", "stream": True}))
    assert {event["system_fingerprint"] for event in events} == {fingerprint("one")}


def test_a_message_has_the_fields_that_openais_schema_requires(client: httpx.Client) -> None:
    (choice,) = client.post(CHAT, json=ABCD).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "abcd", "refusal": None}
    assert choice["logprobs"] is None


def test_the_best_of_three_is_the_one_whose_tokens_are_most_likely(start_server: StartServer) -> None:
    # Later tokens of the fake engine are less likely, so the shortest answer wins: seed 7 is the choice's own.
    engine = FakeEngine()
    body = {"prompt": "ab", "best_of": 3, "seed": 7}
    answer = httpx.post(start_server(engine) + "/v1/completions", json=body).json()
    assert [(choice["index"], choice["text"], choice["logprobs"]) for choice in answer["choices"]] == [
        (0, "7:ab", None)
    ]
    texts = [f"{sampling.seed}:ab"[:16] for sampling in engine.submitted]
    assert len(texts) == 3
    assert answer["usage"]["completion_tokens"] == sum(map(len, texts))


def test_a_bearer_token_is_the_client_and_divides_the_cache(start_server: StartServer) -> None:
    engine = FakeEngine()
    url = start_server(engine) + CHAT
    for headers in (
        {},
        {"authorization": "Bearer key"},
        {"authorization": "bearer  key"},
        {"authorization": "Basic x"},
    ):
        httpx.post(url, json=ABCD, headers=headers)
    httpx.post(url, json={**ABCD, "cache_salt": "pepper"}, headers={"authorization": "Bearer key"})
    key = hashlib.sha256(b"key").hexdigest()
    assert [options.client for options in engine.options] == ["", key, key, "", key]
    assert [options.cache_salt for options in engine.options] == ["", key, key, "", f"{key}:pepper"]


@pytest.mark.parametrize(("num_kept", "kept"), [(2, "cd"), (4, "abcd"), (9, "abcd"), (-1, "bcd")])
def test_a_truncated_prompt_keeps_its_end(start_server: StartServer, num_kept: int, kept: str) -> None:
    url = start_server(FakeEngine(max_model_len=10))
    body = {"truncate_prompt_tokens": num_kept, "max_tokens": 7}
    answer = httpx.post(url + CHAT, json={**ABCD, **body}).json()
    assert answer["choices"][0]["message"]["content"] == kept
    answer = httpx.post(url + "/v1/completions", json={"prompt": "abcd", "echo": True, **body}).json()
    assert answer["choices"][0]["text"] == kept * 2


def test_a_prompt_is_never_cut_to_more_than_the_context(client: httpx.Client) -> None:
    answer = client.post(CHAT, json={**ABCD, "truncate_prompt_tokens": 1001})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "truncate_prompt_tokens")


class Slow:
    """A generation whose deltas come at given times of the loop's clock."""

    def __init__(self, times_s: list[float]) -> None:
        self._times_s = times_s

    async def __aiter__(self) -> AsyncIterator[Delta]:
        began_s = asyncio.get_running_loop().time()
        for index, time_s in enumerate(self._times_s):
            await asyncio.sleep(began_s + time_s - asyncio.get_running_loop().time())
            yield Delta((97,), "a", "stop" if index == len(self._times_s) - 1 else None)

    def abort(self) -> None:
        pass


Sender = Callable[[Message], Any]


def sent_by(stream: EventStream) -> list[tuple[float, Message]]:
    """Every message with its time, in virtual time."""

    async def run() -> list[tuple[float, Message]]:
        loop, sent, never = asyncio.get_running_loop(), list[tuple[float, Message]](), asyncio.Event()
        began_s = loop.time()

        async def send(message: Message) -> None:
            sent.append((round(loop.time() - began_s, 3), message))

        async def receive() -> Message:
            await never.wait()
            return {"type": "http.disconnect"}

        await stream({"type": "http"}, receive, send)
        return sent

    return in_virtual_time(run())


def stream_of(times_s: list[float]) -> EventStream:
    chunks = Chunks("text_completion", {"id": "x", "created": 1, "model": "fake"}, include_usage=False)
    return EventStream(Choices([Slow(times_s)], 1), chunks)


def comment_times(sent: list[tuple[float, Message]]) -> list[float]:
    return [time_s for time_s, message in sent if message.get("body", b"").startswith(b":")]


def test_a_stream_that_is_silent_gets_comments_even_before_its_first_token() -> None:
    sent = sent_by(stream_of([3.5 * KEEP_ALIVE_S, 3.6 * KEEP_ALIVE_S, 9.5 * KEEP_ALIVE_S]))
    assert sent[0] == (KEEP_ALIVE_S, sent[0][1])
    assert sent[0][1]["type"] == "http.response.start"
    assert [message["type"] for _, message in sent[1:]] == ["http.response.body"] * (len(sent) - 1)
    assert comment_times(sent) == [KEEP_ALIVE_S * period for period in (1, 2, 3, 5, 6, 7, 8, 9)]
    assert [message["more_body"] for _, message in sent[1:]] == [True] * (len(sent) - 2) + [False]


def test_a_stream_that_flows_gets_no_comments() -> None:
    sent = sent_by(stream_of([KEEP_ALIVE_S * 0.9 * number for number in range(20)]))
    assert comment_times(sent) == []


class Lost(Slow):
    async def __aiter__(self) -> AsyncIterator[Delta]:
        async for delta in super().__aiter__():
            yield delta._replace(finish_reason="error")


def test_an_error_after_a_comment_is_an_event() -> None:
    chunks = Chunks("text_completion", {"id": "x", "created": 1, "model": "fake"}, include_usage=False)
    sent = sent_by(EventStream(Choices([Lost([2.5 * KEEP_ALIVE_S])], 1), chunks))
    assert [message["type"] for _, message in sent].count("http.response.start") == 1
    assert sent[0][1]["status"] == 200
    assert b'"service_unavailable"' in sent[-1][1]["body"]
    assert sent[-1][1]["body"].endswith(b"data: [DONE]\n\n")
