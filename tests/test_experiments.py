"""The experiments run, and conclude from their own numbers. Whole ones take a minute each."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from attention_jax.view import html, plot
from train.errors import InputError
from train.experiments import __main__ as command
from train.experiments import comparison, head_size, induction, learning, mask, training
from train.experiments.report import Report


def test_a_page_of_all_parts(tmp_path, capsys):
    report = Report("hostile <title>")
    report.say("a < b & c")
    report.table(["", "loss"], [["one", "1.5"], ["<script>", "22.25"]])
    report.sample("What it writes", "</pre><script>alert(1)</script>")
    report.figure(plot.plot_head(np.eye(2), list("ab")), 'a "figure"')
    report.page(html(np.eye(2), list("ab")), "heads")
    report.conclude("It is 3.")
    page = report.save(tmp_path / "deep" / "page").read_text()
    assert "<h1>Hostile &lt;title&gt;</h1>" in page and "a &lt; b &amp; c" in page
    assert "<td>&lt;script&gt;</td><td>22.25</td>" in page and "alert(1)&lt;/script&gt;" in page
    assert "<script" not in page and page.count("<iframe") == 1 and page.count("data:image/png;base64,") == 1
    assert page.index("It is 3.") < page.index("a &lt; b")
    printed = capsys.readouterr().out
    assert "==> It is 3." in printed and "one         1.5\n<script>  22.25\n" in printed


@pytest.mark.slow
def test_learning_is_training(capsys):
    """The same as steps by hand, and copies that the next step does not destroy."""
    model = induction.model(1)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    learned = learning.learn(model, lambda step: induction.repeats(step, 4), 30, Report("x"), name="x", keep=(0, 7, 30))
    assert learned.losses.shape == (30,) and learned.losses[-5:].mean() < learned.losses[0]
    assert learned.last == pytest.approx(learned.losses.mean()) and list(learned.kept) == [0, 7, 30]
    states = [nnx.to_pure_dict(nnx.state(kept)) for kept in (*learned.kept.values(), learned.model)]
    for one, other in zip(jax.tree.leaves(states[0]), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(jax.tree.leaves(states[2]), jax.tree.leaves(states[3]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(jax.tree.leaves(states[0])[0], jax.tree.leaves(states[1])[0])


def test_repeats_repeat():
    tokens = induction.repeats(3).tokens
    assert np.array_equal(tokens, induction.repeats(3).tokens) and not np.array_equal(
        tokens, induction.repeats(4).tokens
    )
    periods = [next(p for p in range(1, 49) if (row[p:] == row[:-p]).all()) for row in tokens]
    assert min(periods) >= induction.SHORTEST and max(periods) <= induction.LONGEST and len(set(periods)) > 5


@pytest.mark.parametrize("task, text, right", [
    ("copy", "abc=abc", {3: [0], 4: [1], 5: [2]}),
    ("reverse", "abc=cba", {3: [2], 4: [1], 5: [0]}),
    ("sort", "bab=abb", {3: [1], 4: [0, 2], 5: [0, 2]}),
])  # fmt: skip
def test_right_keys(task, text, right):
    found = training.right_keys(task, text)
    assert {int(t): np.flatnonzero(found[t]).tolist() for t in np.flatnonzero(found.any(1))} == right


def test_the_model_without_a_mask_sees_the_future():
    rng = np.random.default_rng(0)
    query, key = (np.asarray(rng.normal(size=(5, 2, 4)), np.float32) for _ in range(2))
    changed = key.copy()
    changed[-1] += 1
    one, other = (mask.unmasked(query, k, key, mask=np.tril(np.ones((5, 5), bool))) for k in (key, changed))
    assert np.abs(one - other)[0].max() > 1e-3


@pytest.mark.slow
def test_a_difference_within_the_seeds_is_none(monkeypatch, capsys):
    """The conclusion follows the numbers, whichever they are."""
    losses = iter([1.0, 1.2, 1.1, 1.15, 1.3, 1.25, 1.0, 1.1, 1.05, 1.2, 1.3, 1.25])
    monkeypatch.setattr(comparison, "learn", lambda *args, **options: learning.Learned(None, np.ones(60), {}))
    monkeypatch.setattr(comparison, "validate", lambda *args: {"validation_loss": next(losses)})
    comparison.compare(Report("x"), 1, 2, embed_dim=8, steps=60)
    assert "the seeds overlap" in capsys.readouterr().out
    comparison.compare(Report("x"), 1, 2, embed_dim=8, steps=60)
    assert "1 head of size 8 did better than 2 heads of size 4 by 0.200 nats" in capsys.readouterr().out


def test_the_verdict_on_two_ways():
    one, other = [1.50, 1.51, 1.52], [2.00, 2.01, 2.02]
    assert "one did better than other by 0.500" in comparison.verdict({"one": one, "other": other})
    assert "one did better than other by 0.500" in comparison.verdict({"other": other, "one": one})
    assert "the seeds overlap" in comparison.verdict({"one": [1.5, 2.0, 1.7], "other": [1.6, 1.9, 1.8]})


def test_the_verdict_on_the_mask():
    said = mask.verdict([1.0, 0.1], [1.0, 2.0])
    assert "falls to 0.100 nats, 10 times lower than with it (1.000)" in said
    assert "that model loses 2.00 nats, the masked one 1.00" in said
    for losses, honest in (([1.0, 1.0], [1.0, 2.0]), ([1.0, 0.1], [1.0, 0.5])):
        assert "do not show" in mask.verdict(losses, honest)


def test_the_verdict_on_induction():
    scores, without = np.array([[0.05] * 4, [0.1, 0.9, 0.2, 0.6]]), [0.01, 0.4, 4.0, 0.1, 5.0]
    said = induction.verdict((1, 1), scores, without, 2.0)
    assert said.startswith("There is an induction head: head 1 of layer 1 gives 0.90 of its weight")
    assert "without the 2 of its kind the loss of repeated letters goes from 0.01 to 4.00 nats" in said
    assert said.endswith("One layer alone cannot do it, and ends at 2.00.")
    assert induction.verdict((1, 1), scores, without, 0.02).endswith("One layer alone ends at 0.02.")
    none = "These numbers show no induction head"
    assert induction.verdict((1, 1), scores, [0.01, 0.4, 0.3, 0.1, 5.0], 2.0).startswith(none)
    assert induction.verdict((1, 1), scores, [0.01, 0.4, 4.0, 2.5, 5.0], 2.0).startswith(none)
    assert induction.verdict((1, 1), scores / 2, without, 2.0).startswith(none)
    assert induction.verdict((0, 1), scores[::-1], without, 2.0).startswith(none)


def test_many_narrow_heads_are_compared_as_one_wide_one_is(monkeypatch):
    calls = []
    monkeypatch.setattr(head_size, "compare", lambda report, *heads, **sizes: calls.append((heads, sizes)))
    head_size.run(Report("x"))
    assert calls == [((16, 4), {"embed_dim": 64, "steps": 800})]


def test_the_command_line(capsys):
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in command.EXPERIMENTS)
    with pytest.raises(InputError, match=r"got 'nonsense'.*\n  mask"):
        command.main(["nonsense"])
    with pytest.raises(InputError, match="one experiment"):
        command.main(["mask", "heads"])


CONCLUSIONS = {
    "mask": r"Without the mask the training loss falls to 0\.0\d+ nats",
    "heads": r"8 heads of size 8 did better than 1 head of size 64",
    "head_size": r"the seeds overlap",
    "scale": r"1/sqrt\(d\) did better than no factor by 0\.\d+ nats a character, and the worst of its seeds better",
    "training": r"copy: from 0\.[12]\d to 0\.[5-9]\d, 100 %",
    "induction": r"There is an induction head: head \d of layer 1 gives 0\.[89]\d",
}


@pytest.mark.training
@pytest.mark.parametrize("name", command.EXPERIMENTS)
def test_whole(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([name]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "runs/experiments" / name / "index.html").read_text()
    assert re.search(f"==> .*{CONCLUSIONS[name]}", printed), printed
    assert "data:image/png" in page and "conclusion" in page
