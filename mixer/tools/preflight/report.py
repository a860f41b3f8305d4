# SPDX-License-Identifier: Apache-2.0
"""The report of preflight as text."""

import collections
import math
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from mixer.chips import GIB
from mixer.tools.preflight.roofline import SLOWDOWN
from mixer.tools.table import render

HOUR = 3600.0
MIN_GAIN = 0.02  # least share of a step's time that counts as a difference
_TABLE_HEAD = (
  "GiB per device, arguments, temporaries, outputs and code, next to it, peak"
).split(", ")
_MACHINES_HEAD = (
  "machine, chips, images a device, hours, chip-hours, in time, limit"
).split(", ")


def describe(report: dict, config: ConfigDict) -> str:
  """Returns a report of `preflight` for a terminal, the verdict first.

  Args:
    report: figures in SI units.
    config: of the recipe.
  """
  lines = [
    f"{report['model']} on {report['topology']}: {report['verdict']}.",
    "",
    *_machine(report),
    "",
    _memory(report),
  ]
  if "estimate" in report:
    lines += ["", *_estimate(report)]
  elif config.model.scan and report["fits"]:
    text = "no estimate: the compiler counts a loop over blocks as one block; "
    lines += ["", _line("a step", f"{text}see without config.model.scan")]
  if not report["fits"] and "suggestions" not in report:
    lines += ["", "--suggest tries flags with which it may fit."]
  if rows := report.get("suggestions"):
    lines += ["", _suggestions(rows), "", _line("recommended", recommend(rows))]
  return "\n".join(lines)


def describe_machines(report: dict) -> str:
  """Returns a list of machines from `find_machines` for a terminal."""
  within, batch = report["within"], report["batch"]
  if not report["machines"]:
    return (
      f"No machine's devices divide the batch of {batch:,}: take other "
      "--chips, or another --config.batch."
    )
  rows = [
    (
      row["topology"],
      f"{row['chips']:,}",
      f"{row['images']:,}",
      _range(row["seconds"], 1 / HOUR),
      _range(row["seconds"], row["chips"] / HOUR),
      ("no", "perhaps", "yes")[sum(x <= within for x in row["seconds"])],
      row["limit"],
    )
    for row in report["machines"]
  ]
  least, most = SLOWDOWN
  lines = [
    f"{report['model']}, {report['total_steps']:,} steps of {batch:,} images, "
    f"within {within / HOUR:g} h",
    "",
    render(_MACHINES_HEAD, rows),
    "",
    "Of each kind the smallest are listed, four at most; perhaps: only the "
    "shorter time is in time.",
    f"Hours are the least time by the published peaks times {least} to {most}, "
    "as known runs took.",
    "Whether it fits is not checked: --topology=MACHINE in place of --within "
    "compiles the recipe for it.",
  ]
  if not report["fits"]:
    if undivided := report["undivided"]:
      lines.append(
        f"{_count(undivided, 'machine')} left out, whose devices do not divide "
        f"the batch of {batch:,}: take a --config.batch with more factors of 2."
      )
    fastest = min(report["machines"], key=lambda row: row["seconds"][1])
    longest = fastest["seconds"][1]
    lines.append(
      f"None finishes in time. {fastest['topology']} does with --within="
      f"{math.ceil(longest / HOUR)}h, or with --config.total_steps="
      f"{max(1, int(report['total_steps'] * within / longest))}."
    )
  return "\n".join(lines)


def _range(ends: Sequence[float], unit: float) -> str:
  ends = [unit * end for end in ends]
  least, most = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in ends)
  return f"{least} to {most}"


def recommend(rows: list[dict]) -> str:
  """Returns the flags of the fastest suggestion that fits.

  Of those that are about as fast, it is the first.
  """
  fitting = [row for row in rows if row["fits"]]
  if not fitting:
    return "more chips, or chips with more memory: nothing tried fits"
  fastest = min(row["step_seconds"] for row in fitting)
  best = next(
    row for row in fitting if row["step_seconds"] <= (1 + MIN_GAIN) * fastest
  )
  return best["flags"] or "the recipe as it is"


