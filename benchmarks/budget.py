# SPDX-License-Identifier: Apache-2.0
"""Holds the compiled training step of Mixer-S/32 to a budget.

python -m benchmarks.budget [--targets=cpu,v3,v4] [--update]

Compiles the ImageNet recipe's step, 32 images a device, for two devices of a
CPU (in float32) and for four chips of TPU v3 and v4 (in bfloat16; needs
libtpu). Exits with 2 if FLOPs, bytes moved, peak memory, or the number or bytes
of a kind of collective are more than 3 % above results/budget.json, which has a
budget for each target and version of jax and libtpu. --update writes the
figures there. About a minute for each target on two cores.
"""

import collections
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

from mixer.cli import create_parser, run_cli
from mixer.errors import UserError
from mixer.jax_setup import set_flags
from mixer.storage import write_text
from mixer.tools.paper.protocols import load_recipe
from mixer.tools.preflight import compiler, hlo
from mixer.tools.preflight.topology import parse

FILE = Path(__file__).parent.parent / "results" / "budget.json"
RECIPE = "configs/pretrain_i1k.py:S/32"
PER_DEVICE = 32
TOPOLOGIES = {"v3": "v3:2x2", "v4": "v4:2x2x1"}
TARGETS = ("cpu", *TOPOLOGIES)
MARGIN = 0.03
FIGURES = {
  "flops": "FLOPs",
  "bytes_moved": "bytes moved",
  "peak_memory": "bytes of peak memory",
}
PRODUCTS = "dot", "convolution", "custom-call"
LEAST_SHARE = 0.01  # of the elements outside of products, for a kind to be kept


def main() -> int:
  parser = create_parser("benchmarks.budget", __doc__)
  parser.add_argument("--targets", default=",".join(TARGETS))
  parser.add_argument("--update", action="store_true")
  options = parser.parse_args()
  return run_cli(run, targets=options.targets.split(","), update=options.update)


def run(targets: list[str], update: bool = False) -> str:
  """Measures targets; returns a sentence for each.

  Args:
    targets: of TARGETS.
    update: writes the budgets instead of comparing.

  Raises:
    UserError: an unknown target, or a figure above its budget.
  """
  if unknown := set(targets) - set(TARGETS):
    raise UserError(
      f"--targets: {', '.join(sorted(unknown))} is none of "
      f"{', '.join(TARGETS)}."
    )
  # Before the first import of jax.
  os.environ.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
  set_flags("--xla_force_host_platform_device_count=2")
  compiler.set_environment()
  budgets = json.loads(FILE.read_text()) if FILE.exists() else {}
  lines, problems = [], []
  for target in targets:
    key = budget_key(target)
    if key is None or not (update or key in budgets):
      lines.append(f"{target}: no budget for {key or 'a missing libtpu'}.")
      continue
    figures = measure(target)
    if update:
      budgets[key] = figures
    else:
      problems += compare(key, figures, budgets[key])
    lines.append(f"{key}: {describe(figures)}")
  if problems:
    problems.append(
      "If that is intended, `python -m benchmarks.budget --update` writes the "
      "new figures to results/budget.json."
    )
    raise UserError("\n".join(problems))
  if update:
    write_text(FILE, json.dumps(budgets, indent=1, sort_keys=True) + "\n")
  return "\n".join(lines)


def budget_key(target: str) -> str | None:
  """Returns a target with its compiler's versions; None without a compiler."""
  versions = [f"jax {importlib.metadata.version('jax')}"]
  if target in TOPOLOGIES:
    if not importlib.util.find_spec("libtpu"):
      return None
    versions.append(f"libtpu {importlib.metadata.version('libtpu')}")
  return ", ".join([target, *versions])


def measure(target: str) -> dict:
  """Compiles the step for a target; returns its figures per device.

  "flops"; "bytes_moved" to and from memory; "peak_memory" in bytes;
  "collectives", [number, bytes] by kind; "operations", FLOPs by kind: an
  element each, and the rest for products of matrices.
  """
  import jax

  from mixer.tools.preflight.preflight import plan_for
  from mixer.training import setup

  config = load_recipe(RECIPE)
  if target in TOPOLOGIES:
    devices = compiler.open_devices(parse(TOPOLOGIES[target]))
  else:
    devices = jax.devices()[:2]
    config.model.dtype = "float32"
  config.batch = PER_DEVICE * len(devices)
  plan = plan_for(config, len(devices))
  _, optimizer = setup.create_optimizer(plan)
  update = setup.create_update(plan, optimizer, devices)
  inputs = setup.abstract_inputs(plan, optimizer, devices)
  compiled = update.lower(*inputs).compile()

  program = compiler.read_program(compiled, len(devices), 0.0)
  elements = hlo.read_operations(hlo.parse_hlo(compiled.as_text()))
  for kind in PRODUCTS:
    del elements[kind]
  operations = {
    kind: count
    for kind, count in elements.items()
    if count >= LEAST_SHARE * elements.total()
  }
  operations["products"] = int(program.flops) - sum(operations.values())
  collectives = collections.defaultdict(lambda: [0, 0])
  for each in program.collectives:
    collectives[each.kind][0] += 1
    collectives[each.kind][1] += each.bytes
  return {
    "flops": int(program.flops),
    "bytes_moved": program.traffic.outside + program.traffic.inside,
    "peak_memory": program.peak,
    "collectives": dict(collectives),
    "operations": operations,
  }


def compare(key: str, figures: dict, budget: dict) -> list[str]:
  """Returns a sentence for each figure above its budget.

  Args:
    key: of the target.
    figures, budget: from `measure`, now and before.
  """
  pairs = {
    label: (figures[name], budget[name]) for name, label in FIGURES.items()
  }
  for kind, (count, size) in figures["collectives"].items():
    old_count, old_size = budget["collectives"].get(kind, (0, 0))
    pairs[f"number of {kind}s"] = count, old_count
    pairs[f"bytes of {kind}s"] = size, old_size
  sentences = []
  for label, (now, before) in pairs.items():
    if now > before * (1 + MARGIN):
      grown = _grown(figures, budget) if label == FIGURES["flops"] else ""
      sentences.append(f"{key}: {label} {now:,}, before {before:,}{grown}.")
  return sentences


def _grown(figures: dict, budget: dict) -> str:
  """Names the kind of operation that grew the most."""
  now, before = figures["operations"], budget["operations"]
  kind = max(now, key=lambda kind: now[kind] - before.get(kind, 0))
  return f"; the most by {kind}, {now[kind]:,}, before {before.get(kind, 0):,}"


def describe(figures: dict) -> str:
  """Returns one line of a target's figures."""
  lines = [f"{label} {figures[name]:,}" for name, label in FIGURES.items()]
  lines += [
    f"{count} {kind} of {size:,} bytes"
    for kind, (count, size) in figures["collectives"].items()
  ]
  return ", ".join(lines)


if __name__ == "__main__":
  sys.exit(main())
