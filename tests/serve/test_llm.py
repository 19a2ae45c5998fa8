"""The Python face: `from tinycluster import LLM, SamplingParams`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tinycluster import LLM, SamplingParams
from tinycluster.engine.errors import ConfigError, ContextLengthError, QueueFullError, RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    options = {"limits.max_running": 2, "limits.max_waiting": 1, "limits.max_model_len": 256}
    options |= {"sampling.temperature": 0, "sampling.repetition_penalty": 1000}
    with LLM("smollm2", local=True, tensor=2, **options) as llm:
        yield llm


def test_answers_come_in_the_order_of_the_prompts_however_short_the_queue(llm: LLM) -> None:
    prompts = [f"The number {number} is" for number in range(8)]
    together = llm.generate(prompts, GREEDY)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert together == alone
    assert all(len(completion.token_ids) == 8 for completion in together)
    assert together[0].prompt_token_ids == tuple(llm.engine.tokenizer.encode(prompts[0], add_special_tokens=True))


def test_without_parameters_those_of_the_configuration_count(llm: LLM) -> None:
    own = llm.default_sampling
    assert own == SamplingParams(temperature=0, top_p=0.5, repetition_penalty=1000)
    assert (
        llm.generate("The sea")
        == llm.generate("The sea", own)
        != llm.generate("The sea", SamplingParams(temperature=0))
    )
    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    assert llm.chat(conversation) == llm.chat(conversation, own)


def test_token_ids_are_prompts_too(llm: LLM) -> None:
    text = llm.generate("The sea", GREEDY)
    assert llm.generate([text[0].prompt_token_ids], GREEDY) == text


def test_chat_takes_one_conversation_or_several(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    one = llm.chat(conversation, GREEDY)
    assert "Paris" in one[0].text
    assert llm.chat([conversation, conversation], GREEDY) == one * 2


def test_a_digest_of_the_logits_on_request(llm: LLM) -> None:
    digested = llm.generate(
        "The sea", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, return_logits_digest=True)
    )
    assert len(digested[0].logits_sha256 or "") == 64
    assert llm.generate("The sea", GREEDY)[0].logits_sha256 is None


def test_logprobs_of_answers_and_of_prompts_on_request(llm: LLM) -> None:
    (made,) = llm.generate("The sea", replace(GREEDY, logprobs=2))
    assert [of_token.rank for of_token in made.logprobs] == [1] * 8
    whole = [*made.prompt_token_ids, *made.token_ids]
    (scored,) = llm.generate([whole], replace(GREEDY, prompt_logprobs=2))
    assert len(scored.prompt_logprobs) == len(whole) - 1
    assert scored.prompt_logprobs[-8:] == made.logprobs
    assert scored.logprobs == ()


def test_a_prompt_that_is_too_long_is_an_error_and_ends_the_others(llm: LLM) -> None:
    with pytest.raises(ContextLengthError):
        llm.generate(["The sea", [5] * 300], GREEDY)
    assert llm.engine.num_running + llm.engine.num_waiting == 0


def test_mistakes_are_errors_of_the_library(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate("x", SamplingParams(temperature=-1))
    with pytest.raises(ConfigError, match="has no model 'other'; it has smollm2"):
        LLM("smollm2", model="other", local=True)
    with pytest.raises(ConfigError, match="there is no configuration"):
        LLM("nothing")
    with pytest.raises(ConfigError, match="nearest is"):
        LLM("smollm2", local=True, tensr=2)


@pytest.mark.parametrize("token_id", [-1, 49152])
def test_a_token_id_outside_the_vocabulary_is_refused(llm: LLM, token_id: int) -> None:
    with pytest.raises(RequestError, match=f"prompt holds token id {token_id}"):
        llm.generate([[1, token_id, 2]])


def test_two_models_live_in_one_process(llm: LLM) -> None:
    with LLM("smollm2", local=True, tensor=1, **{"limits.max_model_len": 256}) as other:
        assert other.generate("The sea", GREEDY) == llm.generate("The sea", GREEDY)


def test_a_queue_without_room_is_reported_to_who_fills_it_himself(llm: LLM) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    generations = [llm.submit([1], sampling) for _ in range(3)]
    with pytest.raises(QueueFullError):
        llm.submit([1], sampling)
    for generation in generations:
        generation.abort()
