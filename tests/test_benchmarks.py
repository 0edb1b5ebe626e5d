"""The page of the benchmarks says what its rows say, and the rows come from runs. No time is asserted."""

import json
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import attention_jax as aj
from benchmarks import attention, interleave, plots, shapes
from benchmarks.__main__ import ROUNDS
from benchmarks.page import to_markdown
from benchmarks.results import OURS, Row, describe_run, dump, load, ratio

DOCS = Path(__file__).parents[1] / "docs"
RUN = {
    "command": "python -m benchmarks", "date": "2026-01-02", "cpu": "A CPU", "cores": 3, "load": 1.5, "device": "cpu",
    "system": "Linux x86_64", "versions": {"python": "3.11.0", "flax": "0.12.8", "torch": "2.13.0", "tokamax": "0.0.12", "equinox": None},
}  # fmt: skip
ROWS = [
    Row("Attention", "short", OURS, [2.0, 2.0, 4.0, 2.0]),
    Row("Attention", "short", "torch", [1.0, 1.0, 2.0, 1.2]),
    Row("Attention", "short", "jax.nn", [1.0, 3.0, 6.0, 1.8]),
    Row("Attention", "long", OURS, [0.002, 0.002, 0.002]),
    Row("Attention", "long", "torch", [0.003, 0.003, 0.005]),
    Row("Attention", "even", OURS, [1.0, 1.0, 1.0, 1.0]),
    Row("Attention", "even", f"{OURS}, reference", [0.5, 0.5, 0.5, 0.5]),
    Row("Attention", "even", "torch", [0.6, 0.8, 1.2, 1.4]),
    Row("Step", "of ours", OURS, [0.5, 0.5], tokens=100),
    Row("Step", "of ours", "torch.compile", [], missing="no compiler"),
]
RESULTS = {"attention": (RUN, ROWS)}


def page_of(results) -> str:
    """With plain spaces only."""
    return to_markdown(results).replace("\N{NO-BREAK SPACE}", " ")


def faster(page: str) -> list[str]:
    """What the section on faster peers lists."""
    section = page.partition("## Where others are faster\n\n")[2].partition("\n\n##")[0]
    return [line for line in section.splitlines() if line.startswith("- ")]


def test_only_peers_that_are_faster_beyond_the_spread_are_listed():
    assert faster(page_of(RESULTS)) == ["- Attention, short: `torch` takes 0.50 (0.50 to 0.53) of our time."]
    page = page_of({"attention": (RUN, [row for row in ROWS if row.case != "short"])})
    assert "In no case of these runs" in page and not faster(page)


def test_each_case_says_who_is_faster_and_by_how_much():
    page = page_of(RESULTS)
    assert (
        "| short | **torch**, ours takes 2.00 times as much | 2 s | 0.50 (0.50 to 0.53) | 1.20 (0.80 to 1.50) |  |"
        in page
    )
    assert "| long | **ours**, torch takes 1.50 times as much | 2 ms | 1.50 (1.50 to 2.00) |  |  |" in page
    assert "| even | no difference seen: ours, torch | 1 s | 1.00 (0.75 to 1.25) |  | 0.50 |" in page
    assert "| of ours | 500 ms, 200 tokens/s |" in page


def test_what_was_not_measured_is_named():
    named = page_of(RESULTS).partition("Not measured: ")[2].partition(".\n")[0]
    assert named.split("; ") == [
        "the benchmark generation (no results kept)",
        "the benchmark shapes (no results kept)",
        "the benchmark training (no results kept)",
        "equinox (not installed)",
        "torch.compile (no compiler)",
    ]
    alone = {**RUN, "versions": {**RUN["versions"], "tokamax": None, "transformers": "5.23.0"}}
    page = page_of({**RESULTS, "generation": (alone, ROWS)})
    assert "tokamax (not installed)" not in page, "generation has no use for it"


def test_the_machine_and_its_limits_are_named():
    page = page_of(RESULTS)
    assert "4 rounds, on 3 cores (A CPU, Linux x86_64), device cpu, load average 1.5 when" in page
    assert "No GPU or TPU was used" in page and "other work" not in page
    assert "The machine had other work" in page_of({"attention": ({**RUN, "load": 1.6}, ROWS)})
    assert "No GPU or TPU" not in page_of({"attention": ({**RUN, "device": "NVIDIA H100"}, ROWS)})


