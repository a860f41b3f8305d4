# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures, and what was measured here beside them.

python -m mixer paper table 1|2|3|4 [--results=DIR] [--format=html] [--out=FILE]
python -m mixer paper record [ROW --workdir=RUN] [--results=DIR]
python -m mixer paper figure NAME [--out=FILE.svg] [flags of that figure]
python -m mixer paper report --workdir=RUN [--out=FILE.html]
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mixer import cli
from mixer.errors import UserError, did_you_mean
from mixer.tools.paper.measured import RESULTS

# Modules with `add_arguments(parser)` and `draw(**given) -> str`.
FIGURES = {
  "2": "mixer.tools.paper.figures.figure2",
  "4": "mixer.tools.paper.figures.figure4",
  "5": "mixer.tools.paper.figures.figure5",
  "6": "mixer.tools.paper.figures.figure6",
  "7": "mixer.tools.paper.figures.figure7",
  "throughput": "mixer.tools.paper.figures.scatter",
}
_TABLES = "1", "2", "3", "4"


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  given = vars(_parser().parse_args(arguments))
  said = sys.argv[1:] if arguments is None else arguments
  return cli.run_cli(_run, said=said, **given)


def _run(said: list[str], run: Callable[..., str], **given) -> str:
  """Runs a subcommand with its flags; `said` is the command line."""
  for i, argument in enumerate(said):
    # An empty path would be read as the folder that one is in.
    if not argument or re.fullmatch("--[a-z_]+=", argument):
      flag = argument or (said[i - 1] if i else "An argument")
      raise UserError(f"{flag} is empty: give it a value, or leave it out.")
  return run(**given)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m mixer paper",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True)

  table = commands.add_parser(
    "table", help="a table, with the measured numbers beside the paper's"
  )
  table.add_argument("number", metavar="N", help="1, 2, 3 or 4")
  _add_results(table)
  table.add_argument(
    "--format", help="text, markdown or html; default: as FILE ends, or text"
  )
  table.add_argument(
    "--out", metavar="FILE", help="*.txt, *.md or *.html; default: the terminal"
  )
  table.set_defaults(run=_table)

  record = commands.add_parser(
    "record", help="write what a run or sweep has measured to a row's file"
  )
  record.add_argument(
    "row", nargs="?", metavar="ROW", help="without any, all rows are listed"
  )
  record.add_argument(
    "--workdir", metavar="RUN", help="folder of a finished run or sweep"
  )
  _add_results(record)
  record.set_defaults(run=_record)

  figure = commands.add_parser(
    "figure", help=f"draw one of {', '.join(FIGURES)}"
  )
  figure.add_argument(
    "name", nargs="?", metavar="NAME", help="with --help after it: its flags"
  )
  figure.add_argument("rest", nargs=argparse.REMAINDER, metavar="FLAGS")
  figure.set_defaults(run=_figure)

  report = commands.add_parser("report", help="a run as one HTML page")
  report.add_argument("--workdir", metavar="RUN", help="folder of the run")
  report.add_argument("--out", metavar="FILE.html", type=Path)
  report.set_defaults(run=_report)
  return parser


def _add_results(parser: argparse.ArgumentParser):
  parser.add_argument(
    "--results",
    metavar="DIR",
    type=Path,
    default=RESULTS,
    help="default: results/ of this project",
  )


# What each subcommand needs is imported when it runs: jax and matplotlib take
# seconds.


def _table(number: str, results: Path, format: str | None, out: str | None):
  from mixer.tools.paper.tables import writing

  if number not in _TABLES:
    raise UserError(
      f"There is no table {number} to show{did_you_mean(number, _TABLES)}"
    )
  writing.choose_format(format, out)
  if not results.is_dir():
    raise UserError(
      f"There is no folder {results}: name that of the results (--results=DIR)."
    )
  return writing.write(_page(number, results), format, out)


def _page(number: str, results: Path):
  if number == "1":
    from mixer.tools.paper.tables import table1

    return table1.page()
  if number == "4":
    from mixer.tools.paper.tables import table4

    return table4.page()
  from mixer.tools.paper.tables import comparison

  return comparison.page(int(number), results)


def _record(row: str | None, workdir: str | None, results: Path) -> str:
  from mixer.tools.paper import numbers
  from mixer.tools.paper.measured import protocols

  if row is None and workdir is None:
    return protocols.listing()
  if row is None:
    raise UserError(
      f"Name the row that {workdir} is of: python -m mixer paper record ROW "
      f"--workdir={workdir}. Without both, all rows are listed."
    )
  found = numbers.find(row)
  if workdir is None:
    raise UserError(
      "Name the folder of a finished run or sweep: "
      f"python -m mixer paper record {row} --workdir=RUN."
    )
  from mixer.tools.paper.measured import record

  return record.record(found, workdir, results)


def _figure(name: str | None, rest: list[str]) -> str:
  if name not in FIGURES:
    given = f"There is no figure {name} here" if name else "Name a figure"
    raise UserError(f"{given}{did_you_mean(name or '', FIGURES)}")
  module = importlib.import_module(FIGURES[name])
  # A figure may have an --out of its own.
  parser = argparse.ArgumentParser(
    prog=f"python -m mixer paper figure {name}",
    description=module.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    conflict_handler="resolve",
  )
  parser.add_argument(
    "--out",
    metavar="FILE.svg",
    type=Path,
    default=Path(f"figure{name}.svg" if name.isdigit() else f"{name}.svg"),
    help="a PNG is written beside it",
  )
  module.add_arguments(parser)
  return module.draw(**vars(parser.parse_args(rest)))


def _report(workdir: str | None, out: Path | None) -> str:
  if workdir is None:
    raise UserError("Name the folder of a run: --workdir=RUN.")
  from mixer.tools.paper import report

  return report.write(workdir, out)


if __name__ == "__main__":
  sys.exit(main())
