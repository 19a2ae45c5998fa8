"""schemathesis, as its command runs it, in a process of its own: what it imports warns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PHASES = "examples,coverage,fuzzing,stateful"
# A schema cannot say everything that a request has to fulfil, so that a right one may be refused, too.
NOT_CHECKED = "positive_data_acceptance"


def run_schemathesis(url: str, folder: Path, *more: str, max_examples: int, seed: int) -> None:
    """AssertionError with the report where any answer is a 5xx or contradicts the document at /openapi.json."""
    options = ["--phases", PHASES, "--max-examples", str(max_examples), "--seed", str(seed), "--no-shrink"]
    options += ["--exclude-checks", NOT_CHECKED, "--no-color", "--request-timeout", "20", "--generation-database=none"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240, check=False)
    report = "\n".join(line[:400] for line in done.stdout.splitlines())
    assert done.returncode == 0, report[-20_000:] + done.stderr[-4000:]
