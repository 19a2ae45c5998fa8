"""Calls that a model is made to write: read by the parser, judged by jsonschema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.engine.grammar_walk import walk
from tests.engine.test_gguf_tokenizer import build, golden, sentencepiece_fields
from tests.engine.test_tool_calls import parsed
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar import GrammarCompiler
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.engine.tool_definitions import Tool
from tinycluster.engine.tool_format import ToolFormat
from tinycluster.engine.tool_grammar import tool_grammar

WEATHER = Tool(
    "get_weather",
    {
        "properties": {"city": {"type": "string", "maxLength": 9}, "unit": {"$ref": "#/$defs/unit"}},
        "required": ["city", "unit"],
        "$defs": {"unit": {"enum": ["C", "F"]}},
    },
)
NOTHING = Tool("now", {"type": "object", "properties": {}, "additionalProperties": False})
NUMBERS = Tool("add", {"properties": {"of": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}})
TOOLS = [WEATHER, NOTHING, NUMBERS]
NAMES = [tool.name for tool in TOOLS]
FORMATS: list[ToolFormat] = ["hermes", "llama3"]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return open_checkpoint(smollm2_path).tokenizer()


@pytest.fixture(scope="module")
def compiler(smollm2: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(smollm2, smollm2.vocab_size, smollm2.eos_token_ids)


def written(
    compiler: GrammarCompiler, tokenizer: Tokenizer, format: ToolFormat, choice: str, parallel: bool, seed: int
) -> list[tuple[str, Any]]:
    spec = tool_grammar(format, TOOLS, choice, parallel)
    assert spec is not None
    text = tokenizer.decode(walk(tokenizer, compiler.compile(spec), seed, max_tokens=3000))
    content, calls = parsed(format, text, names=NAMES)
    assert content == ""
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("format", FORMATS)
def test_required_calls_name_a_tool_and_follow_its_schema(
    format: ToolFormat, compiler: GrammarCompiler, smollm2: Tokenizer
) -> None:
    answers = [written(compiler, smollm2, format, "required", True, seed) for seed in range(12)]
    assert max(map(len, answers)) > 1
    assert min(map(len, answers)) >= 1
    for name, arguments in (call for answer in answers for call in answer):
        schema = next(tool.parameters for tool in TOOLS if tool.name == name)
        assert isinstance(arguments, dict)
        # uniqueItems is not supported, and the tool is not strict.
        jsonschema.validate(arguments, schema if name != "add" else {})
    assert {name for answer in answers for name, _ in answer} == set(NAMES)


@pytest.mark.parametrize("format", FORMATS)
def test_a_named_tool_is_called_once(format: ToolFormat, compiler: GrammarCompiler, smollm2: Tokenizer) -> None:
    for seed in range(4):
        calls = written(compiler, smollm2, format, "get_weather", True, seed)
        assert [name for name, _ in calls] == ["get_weather"]
        jsonschema.validate(calls[0][1], WEATHER.parameters)


@pytest.mark.parametrize("format", FORMATS)
def test_models_of_pieces_call_tools_too(format: ToolFormat) -> None:
    pieces = build(sentencepiece_fields(golden("sentencepiece.json")))
    compiler = GrammarCompiler(pieces, pieces.vocab_size, pieces.eos_token_ids)
    for seed in range(3):
        calls = written(compiler, pieces, format, "get_weather", True, seed)
        jsonschema.validate(calls[0][1], WEATHER.parameters)


@pytest.mark.parametrize("format", FORMATS)
def test_without_parallel_calls_there_is_one(format: ToolFormat, compiler: GrammarCompiler, smollm2: Tokenizer) -> None:
    assert {len(written(compiler, smollm2, format, "required", False, seed)) for seed in range(6)} == {1}


def test_a_model_that_may_choose_is_free() -> None:
    assert tool_grammar("hermes", TOOLS, "auto", True) is None
    assert tool_grammar("hermes", TOOLS, "none", True) is None


def test_a_strict_tool_with_an_unsupported_keyword_is_refused(compiler: GrammarCompiler) -> None:
    strict = Tool("add", NUMBERS.parameters, is_strict=True)
    spec = tool_grammar("hermes", [strict], "required", True)
    assert spec is not None
    with pytest.raises(RequestError, match="uniqueItems"):
        compiler.compile(spec)


def test_tools_with_too_many_patterns_are_refused() -> None:
    tools = [Tool(f"tool_{i}", {"properties": {"p": {"pattern": "[a-z]?" * 40}}}) for i in range(10)]
    assert tool_grammar("hermes", tools, "tool_3", True) is not None
    with pytest.raises(RequestError, match="patterns") as raised:
        tool_grammar("hermes", tools, "required", True)
    assert raised.value.param == "tools"


def test_128_tools_compile(compiler: GrammarCompiler) -> None:
    properties = {f"p{i}": {"type": "string", "description": "d" * 20} for i in range(20)}
    tools = [Tool(f"tool_{i}", {"properties": properties}) for i in range(128)]
    spec = tool_grammar("hermes", tools, "required", True)
    assert spec is not None
    compiler.compile(spec)
