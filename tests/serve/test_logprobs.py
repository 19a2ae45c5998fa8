"""Log-probabilities as the official client reads them, in answers and in streams, against the fake engine's own."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.serve.fake_engine import ByteTokenizer, fake_logprobs
from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import TokenLogprobs
from tinycluster.serve.answer_form import AnswerForm, Kind
from tinycluster.serve.answers import gather, whole
from tinycluster.serve.choices import Choices
from tinycluster.serve.logprobs import CompletionLogprobs, chat_logprobs, number

HELLO: Any = [{"role": "user", "content": "héllo"}]
BYTES = list("héllo".encode())


@pytest.fixture
def api(fake_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake_url}/v1", api_key="none", max_retries=0) as api:
        yield api


def shown(token: int) -> str:
    return bytes([token]).decode(errors="replace")


def check_chat(content: list[Any], num_top: int) -> None:
    """Every entry against the definition of the fake engine's logprobs."""
    assert [entry.bytes for entry in content] == [[byte] for byte in BYTES]
    for position, (entry, token) in enumerate(zip(content, BYTES, strict=True)):
        expected = fake_logprobs(token, position, num_top)
        assert (entry.token, entry.logprob) == (shown(token), expected.logprob)
        top = [(other.token, other.logprob, other.bytes) for other in entry.top_logprobs]
        assert top == [(shown(other), logprob, [other]) for other, logprob in expected.top]


@pytest.mark.parametrize("num_top", [None, 0, 1, 20])
def test_a_chats_logprobs_have_an_entry_per_token(api: openai.OpenAI, num_top: int | None) -> None:
    top = {} if num_top is None else {"top_logprobs": num_top}
    answer = api.chat.completions.create(model="fake", messages=HELLO, logprobs=True, **top)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.refusal is None
    check_chat(answer.choices[0].logprobs.content or [], num_top or 0)
    assert len(answer.choices[0].logprobs.content or []) == answer.usage.completion_tokens


