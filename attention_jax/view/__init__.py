"""Attention to look at: as text, as a page, as figures.

from attention_jax.inspection import inspect
from attention_jax.view import html, plot, text

weights = inspect(model, tokens)                # [layers, N, T, T]
html(weights, words).save("attention.html")     # one file, no network; or the last line of a notebook's cell
print(text(weights[0, 3], words))
plot.plot_heads(weights, words)                 # matplotlib: pip install -e ".[view]"
"""

import importlib
from typing import TYPE_CHECKING

from attention_jax.view.page import html as html
from attention_jax.view.table import text as text

if TYPE_CHECKING:
    from attention_jax.view import plot as plot
else:

    def __getattr__(name):
        if name == "plot":  # matplotlib is imported when it is first asked for
            return importlib.import_module("attention_jax.view.plot")
        raise AttributeError(f"module 'attention_jax.view' has no attribute {name!r}")
