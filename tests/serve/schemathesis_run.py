"""schemathesis, as its command runs it, in a process of its own: what it imports warns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FIXED = ("--no-shrink", "--no-color", "--request-timeout", "60", "--generation-database=none", "--seed", "1")
TIMEOUT_S = 1000
"""A busy machine takes a tenth of it."""


def run_schemathesis(document: str, folder: Path, *options: str) -> None:
    """AssertionError with the report where an answer fails one of the checks. `document` is a URL or a path."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", document, *FIXED, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=TIMEOUT_S, check=False)
    report = "\n".join(line[:400] for line in done.stdout.splitlines())
    assert done.returncode == 0, report[-20_000:] + done.stderr[-4000:]
