"""The scheduler drives a mock model whose keys, values and next tokens are hashes.

The mock keeps a paged cache of its own and computes every row from it, so a row that reads a wrong, stale or foreign
slot is seen at once. The oracle is the same model without scheduler and cache: one request, one token after the other.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from tinycluster.engine import scheduler as scheduler_module
from tinycluster.engine.admission import SchedulerLimits
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.errors import QueueFullError, RequestError
from tinycluster.engine.request import (
    PENDING,
    RequestOutput,
    Row,
    SampledToken,
    SamplingParams,
    StepPlan,
    StepResult,
)

VOCAB_SIZE = 40
EOS = 0


@dataclass(frozen=True)
class Slot:
    """What a position of the cache holds: a hash of all tokens up to it, and who wrote it when."""

    request_id: int
    position: int
    hidden: int
    step_id: int


def next_hidden(hidden: int, token: int) -> int:
    return hash((hidden, token))


def next_token(hidden: int, seed: int, position: int) -> int:
    return hash((hidden, seed, position)) % VOCAB_SIZE


@dataclass
class Asked:
    """A request, its whole output by the oracle, and what the scheduler has given so far."""

    prompt: list[int]
    sampling: SamplingParams
    seed: int
    expected: list[int]
    finish_reason: str
    stop_reason: int | None
    deadline: int
    tokens: list[int] = field(default_factory=list)
    output: RequestOutput | None = None
    is_aborted: bool = False


def answer(prompt: list[int], sampling: SamplingParams, seed: int, limit: int) -> tuple[list[int], str, int | None]:
    """The oracle: tokens, finish reason and stop reason of one request alone."""
    hidden = 0
    for token in prompt:
        hidden = next_hidden(hidden, token)
    tokens: list[int] = []
    while True:
        tokens.append(next_token(hidden, seed, len(prompt) + len(tokens)))
        hidden = next_hidden(hidden, tokens[-1])
        if tokens[-1] == EOS and not sampling.ignore_eos:
            return tokens, "stop", None
        if tokens[-1] in sampling.stop_token_ids:
            return tokens, "stop", tokens[-1]
        if len(prompt) + len(tokens) == limit:
            return tokens, "length", None


class MockRanks:
    """Runs steps in order on a paged cache; knows the tokens of the step before, and of no other."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.cache: dict[tuple[int, int], Slot] = {}
        self.previous: dict[int, int] = {}
        self.first_step: dict[int, int] = {}

    def run(self, plan: StepPlan, asked: dict[int, Asked]) -> StepResult:
        blocks = [block for row in plan.rows for block in row.blocks]
        assert len(blocks) == len(set(blocks)), "two rows share a block"
        hidden = {row.request_id: self.compute(row, plan.step_id, asked[row.request_id]) for row in plan.rows}
        self.previous = {
            row.request_id: next_token(hidden[row.request_id], row.seed, row.position + len(row.tokens))
            for row in plan.rows
            if row.num_samples
        }
        return StepResult(plan.step_id, tuple(SampledToken(*sample) for sample in self.previous.items()))

    def compute(self, row: Row, step_id: int, request: Asked) -> int:
        """The hidden state after the row's last token, which depends on every earlier slot of the request."""
        if row.position == 0:
            self.first_step[row.request_id] = step_id
        truth = request.prompt + request.expected
        assert PENDING not in row.tokens[:-1]
        tokens = [self.previous[row.request_id] if token == PENDING else token for token in row.tokens]
        last = row.position + len(tokens)
        assert tokens == truth[row.position : last]
        assert last < len(truth) or request.finish_reason == "stop", "planned beyond its certain end"
        hidden = self.read(row)
        for position, token in enumerate(tokens, start=row.position):
            hidden = next_hidden(hidden, token)
            self.cache[self.place(row, position)] = Slot(row.request_id, position, hidden, step_id)
        return hidden

    def read(self, row: Row) -> int:
        hidden = 0
        for position in range(row.position):
            slot = self.cache[self.place(row, position)]
            assert (slot.request_id, slot.position) == (row.request_id, position), "a foreign slot"
            assert slot.step_id >= self.first_step[row.request_id], "written before the request's last admission"
            hidden = slot.hidden
        return hidden

    def place(self, row: Row, position: int) -> tuple[int, int]:
        return row.blocks[position // self.block_tokens], position % self.block_tokens


@dataclass(frozen=True)
class Shape:
    """What a simulated engine looks like."""

    num_blocks: int
    block_tokens: int
    limits: SchedulerLimits
    micro_batches: int
    depth: int


class Simulation:
    """Scheduler, ranks and up to `depth` steps in flight; everything that must always hold is asserted here."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pool = BlockPool(shape.num_blocks, shape.block_tokens)
        self.scheduler = scheduler_module.Scheduler(
            pool=self.pool, limits=shape.limits, eos_token_ids=(EOS,), micro_batches=shape.micro_batches
        )
        self.ranks = MockRanks(shape.block_tokens)
        self.asked: dict[int, Asked] = {}
        self.in_flight: deque[StepResult] = deque()
        self.num_steps = 0

    @property
    def alive(self) -> list[int]:
        return [key for key, request in self.asked.items() if request.output is None and not request.is_aborted]

    def add(self, prompt: list[int], sampling: SamplingParams, seed: int) -> None:
        request_id = len(self.asked)
        try:
            self.scheduler.add(request_id, prompt, sampling, seed)
        except (QueueFullError, RequestError):
            return
        cache_limit = self.shape.num_blocks * self.shape.block_tokens + 1
        wanted = cache_limit if sampling.max_tokens is None else len(prompt) + sampling.max_tokens
        limit = min(wanted, self.shape.limits.max_model_len)
        expected = answer(prompt, sampling, seed, limit)
        self.asked[request_id] = Asked(prompt, sampling, seed, *expected, deadline=0)
        self.asked[request_id].deadline = self.num_steps + self.bound()

    def bound(self) -> int:
        """Steps in which all requests that are here must end: one after the other, each from its beginning.

        A token may have to wait for its own step to come back and for the other micro-batches.
        """
        per_token = max(self.shape.depth, 1) + self.shape.micro_batches
        lengths = [len(self.asked[key].prompt) + len(self.asked[key].expected) for key in self.alive]
        return per_token * sum(length + 1 for length in lengths) + per_token

    def abort(self, request_id: int) -> None:
        self.scheduler.abort(request_id)
        self.asked[request_id].is_aborted = self.asked[request_id].output is None
        self.scheduler.check()

    def plan(self) -> bool:
        plan = self.scheduler.plan()
        self.scheduler.check()
        if plan is None:
            assert self.in_flight or not self.alive, "requests wait and nothing runs"
            return False
        assert plan.step_id == self.num_steps
        assert 1 <= plan.num_tokens <= self.shape.limits.step_tokens
        assert 1 <= self.scheduler.num_running <= self.shape.limits.max_running
        self.in_flight.append(self.ranks.run(plan, self.asked))
        self.num_steps += 1
        for key in self.alive:
            assert self.num_steps <= self.asked[key].deadline, f"request {key} starves"
        return True

    def update(self) -> None:
        for output in self.scheduler.update(self.in_flight.popleft()):
            request = self.asked[output.request_id]
            assert request.output is None, "an output after the last one"
            assert not request.is_aborted, "an output after the abort"
            request.tokens += output.token_ids
            assert request.tokens == request.expected[: len(request.tokens)]
            if output.finish_reason is not None:
                request.output = output
                assert request.tokens == request.expected
                assert (output.finish_reason, output.stop_reason) == (request.finish_reason, request.stop_reason)
        self.scheduler.check()

    def drain(self) -> None:
        while self.alive or self.in_flight:
            if len(self.in_flight) < self.shape.depth and self.plan():
                continue
            self.update()
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert self.pool.num_free == self.pool.num_blocks


def random_shape(rng: random.Random) -> Shape:
    limits = SchedulerLimits(
        max_model_len=rng.choice([rng.randint(2, 40), 40]),
        max_running=rng.randint(1, 8),
        step_tokens=rng.randint(1, 16),
        max_waiting=rng.randint(0, 6),
        max_pending=rng.randint(0, 1),
    )
    return Shape(rng.randint(4, 16), rng.randint(1, 4), limits, rng.choice([1, 1, 2, 3]), rng.randint(1, 4))


def random_sampling(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.choice([None, rng.randint(1, 30)]),
        stop_token_ids=tuple(rng.sample(range(VOCAB_SIZE), rng.choice([0, 0, 0, 1]))),
        ignore_eos=rng.random() < 0.8,
    )


def simulate(seed: int) -> Simulation:
    """Two hundred random events, then until all requests have ended."""
    rng = random.Random(seed)
    simulation = Simulation(random_shape(rng))
    arrival_rate = rng.choice([0.05, 0.3])
    for _ in range(200):
        event = rng.random()
        if event < arrival_rate:
            prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, rng.choice([4, 20])))]
            simulation.add(prompt, random_sampling(rng), rng.randrange(2**63))
        elif event < arrival_rate + 0.02 and simulation.alive:
            simulation.abort(rng.choice(simulation.alive))
        elif len(simulation.in_flight) < simulation.shape.depth and rng.random() < 0.6:
            simulation.plan()
        elif simulation.in_flight:
            simulation.update()
    simulation.drain()
    return simulation


def simulate_all(num_seeds: int) -> list[Simulation]:
    return [simulate(seed) for seed in range(num_seeds)]
