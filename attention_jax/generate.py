"""Text from a language model, one token after another."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from attention_jax.mask_tree import static_int


def generate(model: nnx.Module, prompt, num_tokens: int, *, rng: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Continue a prompt by sampling from a `TransformerLM`; each token is drawn given the last `context_length` ones.

    Args:
      model: called with int `[T]`, returns logits `[T, vocab_size]`; has a `context_length`.
      prompt: int `[P]`, at least one token.
      num_tokens: how many to add (static int).
      rng: random key; the same key gives the same tokens.
      temperature: divides the logits; 0 takes the likeliest token always.

    Returns:
      int32 `[P + num_tokens]`, the prompt and what follows.

    Raises:
      TypeError: a traced temperature or number of tokens.
      ValueError: an empty prompt, or a negative temperature or number of tokens.

    >>> from attention_jax.modules import TransformerLM
    >>> model = TransformerLM(10, 8, 16, 2, 1, rngs=nnx.Rngs(0))
    >>> generate(model, jnp.array([1, 2, 3]), 20, rng=jax.random.key(0)).shape
    (23,)
    """
    prompt, num_tokens = jnp.asarray(prompt), static_int("num_tokens", num_tokens, minimum=0)
    if prompt.ndim != 1 or not jnp.issubdtype(prompt.dtype, jnp.integer) or len(prompt) == 0:
        raise ValueError(f"prompt must be at least one integer token, [P]; got {prompt.dtype} {prompt.shape}")
    if isinstance(temperature, jax.core.Tracer):
        raise TypeError("temperature must be static (a Python number known while tracing), got a traced value")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    tokens = jnp.pad(prompt.astype(jnp.int32), (0, num_tokens))
    graphdef, params = nnx.split(model)
    return _generate(params, tokens, rng, temperature, len(prompt), graphdef=graphdef)


@partial(jax.jit, static_argnames="graphdef")
def _generate(params, tokens, rng, temperature, start, *, graphdef):
    model = nnx.merge(graphdef, params)
    window = min(model.context_length, len(tokens))

    def add_token(index, tokens):
        first = jnp.maximum(index - window, 0)
        logits = model(jax.lax.dynamic_slice_in_dim(tokens, first, window))[index - 1 - first]
        drawn = jax.random.categorical(jax.random.fold_in(rng, index), logits / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature == 0, jnp.argmax(logits), drawn)
        return tokens.at[index].set(token.astype(tokens.dtype))

    return jax.lax.fori_loop(start, len(tokens), add_token, tokens)
