"""What is said of a model's heads is what the model does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

import attention_jax as aj
from attention_jax.inspection import ablate, contributions, inspect, inspect_statistics, record
from attention_jax.modules import FeedForward, MultiHeadAttention, TransformerBlock, TransformerLM

SIZES = {"vocab_size": 23, "context_length": 16, "embed_dim": 24, "num_heads": 4, "num_layers": 3}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 13)))


def model(seed=0, attention=MultiHeadAttention, **options):
    block = partial(TransformerBlock, attention=attention)
    built = TransformerLM(**SIZES, block=block, rngs=nnx.Rngs(seed), **options)
    # as freshly made, heads would hardly differ from each other
    return nnx.merge(*[nnx.graphdef(built), jax.tree.map(lambda x: 2 * x, nnx.state(built))])


MODELS = {
    "plain": model,
    "scanned": partial(model, scan=True),
    "remat": partial(model, remat=True),
    "own head, RMSNorm": partial(model, tied=False, norm=nnx.RMSNorm),
    "grouped, rotary, no bias": partial(
        model, positions=None,
        attention=partial(MultiHeadAttention, num_kv_heads=2, use_bias=False, rotary=partial(aj.rotary_embedding, frequencies=aj.rotary_frequencies(6))),
    ),
    "alibi": partial(model, attention=partial(MultiHeadAttention, attention_fn=partial(aj.attention, score=aj.alibi(aj.alibi_slopes(4))))),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_weights_and_statistics_of_every_layer(name):
    of = MODELS[name]()
    logits, weights = of(TOKENS, return_weights=True)
    found = inspect(of, TOKENS)
    np.testing.assert_allclose(found, weights, atol=2e-5)
    assert not np.allclose(found[0], found[2], atol=0.1) and not np.allclose(found[:, :, 0], found[:, :, 1], atol=0.1)
    seen = np.broadcast_to(np.tril(np.ones((13, 13), bool)), found.shape[1:])
    statistics = inspect_statistics(of, TOKENS, top_k=2)
    for layer in range(3):
        true = reference.statistics(np.asarray(weights[layer], np.float64), seen, np.asarray(TOKENS), 2)
        for key, values in true.items():
            if key != "top_keys":  # of nearly equal weights either may come first
                np.testing.assert_allclose(
                    getattr(statistics, key)[layer], values, atol=2e-5 * max(values.max(), 1), err_msg=key
                )
    np.testing.assert_array_equal(of(TOKENS), logits)  # the model itself is as it was
    _, residual = record(of, TOKENS)
    if name in ("scanned", "remat"):  # taken apart, which XLA compiles otherwise
        np.testing.assert_allclose(of.logits(of.norm(residual)), logits, atol=1e-4)
    else:
        np.testing.assert_array_equal(of.logits(of.norm(residual)), logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_contributions_add_up_to_the_logit(name):
    of, target = MODELS[name](), jnp.array([3, 17])
    parts = contributions(of, TOKENS, target, position=-2)
    logits = of(TOKENS)[:, -2]
    np.testing.assert_allclose(parts.logit, logits[jnp.arange(2), target], atol=1e-4)
    np.testing.assert_allclose(parts.heads.sum((0, 2)) + parts.rest, parts.logit, atol=1e-4)
    assert parts.heads.shape == (3, 2, 4) and np.abs(parts.heads).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_is_what_the_embeddings_write(name):
    """In a model whose feed-forward networks and biases are silent: the other way to the same number."""
    of = MODELS[name]()
    for _, module in nnx.iter_graph(of):
        if isinstance(module, FeedForward):
            module.down.kernel[...] = jnp.zeros_like(module.down.kernel[...])
    _, residual = record(of, TOKENS)
    embedded = np.asarray(of.tokens.embedding[...][TOKENS], np.float64)
    embedded += 0 if of.positions is None else np.asarray(of.positions(13))
    embedded, residual = embedded[:, -1], np.asarray(residual, np.float64)[:, -1]
    if isinstance(of.norm, nnx.LayerNorm):
        embedded, residual = (x - x.mean(-1, keepdims=True) for x in (embedded, residual))
    scale = np.asarray(of.norm.scale[...]) / np.sqrt((residual**2).mean(-1, keepdims=True) + of.norm.epsilon)
    matrix = np.asarray(of.tokens.embedding[...] if of.head is None else of.head.kernel[...].T)
    found = contributions(of, TOKENS, jnp.array([7, 2]))
    np.testing.assert_allclose(found.rest, (embedded * scale * matrix[[7, 2]]).sum(-1), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scanned", "plain", "own head, RMSNorm"])
def test_a_contribution_is_what_the_last_layer_loses(name):
    """With the last norm's scale held, silencing a head of the last layer takes just its share, but for what the last
    feed-forward network makes of it: which is taken out here."""
    of = MODELS[name]()
    last = of.blocks if of.scan else of.blocks[-1]
    down = last.feed_forward.down
    for param in (down.kernel, down.bias):
        param[...] = param[...].at[2].set(0) if of.scan else jnp.zeros_like(param[...])
    parts = contributions(of, TOKENS, 7)
    without = ablate(of, [(2, 1)])
    (_, before), (_, after) = record(of, TOKENS), record(without, TOKENS)
    matrix = of.tokens.embedding[...] if of.head is None else of.head.kernel[...].T
    gone = (before - after)[:, -1]
    centred = before[:, -1] - (0 if isinstance(of.norm, nnx.RMSNorm) else before[:, -1].mean(-1, keepdims=True))
    gone = gone - (0 if isinstance(of.norm, nnx.RMSNorm) else gone.mean(-1, keepdims=True))
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + of.norm.epsilon)
    true = (gone * scale * np.asarray(of.norm.scale[...])[None]) @ matrix[7]
    np.testing.assert_allclose(parts.heads[2, :, 1], true, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_a_silent_head_adds_nothing(scan):
    of = model(scan=scan)
    without = ablate(of, [(0, 1), (2, 3)])
    heads, _ = record(without, TOKENS)

    def attended(x, layer, block):
        """The layer's attention, from the outputs of its heads, with those that are ablated left out."""
        output = np.array(heads[layer].output)
        for ablated, head in [(0, 1), (2, 3)]:
            if ablated == layer:
                output[:, :, head] = 0
        return (
            output.reshape(*output.shape[:2], -1) @ block.attention.out.kernel[...]
            + block.attention.out.bias[...][None, None]
        )

    blocks = (
        of.blocks
        if not scan
        else [
            nnx.merge(nnx.graphdef(of.blocks), jax.tree.map(lambda x, i=i: x[i], nnx.state(of.blocks)))
            for i in range(3)
        ]
    )
    x = of.tokens.embedding[...][TOKENS] + of.positions(13)[None]
    for layer, block in enumerate(blocks):
        x = x + attended(x, layer, block)
        x = x + block.feed_forward(block.norm2(x))
    np.testing.assert_allclose(of.logits(of.norm(x)), without(TOKENS), atol=2e-4)
    assert np.abs(of(TOKENS) - without(TOKENS)).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_a_head_at_its_mean(scan):
    def attended(model, outputs):
        """The second layer's attention, from the outputs of its heads."""
        block = model.blocks if scan else model.blocks[1]
        params = block.attention.out.kernel[...], block.attention.out.bias[...]
        kernel, bias = (np.asarray(param[1] if scan else param) for param in params)
        return outputs.reshape(2, 13, -1) @ kernel + bias

    of = model(scan=scan)
    out = (of.blocks if scan else of.blocks[1]).attention.out
    out.bias[...] = jax.random.normal(jax.random.key(1), out.bias[...].shape)
    outputs = np.array(record(of, TOKENS)[0][1].output)
    mean = outputs[:, :, 2].reshape(-1, 6).mean(0)
    outputs[:, :, 2] = mean
    true = attended(of, outputs)
    outputs[:, :, 2] = 1e3  # whatever the head now says
    np.testing.assert_allclose(attended(ablate(of, [(1, 2)], mean_over=TOKENS), outputs), true, atol=1e-4)


