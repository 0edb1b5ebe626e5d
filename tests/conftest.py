"""Strict everywhere: silent broadcasting over ranks is an error.

The tests compile far more than they compute. XLA is told to optimise little and to compile fast, which takes a third of
the time; `XLA_FLAGS= python -m pytest` tests the code that users run. `.ci/run` does so for the contract, for the
equation on the newest versions, and for whole runs of the trainer. What was compiled is kept in `.pytest_cache`, where
the next run and other processes find it; `python -m pytest --cache-clear` forgets it.
"""

import os
from pathlib import Path

import jaxlib

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # later versions refuse what they do not know
    + " --xla_cpu_use_fusion_emitters=false" * (jaxlib.version.__version_info__[:2] == (0, 10)),
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "d" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # for tests/test_sharding.py; the others use the first
