"""`tinycluster serve` as a process of its own, with a home and a Ray of its own, and nothing left when it has ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.leaks import MARK, processes
from tinycluster.engine.source import default_cache_dir

STOP_LIMIT_S = 60.0
"""The wait itself is the check: only a server that does not end is waited for so long."""
FOREIGN_PLACES = ("RAY_ADDRESS", "XDG_DATA_HOME", "XDG_STATE_HOME")
"""The developer's own, where a server must neither look nor write."""


class ServerProcess:
    """Started, and ready when the constructor returns. RuntimeError with its stderr when it ends before."""

    def __init__(self, process: subprocess.Popen[str], stderr: IO[str], mark: str) -> None:
        self._process, self._stderr, self.mark = process, stderr, mark
        assert process.stdout is not None
        self.ready_line = process.stdout.readline()
        match = re.match(r"ready: (http://\S+) \(.*, \d+\.\d s\)\n", self.ready_line)
        if match is None:
            raise RuntimeError(f"{self.ready_line!r}, exit code {process.wait()}: {self.errors()}")
        self.url = match[1]

    environment: Mapping[str, str]

    def errors(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def stop(self, number: signal.Signals) -> int:
        """The exit code after a signal; subprocess.TimeoutExpired after STOP_LIMIT_S."""
        self._process.send_signal(number)
        return self.wait(STOP_LIMIT_S)

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def rest_of_stdout(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.read()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def own_environment() -> Iterator[dict[str, str]]:
    """A home and a folder for Ray that vanish; the model cache stays the user's. Sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="tc", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        home.mkdir()
        own = {"HOME": str(home), "RAY_TMPDIR": folder, "XDG_CACHE_HOME": str(default_cache_dir().parent)}
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_PLACES}
        yield {**inherited, **own, "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def running_server(*arguments: str, environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    """`tinycluster serve ARGUMENTS`; afterwards none of its processes is left."""
    mark = uuid.uuid4().hex
    before = processes(mark)
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinycluster.serve.cli", "serve", *arguments],
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        server = None
        try:
            server = ServerProcess(process, stderr, mark)
            server.environment = environment
            yield server
        finally:
            if server is not None:
                server.end()
        assert _left(mark, before) == {}


def _left(mark: str, before: Mapping[int, str]) -> dict[int, str]:
    """What the server started and is still there after STOP_LIMIT_S; at once when nothing is."""
    deadline_s = time.monotonic() + STOP_LIMIT_S
    while left := {pid: command for pid, command in processes(mark).items() if pid not in before}:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    return left
