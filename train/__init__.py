"""The training script: `python -m train [PRESET] [--field value ...]`, run from a checkout."""
