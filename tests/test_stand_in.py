"""A stand-in takes its value and its backward pass from the fast function, and all else from the slow one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.custom_partitioning import custom_partitioning

from attention_jax.backends.stand_in import StandIn

X, Y = jnp.array([0.3, -1.2, 2.0]), jnp.array([1.5, 0.5, -0.7])
D, E = jnp.array([0.1, 0.2, -0.4]), jnp.array([-0.6, 0.9, 0.2])


def slow(x, y):
    return jnp.sin(x) * y


def fast(x, y):
    """Something else, so that it can be told apart."""
    return 10 * slow(x, y)


def widen(operands, axes, V):
    pairs = zip(operands, axes, strict=True)
    return [jnp.broadcast_to(x, (V, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in pairs]


def stand_in(x, y, fast=fast, partitioned=False):
    return StandIn(fast, slow, widen, None, (jax.ShapeDtypeStruct(x.shape, x.dtype),), partitioned)(x, y)[0]


def assert_close(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("jit", [lambda fn: fn, jax.jit], ids=["eager", "jit"])
def test_what_comes_from_which(jit):
    assert_close(jit(stand_in)(X, Y), fast(X, Y))
    pulled = jit(lambda x, y, d: jax.vjp(stand_in, x, y)[1](d))
    assert_close(pulled(X, Y, D), jax.vjp(fast, X, Y)[1](D))
    moved = jit(lambda *primals: jax.jvp(stand_in, primals, (D, E)))
    assert_close(moved(X, Y), (fast(X, Y), jax.jvp(slow, (X, Y), (D, E))[1]))


@pytest.mark.parametrize("moving", [0, 1])
def test_of_one_operand(moving):
    grad = jax.grad(lambda *xs: (D * stand_in(*xs)).sum(), argnums=moving)
    assert_close(grad(X, Y), jax.grad(lambda *xs: (D * fast(*xs)).sum(), argnums=moving)(X, Y))


@pytest.mark.slow
def test_higher_orders_are_the_slow_ones():
    def gradient(fn, x, y):
        return jax.vjp(fn, x, y)[1](D)

    for derive in (
        lambda fn: jax.jvp(partial(gradient, fn), (X, Y), (E, D))[1],  # forward over reverse
        lambda fn: jax.vjp(partial(gradient, fn), X, Y)[1]((E, D)),  # reverse over reverse
        lambda fn: jax.vjp(lambda x: jax.jvp(partial(fn, x), (Y,), (E,))[1], X)[1](D),  # reverse over forward
        lambda fn: jax.jacfwd(jax.jacfwd(fn))(X, Y),
    ):
        assert_close(derive(stand_in), derive(slow))


def test_a_pullback_is_turned_back():
    def pull(fn):
        return lambda d: jax.vjp(fn, X, Y)[1](d)

    for given in ((E, D), (E, jnp.zeros_like(D))):
        assert_close(jax.linear_transpose(pull(stand_in), D)(given), jax.linear_transpose(pull(slow), D)(given))
    assert_close(jax.vjp(lambda d: pull(stand_in)(d)[0], D)[1](E), jax.vjp(lambda d: pull(slow)(d)[0], D)[1](E))


@pytest.mark.slow
def test_vmap():
    xs, ys = jnp.stack([X, Y, D]), jnp.stack([E, X, D])
    for axes, operands in (((0, 0), (xs, ys)), ((0, None), (xs, Y)), ((None, 1), (X, ys.T)), ((1, 0), (xs.T, ys))):
        assert_close(jax.vmap(stand_in, axes)(*operands), jax.vmap(fast, axes)(*operands))

        def gradient(fn, x, y):
            return jax.vjp(fn, x, y)[1](D)

        mapped = jax.vmap(partial(gradient, stand_in), axes)(*operands)
        assert_close(mapped, jax.vmap(partial(gradient, fast), axes)(*operands))
    assert_close(jax.jacrev(stand_in)(X, Y), jax.jacrev(fast)(X, Y))
    nested = jax.vmap(jax.vmap(stand_in, (None, 0)), (0, None))
    assert_close(nested(xs, ys), jax.vmap(jax.vmap(fast, (None, 0)), (0, None))(xs, ys))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_is_for_the_slow_one(bad):
    dirty = X.at[1].set(bad)
    np.testing.assert_array_equal(stand_in(dirty, Y), slow(dirty, Y))
    assert_close(jax.vjp(stand_in, dirty, Y)[1](D), jax.vjp(slow, dirty, Y)[1](D))
    assert_close(jax.vjp(stand_in, X, Y)[1](D.at[0].set(bad)), jax.vjp(slow, X, Y)[1](D.at[0].set(bad)))
    # one example of a batch decides for all, so that only one of the two functions is run
    np.testing.assert_array_equal(jax.vmap(stand_in)(jnp.stack([X, dirty]), jnp.stack([Y, Y]))[0], slow(X, Y))


def test_equal_ones_are_traced_once():
    traced = []

    def counted(x, y):
        traced.append(x)
        return slow(x, y)

    def both(x, y):
        one = StandIn(counted, slow, widen, None, (jax.ShapeDtypeStruct(X.shape, X.dtype),))
        return one(x, y)[0], jax.vmap(lambda x: one(x, y)[0])(x[None]), jax.vjp(lambda x: one(x, y)[0], x)[1](y)

    both(X, Y)
    first = len(traced)
    both(Y, X)
    assert first > 0 and len(traced) == first


@custom_partitioning
def tenfold(x):
    return 10 * x


tenfold.def_partition(
    partition=lambda mesh, args, result: (mesh, lambda x: 10 * x, result.sharding, (args[0].sharding,)),
    infer_sharding_from_operands=lambda mesh, args, result: args[0].sharding,
    sharding_rule="i -> i",
)


@jax.custom_vjp
def spread(x, y):
    return tenfold(slow(x, y))


spread.defvjp(lambda x, y: (spread(x, y), (x, y)), lambda xy, d: jax.vjp(slow, *xy)[1](tenfold(d)))


def test_a_fast_function_that_has_to_know_its_devices():
    """JAX tells them only to what it sees to ask for them: see `operation._partitioned`."""

    def gradients(x, y):
        output, pull = jax.vjp(partial(stand_in, fast=spread, partitioned=True), x, y)
        return output, pull(D)

    assert_close(jax.jit(gradients)(X, Y), (fast(X, Y), jax.vjp(fast, X, Y)[1](D)))
    mapped = jax.jit(jax.vmap(gradients, (0, None)))(jnp.stack([X, D]), Y)
    wanted = [(fast(x, Y), jax.vjp(fast, x, Y)[1](D)) for x in (X, D)]
    assert_close(mapped, jax.tree.map(lambda *each: jnp.stack(each), *wanted))
