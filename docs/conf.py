"""The site: `pip install -e ".[docs]" && sphinx-build -W --keep-going -n docs build/docs`, from a checkout.

Any warning fails the build, a name that resolves to nothing included. Nothing is fetched, neither to build the pages
nor to read them; `.ci/run links` follows the links that lead away.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # for site_extension, and for train, which is not installed

from attention_jax import __version__  # noqa: E402

project, release = "attention_jax", __version__
html_title = f"{project} {release}"
html_theme = "furo"
html_show_copyright = False
html_static_path, html_css_files = ["static"], ["site.css"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "site_extension"]

default_role = "name"  # of `backquoted` words in docstrings: see site_extension
autodoc_type_aliases = {
    name: f"~{module}.{name}"
    for module, names in {
        "attention_jax.typing": ["MaskLike", "ScoreLike", "Integers", "Positions"],
        "jax.lax": ["PrecisionLike"],
        "jax.typing": ["ArrayLike", "DTypeLike"],
    }.items()
    for name in names
}
autodoc_member_order = "bysource"
add_module_names = False
python_maximum_signature_line_length = 100
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_param = napoleon_use_rtype = False  # one line may speak of several arguments
nitpick_ignore = [("py:class", "attention_jax.modules.torch_weights.Module")]  # a TypeVar
nitpick_ignore_regex = [("py:.*", r"(?!attention_jax|train\b).*")]  # others' pages would have to be fetched

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

nb_execution_mode = "force"  # a cache would not see that the library has changed
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
