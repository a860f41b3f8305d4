# SPDX-License-Identifier: Apache-2.0
"""Tells whether a recipe fits a machine, and its cost, without the machine.

python -m mixer preflight --config=FILE:ARG --topology=v4:4x4x4
  [--config.KEY=VALUE ...] [--suggest] [--json=FILE]

Compiles the run's own update step and evaluation; the data can be absent. A
topology is a TPU slice, by shape or by Google Cloud's name (v4:2x2x4 or v4-32),
or gpu:h200x8. `pip install "jax[tpu]"` brings the TPU compiler to any machine,
and `pip install "jax[cuda13]"` that for H100 and H200. Other GPUs are judged by
a TPU's compiler. Shows on stderr the program that is being compiled, unless
there is a --json.
"""

import contextlib
import json

from absl import flags
from ml_collections import config_flags

from mixer import cli
from mixer.errors import UserError
from mixer.storage import atomic_write, check_output

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, such as configs/pretrain_i21k.py:B/16."
)
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "The machine, such as v4:4x4x4, v3-128 or gpu:h200x8."
)
SUGGEST = flags.DEFINE_bool(
  "suggest", False, "Search for the most images at once that fit."
)
JSON = flags.DEFINE_string("json", None, "File for every figure, in SI units.")
flags.mark_flag_as_required("config")


def main() -> int:
  from mixer.tools.preflight import compiler, topology

  if not TOPOLOGY.value:
    raise UserError(
      "Name a machine, such as --topology=v4:4x4x4, v3-128 or gpu:h200x8."
    )
  topology.parse(TOPOLOGY.value)
  if JSON.value:
    file = check_output(JSON.value, "--json", rb'{\s*"model":')
  compiler.set_environment()
  # These import jax, which reads the environment.
  from mixer.tools.preflight.preflight import preflight
  from mixer.tools.preflight.report import describe

  report = preflight(
    CONFIG.value,
    TOPOLOGY.value,
    suggests=SUGGEST.value,
    progress=contextlib.nullcontext if JSON.value else compiler.show_progress,
  )
  print(describe(report, CONFIG.value), flush=True)
  if JSON.value:
    with atomic_write(file) as aside:
      aside.write_text(json.dumps(report, indent=2) + "\n")
  return cli.EX_OK if report["fits"] else cli.EX_USAGE


if __name__ == "__main__":
  cli.run(main)
