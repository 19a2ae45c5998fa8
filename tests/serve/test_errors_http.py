"""Whatever a client sends, it gets OpenAI's error object and nothing of our insides."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine
from tinycluster.serve.body import MAX_BODY_BYTES, MAX_DEPTH

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
HELLO = [{"role": "user", "content": "hello"}]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    message = body["error"]["message"]
    assert "Traceback" not in message
    assert "pydantic" not in message
    return dict(body["error"])


def nested_in_an_object(num_arrays: int) -> bytes:
    return b'{"prompt": [1], "max_tokens": 1, "user": "]", "metadata": ' + b"[" * num_arrays + b"]" * num_arrays + b"}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[]", "an array"),
        (b'"text"', "a string"),
        (b"42", "a number"),
        (b"null", "null"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"a": ' + b"1" * 100_000 + b"}", "number is too long"),
        (b'{"temperature": 1e999}', "number that is too large"),
        (b'{"messages": [-1e400]}', "number that is too large"),
        (b"[" * 100_000, "nested more than"),
        (nested_in_an_object(MAX_DEPTH), "nested more than"),
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(client: httpx.Client, body: bytes, words: str) -> None:
    error = error_of(client.post(CHAT, content=body, headers=JSON), 400)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("media_type", [None, "text/plain", "multipart/form-data; boundary=x", "application/jsonx"])
def test_another_media_type_is_a_415(client: httpx.Client, media_type: str | None) -> None:
    headers = {"content-type": media_type} if media_type else {}
    error = error_of(client.post(CHAT, content=json.dumps({"messages": HELLO}).encode(), headers=headers), 415)
    assert error["code"] == "unsupported_media_type"


def test_a_charset_after_the_media_type_is_fine(client: httpx.Client) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post(CHAT, content=json.dumps({"messages": HELLO}).encode(), headers=headers).status_code == 200


def test_a_compressed_body_is_a_415(client: httpx.Client) -> None:
    headers = JSON | {"content-encoding": "gzip"}
    error_of(client.post(CHAT, content=gzip.compress(b'{"messages": []}'), headers=headers), 415)


def test_a_body_at_the_limit_of_depth_is_checked_further(client: httpx.Client) -> None:
    content = nested_in_an_object(MAX_DEPTH - 1)
    error = error_of(client.post("/v1/completions", content=content, headers=JSON), 400)
    assert "metadata" in error["message"]


def body_of(num_bytes: int) -> bytes:
    empty = json.dumps({"prompt": [1], "max_tokens": 1, "user": ""}).encode()
    return empty[:-2] + b"x" * (num_bytes - len(empty)) + b'"}'


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_a_413(client: httpx.Client) -> None:
    assert client.post("/v1/completions", content=body_of(MAX_BODY_BYTES), headers=JSON).status_code == 200
    error = error_of(client.post("/v1/completions", content=body_of(MAX_BODY_BYTES + 1), headers=JSON), 413)
    assert error["code"] == "content_too_large"


def test_a_chunked_body_over_the_limit_is_a_413(client: httpx.Client) -> None:
    chunks = iter([b"x" * 2**20] * 4 + [b"x"])
    error_of(client.post(CHAT, content=chunks, headers=JSON), 413)


def test_unknown_routes_and_wrong_methods_have_the_error_object(client: httpx.Client) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(client.get("/docs"), 404)["code"] == "not_found"
    response = client.get(CHAT)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    for method in ("TRACE", "PATCH", "DELETE"):
        error_of(client.request(method, "/health"), 405)


@pytest.mark.parametrize("name", ["gpt-4", "../../etc/passwd", "http://169.254.169.254/", "x" * 10_000, "\x1b[31m\r\n"])
def test_an_unknown_model_is_a_404_model_not_found(client: httpx.Client, name: str) -> None:
    error = error_of(client.post(CHAT, json={"model": name, "messages": HELLO}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert len(error["message"]) < 500
    assert "\x1b" not in error["message"]


def test_a_model_by_path_is_found_or_a_404(client: httpx.Client) -> None:
    assert client.get("/v1/models/fake").json()["id"] == "fake"
    assert error_of(client.get("/v1/models/org/name"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_context_length_exceeded(client: httpx.Client, stream: bool) -> None:
    long = "x" * 5000
    error = error_of(client.post("/v1/completions", json={"prompt": long, "stream": stream}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    body = {"messages": [{"role": "user", "content": long}], "stream": stream}
    error = error_of(client.post(CHAT, json=body), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_a_429_with_retry_after(client: httpx.Client, stream: bool) -> None:
    response = client.post("/v1/completions", json={"prompt": "full", "stream": stream})
    assert error_of(response, 429)["code"] == "queue_full"
    assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hi"}),
        (CHAT, {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/responses", {"input": "Hi"}),
    ],
)
def test_a_full_engine_is_asked_before_any_work_is_put_into_a_prompt(
    start_server: StartServer, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(is_full=True)
    monkeypatch.setattr(engine, "tokenizer", None)
    response = httpx.post(start_server(engine) + path, json=body)
    assert error_of(response, 429)["code"] == "queue_full"


def test_a_full_queue_ends_the_choices_that_were_already_taken(start_server: StartServer) -> None:
    engine = FakeEngine()
    response = httpx.post(start_server(engine) + "/v1/completions", json={"prompt": ["ok", "full"]})
    assert error_of(response, 429)
    assert not engine.running


@pytest.mark.parametrize("stream", [False, True])
def test_a_rank_lost_before_the_first_token_is_a_503(client: httpx.Client, stream: bool) -> None:
    response = client.post("/v1/completions", json={"prompt": "lost at once", "stream": stream})
    assert error_of(response, 503)["message"] == "rank 1 was lost"
    assert int(response.headers["retry-after"]) > 0


def test_a_rank_lost_in_a_stream_is_one_error_event_and_done(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"prompt": "lost", "stream": True})
    events = response.text.strip().split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == "l"
    assert json.loads(events[1].removeprefix("data: "))["error"]["message"] == "rank 1 was lost"
    assert events[2:] == ["data: [DONE]"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_before_the_first_token_is_a_408(client: httpx.Client, stream: bool) -> None:
    response = client.post("/v1/completions", json={"prompt": "late at once", "stream": stream, "timeout": 1})
    assert error_of(response, 408)["code"] == "deadline_exceeded"


def test_a_deadline_in_a_stream_is_one_error_event_and_done(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"prompt": "late", "stream": True, "timeout": 1})
    *_, error, end = response.text.strip().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert end == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_our_own_fault_is_logged_and_says_nothing_outside(
    client: httpx.Client, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.post("/v1/completions", json={"prompt": "bug", "stream": stream})
    if not stream:
        assert error_of(response, 500)["code"] == "internal_error"
    assert "internal_error" in response.text
    assert "secret" not in response.text
    assert "secret detail" in caplog.text


def test_health_is_alive_while_ready_is_503(start_server: StartServer) -> None:
    url = start_server(FakeEngine(is_ready=False))
    assert httpx.get(url + "/health").status_code == 200
    response = httpx.get(url + "/health/ready")
    assert "12 s" in error_of(response, 503)["message"]
    assert "retry-after" in response.headers


def test_a_server_without_models_is_not_ready(start_server: StartServer) -> None:
    url = start_server()
    error_of(httpx.get(url + "/health/ready"), 503)
    error_of(httpx.post(url + CHAT, json={"messages": HELLO}), 503)
