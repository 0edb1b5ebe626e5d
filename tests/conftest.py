"""Strict settings for every test: silent broadcasting over ranks is an error."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
