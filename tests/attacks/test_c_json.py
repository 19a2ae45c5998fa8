"""Section C: bodies that are no JSON object, or hold what no field takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.attacks.asking import CHAT, COMPLETIONS, post, rejected
from tests.attacks.conftest import TAKING_BODIES
from tests.attacks.contract import GOOD, Victim, victim
from tests.attacks.schemas import BODIES, STATUSES, wrong_values
from tests.attacks.wire import exchange, request
from tinycluster.serve.body import MAX_BODY_BYTES
from tinycluster.serve.unsupported import CHAT_NEUTRAL, COMPLETION_NEUTRAL, Neutral


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}}",
        b'{"a": 1} x',
        b'{"a": 1}{"b": 2}',
        b"\xef\xbb\xbf{}",
        b'\xff\xfe{\x00}\x00',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": [["\\ud800\\u0041"]]}',
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "\\u0061": 2}}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": \x00}',
        b'{"a": "\n"}',
        b'{"a": 01}',
        b'{a: 1}',
        b'{"a": tru}',
        b'// x\n{}',
    ],
    ids=repr,
)  # fmt: skip
def test_row_32_what_is_no_json_is_a_400_on_every_route(attacked: Victim, body: bytes) -> None:
    """Row 32."""
    for path in TAKING_BODIES:
        rejected(post(attacked, path, body))


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"42", b"null", b"true", b"-0", b"1e5", b"[{}]"], ids=repr)
def test_row_33_a_body_that_is_no_object_is_a_400_on_every_route(attacked: Victim, body: bytes) -> None:
    """Row 33."""
    for path in TAKING_BODIES:
        rejected(post(attacked, path, body))


NESTED = {
    "arrays": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "in_a_field": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "in_an_unknown_field": b'{"prompt": "x", "x": ' + b'[{"a":' * 50_000 + b"1" + b"}]" * 50_000 + b"}",
    "unclosed": b"[" * (MAX_BODY_BYTES - 1),
}


@pytest.mark.parametrize("kind", NESTED)
def test_row_34_nesting_100_000_deep_is_a_400_on_every_route(attacked: Victim, kind: str) -> None:
    """Row 34: within 200 ms."""
    for path in TAKING_BODIES:
        with attacked.within_cpu_s(0.2):
            rejected(post(attacked, path, NESTED[kind]))


DIGITS = b"1" * 100_000
NUMBERS = [DIGITS, b"-" + DIGITS, b"1e400", b"-1e400", b"NaN", b"Infinity", b"-Infinity", b"0." + DIGITS + b"e400"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12].decode())
def test_row_35_numbers_that_json_or_a_double_does_not_have_are_a_400(attacked: Victim, number: bytes) -> None:
    """Row 35: in every numeric field."""
    for path, (model, body) in BODIES.items():
        for name, schema in model.model_json_schema()["properties"].items():
            if "number" in json.dumps(schema) or "integer" in json.dumps(schema):
                content = json.dumps({**body, name: "@"}).encode().replace(b'"@"', number)
                rejected(post(attacked, path, content))


def test_row_35_minus_zero_is_a_number(attacked: Victim) -> None:
    """Row 35: JSON has it, and it is zero."""
    body = b'{"prompt": "good", "temperature": -0, "top_p": 1, "min_p": -0.0, "max_tokens": 4}'
    assert post(attacked, "/v1/completions", body).status == 200


def test_row_36_every_route_that_takes_a_body_has_its_schema_here() -> None:
    """Row 36: a new route must be added to schemas.py, or its fields are not attacked."""
    assert set(BODIES) == set(TAKING_BODIES)


@pytest.mark.parametrize("path", BODIES)
def test_row_36_a_value_of_the_wrong_type_is_a_400_that_names_its_field(attacked: Victim, path: str) -> None:
    """Row 36: generated from the schema of every route: types, ranges, lengths and choices."""
    model, body = BODIES[path]
    assert post(attacked, path, body).status == STATUSES.get(path, 200)
    tried = 0
    for name, value in wrong_values(model):
        reply = post(attacked, path, {**body, name: value})
        assert reply.status == 400, (name, value, reply)
        rejected(reply, name)
        tried += 1
    assert tried > 5 * len(model.model_fields) / 2


@pytest.mark.parametrize(("path", "neutral"), [(CHAT, CHAT_NEUTRAL), ("/v1/completions", COMPLETION_NEUTRAL)])
def test_row_36_every_unsupported_field_is_refused_by_name(attacked: Victim, path: str, neutral: Neutral) -> None:
    """Row 36: a field that would change the answer is not ignored, whatever its type."""
    for name in neutral:
        for value in ({"x": [1]}, "\x00", 10**30, [[]], [None]):
            rejected(post(attacked, path, {**BODIES[path][1], name: value}), name)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "string",
        [],
        [123],
        [None],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": 123, "content": "x"}],
        [{"role": "user", "content": 123}],
        [{"role": "user", "content": {"text": "x"}}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 1}]}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "king", "content": "x"}],
        [{"role": "USER", "content": "x"}],
        [{"role": "", "content": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": None}],
    ],
    ids=json.dumps,
)
def test_row_37_messages_that_are_none_are_a_400(attacked: Victim, messages: Any) -> None:
    """Row 37."""
    for stream in (False, True):
        rejected(post(attacked, CHAT, {"messages": messages, "stream": stream}), "messages")
    rejected(post(attacked, CHAT, {"stream": True}), "messages")


@pytest.fixture(scope="module")
def tokenizing_server(tiny_folder: str) -> Iterator[Victim]:
    """A real tokenizer and template, and a context that is never too short for a text to be tokenized."""
    with victim({"engine": "real tokenizer", "folder": tiny_folder}) as server:
        yield server


LARGE: dict[str, Callable[[int], dict[str, Any]]] = {
    "messages": lambda n: {"messages": [{"role": "user", "content": "a"}] * n},
    "one_message": lambda n: {"messages": [{"role": "user", "content": "word " * 8 * n}]},
    "control_tokens": lambda n: {"messages": [{"role": "user", "content": "<|im_end|>" * n}]},
    "zero_width": lambda n: {"messages": [{"role": "user", "content": "\u200b" * 10 * n}]},
    "parts": lambda n: {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * n}]},
    "token_ids": lambda n: {"prompt": [7] * 5 * n},
    "too_many_token_ids": lambda n: {"prompt": [7] * 20 * n},
    "lists_of_token_ids": lambda n: {"prompt": [[7]] * 10 * n},
}
LARGEST, MAX_TRIES = 100_000, 5


@pytest.mark.parametrize("kind", LARGE)
def test_row_38_large_prompts_take_linear_time_and_do_not_hold_up_others(tokenizing_server: Victim, kind: str) -> None:
    """Row 38: they are parsed, rendered and tokenized off the event loop, without the interpreter's lock. Twice as much
    takes 2.5 times the processor's time at most, told by four times as much, and by the best of a few pairs."""
    ratios = list[float]()
    with tokenizing_server.attack():
        while not ratios or (ratios[-1] > 2.5**2 and len(ratios) < MAX_TRIES):
            whole_s, quarter_s = (refusal_cpu_s(tokenizing_server, LARGE[kind](LARGEST // part)) for part in (1, 4))
            ratios.append(whole_s / quarter_s)
    assert min(ratios) <= 2.5**2


def refusal_cpu_s(server: Victim, body: dict[str, Any]) -> float:
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    before_s = server.cpu_s()
    reply = exchange(server.address, request("POST", CHAT if "messages" in body else COMPLETIONS, body=content))
    assert reply.status in (400, 413)
    reply.error()
    return server.cpu_s() - before_s


def test_row_38_large_prompts_at_once_take_turns(tokenizing_server: Victim) -> None:
    """Row 38: the contract bounds what they take together; shorter prompts pass between them."""
    large = request("POST", COMPLETIONS, body=json.dumps({"prompt": "word " * 60_000}).encode())
    small = {"prompt": "the other " * 250, "max_tokens": 4}
    with tokenizing_server.attack(), ThreadPoolExecutor(12) as clients:
        waiting = [clients.submit(exchange, tokenizing_server.address, large) for _ in range(12)]
        for _ in range(5):
            assert post(tokenizing_server, COMPLETIONS, small).status in (200, 400)
        assert [future.result().status for future in waiting] == [400] * 12


HOSTILE = ["\x00", "\x1b[31mred\x1b[0m", "a\r\nERROR fake line", "\u202egnp.exe", "\x7f\x08\x08", "\u2028next"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_row_39_control_characters_never_start_a_log_line_or_reach_a_header(attacked: Victim, text: str) -> None:
    """Row 39: in names, texts and paths; also where an answer fails and is logged."""
    body = {"prompt": "good", "user": text, "cache_salt": text, "max_tokens": 4}
    replies = [
        post(attacked, "/v1/completions", {**body, "prompt": text}),
        post(attacked, "/v1/completions", {**body, "model": text}),
        post(attacked, "/v1/completions", {**body, "stop": [text]}),
        post(attacked, CHAT, {"messages": [{"role": text, "content": text}]}),
        post(attacked, CHAT, {text: text}),
        exchange(attacked.address, request("GET", "/v1/models/" + "".join(f"%{byte:02x}" for byte in text.encode()))),
    ]
    for reply in replies:
        assert reply.status in (200, 400, 404)
        assert not any(ord(character) < 32 or text in value for value in reply.headers.values() for character in value)
        if reply.status != 200:
            assert text not in reply.error()["message"] or text.isprintable()
    assert "fake line" not in attacked.log()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_row_39_control_characters_are_stored_as_they_are_and_shown_escaped(attacked: Victim, text: str) -> None:
    """Row 39: what a client may come back to, and the numbers that an operator looks at."""
    body = {"input": f"x{text}", "metadata": {"x": text}, "user": text, "max_output_tokens": 4}
    made = json.loads(post(attacked, "/v1/responses", body).body)
    path = f"/v1/responses/{made['id']}"
    shown, items, numbers = (
        exchange(attacked.address, request("GET", each)).body for each in (path, f"{path}/input_items", "/metrics")
    )
    assert json.loads(shown) == made
    assert made["metadata"] == {"x": text}
    assert json.loads(items)["data"][0]["content"][0]["text"] == f"x{text}"
    for raw in (shown, items):
        assert not any(character < 32 for character in raw)
    assert text.encode() not in numbers
    assert exchange(attacked.address, request("DELETE", path)).status == 200


def test_row_39_a_failure_of_ours_is_logged_once_with_its_path_quoted(attacked: Victim) -> None:
    """Row 39: the one place where a request's own text reaches the log."""
    body = json.dumps({"prompt": "bug", "user": "\nERROR fake line"}).encode()
    reply = exchange(attacked.address, request("POST", "/v1/completions", body=body))
    assert (reply.status, reply.error()["code"]) == (500, "internal_error")
    log = attacked.take_log()
    assert 'POST "/v1/completions" failed' in log
    assert not [line for line in log.splitlines() if line.startswith("ERROR fake")]


def test_the_good_request_is_good(attacked: Victim) -> None:
    """Every row leans on it."""
    assert post(attacked, "/v1/completions", GOOD).status == 200
