"""Norm, activation, residual, rope and softmax: native against the numpy definition, bit for bit."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tinycluster.kernels import reference
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.program import F32


def random_rows(rows: int, columns: int, scale: float = 1.0) -> F32:
    return (np.random.default_rng(rows + 100 * columns).standard_normal((rows, columns)) * scale).astype(np.float32)


def same_bits(a: F32, b: F32) -> None:
    np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


def test_fma_rounds_once() -> None:
    """Against exact rational arithmetic, with values that make a double rounding visible."""
    rng = np.random.default_rng(1)
    a = np.concatenate([rng.standard_normal(400), [1 + 2**-12, 1 + 2**-23, -1.5]]).astype(np.float32)
    b = np.concatenate([rng.standard_normal(400), [1 + 2**-12, 1 + 2**-23, 2**-24]]).astype(np.float32)
    c = np.concatenate([rng.standard_normal(400) * 2.0 ** rng.integers(-40, 9, 400), [2**-40, 2**-60, 1]])
    c = c.astype(np.float32)
    for x, y, z, got in zip(a, b, c, reference.fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        near = [np.nextafter(got, np.float32(-np.inf)), got, np.nextafter(got, np.float32(np.inf))]
        distance = [abs(Fraction(float(v)) - exact) for v in near]
        assert distance[1] == min(distance)
    assert (reference.fma(a, b, c) != a * b + c).any()  # two roundings would differ: the test can fail


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize(
    ("rows", "dim", "heads"), [(1, 1, 1), (2, 15, 1), (3, 16, 2), (5, 17, 3), (4, 64, 9), (9, 576, 1)]
)
def test_rms_norm(isa: str, rows: int, dim: int, heads: int) -> None:
    x, weight = random_rows(rows, dim * heads), random_rows(1, dim)[0]
    out = np.empty_like(x)
    Cpu(2, isa).rms_norm(x, weight, 1e-5, out)
    same_bits(out, reference.rms_norm(x, weight, 1e-5))
    wide = x.reshape(rows, heads, dim).astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(axis=2, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(out.reshape(exact.shape), exact, rtol=(dim / 16 + 12) * 2.0**-24)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 1536])
def test_swiglu(isa: str, columns: int) -> None:
    gate, up = random_rows(3, columns, 6.0), random_rows(3, columns)
    gate[0, 0], gate[1, 0], gate[2, 0] = 200.0, -200.0, 0.0
    out = np.empty_like(gate)
    Cpu(2, isa).swiglu(gate, up, out)
    same_bits(out, reference.swiglu(gate, up))
    wide = gate.astype(np.float64)
    np.testing.assert_allclose(out, wide / (1 + np.exp(-wide)) * up, rtol=8 * 2.0**-24, atol=1e-35)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("columns", [1, 15, 33, 576])
@pytest.mark.parametrize("has_bias", [False, True])
def test_add_fixed(isa: str, columns: int, has_bias: bool) -> None:
    x = random_rows(9, columns)
    fixed = np.random.default_rng(3).integers(-(2**40), 2**40, x.shape)
    fixed[0, 0], fixed[1, 0] = 2**62 + 2**38, -1
    bias = random_rows(1, columns)[0] if has_bias else None
    expected = reference.add_fixed(x, fixed, bias)
    Cpu(2, isa).add_fixed(x, fixed, bias)
    same_bits(x, expected)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 24), (2, 32), (9, 64)])
def test_rope(isa: str, heads: int, head_dim: int) -> None:
    angles = np.outer(np.arange(50), 10000.0 ** (-np.arange(head_dim // 2) / (head_dim // 2)))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    positions = np.array([0, 49, 7, 8], np.int32)
    x = random_rows(4, heads * head_dim)
    expected = reference.rope(x, positions, cos, sin, head_dim)
    before = x.copy()
    Cpu(1, isa).rope(x, cos, sin, positions, head_dim)
    same_bits(x, expected)
    pairs = before.reshape(4, heads, 2, -1).astype(np.float64)
    turned = (pairs[:, :, 0] + 1j * pairs[:, :, 1]) * np.exp(1j * angles[positions])[:, None, :]
    exact = np.stack([turned.real, turned.imag], axis=2).reshape(x.shape)
    np.testing.assert_allclose(x, exact, atol=8 * 2.0**-24 * np.abs(before).max())


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("columns", [1, 16, 31, 4097])
def test_softmax(isa: str, columns: int) -> None:
    x = random_rows(3, columns, 5.0)
    out = np.empty_like(x)
    Cpu(1, isa).softmax(x, out)
    same_bits(out, reference.softmax(x))
    below = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    wide = np.exp(below)
    # x - max is rounded before exp (its size in units of 2^-24), and the sum has columns / 16 + 4 additions.
    rtol = (np.abs(below).max() + columns / 16 + 16) * 2.0**-24
    np.testing.assert_allclose(out, wide / wide.sum(axis=1, keepdims=True), rtol=rtol, atol=1e-37)


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 20001).astype(np.float32)
    exact = np.array([math.exp(float(value)) for value in x])
    assert (np.abs(reference.exp(x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    ends = np.array([-np.inf, -1000, 0, 1000, np.nan], np.float32)
    np.testing.assert_array_equal(reference.exp(ends)[[0, 1, 2]], np.array([0, 0, 1], np.float32))
    assert np.isnan(reference.exp(ends)[4])
