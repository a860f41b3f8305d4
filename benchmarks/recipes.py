# SPDX-License-Identifier: Apache-2.0
"""Recipes beyond the paper against the plain one, on small data.

python -m benchmarks.recipes [--seeds=5] [--workdir=DIR]

Trains configs/regularisation.py with each recipe on photographs and digits,
once a seed; if stopped, the same command continues. Writes results/recipes.json
with what each recipe does here; ImageNet is another matter. Takes some 35
minutes on two cores.
"""

import sys
from pathlib import Path

from benchmarks import curves
from benchmarks.curves import Curve
from configs.regularisation import DATA, RECIPES
from mixer.cli import run_cli
from mixer.tools.table import render

RESULT = "eval/test/accuracy"
PLAIN, TEACHER = "plain", "larger"
TEACHER_SEED = 9  # none of the students'
HEAD = ("data", "recipe", "accuracy, %", "against plain", "verdict")


def main() -> int:
  parser = curves.create_experiment_parser("recipes", __doc__, seeds=5)
  return run_cli(measure, **vars(parser.parse_args()))


def measure(workdir: Path, seeds: int, results: Path) -> str:
  """Trains, records and compares; returns a table. For args see flags."""
  rows, content = [], {}
  for data in DATA:
    teacher = workdir / f"{data}_{TEACHER}_seed_{TEACHER_SEED}"
    curve = Curve({}, "regularisation", f"{TEACHER},data={data}")
    config = curves.config(curve, TEACHER_SEED, None)
    curves.prepare(config.data.name)
    taught = curves.finish(config, teacher, [RESULT])
    trained = curves.train(
      [
        Curve(
          {"data": data, "method": recipe},
          "regularisation",
          f"{recipe},data={data},teacher={teacher}",
        )
        for recipe in RECIPES
        if recipe != TEACHER
      ],
      workdir,
      range(seeds),
      [RESULT, "eval/test/loss"],
    )
    found = curves.gains(trained, "method", PLAIN, RESULT)
    content[data] = {"findings": found, "curves": trained, "teacher": taught}
    for each in trained:
      name = each["method"]
      cells = curves.gain_cells(each, RESULT, found.get(name))
      rows.append((data, name, *cells))
    rows.append(
      (data, "its teacher", f"{100 * taught[RESULT][-1]:.1f}", "", "")
    )
  curves.record(results / "recipes.json", content)
  return (
    f"{render(HEAD, rows)}\n\nMean and deviation over seeds; differences with "
    "their 95 % interval, undecided where that has 0 in it. All students of a "
    "data set have the same teacher."
  )


if __name__ == "__main__":
  sys.exit(main())
