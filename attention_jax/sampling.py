"""How the next token is drawn from its logits."""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """What is done to the logits before a token is drawn, in this order; what is None is not done.

    Args:
      repetition_penalty: > 0; logits of tokens that the text holds are divided by it where they are positive, else
        multiplied (CTRL, arXiv:1909.05858, section 4.1).
      temperature: >= 0; divides the logits; 0 takes the likeliest token, and the rest below is not done.
      top_k: >= 1; only that many of the likeliest tokens (arXiv:1805.04833), and those as likely as the last of them.
      top_p: in (0, 1]; only the fewest of the likeliest tokens that together have this probability (arXiv:1904.09751).
      min_p: in [0, 1]; only tokens at least this share as likely as the likeliest (arXiv:2407.01082).

    Raises:
      TypeError, ValueError: where it is used, as `Sampling.check`.

    >>> Sampling(temperature=0.8, top_k=200).kept(jnp.array([1.0, 2.0, 4.0]) / 0.8).tolist()
    [True, True, True]
    """

    repetition_penalty: float | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def check(self) -> None:
        """Refuse what cannot be done.

        Raises:
          TypeError: a field that is traced, or no number.
          ValueError: a field out of its range.
        """
        ranges = {
            "repetition_penalty": (lambda x: 0 < x < float("inf"), "above 0"),
            "temperature": (lambda x: 0 <= x < float("inf"), "at least 0"),
            "top_k": (lambda x: 1 <= x < 2**31 and x == int(x), "a whole number, at least 1 and below 2**31"),
            "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
            "min_p": (lambda x: 0 <= x <= 1, "at least 0 and at most 1"),
        }
        for field in fields(self):
            value, (fits, wanted) = getattr(self, field.name), ranges[field.name]
            if isinstance(value, jax.core.Tracer):
                raise TypeError(f"{field.name} must be a Python number known while tracing, got a traced value")
            try:
                if isinstance(value, bool):
                    raise TypeError
                right = fits(value) if value is not None else field.default is None
            except (TypeError, ValueError):  # a switch, text, or an array
                raise TypeError(f"{field.name} must be a number, got {value!r}") from None
            if not right:
                raise ValueError(f"{field.name} must be {wanted}, got {value}")

    def penalized(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """Logits `[vocab_size]`, with those of tokens in `seen`, bool `[vocab_size]`, made less likely."""
        if self.repetition_penalty is None:
            return logits
        penalty = self.repetition_penalty
        return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)

    def kept(self, logits: jax.Array) -> jax.Array:
        """Which tokens may be drawn, bool `[vocab_size]`, given their logits divided by the temperature, as long."""
        keep = jnp.ones(logits.shape, bool)
        if self.top_k is not None:
            keep &= logits >= jnp.sort(logits)[::-1][jnp.minimum(self.top_k, len(logits)) - 1]
        if self.top_p is not None:
            order = jnp.argsort(-jnp.where(keep, logits, -jnp.inf))
            share = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf)[order])
            likelier = jnp.cumsum(share) - share
            keep &= jnp.zeros_like(keep).at[order].set((likelier < self.top_p).at[0].set(True))
        if self.min_p is not None:
            share = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf))
            keep &= share >= self.min_p * share.max()
        return keep

    def draw(self, logits: jax.Array, seen: jax.Array, rng: jax.Array) -> jax.Array:
        """A token, given logits `[vocab_size]` and which tokens the text holds, bool `[vocab_size]`."""
        logits = self.penalized(logits, seen)
        # from the highest on, so that however low the temperature is, that one remains finite
        logits = (logits - jnp.max(logits)) / jnp.maximum(self.temperature, jnp.finfo(logits.dtype).tiny)
        return jax.random.categorical(rng, jnp.where(self.kept(logits), logits, -jnp.inf))

    def likeliest(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """The token at temperature 0."""
        return jnp.argmax(self.penalized(logits, seen))
