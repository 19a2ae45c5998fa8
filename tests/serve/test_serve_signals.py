"""Ctrl-C and SIGTERM end `tinycluster serve --local` at once, and other commands in order."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serve.server_process import own_environment, running_server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_in_the_middle_of_a_stream(smollm2_path: Path, number: signal.Signals) -> None:
    body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with (
        own_environment() as environment,
        running_server("smollm2", "--local", "--port", "0", environment=environment) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.stop(number) == 0
        *_, error, done = (line for line in lines if line)
        assert "smollm2 is stopping" in error
        assert done == "data: [DONE]"
        assert server.rest_of_stdout() == ""
        assert "Traceback" not in server.errors()
        assert "leaked" not in server.errors()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))


_BUSY_COMMAND = """
import signal, tempfile
from tinycluster.serve import cli

# A shell lets its background commands ignore Ctrl-C, and whoever runs the tests so hands that down to this process.
signal.signal(signal.SIGINT, signal.default_int_handler)

@cli.app.command()
def work() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(folder, flush=True)
        signal.pause()

cli.main()
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_a_command_put_its_things_away(number: signal.Signals, exit_code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _BUSY_COMMAND, "work"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (exit_code, "")
    assert not folder.exists()
