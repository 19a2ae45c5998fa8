"""Bounds on JSON schemas whose compilation would take longer than their length lets one expect.

Most of the work grows with a schema's length and has bounds of its own. It grows with the square of an object's
properties and of a pattern's parts; with the value of `multipleOf`, for which an automaton has a state per remainder;
and with the product of patterns that a text must match at the same time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from tinycluster.engine.errors import RequestError

MAX_DEPTH = 64
"""Levels of lists and objects; a schema's own nesting takes two levels for each level of the value."""
MAX_NAMES = {"properties": 256, "required": 256, "patternProperties": 32}
MAX_REMAINDERS = 10_000
MAX_PATTERN_CHARS = 2048
"""Of all patterns together."""
MAX_PRODUCT = 5_000
"""Of the sizes of patterns that may be combined, counts of repetitions included."""
ANNOTATIONS = {"$defs", "definitions", "title", "description", "default", "examples", "$comment", "$schema", "$id"}


def check_schema(schema: Any) -> None:
    """RequestError for what is not a schema, or exceeds a bound."""
    if not isinstance(schema, dict | bool):
        raise RequestError("the JSON schema must be an object")
    multiples: list[Fraction] = []
    patterns: set[str] = set()
    is_combining = False
    for part in _objects(schema):
        patterns |= _patterns(part)
        is_combining |= _combines(part)
        for key, most in MAX_NAMES.items():
            if isinstance(names := part.get(key), dict | list) and len(names) > most:
                raise RequestError(
                    f"the JSON schema is too complex: {key} names {len(names)}, at most {most} are allowed"
                )
        multiple = part.get("multipleOf")
        if isinstance(multiple, int | float) and math.isfinite(multiple) and multiple > 0:
            multiples.append(Fraction(str(multiple)))
    if _num_remainders(multiples) > MAX_REMAINDERS:
        raise RequestError("the JSON schema is too complex: the values of multipleOf are too large or too many")
    if sum(map(len, patterns)) > MAX_PATTERN_CHARS or (is_combining and _product(patterns) > MAX_PRODUCT):
        raise RequestError("the JSON schema is too complex: its patterns are too large or too many")


def num_pattern_chars(schema: Any) -> int:
    return sum(len(pattern) for part in _objects(schema) for pattern in _patterns(part))


def _patterns(part: dict[str, Any]) -> set[str]:
    pattern, names = part.get("pattern"), part.get("patternProperties")
    found = {pattern} if isinstance(pattern, str) else set()
    return found | set(names) if isinstance(names, dict) else found


def _combines(part: dict[str, Any]) -> bool:
    """Whether a value may have to match several schemas, and so several patterns, at once."""
    names = part.get("patternProperties")
    if "allOf" in part or (isinstance(names, dict) and len(names) > 1):
        return True
    return bool(part.keys() & {"$ref", "anyOf", "oneOf"}) and len(part.keys() - ANNOTATIONS) > 1


def _product(patterns: set[str]) -> int:
    if len(patterns) < 2:
        return 1
    return math.prod(len(pattern) * math.prod(_counts(pattern)) for pattern in patterns)


def _counts(pattern: str) -> list[int]:
    return [max(1, int(digits[:6])) for digits in re.findall(r"(?<=[{,])\s*(\d+)", pattern)]


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        yield from (part for part in level if isinstance(part, dict))
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return
    raise RequestError(f"the JSON schema is nested too deeply, at most {MAX_DEPTH} levels are allowed")


def _num_remainders(multiples: list[Fraction]) -> int:
    """States of an automaton for all of them at once, in units of the smallest decimal place that occurs."""
    least = 1
    for multiple in multiples:
        least = math.lcm(least, multiple.numerator)
        if least > MAX_REMAINDERS:
            return least
    return least * math.lcm(*(multiple.denominator for multiple in multiples)) if multiples else 1
