"""What an experiment says: on the terminal as it goes, and as one page with figures."""

import base64
import io
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from attention_jax.view.page import Page

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: light-dark(#1c2430, #e6e9ef); background: light-dark(#fff, #14181f); }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid light-dark(#d5dae2, #39414e); }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
figure { margin: 1.5rem 0; }
figcaption { color: light-dark(#566073, #a3acbb); font-size: .9rem; }
pre { white-space: pre-wrap; padding: .8rem; border-radius: 6px; background: light-dark(#f2f4f7, #1e242d); }
.conclusion { padding: .8rem 1rem; border-left: 4px solid #3b6fd4; background: light-dark(#eef3fc, #1b2536); }
"""


CLEAR = "\r\033[K"  # the line, of the progress that it shows


class Report:
    """Paragraphs, tables and figures in the order in which they are added.

    >>> Report("an experiment").title
    'An experiment'
    """

    def __init__(self, title: str):
        self.title, self.shown = title[0].upper() + title[1:], 0.0
        self.parts: list[str] = []

    def say(self, text: str) -> None:
        """A paragraph."""
        _print(f"\n{text}")
        self.parts.append(f"<p>{escape(text)}</p>")

    def conclude(self, text: str) -> None:
        """What the numbers come to; on the page, it stands first."""
        _print(f"\n==> {text}")
        self.parts.insert(0, f'<p class="conclusion">{escape(text)}</p>')

    def sample(self, title: str, text: str) -> None:
        """What a model wrote."""
        _print(f"\n{title}:\n{text}")
        self.parts.append(f"<h3>{escape(title)}</h3><pre>{escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Numbers, as they are to be printed."""
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join([row[0].ljust(len(first)), *others]))
        cells = [("th", header), *(("td", row) for row in rows)]
        lines = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in cells]
        self.parts.append("<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>")

    def figure(self, figure: Figure, caption: str) -> None:
        """A picture, which becomes part of the page."""
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        self.image(file.getvalue(), "png", caption)

    def image(self, content: bytes, kind: str, caption: str) -> None:
        """A picture that is made already, such as a gif."""
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        text = escape(caption, quote=True)
        self.parts.append(f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>')

    def page(self, page: Page, caption: str) -> None:
        """A page of `attention_jax.view.html`, to be looked at within this one."""
        self.parts.append(f"<figure>{page._repr_html_()}<figcaption>{escape(caption)}</figcaption></figure>")

    def progress(self, text: str) -> None:
        """How far it is, on the terminal alone, at most twice a second."""
        if sys.stdout.isatty() and time.monotonic() - self.shown > 0.5:
            print(f"{CLEAR}{text}", end="", flush=True)
            self.shown = time.monotonic()

    def save(self, directory: Path) -> Path:
        """Write the page; returns where it is."""
        directory.mkdir(parents=True, exist_ok=True)
        path, unfinished = directory / "index.html", directory / "index.html.unfinished"
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.title)}</title>'
        head += f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        unfinished.write_text(f"{head}<h1>{escape(self.title)}</h1>{''.join(self.parts)}\n", encoding="utf-8")
        unfinished.replace(path)
        return path


def _print(text: str) -> None:
    """On a terminal in place of the progress, and wrapped to its width."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = CLEAR + "\n".join(textwrap.fill(line, width, replace_whitespace=False) for line in text.splitlines())
    print(text)
