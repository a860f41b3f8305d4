# SPDX-License-Identifier: Apache-2.0
"""The paper's figures, each drawn by one function."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from mixer.errors import UserError, did_you_mean
from mixer.tools.paper.results_store import RESULTS

# Name -> module.function, and the names of its flags.
FIGURES = {
  "2": ("experiments.draw_figure2", ("results",)),
  "3": ("pareto.draw_figure3", ()),
  "4": ("experiments.draw_figure4", ("results",)),
  "5": ("token_units.draw_figure5", ("init", "blocks", "units")),
  "6": ("token_units.draw_figure6", ("init", "blocks")),
  "7": ("filters.draw_figure7", ("init",)),
  "throughput": ("pareto.draw_throughput", ("results",)),
}


def draw(name: str | None, arguments: Sequence[str] = ()) -> str:
  """Draws a figure.

  Args:
    name: a key of FIGURES.
    arguments: flags of that figure, as on the command line.

  Returns:
    A sentence that names the files.

  Raises:
    UserError: there is no such figure, or it cannot be drawn.
  """
  if name not in FIGURES:
    problem = f"There is no figure {name} here" if name else "Name a figure"
    raise UserError(f"{problem}{did_you_mean(name or '', FIGURES)}")
  path, flags = FIGURES[name]
  module, function = path.split(".")
  module = importlib.import_module(f"{__name__}.{module}")
  parser = argparse.ArgumentParser(
    prog=f"python -m mixer paper figure {name}",
    description=module.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for flag in flags:
    parser.add_argument(f"--{flag}", **_FLAGS[flag])
  parser.add_argument(
    "--out",
    type=Path,
    metavar="FILE.svg",
    default=Path(f"figure{name}.svg" if name.isdigit() else f"{name}.svg"),
    help="a PNG is written next to it",
  )
  return getattr(module, function)(**vars(parser.parse_args(arguments)))


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def folder(text: str) -> Path:
  """Reads a flag; an empty path would be the current folder."""
  if not text:
    raise argparse.ArgumentTypeError("is empty: give a value, or leave it out")
  return Path(text)


_FLAGS = {
  "results": {
    "type": folder,
    "default": RESULTS,
    "metavar": "DIR",
    "help": "default: results/",
  },
  "init": {
    "required": True,
    "action": "append",
    "metavar": "WEIGHTS",
    "help": "a name, a file or a run's folder; may be given several times",
  },
  "blocks": {
    "type": _numbers,
    "metavar": "N,N,...",
    "help": "numbers of blocks, from 0; default: as in the paper",
  },
  "units": {
    "type": int,
    "default": 128,
    "help": "maximum number in a block; default: 128",
  },
}
