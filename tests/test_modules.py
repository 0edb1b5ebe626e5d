"""The modules are the functions with parameters, and keep what they promise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite
from flax import nnx

import attention_jax as aj
from attention_jax import modules
from attention_jax.modules import (
    ConcatenatedHeads,
    FeedForward,
    MultiHeadAttention,
    SingleHeadAttention,
    SinusoidalPositions,
    SwiGLU,
    TransformerBlock,
    TransformerLM,
)
from attention_jax.modules.feed_forward import exact_gelu

D, N = 24, 4
X = jax.random.normal(jax.random.key(0), (3, 7, D))
CONTEXT = jax.random.normal(jax.random.key(1), (3, 9, D))
rotary = partial(aj.rotary_embedding, frequencies=aj.rotary_frequencies(D // N))


def random_biases(module):
    """`module`, with biases and norm scales that are not their initial 0 and 1."""
    _, params = nnx.split(module, nnx.Param)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [
        x + 0.3 * jax.random.normal(key, x.shape) if x.ndim < 2 else x for x, key in zip(leaves, keys, strict=True)
    ]
    nnx.update(module, jax.tree.unflatten(structure, moved))
    return module


def jitted(module):
    """`module`, called under one `jax.jit` rather than compiled operation by operation."""
    graphdef, params = nnx.split(module)

    def call(*args, **options):
        return jax.jit(lambda params, args: nnx.merge(graphdef, params)(*args, **options))(params, args)

    return call


def by_hand(attention, x, context, visible=None):
    """The module's output and weights from its parameters, in NumPy float64."""
    x, context = np.asarray(x, np.float64), np.asarray(context, np.float64)

    def linear(layer, inputs):
        bias = 0 if layer.bias is None else np.asarray(layer.bias[...], np.float64)
        return inputs @ np.asarray(layer.kernel[...], np.float64) + bias

    K, H = attention.num_kv_heads, D // N
    if attention.fused:
        whole = linear(attention.qkv, x)
        query, key, value = np.split(whole, [N * H, (N + K) * H], axis=-1)
    else:
        query, key, value = linear(attention.query, x), linear(attention.key, context), linear(attention.value, context)
    query, key, value = (y.reshape(*y.shape[:2], -1, H) for y in (query, key, value))
    heads = reference.attention(query, key, value, visible)
    return linear(attention.out, heads.reshape(*heads.shape[:2], D)), reference.weights(query, key, visible)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "use_bias": False},
        {"fused": True},
        {"fused": True, "num_kv_heads": 2},
    ],
)
def test_multi_head_attention_is_the_functions(options, cross):
    attention = random_biases(MultiHeadAttention(D, N, rngs=nnx.Rngs(0), **options))
    if cross and "fused" in options:
        with pytest.raises(ValueError, match="fused=False"):
            attention(X, CONTEXT)
        return
    context = CONTEXT if cross else X
    mask = aj.causal(offset=context.shape[1] - 7)
    output, weights = jitted(attention)(X, CONTEXT if cross else None, mask=mask, return_weights=True)
    truth, true_weights = by_hand(
        attention, X, context, np.tril(np.ones((7, context.shape[1]), bool), context.shape[1] - 7)
    )
    np.testing.assert_allclose(output, truth, atol=1e-5)
    np.testing.assert_allclose(weights, true_weights, atol=1e-6)


def test_asking_for_weights_changes_no_bit():
    attention = MultiHeadAttention(D, N, rngs=nnx.Rngs(0), rotary=rotary)
    for x in (X, X.astype(jnp.bfloat16)):
        for call in (attention, jitted(attention)):
            output, weights = call(x, mask=aj.causal(), return_weights=True)
            assert (call(x, mask=aj.causal()) == output).all()
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


@pytest.mark.slow
def test_any_attention_fn_and_its_own_weights():
    bias = jax.random.normal(jax.random.key(5), (7, 7))
    with_bias = MultiHeadAttention(D, N, attention_fn=partial(aj.multi_head_attention, bias=bias), rngs=nnx.Rngs(0))
    plain = MultiHeadAttention(D, N, rngs=nnx.Rngs(0))
    weights, plain_weights = (jitted(attention)(X, return_weights=True)[1] for attention in (with_bias, plain))
    np.testing.assert_allclose(
        weights, jax.nn.softmax(jnp.log(plain_weights) + jnp.broadcast_to(bias, weights.shape)), atol=1e-6
    )

    foreign = MultiHeadAttention(D, N, attention_fn=_same_size_only, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jitted(foreign)(X), jitted(plain)(X), atol=1e-5)


