"""Log files: a line per record, kept small, readable by their owner alone. Several processes may write to one file."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tinycluster.engine.errors import ConfigError

if TYPE_CHECKING:
    # Ranks log, and know nothing of the settings.
    from tinycluster.cluster.config import Settings

MAX_BYTES = 16 * 2**20
NUM_KEPT = 4
"""Older files are NAME.1, the newest of them, to NAME.4."""
LOOK_PERIOD_S = 1.0
"""How late a process may notice what another one has done to its file: to look takes longer than to write."""


def default_log_dir() -> Path:
    """In the user's state folder (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state"
    return folder / "tinycluster" / "logs"


@dataclass(frozen=True)
class LogOptions:
    """What a process must know to log. `folder` None is each node's own default."""

    folder: Path | None = None
    is_json: bool = False
    prefix: str = ""
    """Of the names of ranks' files, where several models have ranks."""

    def open(self, name: str) -> LogFile:
        """ConfigError where nothing can be written there."""
        return LogFile((self.folder or default_log_dir()) / name)

    def open_rank(self, rank: int) -> LogFile:
        return self.open(f"{self.prefix}rank-{rank}.log")


def log_options(settings: Settings, model: str | None = None) -> LogOptions:
    """Of the server, or of a model's ranks."""
    telemetry, is_alone = settings.telemetry, len(settings.models) == 1
    prefix = "" if model is None or is_alone else rank_prefix(model)
    return LogOptions(telemetry.log_dir, telemetry.log_format == "json", prefix)


def rank_prefix(model: str) -> str:
    """Of the names of a model's files: as in a URL, so that no two models share them."""
    return quote(model, safe="") + "-"


class LogFile:
    """Appends lines from any thread. A full disk loses lines, and nothing else."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> None:
        self.path, self._max_bytes, self._num_kept = path, max_bytes, num_kept
        self._lock = threading.Lock()
        self._num_bytes, self._looked_s = 0, float("-inf")
        try:
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._fd = self._open()
        except OSError as error:
            raise ConfigError(f"telemetry.log_dir: {path} cannot be written: {error.strerror}") from None

    def write(self, line: str) -> None:
        """`line` is written whole and ends with a line feed of ours."""
        content = line.encode(errors="backslashreplace") + b"\n"
        with self._lock:
            if self._fd < 0:
                return
            try:
                self._make_room(len(content))
                self._num_bytes += os.write(self._fd, content)
            except OSError:
                return

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags, 0o600)
        os.fchmod(fd, 0o600)
        return fd

    def _make_room(self, num_bytes: int) -> None:
        """Begin a new file where this one is full, or where another process has begun one."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_PERIOD_S:
            self._looked_s = now_s
            self._num_bytes = os.fstat(self._fd).st_size if self._is_current() else self._max_bytes
        if self._num_bytes + num_bytes <= self._max_bytes:
            return
        # Of several processes that find the file full, one renames it.
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._fd).st_size
            if self._is_current() and size > 0 and size + num_bytes > self._max_bytes:
                self._rename()
            fd = self._open()
            self._num_bytes = os.fstat(fd).st_size
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = fd

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _rename(self) -> None:
        for number in range(self._num_kept, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
