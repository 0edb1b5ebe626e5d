"""The training script: `python -m train [PRESET] [--field value ...]`, run from a checkout."""

import sys

if sys.argv[0] == "-m":  # a command, whose modules are yet to be imported
    from train.errors import end_when_asked

    end_when_asked()
