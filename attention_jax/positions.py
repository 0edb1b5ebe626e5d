"""Where a token stands: sinusoidal and learned position embeddings, rotary embeddings and their scalings, ALiBi slopes.

Rotary embeddings are three plain steps. Frequencies (radians a position) are made by `rotary_frequencies`, may be
rescaled for longer contexts by one of the `*_scaling` functions, and turn a query or key in `rotary_embedding`:

    >>> from attention_jax import rotary_embedding, rotary_frequencies, yarn_scaling
    >>> frequencies = yarn_scaling(rotary_frequencies(64), factor=4, original_length=2048)
    >>> rotary_embedding(jnp.ones((7, 2, 64)), jnp.arange(7), frequencies).shape
    (7, 2, 64)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from attention_jax.arguments import index_array, integer_array, static_int
from attention_jax.typing import Integers


def sinusoidal_positions(positions: Integers, dim: int, *, base: float = 10000.0) -> jax.Array:
    """The fixed position embedding of Vaswani et al. 2017 (arXiv:1706.03762, section 3.5).

    Args:
      positions: how many, T, from 0 on (static int); or integers `[*B, T]`, which may be traced.
      dim: channels D, even.
      base: ratio of the longest wavelength to the shortest.

    Returns:
      float `[T, D]` or `[*B, T, D]`: sines in the even channels, cosines in the odd ones. Of traced positions they are
      made in float32: position 2,000 is right to 1e-4.

    Raises:
      TypeError: a traced number of positions, positions that are not integers, or a `dim` that is none.
      ValueError: `dim` is odd or below 0, or `base` is not above 0 and finite.

    >>> print(sinusoidal_positions(2, 4).round(3))
    [[0.    1.    0.    1.   ]
     [0.841 0.54  0.01  1.   ]]
    """
    if np.ndim(positions) == 0:
        positions = np.arange(static_int("sinusoidal_positions(positions=)", positions, minimum=0))
    else:
        positions = integer_array("sinusoidal_positions(positions=)", positions)
    frequencies = _frequencies("sinusoidal_positions(dim=)", dim, base)
    traced = any(isinstance(x, jax.core.Tracer) for x in (positions, frequencies))
    xp: Any = jnp if traced else np
    angles = xp.asarray(positions)[..., None] * frequencies.reshape((1,) * positions.ndim + (-1,))
    both = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
    return jnp.asarray(both.reshape(*positions.shape, dim), float)


def learned_positions(table: jax.Array, positions: Integers) -> jax.Array:
    """Rows of a learned table (Gehring et al. 2017, arXiv:1705.03122).

    Args:
      table: `[max_length, D]`, a parameter.
      positions: how many, T, from 0 on (static int); or integers `[*B, T]`, which may be traced.

    Returns:
      `[T, D]` or `[*B, T, D]`; NaN for a traced position that the table has no row for.

    Raises:
      TypeError: a traced number of positions, or positions that are not integers.
      ValueError: the table has no row for one of the positions; indexing would silently repeat its last row.

    >>> learned_positions(jnp.zeros((16, 4)), 3).shape
    (3, 4)
    >>> learned_positions(jnp.zeros((16, 4)), jnp.array([[13, 14, 15], [0, 1, 2]])).shape
    (2, 3, 4)
    """
    rows = len(table)
    if np.ndim(positions) == 0:
        first, last = 0, static_int("learned_positions(positions=)", positions, minimum=0) - 1
    elif isinstance(positions, jax.core.Tracer) or np.size(positions) == 0:
        first, last = 0, -1
    else:
        known = np.asarray(positions)  # which stays known inside jax.jit
        first, last = known.min(), known.max()
    if first < 0 or last >= rows:
        raise ValueError(
            f"positions {first} to {last} do not fit the position table of {rows} rows: "
            "shorten the sequence, or build the model with a longer context"
        )
    if np.ndim(positions) == 0:
        return table[:positions]
    positions = index_array(integer_array("learned_positions(positions=)", positions))
    positions = jnp.where(positions < 0, rows, positions)  # which else count from the end
    return jnp.take(table, positions, axis=0, mode="fill", fill_value=jnp.nan)


def rotary_frequencies(dim: int, *, base: float = 10000.0) -> jax.Array:
    """The angles, in radians a position, by which rotary embeddings turn each pair of channels (arXiv:2104.09864).

    Args:
      dim: how many channels of each head to rotate, even; fewer than the head dim leaves the rest as they are.
      base: ratio of the slowest wavelength to the fastest, roughly.

    Returns:
      float `[dim / 2]`: base ** (-2 i / dim).

    Raises:
      TypeError: a `dim` that is no integer.
      ValueError: `dim` is odd or below 0, or `base` is not above 0 and finite.

    >>> print(rotary_frequencies(4))
    [1.   0.01]
    """
    return jnp.asarray(_frequencies("rotary_frequencies(dim=)", dim, base), float)


def rotary_embedding(
    x: jax.Array, positions: jax.Array, frequencies: ArrayLike, *, interleaved: bool = False, amplitude: float = 1.0
) -> jax.Array:
    """Turn queries or keys by their positions, so that query . key depends on distance alone (arXiv:2104.09864).

    Args:
      x: `[*B, T, N, H]`, queries or keys.
      positions: integer `[T]` or `[*B, T]`.
      frequencies: `[R / 2]` from `rotary_frequencies`; the first R <= H channels are rotated.
      interleaved: channel pairs are (0, 1), (2, 3), ... as in the paper and GPT-J; otherwise (i, i + R/2) as in
        GPT-NeoX and Llama.
      amplitude: multiplies the rotated channels; `yarn_amplitude` with `yarn_scaling`.

    Returns:
      As `x`, in its dtype; the rotation is done in float32 or better.

    Raises:
      TypeError: an integer `x`.
      ValueError: shapes that do not fit.

    >>> x = jnp.array([[[1.0, 0.0]]])
    >>> print(rotary_embedding(x, jnp.array([1]), jnp.array([jnp.pi / 2])).round(3) + 0.0)
    [[[0. 1.]]]
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating point, got {x.dtype}: convert it, e.g. x.astype(float)")
    positions, frequencies = jnp.asarray(positions), jnp.asarray(frequencies)
    rotated = 2 * len(frequencies)
    if x.ndim < 3 or rotated > x.shape[-1] or positions.shape not in ((x.shape[-3],), x.shape[:-2]):
        raise ValueError(
            "expected x [*B, T, N, H], positions [T] or [*B, T], frequencies [R / 2] with R <= H; "
            f"got x {x.shape}, positions {positions.shape}, frequencies {frequencies.shape}"
        )
    dtype = np.promote_types(x.dtype, np.float32)
    angles = positions[..., None].astype(dtype) * frequencies.reshape((1,) * positions.ndim + (-1,)).astype(dtype)
    angles = angles.reshape((1,) * (x.ndim - 2 - positions.ndim) + (*angles.shape[:-1], 1, angles.shape[-1]))
    cos, sin = amplitude * jnp.cos(angles), amplitude * jnp.sin(angles)

    turning, rest = x[..., :rotated].astype(dtype), x[..., rotated:]
    pairs = (*turning.shape[:-1], rotated // 2, 2) if interleaved else (*turning.shape[:-1], 2, rotated // 2)
    axis = -1 if interleaved else -2
    first, second = jnp.moveaxis(turning.reshape(pairs), axis, 0)
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=axis).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def linear_scaling(frequencies: jax.Array, *, factor: float) -> jax.Array:
    """Position interpolation: positions shrink by `factor` (Chen et al. 2023, arXiv:2306.15595).

    Args:
      frequencies: `[R / 2]`.
      factor: the new context over the old, at least 1 (static).

    Returns:
      `[R / 2]`.

    Raises:
      TypeError: a traced factor.
      ValueError: a factor below 1.

    >>> print(linear_scaling(rotary_frequencies(4), factor=2.0))
    [0.5   0.005]
    """
    return frequencies / _at_least_one("linear_scaling", factor)


