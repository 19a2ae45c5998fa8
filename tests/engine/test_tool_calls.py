"""Calls of tools in text. An answer's parts are listed first and written down as one text: the list is the oracle."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinycluster.engine.tool_calls import (
    Content,
    ToolCallArguments,
    ToolCallParser,
    ToolCallStarted,
    ToolEvent,
    tool_call_parser,
)
from tinycluster.engine.tool_format import ToolFormat

NAMES = ("get_weather", "get", "say-hello")
ToolCall = tuple[str, str]


def events_of(parser: ToolCallParser, pieces: Sequence[str]) -> list[ToolEvent]:
    return [event for piece in pieces for event in parser.push(piece)] + parser.finish()


def parsed(
    format: ToolFormat, *pieces: str, names: Sequence[str] = NAMES, parallel: bool = True
) -> tuple[str, list[ToolCall]]:
    """An answer's content and its calls, after checks that hold for every sequence of events."""
    content, calls = "", []
    for event in events_of(tool_call_parser(format, names, parallel=parallel), pieces):
        if isinstance(event, Content):
            content += event.text
        elif isinstance(event, ToolCallStarted):
            assert event.index == len(calls)
            calls.append((event.name, ""))
        else:
            assert isinstance(event, ToolCallArguments)
            assert event.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return content, calls


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def llama3(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def cut(text: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(bounds)]


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<tool_", "<", "</", "<|python_tag|>", "<|pyth", "\n", " ", "; ", "a", "}", "{"),
    *('{"name": "get", "arguments": {"x": "}<tool_call>"}}', '{"arguments": {"a": [1, {}]}, "name": "get"}', '"', "\\"),
    *('{"name": "get", "parameters": {}}', '{"name": "nobody", "parameters": {}}', '{"name": "get"', ', "arguments": '),
    *('{"type": "function", "name": "say-hello", "parameters": "{\\"a\\": 1}"}', '{"name": "get"}', "é", "["),
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join)
objects = st.dictionaries(st.text(max_size=4), st.sampled_from([1, None, [{"b": '}]"'}], '\\"é', {}]))
formats = st.sampled_from(["hermes", "llama3"])


@given(formats, texts, st.lists(st.integers(0, 10**6), max_size=8), st.booleans())
def test_events_do_not_depend_on_how_the_text_is_cut(
    format: ToolFormat, text: str, places: list[int], parallel: bool
) -> None:
    whole = parsed(format, text, parallel=parallel)
    assert parsed(format, *cut(text, places), parallel=parallel) == whole
    assert parsed(format, *text, parallel=parallel) == whole


@given(formats, texts)
def test_where_no_tool_is_known_all_text_is_content(format: ToolFormat, text: str) -> None:
    assert parsed(format, text, names=()) == (text, [])


@given(texts)
def test_what_a_parser_says_never_grows_or_changes_order(text: str) -> None:
    """Every character that comes out came in, in this order; only the frames of calls and spaces are lost."""
    content, calls = parsed("hermes", text)
    rest = iter(text)
    assert all(character in rest for character in content)
    assert sum(len(arguments) for _, arguments in calls) <= len(text)


@given(st.sampled_from(["", "Let me see. ", "<b>"]), st.lists(st.tuples(st.sampled_from(NAMES), objects), max_size=4))
def test_hermes_calls_come_out_as_they_were_written(said: str, calls: list[tuple[str, Any]]) -> None:
    written = [(name, json.dumps(arguments)) for name, arguments in calls]
    text = said + "\n".join(hermes(name, arguments) for name, arguments in written)
    content, read = parsed("hermes", text)
    assert read == written
    assert content.rstrip() == said.rstrip()


@given(
    st.sampled_from(["", "<|python_tag|>", "\n"]),
    st.lists(st.tuples(st.sampled_from(NAMES), objects), min_size=1, max_size=4),
)
def test_llama_calls_come_out_as_they_were_written(before: str, calls: list[tuple[str, Any]]) -> None:
    written = [(name, json.dumps(arguments)) for name, arguments in calls]
    assert parsed("llama3", before + "; ".join(llama3(name, arguments) for name, arguments in written)) == ("", written)


def test_arguments_are_streamed_while_they_are_written() -> None:
    parser = tool_call_parser("hermes", NAMES)
    assert parser.push('Hm <tool_call>{"name": "get", "argu') == [Content("Hm")]
    assert parser.push('ments": ') == []
    assert parser.push('{"x":') == [ToolCallStarted(0, "get"), ToolCallArguments(0, '{"x":')]
    assert parser.push(" 1") == [ToolCallArguments(0, " 1")]
    assert parser.push("}}</tool_") == [ToolCallArguments(0, "}")]
    assert parser.push("call> ") == []
    assert parser.num_calls == 1
    assert parser.finish() == []


def test_text_that_may_become_a_marker_waits_for_what_follows() -> None:
    parser = tool_call_parser("hermes", NAMES)
    assert parser.push("a <tool") == [Content("a")]
    assert parser.push("box>") == [Content(" <toolbox>")]
    assert parser.push("<") == []
    assert parser.finish() == [Content("<")]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>get(x=1)</tool_call>",
        '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>',
        '<tool_call>{"name": get, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "get", "arguments": 7}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"name": "get", }</tool_call>',
        '<tool_call>{"name": "get"',
        "<tool_call>",
        " \n<tool_call> {",
        "<tool_call>[]</tool_call> after",
        "plain text \n",
    ],
)
def test_malformed_calls_are_content(text: str) -> None:
    assert parsed("hermes", text) == (text, [])


def test_python_that_a_model_writes_stays_text() -> None:
    code = '__import__("os").system("true")'
    assert parsed("llama3", f"<|python_tag|>{code}") == (f"<|python_tag|>{code}", [])
    arguments = json.dumps({"code": code})
    assert parsed("llama3", llama3("get", arguments)) == ("", [("get", arguments)])


def test_a_json_answer_that_calls_nothing_is_content() -> None:
    for text in (
        '{"name": "Ada", "parameters": {}}',
        '{"city": "Paris"}',
        '{"name": 7}',
        "{}",
        '{"a": {"name": "get"}}',
    ):
        assert parsed("llama3", text) == (text, [])


def test_a_call_that_breaks_off_keeps_the_arguments_so_far() -> None:
    assert parsed("hermes", '<tool_call>{"name": "get", "arguments": {"a": "b') == ("", [("get", '{"a": "b')])


def test_text_after_a_call_is_content() -> None:
    assert parsed("hermes", hermes("get", "{}") + "\nDone <b>") == ("Done <b>", [("get", "{}")])
    assert parsed("hermes", '<tool_call>{"name": "get", "arguments": {}} oops') == ("oops", [("get", "{}")])
    assert parsed("llama3", llama3("get", "{}") + " Done") == (" Done", [("get", "{}")])


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert parsed("hermes", '<tool_call>{"name": "get"}</tool_call>') == ("", [("get", "{}")])
    assert parsed("llama3", '{"name": "get", "parameters": null}') == ("", [("get", "{}")])


def test_several_calls_may_share_one_pair_of_markers() -> None:
    text = '<tool_call>\n{"name": "get", "arguments": {}}\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>'
    assert parsed("hermes", text) == ("", [("get", "{}"), ("get", '{"a": 1}')])


def test_without_parallel_calls_only_the_first_counts() -> None:
    text = hermes("get", '{"a": 1}') + "\n" + hermes("get_weather", "{}")
    assert parsed("hermes", text, parallel=False) == ("", [("get", '{"a": 1}')])
