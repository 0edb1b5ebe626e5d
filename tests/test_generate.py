"""Generation against a plain Python loop over the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention_jax.generate import generate
from attention_jax.modules import TransformerLM

MODEL = TransformerLM(vocab_size=13, context_length=6, embed_dim=16, num_heads=2, num_layers=1, rngs=nnx.Rngs(0))
MODEL.tokens.embedding[...] = jax.random.normal(jax.random.key(8), (13, 16))  # so that logits are far apart
PROMPT = np.array([3, 1, 4])


def test_greedy_is_the_argmax_of_the_last_window():
    tokens, apply = list(PROMPT), jax.jit(MODEL.__call__)
    for _ in range(9):
        tokens.append(int(jnp.argmax(apply(jnp.array(tokens[-6:]))[-1])))
    assert generate(MODEL, PROMPT, 9, rng=jax.random.key(0), temperature=0).tolist() == tokens


def test_samples_repeat_by_seed_and_differ_between_seeds():
    one, again, other = (generate(MODEL, PROMPT, 20, rng=jax.random.key(seed)) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    assert (one[:3] == PROMPT).all() and ((one >= 0) & (one < 13)).all()


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature):
    draws = jax.vmap(lambda rng: generate(MODEL, PROMPT, 1, rng=rng, temperature=temperature)[-1])(
        jax.random.split(jax.random.key(5), 2000)
    )
    counts = np.bincount(draws, minlength=13)
    expected = 2000 * np.asarray(jax.nn.softmax(MODEL(jnp.asarray(PROMPT))[-1] / temperature), np.float64)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(2000 * 0.25)
    assert ((counts - expected) ** 2 / np.maximum(expected, 1)).sum() < 45  # chi-squared, 12 degrees of freedom


@pytest.mark.parametrize("prompt, num_tokens, temperature, message", [
    ([], 3, 1.0, "at least one integer token"),
    ([[1, 2]], 3, 1.0, "at least one integer token"),
    ([1.0], 3, 1.0, "at least one integer token"),
    ([1], -1, 1.0, "num_tokens must be at least 0"),
    ([1], 3, -0.5, "temperature must be at least 0"),
])  # fmt: skip
def test_refusals(prompt, num_tokens, temperature, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, prompt, num_tokens, rng=jax.random.key(0), temperature=temperature)
