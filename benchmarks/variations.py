# SPDX-License-Identifier: Apache-2.0
"""Variations of the token mixing against the plain Mixer, on digits.

python -m benchmarks.variations [--epochs=30] [--seeds=3] [--workdir=DIR]

Trains configs/variations.py with each of them and without, once a seed, about
10 minutes on 2 CPU cores; if stopped, the same command continues. Writes
results/variations.json. The paper's experiment (appendix A) trained on JFT-300M
and ImageNet; digits are too easy to tell much.
"""

import sys
from pathlib import Path

from benchmarks import curves
from benchmarks.curves import Curve
from mixer.cli import run_cli
from mixer.models import flops
from mixer.plan import make_plan
from mixer.tools.table import render

RESULT = "eval/test/accuracy"
PLAIN = "plain"
# The paper's conclusions.
PAPER = {
  "untied": "no noticeable improvement",
  "grouped": "less than 1 to 2 % in 5-shot accuracy",
  "views": "3 to 4 % in top-5 accuracy for S/32, none for larger models",
  "pyramid": "faster; little worse on JFT-300M, not so on ImageNet",
}
CURVES = [
  Curve({"variation": name}, "variations", name) for name in (PLAIN, *PAPER)
]
HEAD = (
  "token mixing | parameters | MMAC | accuracy, % | against plain | verdict"
).split(" | ")


def main() -> int:
  parser = curves.create_experiment_parser("variations", __doc__)
  parser.add_argument(
    "--epochs",
    type=float,
    default=30.0,
    help="above the 5 of the warm-up; default: 30",
  )
  return run_cli(measure, **vars(parser.parse_args()))


def measure(workdir: Path, epochs: float, seeds: int, results: Path) -> str:
  """Trains, records and compares; returns a table. For args see flags."""
  changes = {"total_epochs": epochs}
  trained = curves.train(
    CURVES, workdir, range(seeds), [RESULT, "eval/test/loss"], changes
  )
  for result, curve in zip(trained, CURVES, strict=True):
    model = make_plan(curves.config(curve, 0, changes)).model
    result["parameters"] = flops.count_params(model.abstract_params)
    result["multiply_accumulates"] = model.multiply_accumulates
  found = curves.gains(trained, "variation", PLAIN, RESULT)
  for name, conclusion in PAPER.items():
    found[name] = {"paper": conclusion} | found[name]
  content = {"findings": found, "curves": trained}
  curves.record(results / "variations.json", content)
  return report(trained, found)


def report(trained: list[dict], found: dict[str, dict]) -> str:
  rows = []
  for each in trained:
    name = each["variation"]
    rows.append(
      (
        name,
        f"{each['parameters']:,}",
        f"{each['multiply_accumulates'] / 1e6:.2f}",
        *curves.gain_cells(each, RESULT, found.get(name)),
      )
    )
  return (
    f"{render(HEAD, rows)}\n\nMean and deviation over seeds; differences with "
    "their 95 % interval, undecided where that has 0 in it."
  )


if __name__ == "__main__":
  sys.exit(main())
