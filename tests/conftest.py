"""Strict everywhere: silent broadcasting over ranks is an error.

The tests compile far more than they compute. XLA is told to optimise little and to compile fast, which takes a third of
the time; `XLA_FLAGS= python -m pytest` tests the code that users run. `.ci/run` does so for the contract, for the
equation on the newest versions, and for whole runs of the trainer. What was compiled is kept in `.pytest_cache`, where
the next run and other processes find it; `python -m pytest --cache-clear` forgets it.

`--cases 1` tries one case of each test: enough to see whether another version of JAX breaks it.
"""

import os
from collections import defaultdict
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
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # for tests/test_sharding.py; the others use the first


def pytest_addoption(parser):
    parser.addoption(
        "--cases", type=int, metavar="N", help="of each test's cases at most N, the first, the last, and some between"
    )


@pytest.hookimpl(trylast=True)  # of those that -m and -k have left
def pytest_collection_modifyitems(config, items):
    if most := config.getoption("cases"):
        cases = defaultdict(list)
        for item in items:
            cases[item.nodeid.partition("[")[0]].append(item)
        kept = {case for some in cases.values() for case in spread(some, most)}
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def spread(cases, most):
    return [cases[round(i * (len(cases) - 1) / max(most - 1, 1))] for i in range(most)] if len(cases) > most else cases
