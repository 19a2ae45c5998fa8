"""Ranks that do what a test tells them; the driver can't tell the difference."""

from __future__ import annotations

import queue
from collections.abc import Callable

from tests.parity.random_model import CASES
from tinycluster.cluster.driver import Engine, OnFailure
from tinycluster.cluster.messages import Message, Stop
from tinycluster.cluster.model_card import ModelCard
from tinycluster.cluster.ranks import Inbox, RankEvent, RankLost
from tinycluster.engine.block_pool import BlockPool
from tinycluster.engine.request import SampledToken, SamplingParams, StepPlan, StepResult
from tinycluster.engine.scheduler import Scheduler, SchedulerLimits
from tinycluster.engine.tokenizer import Tokenizer
from tinycluster.parallel.mesh import Mesh


class FakeRanks:
    """Keeps the plans it is sent; `answer` gives the result of the oldest one."""

    def __init__(self, size: int, *, heartbeats: bool = False) -> None:
        self.size, self.heartbeats = size, heartbeats
        self.inbox: Inbox = queue.SimpleQueue()
        self.plans: queue.SimpleQueue[StepPlan] = queue.SimpleQueue()
        self.num_closed = 0
        self.on_plan: Callable[[StepPlan], None] = self.plans.put

    def send(self, message: Message) -> None:
        assert isinstance(message, StepPlan | Stop)
        if isinstance(message, StepPlan):
            self.on_plan(message)

    def name(self, rank: int) -> str:
        return f"rank {rank} on node n{rank}"

    def close(self) -> None:
        self.num_closed += 1

    def next_plan(self) -> StepPlan:
        return self.plans.get(timeout=60)

    def answer(self, plan: StepPlan, token: int | None = None) -> None:
        """Every row samples `token`, or else a number that counts up with the position."""
        samples = [
            SampledToken(row.request_id, token or row.position + len(row.tokens) + 2)
            for row in plan.rows
            if row.num_samples
        ]
        self.tell(0, StepResult(plan.step_id, tuple(samples)))

    def answer_everything(self) -> None:
        """From now on, plans are answered as they come."""
        self.on_plan = self.answer

    def tell(self, rank: int, message: Message | RankLost) -> None:
        self.inbox.put(RankEvent(rank, message))


def engine_over(
    ranks: FakeRanks,
    tokenizer: Tokenizer,
    *,
    max_waiting: int = 8,
    step_timeout_s: float = 30.0,
    on_failure: OnFailure | None = None,
) -> Engine:
    limits = SchedulerLimits(max_model_len=64, max_running=4, step_tokens=64, max_waiting=max_waiting)
    scheduler = Scheduler(pool=BlockPool(16, 16), limits=limits, eos_token_ids=tokenizer.eos_token_ids)
    card = ModelCard("fake", CASES["llama_nine_heads_tied"], tokenizer, Mesh(tensor=ranks.size), 64, SamplingParams())
    return Engine(card, scheduler, ranks, ranks.inbox, step_timeout_s=step_timeout_s, on_failure=on_failure)
