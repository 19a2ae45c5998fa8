"""Matrix products: native against the numpy definition, bit for bit, on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import pytest

from tinycluster.kernels import reference
from tinycluster.kernels._cpu import Cpu, supported_isas
from tinycluster.kernels.formats import FORMATS, DenseTensor, Format, HostTensor, dequantize
from tinycluster.kernels.packing import pack, prepare
from tinycluster.kernels.program import F32, I64, NumericalError

LIMIT = 2.0**20


def random_matrix(rows: int, columns: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def weight_in(format: Format, rows: int, columns: int, unit: int | None = None) -> tuple[HostTensor, int]:
    tensor = DenseTensor("f32", random_matrix(rows, columns, seed=rows * 1000 + columns))
    return prepare(tensor, unit=unit, format=format), columns


def native_linear(cpu: Cpu, x: F32, tensor: HostTensor, bias: F32 | None = None) -> F32:
    out = np.full((x.shape[0], tensor.shape[0]), np.nan, np.float32)
    cpu.linear(x, pack(tensor).native, bias, out)
    return out


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("tokens", "rows"), [(0, 16), (1, 1), (1, 67), (3, 16), (7, 48), (8, 33), (9, 81), (17, 15)])
def test_linear_has_the_bits_of_the_definition(isa: str, format: Format, tokens: int, rows: int) -> None:
    x = random_matrix(tokens, 96, seed=tokens)
    bias = random_matrix(1, rows, seed=5)[0]
    tensor, _ = weight_in(format, rows, 96)
    got = native_linear(Cpu(2, isa), x, tensor, bias)
    np.testing.assert_array_equal(got.view(np.int32), reference.linear(x, tensor, bias).view(np.int32))


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("format", ["q8", "q4"])
@pytest.mark.parametrize("tokens", [1, 8, 13])
def test_linear_with_8_bit_activations_has_the_bits_of_the_definition(isa: str, format: Format, tokens: int) -> None:
    x, (tensor, _) = random_matrix(tokens, 96), weight_in(format, 67, 96)
    out = np.empty((tokens, 67), np.float32)
    Cpu(2, isa, 8).linear(x, pack(tensor).native, None, out)
    np.testing.assert_array_equal(out, reference.linear(x, tensor, bits=8))
    assert (out != native_linear(Cpu(2, isa), x, tensor)).any()


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("columns", [1, 15, 31, 32, 33, 64, 131])
def test_dense_columns_of_any_number(isa: str, columns: int) -> None:
    tensor, _ = weight_in("f32", 19, columns)
    x = random_matrix(5, columns)
    np.testing.assert_array_equal(native_linear(Cpu(1, isa), x, tensor), reference.linear(x, tensor))


def test_linear_without_columns_is_the_bias() -> None:
    tensor = DenseTensor("f32", np.zeros((5, 0), np.float32))
    bias = random_matrix(1, 5)[0]
    np.testing.assert_array_equal(
        native_linear(Cpu(1), np.zeros((3, 0), np.float32), tensor, bias), np.tile(bias, (3, 1))
    )


@pytest.mark.parametrize("format", FORMATS)
def test_linear_is_close_to_float64(format: Format) -> None:
    """Against exact arithmetic: gamma_K of Higham (2002, sec. 3.1), and half a code per 16-bit activation."""
    K = 160
    x, (tensor, _) = random_matrix(6, K), weight_in(format, 40, K)
    w = dequantize(tensor).astype(np.float64)
    bound = 1.01 * K * 2.0**-24 * (np.abs(x) @ np.abs(w).T)
    if format in ("q8", "q4"):
        half_code = np.repeat(np.abs(x.reshape(6, -1, 32)).max(axis=2) / (2 * 127 * 256), 32, axis=1)
        bound = bound * 1.1 + 1.01 * half_code @ np.abs(w).T
    error = np.abs(native_linear(Cpu(1), x, tensor) - x.astype(np.float64) @ w.T)
    assert (error <= bound).all()
    broken = w.copy()
    broken[:, 7] = 0  # a lost column must be outside the bound
    assert not (np.abs(native_linear(Cpu(1), x, tensor) - x @ broken.T) <= bound).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_does_not_depend_on_its_batch_or_on_threads(format: Format) -> None:
    x, (tensor, _) = random_matrix(33, 64), weight_in(format, 200, 64)
    together = native_linear(Cpu(3), x, tensor)
    for t in range(33):
        np.testing.assert_array_equal(native_linear(Cpu(1), x[t : t + 1], tensor)[0], together[t])


def native_fixed(cpu: Cpu, x: F32, tensor: HostTensor, unit: int, format: Format | None = None) -> I64:
    out = np.full((x.shape[0], tensor.shape[0]), -1, np.int64)
    assert cpu.linear_fixed(x, pack(tensor, unit=unit, format=format).native, LIMIT, out)
    return out


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("unit", "columns"), [(64, 192), (64, 160), (32, 32), (64, 64)])
def test_linear_fixed_has_the_bits_of_the_definition(isa: str, format: Format, unit: int, columns: int) -> None:
    x, (tensor, _) = random_matrix(11, columns), weight_in(format, 37, columns, unit)
    got = native_fixed(Cpu(2, isa), x, tensor, unit)
    np.testing.assert_array_equal(got, reference.linear_fixed(x, tensor, unit, LIMIT))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("unit", [24, 40, 80])
def test_units_that_are_not_whole_groups_are_padded(format: Format, unit: int) -> None:
    dense = DenseTensor("f32", random_matrix(20, 3 * unit + 7))
    x = random_matrix(5, 3 * unit + 7)
    exact = x.astype(np.float64) @ dequantize(dense).T.astype(np.float64)
    got = native_fixed(Cpu(1), x, dense, unit, format).astype(np.float64) * 2.0**-32
    tolerance = {"f32": 1e-4, "f16": 2e-2, "bf16": 0.2, "q8": 0.5, "q4": 6.0}[format]
    assert np.abs(got - exact).max() < tolerance
    for start in range(0, 3 * unit + 7, unit):  # each unit alone gives its share of the integer sum
        part = slice(start, start + unit)
        got = (
            got
            - native_fixed(
                Cpu(1), np.ascontiguousarray(x[:, part]), DenseTensor("f32", dense.values[:, part].copy()), unit, format
            ).astype(np.float64)
            * 2.0**-32
        )
    np.testing.assert_array_equal(got, np.zeros_like(got))


@pytest.mark.parametrize("format", FORMATS)
def test_any_dealing_of_units_gives_the_same_sum(format: Format) -> None:
    unit, units = 32, 7
    x, (tensor, _) = random_matrix(4, unit * units), weight_in("f32", 24, unit * units)
    whole = native_fixed(Cpu(1), x, tensor, unit, format)
    for cut in range(units + 1):
        halves = [slice(0, cut * unit), slice(cut * unit, units * unit)]
        parts = [DenseTensor("f32", np.ascontiguousarray(dequantize(tensor)[:, half])) for half in halves]
        sums = [
            native_fixed(Cpu(1), np.ascontiguousarray(x[:, half]), part, unit, format)
            for half, part in zip(halves, parts, strict=True)
        ]
        np.testing.assert_array_equal(sums[0] + sums[1], whole)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("format", ["f32", "q8", "q4"])
def test_a_partial_that_does_not_fit_is_reported(isa: str, bad: float, format: Format) -> None:
    x = random_matrix(3, 64)
    x[1, 5] = bad
    tensor, _ = weight_in(format, 18, 64, 32)
    out = np.zeros((3, 18), np.int64)
    assert not Cpu(1, isa).linear_fixed(x, pack(tensor, unit=32).native, LIMIT, out)
    if format == "f32":
        with np.errstate(all="ignore"), pytest.raises(NumericalError):
            reference.linear_fixed(x, tensor, 32, LIMIT)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("format", FORMATS)
def test_embedding_reads_rows_back_and_zeros_for_other_ranks(isa: str, format: Format) -> None:
    tensor, _ = weight_in(format, 21, 96)
    tokens = np.array([30, 10, 9, 31, 20, 10], np.int32)
    out = np.full((6, 96), np.nan, np.float32)
    Cpu(1, isa).embedding(tokens, pack(tensor).native, 10, out)
    np.testing.assert_array_equal(out, reference.embedding(tokens, tensor, 10))
    assert not out[2].any()
    assert not out[3].any()
    np.testing.assert_array_equal(out[1], dequantize(tensor)[0])


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("tokens", "rows"), [(0, 16), (1, 67), (2, 64), (3, 16), (5, 48), (9, 33)])
def test_residual_is_added_as_after_the_sum_of_units(isa: str, format: Format, tokens: int, rows: int) -> None:
    x, residual, bias = (random_matrix(*shape) for shape in ((tokens, 96), (tokens, rows), (1, rows)))
    tensor, _ = weight_in(format, rows, 96, unit=32)
    got = residual.copy()
    assert Cpu(2, isa).linear_residual(x, pack(tensor, unit=32).native, LIMIT, bias[0], got)
    fixed = reference.linear_fixed(x, tensor, 32, LIMIT)
    np.testing.assert_array_equal(got, reference.add_fixed(residual, fixed, bias[0]))


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 8, 11])
def test_gate_and_up_together_have_the_bits_of_both_apart(isa: str, format: Format, tokens: int) -> None:
    x = random_matrix(tokens, 64)
    gate, up = (prepare(DenseTensor("f32", random_matrix(96, 64, seed=seed)), format=format) for seed in (1, 2))
    got = np.full((tokens, 96), np.nan, np.float32)
    Cpu(2, isa).gate_up(x, pack(gate).native, pack(up).native, got)
    expected = reference.swiglu(reference.linear(x, gate), reference.linear(x, up))
    np.testing.assert_array_equal(got, expected)
