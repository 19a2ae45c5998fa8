"""Prompts, lengths and arrival times, all from a seeded generator."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinycluster.engine.errors import ConfigError
from tinycluster.serve.bench.workload import (
    BenchRequest,
    LengthRange,
    PrefixRepetition,
    PromptSource,
    arrival_times,
    custom_requests,
    prefix_repetition_requests,
    random_requests,
    sharegpt_requests,
)


def ids_of(requests: tuple[BenchRequest, ...]) -> set[int]:
    return {token for request in requests for token in request.prompt if isinstance(token, int)}


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_random_prompts_are_ids_of_the_vocabulary_with_lengths_in_the_range() -> None:
    requests = random_requests(rng(), PromptSource(500), 200, LengthRange(20, 0.5), LengthRange(8, 0.25))
    assert {len(request.prompt) for request in requests} == set(range(10, 31))
    assert {request.output_tokens for request in requests} == set(range(6, 11))
    ids = ids_of(requests)
    assert min(ids) >= 100
    assert max(ids) == 499
    assert len({request.prompt for request in requests}) == 200


def test_the_same_seed_draws_the_same_prompts_and_another_seed_draws_others() -> None:
    draw = [random_requests(rng(seed), PromptSource(1000), 5, LengthRange(9), LengthRange(2)) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_prompts_are_words_where_only_text_is_accepted() -> None:
    (request,) = random_requests(rng(), PromptSource(None), 1, LengthRange(12), LengthRange(2))
    assert isinstance(request.prompt, str)
    assert len(request.prompt.split(" ")) == 12


@pytest.mark.parametrize("vocab_size", [2, 3, 150])
def test_a_tiny_vocabulary_still_gives_ids_below_it(vocab_size: int) -> None:
    requests = random_requests(rng(), PromptSource(vocab_size), 9, LengthRange(9), LengthRange(1))
    assert max(ids_of(requests)) < vocab_size


@pytest.mark.parametrize("vocab_size", [1000, None])
def test_prefix_repetition_shares_each_prefix_evenly_with_fresh_suffixes(vocab_size: int | None) -> None:
    shape = PrefixRepetition(num_prefixes=3, prefix_len=16, suffix_len=5, output_len=2)
    requests = prefix_repetition_requests(rng(), PromptSource(vocab_size), 12, shape)
    prompts = [
        tuple(prompt.split(" ")) if isinstance(prompt := request.prompt, str) else prompt for request in requests
    ]
    counts: dict[object, int] = {}
    for prompt in prompts:
        assert len(prompt) == 21
        counts[prompt[:16]] = counts.get(prompt[:16], 0) + 1
    assert sorted(counts.values()) == [4, 4, 4]
    assert len(set(prompts)) == 12


def test_sharegpt_takes_first_turns_and_estimates_output_lengths_from_replies(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    turn = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "x" * 40}]
    path.write_text(json.dumps([{"conversations": turn}, {"conversations": turn[:1]}, {"conversations": []}]))
    requests = sharegpt_requests(rng(), path, 3, None)
    assert [(request.prompt, request.output_tokens) for request in requests] == [("Hello?", 10)] * 3
    assert sharegpt_requests(rng(), path, 1, 77)[0].output_tokens == 77


def test_custom_lines_hold_text_or_ids_and_may_name_their_output_length(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi"}\n\n{"prompt": [5, 6], "output_tokens": 9}\n')
    requests = custom_requests(rng(), path, 2, 4)
    assert {(request.prompt, request.output_tokens) for request in requests} == {("Hi", 4), ((5, 6), 9)}


@pytest.mark.parametrize("line", ["[]", "{}", "no json", '{"prompt": 5}', '{"prompt": ["a"]}'])
def test_a_malformed_custom_line_is_named_by_file_and_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2"):
        custom_requests(rng(), path, 2, 4)


@pytest.mark.parametrize("content", ["{", "{}", "[]", None])
def test_an_unusable_sharegpt_file_is_a_sentence(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "sharegpt.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"sharegpt\.json"):
        sharegpt_requests(rng(), path, 1, None)


def test_an_infinite_rate_sends_everything_at_once() -> None:
    assert arrival_times(rng(), 4, math.inf, 1.0) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_variation_of_the_burstiness(burstiness: float) -> None:
    times = arrival_times(rng(), 20_001, 50.0, burstiness)
    gaps = np.diff(times)
    # A gamma distribution of shape b has variation b ** -0.5, and the mean of n gaps errs by that over sqrt(n):
    # five such errors are one failure in a million seeds, and the seed is fixed.
    variation = burstiness**-0.5
    assert abs(gaps.mean() * 50.0 - 1) < 5 * variation / math.sqrt(len(gaps))
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05)
    assert times[0] == 0.0
    assert (gaps >= 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_zero_and_one_request_have_as_many_arrivals(count: int) -> None:
    assert arrival_times(rng(), count, 5.0, 1.0) == (0.0,) * count


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: arrival_times(rng(), 1, 0.0, 1.0), "--request-rate"),
        (lambda: arrival_times(rng(), 1, math.nan, 1.0), "--request-rate"),
        (lambda: arrival_times(rng(), 1, 1.0, -1.0), "--burstiness"),
        (lambda: LengthRange(0), "at least 1 token"),
        (lambda: LengthRange(5, 1.0), "--random-range-ratio"),
        (lambda: PrefixRepetition(num_prefixes=0), "--prefix-repetition-num-prefixes"),
    ],
)
def test_an_impossible_load_is_a_sentence(build: Callable[[], object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        build()
