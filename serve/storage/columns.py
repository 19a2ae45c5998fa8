"""Types of columns that keep every str of Python, and JSON, in both databases.

PostgreSQL takes no NUL in its text and neither database takes lone surrogates, while users may type the first and
JSON's escapes can make the second. So they are written as a noncharacter, which no text has a use for, and their code:

    text                 stored
    "\\0"                 "\\ufdd0" "0000"
    "\\ud800"             "\\ufdd0" "d800"
    "\\ufdd0"             "\\ufdd0" "fdd0"
"""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.types import Text, TypeDecorator

ESCAPE = "\ufdd0"
UNSTORABLE = re.compile(f"[\0\ud800-\udfff{ESCAPE}]")
STORED = re.compile(ESCAPE + "([0-9a-f]{4})")


def stored_text(text: str) -> str:
    return UNSTORABLE.sub(lambda match: f"{ESCAPE}{ord(match[0]):04x}", text)


def original_text(stored: str) -> str:
    return STORED.sub(lambda match: chr(int(match[1], 16)), stored) if ESCAPE in stored else stored


class AnyText(TypeDecorator[str]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return None if value is None else stored_text(value)

    def process_result_value(self, value: Any | None, _dialect: Dialect) -> str | None:
        return None if value is None else original_text(value)


class Json(TypeDecorator[Any]):
    """As ASCII text, whatever the database thinks of JSON. Python's None is NULL, so JSON's null is not kept apart."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any | None, _dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any | None, _dialect: Dialect) -> Any | None:
        return None if value is None else json.loads(value)
