"""The memory of a step: how much it needs, whether that is there, and that the kernel hands it out once."""

import ctypes
import math
import os
import sys
from typing import Any

import jax

from train.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALLER_STEP = (
    "raise --data.accumulate or lower --data.batch-size, give --model.remat, lower --model.context-length or the "
    "model's sizes, or spread it by --mesh.data N --mesh.fsdp"
)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, up to 2 GiB, for the next step.

    XLA on a CPU allocates a step's temporaries anew at each call. What is over 32 MiB, glibc takes from the kernel and
    gives back every time, and the kernel clears each page once more: of a step of `shakespeare`, that is two fifths.
    """
    if sys.platform == "linux":
        mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD) if mallopt else ():
            mallopt(threshold, 2**31 - 1)


def step_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes on each device that a compiled step needs: state, batch, and all between."""
    memory: Any = compiled.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return sum(sizes) - memory.alias_size_in_bytes


def in_words(size: int) -> str:
    """A number of bytes, in the unit that it is read in.

    >>> in_words(1200), in_words(9 * 2**20), in_words(1500 * 2**20)
    ('2 KiB', '9 MiB', '1,500 MiB')
    """
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{math.ceil(size / 2**10)} KiB"


def check_memory(what: str, needed: int, device: jax.Device, remedy: str = SMALLER_STEP) -> None:
    """Refuse what the device has too little memory for.

    Raises:
      InputError: it names the remedy.
    """
    if device.platform == "cpu":
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        there = (device.memory_stats() or {}).get("bytes_limit", needed)
    if needed > there:
        there_are = f"and there are {there / 2**30:,.1f}"
        raise InputError(f"{what} {needed / 2**30:,.1f} GiB of memory, {there_are}: {remedy}")
