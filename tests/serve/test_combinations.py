"""Every two values of different fields together, on both routes, over the fake engine and over a real small model: an
answer that keeps its promises, or a refusal that names a field."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
import pytest

from tests.cluster.engines import engine_for
from tests.parity.random_model import CASES, write_folder
from tests.serve.fake_engine import FakeEngine
from tests.serve.pairwise import Row, covering_rows
from tinycluster.serve.app import create_app
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.registry import ModelRegistry

NUM_ROWS = 220
NUM_CLIENTS = 8
HELLO = [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "the"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a] {% endif %}"
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}

BOTH = {
    "temperature": [None, 0, 0.7, 2],
    "top_p": [None, 0.5],
    "top_k": [None, -1, 3],
    "min_p": [None, 0.2],
    "seed": [None, 7, -1],
    "n": [None, 2, 3],
    "max_tokens": [1, 5],
    "min_tokens": [None, 0, 3],
    "presence_penalty": [None, 1.5],
    "frequency_penalty": [None, -2],
    "repetition_penalty": [None, 1.3, 0.5],
    "logit_bias": [None, {}, {"65": 100, "66": -100}],
    "bad_words": [None, ["a", "the"]],
    "allowed_token_ids": [None, [65, 66, 67]],
    "stop": [None, "a", ["b", "ab"]],
    "stop_token_ids": [None, [65]],
    "ignore_eos": [None, True],
    "include_stop_str_in_output": [None, True],
    "skip_special_tokens": [None, False],
    "prompt_logprobs": [None, 0, 3],
    "response_format": [
        None,
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    ],
    "structured_outputs": [None, {"regex": "(yes|no)"}, {"choice": ["a", "b"]}],
    "stream": [None, True, True],
    "stream_options": [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}],
    "truncate_prompt_tokens": [None, 4, -1],
    "priority": [None, -1],
    "cache_salt": [None, "pepper"],
    "timeout": [None, 60],
    "return_token_ids": [None, True],
    "return_progress": [None, True],
}
CHAT = {
    **BOTH,
    "messages": [HELLO],
    "max_completion_tokens": [None, 4],
    "logprobs": [None, False, True],
    "top_logprobs": [None, 0, 3],
    "add_generation_prompt": [None, True, False],
    "continue_final_message": [None, True],
    "tools": [None, [ADD]],
    "tool_choice": [None, "none", "auto", "required"],
    "parallel_tool_calls": [None, False],
}
COMPLETION = {
    **BOTH,
    "prompt": ["hello world", ["hello", "the"], [66, 67, 68]],
    "max_tokens": [None, 0, 1, 5],
    "logprobs": [None, 0, 3],
    "best_of": [None, 3],
    "echo": [None, True],
}
TABLES = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}
# What would make nearly every row a contradiction is asked for in few of them.
RARE = (
    "response_format",
    "prompt_logprobs",
    "stream_options",
    "continue_final_message",
    "best_of",
    "top_logprobs",
    "tool_choice",
)


@pytest.fixture(scope="module", params=["fake", "real"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "fake":
        yield from served(FakeEngine())
        return
    config = replace(CASES["llama_nine_heads_tied"], max_position_embeddings=2048)
    folder = write_folder(tmp_path_factory.mktemp("models") / "tiny", config, seed=5)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with closing(engine_for(folder, limits={"max_model_len": 2048}, kv_cache={"memory": "16MiB"})) as engine:
        yield from served(engine)
        assert engine.num_running + engine.num_waiting == 0


def served(engine: Any) -> Iterator[str]:
    registry = ModelRegistry()
    registry.add(engine)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(registry), listener)
    server.start()
    yield url_of(listener)
    server.stop()
    registry.clear()


def given(row: Row) -> Row:
    return {field: value for field, value in row.items() if value is not None}


@cache
def rows_of(path: str) -> list[Row]:
    """Pairwise rows as they are; more of them without what contradicts most others."""
    rows = [given(row) for row in covering_rows(TABLES[path], at_least=NUM_ROWS, seed=3)]
    calm = [{field: value for field, value in row.items() if field not in RARE} for row in rows[: NUM_ROWS // 2]]
    return rows + calm


def test_every_two_values_meet() -> None:
    table = {"a": [1, 2, 3], "b": [4, 5], "c": [6, 7, 8]}
    rows = covering_rows(table, at_least=1, seed=1)
    for a, b in itertools.combinations(table, 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(table[a], table[b]))
    assert len(covering_rows(table, at_least=30, seed=1)) == 30


@pytest.mark.parametrize("path", TABLES)
def test_any_combination_of_fields_is_answered_or_refused(url: str, path: str) -> None:
    rows = rows_of(path)
    assert len(rows) >= 200
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(NUM_CLIENTS) as threads:
        answers = list(threads.map(lambda row: client.post(path, json=row), rows))
    for row, answer in zip(rows, answers, strict=True):
        check(row, answer)
    # Most combinations mean something: a server that refused everything would pass the rest.
    assert sum(answer.status_code == 200 for answer in answers) > len(rows) // 3


def check(row: Row, answer: httpx.Response) -> None:
    assert answer.status_code in (200, 400), (row, answer.text)
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] in row, (row, answer.text)
    elif row.get("stream"):
        check_stream(row, answer.text)
    else:
        check_whole(row, answer.json())


def num_choices(row: Row) -> int:
    prompts = row.get("prompt")
    num_prompts = len(prompts) if isinstance(prompts, list) and isinstance(prompts[0], str) else 1
    return int(row.get("n", 1)) * num_prompts


def check_whole(row: Row, answer: dict[str, Any]) -> None:
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(num_choices(row)))
    for choice in choices:
        assert choice["finish_reason"] in ("stop", "length", "tool_calls")
        check_logprobs(row, choice)
    if row.get("return_token_ids") and "best_of" not in row:
        assert sum(len(choice["token_ids"]) for choice in choices) == answer["usage"]["completion_tokens"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


def check_logprobs(row: Row, choice: dict[str, Any]) -> None:
    logprobs, asked = choice["logprobs"], row.get("logprobs")
    assert (logprobs is not None) == (asked is not None and asked is not False)
    if logprobs is None or "token_ids" not in choice:
        return
    if "messages" in row:
        assert len(logprobs["content"]) == len(choice["token_ids"])
    else:
        num_echoed = len(choice["prompt_token_ids"]) if row.get("echo") else 0
        assert {len(values) for values in logprobs.values()} == {num_echoed + len(choice["token_ids"])}


def check_stream(row: Row, text: str) -> None:
    *events, end = text.strip().split("\n\n")
    assert end == "data: [DONE]", (row, text)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert not any("error" in chunk for chunk in chunks), (row, text)
    ends = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(ends) == list(range(num_choices(row)))
    has_usage = bool(row.get("stream_options", {}).get("include_usage"))
    assert (chunks[-1]["choices"] == []) == has_usage
