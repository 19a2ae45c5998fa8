"""Top-k against numpy's stable sort, with ties."""

from __future__ import annotations

import numpy as np
import pytest

from tinycluster.kernels import ops


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 1), (3, 17), (2, 4099)])
def test_largest_values_come_first_and_ties_go_to_the_lower_column(rows: int, columns: int) -> None:
    values = np.random.default_rng(columns).integers(-40, 40, (rows, columns)).astype(np.float32)
    order = np.argsort(-values, axis=1, kind="stable")
    for k in {1, min(5, columns), columns}:
        np.testing.assert_array_equal(ops.top_k(values, k), order[:, :k])


def test_infinities_are_ordered() -> None:
    values = np.array([[-np.inf, 3, np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(ops.top_k(values, 4), [[2, 1, 0, 3]])


def test_k_outside_the_row_is_refused() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match="k must be between"):
            ops.top_k(np.zeros((1, 3), np.float32), k)
