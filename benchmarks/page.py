"""The page of some runs, as Markdown, made from its results alone."""

import statistics

from benchmarks.results import Ratio, Results, Row, is_ours, ratio

Tables = dict[str, dict[str, list[Row]]]  # by table, then by case; ours is the first of a case

START = """# Benchmarks

The same work by this library and by others, in one process, each once in every round, in a random order, and timed
after 50 ms of its own calls. The column `attention_jax` is our time. Every other is a multiple of it, the median over
the rounds, so that above 1 the other is slower; in brackets is the middle half of the rounds. One is called faster than
another where that half lies wholly on one side of 1. All is float32, on random numbers.
"""

NOTES = {
    "attention": """
`attention_jax` is what `attention` chooses by itself; `attention_jax, reference` is our equation as it is written, with
all weights in memory. Shapes are (B, T, N, H): batch, length, heads, channels of a head; of one query, those of the
keys. JAX libraries that hold all weights are left out where T is over 1024, but for `jax.nn`, which is left out over
4096. `equinox` has a module only, whose projections are part of its time. Memory is what XLA's compiled program takes
besides its inputs and outputs; PyTorch does not tell.
""",
    "generation": """
Greedy text by the smallest GPT-2, of random weights, each library with its cache.
""",
    "shapes": """
Small problems, of which `jax.nn` holds all weights without harm. Shapes are as above; where they are padded, each
example has as many keys as chance would have it, and both are told by an array of lengths.
""",
    "training": """
A step is that of the preset `shakespeare`, beside a plain PyTorch loop of the same model and optimiser, the making of
the batch included.
""",
}

PEERS = {
    "attention": ("flax", "torch", "tokamax", "equinox"),
    "generation": ("torch", "transformers"),
    "shapes": (),
    "training": ("torch",),
}
"""What each benchmark measures where it is installed."""

ANOTHER_RUN = """\
- The spread is that within one run. Another run can differ by more, by a third on a machine that is shared.
- Another CPU ranks the libraries otherwise: README tells what was seen on others."""

BUSY = """\
- The machine had other work when some of the measuring began, as its load average says. Times in seconds are longer
  than on an idle one, and ratios are bent as well: a library whose threads wait for each other often loses more."""

CPU_ONLY = """\
- They are from a CPU. No GPU or TPU was used, and nothing here says who is faster on one."""

AGAIN = """## Run it again

```sh
pip install -e ".[train]" torch transformers    # from a checkout; more libraries are measured if they are there
python -m benchmarks --write docs               # all of it; writes this page, its plots and results
python -m benchmarks training --rounds 5        # one of attention, generation, shapes, training; prints its tables
python -m benchmarks --write docs --only-write  # the page once more, from the same results
```

Every single measurement of this page is in `docs/benchmarks/`: {files}.
"""


