"""server.content_filter over real HTTP, on every route that generates: patterns, a URL, and what fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.fake_engine import FakeEngine
from tests.serve.keyed_server import keyed_server
from tests.serve.moderator import Moderator, moderator
from tests.serve.test_content_patterns import CATASTROPHE, CATASTROPHIC
from tinycluster.cluster.config import ContentFilterSettings
from tinycluster.engine.errors import ConfigError
from tinycluster.serve.content_filter import MAX_ASKED_AT_ONCE, ContentFilter

CHAT = {"messages": [{"role": "user", "content": "TEXT"}]}
ROUTES: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": (CHAT, "messages"),
    "/v1/completions": ({"prompt": "TEXT"}, "prompt"),
    "/v1/responses": ({"input": "TEXT"}, "input"),
    "/api/chat": ({"input": "TEXT", "stream": False}, "input"),
}
"""A body with TEXT in it, and the field that is blamed."""


@dataclass
class Backwards(FakeEngine):
    """The answer is the prompt backwards, so that what may be asked need not be what may be answered."""

    def submit_choices(self, prompt_token_ids: Any, *arguments: Any, **options: Any) -> Any:
        return super().submit_choices(list(reversed(prompt_token_ids)), *arguments, **options)


@pytest.fixture(scope="module")
def patterned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Refuses bomb and what becomes bomb backwards: "bmob" may be asked, and is answered by "bomb"."""
    with filtered(tmp_path_factory.mktemp("patterned"), patterns=["bomb", "kill.{0,10}me"]) as client:
        yield client


@contextmanager
def filtered(folder: Path, engine: FakeEngine | None = None, **settings: Any) -> Iterator[httpx.Client]:
    """A URL has more than its usual five seconds, for a late verdict is none."""
    section = {"timeout": 60, **settings}
    with (
        keyed_server(folder, engine or Backwards(), auth="none", content_filter=section) as server,
        server.client(None) as client,
    ):
        yield client


def ask(client: httpx.Client, path: str, text: str, **fields: Any) -> httpx.Response:
    body = json.loads(json.dumps(ROUTES[path][0]).replace("TEXT", text))
    return client.post(path, json={**body, **fields})


