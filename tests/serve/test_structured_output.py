from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from tests.engine.grammar_walk import walk
from tests.engine.test_gguf_tokenizer import build, byte_level_fields
from tinycluster.cluster.driver import Engine
from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar import GrammarSpec
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.serve import structured_output
from tinycluster.serve.structured_output import compile_grammar, read_grammar

SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}}


class _Sizes:
    vocab_size = 300


class _Model:
    """The part of an engine that compilation reads."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = build(byte_level_fields())
        self.config = _Sizes()


def compiled(model: _Model, spec: GrammarSpec, **options: Any) -> Coroutine[Any, Any, Any]:
    return compile_grammar(cast(Engine, model), spec, **options)


def source(spec: GrammarSpec | None) -> Any:
    assert spec is not None
    return json.loads(spec.source)


def test_free_text_needs_no_grammar() -> None:
    assert read_grammar(None, None) is None
    assert read_grammar({"type": "text"}, {}) is None
    assert read_grammar({"type": "text"}, {"json": None, "json_object": False}) is None


def test_every_kind_of_rules_becomes_a_grammar() -> None:
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    assert source(read_grammar(wrapped, None)) == SCHEMA
    assert source(read_grammar(None, {"json": SCHEMA})) == SCHEMA
    assert source(read_grammar(None, {"json": json.dumps(SCHEMA)})) == SCHEMA
    assert source(read_grammar(None, {"choice": ["a", "é"]})) == ["a", "é"]
    assert read_grammar({"type": "json_object"}, None) == GrammarSpec("json_object")
    assert read_grammar(None, {"json_object": True}) == GrammarSpec("json_object")
    assert read_grammar(None, {"regex": "a+", "json": None}) == GrammarSpec("regex", "a+")
    assert read_grammar(None, {"grammar": 'start: "a"'}) == GrammarSpec("grammar", 'start: "a"')


@pytest.mark.parametrize(
    ("response_format", "structured_outputs", "param"),
    [
        ({"type": "sound"}, None, "response_format.type"),
        ({"type": ["json_object"]}, None, "response_format.type"),
        ({}, None, "response_format.type"),
        ("json_object", None, "response_format"),
        ({"type": "json_schema"}, None, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": []}, None, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, None, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": 123}}, None, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "name": 1}}, None, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}, {}, "response_format.json_schema.strict"),
        (None, [], "structured_outputs"),
        (None, {"hiccup": 1}, "structured_outputs.hiccup"),
        (None, {"json": 123}, "structured_outputs.json"),
        (None, {"json_object": "yes"}, "structured_outputs.json_object"),
        (None, {"regex": ""}, "structured_outputs.regex"),
        (None, {"regex": ["a"]}, "structured_outputs.regex"),
        (None, {"choice": []}, "structured_outputs.choice"),
        (None, {"choice": ["a", 1]}, "structured_outputs.choice"),
        (None, {"choice": ["a"] * 1001}, "structured_outputs.choice"),
        (None, {"grammar": 7}, "structured_outputs.grammar"),
        (None, {"regex": "a", "choice": ["a"]}, "structured_outputs"),
        ({"type": "json_object"}, {"regex": "a"}, "structured_outputs"),
    ],
)  # fmt: skip
def test_a_malformed_field_is_named(response_format: Any, structured_outputs: Any, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_grammar(response_format, structured_outputs)
    assert raised.value.param == param


def test_a_schema_that_json_cannot_hold_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    for schema in (deep, {"minimum": float("inf")}):
        with pytest.raises(RequestError, match="nested too deeply or holds a number"):
            read_grammar(None, {"json": schema})
    while deep:
        deep = deep["items"]


def test_a_compiled_grammar_constrains_the_engines_tokens() -> None:
    model = _Model()
    grammar = asyncio.run(compiled(model, GrammarSpec("regex", "(he|hel)[0-9]{2}")))
    text = model.tokenizer.decode(walk(model.tokenizer, grammar, seed=3))
    assert text[:2] == "he"
    assert text[-2:].isdigit()


def test_a_refused_grammar_names_its_field() -> None:
    async def run() -> None:
        model = _Model()
        with pytest.raises(RequestError, match="unclosed character class") as raised:
            await compiled(model, GrammarSpec("regex", "["))
        assert raised.value.param == "structured_outputs.regex"
        with pytest.raises(RequestError) as raised:
            await compiled(model, GrammarSpec("json_schema", "7"), param="structured_outputs.json")
        assert raised.value.param == "structured_outputs.json"
        await compiled(model, GrammarSpec("regex", "[a]"))

    asyncio.run(run())


def test_a_compilation_that_takes_too_long_is_given_up() -> None:
    async def run() -> None:
        with pytest.raises(RequestError, match="take too long to compile"):
            await compiled(_Model(), GrammarSpec("json_object"), timeout_s=0)

    asyncio.run(run())


def test_an_engine_that_is_gone_takes_its_compiler_along() -> None:
    model = _Model()
    asyncio.run(compiled(model, GrammarSpec("json_object")))
    key = id(model)
    assert key in structured_output._COMPILATIONS
    del model
    gc.collect()
    assert key not in structured_output._COMPILATIONS