@pytest.mark.slow
def test_rotary_makes_attention_see_distances():
    attention = jitted(MultiHeadAttention(D, N, rotary=rotary, rngs=nnx.Rngs(0)))
    near, far = (attention(X, positions=jnp.arange(7) + start) for start in (0, 500))
    np.testing.assert_allclose(near, far, atol=2e-4)
    assert not np.allclose(near, attention(X, positions=3 * jnp.arange(7)), atol=1e-2)
    np.testing.assert_array_equal(near, attention(X))
    shifted = attention(X, positions=jnp.arange(7)[None, :] + jnp.array([[0], [1], [2]]))
    np.testing.assert_allclose(near, shifted, atol=1e-5)
    assert np.allclose(attention(X, CONTEXT), attention(X, CONTEXT[:, ::-1]), atol=1e-3) is False  # order is seen
    with pytest.raises(ValueError, match="rotary="):
        MultiHeadAttention(D, N, rngs=nnx.Rngs(0))(X, positions=jnp.arange(7))


@pytest.mark.slow
def test_qk_norm_bounds_the_logits():
    attention = MultiHeadAttention(D, N, qk_norm=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        attention(X, return_weights=True)[1], attention(100 * X, return_weights=True)[1], atol=1e-3
    )
    attention.query_norm.scale[...] = jnp.arange(1.0, 7.0)
    attention.key_norm.scale[...] = jnp.arange(3.0, 0.0, -0.5)
    query, key = (
        np.asarray(layer(X), np.float64).reshape(3, 7, N, D // N) for layer in (attention.query, attention.key)
    )
    query, key = (
        x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * np.asarray(norm.scale[...], np.float64)
        for x, norm in ((query, attention.query_norm), (key, attention.key_norm))
    )
    np.testing.assert_allclose(attention(X, return_weights=True)[1], reference.weights(query, key), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_single_heads_concatenated_are_multi_head_attention(causal):
    heads = random_biases(ConcatenatedHeads(D, N, rngs=nnx.Rngs(0)))
    mask = aj.causal() if causal else None
    together = heads.to_multi_head()
    np.testing.assert_allclose(jitted(heads)(X, mask=mask), jitted(together)(X, mask=mask), atol=1e-5)
    np.testing.assert_allclose(jitted(heads)(X, CONTEXT), jitted(together)(X, CONTEXT), atol=1e-5)
    truth, _ = by_hand(together, X, X, np.tri(7, dtype=bool) if causal else None)
    np.testing.assert_allclose(jitted(heads)(X, mask=mask), truth, atol=1e-5)


@pytest.mark.slow
def test_single_head_is_the_function():
    head = random_biases(SingleHeadAttention(D, 5, rngs=nnx.Rngs(0)))
    output, weights = jitted(head)(X, CONTEXT, mask=aj.causal(offset=2), return_weights=True)
    for b in range(3):
        query, key, value = head.query(X[b]), head.key(CONTEXT[b]), head.value(CONTEXT[b])
        alone = aj.scaled_dot_product_attention(query, key, value, mask=aj.causal(offset=2))
        np.testing.assert_allclose(output[b], alone, atol=1e-6)
        np.testing.assert_allclose(weights[b], aj.attention_weights(query, key, mask=aj.causal(offset=2)), atol=1e-6)


@pytest.mark.slow
def test_dropout_acts_only_when_given_rngs():
    attention = MultiHeadAttention(D, N, dropout_rate=0.5, rngs=nnx.Rngs(0))
    same = MultiHeadAttention(D, N, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(attention(X), same(X))
    one, again, other = (attention(X, rngs=nnx.Rngs(dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert abs(float((one == 0).mean()) - 0.5) < 0.1  # the output's own dropout
    kept = one != 0  # where it is not dropped, it still differs from twice the plain output: the weights' dropout
    assert not np.allclose(one[kept], 2 * attention(X)[kept], atol=1e-3)
    with pytest.raises(ValueError, match=r"below 1, got 1\.5"):
        MultiHeadAttention(D, N, dropout_rate=1.5, rngs=nnx.Rngs(0))
    head = SingleHeadAttention(D, 5, dropout_rate=0.5, rngs=nnx.Rngs(0))
    assert (head(X, rngs=nnx.Rngs(dropout=0)) != head(X)).any()


@pytest.mark.slow
@pytest.mark.parametrize("rates", ["attention", "feed_forward"])
def test_a_block_drops_out_in_both_branches(rates):
    """Each branch alone: the other's dropout is turned off."""
    block = TransformerBlock(D, N, dropout_rate=0.5, rngs=nnx.Rngs(0))
    quiet = block.feed_forward if rates == "attention" else block.attention
    quiet.dropout.rate = 0.0
    assert (block(X, rngs=nnx.Rngs(dropout=0)) != block(X)).any()


@pytest.mark.slow
@pytest.mark.parametrize("network", [FeedForward, SwiGLU])
def test_feed_forward_networks_drop_out_their_output(network):
    feed_forward = network(D, dropout_rate=0.5, rngs=nnx.Rngs(0))
    dropped, plain = feed_forward(X, rngs=nnx.Rngs(dropout=0)), feed_forward(X)
    kept = dropped != 0
    assert abs(float(kept.mean()) - 0.5) < 0.1
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-5)


@pytest.mark.slow
def test_nan_behind_a_mask_reaches_no_parameter():
    attention = random_biases(MultiHeadAttention(D, N, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(attention)
    visible = jnp.broadcast_to(jnp.arange(9) != 4, (7, 9))

    @jax.jit
    def gradient(context):
        return jax.grad(lambda params: jnp.sum(nnx.merge(graphdef, params)(X, context, mask=visible) ** 2))(params)

    clean, poisoned = (jax.tree.leaves(gradient(CONTEXT.at[:, 4].set(value))) for value in (0.0, jnp.nan))
    for one, other in zip(clean, poisoned, strict=True):
        np.testing.assert_array_equal(one, other)


def test_modules_hold_parameters_and_nothing_else():
    model = TransformerLM(11, 7, D, N, 2, block=partial(TransformerBlock, dropout_rate=0.1), rngs=nnx.Rngs(0))
    nnx.split(model, nnx.Param)  # raises if any state is of another kind


def test_feed_forward_networks():
    plain, gated = random_biases(FeedForward(D, rngs=nnx.Rngs(0))), SwiGLU(D, rngs=nnx.Rngs(0))
    assert plain.up.kernel.shape == (D, 4 * D) and gated.up.kernel.shape == (D, 8 * D // 3)
    np.testing.assert_allclose(plain(X), plain.down(exact_gelu(plain.up(X))), atol=1e-6)
    up, gate = np.asarray(gated.up(X), np.float64), np.asarray(gated.gate(X), np.float64)
    truth = (gate / (1 + np.exp(-gate)) * up) @ np.asarray(gated.down.kernel[...], np.float64)
    np.testing.assert_allclose(gated(X), truth, atol=1e-5)


@pytest.mark.parametrize("feed_forward", [FeedForward, SwiGLU])
@pytest.mark.parametrize("norm", [partial(nnx.LayerNorm, epsilon=1e-5), nnx.RMSNorm])
def test_block_is_two_residual_branches(norm, feed_forward):
    block = random_biases(TransformerBlock(D, N, norm=norm, feed_forward=feed_forward, rngs=nnx.Rngs(0)))
    output, weights = jitted(block)(X, mask=aj.causal(), return_weights=True)
    middle = X + jitted(block.attention)(block.norm1(X), mask=aj.causal())
    np.testing.assert_allclose(output, middle + block.feed_forward(block.norm2(middle)), atol=1e-5)
    assert weights.shape == (3, N, 7, 7)


TOKENS = jax.random.randint(jax.random.key(3), (2, 7), 0, 11)


def language_model(**options):
    return TransformerLM(11, 7, D, N, 2, rngs=nnx.Rngs(0), **options)


def outcome(scan, remat):
    """Loss, attention weights and gradients of two leaves under dropout, and the logits without it."""
    model = language_model(block=partial(TransformerBlock, dropout_rate=0.3), scan=scan, remat=remat)
    graphdef, params = nnx.split(model)

    def loss(params, rngs=None):
        logits, weights = nnx.merge(graphdef, params)(TOKENS, rngs=rngs, return_weights=True)
        return jnp.sum(logits**2), weights

    def under_dropout(params):
        return loss(params, nnx.Rngs(dropout=4))

    dropped, gradient = jax.jit(jax.value_and_grad(under_dropout, has_aux=True))(params)
    slopes = gradient["tokens"]["embedding"][...], gradient["norm"]["scale"][...]
    return *dropped, *slopes, *jax.jit(loss)(params)


@pytest.mark.slow
@pytest.mark.parametrize("scan, remat", [(True, True), (True, False), (False, True)])
def test_scan_and_remat_are_the_same_model(scan, remat):
    plain = outcome(False, False)
    suite.close(outcome(scan, remat), plain, 1e-6)
    graphdef, params = nnx.split(language_model(remat=True))
    assert "remat" in str(jax.make_jaxpr(lambda params: nnx.merge(graphdef, params)(TOKENS))(params))
    assert plain[0] != plain[4]  # dropout acts, and equally: each block's pattern is its own in every variant


@pytest.mark.slow
def test_language_model_from_its_parts():
    model = random_biases(language_model())
    x = model.tokens(TOKENS) + jnp.broadcast_to(model.positions.table[...], (2, 7, D))
    for block in model.blocks:
        x = jitted(block)(x, mask=aj.causal())
    truth = model.norm(x) @ model.tokens.embedding[...].T
    logits = jitted(model)(TOKENS)
    np.testing.assert_allclose(logits, truth, atol=1e-5)
    np.testing.assert_allclose(logits[1], jitted(model)(TOKENS[1]), atol=1e-5)


@pytest.mark.slow
def test_language_model_looks_only_back():
    model = jitted(language_model())
    changed = TOKENS.at[:, 4].set((TOKENS[:, 4] + 1) % 11)
    before, after = model(TOKENS), model(changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (jnp.abs(before - after)[:, 4:].max(axis=-1) > 1e-4).all()


@pytest.mark.slow
def test_language_model_with_packed_documents():
    """Two documents in one row, kept apart by a mask, are what they are alone (their positions being the same)."""
    model = jitted(language_model(positions=None))
    packed = model(TOKENS, mask=aj.segments(jnp.array([0, 0, 0, 1, 1, 1, 1])))
    np.testing.assert_allclose(packed[:, :3], model(TOKENS[:, :3]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 3:], model(TOKENS[:, 3:]), atol=1e-5)


@pytest.mark.slow
def test_a_low_precision_model_stays_in_it():
    model = language_model()
    graphdef, params = nnx.split(model)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits, exact = jitted(nnx.merge(graphdef, low))(TOKENS), jitted(model)(TOKENS)
    assert logits.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.slow
def test_language_model_choices():
    untied = language_model(tied=False)
    assert untied.head.kernel.shape == (D, 11) and jitted(untied)(TOKENS).shape == (2, 7, 11)
    sinusoidal = language_model(positions=SinusoidalPositions)
    assert jitted(sinusoidal)(jnp.zeros((1, 20), int)).shape == (1, 20, 11)  # any length
    with pytest.raises(ValueError, match="position table of 7 rows"):
        language_model()(jnp.zeros((1, 8), int))
    turning = language_model(
        positions=None, block=partial(TransformerBlock, attention=partial(MultiHeadAttention, rotary=rotary))
    )
    assert not np.allclose(jitted(turning)(TOKENS)[:, -1], jitted(turning)(TOKENS[:, ::-1])[:, -1], atol=1e-3)
    assert isinstance(language_model(norm=nnx.RMSNorm).blocks[0].norm1, nnx.RMSNorm)


def _same_size_only(query, key, value, mask):
    return jax.nn.dot_product_attention(query, key, value)


@pytest.mark.slow
@pytest.mark.parametrize("unknown", [-1, -11, -12, -100, 11, 1000])
def test_a_token_outside_the_vocabulary_is_nan_where_it_is_seen(unknown):
    model = TransformerLM(11, 7, D, N, 2, rngs=nnx.Rngs(0))
    tokens = jnp.array([[1, 2, unknown, 3], [4, 5, 6, 10]])
    for logits in (model(tokens), nnx.jit(lambda model, tokens: model(tokens))(model, tokens)):
        np.testing.assert_array_equal(jnp.isnan(logits).all(-1), [[False, False, True, True], [False] * 4])
        np.testing.assert_array_equal(jnp.isnan(logits).any(-1), jnp.isnan(logits).all(-1))
    np.testing.assert_array_equal(model(tokens[1]), model(tokens[1].astype(jnp.uint8)))


def test_tokens_that_are_none_are_refused():
    model = TransformerLM(11, 7, D, N, 2, rngs=nnx.Rngs(0))
    for tokens, got in ((jnp.ones((2, 3)), r"float32\[2, 3\]"), (jnp.array(1), r"at least one axis .* int32\[\]")):
        with pytest.raises(TypeError, match=rf"tokens \[\*B, T\] must be integers, .*{got}"):
            model(tokens)


@pytest.mark.parametrize("build, message", [
    (lambda: MultiHeadAttention(10, 4, rngs=nnx.Rngs(0)), "embed_dim=10 must be a multiple of num_heads=4"),
    (lambda: MultiHeadAttention(24, 4, num_kv_heads=3, rngs=nnx.Rngs(0)), "num_heads=4 must be a multiple of num_kv_heads=3"),
    (lambda: ConcatenatedHeads(10, 4, rngs=nnx.Rngs(0)), "embed_dim=10"),
    (lambda: TransformerLM(11, 7, D, N, 0, rngs=nnx.Rngs(0)), "num_layers must be at least 1, got 0"),
    (lambda: MultiHeadAttention(D, N, num_kv_heads=0, rngs=nnx.Rngs(0)), "num_kv_heads must be at least 1, got 0"),
    (lambda: MultiHeadAttention(D, N, attention_fn=_same_size_only, rngs=nnx.Rngs(0))(X, return_weights=True), "return_weights=True"),
    (lambda: MultiHeadAttention(D, N, rngs=nnx.Rngs(0))(X[..., :5]), r"expected \[\*B, T, D\] with D = 24"),
])  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_modules_are_reached_from_the_package():
    assert aj.modules is modules
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        aj.nothing_of_the_kind  # noqa: B018
