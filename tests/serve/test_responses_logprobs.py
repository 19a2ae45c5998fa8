"""Log-probabilities in /v1/responses, against the fake engine's definition and OpenAI's published schemas."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from tests.serve.fake_engine import ByteTokenizer, fake_logprobs
from tests.serve.openai_specification import violations
from tests.serve.strict_types import conforms
from tests.serve.test_responses import read_events
from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.tool_calls import tool_call_parser
from tinycluster.serve.responses_events import ResponseEvents, new_response
from tinycluster.serve.responses_fields import LOGPROBS, parse_responses
from tinycluster.serve.responses_logprobs import MessageLogprobs

ASKED: dict[str, Any] = {"include": [LOGPROBS], "top_logprobs": 2}
TRAP = {"type": "function", "name": "add", "parameters": {"type": "object", "default": {"logprobs": []}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"logprobs": []}}\n</tool_call>'
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def entries(text: bytes, num_top: int, first: int = 0) -> list[dict[str, Any]]:
    """What is expected of the bytes, which are the fake engine's tokens, from this position on."""
    expected = []
    for position, token in enumerate(text, first):
        made = fake_logprobs(token, position, num_top)
        expected.append(entry(token, made.logprob) | {"top_logprobs": [entry(*other) for other in made.top]})
    return expected


def entry(token: int, logprob: float) -> dict[str, Any]:
    return {"token": bytes([token]).decode(errors="replace"), "logprob": logprob, "bytes": [token]}


@pytest.mark.parametrize("num_top", [0, 3])
def test_a_whole_answer_has_an_entry_per_token_also_when_it_is_asked_for_again(
    client: httpx.Client, num_top: int
) -> None:
    text = 'hé "logprobs": []'
    made = client.post("/v1/responses", json={"input": text, **ASKED, "top_logprobs": num_top, "tools": []}).json()
    (part,) = made["output"][0]["content"]
    assert (part["text"], part["logprobs"]) == (text, entries(text.encode(), num_top))
    assert made["top_logprobs"] == num_top
    assert client.get(f"/v1/responses/{made['id']}").json() == made
    assert violations("Response", made) == []
    conforms(Response, made)


def test_a_streams_deltas_have_the_entries_of_their_text_and_its_end_has_all(client: httpx.Client) -> None:
    text = "hé\U0001f30a"
    events = read_events(client, {"input": text, "stream": True, **ASKED})
    for event in events:
        assert violations("ResponseStreamEvent", event) == []
        conforms(ResponseStreamEvent, event)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    for delta in deltas:
        assert bytes(byte for one in delta["logprobs"] for byte in one["bytes"]).decode() == delta["delta"]
    expected = entries(text.encode(), 2)
    assert [one for delta in deltas for one in delta["logprobs"]] == expected
    done, part, item, last = events[-4:]
    assert done["logprobs"] == part["part"]["logprobs"] == item["item"]["content"][0]["logprobs"] == expected
    assert last["response"]["output"] == [item["item"]]
    assert client.get(f"/v1/responses/{last['response']['id']}").json() == last["response"]


def test_without_the_member_of_include_there_are_none(client: httpx.Client) -> None:
    made = client.post("/v1/responses", json={"input": "a", "include": ["reasoning.encrypted_content"]}).json()
    assert made["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("change", [{"include": None}, {"top_logprobs": 21}, {"top_logprobs": -1}])
def test_a_wrong_number_of_alternatives_is_refused_by_name(client: httpx.Client, change: dict[str, Any]) -> None:
    answer = client.post("/v1/responses", json={"input": "a", **ASKED, **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_logprobs")


def test_the_official_client_reads_them(fake_url: str) -> None:
    with openai.OpenAI(base_url=f"{fake_url}/v1", api_key="mine", max_retries=0) as api:
        made = api.responses.create(model="fake", input="ab", include=[LOGPROBS], top_logprobs=1)
        after = api.responses.create(model="fake", input="c", previous_response_id=made.id)
    assert made.output[0].content[0].logprobs[1].top_logprobs[0].token == "b"  # type: ignore[union-attr,index]
    assert after.output_text == "c"


def response_events(num_top: int = 0, *, finds_calls: bool = True) -> ResponseEvents:
    asked = parse_responses({"input": "a", "tools": [TRAP], **ASKED, "metadata": {"logprobs": '"logprobs": []'}})
    parser = tool_call_parser("hermes", ["add"]) if finds_calls else None
    logprobs = MessageLogprobs(ByteTokenizer(), num_top)  # type: ignore[arg-type]
    return ResponseEvents(new_response(asked, "fake", SamplingParams(), 1), lambda: 2.5, forget, parser, logprobs)


async def forget(_ended: Mapping[str, Any]) -> None:
    pass


def deltas_of(text: bytes) -> Iterator[Delta]:
    """A token each; half a character has no text."""
    shown = ""
    for position, token in enumerate(text):
        whole = text[: position + 1].decode(errors="ignore")
        yield Delta((token,), whole[len(shown) :], logprobs=(fake_logprobs(token, position, 0),))
        shown = whole
    yield Delta((), "", "stop")


def told(events: ResponseEvents, text: bytes) -> list[dict[str, Any]]:
    parts = [events.opening(0), *(events.delta(0, delta) for delta in deltas_of(text)), events.usage(USAGE)]
    parts.append(asyncio.run(events.commit()))
    return [json.loads(line[6:]) for line in "".join(parts).splitlines() if line.startswith("data: ")]


def test_calls_have_none_and_nothing_else_of_the_name_is_filled() -> None:
    before = b"Let me add. "
    events = response_events()
    seen = told(events, before + CALL.encode())
    for event in seen:
        assert violations("ResponseStreamEvent", event) == []
    shown = json.loads(events.encoded())
    message, call = shown["output"]
    assert message["content"][0]["text"] == before.decode().rstrip()
    assert message["content"][0]["logprobs"] == entries(before.rstrip(), 0)
    assert json.loads(call["arguments"]) == {"logprobs": []}
    assert shown["tools"][0]["parameters"] == TRAP["parameters"]
    assert shown["metadata"] == {"logprobs": '"logprobs": []'}
    assert seen[-1]["response"] == shown


def test_tokens_that_never_became_text_have_their_entries_at_the_end() -> None:
    text = "aé".encode()[:-1]
    seen = told(response_events(finds_calls=False), text)
    deltas = [event for event in seen if event["type"] == "response.output_text.delta"]
    assert [delta["delta"] for delta in deltas] == ["a", ""]
    assert [one for delta in deltas for one in delta["logprobs"]] == entries(text, 0)


def test_an_answer_that_is_cancelled_keeps_the_entries_of_what_it_said() -> None:
    events = response_events(finds_calls=False)
    for delta in list(deltas_of(b"abc"))[:2]:
        events.delta(0, delta)
    events.cancel()
    assert json.loads(events.encoded())["output"][0]["content"][0]["logprobs"] == entries(b"ab", 0)


def test_a_long_answer_with_twenty_alternatives_holds_little_more_than_their_text() -> None:
    top = tuple((token, -float(token)) for token in range(20))
    events = response_events(20, finds_calls=False)
    logprobs = (fake_logprobs(1, 1, 0)._replace(top=top),)
    tracemalloc.start()
    for _ in range(1_000):
        events.delta(0, Delta((1,), "a", logprobs=logprobs))
    growing, _ = tracemalloc.get_traced_memory()
    events.cancel()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    text = events.encoded()
    assert len(json.loads(text)["output"][0]["content"][0]["logprobs"]) == 1_000
    assert growing < 1.2 * len(text)
    assert held < 1.2 * len(text)
