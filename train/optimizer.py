"""The optimiser of a run, as an Optax transformation."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from configs.schema import Optimizer

MATRICES = ("kernel", "embedding", "table")


def learning_rate(config: Optimizer, steps: int) -> optax.Schedule:
    """A straight rise from 0, and then what `config.schedule` says."""
    top, last = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = min(config.warmup_steps, steps // 10)
    decay = min(round(config.decay_fraction * steps), steps - warmup)
    after = {
        "cosine": [(optax.cosine_decay_schedule(top, max(steps - warmup, 1), config.final_fraction), warmup)],
        "constant": [(optax.constant_schedule(top), warmup)],
        "wsd": [
            (optax.constant_schedule(top), warmup),
            (optax.linear_schedule(top, last, decay), steps - decay),
        ],
    }[config.schedule]
    schedules, boundaries = zip(*after, strict=True)
    return optax.join_schedules([optax.linear_schedule(0.0, top, warmup), *schedules], boundaries)


def build_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clipped AdamW or Muon, which decay matrices only."""
    rate = learning_rate(config, steps)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(rate, b2=config.beta2, weight_decay=config.weight_decay, mask=_matrices)
    if config.method == "adamw":
        return optax.chain(clip, adamw)
    orthogonal = muon(
        rate,
        weight_decay=config.weight_decay,
        consistent_rms=0.2,  # steps as long as AdamW's, so that its learning rates serve (arXiv:2502.16982)
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), params),
    )
    methods = {"muon": orthogonal, "adamw": adamw}
    return optax.chain(clip, optax.partition(methods, _methods))


def _matrices(params: Any) -> Any:
    """By name: stacked by `scan`, biases have two dimensions too."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in MATRICES, params)


def _methods(params: Any) -> Any:
    def method(path: Any, _: Any) -> str:
        return "muon" if path[0].key == "blocks" and path[-1].key == "kernel" else "adamw"

    return jax.tree.map_with_path(method, params)
