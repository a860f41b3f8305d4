# SPDX-License-Identifier: Apache-2.0
"""Shows where a run's time went, over all its starts: goodput RUN."""

import sys

from mixer import cli
from mixer.errors import UserError
from mixer.storage import storage_errors
from mixer.tools.paper.run_reader import find_folder
from mixer.tools.table import render
from mixer.training.goodput import FILE, KINDS, read_goodput
from mixer.training.progress import format_seconds


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  parser = cli.create_parser("mixer goodput", __doc__)
  parser.add_argument("run", metavar="RUN", help="its folder, local or gs://")
  return cli.run_cli(show, **vars(parser.parse_args(arguments)))


def show(run: str) -> str:
  """Returns the table of a run that is done, in progress or broken off.

  Raises:
    UserError: the folder has no ledger, or a damaged one.
  """
  with storage_errors(run):
    folder = find_folder(run)
    line, seconds, _ = read_goodput(folder)
  if not seconds:
    raise UserError(
      f"{folder} has no {FILE}: name the folder of a run; one of an older "
      "version has none until it is started again."
    )
  wall = sum(seconds.values())
  rows = [
    (label, format_seconds(seconds[kind]), f"{seconds[kind] / wall:.1%}")
    for kind, label in KINDS.items()
  ]
  rows.append(("all", format_seconds(wall), "100.0%"))
  return f"Goodput: {line}.\n\n{render(('', 'time', 'share'), rows)}"


if __name__ == "__main__":
  sys.exit(main())
