"""Text from a language model, one token after another, through a cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from attention_jax.arguments import brief, index_array, integer_array, static_int
from attention_jax.cache import look_back
from attention_jax.checks import check_key
from attention_jax.modules.embedding import LearnedPositions
from attention_jax.modules.transformer import LayerCaches
from attention_jax.sampling import Sampling
from attention_jax.typing import Integers, MaskLike

RING_CHUNK = 256


class Text(NamedTuple):
    """Texts of different lengths."""

    tokens: jax.Array
    """int32 `[*B, P + num_tokens]`; 0 after each text's end."""
    length: jax.Array
    """int32 `[*B]`, the prompt's tokens included."""


class _Plan(NamedTuple):
    """What is known while tracing: the model's structure, and how its cache is laid out."""

    graphdef: nnx.GraphDef
    num_tokens: int
    greedy: bool
    capacity: int
    chunk: int
    """The most tokens that are read at once."""
    ring: bool


class _State(NamedTuple):
    """Where each text stands. All end at the same column: a shorter one has padding in front."""

    tokens: jax.Array
    """int32 `[B, columns]`."""
    column: jax.Array
    """That of the next token."""
    length: jax.Array
    """`[B]`."""
    done: jax.Array
    """`[B]`, whether a stop token was written."""
    logits: jax.Array
    """`[B, vocab_size]` of the next token."""
    held: jax.Array
    """`[B]`, how many of the last tokens the cache holds."""
    cache: LayerCaches


def generate(
    model: nnx.Module,
    prompt: ArrayLike,
    num_tokens: int,
    *,
    rng: jax.Array,
    lengths: Integers | None = None,
    sampling: Sampling | None = None,
    stop: Integers = (),
    mask: MaskLike | None = None,
) -> Text:
    """Continue prompts with a language model, as one compiled program.

    Where a text outgrows the model's `context_length`, the later half of the context is read anew, so that each token
    is drawn given at least that. A sliding window of a model without learned positions knows no such end: its cache is
    a ring.

    Args:
      model: a `TransformerLM`, or one with its `hidden`, `logits`, `empty_cache`, `positions`, `context_length`, and
        `tokens.num_embeddings`.
      prompt: int `[P]` or `[B, P]`, tokens of the vocabulary.
      num_tokens: how many to add, at most (static int).
      rng: random key; the same key gives the same tokens. Those of an example do not depend on the others.
      lengths: int `[B]`, how many of the P tokens belong to each prompt, at least 1; the others are ignored. Default:
        all.
      sampling: temperature, top-k, top-p, min-p, repetition penalty. Default: drawn from the softmax.
      stop: tokens after which a text ends.
      mask: what a position may see besides being causal, as a rule on positions: `sliding_window(...)`.

    Returns:
      Texts `[*B, P + num_tokens]` and their lengths, prompt and stop token included.

    Raises:
      TypeError: a traced option or number of tokens, a `sampling` that is none, tokens or lengths that are no integers,
        an `rng` that is not one key.
      ValueError: an empty prompt, tokens outside the vocabulary, lengths or options out of their range.

    >>> from attention_jax.modules import TransformerLM
    >>> model = TransformerLM(10, 8, 16, 2, 1, rngs=nnx.Rngs(0))
    >>> text = generate(model, jnp.array([[1, 2, 3], [4, 0, 0]]), 20, lengths=[3, 1], rng=jax.random.key(0))
    >>> text.tokens.shape, text.length.tolist()
    ((2, 23), [23, 21])
    """
    check_key("rng", rng)
    options = _options(sampling, stop, mask)
    plan, params, tokens, lengths = _prepare(model, prompt, num_tokens, lengths, *options)
    tokens, lengths = _generate(params, tokens, lengths, rng, *options, plan=plan)
    return Text(tokens[0], lengths[0]) if jnp.ndim(prompt) == 1 else Text(tokens, lengths)


