"""`tinycluster logs`: the last lines of a log, and those that follow. Both forms of cluster/log_lines.py are read."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote

from tinycluster.cluster.log_file import default_log_dir
from tinycluster.engine.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error", "critical")
POLL_S = 0.2


def log_path(folder: Path | None, rank: int | None, model: str | None = None) -> Path:
    """Of the server, or of one rank that ran on this machine; `model` is "" where a server had this model only.
    ConfigError where there is no such file, or several."""
    place = folder or default_log_dir()
    if rank is None:
        if model is not None:
            raise ConfigError(f"--model {model} needs --rank R: the server's log is that of all models")
        found, whose = {"": place / "server.log"}, "the server"
    else:
        found, whose = _logs_of_rank(place, rank), f"rank {rank}"
    if model is not None:
        found, whose = {name: path for name, path in found.items() if name == model}, f"{whose} of {model or repr('')}"
    there = {name: path for name, path in found.items() if os.path.isfile(path)}
    if len(there) == 1:
        return next(iter(there.values()))
    if there:
        names = ", ".join(name or repr(name) for name in sorted(there))
        raise ConfigError(f"{place} has logs of {whose} of several models: {names}; choose one with --model")
    raise ConfigError(f"{place} has no log of {whose}; a server writes it there, or to telemetry.log_dir: --dir FOLDER")


def _logs_of_rank(place: Path, rank: int) -> dict[str, Path]:
    """By model; "" is that of a server with one model."""
    ending = f"rank-{rank}.log"
    named = {unquote(path.name.removesuffix(f"-{ending}")): path for path in place.glob(f"*-{ending}")}
    return {"": place / ending, **named}


def is_at_least(line: str, level: str) -> bool:
    """Whether a line is of this level or above; what is no line of ours is."""
    return _rank_of(_level(line)) >= LEVELS.index(level)


def _level(line: str) -> str:
    if line.startswith("{"):
        try:
            return str(json.loads(line).get("level", ""))
        except ValueError:
            return ""
    parts = line.split(" ", 2)
    return parts[1].lower() if len(parts) > 1 else ""


def _rank_of(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def follow(path: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[str | None]:
    """Every line of the file, then those that are added to it or to its successors; None when all has been read."""
    rest, file = "", _opened(path)
    try:
        while True:
            if content := file.read(2**16):
                *lines, rest = (rest + content).split("\n")
                yield from lines
            elif _has_successor(path, file):
                file.close()
                file, rest = _opened(path), ""
            else:
                yield None
                wait(POLL_S)
    finally:
        file.close()


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _has_successor(path: Path, file: TextIO) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def print_log(path: Path, out: TextIO, *, num_lines: int, level: str, follows: bool) -> None:
    """The last `num_lines` of this level or above, and with `follows` all that come, until Ctrl-C."""
    if level not in LEVELS:
        raise ConfigError(f"--level must be one of {', '.join(LEVELS)}, got {level}")
    last: deque[str] | None = deque(maxlen=num_lines)
    for line in follow(path):
        if line is None:
            out.writelines(f"{kept}\n" for kept in last or ())
            last = None
            out.flush()
            if not follows:
                return
        elif is_at_least(line, level):
            if last is None:
                out.write(f"{line}\n")
            else:
                last.append(line)
