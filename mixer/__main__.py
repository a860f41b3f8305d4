# SPDX-License-Identifier: Apache-2.0
"""Runs a tool: python -m mixer NAME [ARGUMENT ...]; without NAME lists all."""

import runpy
import sys

from mixer.cli import output_errors, run_cli
from mixer.errors import did_you_mean

# Name, purpose and arguments for example of every command in mixer/tools.
TOOLS = {
  "data": ("prepare data sets, draw a batch", "prepare digits"),
  "weights": ("fetch, convert, verify, publish", "fetch gsam/Mixer-B_16"),
  "predict": ("classify images", "--init=RUN photos/"),
  "export": ("write weights, or a StableHLO program", "--init=RUN --out=FILE"),
  "replay": ("one update of a run: losses, layers, NaN", "RUN --step=N"),
  "sweep": ("choose a learning rate, repeat it", "--config=FILE --workdir=DIR"),
  "preflight": ("compile for another machine", "--config=FILE --topology=v4-8"),
  "goodput": ("where a run's time went", "RUN"),
  "paper": ("the paper's tables and figures, reports", "table 3"),
}


def usage() -> str:
  """Returns the list of tools, an example each."""
  tools = "\n".join(
    f"  {name:10} {purpose:41} {name} {example}"
    for name, (purpose, example) in TOOLS.items()
  )
  return (
    f"usage: python -m mixer NAME [ARGUMENT ...]\n{tools}\n"
    "train.py trains, eval.py evaluates, launch/ starts all on clusters."
  )


def main() -> int:
  """Returns 0 for the list, 2 for an unknown name; a tool exits by itself."""
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in ("help", "--help", "-h"):
    return run_cli(usage)
  if name not in TOOLS:
    problem = f"error: There is no tool {name!r}{did_you_mean(name, TOOLS)}"
    print(f"{problem}\n{usage()}", file=sys.stderr)
    return 2
  del sys.argv[1]
  with output_errors():  # also of --help
    runpy.run_module(f"mixer.tools.{name}", run_name="__main__", alter_sys=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
