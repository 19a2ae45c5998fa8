"""Ctrl-C and SIGTERM end `tinycluster serve --local` at once, whatever it is doing."""

from __future__ import annotations

import signal
import socket
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
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
