# SPDX-License-Identifier: Apache-2.0
"""Figure 4: the six curves, and whether they show what the paper's do.

python -m benchmarks.permutations [--workdir=DIR] [--seeds=3]

Trains configs/permutations.py with both models and all three inputs, once a
seed, 12 minutes on 2 CPU cores; stopped, the same command goes on. Writes
results/permutations.json, which `python -m mixer paper figure 4` draws.
"""

import sys
from pathlib import Path

from benchmarks import curves
from benchmarks.curves import Curve
from benchmarks.permutations import equivalence
from benchmarks.permutations.findings import RESULT, findings, report
from mixer.cli import run_cli

INPUTS = ("original", "patches", "pixels")
CURVES = [
  Curve(
    {"model": model, "input": kind}, "permutations", f"{model},input={kind}"
  )
  for model in ("mixer", "resnet")
  for kind in INPUTS
]
# In float32 rounding grows from update to update, until runs part.
EQUAL_STEPS = 100


def main() -> int:
  parser = curves.command_line("permutations", __doc__)
  return run_cli(measure, **vars(parser.parse_args()))


def measure(
  workdir: Path, seeds: int, results: Path, changes: dict | None = None
) -> str:
  """Trains, records and judges.

  Args:
    workdir: of all runs.
    seeds: how many, from 0 on.
    results: folder of permutations.json.
    changes: keys of all configs to set otherwise.

  Returns:
    What was found, for a person.
  """
  trained = curves.train(
    CURVES, workdir, range(seeds), [RESULT, "eval/test/accuracy"], changes
  )
  original, patches = (curves.config(curve, 0, changes) for curve in CURVES[:2])
  steps = min(EQUAL_STEPS, original.total_steps)
  equal = equivalence.compare(original, patches, workdir / "equal", steps)
  found = findings(trained, equal)
  content = {"findings": found, "equivalence": equal, "curves": trained}
  curves.record(results / "permutations.json", content)
  return report(trained, equal, found)


if __name__ == "__main__":
  sys.exit(main())
