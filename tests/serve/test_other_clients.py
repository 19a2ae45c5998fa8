"""Clients and suites of other people, each as a program of its own: what they import warns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.serve.conftest import StartServer
from tests.serve.fake_engine import FakeEngine, FakeGeneration
from tinycluster.engine.request import RequestOptions, SamplingParams

CALLS = Path(__file__).parent / "langchain_calls.py"
TIMEOUT_S = 240


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_langchain_invokes_streams_batches_calls_tools_and_reads_structures_over_both_apis(fake_url: str) -> None:
    done = run(str(CALLS), fake_url)
    assert done.returncode == 0, done.stderr


QUESTION = b"What is the weather in San Francisco?"
CALL = b'<tool_call>\n{"name": "get_weather", "arguments": {"location": "San Francisco"}}\n</tool_call>'


class Weather(FakeEngine):
    """Knows which tool answers the one question of the suites for which a tool is required."""

    def submit_choices(
        self, prompt_token_ids: Sequence[int], choices: Sequence[SamplingParams], options: RequestOptions
    ) -> list[FakeGeneration]:
        prompt = CALL if options.grammar is not None and bytes(prompt_token_ids) == QUESTION else prompt_token_ids
        return super().submit_choices(list(prompt), choices, options)


@pytest.fixture
def weather_url(start_server: StartServer) -> str:
    """With a second model, since the suites expect a request without a model to be refused."""
    return start_server(Weather(), FakeEngine("other"))


def found_by(suite: str, url: str, *more: str) -> dict[str, list[str]]:
    """Errors by test of the suite; those that it skips are left out."""
    done = run(
        "-m", "llm_comply.cli", "--format", suite, "-u", f"{url}/v1", "-k", "none", "-m", "fake", "--json", *more
    )
    results = json.loads(done.stdout)["results"]
    return {result["id"]: result.get("errors", []) for result in results if result["status"] != "skipped"}


def test_llm_complys_chat_suite_finds_only_that_images_are_refused(weather_url: str) -> None:
    found = found_by("openai-chat", weather_url)
    assert len(found) >= 8
    assert [name for name, errors in found.items() if errors] == ["chat-image-input"]
    assert found["chat-image-input"][0] == "HTTP 400 (expected [200])"


def test_llm_complys_responses_suite_finds_only_images_and_compaction(weather_url: str) -> None:
    # Its specification wants these even where they are null, for which OpenAI's own has no room.
    found = found_by("open-responses", weather_url, "--ignore", "safety_identifier,prompt_cache_key,'usage'")
    assert len(found) >= 11
    assert {name for name, errors in found.items() if errors} == {
        "image-input",
        "compact-response",
        "compact-missing-model",
    }
