"""Tokens of texts and conversations over HTTP, and what the server says of itself."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import tinycluster
from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tinycluster.engine.checkpoint import open_checkpoint
from tinycluster.engine.errors import UnavailableError
from tinycluster.serve.server_state import Probes, _generate_one_token

HELLO = [{"role": "user", "content": "hi"}]


def test_a_prompt_has_its_tokens_their_number_and_the_context(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "né"}).json()
    assert answer == {"count": 3, "max_model_len": 1000, "tokens": [110, 195, 169], "token_strs": None}


def test_the_spelling_of_the_tokens_comes_when_asked_for(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "hi", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["h", "i"]


def test_a_conversation_has_the_tokens_of_its_template(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"messages": HELLO}).json()["tokens"] == [104, 105]


def test_tokens_become_their_text_again(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"prompt": "größe"}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "größe"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"messages": HELLO, "tools": [{"type": "x"}]}, "tools[0].type"),
        ("/tokenize", {"messages": HELLO, "tools": {}}, "tools"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [256]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
    ],
)
def test_a_wrong_field_is_refused_with_its_name(client: httpx.Client, path: str, body: object, param: str) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_an_unknown_model_is_not_found(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={"model": "other", "prompt": "a", "tokens": [1]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_real_tokenizer_gives_what_a_chat_is_answered_with(smollm2_path: Path, start_server: StartServer) -> None:
    tokenizer = open_checkpoint(smollm2_path).tokenizer()
    url = start_server(FakeEngine(tokenizer=tokenizer))  # type: ignore[arg-type]
    for flag in (True, False):
        body = {"messages": HELLO, "add_generation_prompt": flag, "return_token_strs": True}
        answer = httpx.post(f"{url}/tokenize", json=body).json()
        assert answer["tokens"] == tokenizer.apply_chat_template(HELLO, add_generation_prompt=flag)
        assert answer["token_strs"][0] == "<|im_start|>"
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with_tools = httpx.post(f"{url}/tokenize", json={"messages": HELLO, "tools": tools}).json()["tokens"]
    assert with_tools == tokenizer.apply_chat_template(HELLO, tools=tools)
    assert len(with_tools) > answer["count"]
    begun = [*HELLO, {"role": "assistant", "content": "So"}]
    body = {"messages": begun, "continue_final_message": True}
    assert httpx.post(f"{url}/tokenize", json=body).json()["tokens"] == tokenizer.apply_chat_template(
        begun, add_generation_prompt=False, continue_final_message=True
    )
    text = httpx.post(f"{url}/tokenize", json={"prompt": "a b", "return_token_strs": True}).json()
    assert text["token_strs"] == ["a", "Ġb"]


def test_the_version_is_the_packages(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": tinycluster.__version__}


def test_the_load_counts_running_and_waiting_requests_of_all_models(start_server: StartServer) -> None:
    busy = FakeEngine("a", num_waiting=3)
    busy.running.update({1, 2})
    url = start_server(busy, FakeEngine("b", num_waiting=4))
    assert httpx.get(f"{url}/load").json() == {"server_load": 9}


def test_health_generate_runs_one_token_of_every_model(start_server: StartServer) -> None:
    engines = [FakeEngine("a"), FakeEngine("b")]
    url = start_server(*engines)
    assert httpx.get(f"{url}/health_generate").status_code == 200
    assert [[sampling.max_tokens for sampling in engine.submitted] for engine in engines] == [[1], [1]]


def test_callers_at_the_same_time_share_one_token() -> None:
    engine = FakeEngine(gate=threading.Semaphore(0))

    async def ask_together() -> int:
        probes = Probes(_generate_one_token)
        callers = [asyncio.create_task(probes.probe(engine)) for _ in range(4)]  # type: ignore[arg-type]
        while not engine.submitted:
            await asyncio.sleep(0)
        callers.pop().cancel()
        engine.gate = None
        await asyncio.gather(*callers)
        num_shared = len(engine.submitted)
        await probes.probe(engine)  # type: ignore[arg-type]
        return num_shared

    assert asyncio.run(ask_together()) == 1
    assert len(engine.submitted) == 2


def test_however_many_ask_whether_it_is_ready_one_thread_waits_for_a_step(start_server: StartServer) -> None:
    engine = Slow()
    url = start_server(engine)
    with ThreadPoolExecutor(8) as callers:
        replies = [callers.submit(httpx.get, f"{url}/health/ready", timeout=20) for _ in range(8)]
        engine.is_asked.wait(20)
        # The others have asked, too, when the server answers what came after them.
        for _ in range(8):
            assert httpx.get(f"{url}/health").status_code == 200
        engine.has_stepped.set()
        assert {reply.result().status_code for reply in replies} == {200}
    assert engine.most_waiting == 1


@dataclass
class Slow(FakeEngine):
    is_asked: threading.Event = field(default_factory=threading.Event)
    has_stepped: threading.Event = field(default_factory=threading.Event)
    num_asking: int = 0
    most_waiting: int = 0

    def check_ready(self) -> None:
        self.num_asking += 1
        self.most_waiting = max(self.most_waiting, self.num_asking)
        self.is_asked.set()
        self.has_stepped.wait(20)
        self.num_asking -= 1


class Silent(FakeEngine):
    def submit(self, *_: object) -> None:  # type: ignore[override]
        raise UnavailableError("rank 1 was lost")


def test_an_engine_that_generates_nothing_is_unavailable(start_server: StartServer) -> None:
    answer = httpx.get(f"{start_server(Silent())}/health_generate")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")


def test_a_server_without_a_model_is_unavailable(start_server: StartServer) -> None:
    assert httpx.get(f"{start_server()}/health_generate").status_code == 503