def test_all_heads_ablated_see_nothing():
    of = ablate(model(), [(layer, head) for layer in range(3) for head in range(4)])
    changed = of(TOKENS.at[:, 0].set(22))
    np.testing.assert_array_equal(changed[:, 1:], of(TOKENS)[:, 1:])


@pytest.mark.slow
def test_more_than_ten_layers_stay_in_order():
    of = TransformerLM(**SIZES | {"num_layers": 12}, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(inspect(of, TOKENS), of(TOKENS, return_weights=True)[1], atol=1e-6)
    parts = contributions(of, TOKENS, 3)
    np.testing.assert_allclose(parts.heads.sum((0, 2)) + parts.rest, of(TOKENS)[:, -1, 3], atol=1e-5)


@pytest.mark.slow
def test_under_jit_and_with_a_mask():
    of = model()
    graphdef, params = nnx.split(of)
    mask = aj.sliding_window(3, 0)
    found = jax.jit(lambda params: inspect(nnx.merge(graphdef, params), TOKENS, mask=mask))(params)
    np.testing.assert_allclose(found, of(TOKENS, mask=mask, return_weights=True)[1], atol=2e-5)
    assert (np.asarray(found)[..., 8, :5] == 0).all()
    assert (np.asarray(inspect_statistics(of, TOKENS, mask=mask).distance) <= 3 + 1e-5).all()


@pytest.mark.slow
def test_any_module_with_heads():
    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.one, self.other = MultiHeadAttention(24, 4, rngs=rngs), MultiHeadAttention(24, 4, rngs=rngs)

        def __call__(self, x):
            return self.other(self.one(x))

    class Watcher(Encoder):
        def __call__(self, x):
            return super().__call__(self.one(x, return_weights=True)[0])

    x = jax.random.normal(jax.random.key(0), (2, 13, 24))
    of = Encoder(nnx.Rngs(0))
    weights = inspect(of, x)
    assert inspect(Watcher(nnx.Rngs(0)), x).shape == (3, 2, 4, 13, 13)  # asking for weights is no layer
    np.testing.assert_allclose(weights[1], of.other(of.one(x), return_weights=True)[1], atol=1e-6)
    assert inspect_statistics(of, x).induction is None


@pytest.mark.slow
def test_positions_that_the_model_fixes():
    positions = jnp.arange(13) // 2, jnp.arange(13) // 2
    of = model(attention=partial(MultiHeadAttention, attention_fn=partial(aj.attention, positions=positions)))
    statistics, weights = inspect_statistics(of, TOKENS), np.asarray(inspect(of, TOKENS))
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1)
    np.testing.assert_allclose(statistics.entropy, entropy, atol=1e-4)


