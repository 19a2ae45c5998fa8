"""The official client of OpenAI works against our server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine

HELLO = [{"role": "user", "content": "héllo"}]


@pytest.fixture
def api(fake_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake_url}/v1", api_key="none", max_retries=0) as api:
        yield api


def test_a_chat_completion_has_text_finish_reason_and_usage(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(model="fake", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "héllo"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 6, 12)


def test_a_streamed_chat_has_the_role_first_the_reason_last_and_then_the_usage(api: openai.OpenAI) -> None:
    chunks = list(
        api.chat.completions.create(model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "héllo"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_include_usage_has_none(api: openai.OpenAI) -> None:
    chunks = list(api.chat.completions.create(model="fake", messages=HELLO, stream=True))
    assert all(chunk.choices for chunk in chunks)


def test_max_tokens_ends_with_length_and_stop_with_stop(api: openai.OpenAI) -> None:
    short = api.chat.completions.create(model="fake", messages=HELLO, max_completion_tokens=2, max_tokens=4)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("hé", "length")
    stopped = api.chat.completions.create(model="fake", messages=HELLO, stop=["lo", "xyz"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("hél", "stop")


def test_n_choices_have_their_own_seeds_and_share_the_prompts_usage(api: openai.OpenAI) -> None:
    one = api.chat.completions.create(model="fake", messages=HELLO, seed=7)
    three = api.chat.completions.create(model="fake", messages=HELLO, seed=7, n=3)
    again = api.chat.completions.create(model="fake", messages=HELLO, seed=7, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == one.choices[0].message.content
    assert texts == [choice.message.content for choice in again.choices]
    assert three.usage.prompt_tokens == 6
    assert three.usage.completion_tokens == sum(len(text.encode()) for text in texts)


def test_streamed_choices_are_told_apart_by_index(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(model="fake", messages=HELLO, seed=7, n=3)
    texts, ends = ["", "", ""], []
    for chunk in api.chat.completions.create(model="fake", messages=HELLO, seed=7, n=3, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("abc", ["abc"]),
        (["abc", "de"], ["abc", "de"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
)
def test_completions_take_every_form_of_prompt(api: openai.OpenAI, prompt: object, texts: list[str]) -> None:
    answer = api.completions.create(model="fake", prompt=prompt, temperature=0)
    assert [choice.text for choice in answer.choices] == texts
    assert answer.object == "text_completion"
    assert answer.usage.prompt_tokens == sum(len(text) for text in texts)
    streamed = [""] * len(texts)
    for chunk in api.completions.create(model="fake", prompt=prompt, temperature=0, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_several_prompts_with_n_are_numbered_prompt_by_prompt(api: openai.OpenAI) -> None:
    answer = api.completions.create(model="fake", prompt=["a", "b"], n=2, temperature=0)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert answer.usage.prompt_tokens == 2


def test_a_completion_stops_after_sixteen_tokens_by_default(api: openai.OpenAI) -> None:
    answer = api.completions.create(model="fake", prompt="x" * 40)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


def test_vllms_fields_go_through_extra_body(start_server: StartServer) -> None:
    engine = FakeEngine()
    with openai.OpenAI(base_url=start_server(engine) + "/v1", api_key="none") as api:
        extra = {"top_k": 5, "min_p": 0.25, "ignore_eos": True, "stop_token_ids": [9]}
        api.chat.completions.create(model="fake", messages=HELLO, extra_body=extra)
    sampling = engine.submitted[0]
    assert (sampling.top_k, sampling.min_p, sampling.ignore_eos, sampling.stop_token_ids) == (5, 0.25, True, (9,))


def test_models_are_served_side_by_side_and_chosen_by_name(start_server: StartServer) -> None:
    engines = FakeEngine("first"), FakeEngine("org/second")
    with openai.OpenAI(base_url=start_server(*engines) + "/v1", api_key="none", max_retries=0) as api:
        assert [model.id for model in api.models.list()] == ["first", "org/second"]
        assert api.models.retrieve("org/second").id == "org/second"
        for name in ("first", "org/second"):
            assert api.chat.completions.create(model=name, messages=HELLO).model == name
        with pytest.raises(openai.BadRequestError) as caught:
            api.post("/chat/completions", body={"messages": HELLO}, cast_to=object)
    assert caught.value.param == "model"
    assert [len(engine.submitted) for engine in engines] == [1, 1]


def test_errors_reach_the_client_as_its_own_exceptions(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        api.chat.completions.create(model="other", messages=HELLO)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        api.chat.completions.create(model="fake", messages=HELLO, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unsupported:
        api.chat.completions.create(model="fake", messages=HELLO, modalities=["text", "audio"])
    assert unsupported.value.param == "modalities"
    with pytest.raises(openai.RateLimitError):
        api.completions.create(model="fake", prompt="full")
    with pytest.raises(openai.InternalServerError) as lost:
        api.completions.create(model="fake", prompt="lost at once")
    assert lost.value.status_code == 503
    with pytest.raises(openai.APIError, match="rank 1 was lost"):
        list(api.completions.create(model="fake", prompt="lost", stream=True))


def test_the_async_client_streams_many_answers_at_once(fake_url: str) -> None:
    async def ask(api: openai.AsyncOpenAI, text: str) -> str:
        stream = await api.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": text}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{fake_url}/v1", api_key="none") as api:
            return await asyncio.gather(*(ask(api, f"canary {number}") for number in range(16)))

    assert asyncio.run(ask_all()) == [f"canary {number}" for number in range(16)]


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


def allows(constraint: Any, token: int) -> bool:
    return bool(constraint.mask()[token // 8] >> (token % 8) & 1)


def test_a_schema_becomes_a_grammar_and_the_client_reads_the_object(start_server: StartServer) -> None:
    engine = FakeEngine()
    messages: Any = [{"role": "user", "content": '{"city": "Bonn", "degrees": 8}'}]
    with openai.OpenAI(base_url=start_server(engine) + "/v1", api_key="none") as api:
        answer = api.chat.completions.parse(model="fake", messages=messages, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Bonn", degrees=8)
    assert engine.options[0].grammar is not None
    constraint = engine.options[0].grammar.start()
    assert allows(constraint, ord("{"))
    assert not allows(constraint, ord("x"))


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "[ab]+"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"json": {"type": "integer"}}},
        {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
    ],
)
def test_every_kind_of_rules_reaches_the_engine_on_both_routes(start_server: StartServer, fields: Any) -> None:
    engine = FakeEngine()
    with openai.OpenAI(base_url=start_server(engine) + "/v1", api_key="none") as api:
        api.chat.completions.create(model="fake", messages=HELLO, extra_body=fields)
        api.completions.create(model="fake", prompt="hello", extra_body=fields)
    assert [options.grammar is not None for options in engine.options] == [True, True]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "hiccup"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "stsring"}}}},
            "response_format",
        ),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
    ],
)
def test_rules_that_are_none_are_refused_with_their_field(api: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="fake", messages=HELLO, extra_body=fields)
    assert caught.value.param == param
