# SPDX-License-Identifier: Apache-2.0
"""Calls of the scripts in launch/."""

import os
import signal
import sys
from pathlib import Path

import runs
from runs import ROOT

from mixer import cli

LAUNCH = ROOT / "launch"
AGAIN = [cli.EX_TEMPFAIL, 128 + signal.SIGABRT, 128 + signal.SIGKILL]
FLAGS = [
  "--config=configs/pretrain_i21k.py:B/16",
  "--workdir=/runs/b16",
  """--config.data.ops=a("b") | c('d') & \\e {name} $HOME""",
]
SLURM_PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun"


def run(*command, folder=ROOT, **environ):
  return runs.run([*map(str, command)], os.environ | environ, folder)


def write_program(path: Path, text: str) -> Path:
  path.write_text(text)
  path.chmod(0o755)
  return path


# Records its arguments.
RECORDS = f"""#!{sys.executable}
import json, sys
json.dump(sys.argv[1:], open(sys.argv[0] + ".called", "w"))
"""


def exits_with(code: int) -> str:
  """Returns a shell command; codes above 128 are those of signals."""
  return f"kill -{code - 128} $$" if code > 128 else f"exit {code}"
