"""Parity with PyTorch, and weights to and from it. Needs `pip install torch`; the package itself never does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import suite
from flax import nnx

import attention_jax as aj
from attention_jax.modules import (
    MultiHeadAttention,
    SingleHeadAttention,
    SwiGLU,
    TransformerBlock,
    from_torch,
    to_torch,
)

torch = pytest.importorskip("torch", reason="parity with PyTorch is checked where PyTorch is installed")
D, N, T = 24, 4, 7
X = np.random.default_rng(0).normal(size=(3, T, D)).astype(np.float32)


def torch_of(array):
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
def test_scaled_dot_product_attention(kind):
    query, key, value, cotangent = suite.inputs((11, 11, 4, 2, 8, 5, (3,)))
    visible = np.random.default_rng(1).random((3, 4, 11, 11)) < 0.5
    visible[..., 0] = True
    bias = np.random.default_rng(2).normal(size=(3, 4, 11, 11)).astype(np.float32)
    ours = {"none": {}, "causal": {"mask": aj.causal()}, "bool": {"mask": visible}, "float": {"bias": bias}}[kind]
    theirs = {"none": {}, "causal": {"is_causal": True}, "bool": {"attn_mask": torch_of(visible)},
              "float": {"attn_mask": torch_of(bias)}}[kind]  # fmt: skip
    q, k, v = (torch_of(x).transpose(-3, -2).requires_grad_() for x in (query, key, value))
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **theirs)
    (truth * torch_of(cotangent).transpose(-3, -2)).sum().backward()
    output, *gradients = suite.output_and_gradients(
        partial(aj.multi_head_attention, **ours), query, key, value, cotangent
    )
    np.testing.assert_allclose(output, truth.detach().transpose(-3, -2), atol=2e-6)
    for gradient, tensor in zip(gradients, (q, k, v), strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.transpose(-3, -2), atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_torch_multihead_attention(bias, fused):
    theirs = torch.nn.MultiheadAttention(D, N, bias=bias, batch_first=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    ours = from_torch(MultiHeadAttention(D, N, use_bias=bias, fused=fused, rngs=nnx.Rngs(0)), theirs.state_dict())
    blocked = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    truth, true_weights = theirs(torch_of(X), torch_of(X), torch_of(X), attn_mask=blocked, average_attn_weights=False)
    output, weights = ours(X, mask=aj.causal(), return_weights=True)
    np.testing.assert_allclose(output, truth.detach(), atol=1e-5)
    np.testing.assert_allclose(weights, true_weights.detach(), atol=1e-5)


class Separate(torch.nn.Module):
    """Self-attention as textbooks write it: four biased projections, and a causal mask kept as a buffer."""

    def __init__(self, bias=True):
        super().__init__()
        self.W_q, self.W_k, self.W_v, self.W_o = (torch.nn.Linear(D, D, bias=bias) for _ in range(4))
        self.register_buffer("mask", torch.triu(torch.ones(T, T), diagonal=1))

    def forward(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], N, -1).transpose(1, 2) for layer in (self.W_q, self.W_k, self.W_v))
        scores = (q @ k.transpose(-2, -1) / (D // N) ** 0.5).masked_fill(self.mask.bool(), -torch.inf)
        return self.W_o((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(x.shape))


class Fused(torch.nn.Module):
    """Self-attention with one projection for query, key and value, and no biases."""

    def __init__(self):
        super().__init__()
        self.qkv_proj, self.out_proj = torch.nn.Linear(D, 3 * D, bias=False), torch.nn.Linear(D, D, bias=False)

    def forward(self, x):
        q, k, v = (y.view(*x.shape[:2], N, -1).transpose(1, 2) for y in self.qkv_proj(x).chunk(3, dim=-1))
        heads = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(heads.transpose(1, 2).reshape(x.shape))


class PreNorm(torch.nn.Module):
    """A pre-norm block over one of them, with a feed-forward network in a Sequential."""

    def __init__(self, attention):
        super().__init__()
        self.ln1, self.attn, self.ln2 = torch.nn.LayerNorm(D), attention, torch.nn.LayerNorm(D)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(D, 4 * D), torch.nn.GELU(), torch.nn.Linear(4 * D, D), torch.nn.Dropout(0.1)
        )

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


def encoder_layer():
    layer = torch.nn.TransformerEncoderLayer(
        D, N, 4 * D, dropout=0.0, activation=torch.nn.functional.gelu, norm_first=True, batch_first=True
    )
    blocked = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    return layer, lambda x: layer(x, src_mask=blocked)


def pairs():
    """name: (PyTorch module, what calls it, ours)."""

    def build(theirs, ours, call=None):
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return theirs.eval(), call or theirs, ours

    rngs = nnx.Rngs(0)
    torch.manual_seed(0)
    attention, block = partial(MultiHeadAttention, D, N, rngs=rngs), partial(TransformerBlock, D, N, rngs=rngs)
    bias_free = partial(MultiHeadAttention, use_bias=False)
    layer, call = encoder_layer()
    return {
        "separate": build(Separate(), attention()),
        "separate into fused": build(Separate(), attention(fused=True)),
        "fused": build(Fused(), attention(use_bias=False, fused=True)),
        "fused into separate": build(Fused(), attention(use_bias=False)),
        "no biases into biases": build(Fused(), attention()),
        "pre-norm block": build(PreNorm(Separate()), block()),
        "pre-norm block, fused": build(PreNorm(Fused()), block(attention=partial(bias_free, fused=True))),
        "TransformerEncoderLayer": build(layer, block(), call),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", pairs())
def test_weights_to_and_from(name):
    theirs, call, ours = pairs()[name]
    truth = call(torch_of(X)).detach()
    state_dict = theirs.state_dict()
    from_torch(ours, {name: np.asarray(tensor) for name, tensor in state_dict.items()})
    np.testing.assert_allclose(ours(X, mask=aj.causal()), truth, atol=1e-5)

    back = to_torch(
        ours, {name: torch.full_like(tensor, 7) for name, tensor in state_dict.items() if "mask" not in name}
    )
    for name, tensor in back.items():
        assert torch.equal(tensor, state_dict[name]), name
    theirs.load_state_dict(back, strict=False)
    np.testing.assert_array_equal(call(torch_of(X)).detach(), truth)


def test_ours_to_a_fresh_torch_module():
    ours = MultiHeadAttention(D, N, rngs=nnx.Rngs(3))
    ours.out.bias[...] = jax.random.normal(jax.random.key(0), (D,))
    theirs = Separate().eval()
    theirs.load_state_dict(to_torch(ours, theirs.state_dict()))
    np.testing.assert_allclose(theirs(torch_of(X)).detach(), ours(X, mask=aj.causal()), atol=1e-5)
    with pytest.raises(ValueError, match="no place for the module's out bias"):
        to_torch(ours, Fused().state_dict())


@pytest.mark.slow
def test_grouped_and_single_heads_by_name():
    random = np.random.default_rng(0)
    sizes = {"q_proj": (D, D), "k_proj": (12, D), "v_proj": (12, D), "o_proj": (D, D)}
    weights = {f"layers.3.self_attn.{name}.weight": random.normal(size=size) for name, size in sizes.items()}
    grouped = MultiHeadAttention(D, N, num_kv_heads=2, use_bias=False, fused=True, rngs=nnx.Rngs(0))
    from_torch(grouped, weights)
    query, key, value = (
        (X @ weights[f"layers.3.self_attn.{name}.weight"].T).reshape(3, T, -1, D // N)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    heads = aj.multi_head_attention(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))
    truth = np.asarray(heads).reshape(3, T, D) @ weights["layers.3.self_attn.o_proj.weight"].T
    np.testing.assert_allclose(grouped(X), truth, atol=1e-4)
    for name, array in to_torch(grouped, weights).items():
        np.testing.assert_allclose(array, weights[name], rtol=1e-6)

    single = {f"W_{name}.weight": random.normal(size=(5, D)) for name in ("query", "key", "value")}
    head = from_torch(SingleHeadAttention(D, 5, use_bias=False, rngs=nnx.Rngs(0)), single)
    np.testing.assert_allclose(head.query.kernel[...], single["W_query.weight"].T, rtol=1e-6)


def test_swiglu_and_rms_norm_by_llama_names():
    block = TransformerBlock(
        D,
        N,
        norm=nnx.RMSNorm,
        feed_forward=SwiGLU,
        attention=partial(MultiHeadAttention, use_bias=False),
        rngs=nnx.Rngs(0),
    )
    names = {"input_layernorm": (D,), "post_attention_layernorm": (D,), "mlp.gate_proj": (64, D), "mlp.up_proj": (64, D),
             "mlp.down_proj": (D, 64)} | {f"self_attn.{x}_proj": (D, D) for x in "qkvo"}  # fmt: skip
    weights = {
        f"{name}.weight": np.random.default_rng(0).normal(size=size).astype(np.float32) for name, size in names.items()
    }
    from_torch(block, weights)
    np.testing.assert_array_equal(block.norm2.scale[...], weights["post_attention_layernorm.weight"])
    np.testing.assert_array_equal(block.feed_forward.gate.kernel[...], weights["mlp.gate_proj.weight"].T)
    np.testing.assert_array_equal(block.feed_forward.down.kernel[...], weights["mlp.down_proj.weight"].T)
    for name, array in to_torch(block, weights).items():
        np.testing.assert_array_equal(array, weights[name])


GOOD = {
    f"W_{x}.{kind}": np.ones((D, D) if kind == "weight" else D, np.float32)
    for x in "qkvo"
    for kind in ("weight", "bias")
}


@pytest.mark.parametrize("change, message", [
    ({"W_q.weight": None}, "no query|query weight .* nothing"),
    ({"W_q.weight": None, "W_q.bias": None}, "no query layer"),
    ({"W_q.weight": np.ones((D, D + 1), np.float32)}, r"query weight is \(24, 24\), the state dict gives \(25, 24\)"),
    ({"bottleneck.weight": np.ones((D, D))}, "'bottleneck.weight'"),
    ({"other.W_q.weight": np.ones((D, D))}, "two of query weight"),
    ({"norm1.weight": np.ones(D)}, "no place for the state dict's norm1"),
])  # fmt: skip
def test_refusals_change_nothing(change, message):
    attention = MultiHeadAttention(D, N, rngs=nnx.Rngs(0))
    before = attention.query.kernel[...], attention.out.kernel[...]
    state_dict = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        from_torch(attention, state_dict)
    assert (attention.query.kernel[...] == before[0]).all() and (attention.out.kernel[...] == before[1]).all()


def test_weights_are_copies_in_whatever_dtype():
    theirs = torch.nn.MultiheadAttention(D, N, batch_first=True)
    ours = from_torch(MultiHeadAttention(D, N, fused=True, rngs=nnx.Rngs(0)), dict(theirs.named_parameters()))
    before = np.asarray(ours(X))
    with torch.no_grad():
        theirs.out_proj.bias.add_(1.0)
    np.testing.assert_array_equal(before, ours(X))
    low = from_torch(MultiHeadAttention(D, N, rngs=nnx.Rngs(0)), theirs.to(torch.bfloat16).state_dict())
    np.testing.assert_allclose(low(X), before + 1, atol=0.1)


@pytest.mark.parametrize("given", ["W_q", "W_k", "W_v"])
def test_one_bias_of_three_finds_its_place(given):
    random = np.random.default_rng(0)
    state_dict = {f"{name}.weight": random.normal(size=(D, D)) for name in ("W_q", "W_k", "W_v", "W_o")}
    state_dict[f"{given}.bias"] = random.normal(size=D)
    fused, separate = (
        from_torch(MultiHeadAttention(D, N, fused=fused, rngs=nnx.Rngs(0)), state_dict) for fused in (True, False)
    )
    np.testing.assert_allclose(fused(X), separate(X), atol=1e-5)
    assert np.abs(fused.qkv.bias[...]).max() > 0.1


def test_norms_of_queries_and_keys_have_names():
    attention = MultiHeadAttention(D, N, qk_norm=True, use_bias=False, rngs=nnx.Rngs(0))
    attention.query_norm.scale[...] = jnp.arange(1.0, 1 + D // N)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    state_dict = {f"{name}.weight": np.zeros((D, D), np.float32) for name in names}
    with pytest.raises(ValueError, match="no place for the module's query_norm"):
        to_torch(attention, state_dict)
    state_dict |= {f"{name}.weight": np.zeros(D // N, np.float32) for name in ("q_norm", "k_norm")}
    filled = to_torch(attention, state_dict)
    other = from_torch(MultiHeadAttention(D, N, qk_norm=True, use_bias=False, rngs=nnx.Rngs(1)), filled)
    np.testing.assert_array_equal(other(X), attention(X))


def test_refusals_of_other_kinds():
    with pytest.raises(ValueError, match="use_bias=True"):
        from_torch(MultiHeadAttention(D, N, use_bias=False, rngs=nnx.Rngs(0)), GOOD)
    with pytest.raises(TypeError, match="got Linear"):
        from_torch(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), GOOD)
