"""Rules that take long or much memory to compile, or to follow, where nothing bounds them."""

from __future__ import annotations

import json

SLOW, SLOWER = "^([ab]{991})*$", "^([ab]{997})*$"


def doubling(letter: str, sign: str, num_levels: int, last: str) -> str:
    """Definitions of which each holds the next one twice."""
    levels = [f"{letter}{i} {sign} {letter}{i + 1} {letter}{i + 1}" for i in range(num_levels)]
    return "\n".join([*levels, f"{letter}{num_levels} {sign} {last}", ""])


NESTED = '{"properties": {"a": ' * 10_000 + "true" + "}}" * 10_000
BOMBS = {
    "a reference to itself": ("json_schema", '{"$ref": "#"}'),
    "a loop of references": ("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
    "10,000 levels": ("json_schema", NESTED),
    "100 levels": ("json_schema", '{"items": ' * 100 + "true" + "}" * 100),
    "a billion items": ("json_schema", '{"type": "array", "minItems": 1000000000, "items": {"type": "integer"}}'),
    "a string of a billion": ("json_schema", '{"type": "string", "minLength": 1000000000}'),
    "10^12 items in levels": ("json_schema", '{"minItems": 10, "type": "array", "items": ' * 12 + "{}" + "}" * 12),
    "100,000 values": ("json_schema", json.dumps({"enum": list(range(100_000))})),
    "1,000 properties": ("json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(1000)}})),
    "255 optional properties": ("json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(255)}})),
    "a large divisor": ("json_schema", '{"type": "integer", "multipleOf": 1234567}'),
    "divisors without common factors": ("json_schema", '{"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}'),
    "2^30 alternatives": (
        "json_schema",
        json.dumps({"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)} | {"d30": {}}}
                   | {"$ref": "#/$defs/d0"}),
    ),
    "nested repetition in a pattern": ("json_schema", '{"type": "string", "pattern": "^((a{1,999}){1,999})$"}'),
    "a name of another machine": ("json_schema", '{"$ref": "http://127.0.0.1:9/x"}'),
    "(a+)+b": ("regex", "(a+)+b"),
    "(a|a)*b": ("regex", "(a|a)*b"),
    ".{1,99999}": ("regex", ".{1,99999}"),
    "nested repetition": ("regex", "((a{1,100000}){1,100000}){1,100000}"),
    "2^20 states": ("regex", "(.|\n)*a(.|\n){20}"),
    "(": ("regex", "(" * 20_000 + ")" * 20_000),
    "[": ("regex", "["),
    "optional letters": ("regex", r"\w?" * 341),
    "optional letters again and again": ("regex", r"((\w?){100}\s?){100}"),
    "repetition after repetition": ("regex", "a{1,1000}" * 113),
    "optional letters in a rule": ("grammar", "start: /" + r"\w?" * 1300 + "/"),
    "optional letters in a terminal": ("grammar", "start: A\nA: " + r"/\w/? " * 600),
    "terminals that double": ("grammar", "start: A0\n" + doubling("A", ":", 12, '"a"?')),
    "rules that double": ("grammar", "start: a0\n" + doubling("a", ":", 60, '"a"?')),
    "EBNF that doubles": ("grammar", "root ::= a0\n" + doubling("a", "::=", 12, "[^a]?")),
    "intersections": ("grammar", "start: A\nA: /([ab]{101})*/ & /([ab]{103})*/ & /([ab]{107})*/"),
    "empty lines": ("grammar", "\n" * 4000),
    "patterns together": ("json_schema", json.dumps({"allOf": [{"pattern": SLOW}, {"pattern": SLOWER}]})),
    "patterns of names": ("json_schema", json.dumps({"patternProperties": {SLOW: {}, SLOWER: {}}})),
    "a pattern in a definition": (
        "json_schema",
        json.dumps({"$defs": {"x": {"pattern": SLOW}}, "$ref": "#/$defs/x", "pattern": SLOWER}),
    ),
    "many patterns": ("json_schema", json.dumps({"anyOf": [{"pattern": r"\w?" * 50} for _ in range(50)]})),
    "long values": ("json_schema", json.dumps({"enum": ["x" * 60_000]})),
    "ambiguity": ("grammar", 'start: s\ns: s s | s s s | "a"'),
    "left recursion": ("grammar", "start: start"),
    "repeated rules": ("grammar", 'start: ((("a"|y){1,1000}){1,1000}){1,1000}\ny: "c" y | "d"'),
    "deep EBNF": ("grammar", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
    "long EBNF": ("grammar", "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(600)) + 'a600 ::= "x"'),
}  # fmt: skip
