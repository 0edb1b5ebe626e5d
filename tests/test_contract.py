"""The edges: rows that see nothing, poison behind a mask, extreme logits, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite
from suite import attend
from x64 import x64_if

import attention_jax as aj

SHAPE = (7, 9, 4, 2, 8, 10, (2,))
ROWS_MASK = np.random.default_rng(3).random((2, 4, 7, 9)) < 0.5
ROWS_MASK[:, :, 3] = False


@pytest.fixture
def arrays():
    return suite.inputs(SHAPE)


@pytest.fixture(
    params=[pytest.param(name, marks=() if name == "blockwise" else pytest.mark.slow) for name in suite.IMPLEMENTATIONS]
)
def attention(request):
    return suite.IMPLEMENTATIONS[request.param]


@pytest.fixture
def everything(attention):
    """Output and gradients of an implementation, as a function."""
    return partial(_everything, attention)


@partial(jax.jit, static_argnums=0)
def _everything(attention, query, key, value, cotangent, mask=None, bias=None):
    return suite.output_and_gradients(partial(attention, mask=mask, bias=bias), query, key, value, cotangent)


def assert_right(everything, arrays, visible=None, bias=None, mask=None):
    output, *gradients = everything(*arrays, mask=mask if mask is not None else visible, bias=bias)
    truths = [reference.attention(*arrays[:3], visible, bias), *reference.gradients(*arrays, visible, bias)]
    assert suite.error(output, truths[0]) <= suite.TOLERANCES["float32"]
    for ours, true in zip(gradients, truths[1:], strict=True):
        assert suite.error(ours, true) <= suite.GRADIENT_TOLERANCES["float32"]
    return output, gradients


def test_a_row_that_sees_nothing_is_0_and_passes_no_gradient(everything, arrays):
    output, (d_query, _, _) = assert_right(everything, arrays, ROWS_MASK)
    assert (output[:, 3] == 0).all() and (d_query[:, 3] == 0).all()
    nothing = everything(*arrays, mask=np.zeros((7, 9), bool))
    assert all((x == 0).all() for x in nothing)
    weights = aj.attention_weights(arrays[0][0, :, 0], arrays[1][0, :, 0], mask=ROWS_MASK[0, 0])
    assert (weights[3] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), ROWS_MASK[0, 0].any(-1), atol=1e-6)


@pytest.mark.parametrize("hide", [
    {"mask": ROWS_MASK}, {"mask": aj.causal(offset=-4)}, {"bias": np.where(ROWS_MASK, 0.5, -np.inf).astype(np.float32)},
])  # fmt: skip
def test_a_row_that_sees_nothing_takes_no_nan_back(everything, arrays, hide):
    """As from o / norm(o), or from what a loss leaves out after a nonlinearity."""
    *inputs, cotangent = arrays
    clean, spoilt = (everything(*inputs, cotangent.at[:, 3].set(x), **hide) for x in (0, jnp.nan))
    suite.same_bits(spoilt, clean)
    _, d_query, d_key, d_value = everything(*inputs, cotangent.at[:, 5].set(jnp.nan), **hide)
    assert jnp.isnan(d_query[:, 5]).all()
    assert all(jnp.isnan(x).any() for x in (d_key, d_value))


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("keys, score", [(1, None), (9, None), (200, None), (200, aj.soft_cap(3.0))])
def test_a_row_that_is_nan_takes_no_nan_back(implementation, keys, score):
    """As from what a loss leaves out after a nonlinearity, whose slope there is NaN."""
    query, key, value, _ = suite.inputs((7, keys, 4, 2, 8, 10, ()))
    query = query.at[3].set(jnp.nan)

    @jax.jit
    def gradients(cotangent):
        attend = partial(aj.attention_and_lse, score=score, implementation=implementation)
        (output, lse), back = jax.vjp(attend, query, key, value)
        return back((jnp.ones_like(output).at[3].set(cotangent), jnp.ones_like(lse).at[:, 3].set(cotangent)))

    clean = gradients(0.0)
    suite.same_bits(gradients(jnp.nan), clean)
    assert all(jnp.isfinite(x).all() for x in clean)


@pytest.mark.parametrize("implementation", ["reference", "blockwise", "one block"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_row_that_its_bias_makes_nan_takes_no_nan_back(implementation, poison):
    """To first and second order."""
    *inputs, _ = suite.inputs((7, 9, 4, 2, 8, 10, ()))

    def loss(query, key, value, bias):
        output = suite.IMPLEMENTATIONS[implementation](query, key, value, score=aj.scores.bias(bias))
        return jnp.sum(output[3:] ** 2)

    def slope(*inputs):
        return jax.jvp(loss, inputs, inputs)[1]

    @jax.jit
    def gradients(*inputs):
        return [jax.grad(each, (0, 1, 2, 3))(*inputs) for each in (loss, slope)]

    bias = jnp.sin(jnp.arange(63.0)).reshape(7, 9)
    suite.close(gradients(*inputs, bias.at[2, 1].set(poison)), gradients(*inputs, bias))


@pytest.mark.parametrize("keys, many", [(1, 1), (9, 1), (9, 9000), (40, 1), (40, 4000), (200, 1)])
def test_a_row_that_is_nan_has_no_tangent(keys, many):
    """One key, few, more than a value has channels, and many; all at once and in many steps."""
    inputs = [jnp.tile(x, (many, 1, 1, 1)) for x in suite.inputs((7, keys, 4, 2, 8, 10, (1,)))[:3]]
    inputs[0] = inputs[0].at[:, 3].set(jnp.nan)
    attend = jax.jit(partial(aj.attention_and_lse, implementation="blockwise"))
    (output, lse), (d_output, d_lse) = jax.jvp(attend, inputs, [jnp.ones_like(x) for x in inputs])
    assert jnp.isnan(output[:, 3]).all() and jnp.isnan(lse[..., 3]).all()
    assert not d_output[:, 3].any() and not d_lse[..., 3].any()
    assert jnp.isfinite(d_output).all() and d_output[:, 4].any()


def test_left_padding_and_causal(everything):
    arrays = suite.inputs((6, 6, 2, 2, 4, 4, (2,)))
    real = np.arange(6) >= np.array([[2], [0]])  # the first example has two padded positions
    output, _ = assert_right(
        everything,
        arrays,
        np.tril(np.ones((6, 6), bool)) & real[:, None, None, :],
        mask=aj.causal() & real[:, None, None, :],
    )
    assert (output[0, :2] == 0).all() and (output[0, 2:] != 0).all()


def test_bias_of_minus_infinity_hides(everything, arrays):
    bias = np.where(ROWS_MASK, 0.5, -np.inf).astype(np.float32)
    output, _ = assert_right(everything, arrays, bias=bias)
    assert (output[:, 3] == 0).all()


def test_the_lowest_finite_bias_does_not_hide(everything, arrays):
    mask = np.zeros((7, 9), bool)
    mask[:, 4] = True
    bias = np.where(mask, np.finfo(np.float32).min, 0).astype(np.float32)
    output, *_ = everything(*arrays, mask=mask, bias=bias)
    np.testing.assert_allclose(output, np.repeat(np.repeat(arrays[2][:, 4:5], 2, -2), 7, 1), rtol=1e-6)


@pytest.mark.parametrize("T, S", [(7, 0), (0, 9), (0, 0)])
def test_no_keys_or_no_queries(everything, T, S):
    output, *gradients = everything(*suite.inputs((T, S, 4, 2, 8, 5, (2,))))
    assert output.shape == (2, T, 4, 5) and (output == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)
    assert aj.attention_weights(jnp.ones((T, 8)), jnp.ones((S, 8))).shape == (T, S)


def test_key_length_0(everything, arrays):
    lengths = np.array([0, 9])
    output, gradients = assert_right(
        everything, arrays, (np.arange(9) < lengths[:, None])[:, None, None], mask=aj.key_lengths(lengths)
    )
    assert (output[0] == 0).all() and all((gradient[0] == 0).all() for gradient in gradients)


@pytest.mark.parametrize("size", [1e4, 1e10, 1e30])
def test_extreme_logits(everything, size, arrays):
    query, key, value, cotangent = arrays
    output, *gradients = everything(query * size**0.5, key * size**0.5, value, cotangent, mask=ROWS_MASK)
    truth = reference.attention(query * size**0.5, key * size**0.5, value, ROWS_MASK)
    assert suite.error(output, truth) <= 1e-3 * (1 if size == 1e4 else 1e-3)  # 1e4: the logits themselves round to 1e-3
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_float16_logits_beyond_float16(everything):
    query, key, value, cotangent = suite.inputs(SHAPE, "float16")
    query, key = query * 400, key * 400
    output, *_ = everything(query, key, value, cotangent, mask=ROWS_MASK)
    assert suite.error(output, reference.attention(query, key, value, ROWS_MASK)) <= suite.TOLERANCES["float16"]


@pytest.mark.parametrize("size, scale", [(1e30, 1.0), (1e10, 1e20)], ids=["products", "scaled"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("S", [1, 9])
def test_logits_that_overflow_are_nan(attention, size, scale, sign, S, arrays):
    query, key, value = arrays[0], arrays[1][:, :S], arrays[2][:, :S]
    query, key = jnp.full_like(query, size * sign), jnp.full_like(key, size)
    assert jnp.isnan(attention(query, key, value, scale=scale)).all()
    assert jnp.isnan(attention(query, key, value, scale=scale, bias=jnp.zeros((7, S)))).all()


def test_float64_throughout(attention):
    with x64_if(True):
        query, key, value, _ = suite.inputs(SHAPE, "float64")
        output = attention(query, key, value, mask=ROWS_MASK)
        assert output.dtype == jnp.float64
        assert suite.error(output, reference.attention(query, key, value, ROWS_MASK)) < 1e-14
        weights = aj.attention_weights(query[0, :, 0], key[0, :, 0])
        assert suite.error(weights, reference.weights(query, key)[0, 0]) < 1e-14


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["key", "value", "both"])
def test_what_no_row_sees_changes_no_bit(everything, poison, which, arrays):
    query, key, value, cotangent = arrays
    mask = ROWS_MASK.copy()
    mask[..., 5] = False
    clean = everything(query, key, value, cotangent, mask=mask)
    if which != "value":
        key = key.at[:, 5, :, 2].set(poison)
    if which != "key":
        value = value.at[:, 5, 1].set(poison)
    suite.same_bits(everything(query, key, value, cotangent, mask=mask), clean)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which, channels", [(0, 5), (1, 5), (2, 5), (2, 8)])
def test_poison_reaches_only_rows_that_see_it(everything, poison, which, channels):
    """The key or value at position 4 under a causal mask: rows 0 to 3 keep output and gradient bit for bit."""
    *inputs, cotangent = suite.inputs((7, 7, 4, 2, 8, channels, (2,)))
    clean, d_query, *_ = everything(*inputs, cotangent, mask=aj.causal())
    inputs[which] = inputs[which].at[:, 4, 1, 2].set(poison)
    output, d_query_poisoned, *_ = everything(*inputs, cotangent, mask=aj.causal())
    suite.same_bits((output[:, :4], d_query_poisoned[:, :4]), (clean[:, :4], d_query[:, :4]))
    assert jnp.isnan(output[:, 4:, 1 if which == 0 else 2]).any()
    if which:
        assert jnp.isnan(output[:, 4:, 2:]).all()  # key/value head 1 serves query heads 2 and 3
        assert jnp.isfinite(output[:, :, :2]).all()


def test_a_poisoned_query_that_sees_nothing_changes_no_bit(everything, arrays):
    query, *rest = arrays
    clean = everything(query, *rest, mask=ROWS_MASK)
    suite.same_bits(everything(query.at[:, 3].set(np.nan), *rest, mask=ROWS_MASK), clean)


@pytest.mark.parametrize("poison", [np.nan, 3e38])
def test_what_a_mask_hides_reaches_no_gradient(attention, poison):
    """Nor that of the scale; and 3e38, finite itself, overflows in any product. A bias of -inf hides as a mask does."""
    query, key, value, _ = suite.inputs((7, 9, 2, 2, 8, 2, ()))
    mask = np.ones((7, 9), bool)
    mask[:, 5] = False

    @jax.jit
    def slopes(query, key, value, mask, bias):
        def total(query, key, value, scale):
            return 10 * attention(query, key, value, mask=mask, bias=bias, scale=scale).sum()

        return jax.value_and_grad(total, (0, 1, 2, 3))(query, key, value, 0.3)

    poisoned = key.at[5].set(poison), value.at[5].set(poison)
    zeros = np.zeros((7, 9), np.float32)
    suite.same_bits(slopes(query, *poisoned, mask, zeros), slopes(query, key, value, mask, zeros))
    hiding, every = np.where(mask, 0, -np.inf).astype(np.float32), np.ones((7, 9), bool)
    suite.same_bits(slopes(query, *poisoned, every, hiding), slopes(query, key, value, every, hiding))


def test_what_a_bias_hides_reaches_no_tangent(attention):
    """Nor one of a gradient: the product of a key of 3e38 moves by what overflows."""
    query, key, value, _ = suite.inputs((7, 9, 2, 2, 8, 2, ()))
    tangents = tuple(9 * x for x in suite.inputs((7, 9, 2, 2, 8, 2, ()), seed=1)[:3])
    hides = partial(attention, bias=np.where(np.arange(9) == 5, -np.inf, np.zeros((7, 9))).astype(np.float32))

    @jax.jit
    def moved(*inputs):
        slopes = jax.grad(lambda *x: jnp.sum(hides(*x) ** 2), (0, 1, 2))
        return [jax.jvp(fn, inputs, tangents)[1] for fn in (hides, slopes)]

    suite.same_bits(moved(query, key.at[5].set(3e38), value), moved(query, key, value))


def test_a_poisoned_row_that_is_left_out_of_the_loss_reaches_no_gradient(everything, arrays):
    query, key, value, cotangent = arrays
    cotangent = cotangent.at[:, 2].set(0)
    output, *gradients = everything(query.at[:, 2].set(np.nan), key, value, cotangent, mask=ROWS_MASK)
    assert jnp.isnan(output[:, 2]).all() and not jnp.isnan(output[:, :2]).any()
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_padding_of_nan_equals_a_shorter_input(everything, arrays):
    query, key, value, cotangent = arrays
    padded = [jnp.concatenate([x, jnp.full_like(x[:, :3], np.nan)], axis=1) for x in (key, value)]
    output, d_query, d_key, d_value = everything(query, *padded, cotangent, mask=aj.key_lengths(jnp.array([9, 9])))
    short = everything(query, key, value, cotangent)
    for ours, true in zip((output, d_query, d_key[:, :9], d_value[:, :9]), short, strict=True):
        np.testing.assert_allclose(ours, true, atol=1e-6)
    assert (d_key[:, 9:] == 0).all() and (d_value[:, 9:] == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_no_row_sees_reaches_no_second_derivative(attention, poison, arrays):
    *clean, _ = arrays
    mask = ROWS_MASK.copy()
    mask[..., 5] = False

    @jax.jit
    def twice(*arrays):
        def once(*arrays):
            gradients = jax.grad(lambda *x: jnp.sum(attention(*x, mask=mask) ** 2), (0, 1, 2))(*arrays)
            return sum(jnp.sum(gradient**2) for gradient in gradients)

        return jax.grad(once, (0, 1, 2))(*arrays)

    poisoned = clean[0], *(x.at[:, 5].set(poison) for x in clean[1:])
    suite.same_bits(twice(*poisoned), twice(*clean))


def test_a_backward_pass_transposed_is_the_tangent(attention, arrays):
    *inputs, _ = arrays
    tangents = tuple(suite.inputs(SHAPE, seed=1)[:3])
    output, tangent = jax.jvp(partial(attention, mask=ROWS_MASK), tuple(inputs), tangents)
    _, backward = jax.vjp(partial(attention, mask=ROWS_MASK), *inputs)
    (transposed,) = jax.linear_transpose(backward, output)(tangents)
    np.testing.assert_allclose(transposed, tangent, atol=1e-5)


def test_precision_reaches_both_products(arrays):
    jaxpr = str(jax.make_jaxpr(partial(aj.multi_head_attention, precision="highest"))(*arrays[:3]))
    assert jaxpr.count("Precision.HIGHEST") == 4  # two for each of two dots


def drops(rate, T=64, S=96, N=4, batch=(3,), seed=0):
    """Which weights dropout keeps, `[*B, N, T, S]`: the output for values that are the identity, and even weights."""
    query, key = jnp.zeros((*batch, T, N, 4)), jnp.zeros((*batch, S, N, 4))
    value = jnp.broadcast_to(jnp.eye(S)[:, None, :].reshape((1,) * len(batch) + (S, 1, S)), (*batch, S, N, S))
    output = attend(query, key, value, dropout_rate=rate, dropout_rng=jax.random.key(seed))
    return np.swapaxes(np.asarray(output), -3, -2) * S


def test_dropout_keeps_the_mean_and_the_rate():
    kept = drops(0.25)
    assert set(np.unique(kept.round(4))) == {0.0, np.float32(1.3333)}
    share = (kept > 0).mean()
    assert abs(share - 0.75) < 5 * np.sqrt(0.25 * 0.75 / kept.size)
    for axis in range(4):  # no row, column, head or example is favoured: each stays within 5 standard deviations
        others = tuple(other for other in range(4) if other != axis)
        limit = 5 * np.sqrt(0.25 * 0.75 * kept.shape[axis] / kept.size)
        assert np.abs((kept > 0).mean(axis=others) - 0.75).max() < limit


def test_a_rate_next_to_1_drops_all_but_a_few():
    assert (drops(1 - 1e-12) > 0).mean() < 1e-3


def test_dropout_differs_everywhere_and_repeats():
    kept = (drops(0.5) > 0).reshape(12, -1)
    agreement = (kept[:, None] == kept[None]).mean(-1)[np.triu_indices(12, 1)]
    assert np.abs(agreement - 0.5).max() < 5 * np.sqrt(0.25 / kept.shape[1])
    rows = (drops(0.5, N=1, batch=())[0] > 0).astype(float)
    for matrix in (rows, rows.T):
        correlation = np.corrcoef(matrix)[np.triu_indices(len(matrix), 1)]
        assert np.abs(correlation).max() < 6 / np.sqrt(matrix.shape[1])
    assert (drops(0.5) == drops(0.5)).all() and (drops(0.5) != drops(0.5, seed=1)).any()


def test_dropout_of_a_part_is_a_part_of_the_dropout():
    """A weight's fate depends on its position alone, not on the lengths around it."""
    whole, part = drops(0.5, N=1, batch=()) > 0, drops(0.5, T=40, S=50, N=1, batch=()) > 0
    np.testing.assert_array_equal(whole[:, :40, :50], part)


def test_dropout_gradient_is_that_of_the_kept_weights(arrays):
    query, key, value, cotangent = arrays
    options = {"dropout_rate": 0.4, "dropout_rng": jax.random.key(1)}

    def loss(value):
        return jnp.vdot(attend(query, key, value, **options), cotangent)

    np.testing.assert_allclose(loss(value), jnp.vdot(jax.grad(loss)(value), value), rtol=1e-4)  # linear in the value
