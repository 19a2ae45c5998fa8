"""Grammars over real tokenizers. What random generations write is judged by others: json, jsonschema, re."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.engine.grammar_bombs import BOMBS
from tests.engine.grammar_walk import allowed, mask_bits, walk
from tests.engine.memory import resident_bytes
from tests.engine.test_gguf_tokenizer import build, byte_level_fields, golden, sentencepiece_fields
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar import GrammarCompiler, GrammarConstraint, GrammarSpec
from tinycluster.engine.grammar_source import choice_source
from tinycluster.engine.tokenizer import Tokenizer

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "height": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 3},
        "mood": {"enum": ["<|im_end|>", "glad", None, 3]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,4}$"}, "maxItems": 3},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "next"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"oneOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"const": {"a": [1, "é"]}}]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
    {"type": "string", "format": "date"},
]
REGEXES = ["(a+)+b", "(a|a)*b", r"[0-9]{3}-[a-f]+", 'x?(yes|no|maybe)/[^/"]*', r"\x{e9}\x{1F600}|<\|im_end\|>", "^ab$"]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return open_checkpoint(smollm2_path).tokenizer()


@pytest.fixture(scope="module")
def compiler(smollm2: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(smollm2, smollm2.vocab_size, smollm2.eos_token_ids)


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """The 256 bytes, "he", "hel", the control token <|im_end|> and the user's token <tool>."""
    return build(byte_level_fields())


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return build(sentencepiece_fields(golden("sentencepiece.json")))


Check = Callable[[str], object]


def validates(schema: Any) -> Check:
    return lambda text: jsonschema.validate(json.loads(text), schema)


def matches(regex: str) -> Check:
    python = re.sub(r"\\x\{(\w+)\}", lambda match: chr(int(match[1], 16)), regex)

    def check(text: str) -> None:
        assert re.fullmatch(python, text), text

    return check


def is_one_of(choices: list[str]) -> Check:
    def check(text: str) -> None:
        assert text in choices

    return check


def is_balanced(text: str) -> None:
    while "()" in text:
        text = text.replace("()", "")
    assert text == ""


CHOICES = ["yes", "no", "", "<|im_end|>", "a/b\n|(c", "é😀"]
CASES: list[tuple[GrammarSpec, Check]] = [
    (GrammarSpec("json_object"), lambda text: jsonschema.validate(json.loads(text), {"type": "object"})),
    *((GrammarSpec("json_schema", json.dumps(schema)), validates(schema)) for schema in SCHEMAS),
    *((GrammarSpec("regex", regex), matches(regex)) for regex in REGEXES),
    (GrammarSpec("choice", choice_source(CHOICES)), is_one_of(CHOICES)),
    (GrammarSpec("grammar", 'start: "(" start ")" start | ""'), is_balanced),
    (GrammarSpec("grammar", 'root ::= "a" [0-9]+ end\nend ::= "b" | "c"{2,3}'), matches("a[0-9]+(b|c{2,3})")),
]


