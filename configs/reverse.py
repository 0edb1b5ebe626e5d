"""Reversing: abc=cba. A model that has learned it looks back along the other diagonal.

    python -m train reverse

Hardware: 2 CPU cores. Time: 40 seconds. Result: 100 % of 1024 new questions right.
"""

import dataclasses

from configs.copy import copy

reverse = dataclasses.replace(copy, name="reverse", data=dataclasses.replace(copy.data, source="reverse"))