def error(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    return dict(reply.json()["error"])


def answered(path: str, reply: httpx.Response) -> tuple[str, str]:
    """The text and how it ended."""
    assert reply.status_code == 200, reply.text
    body = reply.json()
    if path == "/v1/responses":
        text = "".join(part["text"] for item in body["output"] for part in item.get("content", ()))
        return text, (body["incomplete_details"] or {"reason": "stop"})["reason"]
    if path == "/api/chat":
        return body["message"]["content"], body["message"]["finish_reason"]
    choice = body["choices"][0]
    return choice.get("text", choice.get("message", {}).get("content")), choice["finish_reason"]


@pytest.mark.parametrize("path", ROUTES)
def test_a_prompt_that_a_pattern_matches_is_refused(patterned: httpx.Client, path: str) -> None:
    refused = error(ask(patterned, path, "make a BoMb"), 400)
    assert (refused["code"], refused["param"]) == ("content_filter", ROUTES[path][1])
    assert answered(path, ask(patterned, path, "make a box")) == ("xob a ekam", "stop")


@pytest.mark.parametrize("path", ROUTES)
def test_an_answer_that_a_pattern_matches_is_withheld(patterned: httpx.Client, path: str) -> None:
    text, reason = answered(path, ask(patterned, path, "a bmob b"))
    assert reason == "content_filter"
    # Answers of /api/chat are streams whoever reads them.
    assert text == ("b " if path == "/api/chat" else "")
    assert patterned.get("/load").json() == {"server_load": 0}


def test_a_prompt_of_token_ids_and_one_of_many_are_looked_at(patterned: httpx.Client) -> None:
    for prompt in (list(b"a bomb"), ["good", "a bomb"], [list(b"good"), list(b"bomb")]):
        assert error(patterned.post("/v1/completions", json={"prompt": prompt}), 400)["code"] == "content_filter"


def streamed(client: httpx.Client, text: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"prompt": text, "stream": True, "max_tokens": 900, **fields}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_is_held_back_only_as_far_as_a_pattern_may_match(patterned: httpx.Client) -> None:
    chunks = streamed(patterned, "cba bmob b")
    texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(texts) == "b "
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    whole = streamed(patterned, "ob ob ob")
    texts = [choice["text"] for chunk in whole for choice in chunk["choices"]]
    assert "".join(texts) == "bo bo bo"
    # "bo" waits for what may follow it, and goes out with the space.
    assert [text for text in texts if text] == ["b", "o", " ", "b", "o", " ", "b", "o"]


def test_tokens_and_log_probabilities_never_come_before_their_text_is_approved(patterned: httpx.Client) -> None:
    for fields in ({"return_token_ids": True}, {"logprobs": 2}):
        chunks = streamed(patterned, "abc bmob b", **fields)
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert not any(choice.get("token_ids") or (choice["logprobs"] or {}).get("tokens") for choice in choices)
        assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_withheld_tokens_are_counted(patterned: httpx.Client) -> None:
    reply = patterned.post("/v1/completions", json={"prompt": "a bmob b", "max_tokens": 900})
    assert reply.json()["usage"]["completion_tokens"] == 8


def test_of_several_candidates_the_refused_one_is_chosen_last(patterned: httpx.Client) -> None:
    reply = patterned.post("/v1/completions", json={"prompt": "bmob", "n": 1, "best_of": 2, "max_tokens": 900})
    assert answered("/v1/completions", reply) == ("", "content_filter")


@pytest.fixture
def judge() -> Iterator[Moderator]:
    with moderator() as judge:
        yield judge


@pytest.mark.parametrize("path", ROUTES)
def test_a_url_is_asked_before_and_after(judge: Moderator, tmp_path: Path, path: str) -> None:
    with filtered(tmp_path, url=judge.url) as client:
        assert answered(path, ask(client, path, "good")) == ("doog", "stop")
        assert [(each["stage"], each["text"], each["model"]) for each in judge.asked] == [
            ("input", "good", "fake"),
            ("output", "doog", "fake"),
        ]
        assert error(ask(client, path, "bad"), 400)["code"] == "content_filter"
        assert answered(path, ask(client, path, "so dab")) == ("", "content_filter")


def test_a_stream_shows_what_the_url_has_approved(judge: Moderator, tmp_path: Path) -> None:
    with filtered(tmp_path, url=judge.url) as client:
        chunks = streamed(client, "dab" + "x" * 300)
        assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "x" * 240
        assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
        assert [len(each["text"]) for each in judge.asked if each["stage"] == "output"] == [80, 160, 240, 303]


@pytest.mark.parametrize(
    "answer",
    [(500, b"{}"), (200, b"yes"), (200, b"[]"), (200, b'{"allowed": 1}'), (302, b""), (200, b"[" * 200_000)],
    ids=lambda answer: f"{answer[0]} {answer[1][:20]}",
)
@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_a_url_without_a_verdict_fails_as_configured(
    judge: Moderator, tmp_path: Path, answer: tuple[int, bytes], on_failure: str
) -> None:
    with filtered(tmp_path, url=judge.url, on_failure=on_failure) as client:
        judge.answer = answer
        reply = ask(client, "/v1/completions", "good")
        if on_failure == "open":
            assert answered("/v1/completions", reply) == ("doog", "stop")
        else:
            assert error(reply, 503)["code"] == "service_unavailable"
            assert "retry-after" in reply.headers


def test_a_url_that_is_gone_fails_closed_by_default(tmp_path: Path) -> None:
    with filtered(tmp_path, url="http://127.0.0.1:9/", timeout=1) as client:
        assert "content filter" in error(ask(client, "/v1/chat/completions", "good"), 503)["message"]


def test_no_secret_of_the_url_is_in_the_log(
    judge: Moderator, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    host = judge.url.removeprefix("http://")
    for folder, url in (("answers", f"http://me:PASSWORD@{host}?token=TOKEN"), ("gone", "http://me:PASSWORD@[::1]:9/")):
        (tmp_path / folder).mkdir()
        with filtered(tmp_path / folder, url=url) as client:
            judge.answer = (500, b"")
            error(ask(client, "/v1/completions", "good"), 503)
        log = (tmp_path / folder / "logs" / "server.log").read_text()
        assert ("answers 500" if folder == "answers" else "[::1]:9: ConnectError") in log
        shown = capfd.readouterr()
        assert not {word for word in ("PASSWORD", "TOKEN", "me:") if word in log + shown.out + shown.err}


def test_however_many_texts_are_asked_for_each_gets_the_filters_whole_time() -> None:
    """More than it is asked at once wait for it, and not within its time: a filter that fails open would be passed by
    whoever asks for enough."""

    async def scenario() -> None:
        asking, most = 0, 0

        async def judge(_: httpx.Request) -> httpx.Response:
            nonlocal asking, most
            asking += 1
            most = max(most, asking)
            for _ in range(10):
                await asyncio.sleep(0)
            asking -= 1
            return httpx.Response(200, json={"allowed": False})

        content_filter = ContentFilter(ContentFilterSettings(url="http://filter/", on_failure="open"))
        content_filter._http = httpx.AsyncClient(transport=httpx.MockTransport(judge))
        texts = [content_filter.screen("fake").approve("text", is_whole=True) for _ in range(300)]
        assert await asyncio.gather(*texts) == [None] * 300
        assert most == MAX_ASKED_AT_ONCE
        await content_filter.close()

    asyncio.run(scenario())


def test_a_url_that_nobody_can_be_asked_at_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"content_filter.url: http://\S+ is no address that can be asked") as refused:
        ContentFilter(ContentFilterSettings(url="http://me:PASSWORD@ü-:80/"))
    assert "PASSWORD" not in str(refused.value)


def test_a_url_that_fails_in_the_middle_ends_the_stream(judge: Moderator, tmp_path: Path) -> None:
    with filtered(tmp_path, url=judge.url) as client:
        plain = judge.judge

        def fail_later(question: dict[str, Any]) -> tuple[int, bytes]:
            is_late = question["stage"] == "output" and len(question["text"]) > 100
            return (500, b"") if is_late else plain(question)

        judge.judge = fail_later
        chunks = streamed(client, "y" * 300)
        assert chunks[-1]["error"]["code"] == "service_unavailable"
        assert "".join(choice["text"] for chunk in chunks[:-1] for choice in chunk["choices"]) == "y" * 80


@pytest.mark.parametrize(("on_failure", "status"), [("closed", 503), ("open", 200)])
def test_a_catastrophic_pattern_fails_as_configured_and_harms_nobody(
    tmp_path: Path, on_failure: str, status: int
) -> None:
    engine = FakeEngine(max_model_len=10_000)
    with filtered(tmp_path, engine, patterns=[CATASTROPHIC], on_failure=on_failure) as client:
        reply = client.post("/v1/completions", json={"prompt": CATASTROPHE, "max_tokens": 1})
        assert reply.status_code == status
        assert client.get("/health").status_code == 200


def test_a_server_without_a_filter_has_none(client: httpx.Client) -> None:
    assert ask(client, "/v1/completions", "bomb").status_code == 200
