"""What a user writes as rules, checked and turned into the matching library's own notation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from tinycluster.engine.errors import RequestError
from tinycluster.engine.json_schema_limits import check_schema

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "tool_calls"]
MAX_SOURCE_CHARS = 2**16
MAX_TOOLS_CHARS = 2**18
MAX_RULES = 500
"""Of a grammar in EBNF: the time to convert one grows with the square of their number."""
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
    "not present in a registry": "refers to another document, which is not supported",
    "lookarounds not supported": "is not valid: look-around and word boundaries are not supported",
}


@dataclass(frozen=True)
class GrammarSpec:
    """The rules for a request's text.

    `source` is empty for json_object; for json_schema JSON; for choice a JSON list of texts; for grammar a context-free
    grammar in Lark's notation (with a rule `start`) or in EBNF as llama.cpp writes it (with a rule `root`); for
    tool_calls what `tool_grammar` makes. oneOf is read as anyOf. A regular expression matches the whole text; it has
    neither look-around nor back-references.
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
    grammar = _grammar(spec)
    grammars = [{"name": "text", **grammar}]
    if has_leading_space:
        grammars.insert(0, {"name": "spaced", "lark_grammar": 'start: " " @text\n'})
    return json.dumps({"grammars": grammars})


def _grammar(spec: GrammarSpec) -> dict[str, Any]:
    if spec.kind == "json_object":
        return {"json_schema": {"type": "object", "x-guidance": JSON_SETTINGS}}
    if spec.kind == "json_schema":
        return {"json_schema": json_schema(spec.source)}
    if spec.kind == "tool_calls":
        return {"lark_grammar": spec.source}
    if spec.kind == "regex":
        return _lark_of_regex(spec.source)
    if spec.kind == "choice":
        return _lark_of_regex("|".join(map(_literal, json.loads(spec.source))))
    return {"lark_grammar": _lark(spec.source)}


def json_schema(source: str) -> Any:
    """The schema with our own settings in it. RequestError."""
    try:
        schema = json.loads(source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError("the JSON schema is not valid JSON") from error
    check_schema(schema)
    return {**schema, "x-guidance": JSON_SETTINGS} if isinstance(schema, dict) else schema


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _lark_of_regex(regex: str) -> dict[str, Any]:
    if re.search(r"(?<!\\)(?:\\\\)*\\$", regex):
        raise RequestError("the regular expression is not valid: it ends with a backslash")
    rules: dict[str, Any] = json.loads(llguidance.LLMatcher.grammar_from_regex(regex))
    return {"lark_grammar": rules["grammars"][0]["lark_grammar"]}


def _literal(text: str) -> str:
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):X}}}" for character in text)


def _lark(source: str) -> str:
    if re.search(r"%\s*json", source):
        raise RequestError("the grammar must not contain %json; ask for a JSON schema instead")
    if source.count("::=") > MAX_RULES:
        raise RequestError(f"the grammar has more than {MAX_RULES} rules")
    try:
        return any_to_lark(source)
    except RecursionError as error:
        raise RequestError("the grammar is nested too deeply") from error
    # The converter of EBNF raises bare Exceptions, and IndexError where a text ends too early.
    except Exception as error:
        raise RequestError(f"the grammar is not valid: {_first_line(str(error)) or 'it ends too early'}") from error


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
    return re.sub(r"^(?:at )?\d+\(\d+\): ", "", line)[:200].strip()


def choice_source(choices: Sequence[str]) -> str:
    return json.dumps(list(choices), ensure_ascii=False)
