# SPDX-License-Identifier: Apache-2.0
"""Figure 2, right: models on 3, 10, 30 and 100 % of the training images.

python -m benchmarks.data_size [--workdir=DIR] [--seeds=3]

Trains configs/data_size.py with all models and shares, once a seed, 22 minutes
on 2 CPU cores; stopped, the same command goes on. Writes
results/data_size.json, which `python -m mixer paper figure 2` draws.
"""

import sys
from pathlib import Path

from benchmarks import curves
from benchmarks.curves import Curve
from benchmarks.data_size.findings import RESULTS, findings, report
from mixer.cli import run_cli

MODELS = ("mixer-small", "mixer-large", "vit", "resnet")
SHARES = (3, 10, 30, 100)  # per cent
CURVES = [
  Curve({"model": model, "share": share}, "data_size", f"{model},share={share}")
  for model in MODELS
  for share in SHARES
]


def main() -> int:
  parser = curves.command_line("data_size", __doc__)
  return run_cli(measure, **vars(parser.parse_args()))


def measure(
  workdir: Path, seeds: int, results: Path, changes: dict | None = None
) -> str:
  """Trains, records and judges; arguments as of benchmarks.permutations."""
  trained = curves.train(CURVES, workdir, range(seeds), RESULTS, changes)
  found = findings(trained)
  curves.record(
    results / "data_size.json", {"findings": found, "curves": trained}
  )
  return report(trained, found)


if __name__ == "__main__":
  sys.exit(main())
