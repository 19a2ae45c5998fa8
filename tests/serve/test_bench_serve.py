"""`tinycluster bench serve` from the command line to the result, against a small OpenAI-compatible server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.serve.command_line import Outcome, tinycluster

VOCAB_SIZE = 640


class FakeModel:
    """Answers with as many tokens as asked, two in each part of the stream, and keeps every request it saw."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.fails_every_request = False
        self.hides_usage = False

    def refuses(self) -> bool:
        """Every third request is refused, as by a full queue."""
        return self.fails_every_request or (len(self.bodies) % 3 == 0 and not self.hides_usage)

    async def parts(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        is_chat, num_tokens = "messages" in body, body["max_tokens"]
        for first in range(0, num_tokens, 2):
            text = " ".join(["word"] * min(2, num_tokens - first))
            fields = {"delta": {"content": text}} if is_chat else {"text": text}
            yield _event(choices=[{"index": 0, "finish_reason": None, **fields}])
        empty: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        yield _event(choices=[{"index": 0, "finish_reason": "length", **empty}])
        if not self.hides_usage:
            yield _event(choices=[], usage={"prompt_tokens": _prompt_tokens(body), "completion_tokens": num_tokens})
        yield b"data: [DONE]\n\n"


def _event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _prompt_tokens(body: dict[str, Any]) -> int:
    """Chat templates add tokens: the server's count, not the client's, must appear in the result."""
    if "messages" in body:
        return 10 + len(body["messages"][0]["content"].split())
    return len(body["prompt"])


def fake_app(model: FakeModel) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": "fake", "object": "model", "vocab_size": VOCAB_SIZE}]}

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> Response:
        model.bodies.append(body)
        if model.refuses():
            return JSONResponse({"error": {"message": "the queue is full"}}, status_code=429)
        return StreamingResponse(model.parts(body), media_type="text/event-stream")

    return app


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def base_url(model: FakeModel) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(fake_app(model), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    # The socket listens already, so a client that comes before the loop runs waits in its backlog.
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def bench(*arguments: str) -> Outcome:
    return tinycluster("bench", "serve", *arguments)


def result_of(*arguments: str) -> dict[str, Any]:
    outcome = bench(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    result: dict[str, Any] = json.loads(outcome.stdout)
    return result


SMALL = ("--num-prompts", "9", "--random-input-len", "11", "--random-output-len", "5")


def test_result_counts_the_servers_tokens_and_the_refused_requests(base_url: str, model: FakeModel) -> None:
    result = result_of("--base-url", base_url, *SMALL)
    assert (result["completed"], result["failed"]) == (6, 3)
    assert result["errors"] == {"HTTP 429: the queue is full": 3}
    # Three parts of a stream carried the five tokens of each answer.
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (66, 30)
    assert result["model"] == "fake"
    assert result["output_throughput"] == pytest.approx(30 / result["duration"])
    assert result["mean_ttft_ms"] > 0
    assert result["p99_e2el_ms"] >= result["median_e2el_ms"] >= result["median_ttft_ms"]
    assert all(max(body["prompt"]) < VOCAB_SIZE for body in model.bodies)


def test_the_same_seed_sends_the_same_prompts(base_url: str, model: FakeModel) -> None:
    for seed in ("4", "4", "5"):
        result_of("--base-url", base_url, *SMALL, "--seed", seed)
    prompts = [sorted(body["prompt"] for body in model.bodies[start : start + 9]) for start in (0, 9, 18)]
    assert prompts[0] == prompts[1] != prompts[2]


def test_chat_sends_words_and_reports_the_templates_tokens(base_url: str, model: FakeModel) -> None:
    result = result_of("--base-url", base_url, "--endpoint", "/v1/chat/completions", *SMALL, "--ignore-eos")
    assert result["total_input_tokens"] == 6 * 21
    assert {body["ignore_eos"] for body in model.bodies} == {True}
    assert {len(body["messages"][0]["content"].split()) for body in model.bodies} == {11}


def test_closed_loop_holds_at_most_its_concurrency_and_warm_ups_are_not_counted(
    base_url: str, model: FakeModel
) -> None:
    arguments = ("--base-url", base_url, *SMALL, "--max-concurrency", "2", "--num-warmups", "2")
    result = result_of(*arguments)
    assert 1 <= result["max_concurrent_requests"] <= 2
    assert result["completed"] + result["failed"] == 9
    assert len(model.bodies) == 11


def test_goodput_takes_several_objectives_after_one_flag(base_url: str) -> None:
    hour_ms = "3600000"
    result = result_of("--base-url", base_url, *SMALL, "--goodput", f"ttft:{hour_ms}", f"tpot:{hour_ms}")
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result_of("--base-url", base_url, *SMALL, "--goodput", "ttft:0.0001")["request_goodput"] == 0


def test_custom_and_prefix_datasets_reach_the_server(base_url: str, model: FakeModel, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one two three", "output_tokens": 4}\n')
    result_of("--base-url", base_url, "--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "2")
    assert [(body["prompt"], body["max_tokens"]) for body in model.bodies] == [("one two three", 4)] * 2
    model.bodies.clear()
    shape = ("--prefix-repetition-num-prefixes", "2", "--prefix-repetition-prefix-len", "6")
    result_of("--base-url", base_url, "--dataset-name", "prefix_repetition", *shape, "--num-prompts", "4")
    assert len({tuple(body["prompt"][:6]) for body in model.bodies}) == 2


def test_saved_result_table_and_plot_tell_the_same_run(base_url: str, tmp_path: Path) -> None:
    plot, folder = tmp_path / "latency.png", tmp_path / "results"
    saving = ("--save-result", "--result-dir", str(folder), "--result-filename", "run.json", "--plot", str(plot))
    outcome = bench("--base-url", base_url, *SMALL, *saving)
    assert outcome.exit_code == 0, outcome.stderr
    saved = json.loads((folder / "run.json").read_text())
    assert saved["completed"] == 6
    assert f"{saved['mean_ttft_ms']:,.2f}" in outcome.stdout
    assert "3 failed: HTTP 429: the queue is full" in outcome.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_run_in_which_everything_failed_exits_with_one(base_url: str, model: FakeModel) -> None:
    model.fails_every_request = True
    outcome = bench("--base-url", base_url, *SMALL, "--json")
    assert outcome.exit_code == 1
    assert json.loads(outcome.stdout)["failed"] == 9


def test_a_server_that_hides_its_usage_fails_the_requests_with_that_reason(base_url: str, model: FakeModel) -> None:
    model.hides_usage = True
    outcome = bench("--base-url", base_url, *SMALL, "--json")
    assert outcome.exit_code == 1
    (reason,) = json.loads(outcome.stdout)["errors"]
    assert "no usage" in reason


def test_a_failing_warm_up_ends_the_run_before_it_is_measured(base_url: str, model: FakeModel) -> None:
    model.fails_every_request = True
    outcome = bench("--base-url", base_url, *SMALL, "--num-warmups", "1")
    assert outcome.exit_code == 1
    assert "the queue is full" in outcome.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "no server answers at"),
        (("--dataset-name", "sharegpt"), "needs --dataset-path"),
        (("--request-rate", "-1"), "--request-rate must be positive"),
        (("--num-prompts", "0"), "--num-prompts must be at least 1"),
        (("--max-concurrency", "0"), "--max-concurrency must be at least 1"),
        (("--goodput", "itl:5"), "--goodput takes"),
        (("--plot", "/nowhere/at/all.png"), "does not exist"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_two(arguments: tuple[str, ...], sentence: str) -> None:
    outcome = bench("--base-url", f"http://127.0.0.1:{free_port()}", *arguments)
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr
    assert outcome.stderr.count("\n") == 1
