"""The optimiser of a run, as an Optax transformation."""

import jax
import optax

from configs.schema import Optimizer


def learning_rate(config: Optimizer, steps: int) -> optax.Schedule:
    """A straight rise from 0, then half a cosine down to `final_fraction` (arXiv:1608.03983)."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, steps // 10),
        decay_steps=steps,
        end_value=config.learning_rate * config.final_fraction,
    )


def build_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Clipped AdamW (arXiv:1711.05101) that decays matrices only."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda param: param.ndim > 1, params),
        ),
    )