class Crossed(nnx.Module):
    def __init__(self, rngs):
        self.own, self.other = MultiHeadAttention(24, 4, rngs=rngs), MultiHeadAttention(24, 4, rngs=rngs)

    def __call__(self, x, context):
        return self.other(self.own(x), context)


class Jitted(nnx.Module):
    def __init__(self, rngs):
        self.attention = MultiHeadAttention(24, 4, rngs=rngs)

    def __call__(self, x):
        return nnx.jit(lambda module, x: module(x))(self.attention, x)


@pytest.mark.slow
def test_layers_of_different_lengths():
    x, context = jnp.ones((13, 24)), jnp.ones((7, 24))
    heads, residual = record(Crossed(nnx.Rngs(0)), x, context=context)
    assert [each.key.shape[-3] for each in heads] == [13, 7] and residual is None
    with pytest.raises(ValueError, match=r"differ in shape.*\(4, 13, 7\).*by record"):
        inspect(Crossed(nnx.Rngs(0)), x, context=context)


@pytest.mark.parametrize("call, message", [
    (lambda: inspect(model(), TOKENS, return_weights=True), "return_weights="),
    (lambda: inspect(model(), TOKENS, cache=model().empty_cache(16, batch=(2,))), "cache= cannot be looked at"),
    (lambda: inspect(Jitted(nnx.Rngs(0)), jnp.ones((13, 24))), "inside a jit, remat or scan"),
    (lambda: contributions(model(), TOKENS, 3, position=13), r"position must lie in -13 .. 12, got 13"),
    (lambda: contributions(model(), TOKENS, 23), "target must be a token, 0 to 22, got 23"),
    (lambda: ablate(model(), [(3, 0)]), r"heads has \(3, 0\), but the model 3 layers of 4 heads"),
    (lambda: ablate(model(), [(0, 4)]), r"heads has \(0, 4\)"),
    (lambda: ablate(MODELS["grouped, rotary, no bias"](), [(0, 1)], mean_over=TOKENS), "use_bias=True"),
    (lambda: contributions(model(norm=lambda dim, rngs: nnx.GroupNorm(dim, 2, rngs=rngs)), TOKENS, 1), "GroupNorm"),
    (lambda: inspect(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jnp.ones((2, 3))), "no MultiHeadAttention"),
    (lambda: inspect_statistics(model(attention=partial(MultiHeadAttention, attention_fn=lambda *a, **o: aj.attention(*a, **o))), TOKENS), "by inspect"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("call, message", [
    (lambda: ablate(model(), (0, 1)), r"pairs of layer and head, such as \[\(0, 3\)\]"),
    (lambda: ablate(MultiHeadAttention(24, 4, rngs=nnx.Rngs(0)), [(0, 1)]), "must be a TransformerLM, got MultiHeadAttention"),
    (lambda: contributions(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), TOKENS, 1), "must be a TransformerLM, got Linear"),
])  # fmt: skip
def test_refusals_of_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()
