"""What a run of the benchmarks leaves: rows of measurements, and what they were measured on and with."""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import jax

OURS = "attention_jax"
LIBRARIES = "jax", "jaxlib", "flax", "torch", "transformers", "tokamax", "equinox"


@dataclass(frozen=True)
class Row:
    """One implementation on one case.

    Args:
      table: heading under which the row stands.
      case: what is computed, the same for all that are compared.
      implementation: ours begin with `OURS`; those without a further word are what others are compared with.
      values: the measurements, one a round, so that those of one round can be compared.
      unit: "s" or "MiB".
      tokens: how many a call makes or reads, where that is what counts.
      missing: why there are no values.
    """

    table: str
    case: str
    implementation: str
    values: list[float]
    unit: str = "s"
    tokens: int = 0
    missing: str = ""


Results = dict[str, tuple[dict, list[Row]]]
"""Of each benchmark, the run that it comes from and its rows."""


class Ratio(NamedTuple):
    """Of a peer to ours, in the same rounds: the quartiles. Below 1 the peer takes less."""

    low: float
    median: float
    high: float


def ratio(row: Row, ours: Row) -> Ratio:
    ratios = [theirs / mine for theirs, mine in zip(row.values, ours.values, strict=True)]
    return Ratio(*statistics.quantiles(ratios, method="inclusive")) if len(ratios) > 1 else Ratio(*ratios * 3)


def is_ours(row: Row) -> bool:
    return row.implementation.startswith(OURS)


def describe_run(command: str) -> dict:
    """The machine and its load, the versions installed (None where there is none), the day and the command."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "device": jax.devices()[0].device_kind,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in LIBRARIES},
    }


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    known = dict(map(str.strip, line.partition(":")[::2]) for line in reversed(lines))  # of the first core
    vectors = {"avx512f": " with AVX-512", "avx2": " with AVX2"}  # on which it depends who is faster
    widest = next((name for flag, name in vectors.items() if flag in known.get("flags", "").split()), "")
    return known.get("model name", platform.processor()) + widest


def version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def dump(run: dict, rows: Iterable[Row], path: Path) -> None:
    """A row a line, so that two runs can be compared by `diff`."""
    short = ({**asdict(row), "values": [float(f"{value:.4g}") for value in row.values]} for row in rows)
    lines = ",\n".join(json.dumps(row) for row in short)
    path.write_text(f'{{"run": {json.dumps(run, indent=1)},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


def load(folder: Path) -> Results:
    """What `dump` has written into the folder, by the names of the files."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}
    found = {name: json.loads(text) for name, text in texts.items()}
    return {name: (results["run"], [Row(**row) for row in results["rows"]]) for name, results in found.items()}
