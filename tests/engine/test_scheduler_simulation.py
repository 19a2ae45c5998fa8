"""The simulated scheduler against the mock model alone, and planted bugs that the simulation must catch."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.engine.mutation import Mutant
from tests.engine.scheduler_simulation import Simulation, random_options, random_prompt, random_shape, simulate_all
from tinycluster.engine import block_tables
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.scheduler import Scheduler


@pytest.fixture(autouse=True)
def attention_reads_blocks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that windows of the mock's short texts leave blocks behind."""
    monkeypatch.setattr(block_tables, "ATTENTION_BLOCK_TOKENS", 4)


def test_every_request_gets_the_tokens_it_would_get_alone() -> None:
    simulations = simulate_all(250)
    assert sum(simulation.num_steps for simulation in simulations) > 10_000
    assert sum(simulation.scheduler.num_preemptions for simulation in simulations) > 300
    assert sum(simulation.num_cached for simulation in simulations) > 1000
    assert sum(simulation.ranks.num_copies for simulation in simulations) > 50
    assert sum(simulation.scheduler.drafts.num_accepted_tokens for simulation in simulations) > 50
    ended = [request for simulation in simulations for request in simulation.asked.values()]
    assert {request.finish_reason for request in ended if request.output} == {"stop", "length"}
    assert any(request.is_aborted for request in ended)


