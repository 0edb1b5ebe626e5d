"""`python -m train [PRESET] [--field value ...]`: the command line of training."""

import sys
from itertools import pairwise
from pathlib import Path

import tyro

from configs import PRESETS, schema
from configs.schema import Config
from train.errors import InputError, exit_status


def main(arguments: list[str]) -> int:
    """Read the command line, and run; what `--resume` goes on with needs no other fields. Returns the exit status.

    Raises:
      InputError: a preset that is not there, or not that of the run to go on, and as `train.loop.run`.
    """
    preset, name = arguments[:1], take_preset(arguments)
    about = sys.modules[f"configs.{name.replace('-', '_')}"].__doc__
    description = f"{about}\nPresets: {', '.join(PRESETS)}."
    prog = f"python -m train {name}"
    config = tyro.cli(Config, default=PRESETS[name], args=arguments, prog=prog, description=description)
    if config.resume and (saved := saved_config(config.name)):
        wanted = PRESETS[name].data.source
        if preset == [name] and wanted != saved.data.source:
            learned = saved.data.source if saved.data.path is None else str(saved.data.path)
            raise InputError(
                f"runs/{config.name} learns {learned!r}, and the preset {name} {wanted!r}: --resume goes on "
                "with the same run only, and needs no preset"
            )
        if preset == [name] and PRESETS[name].model != saved.model:
            print(f"runs/{config.name} goes on with its own model, not that of the preset {name}", file=sys.stderr)
        config = tyro.cli(Config, default=saved, args=arguments, prog=prog, description=description)
    from train.loop import run  # after the command line: a wrong field is answered before JAX is loaded

    return run(config)


def take_preset(arguments: list[str]) -> str:
    """The name of the preset that the arguments begin with, which is taken away from them; `text` if they do not.

    Raises:
      InputError: a preset that is not there, or that comes after an option's value.
    """
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in PRESETS:
            raise InputError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
        return name
    for at, (before, name) in enumerate(pairwise(arguments), 1):
        if name in PRESETS and not before.startswith("-"):
            raise InputError(f"the preset goes first: {name} {' '.join(arguments[:at])}")
    return "text"


def saved_config(name: str) -> Config | None:
    """The configuration that a run of this name began with, if there is one."""
    path = Path("runs") / name / "config.toml"
    try:
        return schema.load(path) if path.exists() else None
    except ValueError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
