"""What a wrong call says: every public function and module has its place in this table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attention_jax as aj
from attention_jax import modules
from attention_jax.generate import generate, stream
from attention_jax.inspection import contributions
from attention_jax.sampling import Sampling
from attention_jax.view.plot import plot_heads

Q, K, V = (np.ones(size, np.float32) for size in ((2, 7, 4, 8), (2, 9, 2, 8), (2, 9, 2, 5)))


X = jnp.ones((2, 5, 8))


def rngs():
    return nnx.Rngs(0)


def language_model():
    return modules.TransformerLM(5, 4, 8, 2, 1, rngs=rngs())


def cache():
    return aj.KVCache.empty(8, 2, 8, value_dim=5, batch=(2,))


def many(query=Q, key=K, value=V, **options):
    return lambda: aj.multi_head_attention(query, key, value, **options)


def one(query=Q[0, :, 0], key=K[0, :, 0], value=V[0, :, 0], **options):
    return lambda: aj.scaled_dot_product_attention(query, key, value, **options)


def traced(fn, *values):
    return lambda: jax.jit(fn)(*values)


# name: (call, error, what the message says)
REFUSED = {
    "multi_head_attention: integer query": (many(Q.astype(int)), TypeError, "query must be floating point, got int"),
    "multi_head_attention: integer inputs": (many(Q.astype(int), K.astype(int), V.astype(int)), TypeError, "query must be floating point"),
    "multi_head_attention: mixed dtypes": (many(key=jnp.bfloat16(K)), ValueError, "query float32, key bfloat16, value float32"),
    "multi_head_attention: float mask": (many(mask=np.ones((7, 9), np.float32)), TypeError, "bias="),
    "multi_head_attention: integer mask": (many(mask=np.ones((7, 9), int)), TypeError, "array != 0"),
    "attention: float mask": (lambda: aj.attention(Q, K, V, mask=np.ones((7, 9), np.float32)), TypeError, r"score=bias\(array\)"),
    "attention: the function that makes a mask": (lambda: aj.attention(Q, K, V, mask=aj.causal), TypeError, r"causal\(\), .* return: call them"),
    "attention: a word as mask": (lambda: aj.attention(Q, K, V, mask="causal"), TypeError, r"such as causal\(\), or a bool array, got 'causal'"),
    "attention: mask of examples": (lambda: aj.attention(Q, K, V, mask=np.ones((2, 9), bool)), ValueError, r"mask\[:, None, None, :\], or pass key_lengths"),
    "attention: an option it has not": (lambda: aj.attention_and_lse(Q, K, V, is_causal=True), TypeError, r"attention_and_lse\(\) got .* 'is_causal'"),
    "multi_head_attention: bool bias": (many(bias=np.ones((7, 9), bool)), TypeError, "mask="),
    "multi_head_attention: integer bias": (many(bias=np.ones((7, 9), int)), TypeError, "bias.astype"),
    "multi_head_attention: mask without a head axis": (many(mask=np.ones((2, 7, 9), bool)), ValueError, r"\[2, 4 or 1, 7, 9\].*\[..., None, :, :\]"),
    "multi_head_attention: mask [B, T, S] with B == N": (
        many(np.ones((4, 7, 4, 8), np.float32), np.ones((4, 9, 2, 8), np.float32), np.ones((4, 9, 2, 5), np.float32),
             mask=np.ones((4, 7, 9), bool)),
        ValueError, r"\[\*B, N or 1, T, S\]",
    ),
    "multi_head_attention: bias [B, T, S]": (many(bias=np.ones((2, 7, 9), np.float32)), ValueError, r"bias has shape \(2, 7, 9\)"),
    "multi_head_attention: mask of the key/value heads": (many(mask=np.ones((2, 2, 7, 9), bool)), ValueError, r"\(2, 2, 7, 9\).*4 or 1"),
    "multi_head_attention: mask transposed": (many(mask=np.ones((9, 7), bool)), ValueError, r"\[..., T, S\] = \[..., 7, 9\]"),
    "multi_head_attention: heads before length": (
        many(np.ones((2, 4, 7, 8), np.float32), np.ones((2, 4, 9, 8), np.float32), np.ones((2, 4, 9, 8), np.float32)),
        ValueError, r"swapaxes\(x, -3, -2\)",
    ),
    "multi_head_attention: heads no multiple": (many(Q[:, :, :3]), ValueError, "the 3 query heads are not a multiple of the 2 key/value heads"),
    "multi_head_attention: batches differ": (many(K[:1].repeat(3, 0)[:, :7].repeat(2, 2)), ValueError, "batch dimensions"),
    "multi_head_attention: head dims differ": (many(key=K[..., :7]), ValueError, "differ in head dim H.*query \\(2, 7, 4, 8\\), key \\(2, 9, 2, 7\\)"),
    "multi_head_attention: lengths differ": (many(value=V[:, :8]), ValueError, "key and value differ in length S or heads K"),
    "multi_head_attention: kv heads differ": (many(value=V[:, :, :1]), ValueError, "key and value differ in length S or heads K"),
    "multi_head_attention: no heads": (many(Q[0, :, 0], K[0, :, 0], V[0, :, 0]), ValueError, "needs a head axis"),
    "multi_head_attention: scale beyond all floats": (many(scale=-(10**400)), ValueError, "scale must be a number that a float can be, got an integer of 1329 bits"),
    "multi_head_attention: scale of several": (many(scale=np.ones(4)), ValueError, "scale must be one number"),
    "multi_head_attention: rate 1": (many(dropout_rate=1.0, dropout_rng=jax.random.key(0)), ValueError, "at least 0 and below 1, got 1.0"),
    "multi_head_attention: rate 1.5": (many(dropout_rate=1.5, dropout_rng=jax.random.key(0)), ValueError, "got 1.5"),
    "multi_head_attention: rate below 0": (many(dropout_rate=-0.1, dropout_rng=jax.random.key(0)), ValueError, "got -0.1"),
    "scaled_dot_product_attention: bool value": (one(value=np.ones((9, 5), bool)), TypeError, "value must be floating point, got bool"),
    "scaled_dot_product_attention: heads to the one-head function": (one(Q, K, V), ValueError, "multi_head_attention"),
    "scaled_dot_product_attention: one head, head dims": (one(key=K[0, :, 0, :7]), ValueError, "differ in head dim H"),
    "scaled_dot_product_attention: one head, lengths": (one(value=V[0, :8, 0]), ValueError, "differ in length S"),
    "scaled_dot_product_attention: one head, mask of many": (one(mask=np.ones((1, 7, 9), bool)), ValueError, r"expected \[T, S\] = \[7, 9\]"),
    "scaled_dot_product_attention: rate beyond all floats": (one(dropout_rate=-(10**400), dropout_rng=jax.random.key(0)), ValueError, "below 1, got -inf"),
    "scaled_dot_product_attention: rate NaN": (one(dropout_rate=np.nan, dropout_rng=jax.random.key(0)), ValueError, "got nan"),
    "multi_head_attention: several keys": (many(dropout_rate=0.1, dropout_rng=jax.random.split(jax.random.key(0), 2)), TypeError, r"one key, .* got key<fry>\[2\]: map"),
    "multi_head_attention: numbers as key": (many(dropout_rate=0.1, dropout_rng=np.zeros(2)), TypeError, r"one key, .* got float64\[2\]"),
    "scaled_dot_product_attention: rate without a key": (one(dropout_rate=0.1), ValueError, "dropout_rng"),
    "scaled_dot_product_attention: traced rate": (traced(lambda r: one(dropout_rate=r, dropout_rng=jax.random.key(0))(), 0.1), TypeError, "must be static"),
    "mask_from_array: the same within a tree": (
        many(np.ones((4, 7, 4, 8), np.float32), np.ones((4, 9, 2, 8), np.float32), np.ones((4, 9, 2, 5), np.float32),
             mask=aj.mask_from_array(np.ones((4, 7, 9), bool)) & aj.key_lengths(np.ones(4, int))),
        ValueError, "different batch dimensions",
    ),
    "mask_from_array: a word": (lambda: aj.mask_from_array("causal"), TypeError, r"such as causal\(\), or a bool array, got 'causal'"),
    "mask_from_array: vector as mask": (lambda: aj.mask_from_array(np.ones(3, bool)), ValueError, r"\[T, S\] or \[\*B"),
    "key_lengths: of another batch": (many(mask=aj.key_lengths(np.ones(3, int))), ValueError, r"\(3, 1, 7, 9\), made by key_lengths\(int..\[3\]\), .*\[2, 4 or 1"),
    "key_lengths: float lengths": (lambda: aj.key_lengths(np.ones(2)), TypeError, r"key_lengths\(lengths\) must be integers, got float.*\[2\]"),
    "key_lengths: nothing": (lambda: aj.key_lengths(None), TypeError, "must be integers, got None"),
    "key_lengths: which int32 would make 3": (lambda: aj.key_lengths(np.array([2**32 + 3])), ValueError, "in -2147483648 .. 2147483647, as int32 in JAX, got 4294967299 .. 4294967299"),
    "segments: which int32 would make one": (lambda: aj.segments(np.array([1, 2**32 + 1])), ValueError, r"segments\(query_ids\) must lie in .* got 1 .. 4294967297.* jax_enable_x64"),
    "segments: keys of a list, beyond int64 too": (lambda: aj.segments([0, 1], [-(2**70), 0]), ValueError, rf"segments\(key_ids\) must lie in .* got -{2**70} .. 0"),
    "segments: of another length": (many(mask=aj.segments(np.ones(7, int), np.ones(8, int))), ValueError, r"\(7, 8\).*\(7, 9\)"),
    "segments: of dtypes that JAX has none for both of": (lambda: aj.segments(jnp.array([2**32 - 1], jnp.uint32), jnp.array([-1])), TypeError, "of one dtype, got uint32 and int32, which JAX compares as int32"),
    "segments: of two batches": (lambda: aj.segments(np.ones((2, 3), int), np.ones(3, int)), ValueError, "same batch dimensions"),
    "causal: T != S": (many(mask=aj.causal()), ValueError, "offset=0 .* or offset=2"),
    "causal: traced offset": (traced(lambda o: one(mask=aj.causal(offset=o))(), 1), TypeError, "offset.*must be static"),
    "causal: `and` of masks": (lambda: aj.causal() and aj.prefix(1), TypeError, "`&`, `|` and `~`".replace("|", r"\|")),
    "causal: `not` of a mask": (lambda: not aj.causal(), TypeError, "no truth value"),
    "sliding_window: T != S": (many(mask=aj.sliding_window(2, 0)), ValueError, "offset=0 .* or offset=2"),
    "sliding_window: traced window": (traced(lambda w: one(mask=aj.sliding_window(w, 0, offset=0))(), 1), TypeError, "left.*must be static"),
    "sliding_window: below 0": (lambda: aj.sliding_window(-1, 0), ValueError, "left.*at least 0"),
    "sliding_window: fractional window": (lambda: aj.sliding_window(1.5, 0), TypeError, "must be an integer"),
    "prefix: traced prefix": (traced(lambda n: one(mask=aj.prefix(n))(), 1), TypeError, "prefix.*must be static"),
    "mask_from_function: function not bool": (many(mask=aj.mask_from_function(lambda t, s: t - s)), TypeError, "must return bool"),
    "mask_from_function: function of too many": (many(mask=aj.mask_from_function(lambda b, h, t, s: t > s)), TypeError, r"called with \(t, s\), and takes \(b, h, t, s\)"),
    "mask_from_function: shape": (many(mask=aj.mask_from_function(lambda t, s: (t > s)[None])), ValueError, r"one number for each pair, \[7, 9\], got \[1, 7, 9\]"),
    **{
        f"score_from_function: {name}, {implementation}": (
            lambda fn=fn, i=implementation: aj.attention(Q, K, V, score=aj.score_from_function(fn), implementation=i), error, words,
        )
        for implementation in ("reference", "blockwise")
        for name, fn, error, words in (
            ("bool", lambda logit, head, t, s: t >= s, TypeError, "must return real logits, got bool.*mask_from_function"),
            ("complex", lambda logit, head, t, s: logit * 1j, TypeError, "must return real logits, got complex64"),
            ("nothing", lambda logit, head, t, s: None, TypeError, "must return an array, got NoneType"),
            ("several", lambda logit, head, t, s: (logit, logit), TypeError, "must return an array, got tuple"),
            ("shape", lambda logit, head, t, s: logit[:, :2], ValueError, r"one number for each pair, \[7, 9\], got \[7, 2\]"),
            ("of another's", lambda logit, b, h, t, s: logit, TypeError, r"called with \(logit, head, t, s\), and takes \(logit, b, h, t, s\)"),
        )
    },
    "score_from_function: of NumPy": (
        lambda: aj.attention(Q, K, V, score=lambda logit, head, t, s: logit + np.arange(99.0)[t - s]),
        TypeError, "the score function <lambda> is traced, and gave NumPy an array that is: use jax.numpy, such as jnp.asarray",
    ),
    "mask_from_function: of NumPy": (
        lambda: aj.attention(Q, K, V, mask=aj.mask_from_function(lambda t, s: np.ones((9, 9), bool)[t, s])),
        TypeError, "is traced, and gave NumPy an array that is: use jax.numpy",
    ),
    "split_heads: traced heads": (traced(lambda n: aj.split_heads(jnp.ones((3, 4)), n), 2), TypeError, "num_heads must be static"),
    "split_heads: no heads to split into": (lambda: aj.split_heads(jnp.ones((3, 4)), 0), ValueError, "num_heads must be at least 1"),
    "alibi_slopes: traced slopes": (traced(aj.alibi_slopes, 2), TypeError, "must be static"),
    "learned_positions: traced position": (traced(lambda T: aj.learned_positions(jnp.ones((4, 2)), T), 1), TypeError, "positions.*must be static"),
    "learned_positions: position beyond the table": (lambda: aj.learned_positions(jnp.ones((4, 2)), 5), ValueError, "4 rows"),
    "sinusoidal_positions: traced length": (traced(lambda n: aj.sinusoidal_positions(n, 4), 3), TypeError, "positions.*must be static"),
    "sinusoidal_positions: odd sinusoid": (lambda: aj.sinusoidal_positions(3, 5), ValueError, "even"),
    "linear_scaling: traced factor": (traced(lambda f: aj.linear_scaling(jnp.ones(2), factor=f), 2.0), TypeError, "static factor"),
    "linear_scaling: scaling below 1": (lambda: aj.linear_scaling(jnp.ones(2), factor=0.5), ValueError, "factor >= 1"),
    "rotary_embedding: integer to rotary": (lambda: aj.rotary_embedding(jnp.ones((3, 1, 4), int), jnp.arange(3), jnp.ones(2)), TypeError, "x must be floating"),
    "rotary_embedding: rotary wider than the head": (
        lambda: aj.rotary_embedding(jnp.ones((3, 1, 4)), jnp.arange(3), jnp.ones(3)), ValueError, "R <= H",
    ),
    "rotary_embedding: rotary positions": (
        lambda: aj.rotary_embedding(jnp.ones((3, 1, 4)), jnp.arange(2), jnp.ones(2)), ValueError, r"positions \(2,\)",
    ),
    "rotary_frequencies: odd rotary": (lambda: aj.rotary_frequencies(5), ValueError, "even"),
    "project: kernel": (lambda: aj.project(jnp.ones((3, 4)), jnp.ones((5, 6))), ValueError, r"x \(3, 4\), kernel \(5, 6\)"),
    "attention: heads before length": (
        lambda: aj.attention(*(np.ones((2, 4, n, 8), np.float32) for n in (7, 9, 9))), ValueError, r"swapaxes\(x, -3, -2\)",
    ),
    "attention: an array as score": (lambda: aj.attention(Q, K, V, score=np.ones((7, 9))), TypeError, r"score=bias\(array\)"),
    "attention_and_lse: implementation": (
        lambda: aj.attention_and_lse(Q, K, V, implementation="flash"), ValueError, "None or one of 'reference', 'blockwise', 'cudnn', .* got 'flash'",
    ),
    "explain: mixed dtypes": (lambda: aj.explain(Q, jnp.bfloat16(K), V), ValueError, "query float32, key bfloat16, value float32"),
    "attention_weights: rows": (lambda: aj.attention_weights(Q, K, rows=[7]), ValueError, "rows must lie in -7 .. 6, got 7"),
    "causal_attention: T != S": (
        lambda: aj.causal_attention(Q[0, :, 0], K[0, :, 0], V[0, :, 0]), ValueError, "offset=0 .* or offset=2",
    ),
    "merge_heads: no heads": (lambda: aj.merge_heads(jnp.ones(3)), ValueError, r"x \(3,\): expected \[\*B, T, N, H\]"),
    "split_heads: a scalar": (lambda: aj.split_heads(jnp.ones(()), 2), ValueError, r"x \(\)"),
    "Mask.place: floats": (lambda: aj.causal().place([0.5], [1]), TypeError, r"queries \[\*B, T\] must be integers, got float32\[1\]"),
    "Mask.place: of another batch": (
        lambda: (aj.causal() & aj.key_lengths(np.ones(3, int))).place(np.ones((2, 4), int), np.ones((2, 5), int)).to_array(4, 5),
        ValueError, r"positions for batch dimensions \[2\], and arrays for \[\[3\]\]",
    ),
    "Mask.place: sizes": (many(mask=aj.causal().place(range(7), range(8))), ValueError, "placed at 7 query and 8 key positions, expected T = 7 and S = 9"),
    "Mask.place: an array": (
        many(mask=aj.mask_from_array(np.ones((7, 9), bool)).place(range(7), range(9))), ValueError, "go by the index of queries and keys",
    ),
    "Score.place: heads": (many(score=aj.alibi(np.ones(3)).place(range(7), range(9))), ValueError, r"slopes \(3,\), expected one a head, \(4,\)"),
    "Mask.place: lengths with fewer batch dimensions than positions": (
        lambda: aj.attention(*[np.ones((3, 3, 5, 1, 4))] * 3, mask=aj.key_lengths([1, 3, 5]), positions=[np.ones((3, 3, 5), int)] * 2),
        ValueError, r"positions for batch dimensions \[3, 3\], and arrays for \[\[3\]\]",
    ),
    "Mask.place: positions with fewer batch dimensions than lengths": (
        lambda: (aj.causal() & aj.key_lengths(np.ones((3, 3), int))).place(*[np.ones((3, 5), int)] * 2).to_array(5, 5),
        ValueError, r"positions for batch dimensions \[3\], and arrays for \[\[3, 3\]\]",
    ),
    "Score.place: positions of another batch": (
        many(score=aj.alibi(np.ones(4)).place(np.ones((3, 7), int), np.ones((3, 9), int))), ValueError, r"Alibi is placed at positions for batch dimensions \[3\], expected \*B = \[2\]",
    ),
    "Score.place: positions with fewer batch dimensions": (
        lambda: aj.attention(*[np.ones((3, 3, 5, 1, 4))] * 3, score=aj.alibi(np.ones(1)).place(*[np.ones((3, 5), int)] * 2)),
        ValueError, r"batch dimensions \[3\], expected \*B = \[3, 3\]",
    ),
    "Score.place: positions of a batch that is not there": (
        lambda: aj.attention(Q[0], K[0], V[0], score=aj.alibi(np.ones(4)).place(np.ones((2, 7), int), np.ones((2, 9), int))),
        ValueError, r"batch dimensions \[2\], expected \*B = \[\]",
    ),
    "attention: a word as dropout": (many(dropout_rate="0.1", dropout_rng=jax.random.key(0)), TypeError, "dropout_rate must be a number, got '0.1'"),
    "Score.place: a bias": (many(score=aj.bias(np.ones((7, 9))).place(range(7), range(9))), ValueError, "Bias holds arrays that go by the index"),
    "mask_from_function: no function": (lambda: aj.mask_from_function(3), TypeError, "wants a function .* got 3"),
    "Mask: truth value": (lambda: bool(aj.causal() & aj.prefix(1)), TypeError, "no truth value"),
    "Score: not one": (lambda: aj.soft_cap(1.0) >> 3, TypeError, "a score is made by .* got 3"),
    "bias: [B, T, S]": (lambda: aj.attention(Q, K, V, score=aj.bias(np.zeros((2, 7, 9)))), ValueError, "give it a head axis"),
    "bias: integers": (lambda: aj.attention(Q, K, V, score=aj.bias(np.zeros((7, 9), int))), TypeError, "must be floating point"),
    "alibi: T != S": (lambda: aj.attention(Q, K, V, score=aj.alibi(np.ones(4))), ValueError, "offset=0 .* or offset=2"),
    "alibi: slopes": (
        lambda: aj.attention(Q, K, V, score=aj.alibi(np.ones(2), offset=0)), ValueError, r"slopes \(2,\), expected one a head, \(4,\)",
    ),
    "relative_bias: heads": (
        lambda: aj.attention(Q, K, V, score=aj.relative_bias(np.ones((8, 2)), offset=0)), ValueError, r"table \(8, 2\).*N = 4",
    ),
    "relative_bias: few buckets": (
        lambda: aj.attention(Q, K, V, score=aj.relative_bias(np.ones((1, 4)), offset=0)), ValueError, "at least 2 buckets, got 1",
    ),
    "relative_bias: distance": (lambda: aj.relative_bias(np.ones((8, 4)), max_distance=1), ValueError, "max_distance.* at least 2, got 1"),
    "relative_bias: no room for wide distances": (
        lambda: aj.attention(Q, K, V, score=aj.relative_bias(np.ones((32, 4)), max_distance=16, offset=0)), ValueError, "more than 16, the distances",
    ),
    "alibi: complex": (lambda: aj.alibi(np.ones(4, complex)), TypeError, r"alibi\(slopes\) must be real, got complex"),
    "relative_bias: bool": (lambda: aj.relative_bias(np.ones((8, 4), bool)), TypeError, r"relative_bias\(table\) must be real, got bool"),
    "soft_cap: complex": (lambda: aj.soft_cap(30j), TypeError, r"soft_cap\(cap\) must be real, got complex"),
    "add_sinks: complex": (lambda: aj.add_sinks(Q, Q[..., 0].T, np.ones(4, complex)), TypeError, "sinks must be real, got complex"),
    "soft_cap: infinite": (lambda: aj.soft_cap(np.inf), ValueError, "one positive finite number, in float32 too, got inf"),
    "causal: beyond all positions": (lambda: aj.causal(offset=2**31 - 1), ValueError, "536870912, got 2147483647"),
    "attention: a function as mask": (lambda: aj.attention(Q, K, V, mask=lambda t, s: t > s), TypeError, r"mask_from_function\(fn\)"),
    "attention_statistics: one array of positions": (lambda: aj.attention_statistics(Q, K, positions=np.arange(7)), TypeError, "a pair"),
    "attention: positions of nothing": (lambda: aj.attention(Q, K, V, positions=(None, np.arange(9))), TypeError, "positions of queries .* must be integers, got None"),
    "attention: positions of other batches": (
        lambda: aj.attention(Q, K, V, positions=(np.ones((2, 7), int), np.ones((3, 9), int))), ValueError, r"with the same \*B; got int\d+\[2, 7\] and int\d+\[3, 9\]",
    ),
    "attention: positions of another length": (
        lambda: aj.attention(Q, K, V, positions=(np.arange(5), np.arange(9))), ValueError,
        r"positions must be \[T\] = \[7\] and \[S\] = \[9\], or \[\*B, T\] = \[2, 7\] and \[\*B, S\] = \[2, 9\]; got int\d+\[5\] and int\d+\[9\]",
    ),
    "attention: positions of another batch": (
        lambda: aj.attention(Q, K, V, positions=(np.ones((3, 7), int), np.ones((3, 9), int))), ValueError, r"positions must be .* got int\d+\[3, 7\]",
    ),
    "explain: a kernel that cannot": (lambda: aj.explain(Q, K, V, score=aj.soft_cap(3.0), implementation="cudnn"), NotImplementedError, "cudnn"),
    "attention_and_lse: a kernel that cannot": (lambda: aj.attention_and_lse(Q, K, V, implementation="cudnn"), NotImplementedError, "cudnn"),
    "causal: offsets": (lambda: aj.causal(offset=jnp.array([1, 2])), TypeError, r"causal\(offset=\) must be one integer, got int\d+\[2\]: it is the same for all examples; what differs goes by positions="),
    "prefix: of no integer": (lambda: aj.prefix(jnp.array(1.0)), TypeError, r"must be one integer, got float32\[\]"),
    "KVCache.empty: padding of no batch": (
        lambda: aj.KVCache.empty(4, 2, 8, padding=jnp.array([1, 2])), ValueError, r"padding must be \[\*B\] = \[\], as batch= says, got \[2\]",
    ),
    "attention: one array of positions": (lambda: aj.attention(Q, K, V, positions=np.arange(7)), TypeError, "a pair, those of queries and those of keys, got ndarray"),
    "attention: no rate": (many(dropout_rate=None), TypeError, "dropout_rate must be a number, got None: pass 0.0"),
    "attention: a number as key": (many(dropout_rate=0.5, dropout_rng=0), TypeError, r"jax.random.key\(0\), got 0"),
    "attention: a complex scale": (many(scale=1j), TypeError, "scale must be real, got complex64"),
    "attention: text": (lambda: aj.attention("a", K, V), TypeError, "query must be an array, got 'a'"),
    "attention: lists of unequal lengths": (lambda: aj.attention(Q, [[1.0], [1.0, 2.0]], V), TypeError, r"key must be an array, got \[\[1.0\], \[1.0, 2.0\]\]"),
    "attention: positions beyond int32": (
        lambda: aj.attention(Q, Q, Q, positions=(np.arange(7, dtype=np.uint32) + np.uint32(3e9),) * 2), ValueError, "positions of queries .* must be at most 2147483647, got 3000000006",
    ),
    "causal: and None": (lambda: aj.causal() & None, TypeError, "a mask is one such as causal.*, got None"),
    "alibi: None": (lambda: aj.alibi(None), TypeError, r"alibi\(slopes\) must be an array, got None"),
    "relative_bias: text as a bool": (lambda: aj.relative_bias(np.ones((8, 4)), bidirectional="no"), TypeError, r"bidirectional=\) must be True or False, got 'no'"),
    "Mask.to_array: below 0": (lambda: aj.causal().to_array(-1, -1), ValueError, "T must be at least 0, got -1"),
    "Mask.to_array: halves": (lambda: aj.causal().to_array(3, 3.5), TypeError, "S must be an integer, got 3.5"),
    "attention_statistics: a bool as lse": (lambda: aj.attention_statistics(Q, K, lse=np.ones((2, 4, 7), bool)), TypeError, "lse must be real, got bool"),
    "attention: text as scale": (many(scale="float32"), TypeError, "scale must be one number, got 'float32'"),
    "attention: a bool as scale": (many(scale=True), TypeError, "scale must be real, got bool"),
    "soft_cap: 0": (lambda: aj.soft_cap(0.0), ValueError, "one positive finite number, in float32 too, got 0.0"),
    "soft_cap: several": (lambda: aj.soft_cap(np.ones(3)), ValueError, r"one positive finite number, in float32 too, got \(3,\)"),
    "score_from_function: no function": (lambda: aj.score_from_function(3), TypeError, "a score is made by .* got 3"),
    "add_sinks: sinks": (
        lambda: aj.add_sinks(jnp.ones((2, 7, 4, 5)), jnp.ones((2, 4, 7)), jnp.ones(3)), ValueError, r"sinks \[N\]; got .*sinks \(3,\)",
    ),
    "add_sinks: no heads": (lambda: aj.add_sinks([1.0, 2.0], [1.0], [1.0]), ValueError, r"output \(2,\), lse \(1,\), sinks \(1,\)"),
    "ntk_scaling: below 1": (lambda: aj.ntk_scaling(jnp.ones(2), factor=0.5), ValueError, "factor >= 1.* got 0.5"),
    "yarn_scaling: below 1": (lambda: aj.yarn_scaling(jnp.ones(2), factor=0.5, original_length=9), ValueError, "factor >= 1.* got 0.5"),
    "yarn_amplitude: below 1": (lambda: aj.yarn_amplitude(0.5), ValueError, "factor >= 1.* got 0.5"),
    "llama3_scaling: below 1": (lambda: aj.llama3_scaling(jnp.ones(2), factor=0.5, original_length=9), ValueError, "factor >= 1.* got 0.5"),
    "llama3_scaling: no context": (lambda: aj.llama3_scaling(jnp.ones(2), factor=2, original_length=0), ValueError, r"original_length=\) must be at least 1, got 0"),
    "yarn_scaling: no context": (lambda: aj.yarn_scaling(jnp.ones(2), factor=2, original_length=0), ValueError, r"original_length=\) must be at least 1, got 0"),
    "sinusoidal_positions: half positions": (lambda: aj.sinusoidal_positions([0.5, 1.0], 4), TypeError, "must be integers, got float32"),
    "MultiHeadAttention: heads in words": (lambda: modules.MultiHeadAttention(8, 4, num_kv_heads="2", rngs=rngs()), TypeError, "num_kv_heads must be an integer, got '2'"),
    "MultiHeadAttention: 2.0 heads": (lambda: modules.MultiHeadAttention(8, 4, num_kv_heads=2.0, rngs=rngs()), TypeError, "num_kv_heads must be an integer, got 2.0"),
    "SingleHeadAttention: no channels": (lambda: modules.SingleHeadAttention(8, 0, rngs=rngs()), ValueError, "head_dim must be at least 1, got 0"),
    "FeedForward: no channels": (lambda: modules.FeedForward(0, rngs=rngs()), ValueError, "embed_dim must be at least 1, got 0"),
    "SwiGLU: no channels": (lambda: modules.SwiGLU(0, rngs=rngs()), ValueError, "embed_dim must be at least 1, got 0"),
    "TransformerLM: a context in words": (
        lambda: modules.TransformerLM(5, "a", 8, 2, 1, positions=None, rngs=rngs()), TypeError, "context_length must be an integer, got 'a'",
    ),
    "project_fused: no heads of keys": (lambda: aj.project_fused(X, jnp.ones((8, 16)), num_heads=4, num_kv_heads=0), ValueError, "num_kv_heads must be at least 1, got 0"),
    "project_fused: kernel": (lambda: aj.project_fused(X, jnp.ones((7, 12)), num_heads=4), ValueError, r"x \(2, 5, 8\), kernel \(7, 12\)"),
    "project_separate: kernel": (
        lambda: aj.project_separate(X, X, [jnp.ones((7, 8))] * 3, num_heads=4), ValueError, r"x \(2, 5, 8\), kernel \(7, 8\)",
    ),
    "attention_statistics: float tokens": (lambda: aj.attention_statistics(Q, Q, tokens=Q[..., 0, 0]), TypeError, "tokens must be integers"),
    "attention_statistics: tokens beyond int32": (lambda: aj.attention_statistics(Q, Q, tokens=np.full((2, 7), -(2**32))), ValueError, "tokens must lie in .* got -4294967296 .. -4294967296"),
    "attention_statistics: tokens of other lengths": (lambda: aj.attention_statistics(Q, K, tokens=np.ones((2, 9), int)), ValueError, "T = 7 queries and S = 9 keys"),
    "AttentionStatistics: too few fields": (lambda: aj.AttentionStatistics(Q), TypeError, "missing"),
    "ring_attention: lengths that cannot be cut": (lambda: aj.ring_attention(Q, Q, Q, mesh=jax.sharding.Mesh(jax.devices()[:2], ("context",))), ValueError, "multiples of the 2 devices"),
    "ring_attention: another axis": (lambda: aj.ring_attention(Q, Q, Q, mesh=jax.sharding.Mesh(jax.devices()[:1], ("data",))), ValueError, "axis must be one of the mesh's"),
    "balanced_order: lengths that cannot be cut": (lambda: aj.balanced_order(10, 2), ValueError, "multiple of 2 x 2"),
    "balanced_order: no device": (lambda: aj.balanced_order(8, 0), ValueError, r"parts\) must be at least 1, got 0"),
    "balanced_order: a length that is no integer": (lambda: aj.balanced_order(8.0, 2), TypeError, r"length\) must be an integer, got 8.0"),
    "KVCache.positions: half a token": (lambda: cache().positions(1.5), TypeError, r"positions\(T\) must be an integer, got 1.5"),
    "KVCache: no room": (lambda: aj.KVCache.empty(0, 2, 4), ValueError, "capacity must be at least 1, got 0"),
    "KVCache.empty: a number as batch": (lambda: aj.KVCache.empty(8, 2, 4, batch=3), TypeError, r"a tuple of the batch dimensions, \(\) or \(3,\), got 3"),
    "KVCache.empty: half a batch": (lambda: aj.KVCache.empty(8, 2, 4, batch=(0.5,)), TypeError, "batch must be an integer, got 0.5"),
    "KVCache.empty: no heads": (lambda: aj.KVCache.empty(8, 0, 4), ValueError, "num_kv_heads must be at least 1, got 0"),
    "KVCache.empty: half a channel": (lambda: aj.KVCache.empty(8, 2, 4.5), TypeError, "head_dim must be an integer, got 4.5"),
    "KVCache.empty: half a channel of values": (lambda: aj.KVCache.empty(8, 2, 4, value_dim=0.5), TypeError, "value_dim must be an integer, got 0.5"),
    "KVCache.empty: integers": (lambda: aj.KVCache.empty(8, 2, 4, dtype=int), TypeError, "dtype must be floating point, got int"),
    "KVCache: overrun": (lambda: cache().append(K, V), ValueError, "9 more tokens on the 0 it holds do not fit in a capacity of 8"),
    "KVCache: more at once than the capacity": (
        lambda: aj.KVCache.empty(8, 2, 8, padding=3).append(jnp.ones((9, 2, 8)), jnp.ones((9, 2, 8))), ValueError, "9 more tokens on the 0 it holds do not fit in a capacity of 8",
    ),
    "KVCache: more than a ring": (
        lambda: aj.KVCache.empty(8, 2, 8, value_dim=5, batch=(2,), ring=True).append(K, V), ValueError, "9 more tokens .* a capacity of 8",
    ),
    "KVCache: a ring too small for the window": (
        lambda: aj.KVCache.empty(8, 2, 8, ring=True).check_mask(aj.causal() & aj.sliding_window(7, 0), 2), ValueError, "which asks for 9",
    ),
    "KVCache: a ring without a window": (
        lambda: aj.KVCache.empty(8, 2, 8, ring=True).check_mask(aj.causal(), 1), ValueError, "which sees all that was read",
    ),
    "KVCache: heads": (lambda: cache().append(K[:, :2, :1], V[:, :2]), ValueError, r"key has float32\[2, 2, 1, 8\].*\[2, 'T', 2, 8\]"),
    "KVCache: dtype": (lambda: cache().append(jnp.bfloat16(K[:, :2]), V[:, :2]), ValueError, "key has bfloat16.*same dtype"),
    "modules.SingleHeadAttention: D": (lambda: modules.SingleHeadAttention(9, 4, rngs=rngs())(X), ValueError, r"x has shape \(2, 5, 8\), expected \[\*B, T, D\] with D = 9"),
    "modules.SingleHeadAttention: context": (lambda: modules.SingleHeadAttention(8, 4, rngs=rngs())(X, X[..., :7]), ValueError, r"context has shape \(2, 5, 7\)"),
    "modules.MultiHeadAttention: a vector": (lambda: modules.MultiHeadAttention(8, 2, rngs=rngs())(X[0, 0]), ValueError, r"x has shape \(8,\), expected \[\*B, T, D\] with D = 8"),
    "modules.MultiHeadAttention: context": (lambda: modules.MultiHeadAttention(8, 2, rngs=rngs())(X, X[..., :7]), ValueError, r"context has shape \(2, 5, 7\)"),
    "modules.SingleHeadAttention: rate": (lambda: modules.SingleHeadAttention(8, 4, dropout_rate=2.0, rngs=rngs()), ValueError, "below 1, got 2.0"),
    "modules.ConcatenatedHeads: heads": (lambda: modules.ConcatenatedHeads(8, 3, rngs=rngs()), ValueError, "embed_dim=8 must be a multiple of num_heads=3"),
    "modules.MultiHeadAttention: heads": (lambda: modules.MultiHeadAttention(8, 3, rngs=rngs()), ValueError, "embed_dim=8 must be a multiple of num_heads=3"),
    "modules.MultiHeadAttention: kv heads": (
        lambda: modules.MultiHeadAttention(8, 4, num_kv_heads=3, rngs=rngs()), ValueError, "num_heads=4 must be a multiple of num_kv_heads=3",
    ),
    "modules.MultiHeadAttention: positions": (
        lambda: modules.MultiHeadAttention(8, 4, rngs=rngs())(X, positions=jnp.arange(5)), ValueError, "build the module with rotary=",
    ),
    "modules.MultiHeadAttention: cache and context": (
        lambda: modules.MultiHeadAttention(8, 4, rngs=rngs())(X, X, cache=modules.MultiHeadAttention(8, 4, rngs=rngs()).empty_cache(9, batch=(2,))),
        ValueError, "cache= goes with self-attention alone",
    ),
    "modules.MultiHeadAttention: fused, of two inputs": (
        lambda: modules.MultiHeadAttention(8, 4, fused=True, rngs=rngs())(X, X), ValueError, "build with fused=False",
    ),
    "modules.FeedForward: D": (lambda: modules.FeedForward(9, rngs=rngs())(X), ValueError, r"x \(2, 5, 8\), kernel \(9, 36\)"),
    "modules.SwiGLU: D": (lambda: modules.SwiGLU(9, rngs=rngs())(X), ValueError, r"x \(2, 5, 8\), kernel \(9, 24\)"),
    "modules.LearnedPositions: too long": (lambda: modules.LearnedPositions(4, 8, rngs=rngs())(5), ValueError, "4 rows"),
    "modules.SinusoidalPositions: odd": (lambda: modules.SinusoidalPositions(4, 7, rngs=rngs())(5), ValueError, "even"),
    "modules.TransformerBlock: D": (lambda: modules.TransformerBlock(16, 2, rngs=rngs())(X), ValueError, r"x has shape \(2, 5, 8\).* D = 16"),
    "modules.TransformerLM: layers": (lambda: modules.TransformerLM(5, 4, 8, 2, 0, rngs=rngs()), ValueError, "num_layers must be at least 1"),
    "modules.TransformerLM: too long": (
        lambda: modules.TransformerLM(5, 4, 8, 2, 1, rngs=rngs())(jnp.zeros((2, 5), int)), ValueError, "4 rows",
    ),
    "modules.TransformerLM: positions by name": (
        lambda: modules.TransformerLM(5, 4, 8, 2, 1, positions="rotary", rngs=rngs()), TypeError, "LearnedPositions, or be None, got 'rotary'; rotary ones",
    ),
    "modules.MultiHeadAttention: a number for random streams": (
        lambda: modules.MultiHeadAttention(8, 4, dropout_rate=0.1, rngs=rngs())(X, rngs=0), TypeError, r"rngs must be nnx.Rngs\(dropout=...\), got 0",
    ),
    "modules.TransformerLM: positions of nothing": (
        lambda: modules.TransformerLM(5, 4, 8, 2, 1, positions=None, rngs=rngs())(jnp.zeros((2, 3), int), positions=jnp.arange(3)),
        ValueError, "this model has neither",
    ),
    "modules.LearnedPositions: beyond the table": (
        lambda: modules.LearnedPositions(4, 8, rngs=rngs())(np.array([2, 4])), ValueError, "positions 2 to 4 do not fit",
    ),
    "modules.from_torch: another module": (lambda: modules.from_torch(modules.FeedForward(8, rngs=rngs()), {}), TypeError, "got FeedForward"),
    "modules.to_torch: another module": (lambda: modules.to_torch(modules.FeedForward(8, rngs=rngs()), {}), TypeError, "got FeedForward"),
    "modules.make_mesh: too few devices": (lambda: modules.make_mesh(data=99), ValueError, "wants 99 devices; here"),
    "modules.partition_spec: no such axis": (
        lambda: modules.partition_spec(("embed",), (8,), modules.make_mesh(data=1), modules.TENSOR), ValueError, r"mesh axes \['model'\]",
    ),
    "modules.logical_axes: parameters": (lambda: modules.logical_axes({}), TypeError, "must be an nnx.Module.*got dict"),
    "modules.shard: parameters": (lambda: modules.shard({}, modules.make_mesh(data=1), ()), TypeError, "must be an nnx.Module.*got dict"),
    "generate.generate: no prompt": (
        lambda: generate(language_model(), jnp.zeros(0, int), 3, rng=jax.random.key(0)),
        ValueError, r"prompt must be at least one token, \[P\] or \[B, P\]; got int32\[0\]",
    ),
    "generate.stream: a token too many": (lambda: next(stream(language_model(), [1, 5], 3, rng=jax.random.key(0))), ValueError, "prompt must be from 0 to 4, got 1 to 5"),
    "generate.generate: lengths": (lambda: generate(language_model(), [[1, 2]], 3, lengths=[3], rng=jax.random.key(0)), ValueError, "lengths must be from 1 to 2, got 3 to 3"),
    "generate.generate: one length": (lambda: generate(language_model(), [[1, 2]], 3, lengths=3, rng=jax.random.key(0)), ValueError, r"lengths must be integers \[B\] = \[1\]"),
    "generate.generate: no tokens to stop at": (lambda: generate(language_model(), [1], 3, stop=[1.5], rng=jax.random.key(0)), TypeError, r"stop must be integers, got float32\[1\]"),
    "generate.generate: prompt of halves": (lambda: generate(language_model(), [1.5], 3, rng=jax.random.key(0)), TypeError, r"prompt must be integers, got float32\[1\]"),
    "generate.generate: a prompt beyond int32": (lambda: generate(language_model(), np.array([2**32]), 3, rng=jax.random.key(0)), ValueError, "prompt must lie in .* got 4294967296 .. 4294967296"),
    "generate.generate: no key": (lambda: generate(language_model(), [1], 3, rng=0), TypeError, "rng must be a key such as .* got 0"),
    "generate.stream: keys": (lambda: next(stream(language_model(), [1], 3, rng=jax.random.split(jax.random.key(0)))), TypeError, r"rng must be one key, .* got key<fry>\[2\]"),
    "generate.generate: text as top_k": (lambda: generate(language_model(), [1], 3, sampling=Sampling(top_k="2"), rng=jax.random.key(0)), TypeError, "top_k must be a number, got '2'"),
    "learned_positions: halves": (lambda: aj.learned_positions(jnp.ones((4, 2)), [0.5]), TypeError, "must be integers, got float32"),
    "attention: a list of implementations": (lambda: aj.attention(Q, K, V, implementation=["blockwise"]), TypeError, "implementation must be None or a name"),
    "attention: text as rate": (lambda: aj.attention(Q, K, V, dropout_rate="half"), TypeError, "dropout_rate must be a number, got 'half'"),
    "generate.generate: a number as sampling": (lambda: generate(language_model(), [1], 3, sampling=0.9, rng=jax.random.key(0)), TypeError, "must be a Sampling, .* got 0.9"),
    "bias: None": (lambda: aj.bias(None), TypeError, r"bias\(array\) must be an array, got None"),
    "attention: None": (lambda: aj.attention(None, K, V), TypeError, "query must be an array, got None"),
    "attention: 8 bits": (lambda: aj.attention(*(x.astype(jnp.float8_e5m2) for x in (Q, K, V))), TypeError, "query must have 16 bits or more, got float8_e5m2"),
    "attention: a list as scale": (lambda: aj.attention(Q, K, V, scale=[1.0]), ValueError, "scale must be one number"),
    "soft_cap: beyond float32": (lambda: aj.soft_cap(1e39), ValueError, r"one positive finite number, in float32 too, got 1e\+39"),
    "generate.generate: stop": (lambda: generate(language_model(), [1], 3, stop=[7], rng=jax.random.key(0)), ValueError, "stop must be from 0 to 4, got 7 to 7"),
    "KVCache: padding below 0": (lambda: aj.KVCache.empty(4, 2, 8, padding=-3), ValueError, "padding must be at least 0, got -3"),
    "KVCache: padding of half a token": (lambda: aj.KVCache.empty(4, 2, 8, padding=1.5), TypeError, "padding must be integers"),
    "sampling.Sampling: temperature": (lambda: Sampling(temperature=-0.5).check(), ValueError, "temperature must be at least 0, got -0.5"),
    "sampling.Sampling: top_k": (lambda: Sampling(top_k=0).check(), ValueError, r"top_k must be a whole number, at least 1 and below 2\*\*31, got 0"),
    "sampling.Sampling: top_k switched on": (lambda: Sampling(top_k=True).check(), TypeError, "top_k must be a number, got True"),
    "sampling.Sampling: a vast top_k": (lambda: Sampling(top_k=10**10).check(), ValueError, r"below 2\*\*31, got 10000000000"),
    "sampling.Sampling: no temperature": (lambda: Sampling(temperature=None).check(), ValueError, "temperature must be at least 0, got None"),
    "rotary_frequencies: base": (lambda: aj.rotary_frequencies(8, base=0), ValueError, "base must be above 0 and finite, got 0"),
    "rotary_frequencies: below 0": (lambda: aj.rotary_frequencies(-2), ValueError, r"rotary_frequencies\(dim=\) must be at least 0, got -2"),
    "modules.MultiHeadAttention: text as heads": (lambda: modules.MultiHeadAttention(8, "4", rngs=rngs()), TypeError, "num_heads must be an integer, got '4'"),
    "modules.MultiHeadAttention: nothing": (lambda: modules.MultiHeadAttention(0, 4, rngs=rngs()), ValueError, "embed_dim must be at least 1, got 0"),
    "modules.FeedForward: no width": (lambda: modules.FeedForward(8, hidden_dim=0, rngs=rngs()), ValueError, "hidden_dim must be at least 1, got 0"),
    "modules.SwiGLU: half a width": (lambda: modules.SwiGLU(8, hidden_dim=1.5, rngs=rngs()), TypeError, "hidden_dim must be an integer, got 1.5"),
    "modules.TransformerLM: no tokens": (lambda: modules.TransformerLM(0, 4, 8, 2, 1, rngs=rngs()), ValueError, "vocab_size must be at least 1, got 0"),
    "modules.LearnedPositions: none": (lambda: modules.LearnedPositions(0, 8, rngs=rngs()), ValueError, "context_length must be at least 1, got 0"),
    "modules.TransformerLM: a key for rngs": (
        lambda: language_model()(jnp.zeros(3, int), rngs=jax.random.key(0)), TypeError, r"rngs must be nnx.Rngs\(dropout=...\), got Array",
    ),
    "modules.FeedForward: rngs of another stream": (
        lambda: modules.FeedForward(8, dropout_rate=0.5, rngs=rngs())(X, rngs=nnx.Rngs(params=1)), TypeError, "got nnx.Rngs without that stream",
    ),
    "inspection.contributions: half a token": (lambda: contributions(language_model(), jnp.arange(3), 1.0), TypeError, r"target must be integers, got float32\[\]"),
    "inspection.contributions: targets of no batch": (
        lambda: contributions(language_model(), jnp.arange(3), np.array([1, 2])), ValueError, r"target must be one token, or \[\*B\] = \[\] of them, got int\d+\[2\]",
    ),
    "sampling.Sampling: top_p": (lambda: Sampling(top_p=0.0).check(), ValueError, "top_p must be above 0 and at most 1, got 0.0"),
    "sampling.Sampling: min_p": (lambda: Sampling(min_p=1.5).check(), ValueError, "min_p must be at least 0 and at most 1, got 1.5"),
    "sampling.Sampling: penalty": (lambda: Sampling(repetition_penalty=float("nan")).check(), ValueError, "repetition_penalty must be above 0, got nan"),
    "sampling.Sampling: traced": (lambda: jax.jit(lambda t: Sampling(temperature=t).check())(1.0), TypeError, "temperature must be a Python number"),
    "view.plot_heads: labels": (lambda: plot_heads(np.ones((1, 1, 3, 3)), list("ab")), ValueError, "T = 2, S = 2.*got"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_is_wrong(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_every_public_name_is_in_the_table():
    here = {key.split(":")[0] for key in REFUSED}
    functions = {name for name, value in vars(aj).items() if callable(value) and not name.startswith("_")}
    of_modules = {f"modules.{name}" for name, value in vars(modules).items() if callable(value)}
    assert functions | of_modules <= here


@pytest.mark.parametrize("case", ["integer query", "mask [B, T, S] with B == N", "lengths differ", "rate 1.5"])
def test_refusals_do_not_hang_on_chex(case):
    import chex

    call, error, message = REFUSED[f"multi_head_attention: {case}"]
    chex.disable_asserts()
    try:
        with pytest.raises(error, match=message):
            call()
    finally:
        chex.enable_asserts()
