"""Fuzz every route over HTTP: `python -m tests.fuzz.over_http --seconds 600`.

Needs the extra `fuzz` (boofuzz). boofuzz mutates method, path, header fields and every value of a body that is right;
after each case the server must still answer GET /health, and no answer may be a 5xx. The findings are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boofuzz import Block, Bytes, Delim, Request, Session, Size, Static, String, Target, TCPSocketConnection

from tests.attacks.conftest import FAKE, ROUTES
from tests.attacks.contract import Victim, victim
from tests.attacks.schemas import BODIES
from tests.attacks.wire import exchange, request

CASES_PER_S = 30
"""Until it is known."""
EXPECTED_5XX = (501, 503)
"""A method that nobody knows; a model that is not there yet."""


def parts(method: str, path: str, body: dict[str, Any] | None) -> list[tuple[type[Any], bytes | str]]:
    """What a request is made of; mutated are the parts that are not Static. The body's length is put in by Size."""
    head: list[tuple[type[Any], bytes | str]] = [
        (String, method), (Delim, " "), (String, path), (Delim, " "), (String, "HTTP/1.1"),
        (Static, "\r\nHost: "), (String, "localhost"), (Static, "\r\nContent-Type: "), (String, "application/json"),
        (Static, "\r\n"), (String, "X-Field"), (Delim, ": "), (String, "value"),
        (Static, "\r\nConnection: close\r\nContent-Length: "), (Size, ""), (Static, "\r\n\r\n"),
    ]  # fmt: skip
    return head + [(Bytes, piece.encode()) for piece in _pieces(json.dumps(body) if body is not None else "")]


def _pieces(content: str) -> list[str]:
    """A body cut at its marks."""
    return [piece for piece in re.split(r"([:,])", content) if piece]


def described(name: str, described_parts: list[tuple[type[Any], bytes | str]], fuzzed: int) -> Request:
    """The request with one part that is mutated."""
    head_length = next(index for index, (kind, _) in enumerate(described_parts) if kind is Size) + 2
    made = []
    for number, (kind, value) in enumerate(described_parts):
        own = {"name": f"part{number}", "fuzzable": number == fuzzed}
        if kind is Size:
            made.append(Size(block_name="body", output_format="ascii", **own))
        else:
            made.append(
                Static(own["name"], default_value=value) if kind is Static else kind(default_value=value, **own)
            )
    return Request(name, children=(*made[:head_length], Block("body", children=tuple(made[head_length:]))))


class Findings:
    """What was wrong, and how many cases there were."""

    def __init__(self, server: Victim) -> None:
        self._server, self.seen, self.num_cases = server, list[str](), 0
        self._began_s = time.monotonic()

    def num_affordable(self, deadline_s: float, num_parts: int) -> int:
        """Cases of one of the parts that are left, where all of them share the time."""
        now_s = time.monotonic()
        per_s = (self.num_cases + CASES_PER_S) / (now_s - self._began_s + 1)
        return max(int(per_s * (deadline_s - now_s) / num_parts), 2)

    def check(self, target: Any, fuzz_data_logger: Any, session: Any, *arguments: Any, **options: Any) -> None:
        self.num_cases += 1
        answer = bytes(session.last_recv or b"")
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
        sent = bytes(session.last_send or b"")[:2000]
        if status >= 500 and status not in EXPECTED_5XX:
            self.seen.append(f"{status}: {sent!r}")
        if exchange(self._server.address, request("GET", "/health")).status != 200:
            self.seen.append(f"no health after {sent!r}")


def sessions(findings: Findings, server: Victim, folder: str, deadline_s: float) -> Iterator[Session]:
    """One for every part of every route, in random order. The last one ends at the deadline, about."""
    jobs = [
        (f"{method} {path}", made, fuzzed)
        for path, methods in ROUTES
        for method in sorted(methods)
        for made in [parts(method, path, BODIES[path][1] if path in BODIES and method == "POST" else None)]
        for fuzzed, (kind, _) in enumerate(made)
        if kind is not Static
    ]
    random.Random(1).shuffle(jobs)
    for number, (name, made, fuzzed) in enumerate(jobs):
        session = Session(
            target=Target(connection=TCPSocketConnection(*server.address, recv_timeout=2)),
            post_test_case_callbacks=[findings.check],
            fuzz_loggers=[],
            db_filename=str(Path(folder, f"{number}.db")),
            index_end=findings.num_affordable(deadline_s, len(jobs) - number),
            receive_data_after_fuzz=True,
            check_data_received_each_request=False,
            ignore_connection_reset=True,
            ignore_connection_aborted=True,
            ignore_connection_issues_when_sending_fuzz_data=True,
            sleep_time=0,
            keep_web_open=False,
            web_port=None,
            reuse_target_connection=False,
        )
        session.connect(described(name, made, fuzzed))
        yield session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    deadline_s = time.monotonic() + options.seconds
    with victim(FAKE) as server, tempfile.TemporaryDirectory() as folder:
        findings, num_sessions = Findings(server), 0
        for session in sessions(findings, server, folder, deadline_s):
            session.fuzz(max_depth=1)
            num_sessions += 1
        server.wait_until_idle()
        log = server.take_log()
    print(f"{findings.num_cases} cases of {num_sessions} parts, {len(findings.seen)} findings", *findings.seen[:20])
    print(log[-4000:])
    sys.exit(bool(findings.seen) or "Traceback" in log)


if __name__ == "__main__":
    main()
