"""Position schemes against their papers' formulas, written out again in NumPy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj


def test_sinusoidal_embeddings_do_not_depend_on_how_positions_are_given():
    """Far positions are as exact as near ones, unless they are traced."""
    counted, listed = aj.sinusoidal_positions(3000, 8), aj.sinusoidal_positions(jnp.arange(3000), 8)
    np.testing.assert_array_equal(counted, listed)
    traced = jax.jit(lambda positions: aj.sinusoidal_positions(positions, 8))(jnp.arange(3000))
    np.testing.assert_allclose(traced, counted, atol=3e-4)


def test_sinusoidal_is_the_paper():
    ours = aj.sinusoidal_positions(50, 12)
    for position in range(50):
        for i in range(6):
            angle = position / 10000 ** (2 * i / 12)
            np.testing.assert_allclose(ours[position, 2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)], atol=1e-6)


def test_learned_positions_are_rows():
    table = jax.random.normal(jax.random.key(0), (16, 4))
    np.testing.assert_array_equal(aj.learned_positions(table, jnp.arange(3, 8)), table[3:8])
    with pytest.raises(ValueError, match="16 rows"):
        aj.learned_positions(table, jnp.arange(12, 17))


@pytest.mark.slow
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [8, 4])
def test_rotary_turns_each_pair(interleaved, rotated):
    random = np.random.default_rng(0)
    x, positions = random.normal(size=(2, 5, 3, 8)), random.integers(0, 100, (2, 5))
    frequencies = aj.rotary_frequencies(rotated, base=500.0)
    ours = aj.rotary_embedding(
        jnp.asarray(x, jnp.float32), positions, frequencies.tolist(), interleaved=interleaved, amplitude=1.5
    )
    truth = x.copy()
    for b, t, n, i in np.ndindex(2, 5, 3, rotated // 2):
        angle = positions[b, t] * 500.0 ** (-2 * i / rotated)
        one, two = (2 * i, 2 * i + 1) if interleaved else (i, i + rotated // 2)
        turned = (x[b, t, n, one] + 1j * x[b, t, n, two]) * 1.5 * np.exp(1j * angle)
        truth[b, t, n, one], truth[b, t, n, two] = turned.real, turned.imag
    np.testing.assert_allclose(ours, truth, atol=2e-5)


def test_rotary_products_depend_on_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 16))
    frequencies = aj.rotary_frequencies(16)

    def product(t, s):
        turned = [aj.rotary_embedding(x, jnp.array([p]), frequencies) for x, p in ((query, t), (key, s))]
        return float(jnp.vdot(*turned))

    assert product(3, 10) == pytest.approx(product(103, 110), abs=1e-4)
    assert product(3, 10) != pytest.approx(product(3, 11), abs=1e-2)


@pytest.mark.slow
def test_rotary_keeps_the_dtype_and_works_in_float32():
    x = jax.random.normal(jax.random.key(0), (4000, 1, 16))
    frequencies = aj.rotary_frequencies(16)
    exact = aj.rotary_embedding(x.astype(jnp.bfloat16).astype(jnp.float32), jnp.arange(4000), frequencies)
    low = aj.rotary_embedding(x.astype(jnp.bfloat16), jnp.arange(4000), frequencies)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), exact, rtol=2**-7, atol=1e-6)


FREQUENCIES = 10000.0 ** (-np.arange(0, 64, 2) / 64)


def test_linear_scaling():
    ours = aj.linear_scaling(aj.rotary_frequencies(64), factor=4.0)
    np.testing.assert_allclose(ours, FREQUENCIES / 4, rtol=1e-6)


def test_ntk_scaling_is_a_larger_base():
    base = 10000.0 * 4.0 ** (64 / 62)
    ours = aj.ntk_scaling(aj.rotary_frequencies(64), factor=4.0)
    np.testing.assert_allclose(ours, base ** (-np.arange(0, 64, 2) / 64), rtol=1e-5)


def test_llama3_scaling():
    ours = aj.llama3_scaling(aj.rotary_frequencies(64, base=500000.0), factor=8.0, original_length=8192)
    for ours_i, frequency in zip(ours, 500000.0 ** (-np.arange(0, 64, 2) / 64), strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            truth = frequency
        elif wavelength > 8192 / 1:
            truth = frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            truth = (1 - smooth) * frequency / 8 + smooth * frequency
        np.testing.assert_allclose(ours_i, truth, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dim, base, original, factor", [(64, 10000.0, 2048, 16.0), (128, 1e6, 32768, 4.0), (32, 150.0, 64, 2.0)]
)
def test_yarn_scaling(dim, base, original, factor):
    def correction(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(correction(32)), 0), min(math.ceil(correction(1)), dim - 1)
    ours = aj.yarn_scaling(aj.rotary_frequencies(dim, base=base), factor=factor, original_length=original)
    for i in range(dim // 2):
        ramp = min(max((i - low) / ((high - low) or 0.001), 0), 1)
        frequency = base ** (-2 * i / dim)
        np.testing.assert_allclose(ours[i], frequency * (1 - ramp) + frequency / factor * ramp, rtol=1e-5)
    scale = jax.jit(lambda frequencies: aj.yarn_scaling(frequencies, factor=factor, original_length=original))
    np.testing.assert_allclose(scale(aj.rotary_frequencies(dim, base=base)), ours, rtol=1e-6)
    assert aj.yarn_amplitude(16.0) == pytest.approx(0.1 * math.log(16) + 1)


def test_alibi_slopes():
    np.testing.assert_allclose(aj.alibi_slopes(8), [2.0 ** -(i + 1) for i in range(8)])
    assert aj.alibi_slopes(1).tolist() == [2.0**-8]
    # twelve heads: the paper's eight, then every other one of the sixteen
    sixteen = [2.0 ** (-(i + 1) / 2) for i in range(16)]
    np.testing.assert_allclose(aj.alibi_slopes(12), [2.0 ** -(i + 1) for i in range(8)] + sixteen[0:8:2], rtol=1e-6)
