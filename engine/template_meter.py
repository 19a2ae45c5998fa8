"""How much work one rendering of a chat template may do, counted in steps and characters and never timed.

A step is about one operation of the template, or 16 characters or four elements that an operation goes through. Work on
values is charged where it is done: making a list of the same large list twice is cheap, printing it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jinja2.utils import Namespace

MAX_STEPS = 1_000_000
MAX_STEPS_PER_MESSAGE = 5_000
MAX_CHARS = 4 * 2**20
"""Of the output, and of every text on the way to it, beside four times the characters of messages and tools."""
MAX_ELEMENTS = 100_000
MAX_DEPTH = 80
MAX_BITS = 4096
"""Of an integer."""
_CHARS_PER_STEP = 16
_ELEMENTS_PER_STEP = 4


class TemplateLimitError(Exception):
    """The template asks for more than a rendering may do."""


class Weight(NamedTuple):
    num_elements: int
    num_chars: int


class Meter:
    """The budget of one rendering. Every method raises TemplateLimitError where it is spent."""

    def __init__(self, num_messages: int = 0, num_chars: int = 0) -> None:
        self.max_chars = MAX_CHARS + 4 * num_chars
        self._steps = MAX_STEPS + MAX_STEPS_PER_MESSAGE * num_messages + 2 * num_chars
        self._printable = self.max_chars

    def spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TemplateLimitError("it takes too many steps")

    def weigh(self, value: Any, *, prints: bool = False) -> Weight:
        """Charge for going through a value to the bottom, as comparing and printing it do."""
        if isinstance(value, str):
            return self._weigh_text(value)
        weight = measured(value, self.max_chars, prints)
        self.spend(1 + weight.num_elements // _ELEMENTS_PER_STEP + weight.num_chars // _CHARS_PER_STEP)
        return weight

    def _weigh_text(self, text: str) -> Weight:
        self.spend(1 + len(text) // _CHARS_PER_STEP)
        self.check_chars(len(text))
        return Weight(1, len(text))

    def glance(self, value: Any) -> None:
        """Charge for going through the top level of a value."""
        if isinstance(value, str | list | tuple | dict | range):
            self.spend(1 + len(value) // (_CHARS_PER_STEP if isinstance(value, str) else _ELEMENTS_PER_STEP))

    def check_chars(self, num_chars: int) -> None:
        if num_chars > self.max_chars:
            raise TemplateLimitError("it makes a text that is too long")

    def check_elements(self, num_elements: int) -> None:
        if num_elements > MAX_ELEMENTS:
            raise TemplateLimitError("it makes a list that is too long")

    def print(self, value: Any) -> None:
        """Charge the output for a value's text."""
        self._printable -= self.weigh(value, prints=True).num_chars
        if self._printable < 0:
            raise TemplateLimitError("its output is too long")

    def counted(self, values: Iterable[Any], steps: int = 1) -> Iterator[Any]:
        for value in values:
            self.spend(steps)
            yield value


def measured(value: Any, max_chars: int, prints: bool = False) -> Weight:
    """Elements and characters, those that occur twice counted twice. TemplateLimitError where there are too many."""
    num_elements = num_chars = 0
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for part in level:
            if isinstance(part, str | bytes):
                num_chars += len(part)
            elif isinstance(part, dict):
                below.extend(part.keys())
                below.extend(part.values())
            elif isinstance(part, list | tuple | set | frozenset):
                below.extend(part)
            elif isinstance(part, range):
                num_elements += len(part)
            elif isinstance(part, Namespace) and prints:
                raise TemplateLimitError("it prints a namespace")
            if len(below) > MAX_ELEMENTS:
                raise TemplateLimitError("it goes through too many values")
        num_elements += len(level)
        if num_elements > MAX_ELEMENTS or num_chars > max_chars:
            raise TemplateLimitError("it goes through too many values")
        if not below:
            return Weight(num_elements, num_chars + 8 * num_elements)
        level = below
    raise TemplateLimitError("its values are nested too deeply")
