"""What must hold around every attack, whatever it was: the contract of the list of attacks.

The same processes as before, no request left in the engine, the next good request answered, nothing in the log (a bad
request is the client's affair, and a log that clients can fill is a weapon), at most MAX_GROWTH_BYTES more memory; and
a second client's GET /health answered within MAX_HEALTH_S (99th percentile) all the time: of the server's own processor
time, where that is less than the time that a busy machine took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from tests.attacks.wire import exchange, request

ROOT = Path(__file__).parent.parent.parent
MAX_GROWTH_BYTES = 64 * 2**20
MAX_HEALTH_S = 1.0
HEALTH_PERIOD_S = 0.02
SETTLE_S = 60.0
GOOD = json.dumps({"prompt": "good", "max_tokens": 4, "temperature": 0}).encode()


class Victim:
    """A server in a process of its own (victim.py). Leave the context to end it. `key` opens it, if it has keys."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str], key: str) -> None:
        self._process, self._log = process, log
        self.authorization = b"Authorization: Bearer %b\r\n" % key.encode() if key else b""
        """A header line."""
        self.url = self._line()
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        # What is made once, at the first request, is not growth.
        self._check_good()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server has ended"
        return line.strip()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def take_log(self) -> str:
        """What was logged; the contract does not see it."""
        text = self.log()
        self._log.seek(0)
        self._log.truncate()
        return text

    def processes(self) -> set[int]:
        """The server, its threads excepted, and whatever it has started."""
        found, added = {self.pid}, {self.pid}
        while added:
            children = (Path(f"/proc/{pid}/task").glob("*/children") for pid in added)
            added = {int(child) for files in children for file in files for child in file.read_text().split()} - found
            found |= added
        return found

    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """The processor time of all its threads, read without asking it (the clock's number as clock_getcpuclockid(3)
        makes it)."""
        return time.clock_gettime((~self.pid << 3) | 2)

    @contextmanager
    def within_cpu_s(self, most_s: float) -> Iterator[None]:
        """What is done inside costs the server no more. Processor time, unlike time, is the same on a busy machine: but
        for the second client, which asks the more often the longer it takes."""
        before_s, num_before = self.cpu_s(), self._bystander.num_asked
        yield
        used_s, num_asked = self.cpu_s() - before_s, self._bystander.num_asked - num_before
        assert used_s - num_asked * self._bystander.percentile_s(0.0) <= most_s

    def num_files(self) -> int:
        """How many files and connections the server has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @contextmanager
    def attack(self) -> Iterator[None]:
        """Do the attack inside; the contract is checked at the end."""
        processes, memory_bytes = self.processes(), self.memory_bytes()
        with _Bystander(self.address, self.cpu_s) as bystander:
            self._bystander = bystander
            yield
            self._check_good()
        assert self.processes() == processes
        self.wait_for(lambda: self.memory_bytes() - memory_bytes <= MAX_GROWTH_BYTES)
        slow_s = bystander.percentile_s(0.99)
        assert slow_s <= MAX_HEALTH_S
        assert self.take_log() == ""

    def _check_good(self) -> None:
        reply = exchange(self.address, request("POST", "/v1/completions", self.authorization, body=GOOD))
        assert reply.status == 200, reply
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """No request is left in the engine: an aborted one may take its last step first."""
        self.wait_for(lambda: self.ask("running") == 0)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + SETTLE_S
        while not condition() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert condition()


class _Bystander:
    """A second client that asks GET /health again and again."""

    def __init__(self, address: tuple[str, int], cpu_s: Callable[[], float]) -> None:
        self._address, self._cpu_s = address, cpu_s
        self._took_s: list[float] = []
        self._is_over = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> _Bystander:
        self._ask()
        self._asking = self._thread.submit(self._run)
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.shutdown()
        self._asking.result()

    @property
    def num_asked(self) -> int:
        return len(self._took_s)

    def percentile_s(self, fraction: float) -> float:
        ordered = sorted(self._took_s)
        return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]

    def _run(self) -> None:
        self._ask()
        while not self._is_over.wait(HEALTH_PERIOD_S):
            self._ask()

    def _ask(self) -> None:
        began_s, before_s = time.monotonic(), self._cpu_s()
        assert exchange(self._address, request("GET", "/health")).status == 200
        self._took_s.append(min(time.monotonic() - began_s, self._cpu_s() - before_s))


@contextmanager
def victim(options: Mapping[str, Any], *python: str, hash_seed: str = "random", key: str = "") -> Iterator[Victim]:
    """`python` are options of the interpreter."""
    with TemporaryFile("a+") as log, _started(options, python, hash_seed, log) as process:
        assert process.stdin is not None
        try:
            yield Victim(process, log, key)
        finally:
            process.stdin.close()
            assert process.wait(SETTLE_S) == 0


def _started(options: Mapping[str, Any], python: Sequence[str], hash_seed: str, log: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, *python, "-m", "tests.attacks.victim", json.dumps(options)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True)
