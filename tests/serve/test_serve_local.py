"""`tinycluster serve --local` with the real model, as a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.serve.command_line import tinycluster
from tests.serve.server_process import ServerProcess, own_environment, running_server

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[ServerProcess]:
    options = ["smollm2", "--local", "--port", "0", "--tensor", "2"]
    with own_environment() as environment, running_server(*options, environment=environment) as server:
        yield server


def test_the_ready_line_names_address_model_and_mesh(server: ServerProcess) -> None:
    assert "(smollm2, tensor 2 × pipeline 1, " in server.ready_line
    assert server.url.startswith("http://127.0.0.1:")


def test_the_capital_of_france_is_paris(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as api:
        whole = api.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, max_tokens=20)
        stream = api.chat.completions.create(
            model="smollm2", messages=FRANCE, temperature=0, max_tokens=20, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "Paris" in (whole.choices[0].message.content or "")
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 5


def test_the_server_is_ready_after_a_real_forward_pass(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ready"}


def test_a_prompt_of_token_ids_outside_the_vocabulary_is_refused(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": [1, 49152]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_the_same_seed_gives_the_same_choices(server: ServerProcess) -> None:
    body = {"prompt": "The sea", "seed": 7, "n": 3, "temperature": 0.8, "max_tokens": 12}
    first, second = (httpx.post(f"{server.url}/v1/completions", json=body).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert len({choice["text"] for choice in first["choices"]}) == 3


def test_a_port_that_is_taken_is_one_sentence_and_exit_code_2(server: ServerProcess) -> None:
    port = server.url.rpartition(":")[2]
    outcome = tinycluster("serve", "smollm2", "--local", "--port", port)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == f"error: cannot listen on 127.0.0.1:{port}: address already in use\n"


def test_chat_reads_a_pipe_and_keeps_the_conversation(server: ServerProcess) -> None:
    lines = "My name is Ada.\n\n/system Answer with one word.\n/nothing\nWhat is my name?\n/clear\n/exit\nnever asked\n"
    command = [sys.executable, "-m", "tinycluster.serve.cli", "chat", "--url", server.url, "--temperature", "0"]
    ended = subprocess.run(
        [*command, "--max-tokens", "20"], input=lines, capture_output=True, text=True, check=True, timeout=60
    )
    assert "Ada" in ended.stdout
    assert ended.stderr.startswith("/nothing is not a command.")
