"""Masks as an algebra: laws by random trees, slices of the whole, and what is printed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_jax import (
    Mask,
    causal,
    key_lengths,
    mask_from_array,
    mask_from_function,
    prefix,
    segments,
    sliding_window,
)
from attention_jax.axes import cut_leaves

T, S = 7, 11


def leaves():
    """A mask over 7 queries and 11 keys, with its truth worked out pair by pair in plain Python."""
    small = st.integers(-4, 12)
    ids = st.lists(st.integers(0, 2), min_size=T, max_size=T), st.lists(st.integers(0, 2), min_size=S, max_size=S)
    bits = st.lists(st.lists(st.booleans(), min_size=S, max_size=S), min_size=T, max_size=T)
    return st.one_of(
        small.map(lambda o: (causal(offset=o), lambda t, s: s <= t + o)),
        st.tuples(st.integers(0, 5), st.integers(0, 5), small).map(
            lambda w: (sliding_window(*w[:2], offset=w[2]), lambda t, s: t + w[2] - w[0] <= s <= t + w[2] + w[1])
        ),
        st.integers(0, 13).map(lambda n: (prefix(n), lambda t, s: s < n)),
        st.integers(0, 13).map(lambda n: (key_lengths(n), lambda t, s: s < n)),
        st.tuples(*ids).map(lambda i: (segments(np.array(i[0]), np.array(i[1])), lambda t, s: i[0][t] == i[1][s])),
        bits.map(lambda b: (mask_from_array(np.array(b)), lambda t, s: b[t][s])),
        st.integers(1, 4).map(
            lambda m: (mask_from_function(lambda t, s: (t + s) % m == 0), lambda t, s: (t + s) % m == 0)
        ),
    )


def combine(children):
    return st.one_of(
        st.tuples(children, children).map(lambda p: (p[0][0] & p[1][0], lambda t, s: p[0][1](t, s) and p[1][1](t, s))),
        st.tuples(children, children).map(lambda p: (p[0][0] | p[1][0], lambda t, s: p[0][1](t, s) or p[1][1](t, s))),
        children.map(lambda p: (~p[0], lambda t, s: not p[1](t, s))),
    )


trees = st.recursive(leaves(), combine, max_leaves=6)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(trees)
def test_a_tree_is_its_rule_pair_by_pair(tree):
    mask, rule = tree
    truth = np.array([[bool(rule(t, s)) for s in range(S)] for t in range(T)])
    array = mask.to_array(T, S)
    assert array.dtype == jnp.bool_ and array.shape == (T, S)
    np.testing.assert_array_equal(array, truth)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(trees, st.integers(0, T - 1), st.integers(1, T), st.integers(0, S - 1), st.integers(1, S))
def test_a_block_is_a_part_of_the_whole(tree, row, height, column, width):
    mask, rule = tree
    rows, columns = range(row, min(row + height, T)), range(column, min(column + width, S))
    truth = np.array([[bool(rule(t, s)) for s in columns] for t in rows])
    block = cut_leaves(mask, t=slice(rows.start, rows.stop), s=slice(columns.start, columns.stop))
    seen = jnp.broadcast_to(block.at(jnp.array(rows), jnp.array(columns)), truth.shape)
    np.testing.assert_array_equal(seen, truth)
    some, every = block.some_every((rows[0], rows[-1]), (columns[0], columns[-1]))
    assert some or not truth.any()
    assert truth.all() or not every
    low, high = mask.columns_of((rows[0], rows[-1]), S)
    assert all(low <= s <= high for s in range(S) if any(rule(t, s) for t in rows))


@pytest.mark.parametrize("mask, some, every", [
    (causal(offset=0), [[1, 0], [1, 1]], [[0, 0], [1, 0]]),
    (sliding_window(4, 4, offset=0), [[1, 1], [1, 1]], [[1, 0], [0, 1]]),
    (sliding_window(1, 1, offset=-5), [[0, 0], [1, 0]], [[0, 0], [0, 0]]),
    (causal(offset=0) & ~prefix(4), [[0, 0], [0, 1]], [[0, 0], [0, 0]]),
    (causal(offset=0) | prefix(4), [[1, 0], [1, 1]], [[1, 0], [1, 0]]),
    (prefix(4) | causal(offset=0), [[1, 0], [1, 1]], [[1, 0], [1, 0]]),
    (~causal(offset=0), [[1, 1], [0, 1]], [[0, 1], [0, 0]]),
    (segments(np.array([0] * 4 + [1] * 4)), [[1, 0], [0, 1]], [[1, 0], [0, 1]]),
    (key_lengths(4), [[1, 0], [1, 0]], [[1, 0], [1, 0]]),
])  # fmt: skip
def test_blocks_of_four_are_told_empty_or_full(mask, some, every):
    ends = [(0, 3), (4, 7)]
    cut = [
        [cut_leaves(mask, t=slice(r, r + 4), s=slice(c, c + 4)).some_every(ends[r // 4], ends[c // 4]) for c in (0, 4)]
        for r in (0, 4)
    ]
    assert [[int(one[0]) for one in row] for row in cut] == some
    assert [[int(one[1]) for one in row] for row in cut] == every


@settings(max_examples=25, deadline=None)
@given(trees, trees)
def test_de_morgan(one, other):
    a, b = one[0], other[0]
    np.testing.assert_array_equal((~(a & b)).to_array(T, S), (~a | ~b).to_array(T, S))
    np.testing.assert_array_equal((~(a | b)).to_array(T, S), (~a & ~b).to_array(T, S))


@settings(max_examples=30, deadline=None)
@given(trees)
def test_printed_form_reads_back_as_the_tree(tree):
    """The printed expression, evaluated with the tree's own leaves, is the same mask: brackets are where they must be."""
    mask = tree[0]
    leaves_in_order = []

    def name_leaves(node):
        parts = [
            getattr(node, name) for name in ("left", "right", "mask") if isinstance(getattr(node, name, None), Mask)
        ]
        for part in parts:
            name_leaves(part)
        if not parts:
            leaves_in_order.append(node)

    name_leaves(mask)
    text = repr(mask)
    for index, leaf in enumerate(leaves_in_order):
        text = text.replace(repr(leaf), f"@{index}@", 1)
    names = {f"leaf{index}": leaf for index, leaf in enumerate(leaves_in_order)}
    again = eval(re.sub(r"@(\d+)@", r"leaf\1", text), {}, names)
    np.testing.assert_array_equal(again.to_array(T, S), mask.to_array(T, S))


