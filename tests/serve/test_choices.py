"""When a request has ended, and how often that is told."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.serve.fake_engine import FakeEngine
from tinycluster.cluster.config import ContentFilterSettings
from tinycluster.engine.errors import UnavailableError
from tinycluster.engine.request import RequestOptions, SamplingParams
from tinycluster.serve.choices import Choices, submit
from tinycluster.serve.content_filter import ContentFilter
from tinycluster.serve.screened import Screened

GREEDY = SamplingParams(temperature=0)


def asked(prompt: bytes, num_choices: int = 1) -> Choices:
    return submit(FakeEngine(), [prompt], [GREEDY] * num_choices, RequestOptions())  # type: ignore[arg-type]


async def read(choices: Choices) -> None:
    try:
        async for _ in choices.steps():
            pass
    finally:
        choices.abort()


@pytest.mark.parametrize("num_choices", [1, 3])
def test_the_end_is_told_once_with_all_counts(num_choices: int) -> None:
    choices, told = asked(b"abc", num_choices), list[int]()
    choices.when_ended(lambda ended: told.append(ended.num_completion_tokens))
    asyncio.run(read(choices))
    choices.abort()
    assert told == [3 * num_choices]


def test_the_end_of_what_failed_is_told() -> None:
    choices, told = asked(b"lost"), list[int]()
    choices.when_ended(lambda ended: told.append(ended.num_completion_tokens))
    with pytest.raises(UnavailableError):
        asyncio.run(read(choices))
    assert told == [1]


def test_of_what_shows_its_prompt_only_no_answer_is_counted_and_the_end_is_told_once() -> None:
    choices, told = asked(b"abc"), list[tuple[int, int]]()
    choices.when_ended(lambda ended: told.append((ended.num_prompt_tokens, ended.num_completion_tokens)))
    choices.prompt_only()
    asyncio.run(read(choices))
    choices.abort()
    assert told == [(3, 0)]


def test_a_refusal_reaches_what_shows_its_prompt_only() -> None:
    choices = asked(b"abc")
    choices.prompt_only()
    choices.refuse(UnavailableError("no more"))
    with pytest.raises(UnavailableError, match="no more"):
        asyncio.run(read(choices))


def test_what_is_held_back_is_counted_when_it_comes() -> None:
    """Also where the answer ends early: its tokens are paid for, and its first token's time is that of the engine."""

    async def scenario() -> None:
        gate = threading.Semaphore(3)
        choices = submit(FakeEngine(gate=gate), [b"abcdefgh"], [GREEDY], RequestOptions())  # type: ignore[arg-type]
        screen = ContentFilter(ContentFilterSettings(patterns=("never",))).screen("fake")
        choices.screen(lambda generation, counted: Screened(generation, screen, counted, is_held=True))
        reading = asyncio.ensure_future(read(choices))
        while choices.num_completion_tokens < 4:
            await asyncio.sleep(0)
        assert choices.first_token_s is not None
        reading.cancel()
        await asyncio.wait([reading])
        assert choices.num_completion_tokens == 4

    asyncio.run(scenario())
