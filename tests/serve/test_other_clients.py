"""Clients and suites of other people, each as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
TIMEOUT_S = 120


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_langchain_invokes_streams_and_batches_over_both_apis(fake_url: str) -> None:
    done = run(str(FOLDER / "langchain_calls.py"), fake_url)
    assert done.returncode == 0, done.stderr
