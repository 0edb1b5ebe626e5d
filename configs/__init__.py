"""The presets of `python -m train`, as objects: `from configs import text`."""

from configs.text import text as text

PRESETS = {"text": text}
