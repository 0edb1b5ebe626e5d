"""Sorting letters: banana=aaabnn.

    python -m train sort

Hardware: 2 CPU cores. Time: 1 minute. Result: 100 % of 1024 new questions right.
"""

import dataclasses

from configs.copy import copy

sort = dataclasses.replace(
    copy,
    name="sort",
    steps=3000,
    data=dataclasses.replace(copy.data, source="sort"),
    optimizer=dataclasses.replace(copy.optimizer, method="muon", final_fraction=0.01),
)
