# SPDX-License-Identifier: Apache-2.0
"""How tests call the scripts in launch/."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from mixer import cli

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
AGAIN = [cli.EX_TEMPFAIL, 128 + signal.SIGABRT, 128 + signal.SIGKILL]
FLAGS = [
  "--config=configs/pretrain_i21k.py:B/16",
  "--workdir=/runs/b16",
  """--config.data.ops=a("b") | c('d') & \\e {name} $HOME""",
]
SLURM_PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun"


def run(*command, folder=ROOT, **environ) -> subprocess.CompletedProcess:
  return subprocess.run(
    [str(word) for word in command],
    cwd=folder,
    env=os.environ | environ,
    capture_output=True,
    text=True,
    timeout=60,
  )


def write_program(path: Path, text: str) -> Path:
  path.write_text(text)
  path.chmod(0o755)
  return path


# Notes what it is called with.
RECORDS = f"""#!{sys.executable}
import json, sys
json.dump(sys.argv[1:], open(sys.argv[0] + ".called", "w"))
"""


def leaves_with(code: int) -> str:
  """In the shell; a code that stands for a signal is left with by it."""
  return f"kill -{code - 128} $$" if code > 128 else f"exit {code}"