MUTANTS = (
    Mutant(
        "a block is asked for one token too late",
        "scheduler",
        "while not self._tables.extend(request, request.num_tokens):",
        "while not self._tables.extend(request, request.num_tokens - 1):",
    ),
    Mutant(
        "a preempted request counts blocks as dropped that it gets anew",
        "block_tables",
        "        request.num_computed = request.num_remembered = request.num_dropped = request.num_drafts = 0",
        "        request.num_computed = request.num_remembered = request.num_drafts = 0",
    ),
    Mutant(
        "a released block is not given back",
        "block_tables",
        "self._pool.free(request.owned_blocks, of",
        "self._pool.free(request.owned_blocks[1:], of",
    ),
    Mutant(
        "a conversation's block that is shared stays among those that nobody owns",
        "block_pool",
        "            self._kept.pop(block, None)\n",
        "",
    ),
    Mutant(
        "the first in place is preempted",
        "scheduler",
        "            last = self._running[-1]\n",
        "            self._running.append(self._running.pop(0))\n            last = self._running[-1]\n",
    ),
    Mutant(
        "the token of any step in flight is used",
        "scheduled_request",
        "return self.num_pending <= max_pending and self.last_step_id == step_id - 1",
        "return self.num_pending <= max_pending",
    ),
    Mutant(
        "a request ends one token after its limit",
        "step_outputs",
        "if len(request.tokens) >= request.max_total_tokens:",
        "if len(request.tokens) > request.max_total_tokens:",
    ),
    Mutant(
        "an ended request still answers",
        "step_outputs",
        'if request.state != "ended":',
        "if True:",
    ),
    Mutant(
        "the last token of a known prompt is not computed",
        "block_tables",
        "        last = len(request.tokens) - 1\n",
        "        last = len(request.tokens)\n",
    ),
    Mutant(
        "what a step computes is shared in the same step",
        "scheduler",
        "        row = request.advance(num_tokens, self._next_step_id, drafts)\n",
        "        row = request.advance(num_tokens, self._next_step_id, drafts)\n"
        "        self._tables.remember(request)\n",
    ),
    Mutant(
        "a shared block gets no owner",
        "block_pool",
        "            self._kept.pop(block, None)\n            self._num_owners[block] += 1\n",
        "            self._kept.pop(block, None)\n",
    ),
    Mutant(
        "an evicted block is still found",
        "block_pool",
        "        self._cache.forget(block)\n",
        "",
    ),
    Mutant(
        "a key leaves out what stands before",
        "prefix_cache",
        'return Prefix(_key(self.key, np.array(own, "<i4").tobytes()), own, self)',
        'return Prefix(_key(b"", np.array(own, "<i4").tobytes()), own, None)',
    ),
    Mutant(
        "the salt is not part of the root",
        "prefix_cache",
        "hashlib.sha256(salt.encode()).digest()",
        "b''",
    ),
    Mutant(
        "a block is remembered before it is full",
        "block_tables",
        "num_full = min(request.num_computed, len(request.tokens)) // self._pool.block_tokens",
        "num_full = -(-min(request.num_computed, len(request.tokens)) // self._pool.block_tokens)",
    ),
    Mutant(
        "a held choice that is aborted stays with its parent",
        "scheduler",
        "            request.parent.children.remove(request)\n",
        "",
    ),
    Mutant(
        "the begun block is shared instead of copied",
        "block_tables",
        "            self._copies.append((parent.blocks[index], request.blocks[index]))\n",
        "",
    ),
    Mutant(
        "a copy is made before its source is computed",
        "block_tables",
        "is_at_hand = parent.is_prompt_settled and parent.num_dropped <= index",
        'is_at_hand = parent.state == "running" and parent.num_dropped <= index',
    ),
    Mutant(
        "wrong drafts stay computed",
        "step_outputs",
        "request.num_computed -= num_drafts - max(num_kept - 1, 0)",
        "pass",
    ),
    Mutant(
        "a wrong draft does not end what is confirmed",
        "step_outputs",
        "        if index < len(drafts) and sample.token != drafts[index]:\n            return\n",
        "",
    ),
    Mutant(
        "a request with drafts in flight is planned again",
        "scheduled_request",
        "if self.constraint is not None or (self.speculation is not None and self.speculation.wants_tokens):",
        "if self.constraint is not None:",
    ),
    Mutant(
        "a mask is made before the last token is known",
        "scheduled_request",
        "if self.constraint is not None or (self.speculation is not None and self.speculation.wants_tokens):",
        "if self.speculation is not None and self.speculation.wants_tokens:",
    ),
    Mutant(
        "a history is sent once only",
        "block_tables",
        "        request.history_is_due = request.sampling.needs_history\n",
        "        request.history_is_due = request.sampling.needs_history and request.last_step_id < 0\n",
    ),
    Mutant(
        "a block is dropped while the window still reaches it",
        "block_tables",
        "first = max(0, request.num_computed + 1 - self._window)",
        "first = max(0, request.num_computed + 5 - self._window)",
    ),
    Mutant(
        "nobody is lifted",
        "waiting_queue",
        "                    request.is_lifted = True\n",
        "                    pass\n",
    ),
    Mutant(
        "held choices are forgotten when their parent ends",
        "scheduler",
        "        parent.children.clear()\n",
        "        parent.children = parent.children[:1]\n",
    ),
    Mutant(
        "log-probabilities of a prompt come twice",
        "step_outputs",
        "    new = prompt.tokens[max(num_given, 0) :]\n",
        "    new = prompt.tokens\n",
    ),
    Mutant(
        "the step's budget is not kept",
        "step_budget",
        "        self.num_tokens -= num_tokens\n",
        "        self.num_tokens -= 1\n",
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_simulation_catches_a_planted_bug(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)
    # The scheduler's own checks would notice many of them at once; the model must do without them.
    monkeypatch.setattr(Scheduler, "check", lambda self: None)
    monkeypatch.setattr(BlockPool, "check", lambda self, tables: None)
    with pytest.raises((AssertionError, LookupError, ValueError)):
        simulate_all(400)


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis looks for a short history that breaks an assertion of the simulation."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.simulation = Simulation(random_shape(random.Random(seed)))

    @rule(
        rng=st.randoms(use_true_random=False),
        max_tokens=st.one_of(st.none(), st.integers(1, 20)),
        ignore_eos=st.booleans(),
        has_history=st.booleans(),
        seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
        has_grammar=st.booleans(),
    )
    def add(
        self,
        rng: random.Random,
        max_tokens: int | None,
        ignore_eos: bool,
        has_history: bool,
        seeds: list[int],
        has_grammar: bool,
    ) -> None:
        vocab_size = self.simulation.shape.model.vocab_size
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
        if has_history:
            sampling = replace(sampling, frequency_penalty=0.5)
        prompt = random_prompt(rng, list(self.simulation.asked.values()), vocab_size)
        choices = [(sampling, seed) for seed in seeds]
        self.simulation.add(prompt, choices, random_options(rng), has_grammar)

    @precondition(lambda self: self.simulation.alive)
    @rule(choice=st.integers(0, 1000))
    def abort(self, choice: int) -> None:
        alive = self.simulation.alive
        self.simulation.abort(alive[choice % len(alive)])

    @precondition(lambda self: len(self.simulation.in_flight) < self.simulation.shape.depth)
    @rule()
    def plan(self) -> None:
        self.simulation.plan()

    @precondition(lambda self: self.simulation.in_flight)
    @rule()
    def update(self) -> None:
        self.simulation.update()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.drain()


def test_no_history_breaks_the_scheduler(scheduler_examples: int) -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=hypothesis_settings(
            max_examples=scheduler_examples, stateful_step_count=50, deadline=None, database=None
        ),
    )