@pytest.mark.slow
def test_a_mask_is_a_pytree_that_vmap_maps():
    ids, limits = jnp.array([[0, 0, 1], [0, 1, 1]]), jnp.array([1, 3])
    mask = causal() & segments(ids) & key_lengths(limits)
    arrays = jax.vmap(lambda mask: mask.to_array(3, 3))(mask)
    np.testing.assert_array_equal(arrays[:, None], mask.to_array(3, 3))
    np.testing.assert_array_equal(jax.jit(lambda mask: mask.to_array(3, 3))(mask), mask.to_array(3, 3))


@pytest.mark.parametrize("array_first", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_arrays_join_in_on_either_side(kind, array_first):
    array = kind(np.random.default_rng(0).random((5, 5)) < 0.5)
    both = array & causal() if array_first else causal() & array
    either = array | causal() if array_first else causal() | array
    np.testing.assert_array_equal(both.to_array(5, 5), np.asarray(array) & np.tri(5, dtype=bool))
    np.testing.assert_array_equal(either.to_array(5, 5), np.asarray(array) | np.tri(5, dtype=bool))


def test_printing():
    assert repr((causal() | prefix(2)) & ~sliding_window(3, 0, offset=1)) == (
        "(causal() | prefix(2)) & ~sliding_window(3, 0, offset=1)"
    )
    assert str(segments(jnp.array([0, 0, 1]))) == (
        "segments(int32[3], int32[3])\n3 queries (down) x 3 keys (across), ■ may attend\n■ ■ ·\n■ ■ ·\n· · ■"
    )
    assert "first 32 x 32 of 539 queries" in str(segments(jnp.zeros(539, int)))
    assert "offset=" in str(causal() & jnp.ones((3, 5), bool))  # says that it cannot be aligned, rather than guess
    seen = []
    jax.jit(lambda n: seen.append(str(key_lengths(n))))(3)
    assert seen == ["key_lengths(int32[])"]


def test_segments_tell_what_their_blocks_hold():
    """With ids in any order, among them blocks whose lowest ids agree and others do not."""
    random = np.random.default_rng(0)
    for _ in range(40):
        rows, columns = random.integers(0, 2, 3), random.integers(0, 2, 3)
        mask = segments(rows, columns)
        some, every = mask.some_every((0, 2), (0, 2))
        truth = rows[:, None] == columns[None, :]
        assert bool(some) >= truth.any() and bool(every) == truth.all()
