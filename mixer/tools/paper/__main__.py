# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures next to measurements made here.

python -m mixer paper table 1|2|3|4 [--results=DIR] [--format=html] [--out=FILE]
python -m mixer paper record [ROW --workdir=RUN] [--results=DIR]
python -m mixer paper figure 2|3|4|5|6|7|throughput [--out=FILE.svg] [FLAGS]
python -m mixer paper report --workdir=RUN [--out=FILE.html]
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mixer import cli
from mixer.errors import UserError, did_you_mean
from mixer.tools.paper import figures
from mixer.tools.paper.results_store import RESULTS

_TABLES = "1", "2", "3", "4"


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  flags = vars(_parser().parse_args(arguments))
  words = sys.argv[1:] if arguments is None else arguments
  return cli.run_cli(_run, words=words, **flags)


def _run(words: list[str], run: Callable[..., str], **flags) -> str:
  """Runs a subcommand with its flags; `words` are the command line's."""
  for i, word in enumerate(words):
    # An empty path would be read as the current folder.
    if not word or re.fullmatch("--[a-z_]+=", word):
      flag = word or (words[i - 1] if i else "An argument")
      raise UserError(f"{flag} is empty: give it a value, or leave it out.")
  return run(**flags)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m mixer paper",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True)

  table = commands.add_parser(
    "table", help="a table: measured numbers next to the paper's"
  )
  table.add_argument("number", metavar="N", help="1, 2, 3 or 4")
  table.add_argument(
    "--format", help="text, markdown or html; default: as FILE ends, or text"
  )
  table.add_argument(
    "--out", metavar="FILE", help="*.txt, *.md or *.html; default: the terminal"
  )
  table.set_defaults(run=_table)

  record = commands.add_parser(
    "record", help="record the results of a run or sweep for a row"
  )
  record.add_argument(
    "row", nargs="?", metavar="ROW", help="without any, all rows are listed"
  )
  record.add_argument(
    "--workdir", metavar="RUN", help="folder of a finished run or sweep"
  )
  record.set_defaults(run=_record)
  for command in table, record:
    command.add_argument(
      "--results",
      metavar="DIR",
      type=Path,
      default=RESULTS,
      help="default: results/ of this project",
    )

  figure = commands.add_parser(
    "figure",
    help=f"draw one of {', '.join(figures.FIGURES)}",
    description=f"NAME is one of {', '.join(figures.FIGURES)}.",
  )
  figure.add_argument(
    "name", nargs="?", metavar="NAME", help="with --help after it: its flags"
  )
  figure.add_argument("arguments", nargs=argparse.REMAINDER, metavar="FLAGS")
  figure.set_defaults(run=figures.draw)

  report = commands.add_parser("report", help="a run as one HTML page")
  report.add_argument("--workdir", metavar="RUN", help="folder of the run")
  report.add_argument("--out", metavar="FILE.html", type=Path)
  report.set_defaults(run=_report)
  return parser


# Subcommands import jax and matplotlib, which take seconds, only if they need
# them.


def _table(number: str, results: Path, format: str | None, out: str | None):
  from mixer.tools.paper import render

  if number not in _TABLES:
    raise UserError(
      f"There is no table {number} to show{did_you_mean(number, _TABLES)}"
    )
  render.choose_format(format, out)
  if not results.is_dir():
    raise UserError(
      f"There is no folder {results}: name that of the results (--results=DIR)."
    )
  if number in ("2", "3"):
    from mixer.tools.paper import result_tables

    page = result_tables.page(int(number), results)
  else:
    from mixer.tools.paper import spec_tables

    page = spec_tables.table1() if number == "1" else spec_tables.table4()
  return render.write(page, format, out)


def _record(row: str | None, workdir: str | None, results: Path) -> str:
  from mixer.tools.paper import numbers, protocols

  if row is None and workdir is None:
    return protocols.list_rows()
  if row is None:
    raise UserError(
      f"Name the row that {workdir} is of: python -m mixer paper record ROW "
      f"--workdir={workdir}. Without both, all rows are listed."
    )
  paper_row = numbers.find_row(row)
  if workdir is None:
    raise UserError(
      "Name the folder of a finished run or sweep: "
      f"python -m mixer paper record {row} --workdir=RUN."
    )
  from mixer.tools.paper import record

  return record.record(paper_row, workdir, results)


def _report(workdir: str | None, out: Path | None) -> str:
  if workdir is None:
    raise UserError("Name the folder of a run: --workdir=RUN.")
  from mixer.tools.paper import report

  return report.write(workdir, out)


if __name__ == "__main__":
  sys.exit(main())
