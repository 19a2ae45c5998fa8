"""Processes of this machine that must not outlive their engine, whatever state they are in."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable


class ProcessHandles:
    """Handles, not ids: an id may belong to another process by the time it is used. Linux only, else it holds none."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._fds: list[int] = []
        for pid in pids if hasattr(os, "pidfd_open") else ():
            with contextlib.suppress(OSError):  # it ended already
                self._fds.append(os.pidfd_open(pid))

    def end(self, timeout_s: float) -> None:
        """Kill every process that has not ended by itself in time, a stopped one too."""
        deadline_s = time.monotonic() + timeout_s
        for fd in self._fds:
            if not select.select([fd], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        self._fds = []
