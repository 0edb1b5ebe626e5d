"""What XLA makes of a step of few keys, or of many small blocks, on a CPU, which depends on how large the step is."""

import math

from attention_jax.blocks.grid import Grid


def few(grid: Grid, S: int, H: int, forward: bool) -> bool:
    """Whether all keys are in one block and few, or heads so narrow that their forward pass alone is faster as if they
    were: measured with 4 to 2048 queries on 77 to 512 keys."""
    narrow = forward and H <= 16 and S <= 128 and grid.length("t") >= 32
    return grid.steps("s") == 1 and (few_keys(S, H, grid.tile) or narrow)


def few_keys(S: int, H: int, tile: int) -> bool:
    """Whether so many keys are few: scores are not the largest arrays, or rows of them so short that XLA's loops over
    them are slow. Measured with 1 to 512 keys and heads of 8 to 512 channels."""
    return max(min(2 * H, 128, tile), min(64, tile), H) >= S


def outnumbered(T: int, S: int) -> bool:
    """Whether so many queries, in one block, take keys by rows: to put them by columns pays in many steps."""
    return 2 * T <= S


def many_small(grid: Grid, H: int) -> bool:
    """Whether a step has many blocks, each too small for more than one core: XLA divides those of more channels. Of
    fewer, or of heads in groups, they were measured to take less time undivided."""
    alone = grid.size("g") == 1
    return alone and 32 <= H <= 128 and grid.size("t") * grid.size("s") <= 2**16 and math.prod(grid.sizes) >= 2**18


def unfilled(grid: Grid, Hv: int) -> bool:
    """Whether rows of weights are no whole number of vectors, and values so narrow, that an old XLA's product of many
    takes longer than that of both turned. This is turned back while it is copied, where to divide by the sums of the
    weights would be slow. Measured with 2 to 128 keys of heads of 8 to 64 channels."""
    S = grid.size("s")
    return grid.size("t") >= 16 and 2 < S < 24 and S % 4 > 0 and Hv <= 16


def tiny(grid: Grid, channels: int) -> bool:
    """Whether an operation of XLA's more takes longer than all that it does with so many channels, for several queries
    a key."""
    return grid.length("g") * grid.length("t") > 1 and math.prod(grid.lengths) * channels <= 2**11


def summed(grid: Grid, channels: int) -> bool:
    """Whether a loop of XLA's has summed the products of two matrices, of so many channels, before its matrix product
    has begun. Less than 128 multiplications it computes without delay, whatever they are part of; and where there is
    one query or one key, it makes sums itself."""
    matrices = min(grid.length("t"), grid.length("s")) > 1
    return matrices and tiny(grid, channels) and math.prod(grid.lengths) * channels >= 2**7
