# SPDX-License-Identifier: Apache-2.0
"""Runs train.py with a pause after each row of the log.

python tests/slow_train.py SECONDS --config=... --workdir=...
"""

import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main():
  sys.path[0] = str(ROOT)
  from mixer.training.metrics import MetricWriter

  seconds = float(sys.argv.pop(1))
  write = MetricWriter.write

  def write_and_pause(*arguments):
    write(*arguments)
    time.sleep(seconds)

  MetricWriter.write = write_and_pause
  runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
  main()
