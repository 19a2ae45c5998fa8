"""Every field takes exactly its own JSON type; a refusal names the field."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import SamplingParams
from tinycluster.serve.protocol import MAX_CHOICES, ChatRequest, CompletionRequest, choice_seed, parse

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]

TEXT = st.text(max_size=5)
WHOLE = st.integers(-(10**20), 10**20)
FRACTION = st.floats(allow_nan=False, allow_infinity=False)
LIST = st.lists(st.booleans(), min_size=1, max_size=2)
OBJECT = st.dictionaries(TEXT, WHOLE, min_size=1, max_size=2)
FLAG = st.booleans()

WRONG_TYPES = {
    "model": WHOLE | FRACTION | FLAG | LIST | OBJECT,
    "stream": WHOLE | FRACTION | TEXT | LIST | OBJECT,
    "stream_options": WHOLE | FRACTION | TEXT | FLAG | LIST,
    "n": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "max_tokens": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "temperature": FLAG | TEXT | LIST | OBJECT,
    "top_p": FLAG | TEXT | LIST | OBJECT,
    "top_k": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "min_p": FLAG | TEXT | LIST | OBJECT,
    "seed": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "stop": WHOLE | FRACTION | FLAG | LIST | OBJECT,
    "stop_token_ids": WHOLE | FRACTION | FLAG | TEXT | LIST | OBJECT,
    "ignore_eos": WHOLE | FRACTION | TEXT | LIST | OBJECT,
    "include_stop_str_in_output": WHOLE | FRACTION | TEXT | LIST | OBJECT,
}


def refusal(kind: type[Any], **body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(kind, body)
    assert caught.value.param
    assert caught.value.param.split("[")[0].split(".")[0] in str(caught.value)
    return caught.value


@given(st.sampled_from(sorted(WRONG_TYPES)), st.data())
def test_a_wrong_type_in_any_field_is_refused_with_its_name(field: str, data: st.DataObject) -> None:
    value = data.draw(WRONG_TYPES[field])
    for error in (
        refusal(ChatRequest, messages=HELLO, **{field: value}),
        refusal(CompletionRequest, prompt="hello", **{field: value}),
    ):
        assert error.param is not None
        assert error.param.split("[")[0].split(".")[0] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("n", value) for value in (0, -1, MAX_CHOICES + 1, 2**31, 10**9)],
        *[("max_tokens", value) for value in (-1, 0, 2**31)],
        *[("temperature", value) for value in (-0.1, 2.1, math.nan, math.inf, 10**400)],
        *[("top_p", value) for value in (0, -1, 1.1)],
        *[("min_p", value) for value in (-0.1, 1.1)],
        *[("top_k", value) for value in (-2, -5)],
        *[("seed", value) for value in (2**63, -(2**63) - 1)],
        *[("stop", value) for value in (["a"] * 5, [""], "", "x" * 2000)],
        *[("stop_token_ids", value) for value in ([-1], [2**31], [0] * 65)],
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    error = refusal(ChatRequest, messages=HELLO, **{field: value})
    assert error.param in (field, f"{field}[0]")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "text",
        [],
        [123],
        [{}],
        [{"role": "user"}],
        [{"role": 123, "content": "x"}],
        [{"role": "wizard", "content": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": 123}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": 3}]}],
        [{"role": "user", "content": ["x"]}],
    ],
)
def test_messages_of_another_form_are_refused(messages: Any) -> None:
    assert (refusal(ChatRequest, messages=messages).param or "").startswith("messages")


@pytest.mark.parametrize(
    "prompt", [None, 3, True, [], {}, ["a", 1], [1, True], [1.0], [-1], [[1], []], [["a"]], [[1], "a"]]
)
def test_prompts_of_another_form_are_refused(prompt: Any) -> None:
    assert refusal(CompletionRequest, prompt=prompt).param == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"5": 1}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "sound"}),
        ("logprobs", True),
        ("logprobs", 0),
        ("top_logprobs", 3),
        ("presence_penalty", 0.5),
        ("presence_penalty", False),
        ("frequency_penalty", "0"),
        ("repetition_penalty", 1.1),
        ("best_of", 2),
        ("best_of", True),
        ("echo", True),
        ("suffix", "x"),
        ("chat_template", "{{ 1 }}"),
        ("chat_template_kwargs", {"a": 1}),
        ("min_tokens", 1),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_where_not_supported(field: str, value: Any) -> None:
    assert refusal(ChatRequest, messages=HELLO, **{field: value}).param == field


def test_neutral_values_of_unsupported_fields_and_unknown_fields_are_fine() -> None:
    parse(
        ChatRequest,
        {
            "messages": HELLO,
            "logit_bias": {},
            "tools": None,
            "tool_choice": "auto",
            "response_format": {"type": "text"},
            "logprobs": False,
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "user": "someone",
            "metadata": {"a": "b"},
            "unheard_of": [1, 2, 3],
        },
    )


def test_null_stands_for_the_default_in_every_field() -> None:
    nulls = dict.fromkeys([*WRONG_TYPES, "max_completion_tokens", "tools", "logit_bias"])
    assert parse(ChatRequest, {"messages": HELLO, **nulls}).sampling(0) == SamplingParams()


def test_defaults_are_openais() -> None:
    assert parse(ChatRequest, {"messages": HELLO}).sampling(0) == SamplingParams()
    assert parse(CompletionRequest, {"prompt": "x"}).sampling(0) == SamplingParams(max_tokens=16)


def test_all_sampling_fields_reach_the_engine() -> None:
    body = {
        "messages": HELLO,
        "temperature": 1,
        "top_k": 10**12,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 7,
        "max_tokens": 9,
        "stop": "end",
        "stop_token_ids": [3],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
    }
    expected = SamplingParams(1, 2**31 - 1, 0.5, 0.1, 7, 9, ("end",), (3,), True, True)
    assert parse(ChatRequest, body).sampling(0) == expected


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    body = {"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 9}
    assert parse(ChatRequest, body).sampling(0).max_tokens == 9


def test_stream_options_need_a_stream() -> None:
    assert refusal(ChatRequest, messages=HELLO, stream_options={"include_usage": True}).param == "stream_options"


def test_text_parts_are_joined_by_line_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = parse(ChatRequest, {"messages": [{"role": "developer", "content": parts}]})
    assert request.template_messages() == [{"role": "system", "content": "one\ntwo"}]


def test_prompts_times_n_are_bounded() -> None:
    refusal(CompletionRequest, prompt=["x"] * (MAX_CHOICES // 2 + 1), n=2)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, MAX_CHOICES - 1))
def test_choice_seeds_fit_the_sampler_and_the_first_is_the_requests_own(seed: int, choice: int) -> None:
    assert 0 <= choice_seed(seed, choice) < 2**63
    if seed >= 0:
        assert choice_seed(seed, 0) == seed


def test_choice_seeds_differ_and_never_change() -> None:
    seeds = [choice_seed(7, choice) for choice in range(MAX_CHOICES)]
    assert len(set(seeds)) == MAX_CHOICES
    assert seeds[:3] == [7, 7183275176577900759, 916892098519862925]
