"""The simulated scheduler against the mock model alone, and broken schedulers that the simulation must catch."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.engine.scheduler_simulation import VOCAB_SIZE, Simulation, random_shape, simulate_all
from tinycluster.engine import scheduler as scheduler_module
from tinycluster.engine.request import FinishReason, RequestOutput, Row, SamplingParams, StepResult
from tinycluster.engine.scheduled_request import ScheduledRequest
from tinycluster.engine.scheduler import Scheduler
from tinycluster.engine.step_budget import StepBudget


def test_every_request_gets_the_tokens_it_would_get_alone() -> None:
    simulations = simulate_all(250)
    assert sum(simulation.num_steps for simulation in simulations) > 10_000
    assert sum(simulation.scheduler.num_preemptions for simulation in simulations) > 500
    ended = [request for simulation in simulations for request in simulation.asked.values()]
    assert {request.finish_reason for request in ended if request.output} == {"stop", "length"}
    assert any(request.is_aborted for request in ended)


class LateBlock(Scheduler):
    """Asks for a new block one token too late."""

    def _make_room(self, request: ScheduledRequest) -> bool:
        missing = self._pool.blocks_for(request.num_tokens - 1) - len(request.blocks)
        return missing <= 0 or super()._make_room(request)


class KeptProgress(Scheduler):
    """Forgets that a preempted request must compute everything again."""

    def _preempt(self, request: ScheduledRequest) -> None:
        num_computed = request.num_computed
        super()._preempt(request)
        request.num_computed = num_computed


class DoubleLending(Scheduler):
    """Gives blocks back that the request goes on using."""

    def _make_room(self, request: ScheduledRequest) -> bool:
        blocks = request.blocks
        has_room = super()._make_room(request)
        if len(request.blocks) > len(blocks):
            self._pool.free(request.blocks[-1:])
        return has_room


class OldestPreempted(Scheduler):
    """Takes the blocks of the request that has waited longest."""

    def _preempt(self, request: ScheduledRequest) -> None:
        self._running.insert(0, self._running.pop())
        super()._preempt(self._running[-1])


class StaleInput(Scheduler):
    """Uses the token of any step in flight, where only that of the step directly before is at hand."""

    def _advance_running(self, budget: StepBudget) -> list[Row]:
        for request in self._running:
            if request.num_pending == 1 and self._limits.max_pending == 1:
                request.last_step_id = self._next_step_id - 1
        return super()._advance_running(budget)


class LateEnd(Scheduler):
    """Ends one token after the limit."""

    def _finish(self, request: ScheduledRequest, token: int) -> tuple[FinishReason | None, int | None]:
        finish_reason, stop_reason = super()._finish(request, token)
        return (None, None) if finish_reason == "length" else (finish_reason, stop_reason)


class EndedStillAnswers(Scheduler):
    """Gives the token of a step that was in flight when its request ended."""

    def update(self, result: StepResult) -> tuple[RequestOutput, ...]:
        super().update(result)
        return tuple(RequestOutput(sample.request_id, (sample.token,)) for sample in result.samples)


MUTANTS = [
    LateBlock,
    KeptProgress,
    DoubleLending,
    OldestPreempted,
    StaleInput,
    LateEnd,
    EndedStillAnswers,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulation_catches_a_broken_scheduler(mutant: type[Scheduler], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "Scheduler", mutant)
    # The scheduler's own check would notice most of them at once; the model must do without it.
    monkeypatch.setattr(mutant, "check", lambda self: None)
    with pytest.raises((AssertionError, IndexError, KeyError, ValueError)):
        simulate_all(250)


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis looks for a short history that breaks an assertion of the simulation."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.simulation = Simulation(random_shape(random.Random(seed)))

    @rule(
        prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20),
        max_tokens=st.one_of(st.none(), st.integers(1, 20)),
        ignore_eos=st.booleans(),
        seed=st.integers(0, 2**63 - 1),
    )
    def add(self, prompt: list[int], max_tokens: int | None, ignore_eos: bool, seed: int) -> None:
        self.simulation.add(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos), seed)

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


SchedulerMachine.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=50, deadline=None, database=None
)
TestSchedulerMachine = SchedulerMachine.TestCase
