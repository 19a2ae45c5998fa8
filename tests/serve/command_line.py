"""The `tinycluster` command as a user runs it, in this process: exit code, standard output and standard error."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from tinycluster.serve.cli import main


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str


def tinycluster(*arguments: str) -> Outcome:
    stdout, stderr = io.StringIO(), io.StringIO()
    exit_code = 0
    with patch.object(sys, "argv", ["tinycluster", *arguments]), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main()
        except SystemExit as ending:
            exit_code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue())
