"""Strict everywhere: silent broadcasting over ranks is an error.

The tests compile far more than they compute, so XLA is told to optimise little, which halves their time;
`XLA_FLAGS= python -m pytest` tests the code that users run, and so does `.ci/run`.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # for tests/test_sharding.py; the others use the first
