"""The reference has every public name, and each says what it takes, returns and raises, where it is from, and shows it."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import test_errors
from flax import nnx

import attention_jax
from attention_jax import conformance, generate, inspection, modules, pretrained, sampling, view
from attention_jax.view import plot
from train import step

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"

EXPORTS = attention_jax, modules, view, conformance
"""What these import for others is public;"""

CONTENTS = generate, sampling, inspection, pretrained, plot, step
"""and what these define."""

NEEDS_THE_NETWORK = {"attention_jax.pretrained.download_gpt2"}

FROM_NO_PAPER = """
    KVCache attention_and_lse explain attention_weights attention_statistics AttentionStatistics merge_heads split_heads
    project project_fused project_separate balanced_order Mask causal key_lengths mask_from_array mask_from_function
    segments Score bias score_from_function modules.SingleHeadAttention modules.ConcatenatedHeads modules.from_torch
    modules.to_torch modules.make_mesh modules.logical_axes modules.partition_spec modules.shard view.html view.text view.plot.plot_head view.plot.plot_heads view.plot.plot_mask
    view.plot.plot_training view.plot.animate_training conformance.Implementation conformance.check generate.generate
    generate.stream generate.Text inspection.inspect inspection.inspect_statistics inspection.record inspection.ablate
    inspection.Heads inspection.Contributions pretrained.build_gpt2 pretrained.load_gpt2 pretrained.save_gpt2
    pretrained.load_tokenizer pretrained.download_gpt2
"""
"""The only ones that name no source; those of `train.step`, which is a program, do not either."""


def is_public(module: ModuleType, name: str, value) -> bool:
    home = getattr(value, "__module__", None) or ""
    ours = home == module.__name__ if module in CONTENTS else home.startswith("attention_jax")
    return callable(value) and ours and not name.startswith("_")


PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in EXPORTS + CONTENTS
    for name, value in vars(module).items()
    if is_public(module, name, value)
}


def in_the_reference() -> list[str]:
    """The names of all `autofunction` and `autoclass` directives."""
    names = []
    for page in REFERENCE.glob("*.md"):
        module = ""
        for kind, name in re.findall(r"\.\. (currentmodule|autofunction|autoclass):: (\S+)", page.read_text("utf-8")):
            if kind == "currentmodule":
                module = name
            else:
                names.append(name if "." in name else f"{module}.{name}")
    return names


def found(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def sections(doc: str) -> dict[str, str]:
    """The parts of a docstring by their headings; what comes before any by ""."""
    parts = re.split(r"^(Args|Returns|Raises):\n", inspect.cleandoc(doc or ""), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def arguments(text: str) -> set[str]:
    heads = re.findall(r"^ +(\*{0,2}\w+(?:, \*{0,2}\w+)*):", text, re.MULTILINE)
    return {argument for head in heads for argument in head.split(", ")}


def parameters(value) -> set[str]:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    given = inspect.signature(value.__init__ if is_module(value) else value).parameters.values()
    return {stars.get(parameter.kind, "") + parameter.name for parameter in given} - {"self"}


def is_module(value) -> bool:
    return inspect.isclass(value) and issubclass(value, nnx.Module)


def own_docs(value) -> list[str]:
    """The docstring, and, of a class, those of its methods."""
    methods = vars(value).values() if inspect.isclass(value) else ()
    return [value.__doc__, *(method.__doc__ for method in methods if getattr(method, "__doc__", None))]


def errors_in_the_table(name: str) -> set[str]:
    short = name.removeprefix("attention_jax.").replace("view.plot.", "view.")
    cases = (case for case in test_errors.REFUSED.items() if case[0].split(":")[0].removesuffix(".place") == short)
    return {error.__name__ for _, (_, error, _) in cases}


def test_the_reference_has_every_public_name_once():
    listed = in_the_reference()
    assert set(PUBLIC) <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", in_the_reference())
def test_what_is_in_the_reference_is_there_and_says_what_it_is(name):
    assert re.match(r"\S.*\.", sections(found(name).__doc__)[""], re.DOTALL)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented_in_full(name):
    value, parts = PUBLIC[name], sections(PUBLIC[name].__doc__)
    if not hasattr(value, "_fields"):  # those of a NamedTuple have lines of their own, and what returns it an example
        assert parameters(value) - arguments(parts.get("Args", "")) == set(), "Args"
        assert ">>> " in value.__doc__ or name in NEEDS_THE_NETWORK, "example"
        raised = " ".join(sections(doc).get("Raises", "") for doc in own_docs(value))
        assert {error for error in errors_in_the_table(name) if error not in raised} == set(), "Raises"
        assert raised or inspect.isclass(value) or not re.search(r"^ +raise ", inspect.getsource(value), re.MULTILINE)
    returned = str(inspect.signature(value).return_annotation)
    if not inspect.isclass(value) and re.search("Array|tuple|dict|_empty", returned):
        assert "Returns" in parts, "Returns"
    if not name.startswith("train."):
        cited = bool(re.search(r"arXiv:\d{4}\.\d{5}|et al\. \d{4}", value.__doc__))
        assert cited != (name.removeprefix("attention_jax.") in FROM_NO_PAPER.split()), "source"


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("train.")])
def test_a_public_signature_has_types(name):
    value = PUBLIC[name]
    for function in (value.__init__, value.__call__) if is_module(value) else (value,):
        signature = inspect.signature(function)
        bare = [each for each in signature.parameters.values() if each.annotation is each.empty and each.name != "self"]
        assert bare == []
        assert inspect.isclass(value) or signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if hasattr(value, "_fields")])
def test_every_field_of_a_result_has_its_line(name):
    source = inspect.getsource(PUBLIC[name])
    for field in PUBLIC[name]._fields:
        assert re.search(rf'^    {field}: .*\n    """', source, re.MULTILINE), field