def ntk_scaling(frequencies: jax.Array, *, factor: float) -> jax.Array:
    """NTK-aware interpolation: the slowest pair shrinks by `factor`, the fastest stays (arXiv:2309.00071, section 3.1).

    Args:
      frequencies: `[R / 2]`.
      factor: the new context over the old, at least 1 (static).

    Returns:
      `[R / 2]`.

    Raises:
      TypeError: a traced factor.
      ValueError: a factor below 1.

    >>> print(ntk_scaling(rotary_frequencies(4), factor=2.0))
    [1.    0.005]
    """
    exponents = jnp.arange(len(frequencies)) / max(len(frequencies) - 1, 1)
    return frequencies * _at_least_one("ntk_scaling", factor) ** -exponents


def llama3_scaling(
    frequencies: jax.Array, *, factor: float, original_length: int, low_factor: float = 1.0, high_factor: float = 4.0
) -> jax.Array:
    """The scaling of Llama 3.1 (arXiv:2407.21783): fast pairs stay, slow ones shrink by `factor`, others in between.

    Args:
      frequencies: `[R / 2]`.
      factor: how much longer the new context is.
      original_length: the context, in positions, that the model was trained on.
      low_factor, high_factor: pairs that turn fewer than `low_factor` times in the original context shrink whole, those
        that turn more than `high_factor` times stay.

    Returns:
      `[R / 2]`.

    Raises:
      TypeError: a traced factor, or an `original_length` that is no static integer.
      ValueError: a factor or an `original_length` below 1, or a `low_factor` that is not below `high_factor`.

    >>> print(llama3_scaling(jnp.array([1.0, 1e-4]), factor=8.0, original_length=8192))
    [1.00e+00 1.25e-05]
    """
    if not low_factor < high_factor:
        raise ValueError(f"llama3_scaling wants low_factor < high_factor, got {low_factor} and {high_factor}")
    original_length = static_int("llama3_scaling(original_length=)", original_length, minimum=1)
    turns = original_length * frequencies / (2 * math.pi)
    keep = jnp.clip((turns - low_factor) / (high_factor - low_factor), 0, 1)
    return frequencies * (keep + (1 - keep) / _at_least_one("llama3_scaling", factor))


