"""`tinycluster serve --local` with the real model, as a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serve.command_line import tinycluster
from tests.serve.server_process import ServerProcess, own_environment, running_server

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


CONFIG = """
models:
  - {{name: smollm2, source: {path}, mesh: {{tensor: 2}}}}
  - name: org/second
    source: {path}
    mesh: {{pipeline: 2}}
    limits: {{max_model_len: 2048, max_running: 1, max_waiting: 0}}
"""


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = tmp_path_factory.mktemp("config") / "two.yaml"
    config.write_text(CONFIG.format(path=smollm2_path), encoding="utf-8")
    options = [str(config), "--local", "--port", "0"]
    with own_environment() as environment, running_server(*options, environment=environment) as server:
        yield server


def test_the_ready_line_names_address_models_and_meshes(server: ServerProcess) -> None:
    assert "(smollm2, tensor 2 × pipeline 1; org/second, tensor 1 × pipeline 2, " in server.ready_line
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


def test_models_are_chosen_by_name_and_have_their_own_limits(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as api:
        assert [model.id for model in api.models.list()] == ["smollm2", "org/second"]
        first, second = (
            api.completions.create(model=name, prompt="The sea", temperature=0, max_tokens=8).choices[0].text
            for name in ("smollm2", "org/second")
        )
        assert first == second
        with pytest.raises(openai.BadRequestError) as caught:
            api.completions.create(model="org/second", prompt=[5] * 2048)
    assert caught.value.code == "context_length_exceeded"


def test_a_full_queue_is_a_429_until_the_client_that_fills_it_leaves(server: ServerProcess) -> None:
    long = {"model": "org/second", "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    short = {"model": "org/second", "prompt": "Once", "max_tokens": 1}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=long, timeout=30) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        refused = httpx.post(f"{server.url}/v1/completions", json=short)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=30) as api:
        # The client itself tries again after Retry-After, one second, until the server has noticed.
        assert api.completions.create(model="org/second", prompt="Once", max_tokens=1).choices


def test_the_server_is_ready_after_a_real_forward_pass(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ready"}


def test_a_prompt_of_token_ids_outside_the_vocabulary_is_refused(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": "smollm2", "prompt": [1, 49152]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_the_server_and_its_ranks_have_logs_that_the_command_shows(server: ServerProcess) -> None:
    folder = Path(server.environment["HOME"]) / ".local" / "state" / "tinycluster" / "logs"
    body = {"model": "smollm2", "prompt": "Once", "max_tokens": 2}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
    wanted = f"id={answer.headers['x-request-id']} key=- method=POST route=/v1/completions status=200 "
    command = [sys.executable, "-m", "tinycluster.serve.cli", "logs", "--follow"]
    with subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, text=True) as follow:
        assert follow.stdout is not None
        assert any(wanted in line for line in follow.stdout)
        follow.terminate()
    names = {path.name for path in folder.iterdir()}
    ranks = {"smollm2-rank-0.log", "smollm2-rank-1.log", "org%2Fsecond-rank-0.log", "org%2Fsecond-rank-1.log"}
    assert names == {"server.log"} | ranks
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_same_seed_gives_the_same_choices(server: ServerProcess) -> None:
    body = {"model": "smollm2", "prompt": "The sea", "seed": 7, "n": 3, "temperature": 0.8, "max_tokens": 12}
    first, second = (httpx.post(f"{server.url}/v1/completions", json=body).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert len({choice["text"] for choice in first["choices"]}) == 3


def test_a_port_that_is_taken_is_one_sentence_and_exit_code_2(server: ServerProcess) -> None:
    port = server.url.rpartition(":")[2]
    outcome = tinycluster("serve", "smollm2", "--local", "--port", port)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == f"error: cannot listen on 127.0.0.1:{port}: address already in use\n"


def one_answer(server: ServerProcess, messages: list[Any]) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as api:
        answer = api.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=20)
    return answer.choices[0].message.content or ""


def test_chat_reads_a_pipe_and_keeps_the_conversation(server: ServerProcess) -> None:
    lines = "My name is Ada.\n\n/system Answer with one word.\n/nothing\nWhat is my name?\n/clear\n/exit\nnever asked\n"
    command = [sys.executable, "-m", "tinycluster.serve.cli", "chat", "--url", server.url, "--temperature", "0"]
    ended = subprocess.run(
        [*command, "--max-tokens", "20"], input=lines, capture_output=True, text=True, check=True, timeout=60
    )
    name, question = {"role": "user", "content": "My name is Ada."}, {"role": "user", "content": "What is my name?"}
    system = {"role": "system", "content": "Answer with one word."}
    greeting = one_answer(server, [name])
    answer = one_answer(server, [system, name, {"role": "assistant", "content": greeting}, question])
    assert ended.stdout == f"{greeting}\n{answer}\n"
    assert answer != one_answer(server, [system, question])
    assert ended.stderr.startswith("/nothing is not a command.")
