"""Sorting letters: banana=aaabnn.

    python -m train sort

Hardware: 2 CPU cores. Time: 75 seconds. Result: 99.5 % of 1024 new questions right.
"""

import dataclasses

from configs.copy import copy

sort = dataclasses.replace(copy, name="sort", steps=4000, data=dataclasses.replace(copy.data, source="sort"))
