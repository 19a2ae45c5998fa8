"""The scheduler drives a mock model whose keys, values and next tokens are hashes.

The mock keeps a paged cache of its own and computes every row from it, so a row that reads a wrong, stale or foreign
slot is seen at once. The oracle is the same model without scheduler and cache: one request, one token after the other.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.engine.mock_ranks import MockRanks, Model, answer
from tinycluster.engine import scheduler as scheduler_module
from tinycluster.engine.admission import SchedulerLimits
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.errors import QueueFullError, RequestError
from tinycluster.engine.request import RequestOptions, RequestOutput, SamplingParams, StepResult

EOS = 0
CLIENTS = ("", "a", "b")


class Dice:
    """A constraint: which tokens are allowed follows from how many were accepted, and from a seed; at times none is."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self.seed, self.vocab_size = seed, vocab_size
        self.accepted: list[int] = []

    def mask(self) -> bytes:
        return self.mask_after(len(self.accepted))

    def mask_after(self, num_accepted: int) -> bytes:
        rng = random.Random(hash((self.seed, num_accepted)))
        bits = [rng.random() < rng.choice([0.0, 0.5, 0.9, 0.9]) for _ in range(self.vocab_size)]
        return bytes(
            sum(bit << place for place, bit in enumerate(bits[begin : begin + 8]))
            for begin in range(0, self.vocab_size, 8)
        )

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


@dataclass
class Asked:
    """A request, its whole output by the oracle, and what the scheduler has given so far."""

    prompt: list[int]
    sampling: SamplingParams
    options: RequestOptions
    seed: int
    limit: int
    constraint: Dice | None
    expected: list[int]
    finish_reason: str
    stop_reason: int | None
    deadline: int
    tokens: list[int] = field(default_factory=list)
    output: RequestOutput | None = None
    is_aborted: bool = False
    num_prompt_logprobs: int = 0
    num_passed: int = 0
    """How often a later request was admitted before it."""

    @property
    def truth(self) -> list[int]:
        return self.prompt + self.expected


@dataclass(frozen=True)
class Shape:
    """What a simulated engine looks like."""

    num_blocks: int
    block_tokens: int
    limits: SchedulerLimits
    micro_batches: int
    depth: int
    model: Model
    has_prefix_cache: bool
    speculates: bool


