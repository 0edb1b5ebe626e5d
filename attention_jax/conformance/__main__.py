"""`python -m attention_jax.conformance`: every implementation installed, every row of the contract."""

import argparse
import sys
import warnings
from pathlib import Path

from attention_jax.conformance import ROWS, Implementation, check, ours, peers, table


def installed() -> dict[str, Implementation]:
    """Ours, and those of peers that can be imported, by name."""
    return {each.name: each for each in (*ours.implementations(), *peers.implementations())}


def main() -> int:
    """Print the table; the exit status says whether ours pass every row."""
    parser = argparse.ArgumentParser(prog="python -m attention_jax.conformance", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="implementations, e.g. blockwise jax.nn")
    parser.add_argument("--rows", nargs="+", metavar="WORDS", help="rows whose names have all of these words")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write conformance.md and conformance.html there")
    options = parser.parse_args()
    del sys.argv[1:]  # tokamax would read them too
    known = installed()
    unknown = [name for name in options.only or [] if name not in known]
    if unknown:
        parser.error(f"no implementation {unknown[0]!r}; installed are {', '.join(known)}")
    chosen = [known[name] for name in options.only or known]
    rows = [name for name in ROWS if all(words in name for words in options.rows or [])]
    if not rows:
        parser.error(f"no row has all of {', '.join(map(repr, options.rows))}; there are: {'; '.join(ROWS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdicts = {row: {each.name: check(each, row) for each in chosen} for row in rows}
    print(table.versions(chosen), table.to_text(verdicts, chosen), sep="\n\n")
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "conformance.md").write_text(table.to_markdown(verdicts, chosen))
        (options.write / "conformance.html").write_text(table.to_html(verdicts, chosen))
    names = {each.name for each in ours.implementations()}
    return int(
        any(verdict.kind != "passes" for cells in verdicts.values() for name, verdict in cells.items() if name in names)
    )


if __name__ == "__main__":
    raise SystemExit(main())
