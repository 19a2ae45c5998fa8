"""A stream, put together, is the answer that comes as a whole: text, calls, tokens, log-probabilities, ends, usage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.cluster.engines import engine_for
from tests.parity.random_model import CASES, write_folder
from tests.serve.fake_engine import FakeEngine
from tests.serve.pairwise import Row, covering_rows
from tests.serve.test_combinations import HELLO, TEMPLATE, served

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": [1, "é"]}}\n</tool_call>'
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
BOTH = {
    "n": [None, 2, 3],
    "seed": [7],
    "max_tokens": [5, 200, 200],
    "stop": [None, None, None, "l", ["add", "world"]],
    "include_stop_str_in_output": [None, True],
    "ignore_eos": [None, True],
    "structured_outputs": [None, None, {"regex": "[a-z]{3}"}],
    "return_token_ids": [None, True],
    "skip_special_tokens": [None, False],
    "truncate_prompt_tokens": [None, -1],
}
CHAT = {
    **BOTH,
    "messages": [HELLO, [{"role": "user", "content": CALL}], [{"role": "user", "content": f"né {CALL}\n{CALL}"}]],
    "tools": [None, [ADD], [ADD]],
    "tool_choice": [None, "none", "auto"],
    "parallel_tool_calls": [None, False],
    "logprobs": [None, True],
    "top_logprobs": [None, 2],
}
COMPLETION = {
    **BOTH,
    "prompt": ["hello world", ["héllo", "the"], [66, 67, 68]],
    "logprobs": [None, 0, 3],
    "echo": [None, True],
}
TABLES = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}


@pytest.fixture(scope="module", params=["fake", "several characters a step", "real"])
def served_limit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A URL, and how many tokens of an answer there are worth their time."""
    if request.param != "real":
        for url in served(FakeEngine(step_chars=1 if request.param == "fake" else 23)):
            yield url, 1000
        return
    config = replace(CASES["llama_nine_heads_tied"], max_position_embeddings=2048)
    folder = write_folder(tmp_path_factory.mktemp("models") / "tiny", config, seed=5)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with closing(engine_for(folder, limits={"max_model_len": 2048}, kv_cache={"memory": "16MiB"})) as engine:
        for url in served(engine):
            yield url, 24


def put_together(text: str) -> dict[str, Any]:
    """One object with the fields of a whole answer, from the chunks of a stream."""
    chunks = [json.loads(event[6:]) for event in text.split("\n\n") if event.startswith("data: {")]
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            add(choices.setdefault(part["index"], {"text": "", "calls": {}, "lists": {}, "end": None}), part)
    prompt = [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk]
    return {"choices": choices, "usage": chunks[-1]["usage"], "prompt": prompt[:1]}


def add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    delta = part.get("delta", {"content": part.get("text")})
    choice["text"] += delta.get("content") or ""
    for piece in delta.get("tool_calls", []):
        call = choice["calls"].setdefault(piece["index"], ["", ""])
        call[0] += piece["function"].get("name", "")
        call[1] += piece["function"]["arguments"]
    lists = {**(part["logprobs"] or {}), "token_ids": part.get("token_ids"), "prompt": part.get("prompt_token_ids")}
    for name, values in lists.items():
        if values is not None:
            choice["lists"].setdefault(name, []).extend(values)
    if part["finish_reason"] is not None:
        assert choice["end"] is None
        choice["end"] = (part["finish_reason"], part["stop_reason"])


def taken_apart(answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer in the same form."""
    choices = {}
    for choice in answer["choices"]:
        message = choice.get("message", {"content": choice.get("text")})
        calls = {
            index: [call["function"]["name"], call["function"]["arguments"]]
            for index, call in enumerate(message.get("tool_calls", []))
        }
        lists = {**(choice["logprobs"] or {}), "token_ids": choice.get("token_ids")}
        lists["prompt"] = choice.get("prompt_token_ids")
        choices[choice["index"]] = {
            "text": message["content"] or "",
            "calls": calls,
            # Without a token there is no chunk that could show an empty list.
            "lists": {name: values for name, values in lists.items() if values},
            "end": (choice["finish_reason"], choice["stop_reason"]),
        }
    prompt = [answer["prompt_token_ids"]] if "prompt_token_ids" in answer else []
    return {"choices": choices, "usage": answer["usage"], "prompt": prompt}


@pytest.mark.parametrize("path", TABLES)
def test_a_stream_put_together_is_the_whole_answer(served_limit: tuple[str, int], path: str) -> None:
    (url, limit), table = served_limit, TABLES[path]
    rows = [{k: v for k, v in row.items() if v is not None} for row in covering_rows(table, at_least=60, seed=5)]

    def both(row: Row) -> tuple[httpx.Response, httpx.Response]:
        row["max_tokens"] = min(row["max_tokens"], limit)
        streaming = {**row, "stream": True, "stream_options": {"include_usage": True}}
        return client.post(path, json=row), client.post(path, json=streaming)

    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(both, rows))
    for row, (whole, stream) in zip(rows, answers, strict=True):
        assert whole.status_code == stream.status_code, row
        if whole.status_code == 200:
            expected, found = taken_apart(whole.json()), put_together(stream.text)
            expected["usage"].pop("prompt_tokens_details"), found["usage"].pop("prompt_tokens_details")
            for choice in found["choices"].values():
                choice["lists"] = {name: values for name, values in choice["lists"].items() if values}
            assert found == expected, row
    assert sum(whole.status_code == 200 for whole, _ in answers) > len(rows) // 3
