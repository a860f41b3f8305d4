# SPDX-License-Identifier: Apache-2.0
"""What preflight has found, for a person and for a program."""

import collections
import dataclasses
import math
from collections.abc import Iterator

from mixer.chips import GIB
from mixer.tools.preflight.check import Report
from mixer.tools.preflight.compiler import DoesNotFit, Program
from mixer.tools.preflight.estimate import Estimate, paper_core_days
from mixer.tools.preflight.gpu_compiler import advice
from mixer.tools.preflight.suggestion import Suggestion
from mixer.tools.table import render

HOUR = 3600.0
WORTH = 0.02  # of a step's time, to speak of


_SCANNED = (
  "no estimate: the compiler counts a loop over blocks as one block; see "
  "without config.model.scan"
)


def describe(report: Report) -> str:
  """The report for a terminal, the verdict first."""
  name = report.plan.config.model.name
  lines = [
    f"{name} on {report.topology.name}: {verdict(report)}.",
    "",
    *_machine(report),
    "",
    _memory(report),
  ]
  if report.estimate:
    work, money = _work(report, report.estimate), _cost(report, report.estimate)
    lines += ["", *work, *money]
  elif report.plan.config.model.scan and report.fits:
    lines += ["", _line("a step", _SCANNED)]
  if not report.fits and not report.suggestions:
    lines += ["", "With --suggest this looks for what would fit."]
  for key, suggestion in report.suggestions.items():
    lines += ["", *_suggestion(report, key, suggestion)]
  if report.sharded:
    lines += ["", _line("sharding", sharding(report))]
  return "\n".join(lines)


def sharding(report: Report) -> str:
  """Whether config.shard_state is worth it, and by what figures."""
  key, other = "config.shard_state=True", report.sharded
  peak = other.training.peak + report.waiting if other.estimate else math.inf
  if peak > report.limit:
    return f"{key} does not make it fit"
  figures = f"peak {_gib(peak)} GiB, a step {_ms(other.estimate.step_seconds)}"
  if not report.estimate or report.training_peak > report.limit:
    return f"{key} makes it fit: {figures}"
  saves = 1 - other.estimate.step_seconds / report.estimate.step_seconds
  if saves > WORTH:
    why = "faster: worth it"
  elif saves < -WORTH:
    why = "slower: for where memory is short"
  else:
    why = "as fast: for where memory is short"
  return (
    f"{key}: {figures}, instead of {_gib(report.training_peak)} GiB and "
    f"{_ms(report.estimate.step_seconds)}; {why}"
  )


def verdict(report: Report) -> str:
  if not report.fits:
    return "does not fit"
  if report.compiled_for is not report.topology:
    return "would fit"
  return "compiles and fits"


def _machine(report: Report) -> Iterator[str]:
  plan, topology = report.plan, report.topology
  chip = topology.chip
  yield _line(
    "machine",
    f"{_count(topology.hosts, 'host')}, {_count(topology.chips, 'chip')}, "
    f"{_count(topology.devices, 'jax device')} of "
    f"{chip.memory / chip.devices / GIB:.4g} GiB",
  )
  yield _line(
    "batch",
    f"{plan.config.batch:,} = {topology.devices:,} devices x "
    f"{plan.data.per_device} x {plan.data.accumulation} accumulated; "
    f"{plan.schedule.total_steps:,} steps",
  )
  stand_in = report.compiled_for
  if stand_in is topology and not chip.is_tpu:
    yield _line(
      "compiled",
      "by XLA for this GPU, products by cuBLAS; on the GPU itself it tries "
      "kernels of its own as well. FLOP are the model's own",
    )
  if stand_in is not topology:
    text = (
      f"memory and bytes are those of {stand_in.name} at as many images per "
      "device"
    )
    if plan.config.shard_state:
      text += (
        f"; the state is shared by {stand_in.devices} devices "
        f"there, not by {topology.devices}"
      )
    yield _line("stand-in", f"{text}. {advice(chip)}")


def _memory(report: Report) -> str:
  """A table of what is in a device's memory at once."""
  rows = []
  for name, program, peak in (
    ("training step", report.training, report.training_peak),
    ("evaluation", report.evaluation, report.evaluation_peak),
  ):
    if isinstance(program, DoesNotFit):
      sizes = ["refused by the compiler", "", "", ""]
    elif program is not None:
      parts = (
        program.arguments,
        program.temporaries,
        program.outputs + program.code,
        peak - program.peak,
      )
      sizes = [_gib(part) for part in parts]
    else:
      continue
    spare = _gib(report.limit - peak)
    rows.append((name, *sizes, _gib(peak), spare))
  head = "GiB per device, arguments, temporaries, outputs and code, beside it"
  limit = f"left of {_gib(report.limit)}"
  return render([*head.split(", "), "peak", limit], rows)


def _work(report: Report, found: Estimate) -> Iterator[str]:
  yield _line(
    "a step",
    f"{found.flops / 1e12:.3g} TFLOP and {_bytes(found.bytes_moved)} to and "
    "from memory per device",
  )
  totals = collections.defaultdict(list)
  for each in report.training.collectives:
    totals[each.kind].append(each.bytes)
  sent = [
    f"{len(sizes)} {kind} of {_bytes(sum(sizes))}"
    for kind, sizes in totals.items()
  ]
  yield _line("collectives", "; ".join(sent) or "none")
  least = found.roofline
  yield _line(
    "at least",
    f"{_ms(least.step)} = the larger of compute {_ms(least.compute)} and "
    f"memory {_ms(least.memory)}, then communication "
    f"{_ms(least.communication)}",
  )
  yield _line(
    "compiler",
    f"expects {_ms(found.compiler_seconds)}"
    if found.compiler_seconds
    else "unknown: it gives no time, or an impossible one",
  )


