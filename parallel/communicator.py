"""Collectives between the ranks of one group. The contract lives here; native.py and those who build on it keep it.

Every call is made by all ranks of the group in the same order with matching shapes. Every wait has a deadline: a rank
that does not arrive in time, or that closed, raises CollectiveError on the others, never a hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinycluster.kernels.program import CollectiveError as CollectiveError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class Communicator(Protocol):
    """A group of `size` ranks. Arrays are C-contiguous; they are read and written only during the call."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def all_reduce(self, x: F32 | I64) -> None:
        """x becomes the sum over ranks, in place. int64 wraps silently: the caller bounds the addends.

        float32 sums are taken in rank order 0, 1, 2, ..., so every rank gets the same bits.
        """
        ...

    def reduce_scatter(self, x: I64, counts: Sequence[int]) -> I64:
        """x (sum of counts,) holds counts[r] numbers for every rank r: the sums over ranks of this rank's, a view of x.

        What x holds of the others' parts afterwards is unspecified.
        """
        ...

    def all_gather(self, x: NDArray[Any], counts: Sequence[int]) -> NDArray[Any]:
        """The ranks' one-dimensional arrays end to end in rank order; counts[r] is the length of rank r's x."""
        ...

    def all_to_all(self, x: NDArray[Any], counts: Sequence[Sequence[int]]) -> NDArray[Any]:
        """What every rank has for this one, end to end in rank order; counts[s][r] is how much rank s has for rank r.

        x (sum of counts[rank],) holds what this rank has for every rank, in rank order.
        """
        ...

    def broadcast(self, x: NDArray[Any], root: int) -> None:
        """x of every rank becomes x of rank `root`, in place."""
        ...

    def send(self, x: NDArray[Any], to: int) -> None: ...

    def recv(self, x: NDArray[Any], source: int) -> None:
        """Fill x with what rank `source` sent; shapes and dtypes must match."""
        ...

    def barrier(self) -> None: ...

    def traffic(self) -> Sequence[tuple[int, int]]:
        """By rank, the payload sent to it and received from it so far, in bytes; callable from any thread.

        In shared memory a rank sends what the other one reads. A call that failed does not count.
        """
        ...

    def abort(self) -> None:
        """Wake every waiting rank of this process's group with CollectiveError; callable from any thread."""
        ...

    def close(self) -> None: ...

    def native_table(self) -> object:
        """A PyCapsule of kernels/cpu/collective_table.h that keeps the group alive."""
        ...
