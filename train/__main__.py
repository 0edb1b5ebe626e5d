"""`python -m train [PRESET] [--field value ...]`: the command line of training."""

import sys

import tyro

from configs import PRESETS
from configs.schema import Config
from train.errors import InputError


def main(arguments: list[str]) -> None:
    """Read the command line, and run.

    Raises:
      InputError: a preset that is not there, and as `train.loop.run`.
    """
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "text"
    if name not in PRESETS:
        raise InputError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    description = sys.modules[f"configs.{name}"].__doc__
    prog = f"python -m train {name}"
    config = tyro.cli(Config, default=PRESETS[name], args=arguments, prog=prog, description=description)
    from train.loop import run  # after the command line: a wrong field is answered before JAX is loaded

    run(config)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
