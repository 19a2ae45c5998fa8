"""How a line of a log looks, for people or as JSON. Whatever a text holds, a line is one line and begins with ours.

console   2026-01-31T12:00:00.123Z INFO  requests id=req_1 status=200 …
json      {"time": "2026-01-31T12:00:00.123Z", "level": "info", "logger": "requests", "id": "req_1", "status": 200, …}
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

from tinycluster.cluster.log_file import LogFile

OURS = "tinycluster"
Field = str | int | float | None


def printable(text: str) -> str:
    """With escapes for control characters, line ends, and what turns the direction of text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def console_line(now_s: float, level: str, logger: str, message: str, fields: Mapping[str, Field]) -> str:
    head = f"{_utc(now_s)} {level:<5} {logger}"
    said = f" {printable(message)}" if message else ""
    return f"{head}{said}{''.join(f' {name}={_shown(value)}' for name, value in fields.items())}"


def json_line(now_s: float, level: str, logger: str, message: str, fields: Mapping[str, Field]) -> str:
    said = {"message": message} if message else {}
    line = {"time": _utc(now_s), "level": level.lower(), "logger": logger, **said, **fields}
    # ASCII: every control character of Unicode is escaped.
    return json.dumps(line)


def _utc(now_s: float) -> str:
    return f"{_second(int(now_s))}.{int(now_s % 1 * 1000):03}Z"


@lru_cache(2)
def _second(whole_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s))


def _shown(value: Field) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    text = printable(value)
    return text if text and " " not in text and '"' not in text and "=" not in text else json.dumps(text)


class LineHandler(logging.Handler):
    """Records of Python's logging as lines of a file: ours from INFO, others' from WARNING."""

    def __init__(self, file: LogFile, *, is_json: bool) -> None:
        super().__init__(logging.INFO)
        self._file = file
        self._line = json_line if is_json else console_line

    def filter(self, record: logging.LogRecord) -> bool:
        is_ours = record.name == OURS or record.name.startswith(f"{OURS}.")
        return is_ours or record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # its arguments do not fit its words
            self.handleError(record)
            return
        if record.exc_info and record.exc_info[0] is not None:
            message += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        name = record.name.removeprefix(f"{OURS}.")
        self._file.write(self._line(record.created, record.levelname, name, message, {}))


class WarningsToStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """The message from WARNING on, as Python does by itself where nobody handles a record; a trace's lines are
    indented, so that none begins with what an error quotes."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)

    def format(self, record: logging.LogRecord) -> str:
        lines = [printable(record.getMessage())]
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info))
            lines += [f"    {printable(line)}" for line in trace.splitlines()]
        return "\n".join(lines)


@contextmanager
def logged_to(file: LogFile, *, is_json: bool) -> Iterator[None]:
    """Inside, this process's records go to `file`, and warnings to stderr as ever."""
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    handlers: list[logging.Handler] = [LineHandler(file, is_json=is_json)]
    if not root.handlers:
        handlers.append(WarningsToStderr())
    before = ours.level
    ours.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        ours.setLevel(before)
        file.close()


def rank_logger(rank: int, file: LogFile | None, *, is_json: bool) -> logging.Logger:
    """The log of a rank that shares its process with others; without a file that of the process."""
    # Not by getLogger, which keeps every name for ever.
    logger = logging.Logger(f"{OURS}.rank-{rank}", logging.INFO)
    logger.parent = logging.getLogger(OURS)
    if file is not None:
        logger.addHandler(LineHandler(file, is_json=is_json))
    return logger
