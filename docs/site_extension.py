"""What the site adds to Sphinx: links from docstrings, and mathematics without JavaScript."""

import inspect
import re
from functools import partial

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from flax import nnx
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole
from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

ARGUMENTS = {"bias"}
"""Names that a docstring means an argument by, though there is a function of the same name."""


class Name(SphinxRole):
    """A backquoted word: a link where it names something public, and code where it does not."""

    def run(self):
        text = nodes.literal(self.rawtext, self.text, classes=["code"])
        return [pending_xref("", text, refdomain="", reftype="name", reftarget=self.text)], []


def resolve_name(app: Sphinx, env, node, text):
    """Where a `Name` leads to, once all pages are read."""
    if node["reftype"] != "name":
        return None
    wanted = node["reftarget"]
    kinds = ("method", "property") if "." in wanted else ("function", "class")
    found = [
        (name, entry)
        for name, entry in env.domains.python_domain.objects.items()
        if f".{name}".endswith(f".{wanted}")
        and entry.objtype in kinds
        and not entry.aliased
        and wanted not in ARGUMENTS
    ]
    if len(found) != 1:
        return text
    ((name, entry),) = found
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, name)


def link_papers(app: Sphinx, what, name, obj, options, lines):
    """arXiv:1706.03762 as a link to the paper."""
    lines[:] = [re.sub(r"arXiv:(\d{4}\.\d{5})", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", line) for line in lines]


def sign(app: Sphinx, what, name, obj, options, signature, returns):
    """The arguments of a module's `__init__`, which Flax's metaclass hides; and the names of types in unions, which
    Sphinx writes as objects of its own."""
    if what != "class" or not issubclass(obj, nnx.Module):
        return signature and re.sub(r"TypeAliasForwardRef\('(.+?)'\)", r"\1", signature), returns
    _, *own = inspect.signature(obj.__init__).parameters.values()
    own = [each.replace(default=Shown(each.default)) if is_function(each.default) else each for each in own]
    return stringify_signature(inspect.Signature(own), unqualified_typehints=True), returns


def is_function(default) -> bool:
    return callable(default) and default is not inspect.Parameter.empty


class Shown:
    """A default that is a function or a class, as it is written."""

    def __init__(self, default):
        self.default = default

    def __repr__(self) -> str:
        if isinstance(self.default, partial):
            options = "".join(f", {name}={value!r}" for name, value in self.default.keywords.items())
            return f"partial({self.default.func.__name__}{options})"
        return self.default.__name__


def write_math(self, node):
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Sphinx):
    app.add_role("name", Name())
    app.connect("missing-reference", resolve_name)
    app.connect("autodoc-process-docstring", link_papers, priority=400)  # before napoleon takes the colon for its own
    app.connect("autodoc-process-signature", sign)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    return {"parallel_read_safe": True}