def test_the_committed_page_is_that_of_the_committed_results():
    page = to_markdown(load(DOCS / "benchmarks"))
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == page
    pictures = {path.name for path in (DOCS / "benchmarks").glob("*.svg")}
    assert pictures and all(f"](benchmarks/{name})" in page for name in pictures)


def test_results_come_back_as_they_were_written(tmp_path):
    run = describe_run("python -m benchmarks")
    dump(run, ROWS, tmp_path / "attention.json")
    assert load(tmp_path) == {"attention": (run, ROWS)}
    assert run["versions"]["jax"] and run["cores"] >= 1


def test_plots_are_the_same_bytes_for_the_same_rows(tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        plots.write(RESULTS, tmp_path / folder)
    names = [path.name for path in (tmp_path / "one").iterdir()]
    assert names == ["attention.svg"]  # nothing stands beside ours in the other table
    assert (tmp_path / "one" / names[0]).read_bytes() == (tmp_path / "other" / names[0]).read_bytes()


def test_every_contender_is_timed_in_every_round_after_calls_of_its_own(monkeypatch):
    """By a clock of which a call takes 7 ms, or 20: so many fill 50 ms, and 10."""
    calls, clock, takes = [], [0.0], {"a": 0.007, "b": 0.02}

    def run(name):
        calls.append(name)
        clock[0] += takes[name]

    monkeypatch.setattr(interleave.time, "perf_counter", lambda: clock[0])
    times = interleave.seconds({name: partial(run, name) for name in takes}, rounds=4)
    a, b = ["a"] * (8 + 2), ["b"] * (3 + 1)
    first, *rounds = [calls[:2], *(calls[i : i + 14] for i in range(2, len(calls), 14))]
    assert first == ["a", "b"] and len(rounds) == 4
    assert all(each in (a + b, b + a) for each in rounds) and a + b in rounds and b + a in rounds
    for name, values in times.items():
        np.testing.assert_allclose(values, 4 * [takes[name]])


def test_rounds_that_are_not_pairs_are_refused():
    with pytest.raises(ValueError):
        ratio(Row("", "", "torch", [1.0]), Row("", "", OURS, [1.0, 2.0]))


@pytest.mark.slow
def test_attention_is_measured_forward_and_backward():
    rows = list(attention.times("A window", (2, 8, 2, 4), aj.sliding_window(3, 0), rounds=2))
    assert [row.table for row in rows[:: len(rows) // 2]] == ["A window, forward", "A window, forward and backward"]
    assert {OURS, f"{OURS}, reference", "jax.nn"} <= {row.implementation for row in rows}
    assert rows[0].implementation == OURS
    assert all(len(row.values) == 2 and min(row.values) > 0 for row in rows)
    json.dumps([row.values for row in rows])


@pytest.mark.slow
def test_one_query_is_measured_forward():
    rows = list(attention.times("One query", (2, 8, 2, 4), None, rounds=2, queries=1))
    assert {row.table for row in rows} == {"One query, forward"}
    assert {OURS, "jax.nn"} <= {row.implementation for row in rows}


def test_shapes_are_drawn_once_for_all():
    drawn = shapes.drawn(20)
    assert drawn == shapes.drawn(30)[:20] and len(set(map(str, drawn))) == 20
    assert all(shape.N % shape.K == 0 and (shape.T == shape.S or shape.sees != "causal") for shape in drawn)
    assert {shape.sees for shape in drawn} == {"", "causal", "padded"} and any(shape.T != shape.S for shape in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [attention.FORWARD, attention.WITH_BACKWARD])
def test_a_shape_is_measured_beside_jax_nn(direction):
    rows = list(shapes.times("Table", shapes.Shape(2, 5, 7, 4, 1, 8, "padded"), direction, rounds=2))
    assert [row.implementation for row in rows] == [OURS, "jax.nn"]
    assert {row.case for row in rows} == {"(2, 5, 4, 8), 7 keys, 1 head of keys, padded"}


@pytest.mark.slow
def test_memory_of_all_weights_grows_faster_than_ours():
    short, long = (
        {row.implementation: row.values[0] for row in attention.memory((1, T, 1, 8)) if row.table.endswith("forward")}
        for T in (2048, 4096)
    )
    assert long["jax.nn"] / short["jax.nn"] > 3 > long[OURS] / short[OURS]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDS)
def test_a_benchmark_can_be_run_by_the_name_of_its_module(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--only-write"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(DOCS.parent / "benchmarks" / f"{name}.py"), run_name="__main__")
    assert "--only-write wants --write DIR" in capsys.readouterr().err
