"""Verdicts as a table: for the terminal, as Markdown and as HTML."""

import html
import platform

import jax

from attention_jax.conformance.implementation import Implementation
from attention_jax.conformance.verdict import ROWS, Verdict

Verdicts = dict[str, dict[str, Verdict]]  # by row, then by implementation

SIGNS = {"passes": "✓", "deviates": "≠", "refuses": "–"}
LEGEND = "✓ passes, ≠ deviates, – refuses"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1d2330; }
table { border-collapse: collapse; } th, td { padding: .3rem .6rem; border-bottom: 1px solid #dde1e8; }
thead th { position: sticky; top: 0; background: #fff; text-align: left; vertical-align: bottom; }
tbody th { text-align: left; vertical-align: top; font-weight: 500; min-width: 11rem; } td.expected { color: #5b6475; }
td { vertical-align: top; min-width: 5.5rem; } td.expected { min-width: 9rem; }
small { display: block; max-width: 9rem; font-weight: normal; overflow-wrap: anywhere; color: #5b6475; }
.passes b { color: #157347; } .deviates b { color: #b3261e; } .refuses b { color: #8a6100; }
.deviates { background: #fdf1f0; } .refuses { background: #fdf8ec; }
pre { background: #f4f6f9; padding: .8rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body, thead th { background: #14171c; color: #e6e9ef; } td.expected, small { color: #a3abba; }
  th, td { border-color: #2b313c; } pre { background: #1d222a; }
  .deviates { background: #2c1a1a; } .refuses { background: #292213; }
  .passes b { color: #4cc38a; } .deviates b { color: #ff8f87; } .refuses b { color: #e2b558; }
}
"""


def versions(implementations: list[Implementation]) -> str:
    """What the table was made on."""
    libraries = dict.fromkeys(f"{each.name} {each.version}" for each in implementations)
    return f"Python {platform.python_version()}, jax {jax.__version__}, {jax.default_backend()}: {', '.join(libraries)}"


def to_text(verdicts: Verdicts, implementations: list[Implementation]) -> str:
    """Signs in columns, then what was measured where they are not ✓."""
    width = max(map(len, verdicts))
    names = [each.name for each in implementations]
    lines = [" " * width + "  " + "  ".join(names)]
    for row, cells in verdicts.items():
        signs = (SIGNS[cells[name].kind].center(len(name)) for name in names)
        lines.append(f"{row:{width}}  " + "  ".join(signs).rstrip())
    lines += ["", LEGEND, ""]
    for row, cells in verdicts.items():
        lines += [f"{name}, {row}: {verdict!r}" for name, verdict in cells.items() if verdict.kind != "passes"]
    return "\n".join(lines)


def to_markdown(verdicts: Verdicts, implementations: list[Implementation]) -> str:
    names = [each.name for each in implementations]
    lines = ["# Conformance", "", _introduction(implementations), "", f"{LEGEND}.", ""]
    lines += ["| | expected | " + " | ".join(names) + " |", "|---|---|" + ":-:|" * len(names)]
    for row, cells in verdicts.items():
        signs = [SIGNS[cells[name].kind] for name in names]
        lines.append(f"| {row} | {ROWS[row].expected} | " + " | ".join(signs) + " |")
    for name in names:
        found = [(row, cells[name]) for row, cells in verdicts.items() if cells[name].kind != "passes"]
        if found:
            lines += ["", f"## {name}", ""]
            lines += [f"- {row}: {verdict.kind}. `{verdict.detail.replace('`', chr(39))}`" for row, verdict in found]
    return "\n".join([*lines, "", "## Seeing one for yourself", "", "```python", REPRODUCE, "```", ""])


def to_html(verdicts: Verdicts, implementations: list[Implementation]) -> str:
    """One file with no other beside it."""
    names = [each.name for each in implementations]
    header = "".join(
        f"<th>{html.escape(each.name)}<small>{html.escape(each.version)}</small></th>" for each in implementations
    )
    body = ""
    for row, cells in verdicts.items():
        body += f"<tr><th>{html.escape(row)}</th><td class=expected>{html.escape(ROWS[row].expected)}</td>"
        for name in names:
            kind, detail = cells[name].kind, html.escape(cells[name].detail)
            body += (
                f"<td class={kind}><b title={kind}>{SIGNS[kind]}</b>{f'<small>{detail}</small>' if detail else ''}</td>"
            )
        body += "</tr>\n"
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Conformance</title><style>{STYLE}</style>\n<h1>Conformance</h1>\n"
        f"<p>{html.escape(_introduction(implementations))}</p>\n<p>{LEGEND}.</p>\n"
        f"<table><thead><tr><th></th><th>expected</th>{header}</tr></thead><tbody>\n{body}</tbody></table>\n"
        f"<h2>Seeing one for yourself</h2>\n<pre>{html.escape(REPRODUCE)}</pre>\n</html>\n"
    )


REPRODUCE = """from attention_jax.conformance import check
from attention_jax.conformance.__main__ import installed

print(check(installed()["jax.nn"], "row that sees no key: output"))"""


def _introduction(implementations):
    return (
        "What implementations of attention do at the edges, against a float64 oracle, as "
        f"python -m attention_jax.conformance measured it on {versions(implementations)}."
    )
