# SPDX-License-Identifier: Apache-2.0
"""The report of preflight, as text and as JSON."""

import collections
import dataclasses
import math
from collections.abc import Iterator

from mixer.chips import GIB
from mixer.tools.preflight import compiler
from mixer.tools.preflight.compiler import CompiledProgram, DoesNotFit
from mixer.tools.preflight.preflight import PreflightReport, Suggestion
from mixer.tools.preflight.roofline import Estimate, paper_core_days
from mixer.tools.table import render

HOUR = 3600.0
MIN_GAIN = 0.02  # least share of a step's time that counts as a difference
_TABLE_HEAD = (
  "GiB per device",
  "arguments",
  "temporaries",
  "outputs and code",
  "beside it",
  "peak",
)
_SCANNED = (
  "no estimate: the compiler counts a loop over blocks as one block; see "
  "without config.model.scan"
)


def describe(report: PreflightReport) -> str:
  """Returns the report for a terminal, the verdict first."""
  name = report.plan.config.model.name
  lines = [
    f"{name} on {report.topology.name}: {verdict(report)}.",
    "",
    *_machine(report),
    "",
    _memory(report),
  ]
  if report.estimate:
    lines += ["", *_work(report, report.estimate)]
    lines += _cost(report, report.estimate)
  elif report.plan.config.model.scan and report.fits:
    lines += ["", _line("a step", _SCANNED)]
  if not report.fits and not report.suggestions:
    lines += ["", "With --suggest this looks for what would fit."]
  for key, suggestion in report.suggestions.items():
    lines += ["", *_suggestion(report, key, suggestion)]
  if report.sharded:
    lines += ["", _line("sharding", sharding(report))]
  return "\n".join(lines)


def verdict(report: PreflightReport) -> str:
  if not report.fits:
    return "does not fit"
  return "would fit" if report.is_proxy else "compiles and fits"


def sharding(report: PreflightReport) -> str:
  """Returns advice on config.shard_state, with its memory and step time."""
  key, cost = "config.shard_state=True", report.sharded_estimate
  peak = report.sharded.peak + report.prefetched_bytes if cost else math.inf
  if peak > report.limit:
    return f"{key} does not make it fit"
  figures = f"peak {_gib(peak)} GiB, a step {_ms(cost.step_seconds)}"
  if not report.estimate or report.training_peak > report.limit:
    return f"{key} makes it fit: {figures}"
  gain = 1 - cost.step_seconds / report.estimate.step_seconds
  if gain > MIN_GAIN:
    advice = "faster: worth it"
  else:
    speed = "slower" if gain < -MIN_GAIN else "as fast"
    advice = f"{speed}: for where memory is short"
  return (
    f"{key}: {figures}, instead of {_gib(report.training_peak)} GiB and "
    f"{_ms(report.estimate.step_seconds)}; {advice}"
  )


def _machine(report: PreflightReport) -> Iterator[str]:
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
  if report.is_proxy:
    proxy = report.compiled_for
    text = f"memory and bytes are those of {proxy.name} at as many images per "
    text += "device"
    if plan.config.shard_state:
      text += (
        f"; the state is shared by {proxy.devices} devices there, not by "
        f"{topology.devices}"
      )
    yield _line("stand-in", f"{text}. {compiler.gpu_advice(chip)}")
  elif not chip.is_tpu:
    yield _line(
      "compiled",
      "by XLA for this GPU, products by cuBLAS; on the GPU itself it tries "
      "kernels of its own as well. FLOP are the model's own",
    )


def _memory(report: PreflightReport) -> str:
  """Returns a table of the peak memory of each program, and its parts."""
  rows = []
  for name, program, peak in (
    ("training step", report.training, report.training_peak),
    ("evaluation", report.evaluation, report.evaluation_peak),
  ):
    if program is None:
      continue
    if isinstance(program, DoesNotFit):
      sizes = ["refused by the compiler", "", "", ""]
    else:
      sizes = map(
        _gib,
        (
          program.arguments,
          program.temporaries,
          program.outputs + program.code,
          peak - program.peak,
        ),
      )
    rows.append((name, *sizes, _gib(peak), _gib(report.limit - peak)))
  return render([*_TABLE_HEAD, f"left of {_gib(report.limit)}"], rows)


def _work(report: PreflightReport, estimate: Estimate) -> Iterator[str]:
  yield _line(
    "a step",
    f"{estimate.flops / 1e12:.3g} TFLOP and {_bytes(estimate.bytes_moved)} to "
    "and from memory per device",
  )
  sizes = collections.defaultdict(list)
  for each in report.training.collectives:
    sizes[each.kind].append(each.bytes)
  totals = [
    f"{len(group)} {kind} of {_bytes(sum(group))}"
    for kind, group in sizes.items()
  ]
  yield _line("collectives", "; ".join(totals) or "none")
  least = estimate.roofline
  yield _line(
    "at least",
    f"{_ms(least.step)} = the larger of compute {_ms(least.compute)} and "
    f"memory {_ms(least.memory)}, then communication "
    f"{_ms(least.communication)}",
  )
  yield _line(
    "compiler",
    f"expects {_ms(estimate.compiler_seconds)}"
    if estimate.compiler_seconds
    else "unknown: it gives no time, or an impossible one",
  )


