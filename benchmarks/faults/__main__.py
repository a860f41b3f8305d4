# SPDX-License-Identifier: Apache-2.0
"""What a run survives: python -m benchmarks.faults [TRIAL ...] [--workdir=DIR]

Trains configs/digits.py again and again while things happen to it, from
outside: signals at random moments, damage to the newest checkpoint, batches
that come to nan, a disk that is full, the loss of one of two hosts. The same
command is given again until the run has come to its end, which is then compared
with that of a run that nothing happened to: all parameters, and every loss,
norm and accuracy in metrics.jsonl, bit for bit.

Takes about 25 minutes on two cores, and root for the small disk. Leaves with 1
if anything differs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.faults.trials import Trials
from mixer.tools.table import render

HEAD = ("what happened", "times", "the end, against the undisturbed run")
NAMES = (
  "killed",
  "stopped",
  "damaged",
  "not_finite",
  "full_disk",
  "one_of_two_hosts",
)


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.faults",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("names", nargs="*", metavar="TRIAL", help=f"of {NAMES}")
  parser.add_argument("--workdir", type=Path, help="where the runs go")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  given = parser.parse_args()
  if strange := {*given.names} - {*NAMES}:
    parser.error(f"no trial {', '.join(strange)}; there are {', '.join(NAMES)}")
  folder = given.workdir or Path(tempfile.mkdtemp(prefix="faults_"))
  folder.mkdir(parents=True, exist_ok=True)
  trials = Trials(folder, given.seed)
  rows = []
  for name in given.names or NAMES:
    rows.append(getattr(trials, name)())
    print(*rows[-1], sep="; ", flush=True)
  print(render(HEAD, rows))
  return 0 if all(str(row[2]).startswith("the same") for row in rows) else 1


if __name__ == "__main__":
  sys.exit(main())
