# SPDX-License-Identifier: Apache-2.0
"""The paper's figures, each drawn by one function."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from mixer.cli import create_parser
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
  """Draws a figure and returns a sentence that names the files.

  Args:
    name: a key of FIGURES.
    arguments: flags of that figure, as on the command line.

  Raises:
    UserError: there is no such figure, or it cannot be drawn.
  """
  if name not in FIGURES:
    problem = f"There is no figure {name} here" if name else "Name a figure"
    raise UserError(f"{problem}{did_you_mean(name or '', FIGURES)}")
  path, flags = FIGURES[name]
  module, function = path.split(".")
  module = importlib.import_module(f"{__name__}.{module}")
  parser = create_parser(f"mixer paper figure {name}", module.__doc__)
  for flag in flags:
    add_flag(parser, flag)
  parser.add_argument(
    "--out",
    type=Path,
    metavar="FILE.svg",
    default=Path(f"figure{name}.svg" if name.isdigit() else f"{name}.svg"),
    help="a PNG is written next to it",
  )
  return getattr(module, function)(**vars(parser.parse_args(arguments)))


def add_flag(parser: argparse.ArgumentParser, name: str) -> None:
  """Adds a flag of _FLAGS to a command."""
  parser.add_argument(f"--{name}", **_FLAGS[name])


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


_FLAGS = {
  "results": dict(
    type=Path, default=RESULTS, metavar="DIR", help="default: results/"
  ),
  "init": dict(
    required=True,
    action="append",
    metavar="WEIGHTS",
    help="a name, a file or a run's folder; may be given several times",
  ),
  "blocks": dict(
    type=_numbers,
    metavar="N,N,...",
    help="numbers of blocks, from 0; default: as in the paper",
  ),
  "units": dict(
    type=int, default=128, help="maximum number in a block; default: 128"
  ),
}
