# SPDX-License-Identifier: Apache-2.0
"""Each stage of training next to the authors' definition of it, on one page.

python -m benchmarks.fidelity [--draws=100000] [--page=docs/fidelity.html]

Random stages are drawn both here and by the definition, and compared by
Kolmogorov-Smirnov (KS) or chi-square tests; all others by their largest
difference. Writes the page and results/fidelity.json, in a minute of CPU time.
Definitions are big_vision's code, stated in NumPy (authors.py), and
pixels recorded from TensorFlow and big_vision (tests/goldens).
"""

import inspect
import sys
from pathlib import Path

from benchmarks import curves
from benchmarks.fidelity.rows import LEAST_P, cells
from benchmarks.fidelity.stages import STAGES
from mixer.cli import create_parser, run_cli
from mixer.storage import write_text
from mixer.tools.paper.render import TEMPLATES
from mixer.tools.table import render

HEAD = "stage | quantity | n | statistic | p | verdict".split(" | ")


def main() -> int:
  parser = create_parser("benchmarks.fidelity", __doc__)
  parser.add_argument("--draws", type=int, default=100_000)
  parser.add_argument("--page", type=Path, default=Path("docs/fidelity.html"))
  parser.add_argument("--results", type=Path, default=Path("results"))
  return run_cli(measure, **vars(parser.parse_args()))


def measure(draws: int, page: Path, results: Path) -> str:
  """Compares all stages, writes page and results; returns a table."""
  stages = {name: [*compare(draws)] for name, compare in STAGES.items()}
  rows = {
    name: [part for part in parts if isinstance(part, dict)]
    for name, parts in stages.items()
  }
  curves.record(results / "fidelity.json", {"draws": draws, "stages": rows})
  texts = {name: inspect.getdoc(compare) for name, compare in STAGES.items()}
  values = {"draws": draws, "least_p": LEAST_P, "head": HEAD[1:]}
  values |= {"stages": stages, "texts": texts, "rows": rows, "cells": cells}
  template = Path(__file__).with_name("page.html").read_text()
  text = TEMPLATES.from_string(template).render(
    title="Fidelity, by stage", **values
  )
  write_text(page, f"{text}\n")
  table = [(name, *cells(row)) for name, each in rows.items() for row in each]
  return render(HEAD, table)


if __name__ == "__main__":
  sys.exit(main())
