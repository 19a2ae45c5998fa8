"""Ranks without a model: a paged cache whose slots say which text they stand for, and tokens that are hashes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinycluster.engine.request import (
    NO_TOKEN,
    PENDING,
    PromptLogprobs,
    Row,
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from tests.engine.scheduler_simulation import Asked, Dice


@dataclass(frozen=True)
class Model:
    """Its next token follows from all tokens before it, or mostly repeats with a period. Every layer sees `window`."""

    vocab_size: int
    period: int | None
    window: int | None

    def next_token(self, hidden: int, seed: int, position: int, mask: bytes | None) -> int:
        own = hash((hidden, seed, position))
        is_periodic = self.period is not None and own % 8 != 0
        token = (hash((seed, position % self.period)) if is_periodic and self.period else own) % self.vocab_size
        if mask is None:
            return token
        allowed = [t for t in range(self.vocab_size) if mask[t // 8] >> t % 8 & 1]
        return min(allowed, key=lambda t: (t - token) % self.vocab_size, default=NO_TOKEN)


def next_hidden(hidden: int, token: int) -> int:
    return hash((hidden, token))


def answer(
    model: Model,
    prompt: list[int],
    sampling: SamplingParams,
    seed: int,
    limit: int,
    constraint: Dice | None,
    eos: int,
) -> tuple[list[int], str, int | None]:
    """The oracle: tokens, finish reason and stop reason of one request alone."""
    hidden = 0
    for token in prompt:
        hidden = next_hidden(hidden, token)
    tokens: list[int] = []
    while True:
        mask = None if constraint is None else constraint.mask()
        token = model.next_token(hidden, seed, len(prompt) + len(tokens), mask)
        if token == NO_TOKEN:
            return tokens, "stop", None
        tokens.append(token)
        hidden = next_hidden(hidden, token)
        if token == eos and not sampling.ignore_eos:
            return tokens, "stop", None
        if token in sampling.stop_token_ids:
            return tokens, "stop", token
        if constraint is not None:
            constraint.accept(token)
        if len(prompt) + len(tokens) == limit:
            return tokens, "length", None


@dataclass(frozen=True)
class Slot:
    """What a position of the cache holds: a hash of all tokens up to it, who may see it, and when it was written."""

    position: int
    hidden: int
    salt: str
    step_id: int


class MockRanks:
    """Runs steps in order on a paged cache; knows the tokens of the step before, and of no other."""

    def __init__(self, block_tokens: int, model: Model) -> None:
        self.block_tokens, self.model = block_tokens, model
        self.cache: dict[tuple[int, int], Slot] = {}
        self.previous: dict[int, int] = {}
        self.histories: dict[int, list[int]] = {}
        self.num_copies = self.num_drafts = 0

    def run(self, plan: StepPlan, asked: dict[int, Asked]) -> StepResult:
        for request_id in plan.ended:
            self.histories.pop(request_id, None)
        self.copy(plan)
        self.check_writers(plan)
        samples: list[SampledToken] = []
        prompts: list[PromptLogprobs] = []
        for row in plan.rows:
            own = self.compute(row, plan.step_id, asked[row.request_id])
            samples += own
            prompts += self.prompt_logprobs(row)
        self.previous = {sample.request_id: sample.token for sample in samples}
        return StepResult(plan.step_id, tuple(samples), tuple(prompts))

    def copy(self, plan: StepPlan) -> None:
        for source, target in plan.copies:
            self.num_copies += 1
            for at in range(self.block_tokens):
                slot = self.cache.get((source, at))
                if slot is None:
                    self.cache.pop((target, at), None)
                else:
                    self.cache[target, at] = slot

    def check_writers(self, plan: StepPlan) -> None:
        """What one row writes, no other row holds."""
        for row in plan.rows:
            first, last = row.position // self.block_tokens, (row.position + len(row.tokens) - 1) // self.block_tokens
            written = set(row.blocks[first : last + 1])
            for other in plan.rows:
                if other is not row:
                    reached = other.blocks[self.first_seen(other.position) // self.block_tokens :]
                    assert not written & set(reached), "a row writes to a block that another row holds"

    def compute(self, row: Row, step_id: int, request: Asked) -> list[SampledToken]:
        """The samples after the row's last tokens, which depend on every earlier slot of the request."""
        assert PENDING not in row.tokens[:-1]
        tokens = [self.previous[row.request_id] if token == PENDING else token for token in row.tokens]
        num_drafts = max(row.num_samples - 1, 0)
        self.num_drafts += num_drafts
        known_end = row.position + len(tokens) - num_drafts
        assert tokens[: len(tokens) - num_drafts] == request.truth[row.position : known_end]
        assert known_end < len(request.truth) or request.finish_reason == "stop", "planned beyond its certain end"
        assert row.position + len(tokens) < request.limit, "drafts beyond the request's end"
        assert not row.num_samples or known_end >= len(request.prompt), "a token of the prompt is sampled"
        self.check_rules(row, request, tokens)
        hidden = self.read(row, step_id, request)
        samples = []
        for position, token in enumerate(tokens, start=row.position):
            hidden = next_hidden(hidden, token)
            self.cache[self.place(row, position)] = Slot(position, hidden, request.options.cache_salt, step_id)
            if position >= row.position + len(tokens) - row.num_samples:
                sampled = self.model.next_token(hidden, row.seed, position + 1, row.mask)
                samples.append(SampledToken(row.request_id, sampled))
        return samples

    def check_rules(self, row: Row, request: Asked, tokens: list[int]) -> None:
        """Ranks know the text before the row where its rules need it, and the mask of the next token."""
        if request.sampling.needs_history:
            if row.history is not None:
                self.histories[row.request_id] = list(row.history)
            seen = self.histories[row.request_id]
            assert seen == request.truth[: row.position], "the history does not end where the row begins"
            seen += tokens
        else:
            assert row.history is None
        wants_mask = request.constraint is not None and row.num_samples > 0
        assert (row.mask is not None) == wants_mask
        if row.mask is not None and request.constraint is not None:
            accepted = row.position + len(tokens) - len(request.prompt)
            assert row.mask == request.constraint.mask_after(accepted), "the mask of another token"

    def read(self, row: Row, step_id: int, request: Asked) -> int:
        """The hidden state before the row; every slot that it sees is as the text says, and from an earlier step."""
        hidden = 0
        for position in range(row.position):
            hidden = next_hidden(hidden, request.truth[position])
            if position >= self.first_seen(row.position):
                slot = self.cache[self.place(row, position)]
                assert (slot.position, slot.hidden) == (position, hidden), "a slot of another text"
                assert slot.salt == request.options.cache_salt, "a slot of those who share nothing with us"
                assert slot.step_id < step_id, "a slot that the same step writes"
        return hidden

    def first_seen(self, position: int) -> int:
        return 0 if self.model.window is None else max(0, position + 1 - self.model.window)

    def prompt_logprobs(self, row: Row) -> list[PromptLogprobs]:
        """The position stands in for the rank."""
        last = min(row.position + len(row.tokens), row.num_prompt_tokens - 1)
        if row.sampling.prompt_logprobs is None or row.position >= last:
            return []
        ranks = range(row.position + 1, last + 1)
        return [PromptLogprobs(row.request_id, ranks[0], tuple(TokenLogprobs(0.0, rank) for rank in ranks))]

    def place(self, row: Row, position: int) -> tuple[int, int]:
        return row.blocks[position // self.block_tokens], position % self.block_tokens