def to_markdown(results: Results) -> str:
    """The page."""
    parts = [START, missing(results), faster_peers(results)]
    for name, (run, rows) in results.items():
        parts += [f"## {name.capitalize()}", NOTES[name], machine(run, rows)]
        for title, cases in by_table(rows).items():
            picture = f"![{title}: others as multiples of ours](benchmarks/{file_name(title)})"
            parts += [f"### {title}", picture if peers(cases) else "", table(cases)]
    files = ", ".join(f"[{name}.json](benchmarks/{name}.json)" for name in results)
    parts += [limits([run for run, _ in results.values()]), AGAIN.format(files=files)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def by_table(rows: list[Row]) -> Tables:
    """Those that were measured, in the order in which they came."""
    tables: Tables = {}
    for row in rows:
        if row.values:
            tables.setdefault(row.table, {}).setdefault(row.case, []).append(row)
    return tables


def peers(cases: dict[str, list[Row]]) -> list[str]:
    """All that stand beside ours in a table, in the order in which they came."""
    return list(dict.fromkeys(row.implementation for _, *others in cases.values() for row in others))


def file_name(table: str) -> str:
    """That of the table's plot."""
    return table.lower().replace(",", "").replace(" ", "-") + ".svg"


def machine(run: dict, rows: list[Row]) -> str:
    """Where, when, with what and how often it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    return (
        f"Measured on {run['date']} by `{run['command']}`, {len(rows[0].values)} rounds, on {run['cores']} cores "
        f"({run['cpu']}, {run['system']}), device {run['device']}, load average {run['load']} when it began; "
        f"{versions}."
    )


def missing(results: Results) -> str:
    """What was not measured, and why."""
    reasons = {f"the benchmark {name}": "no results kept" for name in NOTES if name not in results}
    for name, (run, rows) in results.items():
        reasons |= {peer: "not installed" for peer in PEERS[name] if run["versions"].get(peer) is None}
        reasons |= {row.implementation: row.missing for row in rows if row.missing}
    return (
        "Not measured: " + "; ".join(f"{name} ({reason})" for name, reason in reasons.items()) + "." if reasons else ""
    )


def faster_peers(results: Results) -> str:
    """The section on those that take less than ours, beyond the spread."""
    lines = []
    for title, cases in (item for _, rows in results.values() for item in by_table(rows).items()):
        for case, (ours, *others) in cases.items():
            for row in others:
                taken = ratio(row, ours)
                if not is_ours(row) and taken.high < 1:
                    what = "memory" if row.unit == "MiB" else "time"
                    lines.append(f"- {title}, {case}: `{row.implementation}` takes {with_spread(taken)} of our {what}.")
    return "\n".join(["## Where others are faster", "", *(lines or ["In no case of these runs, beyond the spread."])])


def table(cases: dict[str, list[Row]]) -> str:
    """A case a row, an implementation a column."""
    columns = peers(cases)
    (first, *_), *_ = cases.values()
    ahead = ["least" if first.unit == "MiB" else "fastest"] if columns else []
    heads = ["", *ahead, first.implementation, *columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for case, (ours, *others) in cases.items():
        ratios = {row.implementation: with_spread(ratio(row, ours)) for row in others}
        cells = [unbroken(case), *([verdict(ours, others)] if ahead else []), amount(ours)]
        cells += [ratios.get(name, "") for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def amount(row: Row) -> str:
    """The median, in the unit that reads best."""
    value = statistics.median(row.values)
    if row.unit == "MiB":
        return f"{value:.1f} MiB"
    unit, size = next(
        (unit, size) for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)) if value >= size or size < 1e-3
    )
    speed = f", {row.tokens / value:,.0f} tokens/s" if row.tokens else ""
    return f"{value / size:.3g} {unit}{speed}"


def with_spread(taken: Ratio) -> str:
    spread = " " + unbroken(f"({taken.low:.2f} to {taken.high:.2f})") if taken.low != taken.high else ""
    return f"{taken.median:.2f}{spread}"


def unbroken(text: str) -> str:
    """In a narrow column, on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def verdict(ours: Row, others: list[Row]) -> str:
    """Who takes the least, and how many times as much ours or the next takes."""
    ratios = {row.implementation: ratio(row, ours) for row in others if not is_ours(row)}
    if not ratios:
        return ""
    faster = {name: taken for name, taken in ratios.items() if taken.high < 1}
    level = [name for name, taken in ratios.items() if taken.low <= 1]
    if level and not faster:
        return f"{unbroken('no difference seen')}: {', '.join(['ours', *level])}"
    name, taken = min((faster or ratios).items(), key=lambda item: item[1].median)
    if faster:
        return f"**{name}**, {unbroken(f'ours takes {1 / taken.median:.2f} times as much')}"
    return f"**ours**, {unbroken(f'{name} takes {taken.median:.2f} times as much')}"


def limits(runs: list[dict]) -> str:
    """What the numbers cannot tell."""
    lines = ["## What the numbers cannot tell", "", ANOTHER_RUN]
    lines += [BUSY] if any(run["load"] > run["cores"] / 2 for run in runs) else []
    lines += [CPU_ONLY] if all(run["device"] == "cpu" for run in runs) else []
    return "\n".join(lines)
