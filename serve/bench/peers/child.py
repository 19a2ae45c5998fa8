"""An engine in a process of its own, which stays and waits without work between its turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any

from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.bench.peers.exchange import Opening, Ready, Timing, Work

END_TIMEOUT_S = 10.0


class Child:
    """A context manager; UnavailableError with the engine's name where it cannot go on."""

    def __init__(self, name: str, command: Sequence[str], opening: Opening) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        try:
            self.ready = Ready(**self._ask(asdict(opening)))
        except BaseException:
            self.close()
            raise

    def run(self, work: Work) -> Timing:
        return Timing(**self._ask(asdict(work)))

    def close(self) -> None:
        """The end of its input ends a child."""
        if self._process.stdin is not None:
            # It may have ended first.
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise UnavailableError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "nothing on its standard error")
        return f"its process ended: {said.strip()}"


def module_command(module: str) -> list[str]:
    return [sys.executable, "-m", module]
