# SPDX-License-Identifier: Apache-2.0
"""Tells whether a recipe fits a machine, and its cost, without the machine.

python -m mixer preflight --config=FILE:ARG --topology=v4:4x4x4
  [--config.KEY=VALUE ...] [--suggest] [--json=FILE]
python -m mixer preflight --config=FILE:ARG --within=48h [--chips=v5e,h200]

--topology compiles the run's own update step and evaluation; the data can be
absent. A machine is a TPU slice, by shape or by Google Cloud's name (v4:2x2x4
or v4-32), several over a network (2xv5e:16x16), or GPUs (gpu:h200x16, two
hosts).
`pip install "jax[tpu]"` brings the TPU compiler to any machine, "jax[cuda13]"
that for GPUs. Shows on stderr the program that is being compiled, unless there
is a --json. --within compiles nothing: it lists machines that end the run in
time, by the published peaks.
"""

import contextlib
import json
import re

from absl import flags
from ml_collections import config_flags

from mixer import cli
from mixer.errors import UserError, did_you_mean
from mixer.storage import check_output, write_text

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, such as configs/pretrain_i21k.py:B/16."
)
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "The machine, such as v4:4x4x4, v3-128 or gpu:h200x8."
)
SUGGEST = flags.DEFINE_bool(
  "suggest", False, "Also try flags that save memory or time."
)
WITHIN = flags.DEFINE_string(
  "within", None, "Hours or days of the run, such as 48h or 2d."
)
CHIPS = flags.DEFINE_list(
  "chips", ["v5e", "v6e", "tpu7x", "h200", "b200"], "Kinds for --within."
)
JSON = flags.DEFINE_string("json", None, "File for every figure, in SI units.")
flags.mark_flag_as_required("config")


def main() -> int:
  from mixer.tools.preflight import compiler, topology

  if TOPOLOGY.value and WITHIN.value:
    raise UserError("Give --topology or --within, not both.")
  if not TOPOLOGY.value and not WITHIN.value:
    raise UserError(
      "Name a machine, such as --topology=v4:4x4x4, v3-128 or gpu:h200x8, or "
      "the hours of the run, such as --within=48h, to see which machines do."
    )
  if WITHIN.value:
    seconds = _parse_duration(WITHIN.value)
    if SUGGEST.value:
      raise UserError("--suggest compiles: it takes --topology, not --within.")
    known = [*topology.SLICES, *topology.GPUS]
    chips = list(dict.fromkeys(filter(None, CHIPS.value)))
    if not chips:
      raise UserError(f"--chips= names no chip. There are {', '.join(known)}.")
    for name in chips:
      if name not in known:
        raise UserError(
          f"--chips={name} is not a known chip{did_you_mean(name, known)}"
        )
  else:
    topology.parse(TOPOLOGY.value)
  if JSON.value:
    file = check_output(JSON.value, "--json", rb'{\s*"model":')
  compiler.set_environment()
  # These import jax, which reads the environment.
  from mixer.tools.preflight.preflight import plan_for, preflight
  from mixer.tools.preflight.report import describe, describe_machines
  from mixer.tools.preflight.roofline import find_machines

  if WITHIN.value:
    report = find_machines(plan_for(CONFIG.value, 1), chips, seconds)
    text = describe_machines(report)
  else:
    report = preflight(
      CONFIG.value,
      TOPOLOGY.value,
      suggests=SUGGEST.value,
      progress=contextlib.nullcontext if JSON.value else compiler.show_progress,
    )
    text = describe(report, CONFIG.value)
  print(text, flush=True)
  if JSON.value:
    write_text(file, json.dumps(report, indent=2) + "\n")
  return cli.EX_OK if report["fits"] else cli.EX_USAGE


def _parse_duration(text: str) -> float:
  """Returns seconds."""
  match = re.fullmatch(r"(\d+(?:\.\d+)?)([hd])", text)
  if not match or not float(match[1]):
    raise UserError(
      f"--within={text} is not a duration: give hours or days, such as 48h or "
      "2d."
    )
  return float(match[1]) * {"h": 3600.0, "d": 86_400.0}[match[2]]


if __name__ == "__main__":
  cli.run(main)
