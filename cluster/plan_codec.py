"""Step plans as bytes. What the ranks know of a request is not sent again: a decoding row is 25 bytes.

Both ends remember, by the same rule, the rows of the last plans: a request that is unknown is sent whole, and of one
that is known only the blocks that were added. All plans of a group pass one encoder and, at each rank, one decoder.

    plan     step_id u64, rows u32, bytes of the whole rows u32, bytes of the side table u32, then rows, whole rows,
             tokens i32, blocks i32, and the side table, empty in most plans
    row      request_id i64, position i32, tokens u32, blocks u32 (those that follow), flags u8
    whole    seed u64, num_prompt_tokens u32, then a choice (sampling_codec.py)
    side     copies u32, ended requests u32, then copies (i32, i32), ended requests i64, then for every row with such
             flags: its rules (sampling_codec.py), its rare fields
    rare     samples u32, next token i32 (-1 for none), tokens of the history i32 (-1 for none), bytes of the mask i32
             (-1 for none), then history i32 and mask
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from tinycluster.cluster.reader import ProtocolError, Reader
from tinycluster.cluster.sampling_codec import CHOICE, choice_of, decode_rules, encode_rules, with_choice
from tinycluster.engine.request import Row, SamplingParams, StepPlan

_PLAN = struct.Struct("<QIII")
_ROW = struct.Struct("<qiIIB")
_WHOLE = struct.Struct("<QI" + CHOICE.format.removeprefix("<"))
_SIDE = struct.Struct("<II")
_RARE = struct.Struct("<Iiii")
_IS_SAMPLED, _IS_WHOLE, _HAS_RULES, _IS_RARE, _NO_FLAGS = 1, 2, 4, 8, ~15
_NONE = -1
GENERATION_PLANS = 64
"""A request that no plan named for this long may be forgotten; it is forgotten after twice as long."""

Known = TypeVar("Known")


class _Memory(Generic[Known]):
    """What was said of each request lately. Two ends that see the same plans remember the same."""

    def __init__(self) -> None:
        self.young: dict[int, Known] = {}
        """Those that were named since the last generation began: they need not be put again."""
        self._old: dict[int, Known] = {}
        self._num_plans = 0

    def begin_plan(self, ended: tuple[int, ...]) -> None:
        self._num_plans += 1
        if self._num_plans % GENERATION_PLANS == 0:
            self._old, self.young = self.young, {}
        for request_id in ended:
            self.young.pop(request_id, None)
            self._old.pop(request_id, None)

    def get(self, request_id: int) -> Known | None:
        known = self.young.get(request_id)
        return self._old.get(request_id) if known is None else known

    def put(self, request_id: int, known: Known) -> None:
        self.young[request_id] = known


class PlanEncoder:
    """The driver's end. Ranks sample but do not decide when a request ends, so of the sampling parameters only those
    that choose a token, or say what is told of it, are sent."""

    def __init__(self) -> None:
        self._memory = _Memory[tuple[int, ...]]()

    def encode(self, plan: StepPlan) -> bytes:
        rows, whole, rare, tokens, blocks = bytearray(), bytearray(), bytearray(), list[int](), list[int]()
        self._memory.begin_plan(plan.ended)
        # Unpacked at once: to look at ten fields one by one takes twice as long.
        young = self._memory.young
        for row in plan.rows:
            id_, own_tokens, position, own_blocks, num_samples, sampling, seed, num_prompt, history, mask, following = (
                row
            )
            flags = _IS_SAMPLED * (num_samples > 0)
            added: tuple[int, ...] = ()
            known = young.get(id_)
            if known is not own_blocks:
                known = self._memory.get(id_)
                young[id_] = own_blocks
            if known is own_blocks:
                pass
            elif known is None or own_blocks[: len(known)] != known:
                added, rules = own_blocks, encode_rules(sampling)
                flags |= _IS_WHOLE | _HAS_RULES * bool(rules)
                whole += _WHOLE.pack(seed, num_prompt, *choice_of(sampling))
                rare += rules
            else:
                added = own_blocks[len(known) :]
            if num_samples > 1 or history is not None or mask is not None or following is not None:
                flags |= _IS_RARE
                rare += _encode_rare(row)
            rows += _ROW.pack(id_, position, len(own_tokens), len(added), flags)
            tokens += own_tokens
            blocks += added
        numbers = struct.pack(f"<{len(tokens) + len(blocks)}i", *tokens, *blocks)
        side = _encode_side(plan) + rare if rare or plan.copies or plan.ended else b""
        return _PLAN.pack(plan.step_id, len(plan.rows), len(whole), len(side)) + rows + whole + numbers + side


def _encode_side(plan: StepPlan) -> bytes:
    blocks = [block for pair in plan.copies for block in pair]
    head = _SIDE.pack(len(plan.copies), len(plan.ended))
    return head + struct.pack(f"<{len(blocks)}i{len(plan.ended)}q", *blocks, *plan.ended)


def _encode_rare(row: Row) -> bytes:
    history, mask = row.history or (), row.mask or b""
    return (
        _RARE.pack(
            row.num_samples,
            _NONE if row.next_token is None else row.next_token,
            _NONE if row.history is None else len(history),
            _NONE if row.mask is None else len(mask),
        )
        + struct.pack(f"<{len(history)}i", *history)
        + mask
    )


class _Request(NamedTuple):
    """What a rank keeps of a request."""

    blocks: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    num_prompt_tokens: int


class _Side:
    """The side table of a plan, read as far as its rows have come."""

    def __init__(self, payload: memoryview) -> None:
        self._reader = Reader(payload)
        num_copies, num_ended = self._reader.fields(_SIDE) if payload else (0, 0)
        numbers = iter(self._reader.array("i", 2 * num_copies))
        self.copies = tuple(zip(numbers, numbers, strict=True))
        self.ended: tuple[int, ...] = self._reader.array("q", num_ended)

    def rules(self, choice: SamplingParams) -> SamplingParams:
        return decode_rules(self._reader, choice)

    def with_rare(self, row: Row) -> Row:
        num_samples, next_token, num_history, num_mask = self._reader.fields(_RARE)
        if num_samples > len(row.tokens) or num_history not in (_NONE, row.position) or num_mask < _NONE:
            raise ProtocolError(f"the rare fields of a row of request {row.request_id} do not fit it")
        return row._replace(
            num_samples=num_samples,
            next_token=None if next_token == _NONE else next_token,
            history=None if num_history == _NONE else self._reader.array("i", num_history),
            mask=None if num_mask == _NONE else bytes(self._reader.take(num_mask)),
        )

    def finish(self) -> None:
        self._reader.finish()


_NO_SIDE = _Side(memoryview(b""))


class PlanDecoder:
    """A rank's end."""

    def __init__(self) -> None:
        self._memory = _Memory[_Request]()

    def decode(self, payload: bytes) -> StepPlan:
        """ProtocolError for anything that the encoder of this group would not have sent now."""
        try:
            return self._decode(memoryview(payload))
        except struct.error:
            raise ProtocolError("a plan's length does not fit its counts") from None

    def _decode(self, payload: memoryview) -> StepPlan:
        step_id, num_rows, num_whole_bytes, num_side_bytes = _PLAN.unpack_from(payload)
        rows_end = _PLAN.size + num_rows * _ROW.size
        whole_end = rows_end + num_whole_bytes
        numbers_end = len(payload) - num_side_bytes
        numbers = struct.unpack(f"<{max(numbers_end - whole_end, 0) // 4}i", payload[whole_end:numbers_end])
        counted = list(_ROW.iter_unpack(payload[_PLAN.size : rows_end]))
        whole = _WHOLE.iter_unpack(payload[rows_end:whole_end])
        token_at, block_at = 0, sum(row[2] for row in counted)
        if (len(counted), len(numbers)) != (num_rows, block_at + sum(row[3] for row in counted)):
            raise ProtocolError("a plan's length does not fit its counts")
        side = _Side(payload[numbers_end:]) if num_side_bytes else _NO_SIDE
        self._memory.begin_plan(side.ended)
        rows, young = [], self._memory.young
        for request_id, position, num_tokens, num_blocks, flags in counted:
            request = young.get(request_id)
            if request is None or num_blocks or flags > _IS_SAMPLED:
                request = self._learn(request_id, flags, numbers[block_at : block_at + num_blocks], whole, side)
            blocks, sampling, seed, num_prompt = request
            tokens = numbers[token_at : token_at + num_tokens]
            row = Row(request_id, tokens, position, blocks, flags & _IS_SAMPLED, sampling, seed, num_prompt)
            rows.append(side.with_rare(row) if flags & _IS_RARE else row)
            token_at, block_at = token_at + num_tokens, block_at + num_blocks
        side.finish()
        if next(whole, None) is not None:
            raise ProtocolError("a plan describes more requests than it names")
        return StepPlan(step_id, tuple(rows), side.copies, side.ended)

    def _learn(
        self, request_id: int, flags: int, added: tuple[int, ...], whole: Iterator[tuple[float, ...]], side: _Side
    ) -> _Request:
        known = self._memory.get(request_id)
        if flags & _IS_WHOLE:
            fields = next(whole, None)
            if fields is None or flags & _NO_FLAGS:
                raise ProtocolError(f"a plan names request {request_id} without describing it")
            seed, num_prompt_tokens, *choice = fields
            sampling = with_choice(tuple(choice))
            sampling = side.rules(sampling) if flags & _HAS_RULES else sampling
            known = _Request(added, sampling, int(seed), int(num_prompt_tokens))
        elif known is None or flags & ~(_IS_SAMPLED | _IS_RARE):
            raise ProtocolError(f"a plan names request {request_id} without describing it")
        elif added:
            known = known._replace(blocks=known.blocks + added)
        self._memory.put(request_id, known)
        return known