def _cost(report: Report, found: Estimate) -> Iterator[str]:
  origin = (
    "as the compiler expects"
    if found.step_seconds == found.compiler_seconds
    else "at best: by the published peaks, which no run reaches"
  )
  per_chip = found.images_per_second / found.topology.chips
  yield _line(
    "speed",
    f"{found.images_per_second:,.0f} images/s, {per_chip:,.0f} a chip, "
    f"{found.utilisation:.0%} of the peak FLOP/s, {origin}",
  )
  days = found.chip_days
  text = f"{found.run_seconds / HOUR:.3g} h, {days:.3g} chip-days"
  core_days = days * found.topology.chip.devices
  if found.topology.chip.name == "v3":
    text += f" = {core_days:.3g} TPUv3 core-days"
  paper = published(report)
  if paper:
    text += f"; the paper has {paper:g} TPUv3 core-days"
  yield _line("whole run", text)


def published(report: Report) -> float | None:
  plan = report.plan
  examples = plan.config.data.examples
  if not examples:
    return None
  epochs = plan.schedule.total_steps * plan.config.batch / examples
  return paper_core_days(plan.config, epochs)


def _suggestion(
  report: Report, key: str, suggestion: Suggestion
) -> Iterator[str]:
  share = report.plan.config.batch // report.topology.devices
  name = "suggestion"
  with_key = f"with {key}: " if key else ""
  if not suggestion.at_once:
    shardable = (
      report.topology.devices > 1 and not report.plan.config.shard_state
    )
    sharded = "--config.shard_state=True, or " if shardable else ""
    yield _line(
      name,
      f"{with_key}no part of the {share} images per device fits: take "
      f"{sharded}chips with more memory",
    )
    return
  flags = [f"--{key}"] if key else []
  flags.append(f"--config.max_per_device={suggestion.at_once}")
  yield _line(
    name,
    f"{with_key}{suggestion.at_once} images at once x "
    f"{suggestion.accumulation} accumulated, peak {_gib(suggestion.peak)} GiB: "
    f"{' '.join(flags)}",
  )
  if not suggestion.line:
    return
  yield _line(
    "",
    f"{_gib(suggestion.line.fixed)} GiB + "
    f"{suggestion.line.per_image / 2**20:.3g} MiB an image: about "
    f"{suggestion.whole} would fit without accumulation, a batch of "
    f"{suggestion.whole * report.topology.devices:,}",
  )


def to_json(report: Report) -> dict:
  """Every figure in SI units: bytes, seconds, FLOP."""
  plan, topology, found = report.plan, report.topology, report.estimate
  result = {
    "model": plan.config.model.name,
    "topology": topology.name,
    "compiled_for": report.compiled_for.name,
    "verdict": verdict(report),
    "fits": report.fits,
    "hosts": topology.hosts,
    "chips": topology.chips,
    "devices": topology.devices,
    "chip": dataclasses.asdict(topology.chip),
    "batch": plan.config.batch,
    "per_device": plan.data.per_device,
    "accumulation": plan.data.accumulation,
    "total_steps": plan.schedule.total_steps,
    "parameters": report.parameters,
    "memory_per_device": report.limit,
    "waiting_batches": report.waiting,
    "training": _program(report.training, report.training_peak),
    "evaluation": report.evaluation
    and _program(report.evaluation, report.evaluation_peak),
    "paper_core_days": published(report),
  }
  if found:
    result["estimate"] = {
      "model_flops_per_image": found.model_flops,
      "flops": found.flops,
      "bytes_moved": found.bytes_moved,
      "roofline": dataclasses.asdict(found.roofline)
      | {"step": found.roofline.step, "limit": found.roofline.limit},
      "compiler_seconds": found.compiler_seconds,
      "step_seconds": found.step_seconds,
      "images_per_second": found.images_per_second,
      "model_flops_utilisation": found.utilisation,
      "run_seconds": found.run_seconds,
      "chip_days": found.chip_days,
      "device_seconds": found.run_seconds * topology.devices,
    }
  if report.suggestions:
    result["suggestions"] = [
      {"key": key} | dataclasses.asdict(suggestion)
      for key, suggestion in report.suggestions.items()
    ]
  if report.sharded:
    other = report.sharded
    result["sharded"] = {
      "training": _program(other.training, None),
      "step_seconds": other.estimate and other.estimate.step_seconds,
    }
  return result


def _program(program: Program | DoesNotFit, peak: float | None) -> dict:
  if isinstance(program, DoesNotFit):
    return {
      "compiles": False,
      "peak_beside_all": peak,
      "needed": program.needed,
      "available": program.available,
    }
  return {"compiles": True, "peak_beside_all": peak, "peak": program.peak} | (
    dataclasses.asdict(program)
  )


def _line(name: str, text: str) -> str:
  return f"{name:14}{text}"


def _count(number: int, noun: str) -> str:
  return f"{number:,} {noun}{'s' * (number != 1)}"


def _gib(size: float) -> str:
  return f"{size / GIB:.2f}"


def _bytes(size: float) -> str:
  """In units that a person would take."""
  exponent = min(3, int(math.log10(max(size, 1)) // 3))
  return f"{size / 1000**exponent:.3g} {('B', 'kB', 'MB', 'GB')[exponent]}"


def _ms(seconds: float) -> str:
  return f"{1000 * seconds:.3g} ms"
