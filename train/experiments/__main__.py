"""`python -m train.experiments [NAME]`: run an experiment, or list them."""

import importlib
import sys
import time
from pathlib import Path

from train.errors import InputError, exit_status

EXPERIMENTS = {
    "mask": "the causal mask removed",
    "heads": "1 head against 8",
    "head_size": "16 heads of size 4 against 4 of size 16",
    "scale": "with and without the factor 1/sqrt(d)",
    "training": "attention over training on copy, reverse and sort",
    "induction": "an induction head in a two-layer model",
}


def main(arguments: list[str]) -> int:
    """Run the experiment named, and say where its page is. Returns the exit status.

    Raises:
      InputError: there is no experiment of that name.
    """
    listed = "\n".join(f"  {name:10} {what}" for name, what in EXPERIMENTS.items())
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"python -m train.experiments NAME\n\n{listed}\n\nEach writes runs/experiments/NAME/index.html.")
        return 0
    name, *rest = arguments
    if name not in EXPERIMENTS or rest:
        raise InputError(f"expected the name of one experiment, got {' '.join(arguments)!r}; there are:\n{listed}")
    from train.experiments.report import Report  # after the command line, which is answered before JAX is loaded
    from train.memory import keep_freed_memory

    keep_freed_memory()
    start, report = time.perf_counter(), Report(EXPERIMENTS[name])
    try:
        importlib.import_module(f"train.experiments.{name}").run(report)
        path = report.save(Path("runs/experiments") / name)
    except OSError as error:
        raise InputError(f"runs/experiments/{name}: cannot be written ({error.strerror})") from error
    print(f"\n{time.perf_counter() - start:.0f} s; with pictures: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
