"""Generation against a plain Python loop over the model."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_cache import SCHEMES, language_model

import attention_jax as aj
from attention_jax import generate as generation
from attention_jax.generate import generate, stream
from attention_jax.modules import TransformerLM
from attention_jax.sampling import Sampling

MODEL = TransformerLM(vocab_size=13, context_length=6, embed_dim=16, num_heads=2, num_layers=1, rngs=nnx.Rngs(0))
MODEL.tokens.embedding[...] = jax.random.normal(jax.random.key(8), (13, 16))  # so that logits are far apart
PROMPT = np.array([3, 1, 4])
PROMPTS, LENGTHS = np.array([[3, 1, 4, 0, 0, 0], [7, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]]), [3, 1, 6]
GREEDY = Sampling(temperature=0)
RNG = jax.random.key(0)


def by_hand(model, prompt, count, context):
    """The likeliest token each time; a context that is full is read anew from its later half."""
    text, start, apply = list(map(int, prompt)), 0, jax.jit(model.__call__)
    for _ in range(count):
        if len(text) - start > context:
            start = len(text) - context // 2
        tokens = np.zeros(context, int)  # what comes after cannot be seen, and one length compiles once
        tokens[: len(text) - start] = text[start:]
        text.append(int(jnp.argmax(apply(tokens)[len(text) - start - 1])))
    return text


@pytest.mark.parametrize("scheme", [
    scheme if scheme == "learned" else pytest.param(scheme, marks=pytest.mark.slow) for scheme in SCHEMES
])  # fmt: skip
@pytest.mark.parametrize("count", [pytest.param(4, marks=pytest.mark.slow), 15])
def test_greedy(count, scheme):
    """Prompts of different lengths, some of which outgrow the context of 12 before the others."""
    model = language_model(scheme)
    texts = generate(model, PROMPTS, count, lengths=LENGTHS, rng=RNG, sampling=GREEDY)
    for row, length, tokens, end in zip(PROMPTS, LENGTHS, *texts, strict=True):
        text = by_hand(model, row[:length], count, context=12)
        assert tokens.tolist() == text + [0] * (6 - length) and end == len(text)


@pytest.mark.slow
def test_a_prompt_longer_than_the_context():
    prompt = np.arange(9) % 13
    text = generate(MODEL, prompt, 1, rng=RNG, sampling=GREEDY)
    assert text.tokens.tolist() == [*prompt, int(jnp.argmax(MODEL(prompt[-6:])[-1]))] and text.length == 10


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["rotary", "alibi"])
@pytest.mark.parametrize("prompt", [PROMPT, np.arange(11)])
def test_a_window_goes_on_in_a_ring(prompt, scheme, monkeypatch):
    monkeypatch.setattr(generation, "RING_CHUNK", 4)
    model, mask = language_model(scheme), aj.sliding_window(3, 0)
    text = generate(model, prompt, 14, rng=RNG, sampling=GREEDY, mask=mask).tokens
    likeliest = jnp.argmax(model(text[:-1], mask=mask), axis=-1)
    assert text.tolist() == [*prompt, *likeliest[len(prompt) - 1 :].tolist()]


@pytest.mark.slow
def test_samples_repeat_by_seed_and_differ_between_seeds():
    one, again, other = (generate(MODEL, PROMPT, 20, rng=jax.random.key(seed)).tokens for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    assert (one[:3] == PROMPT).all() and ((one >= 0) & (one < 13)).all()


@pytest.mark.slow
def test_an_example_does_not_depend_on_the_others():
    together = generate(MODEL, PROMPTS, 20, lengths=LENGTHS, rng=RNG)
    alone = generate(MODEL, PROMPTS[0, :3], 20, rng=RNG)
    assert together.tokens[0, :23].tolist() == alone.tokens.tolist()
    assert (together.tokens[1, 1:21] != together.tokens[0, 3:23]).any()


@pytest.mark.slow
def test_stop():
    """A text ends with the token that stops it; the others go on."""
    free = np.asarray(generate(MODEL, PROMPTS, 20, lengths=LENGTHS, rng=RNG).tokens)
    added = [row[length : length + 20].tolist() for row, length in zip(free, LENGTHS, strict=True)]
    stop = added[0][5]
    wanted = [text[: text.index(stop) + 1] if stop in text else text for text in added]
    assert len({len(text) for text in wanted}) > 1
    texts = generate(MODEL, PROMPTS, 20, lengths=LENGTHS, rng=RNG, stop=[stop])
    for row, length, text, tokens, end in zip(PROMPTS, LENGTHS, wanted, *texts, strict=True):
        assert end == length + len(text)
        assert tokens.tolist() == [*row[:length], *text] + [0] * (26 - int(end))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [(), (2,)])
def test_streaming_gives_the_same_tokens(stop):
    options = {"lengths": LENGTHS, "rng": RNG, "sampling": Sampling(top_k=5, repetition_penalty=1.1), "stop": stop}
    texts = generate(MODEL, PROMPTS, 20, **options)
    pieces = np.stack([*stream(MODEL, PROMPTS, 20, **options)], axis=1)
    for length, tokens, end, added in zip(LENGTHS, *texts, pieces, strict=True):
        assert added[added >= 0].tolist() == tokens[length:end].tolist()
        assert (added[int(end) - length :] == -1).all()
    assert [int(token) for token in stream(MODEL, PROMPT, 4, rng=RNG)] == generate(MODEL, PROMPT, 4, rng=RNG).tokens[
        3:
    ].tolist()


@pytest.mark.slow
def test_a_stream_compiles_one_step(monkeypatch):
    traces = []
    apply = TransformerLM.hidden
    monkeypatch.setattr(TransformerLM, "hidden", lambda *args, **options: traces.append(1) or apply(*args, **options))
    model = TransformerLM(13, 30, 16, 2, 1, rngs=nnx.Rngs(1))
    for index, _ in enumerate(stream(model, PROMPT, 20, rng=RNG)):
        if index == 0:
            first = len(traces)
    assert len(traces) == first > 0


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature):
    prompts = np.tile(PROMPT, (2000, 1))
    draws = generate(MODEL, prompts, 1, rng=jax.random.key(5), sampling=Sampling(temperature=temperature)).tokens[:, -1]
    counts = np.bincount(draws, minlength=13)
    expected = 2000 * np.asarray(jax.nn.softmax(MODEL(jnp.asarray(PROMPT))[-1] / temperature), np.float64)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(2000 * 0.25)
    assert ((counts - expected) ** 2 / np.maximum(expected, 1)).sum() < 45  # chi-squared, 12 degrees of freedom


def kept(logits, top_k=None, top_p=None, min_p=None):
    """Which tokens stay, from the definitions, one token after the other."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if top_k is not None:
        order = order[:top_k]

    def shares():
        weights = [np.exp(logits[token]) for token in order]
        return [weight / sum(weights) for weight in weights]

    if top_p is not None:
        before = np.cumsum([0, *shares()])
        order = [token for token, likelier in zip(order, before, strict=False) if likelier < top_p or token == order[0]]
    if min_p is not None:
        order = [token for token, share in zip(order, shares(), strict=True) if share >= min_p * shares()[0]]
    return [token in order for token in range(len(logits))]


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {}, {"top_k": 1}, {"top_k": 4}, {"top_k": 99}, {"top_p": 0.6}, {"top_p": 1e-9}, {"top_p": 1.0}, {"min_p": 0.3},
    {"min_p": 1.0}, {"top_k": 6, "top_p": 0.7, "min_p": 0.2},
])  # fmt: skip
def test_what_is_kept(options):
    counts = collections.Counter()
    for seed in range(20):
        logits = 2 * np.random.default_rng(seed).normal(size=11).astype(np.float32)
        mask = np.asarray(Sampling(**options).kept(jnp.asarray(logits)))
        np.testing.assert_array_equal(mask, kept(logits.astype(float), **options))
        counts[mask.sum()] += 1
    assert 0 not in counts


