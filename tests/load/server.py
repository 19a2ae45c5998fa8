"""Starts the server under load and asks it, and the system, what it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
END_S = 20.0


class LoadedServer:
    """`python -m tests.load.child`, ready when the constructor returns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the server ended with status {process.wait()}")
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))

    def ask(self, question: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline()))

    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def num_files(self) -> int:
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def num_threads(self) -> int:
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))


@contextmanager
def loaded_server(settings: Mapping[str, Any], engine: str) -> Iterator[LoadedServer]:
    command = [sys.executable, "-m", "tests.load.child", json.dumps(settings), engine]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield LoadedServer(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(END_S)