def stream(
    model: nnx.Module,
    prompt: ArrayLike,
    num_tokens: int,
    *,
    rng: jax.Array,
    lengths: Integers | None = None,
    sampling: Sampling | None = None,
    stop: Integers = (),
    mask: MaskLike | None = None,
) -> Iterator[np.ndarray]:
    """The same tokens as `generate` adds, as they are made: ints `[*B]`, or -1 for a text that has ended.

    Args:
      model, prompt, num_tokens, rng, lengths, sampling, stop, mask: as `generate`.

    Returns:
      An iterator of the tokens.

    Raises:
      TypeError, ValueError: as `generate`, when the first token is asked for.

    >>> from attention_jax.modules import TransformerLM
    >>> model = TransformerLM(10, 8, 16, 2, 1, rngs=nnx.Rngs(0))
    >>> len([token for token in stream(model, jnp.array([1, 2, 3]), 20, rng=jax.random.key(0))])
    20
    """
    check_key("rng", rng)
    options = _options(sampling, stop, mask)
    plan, params, tokens, lengths = _prepare(model, prompt, num_tokens, lengths, *options)
    state, ended = _start(params, tokens, lengths, mask, plan=plan), np.zeros(len(lengths), bool)
    for _ in range(plan.num_tokens):
        if ended.all():
            return
        state = _step(params, state, rng, *options, plan=plan)
        new = np.where(ended, -1, jax.device_get(state.tokens[:, state.column - 1]))
        yield new[0] if jnp.ndim(prompt) == 1 else new
        ended = jax.device_get(state.done)


def _options(
    sampling: Sampling | None, stop: Integers, mask: MaskLike | None
) -> tuple[Sampling, jax.Array, MaskLike | None]:
    if not isinstance(sampling, Sampling | None):
        raise TypeError(f"sampling must be a Sampling, such as Sampling(temperature=0.8), got {sampling!r}")
    tokens = integer_array("stop", stop)
    if tokens.ndim != 1:
        raise TypeError(f"stop must be a list of tokens, got {brief(tokens)}")
    return sampling or Sampling(), tokens, mask


def _prepare(
    model: Any,
    prompt: ArrayLike,
    num_tokens: int,
    lengths: Integers | None,
    sampling: Sampling,
    stop: jax.Array,
    mask: MaskLike | None,
) -> tuple[_Plan, nnx.State, jax.Array, jax.Array]:
    """The plan, the parameters, and the prompts, moved to end at the same column."""
    prompt, num_tokens = integer_array("prompt", prompt), static_int("num_tokens", num_tokens, minimum=0)
    if prompt.ndim not in (1, 2) or 0 in prompt.shape:
        raise ValueError(f"prompt must be at least one token, [P] or [B, P]; got {brief(prompt)}")
    prompt = prompt.reshape(-1, prompt.shape[-1])
    B, P = prompt.shape
    lengths = jnp.full(B, P) if lengths is None else integer_array("lengths", lengths)
    if lengths.shape != (B,):
        raise ValueError(f"lengths must be integers [B] = [{B}], got {brief(lengths)}")
    _check_range("lengths", lengths, 1, P)
    lengths = index_array(lengths)
    sampling.check()
    vocab_size = model.tokens.num_embeddings
    _check_range("prompt", jnp.where(_columns(prompt) < lengths[:, None], prompt, 0), 0, vocab_size - 1)
    _check_range("stop", stop, 0, vocab_size - 1)

    total, before = P + num_tokens, look_back(mask)
    graphdef, params = nnx.split(model)
    plan = partial(_Plan, graphdef, num_tokens, sampling.temperature == 0)
    if before is not None and not isinstance(model.positions, LearnedPositions) and before + RING_CHUNK < total:
        plan = plan(before + RING_CHUNK, RING_CHUNK, ring=True)
    else:
        capacity = min(total, model.context_length)
        plan = plan(capacity, capacity, ring=False)
    return plan, params, _shift(prompt.astype(jnp.int32), P - lengths, first=P - lengths), lengths


def _shift(tokens: jax.Array, by: jax.Array, *, first: ArrayLike = 0, last: jax.Array | None = None) -> jax.Array:
    """Each row moved to the right by so much, and 0 outside its columns `first` to `last`."""
    columns, last = _columns(tokens), jnp.full(len(tokens), tokens.shape[1]) if last is None else last
    inside = (columns >= jnp.broadcast_to(first, len(tokens))[:, None]) & (columns < last[:, None])
    return jnp.where(inside, jax.vmap(jnp.roll)(tokens, by), 0)


def _columns(tokens: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1)


def _check_range(name: str, values: jax.Array, least: int, most: int) -> None:
    if isinstance(values, jax.core.Tracer) or not values.size:
        return
    known = np.asarray(values)  # which stays known inside jax.jit
    if known.min() < least or known.max() > most:
        raise ValueError(f"{name} must be from {least} to {most}, got {known.min()} to {known.max()}")


