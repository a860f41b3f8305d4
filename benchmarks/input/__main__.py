# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.input [PART ...] [--folder=DIR]: prints tables."""

import argparse
import importlib
import os
import tempfile
from pathlib import Path

from absl import flags

# What each part measures, its docstring says.
PARTS = (
  "pixels",
  "draws",
  "throughput",
  "batches",
  "opening",
  "memory",
)


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.input",
    description="Measures the input pipeline.",
  )
  parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
  parser.add_argument(
    "--folder",
    type=Path,
    default=Path(tempfile.gettempdir()) / "mixer_benchmarks",
    help="for data sets, about 1 GB; they are kept (default: %(default)s)",
  )
  given = parser.parse_args()
  if unknown := set(given.parts) - set(PARTS):
    parser.error(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
  for part in given.parts or PARTS:
    module = importlib.import_module(f"benchmarks.input.{part}")
    print(f"\n{part}: {module.__doc__.strip()}\n")
    print(module.table(given.folder), flush=True)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  flags.FLAGS.mark_as_parsed()
  main()
