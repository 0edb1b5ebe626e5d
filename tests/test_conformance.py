"""The suite that others are put through: it tells right from wrong, and ours pass it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import suite

import attention_jax as aj
from attention_jax.conformance import ROWS, Implementation, check, oracle, ours, table
from attention_jax.conformance.__main__ import main

OURS = {each.name: each for each in ours.implementations()}
FEW = ["row that sees no key: gradients", "mixed dtypes", "precision=", "cache overrun", "Hessian-vector product"]


@pytest.mark.parametrize("row, name", [
    pytest.param(row, name, marks=() if row in FEW and name == "blockwise" else pytest.mark.slow)
    for row in ROWS for name in OURS
])  # fmt: skip
def test_ours(row, name):
    assert check(OURS[name], row).kind == "passes", check(OURS[name], row)


def test_the_oracle_is_the_other_oracle():
    """Written twice, by loops and by einsum."""
    arrays = suite.inputs((7, 9, 4, 2, 8, 5, (2,)))
    mask = np.random.default_rng(0).random((2, 4, 7, 9)) < 0.5
    mask[:, :, 3] = False
    bias = np.random.default_rng(1).normal(size=(7, 9))
    np.testing.assert_allclose(
        oracle.attention(*arrays[:3], mask, bias)[0], reference.attention(*arrays[:3], mask, bias), atol=1e-13
    )
    for one, other in zip(
        oracle.gradients(*arrays, mask, bias)[:3], reference.gradients(*arrays, mask, bias), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-13)


def wrong(change):
    """An implementation that is right but for what `change` makes of its output."""

    def attend(query, key, value, *, mask=None):
        return change(aj.attention(query, key, value, mask=mask))

    return Implementation("wrong", "0", attend)


@pytest.mark.parametrize("change, detail", [
    (lambda x: x.at[0, 1, 2, 3].add(1e-4), "output off by 0.0001"),
    (lambda x: x.at[0, 1, 2, 3].set(jnp.nan), "output NaN in 1 of 448 numbers, not"),
    (lambda x: x[:, :-1], r"output has shape \(2, 6, 4, 8\), where \(2, 7, 4, 8\) was expected"),
])  # fmt: skip
def test_a_wrong_number_deviates(change, detail):
    verdict = check(wrong(change), "unequal lengths")
    assert verdict.kind == "deviates"
    assert re.search(detail, verdict.detail)


def test_what_is_not_there_is_refused_in_its_name():
    assert repr(check(wrong(lambda x: x), "gradient of the bias")) == "Refuses: it has no bias="
    assert check(wrong(lambda x: x), "cache overrun").detail == "it has no cache"


def test_another_error_than_the_one_wanted_is_no_pass():
    def attend(query, key, value):
        raise ValueError("no\nmore")

    assert repr(check(Implementation("mine", "0", attend), "mixed dtypes")) == "Refuses: ValueError: no"


def test_the_table_has_every_verdict():
    attend = Implementation("jax.nn", jax.__version__, jax.nn.dot_product_attention)
    rows = ["unequal lengths", "int32 query, key, value"]
    verdicts = {row: {each.name: check(each, row) for each in (OURS["blockwise"], attend)} for row in rows}
    implementations = [OURS["blockwise"], attend]
    text = table.to_text(verdicts, implementations)
    assert "≠" in text and "jax.nn, int32 query, key, value: Deviates: accepted" in text
    markdown = table.to_markdown(verdicts, implementations)
    assert "| int32 query, key, value | TypeError | ✓ | ≠ |" in markdown and jax.__version__ in markdown
    page = table.to_html(verdicts, implementations)
    assert page.count("<tr>") == 3 and "<td class=deviates>" in page and "http" not in page


def test_the_snippet_runs(capsys):
    exec(table.REPRODUCE, {})
    assert capsys.readouterr().out.startswith("Deviates: output off by")


@pytest.mark.parametrize("arguments, message", [
    (["--rows", "causal", "no such thing"], "no row has all of 'causal', 'no such thing'; there are: equal lengths; "),
    (["--only", "flash"], "no implementation 'flash'; installed are reference"),
])  # fmt: skip
def test_what_is_not_there_is_named(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["conformance", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
