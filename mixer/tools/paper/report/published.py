# SPDX-License-Identifier: Apache-2.0
"""What the paper, or whom the config names, reports for a run's results."""

import dataclasses

from mixer.tools.paper.record import find_row
from mixer.tools.paper.report.record import Record

# Column of tables 2 and 3 -> evaluators of the recipes that measure it.
_EVALUATORS = {"imagenet": ("val", "test"), "real": ("real",)}


@dataclasses.dataclass(frozen=True)
class Published:
  """A number that others report.

  value: 0 to 1.
  source: such as "paper, table 3".
  """

  value: float
  source: str


def published_results(run: Record) -> dict[str, Published]:
  """Results, such as "eval/val/accuracy", that there are numbers for.

  Those of the paper where the run is one of its rows, by its config alone;
  else those that the config's evaluators name.
  """
  found = {
    f"eval/{name}/accuracy": Published(options["published"], "by the config")
    for name, options in run.config["evals"].items()
    if options.get("published") is not None
  }
  return found | _of_tables(run)


def _of_tables(run: Record) -> dict[str, Published]:
  """Returns numbers of the row that a run is of; {} if it is of none."""
  results = {
    name: values[-1]
    for name in run.evaluation_names
    if (values := run.series(name)[1])
  }
  if not run.rows or not (match := find_row(run.folder, run.config, results)):
    return {}
  row, cells = match
  return {
    f"eval/{name}/accuracy": Published(
      getattr(row, cell) / 100, f"paper, table {row.table}"
    )
    for cell, names in _EVALUATORS.items()
    if cell in cells and getattr(row, cell) is not None
    for name in names
    if f"eval/{name}/accuracy" in results
  }