@pytest.mark.slow
def test_the_repetition_penalty():
    logits, seen = jnp.array([2.0, -2.0, 2.0, -2.0]), jnp.array([True, True, False, False])
    assert Sampling(repetition_penalty=2.0).penalized(logits, seen).tolist() == [1.0, -4.0, 2.0, -2.0]
    # tokens of the prompt count, and so do those that were written; padding does not
    text = generate(
        MODEL, PROMPTS, 5, lengths=LENGTHS, rng=RNG, sampling=Sampling(temperature=0, repetition_penalty=1e9)
    )
    for length, tokens, end in zip(LENGTHS, *text, strict=True):
        assert len(set(tokens[:end].tolist())) == end and end == length + 5


@pytest.mark.slow
def test_another_temperature_does_not_compile_anew():
    generation._generate.clear_cache()
    for temperature in (0.5, 0.7):
        for top_k in (2, 3):
            generate(MODEL, PROMPT, 2, rng=RNG, sampling=Sampling(temperature=temperature, top_k=top_k))
    assert generation._generate._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-46, 5e-324])
def test_next_to_temperature_0_the_likeliest_is_drawn(temperature):
    logits = jnp.array([0.1, 5.0, 4.0, -jnp.inf])
    draw = Sampling(temperature=temperature, top_p=0.9).draw
    assert all(draw(logits, jnp.zeros(4, bool), jax.random.key(seed)) == 1 for seed in range(5))


@pytest.mark.slow
def test_lengths_of_a_dtype_that_ends_before_the_text():
    prompt = np.resize(PROMPT, (1, 250))
    texts = [generate(MODEL, prompt, 10, lengths=np.array([250], dtype), rng=RNG) for dtype in ("int32", "uint8")]
    assert texts[0].length.tolist() == texts[1].length.tolist() == [260]
    np.testing.assert_array_equal(*(text.tokens for text in texts))