def yarn_scaling(
    frequencies: jax.Array, *, factor: float, original_length: int, slow: float = 1.0, fast: float = 32.0
) -> jax.Array:
    """YaRN: as Llama 3's, with a ramp over pairs rather than turns (Peng et al. 2023, arXiv:2309.00071, section 3.2).

    The ramp is that of the authors' code and of `transformers`: straight in the pair's index, between whole pairs.
    Pair it with `yarn_amplitude`.

    Args:
      frequencies: `[R / 2]` as `rotary_frequencies` gives them.
      factor: how much longer the new context is.
      original_length: the context, in positions, that the model was trained on.
      slow, fast: turns in the original context at which the ramp ends and begins (beta_slow, beta_fast).

    Returns:
      `[R / 2]`.

    Raises:
      TypeError: a traced factor, or an `original_length` that is no static integer.
      ValueError: a factor or an `original_length` below 1, or a `slow` that is not below `fast`.

    >>> with jnp.printoptions(precision=1):
    ...     print(yarn_scaling(rotary_frequencies(8), factor=4.0, original_length=2048))
    [1.0e+00 1.0e-01 6.2e-03 2.5e-04]
    """
    if not slow < fast:
        raise ValueError(f"yarn_scaling wants slow < fast, got {slow} and {fast}")
    original_length = static_int("yarn_scaling(original_length=)", original_length, minimum=1)
    pairs = len(frequencies)
    log_step = -jnp.log(frequencies[1]) if pairs > 1 else 1.0  # of the frequency, from pair to pair

    def pair_that_turns(turns: float) -> ArrayLike:
        return math.log(original_length / (turns * 2 * math.pi)) / log_step

    start = jnp.maximum(jnp.floor(pair_that_turns(fast)), 0)
    end = jnp.minimum(jnp.ceil(pair_that_turns(slow)), 2 * pairs - 1)
    shrink = jnp.clip((jnp.arange(pairs) - start) / jnp.maximum(end - start, 0.001), 0, 1)
    return frequencies * (1 - shrink + shrink / _at_least_one("yarn_scaling", factor))


def yarn_amplitude(factor: float) -> float:
    """What YaRN multiplies rotated queries and keys by, 0.1 ln(factor) + 1 (arXiv:2309.00071, section 3.4).

    Args:
      factor: that of `yarn_scaling`, at least 1 (static).

    Raises:
      TypeError: a traced factor.
      ValueError: a factor below 1.

    >>> round(yarn_amplitude(4.0), 4)
    1.1386
    """
    return 0.1 * math.log(_at_least_one("yarn_amplitude", factor)) + 1


def alibi_slopes(num_heads: int) -> jax.Array:
    """ALiBi's penalty for distance in each head (Press et al. 2021, arXiv:2108.12409).

    The bias of head n on the key s of query t is -slope[n] * (t - s). For a number of heads that is no power of two,
    the authors' rule: the slopes of the next lower power, then every other one of the next higher.

    Args:
      num_heads: N >= 1 (static int).

    Returns:
      float `[N]`.

    Raises:
      TypeError: a traced number of heads.
      ValueError: a number below 1.

    >>> print(alibi_slopes(4))
    [0.25       0.0625     0.015625   0.00390625]
    """
    num_heads = static_int("alibi_slopes(num_heads)", num_heads, minimum=1)
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (n + 1) / power) for n in range(power)]
    between = [2 ** (-8 * (n + 1) / (2 * power)) for n in range(0, 2 * power, 2)]
    return jnp.asarray(slopes + between[: num_heads - power], float)


def _frequencies(name: str, dim: int, base: float) -> np.ndarray:
    if static_int(name, dim, minimum=0) % 2:
        raise ValueError(f"{name} must be even, to pair the channels; got {dim}")
    if not isinstance(base, jax.core.Tracer) and not 0 < base < math.inf:
        raise ValueError(f"base must be above 0 and finite, got {base}")
    return base ** (-np.arange(0, dim, 2) / dim)


def _at_least_one(name: str, factor: float) -> float:
    if isinstance(factor, jax.core.Tracer):
        raise TypeError(f"{name} wants a static factor (a Python number known while tracing), got a traced value")
    if not factor >= 1:
        raise ValueError(f"{name} wants factor >= 1, the new context over the old, got {factor}")
    return factor
