"""A real model of random weights behind the API: what fields promise, seen from outside."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.engines import engine_for, settings_for
from tests.parity.random_model import CASES, write_folder
from tinycluster.engine.progress import NoProgress
from tinycluster.serve.app import create_app
from tinycluster.serve.http_server import HttpServer
from tinycluster.serve.listener import listen, url_of
from tinycluster.serve.local_server import start_serving
from tinycluster.serve.registry import ModelRegistry

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a] {% endif %}"
)
CONFIG = replace(CASES["llama_nine_heads_tied"], max_position_embeddings=2048)
PROMPT = "hello world and the sea"
SWITCH = {
    "type": "function",
    "function": {
        "name": "switch",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = write_folder(tmp_path_factory.mktemp("models") / "tiny", CONFIG, seed=5)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    limits = {"max_model_len": 1024, "step_tokens": 64}
    with closing(engine_for(folder, limits=limits, kv_cache={"memory": "16MiB"})) as engine:
        registry = ModelRegistry()
        registry.add(engine)
        listener = listen("127.0.0.1", 0)
        server = HttpServer(create_app(registry), listener)
        server.start()
        with httpx.Client(base_url=url_of(listener), timeout=60) as client:
            yield client
        server.stop()
        registry.clear()
        assert engine.num_running + engine.num_waiting == 0


def complete(model: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = model.post("/v1/completions", json={"prompt": PROMPT, "return_token_ids": True, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def chat(model: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    answer = model.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def tokens_of(answer: dict[str, Any]) -> list[int]:
    return list(answer["choices"][0]["token_ids"])


GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 6}


@pytest.mark.parametrize("sampling", [GREEDY, {**GREEDY, "temperature": 1, "seed": 3, "presence_penalty": 1.0}])
def test_an_answer_scored_as_a_prompt_has_the_same_logprobs_bit_for_bit(
    model: httpx.Client, sampling: dict[str, Any]
) -> None:
    made = complete(model, **sampling, logprobs=3)["choices"][0]
    whole = made["prompt_token_ids"] + made["token_ids"]
    scored = complete(model, prompt=whole, echo=True, max_tokens=0, logprobs=3)["choices"][0]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert scored["logprobs"][name][-6:] == made["logprobs"][name]
    vllms = complete(model, prompt=whole, prompt_logprobs=3, max_tokens=1)["choices"][0]["prompt_logprobs"]
    by_token = [entry[str(token)]["logprob"] for token, entry in zip(whole[1:], vllms[1:], strict=True)]
    assert by_token == scored["logprobs"]["token_logprobs"][1:]


def test_greedy_tokens_are_the_most_likely_ones(model: httpx.Client) -> None:
    made = complete(model, **GREEDY, logprobs=1, prompt_logprobs=0)["choices"][0]["logprobs"]
    assert all(
        max(top.values()) == value for top, value in zip(made["top_logprobs"], made["token_logprobs"], strict=True)
    )


def test_the_best_of_three_is_the_best_of_those_that_n_shows(model: httpx.Client) -> None:
    sampling = {**GREEDY, "temperature": 1, "seed": 11}
    shown = complete(model, **sampling, n=3, logprobs=0)["choices"]
    means = [sum(choice["logprobs"]["token_logprobs"]) / 6 for choice in shown]
    best = complete(model, **sampling, best_of=3)["choices"]
    assert [choice["text"] for choice in best] == [shown[means.index(max(means))]["text"]]
    two = complete(model, **sampling, n=2, best_of=3)["choices"]
    assert [choice["token_ids"] for choice in two] == [
        choice["token_ids"] for _, choice in sorted(zip(means, shown, strict=True), key=lambda pair: -pair[0])[:2]
    ]


def test_a_word_that_is_forbidden_does_not_come(model: httpx.Client) -> None:
    first = complete(model, **GREEDY)["choices"][0]["text"]
    letters = sorted(set(re.findall("[a-z]", first + "abc")))
    text = complete(model, **GREEDY, bad_words=letters)["choices"][0]["text"]
    assert not set(text) & set(letters)


def test_biases_and_allowed_tokens_choose(model: httpx.Client) -> None:
    assert tokens_of(complete(model, **GREEDY, logit_bias={"65": 100})) == [65] * 6
    assert set(tokens_of(complete(model, temperature=2, max_tokens=20, allowed_token_ids=[70, 71]))) <= {70, 71}


def test_a_repetition_that_costs_much_does_not_happen(model: httpx.Client) -> None:
    biased = {"logit_bias": {"65": 20, "66": 19.5}}
    assert tokens_of(complete(model, **GREEDY, **biased))[:2] == [65, 65]
    assert set(tokens_of(complete(model, **GREEDY, **biased, presence_penalty=2, frequency_penalty=2))) == {65, 66}


def test_a_stop_string_ends_where_it_says(model: httpx.Client) -> None:
    forced = {**GREEDY, "logit_bias": {"65": 100}}
    twice = complete(model, **forced)["choices"][0]["text"][:2]
    answer = complete(model, **forced, stop=twice)["choices"][0]
    assert (answer["text"], answer["finish_reason"], answer["stop_reason"]) == ("", "stop", twice)
    assert tokens_of({"choices": [answer]}) == [65, 65]
    assert complete(model, **forced, stop=twice, include_stop_str_in_output=True)["choices"][0]["text"] == twice


@pytest.mark.parametrize(
    ("rules", "matches"),
    [
        ({"structured_outputs": {"regex": "(yes|no) [0-9]{2}"}}, "(yes|no) [0-9]{2}"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"structured_outputs": {"grammar": 'root ::= "<" [a-c] ">"'}}, "<[a-c]>"),
    ],
)
def test_rules_hold_with_any_temperature_and_for_every_choice(
    model: httpx.Client, rules: dict[str, Any], matches: str
) -> None:
    answer = complete(model, temperature=2, seed=1, n=3, max_tokens=40, **rules)
    for choice in answer["choices"]:
        assert re.fullmatch(matches, choice["text"]), choice
        assert choice["finish_reason"] == "stop"


def test_a_schema_makes_json(model: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema["additionalProperties"] = False
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    (choice,) = chat(model, max_tokens=300, response_format=wrapped, seed=4)["choices"]
    assert set(json.loads(choice["message"]["content"])) == {"on"}


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "switch"}}])
def test_a_model_that_knows_nothing_of_tools_calls_one_if_it_must(model: httpx.Client, tool_choice: Any) -> None:
    fields = {"tools": [SWITCH], "tool_choice": tool_choice, "max_tokens": 400, "seed": 2, "parallel_tool_calls": False}
    (choice,) = chat(model, **fields)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "switch"
    assert set(json.loads(call["function"]["arguments"])) == {"on"}


def test_progress_of_a_long_prompt_rises_to_its_end(model: httpx.Client) -> None:
    body = {"prompt": [70 + index % 50 for index in range(300)], "stream": True, "return_progress": True}
    events = model.post("/v1/completions", json=body).text.split("\n\n")
    found = [event for event in events if "prompt_progress" in event]
    processed = [json.loads(event[6:])["prompt_progress"]["processed"] for event in found]
    assert processed == sorted(set(processed))
    assert len(processed) > 2
    assert processed[-1] == 300


def test_a_repeated_prompt_is_cached_unless_salts_differ(model: httpx.Client) -> None:
    prompt = [90 + index % 40 for index in range(100)]

    def num_cached(**fields: Any) -> int:
        return int(complete(model, prompt=prompt, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert num_cached() == 0
    assert num_cached() >= 64
    assert num_cached(cache_salt="pepper") == 0
    assert num_cached(cache_salt="pepper") >= 64


def test_a_deadline_ends_a_request_that_takes_longer(model: httpx.Client) -> None:
    answer = model.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 900, "timeout": 0.0001})
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "deadline_exceeded")


@pytest.mark.parametrize("field", ["logit_bias", "allowed_token_ids", "stop_token_ids"])
def test_tokens_outside_the_vocabulary_are_refused(model: httpx.Client, field: str) -> None:
    value: Any = {"100000": 1} if field == "logit_bias" else [100_000]
    answer = model.post("/v1/completions", json={"prompt": PROMPT, field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_a_continued_message_goes_on_where_it_ended(model: httpx.Client) -> None:
    asked = {"role": "user", "content": "hello"}
    begun = {"role": "assistant", "content": "the se"}
    answer = chat(model, messages=[asked, begun], continue_final_message=True, return_token_ids=True, **GREEDY)
    text = model.post("/detokenize", json={"tokens": answer["prompt_token_ids"]}).json()["prompt"]
    assert text.endswith("[user] hello\n[assistant] the se")


def respond(model: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = model.post("/v1/responses", json={"input": "hello", **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_response_says_what_a_chat_says(model: httpx.Client) -> None:
    sampling = {"temperature": 1, "seed": 11, "top_p": 0.9, "ignore_eos": True}
    said = chat(model, **sampling, max_tokens=12)["choices"][0]["message"]["content"]
    (message,) = respond(model, **sampling, max_output_tokens=12)["output"]
    assert message["content"][0]["text"] == said


def test_a_response_keeps_to_its_format_and_calls_the_function_it_must(model: httpx.Client) -> None:
    schema = SWITCH["function"]["parameters"]  # type: ignore[index]
    shape = {"format": {"type": "json_schema", "name": "switch", "schema": schema}}
    (message,) = respond(model, text=shape, max_output_tokens=200)["output"]
    assert set(json.loads(message["content"][0]["text"])) == {"on"}
    tool = {"type": "function", **SWITCH["function"]}  # type: ignore[dict-item]
    called = respond(model, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_output_tokens=200)
    (call,) = called["output"]
    assert (call["type"], call["name"], set(json.loads(call["arguments"]))) == ("function_call", "switch", {"on"})
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
    after = respond(model, input=[result], previous_response_id=called["id"], tools=[tool], max_output_tokens=3)
    assert after["usage"]["input_tokens"] > called["usage"]["input_tokens"]


def scraped(model: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(model.get("/metrics").text)
    return {s.name.removeprefix("tinycluster:"): s.value for f in families for s in f.samples if len(s.labels) == 1}


def test_metrics_count_what_the_answers_tell(model: httpx.Client) -> None:
    before = scraped(model)
    usages = [complete(model, max_tokens=9, seed=seed)["usage"] for seed in range(3)]
    usages.append(chat(model, max_tokens=9)["usage"])
    after = scraped(model)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in usages)
    assert grown("generation_tokens_total") == sum(usage["completion_tokens"] for usage in usages)
    assert grown("prefix_cache_hits_total") == sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages)
    assert grown("e2e_request_latency_seconds_count") == grown("time_to_first_token_seconds_count") == len(usages)
    assert grown("request_generation_tokens_sum") == grown("generation_tokens_total")
    parts = [after[f"kv_cache_blocks_{part}"] for part in ("free", "used", "cached")]
    assert (sum(parts), parts[1]) == (after["kv_cache_blocks"], 0)


def test_an_engine_goes_with_its_server_though_fastapi_keeps_the_routes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", CONFIG, seed=5)
    with ExitStack() as running, closing(listen("127.0.0.1", 0)) as listener:
        app = create_app(ModelRegistry())
        start_serving(running, listener, app, settings_for(folder), NoProgress, lambda error: None)
        engine = weakref.ref(app.state.registry.get("tiny"))
        assert httpx.get(f"{url_of(listener)}/v1/models").json()["data"][0]["id"] == "tiny"
    gc.collect()
    assert engine() is None