@pytest.mark.parametrize(("spec", "check"), CASES, ids=[f"{spec.kind} {spec.source[:20]}" for spec, _ in CASES])
def test_every_generation_that_the_masks_allow_follows_its_grammar(
    spec: GrammarSpec, check: Check, smollm2: Tokenizer, compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile(spec)
    for seed in range(6):
        ids = walk(smollm2, grammar, seed)
        assert [token for token in ids if smollm2.is_special(token)] == [ids[-1]]
        check(smollm2.decode(ids))


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize(("spec", "check"), CASES, ids=[f"{spec.kind} {spec.source[:20]}" for spec, _ in CASES])
def test_grammars_hold_for_both_families_of_tokenizers(
    spec: GrammarSpec, check: Check, kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    grammar = GrammarCompiler(tokenizer, tokenizer.vocab_size + 7, tokenizer.eos_token_ids).compile(spec)
    for seed in range(3):
        check(tokenizer.decode(walk(tokenizer, grammar, seed, max_tokens=3000)))


def test_a_broken_grammar_would_be_seen(smollm2: Tokenizer, compiler: GrammarCompiler) -> None:
    ids = walk(smollm2, compiler.compile(GrammarSpec("regex", "[0-9]{3}-[a-z]+")), 0)
    with pytest.raises(AssertionError):
        matches("[0-9]{3}-[a-f]+")(smollm2.decode(ids) + "z")
    with pytest.raises(jsonschema.ValidationError):
        validates(PERSON)('{"name": "", "age": 1, "next": null}')


def test_a_mask_covers_the_embedding_and_never_allows_control_tokens_or_rows_without_a_token(
    smollm2: Tokenizer,
) -> None:
    num_rows = smollm2.vocab_size + 13
    compiler = GrammarCompiler(smollm2, num_rows, smollm2.eos_token_ids)
    constraint = compiler.compile(GrammarSpec("regex", "(?s:.*)")).start()
    assert len(constraint.mask()) == (num_rows + 7) // 8
    ids = allowed(constraint)
    assert max(ids) < smollm2.vocab_size
    assert [token for token in ids if smollm2.is_special(token)] == sorted(smollm2.eos_token_ids)
    assert len(ids) > 40_000


def test_end_tokens_are_allowed_exactly_where_the_text_may_end(smollm2: Tokenizer, compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(GrammarSpec("regex", "a|abc")).start()
    ends = []
    for character in "abc":
        ends.append([token for token in allowed(constraint) if token in smollm2.eos_token_ids])
        constraint.accept(smollm2.encode(character, add_special_tokens=False)[0])
    ends.append(allowed(constraint))
    assert ends == [[], [0, 2], [], [0, 2]]
    constraint.accept(2)
    assert constraint.is_finished
    assert allowed(constraint) == [0, 2]


def test_a_tokenizer_without_end_tokens_has_no_token_where_the_text_ends(byte_level: Tokenizer) -> None:
    constraint = GrammarCompiler(byte_level, byte_level.vocab_size, ()).compile(GrammarSpec("regex", "ab")).start()
    for byte in b"ab":
        constraint.accept(next(t for t in allowed(constraint) if byte_level.token_bytes(t) == bytes([byte])))
    assert allowed(constraint) == []
    assert not constraint.is_exhausted


def test_a_text_without_a_choice_is_written_in_the_models_own_tokens(
    smollm2: Tokenizer, compiler: GrammarCompiler
) -> None:
    text = 'hello world {"name": '
    constraint = compiler.compile(GrammarSpec("choice", choice_source([text]))).start()
    ids = []
    while (choices := allowed(constraint)) != [0, 2]:
        assert len(choices) == 1
        ids += choices
        constraint.accept(choices[0])
    assert ids == smollm2.encode(text, add_special_tokens=False)


def test_generations_of_one_grammar_do_not_see_each_other(smollm2: Tokenizer, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(GrammarSpec("regex", "[ab]{1,30}"))
    alone = [walk(smollm2, grammar, seed) for seed in range(4)]
    first, second = grammar.start(), grammar.start()
    for one, other in zip(alone[0], alone[1], strict=False):
        first.mask()
        first.accept(one)
        assert other in allowed(second)
        second.accept(other)
    assert [walk(smollm2, grammar, seed) for seed in range(4)] == alone


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_or_compiles_small(name: str, compiler: GrammarCompiler) -> None:
    kind, source = BOMBS[name]
    before = resident_bytes()
    try:
        constraint = compiler.compile(GrammarSpec(kind, source)).start()  # type: ignore[arg-type]
    except RequestError as error:
        refusal = error.message
    else:
        refusal = "the bomb compiles"
        drive(constraint, num_tokens=20)
    assert is_one_sentence(refusal)
    assert resident_bytes() - before < 64 * 2**20


def is_one_sentence(message: str) -> bool:
    foreign = ("llguidance", "lark", "panic", "lexer", "verbose", "matcher", "\n", "Traceback")
    return message.startswith("the ") and len(message) < 300 and not any(word in message for word in foreign)


def drive(constraint: GrammarConstraint, num_tokens: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(num_tokens):
        constraint.accept(int(rng.choice(np.flatnonzero(mask_bits(constraint)))))


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "[", "the regular expression is not valid: unclosed character class"),
        ("regex", "a\\", "the regular expression is not valid: it ends with a backslash"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"\bfoo", "look-around and word boundaries are not supported"),
        ("regex", "\ud800", "the regular expression is not valid Unicode"),
        ("regex", "a" * 2000, "the regular expression is too large: 2000 characters, at most 1024 are allowed"),
        ("json_schema", "123", "the JSON schema must be an object"),
        ("json_schema", "{", "the JSON schema is not valid JSON"),
        ("json_schema", '{"minimum": NaN}', "the JSON schema is not valid JSON"),
        ("json_schema", "false", "the JSON schema cannot be satisfied by any value"),
        ("json_schema", '{"not": {}}', "the JSON schema uses keywords that are not supported: not"),
        ("json_schema", '{"type": "strnig"}', "the JSON schema is not valid"),
        ("json_schema", '{"type": 7}', "the JSON schema is not valid"),
        ("json_schema", '{"properties": []}', "the JSON schema is not valid"),
        ("grammar", "hello", "the grammar is not valid"),
        ("grammar", "root ::= \\", "the grammar is not valid"),
        ("grammar", "", "the grammar is not valid"),
        ("grammar", "x" * 5000, "the grammar is too large: 5000 characters, at most 4096 are allowed"),
        ("grammar", "start: x", "the grammar is not valid: unknown name"),
        ("grammar", "start: %json {}", "the grammar must not contain %json"),
        ("grammar", "start: A\nA: /a/ & /b/", "the grammar must not contain & or ~"),
        ("grammar", "start: <|im_start|>", "the grammar is not supported"),
        ("grammar", 'start: "a" <[1]>', "the grammar is not supported"),
    ],
)
def test_malformed_rules_are_one_sentence(kind: Any, source: str, reason: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(RequestError) as raised:
        compiler.compile(GrammarSpec(kind, source))
    assert reason in raised.value.message
    assert is_one_sentence(raised.value.message)


def test_a_malformed_grammar_does_not_harm_the_next(smollm2: Tokenizer, compiler: GrammarCompiler) -> None:
    valid, malformed = GrammarSpec("regex", "[a-z]{3}"), GrammarSpec("regex", "[a-z{3}")
    before = walk(smollm2, compiler.compile(valid), 1)
    with pytest.raises(RequestError):
        compiler.compile(malformed)
    assert walk(smollm2, compiler.compile(valid), 1) == before


def test_rules_that_outgrow_their_bounds_end_the_text_and_nothing_else(compiler: GrammarCompiler) -> None:
    bomb = GrammarSpec("regex", "((a|b)*a(a|b){40}|(a|b)*b(a|b){41}|[a-z ]*e[a-z ]{30})*")
    constraint = compiler.compile(bomb).start()
    drive(constraint, num_tokens=150)
    assert constraint.is_exhausted
    assert allowed(constraint) == [0, 2]
    constraint.accept(17)
    assert allowed(constraint) == [0, 2]
    # What one request did to its rules does not touch another with the same.
    fresh = compiler.compile(bomb).start()
    assert len(allowed(fresh)) > 2
    assert not fresh.is_exhausted


def test_a_token_that_was_not_allowed_ends_the_text(smollm2: Tokenizer, compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(GrammarSpec("regex", "[0-9]+")).start()
    constraint.accept(smollm2.encode("x", add_special_tokens=False)[0])
    assert constraint.is_exhausted
    assert allowed(constraint) == [0, 2]


def test_many_different_schemas_leave_no_memory_behind(byte_level: Tokenizer) -> None:
    compiler = GrammarCompiler(byte_level, byte_level.vocab_size, byte_level.eos_token_ids)

    def compile_all(first: int, last: int) -> None:
        for i in range(first, last):
            compiler.compile(GrammarSpec("json_schema", json.dumps({"properties": {f"p{i}": {"const": i}}}))).start()

    compile_all(0, 200)
    before = resident_bytes()
    compile_all(200, 700)
    assert resident_bytes() - before < 4 * 2**20
