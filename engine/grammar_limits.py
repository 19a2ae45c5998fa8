"""Bounds on regular expressions and grammars whose compilation would take longer than their length lets one expect.

An expression of many optional parts takes time with the square of their number, and terminals that refer to others are
expanded into one expression.
"""

from __future__ import annotations

import re

from tinycluster.engine.errors import RequestError

MAX_REGEX_CHARS = 1024
MAX_GRAMMAR_CHARS = 4096
MAX_RULES = 500
"""Of a grammar in EBNF: the time to convert one grows with the square of their number."""
MAX_TERMINAL_CHARS = 2048
"""Of a terminal with all that it refers to written out."""
_DEFINITION = re.compile(r"^[ \t]*[!?]?([A-Za-z_][\w-]*)[^:\n\"/|]*:", re.MULTILINE)
_TERMINAL = re.compile(r"\b[A-Z_][A-Z0-9_]*\b")


def check_regex(regex: str) -> None:
    """RequestError for what is too long or ends in the middle of an escape."""
    if len(regex) > MAX_REGEX_CHARS:
        raise RequestError(
            f"the regular expression is too large: {len(regex)} characters, at most {MAX_REGEX_CHARS} are allowed"
        )
    if re.search(r"(?<!\\)(?:\\\\)*\\$", regex):
        raise RequestError("the regular expression is not valid: it ends with a backslash")


def check_grammar(source: str) -> None:
    """RequestError for a grammar that is too long, or uses operators whose cost has no bound."""
    if len(source) > MAX_GRAMMAR_CHARS:
        raise RequestError(
            f"the grammar is too large: {len(source)} characters, at most {MAX_GRAMMAR_CHARS} are allowed"
        )
    if source.count("::=") > MAX_RULES:
        raise RequestError(f"the grammar has more than {MAX_RULES} rules")
    if re.search(r"%\s*json", source):
        raise RequestError("the grammar must not contain %json; ask for a JSON schema instead")


def check_lark(source: str) -> None:
    if re.search("[&~]", source):
        raise RequestError(r"the grammar must not contain & or ~; in a text, write \x26 and \x7E")
    check_terminals(source)


def check_terminals(source: str) -> None:
    """RequestError where a terminal, written out, or a regular expression in a rule is too large."""
    if any(len(regex) > MAX_REGEX_CHARS for regex in re.findall(r"/(?:\\.|[^/\n\\])+/", source)):
        raise RequestError(f"the grammar has a regular expression of more than {MAX_REGEX_CHARS} characters")
    definitions = _definitions(source)
    sizes: dict[str, int] = {}
    for name in definitions:
        if _size(name, definitions, sizes, depth=0) > MAX_TERMINAL_CHARS and name.isupper():
            raise RequestError(f"the grammar is too complex: the terminal {name[:64]} is too large when written out")


def _definitions(source: str) -> dict[str, str]:
    found = list(_DEFINITION.finditer(source))
    ends = [match.start() for match in found[1:]] + [len(source)]
    return {match[1]: source[match.end() : end] for match, end in zip(found, ends, strict=True)}


def _size(name: str, definitions: dict[str, str], sizes: dict[str, int], depth: int) -> int:
    """Characters of a definition with those that it refers to; beyond the bound it does not matter how many."""
    if name not in definitions:
        return 0
    if depth > len(definitions):
        return MAX_TERMINAL_CHARS + 1
    if name not in sizes:
        size = len(definitions[name])
        for reference in _TERMINAL.findall(definitions[name]):
            if size > MAX_TERMINAL_CHARS:
                break
            size += _size(reference, definitions, sizes, depth + 1)
        sizes[name] = size
    return sizes[name]