def _suggestions(rows: list[dict]) -> str:
  head = "training step with", "peak, GiB", "fits", "a step"
  return render(
    head,
    [
      (
        row["flags"] or "the recipe as it is",
        _gib(row["peak_beside_all"]),
        "yes" if row["fits"] else "no",
        _ms(row["step_seconds"]) if row["step_seconds"] else "unknown",
      )
      for row in rows
    ],
  )


def _machine(report: dict) -> Iterator[str]:
  chip, devices = report["chip"], report["devices"]
  yield _line(
    "machine",
    f"{_count(report['hosts'], 'host')}, {_count(report['chips'], 'chip')}, "
    f"{_count(devices, 'jax device')} of "
    f"{chip['memory'] / chip['devices'] / GIB:.4g} GiB",
  )
  yield _line(
    "batch",
    f"{report['batch']:,} = {devices:,} devices x {report['per_device']} x "
    f"{report['accumulation']} accumulated; {report['total_steps']:,} steps",
  )
  if not chip["axes"]:
    yield _line(
      "compiled",
      "by XLA for this GPU, products by cuBLAS; on the GPU itself it tries "
      "kernels of its own as well. FLOP are the model's own",
    )


def _memory(report: dict) -> str:
  """Returns a table of the peak memory of each program, and its parts."""
  rows, limit = [], report["memory_per_device"]
  names = {"training": "training step", "evaluation": "evaluation"}
  for key, name in names.items():
    program = report[key]
    if not program:
      continue
    sizes, peak = ["refused by the compiler", "", "", ""], "peak_beside_all"
    if program["compiles"]:
      parts = (
        program["arguments"],
        program["temporaries"],
        program["outputs"] + program["code"],
        program[peak] - program["peak"],
      )
      sizes = map(_gib, parts)
    rows.append(
      (name, *sizes, _gib(program[peak]), _gib(limit - program[peak]))
    )
  return render([*_TABLE_HEAD, f"left of {_gib(limit)}"], rows)


def _estimate(report: dict) -> Iterator[str]:
  estimate, chip = report["estimate"], report["chip"]
  yield _line(
    "a step",
    f"{estimate['flops'] / 1e12:.3g} TFLOP and "
    f"{_bytes(estimate['bytes_moved'])} to and from memory per device",
  )
  sizes = collections.defaultdict(list)
  for each in report["training"]["collectives"]:
    sizes[each["kind"]].append(each["bytes"])
  totals = [
    f"{len(group)} {kind} of {_bytes(sum(group))}"
    for kind, group in sizes.items()
  ]
  yield _line("collectives", "; ".join(totals) or "none")
  least = estimate["roofline"]
  yield _line(
    "at least",
    f"{_ms(least['step'])} = the larger of compute {_ms(least['compute'])} and "
    f"memory {_ms(least['memory'])}, then communication "
    f"{_ms(least['communication'])}",
  )
  seconds = estimate["compiler_seconds"]
  text = "gives no time for this program"
  yield _line("compiler", f"expects {_ms(seconds)}" if seconds else text)
  origin = (
    "as the compiler expects"
    if estimate["step_seconds"] == seconds
    else "at best: by the published peaks, which no run reaches"
  )
  speed, days = estimate["images_per_second"], estimate["chip_days"]
  yield _line(
    "speed",
    f"{speed:,.0f} images/s, {speed / report['chips']:,.0f} a chip, "
    f"{estimate['model_flops_utilisation']:.0%} of the peak FLOP/s, {origin}",
  )
  hours = estimate["run_seconds"] / HOUR
  text = f"at least {hours:.3g} h, {days:.3g} chip-days"
  if chip["name"] == "v3":
    text += f" = {days * chip['devices']:.3g} TPUv3 core-days"
  if paper := report["paper_core_days"]:
    text += f"; the paper has {paper:g} TPUv3 core-days"
  yield _line("whole run", text)


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
