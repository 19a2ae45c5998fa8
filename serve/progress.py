"""Progress on stderr: a bar per download and per rank on a terminal, a line per finished one in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn


class Bars:
    """A context manager. Call it for one more line: it satisfies cluster/launch.py's NewProgress."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())

    def __call__(self) -> Line:
        return Line(self._bars)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


class Line:
    """engine/source.py's Progress of one download or one rank."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._label = ""
        self._num_bytes = 0
        self._task: TaskID | None = None
        self._started_s = 0.0

    def start(self, label: str, total_bytes: int | None) -> None:
        self._label, self._started_s = label, time.monotonic()
        self._task = self._bars.add_task(label, total=total_bytes)

    def advance(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._task is not None:
            self._bars.advance(self._task, num_bytes)

    def finish(self) -> None:
        if self._task is None:
            return
        self._bars.update(self._task, total=self._num_bytes, completed=self._num_bytes)
        if self._bars.disable:
            seconds = time.monotonic() - self._started_s
            print(f"{self._label}: {self._num_bytes / 1e6:.1f} MB in {seconds:.1f} s", file=sys.stderr, flush=True)