def _cost(report: PreflightReport, estimate: Estimate) -> Iterator[str]:
  origin = (
    "as the compiler expects"
    if estimate.step_seconds == estimate.compiler_seconds
    else "at best: by the published peaks, which no run reaches"
  )
  per_chip = estimate.images_per_second / report.topology.chips
  yield _line(
    "speed",
    f"{estimate.images_per_second:,.0f} images/s, {per_chip:,.0f} a chip, "
    f"{estimate.utilisation:.0%} of the peak FLOP/s, {origin}",
  )
  text = f"{estimate.run_seconds / HOUR:.3g} h, {estimate.chip_days:.3g}"
  text += " chip-days"
  chip = report.topology.chip
  if chip.name == "v3":
    text += f" = {estimate.chip_days * chip.devices:.3g} TPUv3 core-days"
  if paper := paper_core_days(report.plan):
    text += f"; the paper has {paper:g} TPUv3 core-days"
  yield _line("whole run", text)


def _suggestion(
  report: PreflightReport, key: str, suggestion: Suggestion
) -> Iterator[str]:
  share = report.plan.config.batch // report.topology.devices
  with_key = f"with {key}: " if key else ""
  if not suggestion.at_once:
    can_shard = (
      report.topology.devices > 1 and not report.plan.config.shard_state
    )
    flag = "--config.shard_state=True, or " if can_shard else ""
    yield _line(
      "suggestion",
      f"{with_key}no part of the {share} images per device fits: take "
      f"{flag}chips with more memory",
    )
    return
  flags = [f"--{key}"] if key else []
  flags.append(f"--config.max_per_device={suggestion.at_once}")
  yield _line(
    "suggestion",
    f"{with_key}{suggestion.at_once} images at once x "
    f"{suggestion.accumulation} accumulated, peak {_gib(suggestion.peak)} GiB: "
    f"{' '.join(flags)}",
  )
  if line := suggestion.line:
    yield _line(
      "",
      f"{_gib(line.fixed)} GiB + {line.per_image / 2**20:.3g} MiB an image: "
      f"about {suggestion.whole} would fit without accumulation, a batch of "
      f"{suggestion.whole * report.topology.devices:,}",
    )


def to_json(report: PreflightReport) -> dict:
  """Returns every figure in SI units: bytes, seconds, FLOP."""
  plan, topology, estimate = report.plan, report.topology, report.estimate
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
    "waiting_batches": report.prefetched_bytes,
    "training": _program(report.training, report.training_peak),
    "evaluation": report.evaluation
    and _program(report.evaluation, report.evaluation_peak),
    "paper_core_days": paper_core_days(report.plan),
  }
  if estimate:
    result["estimate"] = {
      "model_flops_per_image": estimate.model_flops,
      "flops": estimate.flops,
      "bytes_moved": estimate.bytes_moved,
      "roofline": dataclasses.asdict(estimate.roofline)
      | {"step": estimate.roofline.step, "limit": estimate.roofline.limit},
      "compiler_seconds": estimate.compiler_seconds,
      "step_seconds": estimate.step_seconds,
      "images_per_second": estimate.images_per_second,
      "model_flops_utilisation": estimate.utilisation,
      "run_seconds": estimate.run_seconds,
      "chip_days": estimate.chip_days,
      "device_seconds": estimate.run_seconds * topology.devices,
    }
  if report.suggestions:
    result["suggestions"] = [
      {"key": key} | dataclasses.asdict(suggestion)
      for key, suggestion in report.suggestions.items()
    ]
  if report.sharded:
    cost = report.sharded_estimate
    result["sharded"] = {
      "training": _program(report.sharded, None),
      "step_seconds": cost and cost.step_seconds,
    }
  return result


def _program(program: CompiledProgram | DoesNotFit, peak: float | None) -> dict:
  sizes = dataclasses.asdict(program)
  if isinstance(program, DoesNotFit):
    return {"compiles": False, "peak_beside_all": peak} | sizes
  return {
    "compiles": True,
    "peak_beside_all": peak,
    "peak": program.peak,
  } | sizes


def _line(name: str, text: str) -> str:
  return f"{name:14}{text}"


def _count(number: int, noun: str) -> str:
  return f"{number:,} {noun}{'s' * (number != 1)}"


def _gib(size: float) -> str:
  return f"{size / GIB:.2f}"


def _bytes(size: float) -> str:
  """Formats a size in B, kB, MB or GB."""
  exponent = min(3, int(math.log10(max(size, 1)) // 3))
  return f"{size / 1000**exponent:.3g} {('B', 'kB', 'MB', 'GB')[exponent]}"


def _ms(seconds: float) -> str:
  return f"{1000 * seconds:.3g} ms"
