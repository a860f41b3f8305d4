# SPDX-License-Identifier: Apache-2.0
"""What the paper, or whom the config names, reports for a run's results."""

import dataclasses

from mixer.errors import UserError
from mixer.tools.paper.measured import offered
from mixer.tools.paper.measured import record as paper_records
from mixer.tools.paper.measured.offered import Offered, Part
from mixer.tools.paper.numbers import ROWS
from mixer.tools.paper.protocols import protocol
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
  """The row of table 2 or 3 that a run is of; {} if it is of none."""
  if not run.rows:
    return {}
  means = {
    name: {"mean": values[-1], "deviation": None, "runs": 1}
    for name in run.evaluation_names
    if (values := run.series(name)[1])
  }
  rate = run.config["optimizer"]["learning_rate"]
  part = Part(run.config, means, learning_rate=rate)
  whole = Offered(run.folder, offered.RUN, {"": part}, origin={})
  for row in ROWS.values():
    if (how := protocol(row)) is None:
      continue
    try:
      cells = paper_records.collect(row, how, whole)[0]["cells"]
    except UserError:  # says which keys differ: the run is of another row
      continue
    return {
      f"eval/{name}/accuracy": Published(
        getattr(row, cell) / 100, f"paper, table {row.table}"
      )
      for cell, names in _EVALUATORS.items()
      if cell in cells and getattr(row, cell) is not None
      for name in names
      if f"eval/{name}/accuracy" in means
    }
  return {}
