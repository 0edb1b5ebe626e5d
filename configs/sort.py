"""Sorting letters: banana=aaabnn.

    python -m train sort

Hardware: 2 CPU cores.
"""

import dataclasses

from configs.copy import copy

sort = dataclasses.replace(copy, name="sort", steps=4000, data=dataclasses.replace(copy.data, source="sort"))