def test_a_streamed_chat_has_the_same_logprobs_with_the_text_they_belong_to(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(model="fake", messages=HELLO, logprobs=True, top_logprobs=2, stream=True)
    content = []
    for chunk in stream:
        choice = chunk.choices[0]
        entries = choice.logprobs.content or [] if choice.logprobs else []
        assert bytes(byte for entry in entries for byte in entry.bytes).decode() == (choice.delta.content or "")
        content += entries
    check_chat(content, 2)


def test_without_logprobs_there_are_none(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(model="fake", messages=HELLO, logprobs=False)
    assert answer.choices[0].logprobs is None
    assert api.completions.create(model="fake", prompt="abc").choices[0].logprobs is None


def completion_logprobs(api: openai.OpenAI, stream: bool, **options: Any) -> tuple[str, dict[str, list[Any]]]:
    """Text and the four lists of one choice, whole or put together from a stream."""
    answer: Any = api.completions.create(model="fake", stream=stream, **options)
    text, lists = "", {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for part in answer if stream else [answer]:
        text += part.choices[0].text
        for name, values in lists.items():
            values += getattr(part.choices[0].logprobs, name) if part.choices[0].logprobs else []
    return text, lists


@pytest.mark.parametrize("stream", [False, True])
def test_a_completions_logprobs_are_four_lists(api: openai.OpenAI, stream: bool) -> None:
    text, lists = completion_logprobs(api, stream, prompt="abc", logprobs=2)
    expected = [fake_logprobs(token, position, 2) for position, token in enumerate(b"abc")]
    assert text == "abc"
    assert lists["tokens"] == ["a", "b", "c"]
    assert lists["token_logprobs"] == [of_token.logprob for of_token in expected]
    assert lists["top_logprobs"] == [{chr(token): value for token, value in of.top} for of in expected]
    assert lists["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_has_logprobs_from_its_second_token_on(api: openai.OpenAI, stream: bool) -> None:
    text, lists = completion_logprobs(api, stream, prompt="héy", logprobs=1, echo=True, max_tokens=1)
    assert text == "héyh"
    assert lists["tokens"] == ["h", "\ufffd", "\ufffd", "y", "h"]
    assert lists["token_logprobs"] == [None, -2 / 64, -3 / 64, -4 / 64, -1 / 64]
    assert lists["top_logprobs"][0] is None
    assert lists["top_logprobs"][3:] == [{"y": -4 / 64}, {"h": -1 / 64}]
    # A character of two bytes is there with its second one.
    assert lists["text_offset"] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_without_answer_scores_the_prompt_alone(api: openai.OpenAI, stream: bool) -> None:
    options = {"prompt": [[97, 98, 99], [100, 101]], "logprobs": 0, "echo": True, "max_tokens": 0}
    if stream:
        parts = [part.choices[0] for part in api.completions.create(model="fake", stream=True, **options)]
        texts = ["".join(part.text for part in parts if part.index == index) for index in (0, 1)]
        ends = {part.index: part.finish_reason for part in parts if part.finish_reason}
        assert (texts, ends) == (["abc", "de"], {0: "length", 1: "length"})
        return
    answer = api.completions.create(model="fake", **options)
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [("abc", "length"), ("de", "length")]
    assert answer.choices[1].logprobs.token_logprobs == [None, -2 / 64]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 0)


def test_an_echo_comes_before_the_answer_of_every_choice(api: openai.OpenAI) -> None:
    answer = api.completions.create(model="fake", prompt=["ab", "cd"], n=2, echo=True, temperature=0)
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "cdcd", "cdcd"]
    streamed = [""] * 4
    for chunk in api.completions.create(model="fake", prompt=["ab", "cd"], n=2, echo=True, temperature=0, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == ["abab", "abab", "cdcd", "cdcd"]


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_echoes_the_logprobs_that_the_first_one_asks_for(client: httpx.Client, stream: bool) -> None:
    body = {"prompt": ["ab", "cd"], "n": 2, "echo": True, "logprobs": 0, "max_tokens": 1, "stream": stream}
    answer = client.post("/v1/completions", json=body)
    if stream:
        events = [json.loads(event[6:]) for event in answer.text.split("\n\n") if event.startswith("data: {")]
    else:
        events = [answer.json()]
    found: dict[int, list[float | None]] = {index: [] for index in range(4)}
    for choice in (choice for event in events for choice in event["choices"] if choice["logprobs"]):
        found[choice["index"]] += choice["logprobs"]["token_logprobs"]
    assert found == {index: [None, -2 / 64, -1 / 64] for index in range(4)}


def entry(token: int, position: int, num_top: int) -> dict[str, Any]:
    """vLLM's object of one of the prompt's tokens, by definition."""
    of_token = fake_logprobs(token, position, num_top)
    top = {str(other): (value, rank) for rank, (other, value) in enumerate(of_token.top, 1)}
    listed = top | {str(token): (of_token.logprob, of_token.rank)}
    return {
        other: {"logprob": value, "rank": rank, "decoded_token": chr(int(other))}
        for other, (value, rank) in listed.items()
    }


@pytest.mark.parametrize("num_top", [0, 3])
def test_prompt_logprobs_are_vllms_list(client: httpx.Client, num_top: int) -> None:
    expected = [None, entry(ord("b"), 1, num_top), entry(ord("c"), 2, num_top)]
    body = {"prompt": "abc", "prompt_logprobs": num_top}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["prompt_logprobs"] == expected
    body = {"messages": [{"role": "user", "content": "abc"}], "prompt_logprobs": num_top, "n": 2}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["prompt_logprobs"] == expected
    assert "prompt_logprobs" not in answer["choices"][0]


def test_a_prompt_of_one_token_has_one_null(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": [97], "prompt_logprobs": 0}).json()
    assert answer["choices"][0]["prompt_logprobs"] == [None]


class Spelled(ByteTokenizer):
    """Control token 0 has bytes; tokens 128 and above are halves of characters, which all look the same."""

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        if token_id == 0:
            return b"" if skip_special_tokens else b"<end>"
        return bytes([token_id])


def test_control_tokens_are_spelled_out_and_take_no_room_in_the_text() -> None:
    lists = CompletionLogprobs(Spelled(), 0, skip_special_tokens=True)  # type: ignore[arg-type]
    lists.add([97, 0, 98], [TokenLogprobs(-1.0, 1)] * 3)
    taken = json.loads(lists.take())
    assert taken["tokens"] == ["a", "<end>", "b"]
    assert taken["text_offset"] == [0, 1, 1]


def test_of_tokens_that_look_the_same_the_chosen_one_counts_and_no_key_comes_twice() -> None:
    lists = CompletionLogprobs(Spelled(), 2, skip_special_tokens=True)  # type: ignore[arg-type]
    lists.add([200], [TokenLogprobs(-3.0, 3, ((201, -1.0), (97, -2.0)))])
    text = lists.take()
    assert json.loads(text)["top_logprobs"] == [{"\ufffd": -3.0, "a": -2.0}]
    assert text.count("ufffd") == 2


def test_a_probability_of_zero_is_a_number_of_json() -> None:
    entries = chat_logprobs(Spelled(), [97], [TokenLogprobs(float("-inf"), 9)], 0)  # type: ignore[arg-type]
    assert json.loads(entries)["logprob"] == -9999.0


@pytest.mark.parametrize("value", [-0.0, -1e-9, -1.1920929e-07, -12.345678, -0.333333343267])
def test_nine_digits_are_enough_for_every_float32(value: float) -> None:
    written = number(float(np.float32(value)))
    assert np.float32(json.loads(written)) == np.float32(value)


class Long:
    """A generation of many tokens with twenty alternatives each."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for position in range(self._num_tokens):
            top = fake_logprobs(97, position, 20)
            yield Delta((97,), "a", "length" if position == self._num_tokens - 1 else None, logprobs=(top,))

    def abort(self) -> None:
        pass


@pytest.mark.parametrize("kind", ["chat.completion", "text_completion"])
def test_ten_thousand_tokens_with_twenty_alternatives_would_take_less_than_64_mib(kind: Kind) -> None:
    form = AnswerForm(kind, {}, ByteTokenizer(), [[1]], logprobs=20)  # type: ignore[arg-type]
    choices = Choices([Long(1_000)], 1)
    tracemalloc.start()
    body = whole(form, asyncio.run(gather(choices, form)), choices)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert json.loads(body)["usage"]["completion_tokens"] == 1_000
    # The tokens' text, the body as text and the body as bytes, beside what other threads need.
    assert peak < 64 * 2**20 / 10
