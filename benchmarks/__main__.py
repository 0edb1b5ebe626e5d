"""Run the benchmarks, print the page of their results, and write it."""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.page import to_markdown
from benchmarks.results import Row, describe_run, dump, load

ROUNDS = {"attention": 15, "generation": 7, "shapes": 15, "training": 30}


def measure(name: str, rounds: int | None) -> Iterator[Row]:
    """The rows of a benchmark, each told of as it comes."""
    for row in importlib.import_module(f"benchmarks.{name}").measure(rounds or ROUNDS[name]):
        print(f"{row.table}, {row.case}: {row.implementation}", file=sys.stderr)
        yield row


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ROUNDS)}; all if there is none")
    parser.add_argument("--rounds", type=int, help="how often everything is timed, if not as often as is usual")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep results in DIR/benchmarks, and write the page")
    parser.add_argument("--only-write", action="store_true", help="run nothing: the page of the results that are there")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in ROUNDS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(ROUNDS)}")
    if options.only_write and not options.write:
        parser.error("--only-write wants --write DIR")
    command = " ".join(["python -m benchmarks", *arguments])
    del sys.argv[1:]  # tokamax would read them too
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.write / "benchmarks" if options.write else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in [] if options.only_write else options.names or ROUNDS:
            dump(describe_run(command), measure(name, options.rounds), folder / f"{name}.json")
        results = load(folder)
    page = to_markdown(results)
    print(page)
    if options.write:
        (options.write / "benchmarks.md").write_text(page, encoding="utf-8")
        plots.write(results, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
