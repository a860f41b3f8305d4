# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.input [PART ...] [--folder=DIR]: prints tables."""

import inspect
import os
import pkgutil
import tempfile
from pathlib import Path

from absl import flags

from mixer.cli import create_parser

# Part -> module; the part is a function there, described by its docstring.
PARTS = {
  "pixels": "parity",
  "draws": "parity",
  "throughput": "throughput",
  "scaled": "throughput",
  "batches": "loader",
  "opening": "loader",
  "memory": "loader",
}


def main() -> None:
  parser = create_parser("benchmarks.input", "Measures the input pipeline.")
  parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
  parser.add_argument(
    "--folder",
    type=Path,
    default=Path(tempfile.gettempdir()) / "mixer_benchmarks",
    help="for data sets, about 1 GB; they are kept (default: %(default)s)",
  )
  arguments = parser.parse_args()
  if unknown := {*arguments.parts} - {*PARTS}:
    parser.error(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
  for part in arguments.parts or PARTS:
    table = pkgutil.resolve_name(f"benchmarks.input.{PARTS[part]}:{part}")
    print(f"\n{part}: {inspect.getdoc(table)}\n")
    print(table(arguments.folder), flush=True)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  flags.FLAGS.mark_as_parsed()
  main()
