"""Every field takes exactly its own JSON type; a refusal names the field."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.fake_engine import ByteTokenizer
from tinycluster.engine.errors import RequestError
from tinycluster.engine.request import RequestOptions, SamplingParams
from tinycluster.serve.protocol import ChatRequest, CompletionRequest, parse
from tinycluster.serve.sampling_fields import MAX_CHOICES, choice_seed

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]

TEXT = st.text(max_size=5)
WHOLE = st.integers(-(10**20), 10**20)
FRACTION = st.floats(allow_nan=False, allow_infinity=False)
LIST = st.lists(st.booleans(), min_size=1, max_size=2)
OBJECT = st.dictionaries(TEXT, WHOLE, min_size=1, max_size=2)
FLAG = st.booleans()

NUMBERS = [
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "timeout",
]
INTEGERS = ["n", "max_tokens", "min_tokens", "top_k", "seed", "prompt_logprobs", "truncate_prompt_tokens", "priority"]
FLAGS = [
    "stream",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "return_token_ids",
    "return_progress",
    "store",
]
STRINGS = ["model", "cache_salt", "session_id", "user", "service_tier"]
OBJECTS = ["stream_options", "logit_bias", "metadata", "response_format", "structured_outputs"]
LISTS = ["stop_token_ids", "bad_words", "allowed_token_ids"]
WRONG_TYPES = {
    **dict.fromkeys(NUMBERS, FLAG | TEXT | LIST | OBJECT),
    **dict.fromkeys(INTEGERS, FLAG | TEXT | FRACTION | LIST | OBJECT),
    **dict.fromkeys(FLAGS, WHOLE | FRACTION | TEXT | LIST | OBJECT),
    **dict.fromkeys(STRINGS, WHOLE | FRACTION | FLAG | LIST | OBJECT),
    **dict.fromkeys(OBJECTS, WHOLE | FRACTION | TEXT | FLAG | LIST),
    **dict.fromkeys(LISTS, WHOLE | FRACTION | FLAG | TEXT | LIST | OBJECT),
    "stop": WHOLE | FRACTION | FLAG | LIST | OBJECT,
}
WRONG_CHAT_TYPES = {
    "max_completion_tokens": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "logprobs": WHOLE | FRACTION | TEXT | LIST | OBJECT,
    "top_logprobs": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "add_generation_prompt": WHOLE | FRACTION | TEXT | LIST | OBJECT,
    "continue_final_message": WHOLE | FRACTION | TEXT | LIST | OBJECT,
    "tools": WHOLE | FRACTION | TEXT | FLAG | LIST | OBJECT,
    "tool_choice": WHOLE | FRACTION | FLAG | LIST | OBJECT,
    "parallel_tool_calls": WHOLE | FRACTION | TEXT | LIST | OBJECT,
}
WRONG_COMPLETION_TYPES = {
    "logprobs": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "best_of": FLAG | TEXT | FRACTION | LIST | OBJECT,
    "echo": WHOLE | FRACTION | TEXT | LIST | OBJECT,
    "add_special_tokens": WHOLE | FRACTION | TEXT | LIST | OBJECT,
}


def refusal(kind: type[Any], **body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(kind, body)
    assert caught.value.param
    assert caught.value.param.split("[")[0].split(".")[0] in str(caught.value)
    return caught.value


CHAT = (ChatRequest, {"messages": HELLO}, WRONG_TYPES | WRONG_CHAT_TYPES)
COMPLETION = (CompletionRequest, {"prompt": "hello"}, WRONG_TYPES | WRONG_COMPLETION_TYPES)


@pytest.mark.parametrize(("kind", "required", "wrong"), [CHAT, COMPLETION])
@given(data=st.data())
def test_a_wrong_type_in_any_field_is_refused_with_its_name(
    kind: type[Any], required: dict[str, Any], wrong: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(wrong)))
    error = refusal(kind, **required, **{field: data.draw(wrong[field])})
    assert error.param is not None
    assert error.param.split("[")[0].split(".")[0] == field


BEYOND = {
    "n": (0, -1, MAX_CHOICES + 1, 2**31, 10**9),
    "max_tokens": (-1, 2**31),
    "min_tokens": (-1, 2**31),
    "temperature": (-0.1, 2.1, math.nan, math.inf, 10**400),
    "top_p": (0, -1, 1.1),
    "min_p": (-0.1, 1.1),
    "top_k": (-2, -5),
    "seed": (2**63, -(2**63) - 1),
    "presence_penalty": (-2.1, 2.1, math.nan),
    "frequency_penalty": (-2.1, 2.1, math.inf),
    "repetition_penalty": (0, -1, 1001, math.nan),
    "logit_bias": (
        {"foo": 1},
        {"-1": 1},
        {"": 1},
        {" 5": 1},
        {"5": 1, "05": 2},
        {"٣": 1},
        {"9" * 11: 1},
        {str(token): 0 for token in range(1025)},
    ),
    "bad_words": ([""], [" "], ["x" * 129], ["x"] * 129, [3]),
    "allowed_token_ids": ([], [-1], [2**31]),
    "stop": (["a"] * 5, [""], "", "x" * 2000),
    "stop_token_ids": ([-1], [2**31], [0] * 65),
    "prompt_logprobs": (-1, 21),
    "truncate_prompt_tokens": (0, -2),
    "priority": (2**31, -(2**31) - 1),
    "cache_salt": ("", "x" * 1025),
    "session_id": ("", "x" * 513),
    "timeout": (0, -1, 86401, math.nan, math.inf),
}
BEYOND_CHAT = {"max_tokens": (0,), "max_completion_tokens": (0, -1, 2**31), "top_logprobs": (-1, 21, 3)}
BEYOND_COMPLETION = {"max_tokens": (0,), "logprobs": (-1, 21), "best_of": (0, MAX_CHOICES + 1)}


def rows(table: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(field, value) for field, values in table.items() for value in values]


@pytest.mark.parametrize(("field", "value"), rows(BEYOND) + rows(BEYOND_CHAT))
def test_values_out_of_range_are_refused_in_a_chat(field: str, value: Any) -> None:
    error = refusal(ChatRequest, messages=HELLO, **{field: value})
    assert error.param in (field, f"{field}[0]")


@pytest.mark.parametrize(("field", "value"), rows(BEYOND) + rows(BEYOND_COMPLETION))
def test_values_out_of_range_are_refused_in_a_completion(field: str, value: Any) -> None:
    error = refusal(CompletionRequest, prompt="hello", **{field: value})
    assert error.param in (field, f"{field}[0]")


def test_a_bias_out_of_range_is_refused_with_its_token() -> None:
    assert refusal(ChatRequest, messages=HELLO, logit_bias={"5": 100.5}).param == "logit_bias.5"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 9, "max_completion_tokens": 5}, "min_tokens"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 1, "logprobs": False}, "top_logprobs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_fields_of_a_chat_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(ChatRequest, messages=HELLO, **fields).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"prompt": ["x", "y"], "best_of": MAX_CHOICES}, "n"),
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
    ],
)
def test_fields_of_a_completion_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(CompletionRequest, **{"prompt": "hello", **fields}).param == param


@pytest.mark.parametrize(
    "prompt", [None, 3, True, [], {}, ["a", 1], [1, True], [1.0], [-1], [[1], []], [["a"]], [[1], "a"]]
)
def test_prompts_of_another_form_are_refused(prompt: Any) -> None:
    assert refusal(CompletionRequest, prompt=prompt).param == "prompt"


UNSUPPORTED = {
    "chat_template": ("{{ 1 }}",),
    "chat_template_kwargs": ({"a": 1},),
    "guided_json": ({"type": "object"},),
    "use_beam_search": (True, 1),
}
UNSUPPORTED_IN_CHAT = {
    "audio": ({"voice": "alloy"},),
    "best_of": (2, True),
    "documents": ([{"text": "x"}],),
    "echo": (True,),
    "functions": ([{"name": "f"}],),
    "function_call": ({"name": "f"},),
    "modalities": (["text", "audio"],),
    "web_search_options": ({},),
}
UNSUPPORTED_IN_COMPLETIONS = {
    "suffix": ("x",),
    "tools": ([{"type": "function"}],),
    "tool_choice": ("required",),
    "top_logprobs": (3,),
}


@pytest.mark.parametrize(("field", "value"), rows(UNSUPPORTED | UNSUPPORTED_IN_CHAT))
def test_fields_that_would_change_a_chat_are_refused_where_not_supported(field: str, value: Any) -> None:
    assert refusal(ChatRequest, messages=HELLO, **{field: value}).param == field


@pytest.mark.parametrize(("field", "value"), rows(UNSUPPORTED | UNSUPPORTED_IN_COMPLETIONS))
def test_fields_that_would_change_a_completion_are_refused_where_not_supported(field: str, value: Any) -> None:
    assert refusal(CompletionRequest, prompt="hello", **{field: value}).param == field


def test_neutral_values_of_unsupported_fields_and_unknown_fields_are_fine() -> None:
    neutral = {"logit_bias": {}, "chat_template_kwargs": {}, "use_beam_search": False, "unheard_of": [1, 2, 3]}
    chat = {"functions": [], "echo": False, "best_of": 1, "modalities": ["text"], "logprobs": False, "top_logprobs": 0}
    assert samplings(ChatRequest, messages=HELLO, **neutral, **chat) == [SamplingParams()]
    completion = {"suffix": "", "tools": [], "tool_choice": "none", "top_logprobs": 0}
    assert samplings(CompletionRequest, prompt="x", **neutral, **completion) == [SamplingParams(max_tokens=16)]


def test_fields_that_change_nothing_are_accepted() -> None:
    fields = {"user": "someone", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    assert parse(ChatRequest, {"messages": HELLO, **fields}).options("", None) == RequestOptions()


def test_the_engine_learns_which_conversation_a_request_continues() -> None:
    body = parse(ChatRequest, {"messages": HELLO, "session_id": "s"})
    assert body.options("", None) == RequestOptions(session_id="s")


OPENAIS = SamplingParams()


def samplings(kind: type[Any], defaults: SamplingParams = OPENAIS, **body: Any) -> list[SamplingParams]:
    return list(parse(kind, body).samplings(ByteTokenizer(), defaults))


def test_null_stands_for_the_default_in_every_field() -> None:
    nulls = dict.fromkeys([*WRONG_TYPES, *WRONG_CHAT_TYPES, *UNSUPPORTED, *UNSUPPORTED_IN_CHAT])
    assert samplings(ChatRequest, messages=HELLO, **nulls) == [SamplingParams()]
    nulls = dict.fromkeys([*WRONG_TYPES, *WRONG_COMPLETION_TYPES, *UNSUPPORTED, *UNSUPPORTED_IN_COMPLETIONS])
    assert samplings(CompletionRequest, prompt="x", **nulls) == [SamplingParams(max_tokens=16)]


def test_defaults_are_openais() -> None:
    assert samplings(ChatRequest, messages=HELLO) == [SamplingParams()]
    assert samplings(CompletionRequest, prompt="x") == [SamplingParams(max_tokens=16)]


def test_a_model_has_defaults_of_its_own_which_every_field_of_a_request_replaces() -> None:
    own = SamplingParams(temperature=0.2, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1)
    assert samplings(ChatRequest, own, messages=HELLO) == [own]
    assert samplings(ChatRequest, own, messages=HELLO, temperature=0) == [replace(own, temperature=0)]
    assert samplings(ChatRequest, own, messages=HELLO, top_k=-1, top_p=1) == [replace(own, top_k=0, top_p=1)]
    off = {"min_p": 0, "repetition_penalty": 1}
    assert samplings(ChatRequest, own, messages=HELLO, n=2, **off) == [replace(own, **off)] * 2
    assert samplings(ChatRequest, SamplingParams(top_k=-1), messages=HELLO) == [SamplingParams(top_k=0)]


def test_all_sampling_fields_reach_the_engine() -> None:
    body = {
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
        "presence_penalty": 0.5,
        "frequency_penalty": -2,
        "repetition_penalty": 1.5,
        "logit_bias": {"20": -100, "3": 1.5},
        "min_tokens": 2,
        "bad_words": ["ab"],
        "allowed_token_ids": [9, 3, 9],
        "skip_special_tokens": False,
        "prompt_logprobs": 4,
    }
    expected = SamplingParams(
        1,
        2**31 - 1,
        0.5,
        0.1,
        7,
        9,
        ("end",),
        (3,),
        True,
        True,
        presence_penalty=0.5,
        frequency_penalty=-2,
        repetition_penalty=1.5,
        logit_bias=((3, 1.5), (20, -100)),
        min_tokens=2,
        bad_words=((97, 98),),
        allowed_token_ids=(3, 9),
        logprobs=5,
        prompt_logprobs=4,
        skip_special_tokens=False,
    )
    assert samplings(ChatRequest, messages=HELLO, **body, logprobs=True, top_logprobs=5) == [expected]
    assert samplings(CompletionRequest, prompt="x", **body, logprobs=5) == [expected]


def test_all_options_reach_the_engine() -> None:
    body = {"priority": -3, "cache_salt": "pepper", "timeout": 1.5, "return_progress": True, "stream": True}
    expected = RequestOptions(-3, "someone", "someone:pepper", 1.5, None, True)
    assert parse(ChatRequest, {"messages": HELLO, **body}).options("someone", None) == expected
    whole = parse(ChatRequest, {"messages": HELLO, "return_progress": True})
    assert whole.options("someone", None) == RequestOptions(client="someone", cache_salt="someone")


def test_logprobs_without_alternatives_are_still_asked_for() -> None:
    assert samplings(ChatRequest, messages=HELLO, logprobs=True)[0].logprobs == 0
    assert samplings(CompletionRequest, prompt="x", logprobs=0)[0].logprobs == 0


def test_an_echo_with_logprobs_needs_the_prompts() -> None:
    (sampling,) = samplings(CompletionRequest, prompt="x", echo=True, logprobs=3)
    assert (sampling.logprobs, sampling.prompt_logprobs) == (3, 3)
    (sampling,) = samplings(CompletionRequest, prompt="x", echo=True, logprobs=3, prompt_logprobs=7)
    assert (sampling.logprobs, sampling.prompt_logprobs) == (3, 7)
    assert samplings(CompletionRequest, prompt="x", echo=True)[0].prompt_logprobs is None
    of_choices = samplings(CompletionRequest, prompt="x", prompt_logprobs=7, n=3)
    assert [sampling.prompt_logprobs for sampling in of_choices] == [7, None, None]


def test_an_echo_may_generate_nothing_but_the_prompt_is_computed() -> None:
    assert samplings(CompletionRequest, prompt="x", echo=True, max_tokens=0)[0].max_tokens == 1


def test_the_best_of_several_is_found_by_their_logprobs() -> None:
    candidates = samplings(CompletionRequest, prompt="x", n=2, best_of=3, seed=7)
    assert [candidate.logprobs for candidate in candidates] == [0, 0, 0]
    assert [candidate.seed for candidate in candidates] == [choice_seed(7, choice) for choice in range(3)]
    assert [c.logprobs for c in samplings(CompletionRequest, prompt="x", n=2, best_of=2)] == [None, None]


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    body = {"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 9}
    assert parse(ChatRequest, body).limit() == 9


def test_prompts_times_n_are_bounded() -> None:
    refusal(CompletionRequest, prompt=["x"] * (MAX_CHOICES // 2 + 1), n=2)
