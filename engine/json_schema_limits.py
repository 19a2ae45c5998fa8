"""Bounds on JSON schemas whose compilation would take longer than their length lets one expect.

Most of the work grows with a schema's length and has bounds of its own. It grows with the square of an object's
properties, and with the value of `multipleOf`, for which an automaton has a state per remainder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from tinycluster.engine.errors import RequestError

MAX_DEPTH = 64
"""Levels of lists and objects; a schema's own nesting takes two levels for each level of the value."""
MAX_NAMES = {"properties": 256, "required": 256, "patternProperties": 32}
MAX_REMAINDERS = 10_000


def check_schema(schema: Any) -> None:
    """RequestError for what is not a schema, or exceeds a bound."""
    if not isinstance(schema, dict | bool):
        raise RequestError("the JSON schema must be an object")
    multiples: list[Fraction] = []
    for part in _objects(schema):
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