class Simulation:
    """Scheduler, ranks and up to `depth` steps in flight; everything that must always hold is asserted here."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pool = BlockPool(shape.num_blocks, shape.block_tokens)
        self.scheduler = scheduler_module.Scheduler(
            pool=self.pool,
            limits=shape.limits,
            eos_token_ids=(EOS,),
            micro_batches=shape.micro_batches,
            window=shape.model.window,
            model_digest="digest" if shape.has_prefix_cache else None,
            speculates=shape.speculates,
            client_weights={"a": 2.0},
        )
        self.ranks = MockRanks(shape.block_tokens, shape.model)
        self.asked: dict[int, Asked] = {}
        self.in_flight: deque[tuple[StepResult, float]] = deque()
        self.num_steps = 0
        self.num_cached = 0

    @property
    def alive(self) -> list[int]:
        return [key for key, request in self.asked.items() if request.output is None and not request.is_aborted]

    def add(
        self,
        prompt: Sequence[int],
        choices: Sequence[tuple[SamplingParams, int]],
        options: RequestOptions,
        has_grammar: bool = False,
    ) -> None:
        """A request with one or more choices, each with parameters and a seed of its own."""
        parent_id = None
        for sampling, seed in choices:
            request_id = len(self.asked)
            vocab_size = self.shape.model.vocab_size
            try:
                self.scheduler.add(
                    request_id,
                    prompt,
                    sampling,
                    seed,
                    options,
                    constraint=Dice(seed, vocab_size) if has_grammar else None,
                    parent_id=parent_id,
                )
            except QueueFullError:
                self.check_refusal(len(prompt))
                return
            except RequestError:
                return
            parent_id = request_id if parent_id is None else parent_id
            self.remember(prompt, sampling, seed, options, Dice(seed, vocab_size) if has_grammar else None)
        self.scheduler.check()

    def check_refusal(self, num_tokens: int) -> None:
        """Nobody is refused while there is room."""
        limits = self.shape.limits
        most = min(limits.max_running, limits.step_tokens) + limits.max_waiting
        num_waiting = self.scheduler.num_waiting
        assert len(self.alive) >= most or (num_waiting and limits.max_waiting_tokens < 1000)

    def remember(
        self, prompt: Sequence[int], sampling: SamplingParams, seed: int, options: RequestOptions, dice: Dice | None
    ) -> None:
        cache_limit = self.shape.num_blocks * self.shape.block_tokens + 1
        wanted = cache_limit if sampling.max_tokens is None else len(prompt) + sampling.max_tokens
        limit = min(wanted, self.shape.limits.max_model_len)
        expected, finish_reason, stop_reason = answer(self.shape.model, list(prompt), sampling, seed, limit, dice, EOS)
        asked = Asked(
            list(prompt), sampling, options, seed, limit, dice, expected, finish_reason, stop_reason, deadline=0
        )
        self.asked[len(self.asked)] = asked
        asked.deadline = self.num_steps + self.bound()

    def bound(self) -> int:
        """Steps in which a request must have ended, whoever comes later: those that are here and those that may pass
        it, one after the other, each from its beginning and each once more for everybody who takes its blocks.

        A token may have to wait for its own step to come back and for the other micro-batches.
        """
        per_token = max(self.shape.depth, 1) + self.shape.micro_batches
        num_requests = len(self.alive) + 2 * self.shape.limits.patience + 4
        return 2 * per_token * num_requests * (self.shape.limits.max_model_len + 1)

    def abort(self, request_id: int) -> None:
        self.scheduler.abort(request_id)
        self.asked[request_id].is_aborted = self.asked[request_id].output is None
        self.scheduler.check()

    def count_passed(self, running_before: set[int]) -> None:
        """Whoever may be admitted is passed by no more later requests than its patience allows."""
        requests = {key: self.scheduler._requests[key].state for key in self.alive}
        admitted = {key for key, state in requests.items() if state == "running"} - running_before
        patience = self.shape.limits.patience
        for key, state in requests.items():
            if state == "waiting":
                self.asked[key].num_passed += sum(other > key for other in admitted)
                assert self.asked[key].num_passed <= patience + patience // 4 + 1, f"request {key} is passed too often"

    def plan(self) -> bool:
        running_before = {request.request_id for request in self.scheduler._running}
        plan = self.scheduler.plan()
        self.scheduler.check()
        self.count_passed(running_before)
        if plan is None:
            assert self.in_flight or not self.alive, "requests wait and nothing runs"
            return False
        assert plan.step_id == self.num_steps
        assert 1 <= plan.num_tokens <= self.shape.limits.step_tokens
        assert 1 <= self.scheduler.num_running <= self.shape.limits.max_running
        assert len({row.request_id for row in plan.rows}) == len(plan.rows), "a request has two rows"
        seconds = 0.1 + 0.02 * plan.num_tokens
        self.in_flight.append((self.ranks.run(plan, self.asked), seconds))
        self.num_steps += 1
        for key in self.alive:
            assert self.num_steps <= self.asked[key].deadline, f"request {key} starves"
        return True

    def update(self) -> None:
        for output in self.scheduler.update(*self.in_flight.popleft()):
            request = self.asked[output.request_id]
            assert request.output is None, "an output after the last one"
            assert not request.is_aborted, "an output after the abort"
            self.check_extras(request, output)
            request.tokens += output.token_ids
            assert request.tokens == request.expected[: len(request.tokens)]
            if output.finish_reason is not None:
                request.output = output
                assert request.tokens == request.expected
                assert (output.finish_reason, output.stop_reason) == (request.finish_reason, request.stop_reason)
                wanted = request.sampling.prompt_logprobs is not None
                assert request.num_prompt_logprobs == (len(request.prompt) - 1 if wanted else 0)
        self.scheduler.check()

    def check_extras(self, request: Asked, output: RequestOutput) -> None:
        for logprobs in output.prompt_logprobs:
            request.num_prompt_logprobs += 1
            assert logprobs.rank == request.num_prompt_logprobs, "a prompt token is missing or comes twice"
        is_first = not request.tokens and (bool(output.token_ids) or output.finish_reason is not None)
        if output.progress is not None:
            assert is_first or request.options.report_progress
            assert output.progress.num_tokens == len(request.prompt)
            assert 0 <= output.progress.num_cached <= output.progress.num_computed <= len(request.prompt)
            self.num_cached += output.progress.num_cached if is_first else 0
        assert not is_first or output.progress is not None

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
        max_waiting_tokens=rng.choice([2**20, rng.randint(1, 60)]),
        patience=rng.randint(1, 12),
        max_step_ratio=rng.choice([1.5, 3.0]),
        max_pending=rng.randint(0, 1),
    )
    model = Model(
        vocab_size=rng.choice([4, 40]),
        period=rng.choice([None, None, rng.randint(1, 6)]),
        window=rng.choice([None, None, rng.randint(1, 12)]),
    )
    return Shape(
        rng.randint(4, 16),
        rng.randint(1, 4),
        limits,
        rng.choice([1, 1, 2, 3]),
        rng.randint(1, 4),
        model,
        has_prefix_cache=rng.random() < 0.8,
        speculates=rng.random() < 0.5,
    )


def random_sampling(rng: random.Random, vocab_size: int) -> SamplingParams:
    plain = SamplingParams(
        max_tokens=rng.choice([None, rng.randint(1, 30)]),
        stop_token_ids=tuple(rng.sample(range(vocab_size), rng.choice([0, 0, 0, 1]))),
        ignore_eos=rng.random() < 0.8,
    )
    if rng.random() < 0.2:
        plain = replace(plain, presence_penalty=0.5)
    return replace(plain, prompt_logprobs=0) if rng.random() < 0.1 else plain


def random_options(rng: random.Random) -> RequestOptions:
    return RequestOptions(
        priority=rng.choice([0, 0, 0, -1, 1]),
        client=rng.choice(CLIENTS),
        cache_salt=rng.choice(["", "", "", "salt"]),
        report_progress=rng.random() < 0.1,
        session_id=rng.choice(["", "", "session"]),
    )


def random_prompt(rng: random.Random, earlier: Sequence[Asked], vocab_size: int) -> list[int]:
    """New, or one that begins like an earlier text."""
    prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(1, rng.choice([4, 20])))]
    if earlier and rng.random() < 0.6:
        truth = rng.choice(earlier).truth
        prompt = truth[: rng.randint(0, len(truth))] + prompt[: rng.randint(1, 4)]
    return prompt


def simulate(seed: int) -> Simulation:
    """Two hundred random events, then until all requests have ended."""
    rng = random.Random(seed)
    simulation = Simulation(random_shape(rng))
    arrival_rate = rng.choice([0.05, 0.3])
    vocab_size = simulation.shape.model.vocab_size
    for _ in range(200):
        event = rng.random()
        if event < arrival_rate:
            prompt = random_prompt(rng, list(simulation.asked.values()), vocab_size)
            num_choices = rng.choice([1, 1, 1, 2, 3])
            choices = [(random_sampling(rng, vocab_size), rng.randrange(2**63)) for _ in range(num_choices)]
            simulation.add(prompt, choices, random_options(rng), has_grammar=rng.random() < 0.15)
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
