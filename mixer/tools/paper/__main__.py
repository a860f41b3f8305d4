# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures next to measurements made here.

python -m mixer paper table 1|2|3|4 [--results=DIR] [--format=html] [--out=FILE]
python -m mixer paper record [ROW --workdir=RUN] [--results=DIR]
python -m mixer paper figure 2|3|4|5|6|7|throughput [--out=FILE.svg] [FLAGS]
python -m mixer paper report --workdir=RUN [--out=FILE.html]
"""

import argparse
import sys
from pathlib import Path

from mixer import cli
from mixer.errors import UserError, did_you_mean
from mixer.storage import storage_errors
from mixer.tools.paper import figures

_TABLES = "1", "2", "3", "4"


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  flags = vars(_parser().parse_args(arguments))
  return cli.run_cli(flags.pop("run"), **flags)


def _parser() -> argparse.ArgumentParser:
  parser = cli.create_parser("mixer paper", __doc__)
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
  figures.add_flag(table, "results")
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
  figures.add_flag(record, "results")
  record.set_defaults(run=_record)

  names = f"one of {', '.join(figures.FIGURES)}"
  figure = commands.add_parser(
    "figure", help=f"draw {names}", description=f"NAME is {names}."
  )
  figure.add_argument(
    "name", nargs="?", metavar="NAME", help="with --help after it: its flags"
  )
  figure.add_argument("arguments", nargs=argparse.REMAINDER, metavar="FLAGS")
  figure.set_defaults(run=figures.draw)

  report = commands.add_parser("report", help="a run as one HTML page")
  report.add_argument("--workdir", metavar="RUN", help="folder of the run")
  report.add_argument("--out", metavar="FILE.html")
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
  format = render.choose_format(format, out)
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

  if not row and not workdir:
    return protocols.list_rows()
  if not row or not workdir:
    raise UserError(
      "Name the row, and the folder of a finished run or sweep: python -m "
      "mixer paper record ROW --workdir=RUN. Without both, all rows are listed."
    )
  paper_row = numbers.find_row(row)
  from mixer.tools.paper import record

  with storage_errors(workdir):
    return record.record(paper_row, workdir, results)


def _report(workdir: str | None, out: str | None) -> str:
  if not workdir:
    raise UserError("Name the folder of a run: --workdir=RUN.")
  from mixer.tools.paper import report

  with storage_errors(workdir):
    return report.write(workdir, out)


if __name__ == "__main__":
  sys.exit(main())
