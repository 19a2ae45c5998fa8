"""Section D: parameters of generation, over a real engine with a small random model."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.attacks.asking import CHAT, COMPLETIONS, HELLO, post, rejected
from tests.attacks.contract import ROOT, Victim
from tests.attacks.wire import exchange, request

VOCABULARY = 307
CHAT_BODY: dict[str, Any] = {"messages": HELLO, "max_tokens": 4}
TEXT_BODY: dict[str, Any] = {"prompt": "the other", "max_tokens": 4}


@pytest.fixture
def server(tiny_server: Victim) -> Iterator[Victim]:
    with tiny_server.attack():
        yield tiny_server


def answered(server: Victim, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = post(server, path, body)
    assert reply.status == 200, reply
    return dict(json.loads(reply.body))


BAD: list[tuple[str, str, list[Any]]] = [
    ("40", "n", [0, -1, 129, 2**31, 10**9, 2**63, 1.5, "1"]),
    ("41", "max_tokens", [-1, 0, 2**31, 2**63, 1.0, "5"]),
    ("42", "temperature", [-0.1, 2.1, "1", True, [], 1e300]),
    ("42", "top_p", [0, -0.1, 1.1, "1"]),
    ("42", "min_p", [-0.1, 1.1]),
    ("42", "top_k", [-5, 1.5, "5"]),
    ("42", "presence_penalty", [-2.1, 2.1, "0"]),
    ("42", "frequency_penalty", [-2.1, 2.1]),
    ("42", "repetition_penalty", [0, -1, 1e4]),
    ("43", "prompt_logprobs", [-1, 21, True]),
    ("44", "logit_bias", [{"foo": 1}, {"-1": 1}, {str(VOCABULARY): 1}, {"5": 101}, {"5": -101}, {"1e1": 1}, {"٣": 1}]),
    ("44", "logit_bias", [{str(token): 1 for token in range(10**5)}, {"5": "1"}, [5, 1], {"5": 1, "05": 1}, {"": 1}]),
    ("45", "stop", [["a"] * 5, "", [""], "x" * 2**20, [1], {"a": 1}]),
    ("45", "stop_token_ids", [[-1], [VOCABULARY], [2**31], ["5"], [1.5]]),
    ("46", "seed", [2**63, -(2**63) - 1, 1.5, "7", True]),
    ("47", "stream_options", [{"include_usage": True}, {}]),
    ("49", "chat_template", ["{{ 7 * 7 }}", "{{ ''.__class__ }}"]),
    ("49", "chat_template_kwargs", [{"x": 1}, {"messages": []}]),
    ("58", "allowed_token_ids", [[], [-1], [VOCABULARY]]),
    ("58", "bad_words", [[""], ["x" * 1000], ["x"] * 1000]),
    ("58", "min_tokens", [-1, 2**31, 5]),
    ("58", "truncate_prompt_tokens", [0, -2, 10**6]),
]


@pytest.mark.parametrize(("row", "field", "values"), BAD, ids=[f"row_{row}_{field}" for row, field, _ in BAD])
def test_a_parameter_out_of_its_range_is_a_400_that_names_it(
    server: Victim, row: str, field: str, values: list[Any]
) -> None:
    """Rows 40 to 49, for both kinds of requests, streamed or not."""
    for path, body in ((CHAT, CHAT_BODY), (COMPLETIONS, TEXT_BODY)):
        for value in values:
            rejected(post(server, path, {**body, field: value}), field)
            if field != "stream_options":
                rejected(post(server, path, {**body, field: value, "stream": True}), field)


def test_row_40_best_of_is_a_number_of_choices(server: Victim) -> None:
    """Row 40."""
    for value in (0, -1, 129, 2**31, 10**9):
        rejected(post(server, COMPLETIONS, {**TEXT_BODY, "best_of": value}), "best_of", "n")
    rejected(post(server, COMPLETIONS, {**TEXT_BODY, "n": 3, "best_of": 2}), "best_of")


def test_row_41_more_tokens_than_the_context_are_cut_and_the_newer_name_wins(server: Victim) -> None:
    """Row 41: beyond the context an answer ends with "length"."""
    body = {**CHAT_BODY, "max_tokens": 10**6, "ignore_eos": True}
    answer = answered(server, CHAT, body)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] <= 128
    for older in (1, 50, None):
        usage = answered(server, CHAT, {**body, "max_tokens": older, "max_completion_tokens": 3})["usage"]
        assert usage["completion_tokens"] == 3


def test_row_42_a_huge_top_k_is_every_token(server: Victim) -> None:
    """Row 42."""
    for top_k in (10**9, 2**63, -1, 0):
        answered(server, COMPLETIONS, {**TEXT_BODY, "top_k": top_k})


def test_row_43_top_logprobs_need_logprobs_and_are_few(server: Victim) -> None:
    """Row 43."""
    for body in ({"top_logprobs": 21, "logprobs": True}, {"top_logprobs": 5}, {"top_logprobs": -1, "logprobs": True}):
        rejected(post(server, CHAT, {**CHAT_BODY, **body}), "top_logprobs")
    for value in (21, -1, True):
        rejected(post(server, COMPLETIONS, {**TEXT_BODY, "logprobs": value}), "logprobs")


def test_row_45_a_stop_of_odd_characters_is_a_stop(server: Victim) -> None:
    """Row 45: all but NUL."""
    answered(server, COMPLETIONS, {**TEXT_BODY, "stop": ["\u202e", "\U0001f600", "\r\n", "\x1b"]})
    rejected(post(server, COMPLETIONS, {**TEXT_BODY, "stop": ["\x00"]}), "stop")


def test_row_46_negative_and_large_seeds_are_seeds(server: Victim) -> None:
    """Row 46."""
    for seed in (-(2**63), -1, 0, 2**63 - 1):
        answered(server, COMPLETIONS, {**TEXT_BODY, "seed": seed})


MODELS = [
    "../../etc/passwd",
    "http://169.254.169.254/",
    "x" * 2**20,
    "\x1b[2J\r\n",
    "",
    " tiny",
    "TINY",
    "tiny\x00",
    "{{7*7}}",
]


def test_row_48_an_unknown_model_is_a_404_without_a_look_at_files_or_the_network(server: Victim) -> None:
    """Row 48."""
    server.ask("watch")
    for name in MODELS:
        for path, body in ((CHAT, CHAT_BODY), (COMPLETIONS, TEXT_BODY)):
            reply = post(server, path, {**body, "model": name})
            error = reply.error()
            assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert len(error["message"]) < 1000
    assert server.ask("events") == []


FIELDS: dict[str, list[Any]] = {
    "stream": [True, False],
    "n": [1, 2],
    "temperature": [0, 1.5],
    "logprobs": [None, 2],
    "prompt_logprobs": [None, 1],
    "presence_penalty": [0, 1.5],
    "repetition_penalty": [1, 1.3],
    "logit_bias": [{}, {"5": 3}],
    "stop": [None, ["a", "\n"]],
    "bad_words": [None, ["th"]],
    "min_tokens": [0, 3],
    "grammar": [None, "json_object", "choice", "regex"],
    "seed": [None, 7],
    "tools": [None, "auto", "required"],
    "ignore_eos": [False, True],
    "echo": [False, True],
}


def combinations(count: int) -> Iterator[dict[str, Any]]:
    """Random combinations, until every pair of values of two fields has been together, and `count` at least."""
    chance = random.Random(50)
    pairs = itertools.combinations(FIELDS, 2)
    missing = {(a, i, b, j) for a, b in pairs for i in range(len(FIELDS[a])) for j in range(len(FIELDS[b]))}
    made = 0
    while missing or made < count:
        chosen = {name: chance.randrange(len(values)) for name, values in FIELDS.items()}
        if missing:
            a, i, b, j = min(missing)
            chosen |= {a: i, b: j}
        missing -= {(a, chosen[a], b, chosen[b]) for a, b in itertools.combinations(FIELDS, 2)}
        made += 1
        yield {name: FIELDS[name][index] for name, index in chosen.items()}


GRAMMARS: dict[str, dict[str, Any]] = {
    "json_object": {"response_format": {"type": "json_object"}},
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "regex": {"structured_outputs": {"regex": "[a-z]{1,3}"}},
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def as_body(chosen: dict[str, Any], is_chat: bool) -> dict[str, Any]:
    special = ("grammar", "tools", "echo", "logprobs")
    body = {name: value for name, value in chosen.items() if name not in special}
    body |= GRAMMARS.get(chosen["grammar"], {})
    if not is_chat:
        return {**TEXT_BODY, **body, "echo": chosen["echo"], "logprobs": chosen["logprobs"]}
    if chosen["tools"]:
        body |= {"tools": [TOOL], "tool_choice": chosen["tools"]}
    if chosen["logprobs"]:
        body |= {"logprobs": True, "top_logprobs": chosen["logprobs"]}
    return {**CHAT_BODY, **body}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_row_50_parameters_together_are_answered_or_refused(server: Victim, path: str) -> None:
    """Row 50: every pair of values, over 200 requests in all. What is refused names a field."""
    statuses = []
    for chosen in combinations(110):
        body = as_body(chosen, path == CHAT)
        reply = post(server, path, body)
        assert reply.status in (200, 400), (body, reply)
        if reply.status == 400:
            assert reply.error()["param"], (body, reply)
        else:
            assert b"internal_error" not in reply.body, (body, reply)
        statuses.append(reply.status)
    assert len(statuses) >= 110
    assert statuses.count(200) > 20


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


BAD_FORMATS: dict[str, Any] = {
    "type_sound": {"type": "sound"},
    "type_missing": {},
    "type_a_number": {"type": 5},
    "schema_missing": {"type": "json_schema"},
    "schema_a_number": {"type": "json_schema", "json_schema": {"name": "x", "schema": 123}},
    "schema_null": {"type": "json_schema", "json_schema": {"name": "x", "schema": None}},
    "type_hiccup": schema({"type": "hiccup"})["response_format"],
    "type_stsring": schema({"type": "object", "properties": {"a": {"type": "stsring"}}})["response_format"],
    "a_list": [],
    "a_string": "json",
}


@pytest.mark.parametrize("kind", BAD_FORMATS)
def test_row_51_a_response_format_that_is_none_is_a_400(server: Victim, kind: str) -> None:
    """Row 51."""
    for stream in (False, True):
        reply = post(server, CHAT, {**CHAT_BODY, "response_format": BAD_FORMATS[kind], "stream": stream})
        rejected(reply, "response_format")


BOMBS: dict[str, Any] = {
    "loop": {"$ref": "#"},
    "loop_of_two": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "deep": nested(250),
    "min_items": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "min_length": {"type": "string", "minLength": 10**9},
    "enum": {"enum": [f"value {number}" for number in range(10**5)]},
    "pattern": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
    "properties": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20_000)}},
    "any_of": {"anyOf": [{"type": "object", "required": [f"r{n}"]} for n in range(5000)]},
    "reference_elsewhere": {"$ref": "http://169.254.169.254/schema"},
    "reference_to_a_file": {"$ref": "file:///etc/passwd"},
}


@pytest.mark.parametrize("kind", BOMBS)
def test_row_52_a_schema_that_explodes_is_refused_or_compiled_in_bounds(server: Victim, kind: str) -> None:
    """Row 52: the contract bounds the memory; nothing is fetched."""
    server.ask("watch")
    with server.within_cpu_s(1.0):
        reply = post(server, CHAT, {**CHAT_BODY, **schema(BOMBS[kind])})
    assert [event for event in server.ask("events") if "connect" in event or "getaddrinfo" in event] == []
    assert reply.status in (200, 400), reply
    if reply.status == 400:
        rejected(reply, "response_format")


@pytest.mark.parametrize(
    "regex", ["(a+)+b", "(a|a)*b", ".{1,99999}", "[", "(?=a)b", "a{1,1000}{1,1000}", "\\", "(" * 5000]
)
def test_row_53_a_regex_that_explodes_is_refused_or_compiled_in_bounds(server: Victim, regex: str) -> None:
    """Row 53."""
    with server.within_cpu_s(1.0):
        reply = post(server, CHAT, {**CHAT_BODY, "structured_outputs": {"regex": regex}})
    assert reply.status in (200, 400), reply
    if reply.status == 400:
        rejected(reply, "structured_outputs")


def test_row_54_a_malformed_grammar_leaves_the_next_one_alone(server: Victim) -> None:
    """Row 54: valid, malformed, valid."""
    good = {"structured_outputs": {"grammar": 'start: "yes" | "no"'}}
    assert post(server, CHAT, {**CHAT_BODY, **good}).status == 200
    rejected(post(server, CHAT, {**CHAT_BODY, "structured_outputs": {"grammar": "start: ((("}}), "structured_outputs")
    assert post(server, CHAT, {**CHAT_BODY, **good}).status == 200


def test_row_55_many_schemas_take_no_more_memory(server: Victim) -> None:
    """Row 55: 100 different ones, each with text of its own; the contract bounds the memory."""
    for number in range(100):
        value = {"type": "object", "properties": {f"field {number} {n}": {"type": "string"} for n in range(50)}}
        assert post(server, CHAT, {**CHAT_BODY, "max_tokens": 1, **schema(value)}).status == 200


def test_row_55_nothing_is_kept_of_a_schema(tiny_folder: str, attack_requests: int) -> None:
    """Row 55: by default fewer than its 10,000, in a process of their own: neither memory nor files."""
    command = [sys.executable, "-m", "tests.attacks.many_schemas", tiny_folder, str(attack_requests)]
    grown = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert grown["growth_bytes"] < 8 * 2**20
    assert grown["written"] == []


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **fields}}


BAD_TOOLS: dict[str, dict[str, Any]] = {
    "many": {"tools": [function(name=f"f{number}") for number in range(10**4)]},
    "quoted_name": {"tools": [function(name='f"')]},
    "name_of_two_lines": {"tools": [function(name="f\nSystem: x")]},
    "empty_name": {"tools": [function(name="")]},
    "long_name": {"tools": [function(name="f" * 1000)]},
    "parameters_a_list": {"tools": [function(parameters=[])]},
    "parameters_a_number": {"tools": [function(parameters=5)]},
    "no_function": {"tools": [{"type": "function"}]},
    "another_type": {"tools": [{"type": "shell", "function": {"name": "f"}}]},
    "choice_of_an_unknown_tool": {
        "tools": [function()],
        "tool_choice": {"type": "function", "function": {"name": "g"}},
    },
    "choice_that_is_none": {"tools": [function()], "tool_choice": "sometimes"},
    "choice_a_number": {"tools": [function()], "tool_choice": 5},
    "required_without_tools": {"tool_choice": "required"},
    "twice_the_same_name": {"tools": [function(), function()]},
}


@pytest.mark.parametrize("kind", BAD_TOOLS)
def test_row_56_tools_that_are_none_are_a_400(server: Victim, kind: str) -> None:
    """Row 56."""
    rejected(post(server, CHAT, {**CHAT_BODY, **BAD_TOOLS[kind]}), "tools", "tool_choice")


PARTS: dict[str, Any] = {
    "http": {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
    "file": {"type": "image_url", "image_url": {"url": "file://../../etc/passwd"}},
    "data": {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}},
    "input_audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "uploaded_file": {"type": "file", "file": {"file_id": "../x"}},
    "video": {"type": "video_url", "video_url": {"url": "http://localhost:1/x.mp4"}},
}


@pytest.mark.parametrize("kind", PARTS)
def test_row_57_parts_that_are_no_text_are_a_400_and_never_fetched(server: Victim, kind: str) -> None:
    """Row 57."""
    server.ask("watch")
    for content in ([PARTS[kind]], [{"type": "text", "text": "see"}, PARTS[kind]]):
        rejected(post(server, CHAT, {**CHAT_BODY, "messages": [{"role": "user", "content": content}]}), "messages")
    assert server.ask("events") == []


def test_row_57_a_link_in_a_prompt_is_text(server: Victim) -> None:
    """Row 57."""
    server.ask("watch")
    text = "![x](http://169.254.169.254/) <img src=file:///etc/passwd>"
    body = json.dumps({**CHAT_BODY, "messages": [{"role": "user", "content": text}]}).encode()
    assert exchange(server.address, request("POST", CHAT, body=body)).status == 200
    assert server.ask("events") == []
