"""What a user writes as rules, checked and turned into the matching library's own notation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar_limits import check_grammar, check_lark, check_regex, check_terminals
from tinycluster.engine.json_schema_limits import check_schema

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "tool_calls"]
MAX_SOURCE_CHARS = 2**16
MAX_TOOLS_CHARS = 2**18
# What follows a text is not worked out ahead where an expression may repeat: that takes time with the cube of it.
STEP_BY_STEP = '%llguidance {"no_forcing": true}\n'
NAMES: dict[GrammarKind, str] = {
    "json_object": "the JSON object",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the choice",
    "grammar": "the grammar",
    "tool_calls": "the schema of the tools' parameters",
}
# The same for every schema: a schema's own settings must not change what JSON is.
JSON_SETTINGS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    # A model that begins a run of spaces does not always find its end.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}",
    "coerce_one_of": True,
    "lenient": False,
}

REASONS = {
    "Unsatisfiable schema": "cannot be satisfied by any value",
    "NoExtension": "allows no text at all",
    "Failed to generate regex": "bounds numbers by values that are not supported",
    "Unable to determine": "is too complex",
    "not present in a registry": "refers to another document, which is not supported",
    "lookarounds not supported": "is not valid: look-around and word boundaries are not supported",
}


@dataclass(frozen=True)
class GrammarSpec:
    """The rules for a request's text.

    `source` is empty for json_object; for json_schema JSON; for choice a JSON list of texts; for tool_calls what
    `tool_grammar` makes; for grammar a context-free grammar in EBNF as llama.cpp writes it (with a rule `root`) or in
    Lark's notation (with a rule `start`, without %json and the operators & and ~). A regular expression matches the
    whole text; it has neither look-around nor back-references. oneOf is read as anyOf.
    """

    kind: GrammarKind
    source: str = ""


def rules_of(spec: GrammarSpec, has_leading_space: bool) -> str:
    """The library's rules. `has_leading_space`: a space goes before the text, which decoding strips. RequestError."""
    name = NAMES[spec.kind]
    limit = MAX_TOOLS_CHARS if spec.kind == "tool_calls" else MAX_SOURCE_CHARS
    if len(spec.source) > limit:
        raise RequestError(f"{name} is too large: {len(spec.source)} characters, at most {limit} are allowed")
    try:
        spec.source.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} is not valid Unicode") from error
    rules = _rules(spec)
    grammars = [{"name": "text", "lark_grammar": rules}]
    if has_leading_space:
        header = STEP_BY_STEP if rules.startswith(STEP_BY_STEP) else ""
        grammars.insert(0, {"name": "spaced", "lark_grammar": f'{header}start: " " @text\n'})
    return json.dumps({"grammars": grammars})


def _rules(spec: GrammarSpec) -> str:
    if spec.kind == "json_object":
        return _json_rules({"type": "object"})
    if spec.kind == "json_schema":
        return _json_rules(json_schema(spec.source))
    if spec.kind == "tool_calls":
        return _step_by_step(spec.source)
    if spec.kind == "regex":
        check_regex(spec.source)
        return STEP_BY_STEP + _lark_of_regex(spec.source)
    if spec.kind == "choice":
        return _lark_of_regex("|".join(map(_literal, json.loads(spec.source))))
    return STEP_BY_STEP + _lark(spec.source)


def _json_rules(schema: Any) -> str:
    settled = {**schema, "x-guidance": JSON_SETTINGS} if isinstance(schema, dict) else schema
    return _step_by_step(f"start: %json {json.dumps(settled)}\n")


def _step_by_step(rules: str) -> str:
    return STEP_BY_STEP + rules if '"pattern' in rules else rules


def json_schema(source: str) -> Any:
    """The schema, checked. RequestError."""
    try:
        schema = json.loads(source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError("the JSON schema is not valid JSON") from error
    check_schema(schema)
    return schema


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _lark_of_regex(regex: str) -> str:
    rules = json.loads(llguidance.LLMatcher.grammar_from_regex(regex))
    return str(rules["grammars"][0]["lark_grammar"])


def _literal(text: str) -> str:
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):X}}}" for character in text)


def _lark(source: str) -> str:
    check_grammar(source)
    if re.search(r"(?m)^[ \t]*(?:%llguidance\b|start[ \t]*:(?!:=))", source):
        check_lark(source)
        return source
    try:
        rules = gbnf_to_lark(source)
    except RecursionError as error:
        raise RequestError("the grammar is nested too deeply") from error
    # The converter of EBNF raises bare Exceptions, and IndexError where a text ends too early.
    except Exception as error:
        raise RequestError(f"the grammar is not valid: {_first_line(str(error)) or 'it ends too early'}") from error
    check_terminals(rules)
    return rules


def explain(kind: GrammarKind, reason: str) -> str:
    """One sentence for what the library says."""
    name = NAMES[kind]
    first = _first_line(reason)
    if match := re.search(r"Unimplemented keys: (\[.*\])", first):
        return f"{name} uses keywords that are not supported: {_listed(match[1])}"
    if "regex parse error" in reason and (match := re.search(r"error: (.+)", reason)):
        return f"{name} is not valid: {match[1]}"
    for sign, sentence in REASONS.items():
        if sign in first:
            return f"{name} {sentence}"
    if re.search(r"too (?:big|many|large|complex)|fuel|items; max|limit", first):
        return f"{name} is too complex"
    if not first or first.startswith("panic"):
        return f"{name} is not supported"
    return f"{name} is not valid: {first}"


def _listed(keys: str) -> str:
    try:
        return ", ".join(map(str, json.loads(keys)))
    except ValueError:
        return keys


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    line = re.sub(r"^(?:at )?\d+\(\d+\): ", "", line)
    return line.removeprefix("failed to compile JSON schema: ")[:200].strip()


def choice_source(choices: Sequence[str]) -> str:
    return json.dumps(list(choices), ensure_ascii=False)
