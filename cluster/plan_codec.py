"""Step plans as bytes. What the ranks know of a request is not sent again: a decoding row is 25 bytes.

Both ends remember, by the same rule, the rows of the last plans: a request that is unknown is sent whole, and of one
that is known only the blocks that were added. All plans of a group pass one encoder and, at each rank, one decoder.

    plan     step_id u64, rows u32, bytes of the whole rows u32, then rows, whole rows, tokens i32, blocks i32
    row      request_id i64, position i32, tokens u32, blocks u32 (those that follow), flags u8
    whole    seed u64, temperature f64, top_k i32, top_p f64, min_p f64, return_logits_digest bool
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

from tinycluster.cluster.messages import ProtocolError
from tinycluster.engine.request import Row, SamplingParams, StepPlan

_PLAN = struct.Struct("<QII")
_ROW = struct.Struct("<qiIIB")
_WHOLE = struct.Struct("<Qdidd?")
_IS_SAMPLED, _IS_WHOLE = 1, 2
GENERATION_PLANS = 64
"""A request that no plan named for this long may be forgotten; it is forgotten after twice as long."""

Known = TypeVar("Known")


class _Memory(Generic[Known]):
    """What was said of each request lately. Two ends that see the same plans remember the same."""

    def __init__(self) -> None:
        self._young: dict[int, Known] = {}
        self._old: dict[int, Known] = {}
        self._num_plans = 0

    def begin_plan(self) -> None:
        self._num_plans += 1
        if self._num_plans % GENERATION_PLANS == 0:
            self._old, self._young = self._young, {}

    def get(self, request_id: int) -> Known | None:
        known = self._young.get(request_id)
        return self._old.get(request_id) if known is None else known

    def put(self, request_id: int, known: Known) -> None:
        self._young[request_id] = known


class PlanEncoder:
    """The driver's end. Ranks sample but do not decide when a request ends, so of the sampling parameters only those
    that choose a token are sent."""

    def __init__(self) -> None:
        self._memory = _Memory[tuple[int, ...]]()

    def encode(self, plan: StepPlan) -> bytes:
        rows, whole, tokens, blocks = bytearray(), bytearray(), list[int](), list[int]()
        self._memory.begin_plan()
        for row in plan.rows:
            known = self._memory.get(row.request_id)
            flags = _IS_SAMPLED * (row.num_samples > 0)
            added: tuple[int, ...] = ()
            if known is row.blocks:
                pass
            elif known is None or row.blocks[: len(known)] != known:
                flags |= _IS_WHOLE
                added, chosen = row.blocks, row.sampling
                options = (chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p, chosen.return_logits_digest)
                whole += _WHOLE.pack(row.seed, *options)
            else:
                added = row.blocks[len(known) :]
            self._memory.put(row.request_id, row.blocks)
            rows += _ROW.pack(row.request_id, row.position, len(row.tokens), len(added), flags)
            tokens += row.tokens
            blocks += added
        numbers = struct.pack(f"<{len(tokens) + len(blocks)}i", *tokens, *blocks)
        return _PLAN.pack(plan.step_id, len(plan.rows), len(whole)) + rows + whole + numbers


class PlanDecoder:
    """A rank's end."""

    def __init__(self) -> None:
        self._memory = _Memory[tuple[tuple[int, ...], SamplingParams, int]]()

    def decode(self, payload: bytes) -> StepPlan:
        """ProtocolError for anything that the encoder of this group would not have sent now."""
        try:
            return self._decode(memoryview(payload))
        except struct.error:
            raise ProtocolError("a plan's length does not fit its counts") from None

    def _decode(self, payload: memoryview) -> StepPlan:
        step_id, num_rows, num_whole_bytes = _PLAN.unpack_from(payload)
        rows_end = _PLAN.size + num_rows * _ROW.size
        whole_end = rows_end + num_whole_bytes
        numbers = struct.unpack(f"<{max(len(payload) - whole_end, 0) // 4}i", payload[whole_end:])
        counted = list(_ROW.iter_unpack(payload[_PLAN.size : rows_end]))
        whole = _WHOLE.iter_unpack(payload[rows_end:whole_end])
        token_at, block_at = 0, sum(row[2] for row in counted)
        if (len(counted), len(numbers)) != (num_rows, block_at + sum(row[3] for row in counted)):
            raise ProtocolError("a plan's length does not fit its counts")
        self._memory.begin_plan()
        rows = []
        for request_id, position, num_tokens, num_blocks, flags in counted:
            added = numbers[block_at : block_at + num_blocks]
            blocks, sampling, seed = self._learn(request_id, added, next(whole, None) if flags & _IS_WHOLE else ())
            tokens = numbers[token_at : token_at + num_tokens]
            rows.append(Row(request_id, tokens, position, blocks, flags & _IS_SAMPLED, sampling, seed))
            token_at, block_at = token_at + num_tokens, block_at + num_blocks
        if next(whole, None) is not None:
            raise ProtocolError("a plan describes more requests than it names")
        return StepPlan(step_id, tuple(rows))

    def _learn(
        self, request_id: int, added: tuple[int, ...], whole: tuple[float, ...] | None
    ) -> tuple[tuple[int, ...], SamplingParams, int]:
        known = self._memory.get(request_id)
        if whole is None or (not whole and known is None):
            raise ProtocolError(f"a plan names request {request_id} without describing it")
        if whole:
            seed, temperature, top_k, top_p, min_p, digest = whole
            sampling = SamplingParams(temperature, int(top_k), top_p, min_p, return_logits_digest=bool(digest))
            known = (added, sampling, int(seed))
        elif added and known is not None:
            known = (known[0] + added, known[1], known[2])
        assert known is not None
        self._memory.put(request_id, known)
        return known
