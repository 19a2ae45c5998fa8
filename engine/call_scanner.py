"""One call of a tool, read character by character: a JSON object with a name and an object of arguments.

Nothing is evaluated. What stands between the braces of the arguments is passed on as it was written; only braces and
quotes are counted, to find the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from enum import Enum, auto

SPACE = " \t\n\r"


class _At(Enum):
    BEGIN = auto()  # before the object
    KEY = auto()  # before a key, or at the end of an empty object
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()  # before a value
    IN_TEXT = auto()
    IN_TREE = auto()  # in an object or a list
    IN_ATOM = auto()  # in a number or a name
    COMMA = auto()  # after a value


class CallScanner:
    """Feed characters until `is_done` or `is_broken`.

    `name` is known once the call has begun; from then on `take_arguments` gives the arguments' text as it comes.
    A broken call that has not begun is no call: `raw` holds all of its text, without the character that broke it.
    """

    def __init__(self, names: Collection[str], argument_keys: Collection[str]) -> None:
        self._names, self._argument_keys = names, argument_keys
        self.raw = ""
        self.name: str | None = None
        self.has_begun = self.is_done = self.is_broken = False
        self._at = _At.BEGIN
        self._key = self._value = self._arguments = ""
        self._has_arguments = False
        self._depth = 0
        self._in_quotes = self._is_escaped = False
        self._steps: dict[_At, Callable[[str], None]] = {
            _At.BEGIN: self._begin,
            _At.KEY: self._before_key,
            _At.IN_KEY: self._in_key,
            _At.COLON: self._colon,
            _At.VALUE: self._before_value,
            _At.IN_TEXT: self._in_text,
            _At.IN_TREE: self._in_tree,
            _At.IN_ATOM: self._in_atom,
            _At.COMMA: self._after_value,
        }

    def feed(self, character: str) -> None:
        self._steps[self._at](character)
        if not self.is_broken and not self.has_begun:
            self.raw += character

    def take_arguments(self) -> str:
        if not self.has_begun:
            return ""
        text, self._arguments = self._arguments, ""
        return text

    def _begin(self, character: str) -> None:
        self._expect(character, {"{": _At.KEY})

    def _before_key(self, character: str) -> None:
        if character == "}" and self._key == "":
            self._end()
            return
        self._expect(character, {'"': _At.IN_KEY})
        self._key = '"'

    def _in_key(self, character: str) -> None:
        self._key += character
        if self._ends_text(character):
            self._at = _At.COLON

    def _colon(self, character: str) -> None:
        self._expect(character, {":": _At.VALUE})

    def _before_value(self, character: str) -> None:
        if character in SPACE:
            return
        self._value = ""
        if character == '"':
            self._at, self._value = _At.IN_TEXT, character
        elif character in "{[":
            self._at, self._depth, self._in_quotes = _At.IN_TREE, 0, False
            self._begin_tree(character)
            self._in_tree(character)
        elif character in "-0123456789tfn":
            self._at, self._value = _At.IN_ATOM, character
        else:
            self.is_broken = True

    def _begin_tree(self, character: str) -> None:
        if self._is_arguments():
            if character == "[" or self._has_arguments:
                self.is_broken = True
                return
            self._has_arguments = True
            self._start()

    def _in_text(self, character: str) -> None:
        self._value += character
        if self._ends_text(character):
            self._at = _At.COMMA
            self._take_text()

    def _in_tree(self, character: str) -> None:
        if self.is_broken:
            return
        if self._is_arguments():
            self._arguments += character
        if self._in_quotes:
            self._in_quotes = not self._ends_text(character)
        elif character == '"':
            self._in_quotes = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._at = _At.COMMA

    def _in_atom(self, character: str) -> None:
        if character in SPACE or character in ",}":
            if self._is_name() or (self._is_arguments() and self._value != "null"):
                self.is_broken = True
                return
            self._at = _At.COMMA
            self._after_value(character)
        elif character.isalnum() or character in "+-.":
            self._value += character
        else:
            self.is_broken = True

    def _after_value(self, character: str) -> None:
        if character == "}":
            self._end()
        else:
            self._expect(character, {",": _At.KEY})

    def _take_text(self) -> None:
        """A text was read: the name, or arguments that the model wrote as a text of JSON."""
        if self._is_name():
            name = _decoded(self._value)
            if name is None or name not in self._names or self.name is not None:
                self.is_broken = True
                return
            self.name = name
            self._start()
        elif self._is_arguments():
            arguments = _decoded(self._value)
            if arguments is None or not arguments.lstrip().startswith("{") or self._has_arguments:
                self.is_broken = True
                return
            self._has_arguments, self._arguments = True, arguments
            self._start()

    def _start(self) -> None:
        self.has_begun = self.has_begun or (self.name is not None and self._has_arguments)

    def _end(self) -> None:
        if self.name is None:
            self.is_broken = True
            return
        if not self._has_arguments:
            self._arguments = "{}"
        self.has_begun = self.is_done = True

    def _is_name(self) -> bool:
        return self._key == '"name"'

    def _is_arguments(self) -> bool:
        return self._key[1:-1] in self._argument_keys

    def _expect(self, character: str, following: dict[str, _At]) -> None:
        if character in SPACE:
            return
        if character in following:
            self._at = following[character]
        else:
            self.is_broken = True

    def _ends_text(self, character: str) -> bool:
        """Whether this is the quote that ends a text."""
        if self._is_escaped:
            self._is_escaped = False
            return False
        self._is_escaped = character == "\\"
        return character == '"'


def _decoded(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