@partial(jax.jit, static_argnames="plan")
def _generate(
    params: nnx.State,
    tokens: jax.Array,
    lengths: jax.Array,
    rng: jax.Array,
    sampling: Sampling,
    stop: jax.Array,
    mask: MaskLike | None,
    *,
    plan: _Plan,
) -> tuple[jax.Array, jax.Array]:
    def step(state: _State, _: None) -> tuple[_State, None]:
        run = partial(_step, params, rng=rng, sampling=sampling, stop=stop, mask=mask, plan=plan)
        return jax.lax.cond(state.done.all(), lambda state: state, run, state), None

    state, _ = jax.lax.scan(step, _start(params, tokens, lengths, mask, plan=plan), length=plan.num_tokens)
    return _shift(state.tokens, lengths - tokens.shape[1], last=state.length), state.length


@partial(jax.jit, static_argnames="plan")
def _start(params: nnx.State, tokens: jax.Array, lengths: jax.Array, mask: MaskLike | None, *, plan: _Plan) -> _State:
    """Read the prompts."""
    B, P = tokens.shape
    held = lengths if plan.ring else jnp.minimum(lengths, plan.capacity)
    logits, cache = _read(params, tokens if plan.ring else tokens[:, -plan.capacity :], held, mask, plan)
    tokens = jnp.pad(tokens, ((0, 0), (0, plan.num_tokens)))
    return _State(tokens, jnp.asarray(P), lengths, jnp.zeros(B, bool), logits, held, cache)


@partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _step(
    params: nnx.State,
    state: _State,
    rng: jax.Array,
    sampling: Sampling,
    stop: jax.Array,
    mask: MaskLike | None,
    *,
    plan: _Plan,
) -> _State:
    """Draw a token, write it, and read it."""
    seen: Any = None
    if sampling.repetition_penalty is not None:
        columns = _columns(state.tokens)
        own = (columns < state.column) & (columns >= state.column - state.length[:, None])
        seen = jax.vmap(lambda tokens, own: jnp.zeros(state.logits.shape[1], bool).at[tokens].max(own))(
            state.tokens, own
        )
    if plan.greedy:
        token = jax.vmap(sampling.likeliest)(state.logits, seen)
    else:
        rngs = jax.vmap(lambda row, length: jax.random.fold_in(jax.random.fold_in(rng, row), length))
        token = jax.vmap(sampling.draw)(state.logits, seen, rngs(jnp.arange(len(state.length)), state.length))
    token = token.astype(jnp.int32)
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.column, axis=1)
    column, length = state.column + 1, state.length + ~state.done

    def read_on() -> tuple[jax.Array, LayerCaches]:
        model = nnx.merge(plan.graphdef, params)
        hidden, cache = model.hidden(token[:, None], mask=mask, cache=state.cache)
        return model.logits(hidden[:, -1]), cache

    def read_anew() -> tuple[jax.Array, LayerCaches]:
        text = jax.lax.dynamic_slice_in_dim(tokens, column - plan.capacity, plan.capacity, axis=1)
        return _read(params, text, held, mask, plan)

    held = state.held + 1
    if plan.ring or tokens.shape[1] <= plan.capacity:
        logits, cache = read_on()
    else:
        full = held > plan.capacity
        held = jnp.where(full, max(plan.capacity // 2, 1), held)
        logits, cache = jax.lax.cond(full.any(), read_anew, read_on)
    return _State(tokens, column, length, state.done | jnp.isin(token, stop), logits, held, cache)


def _read(
    params: nnx.State, tokens: jax.Array, held: jax.Array, mask: MaskLike | None, plan: _Plan
) -> tuple[jax.Array, LayerCaches]:
    """Logits after the last `held` `[B]` of tokens `[B, R]`, and the cache that holds these."""
    model, (B, R) = nnx.merge(plan.graphdef, params), tokens.shape
    cache = model.empty_cache(plan.capacity, batch=(B,), padding=R - held, ring=plan.ring)
    first = R % plan.chunk or plan.chunk
    hidden, cache = model.hidden(tokens[:, :first], mask=mask, cache=cache)
    chunks = tokens[:, first:].reshape(B, -1, plan.chunk).swapaxes(0, 1)

    def read(before: tuple[jax.Array, LayerCaches], chunk: jax.Array) -> tuple[tuple[jax.Array, LayerCaches], None]:
        hidden, cache = model.hidden(chunk, mask=mask, cache=before[1])
        return (hidden[:, -1], cache), None

    (last, cache), _ = jax.lax.scan(read, (hidden[:, -1], cache), chunks)
    return model.logits(last), cache
