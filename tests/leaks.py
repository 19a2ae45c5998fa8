"""What a test session may leave behind on the machine: shared memory, processes (both on Linux only) and files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
PROCESSES = Path("/proc")
# Caches are meant to stay; what a version control system or an installation writes is not the tests' doing.
CACHES = {
    "__pycache__",
    ".cache",
    ".pytest_cache",
    ".hypothesis",
    ".mypy_cache",
    ".ruff_cache",
    ".git",
    ".venv",
    ".ci-venv",
    "build",
    "dist",
    ".config",
    ".local",
}
# Somebody may write code while the tests run.
WRITTEN_BY_HAND = {".py", ".pyi", ".cpp", ".h", ".inl", ".cu", ".md", ".toml", ".yaml", ".in", ".swp"}
HOME_DEPTH = 2
END_OF_PROCESSES_S = 60.0
"""Only what never ends is waited for so long."""
MARK = "PYTEST_SESSION_MARK"


@dataclass(frozen=True)
class Places:
    """Where leaks are looked for; tests of this module give other folders."""

    repository: Path
    home: Path
    shared_memory: Path = SHARED_MEMORY

    def files(self) -> frozenset[Path]:
        """Shared-memory segments of this project, and every file of the repository and of the home's upper levels."""
        segments = self.shared_memory.glob("tinycluster-*") if self.shared_memory.is_dir() else ()
        return frozenset([*segments, *_files(self.repository, None), *_files(self.home, HOME_DEPTH)])


def _files(folder: Path, depth: int | None) -> Iterator[Path]:
    if depth == 0:
        return
    try:
        entries = list(folder.iterdir())
    except OSError:
        return  # not ours to read, or just gone
    for path in entries:
        if path.name in CACHES or path.name.endswith(".egg-info"):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path, None if depth is None else depth - 1)
        elif path.suffix not in WRITTEN_BY_HAND:
            yield path


def new_files(places: Places, before: frozenset[Path]) -> list[Path]:
    return sorted(places.files() - before)


def processes(mark: str) -> dict[int, str]:
    """Command lines by process id of those that inherited the mark, and of our children, this process excepted.

    The mark is in the environment, so a process is found even if its parents ended before it.
    """
    found = {}
    for folder in PROCESSES.glob("[0-9]*"):
        pid = int(folder.name)
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            is_ours = int(parent) == os.getpid() or f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            if is_ours and pid != os.getpid() and state != "Z":
                found[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            continue  # it ended while we looked, or belongs to somebody else
    return found


def remaining_processes(mark: str, timeout_s: float = END_OF_PROCESSES_S) -> dict[int, str]:
    """The marked processes that are still there after `timeout_s`; at once when there are none."""
    deadline_s = time.monotonic() + timeout_s
    while (found := processes(mark)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return found
