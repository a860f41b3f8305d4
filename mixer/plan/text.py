# SPDX-License-Identifier: Apache-2.0
"""A plan in words, for --dry_run and for the head of a run."""

import jax

from mixer.models import flops
from mixer.plan import Plan


def describe(plan: Plan) -> str:
  """The plan for a person: lines of what will happen."""
  config = plan.config
  lines = []
  if plan.accumulation:
    n = jax.process_count()
    hosts = f"{n} hosts" if n > 1 else "1 host"
    kind = jax.local_devices()[0].device_kind
    lines.append(
      f"batch         global {config.batch} = {hosts} x {plan.devices // n} "
      f"{kind} x {plan.per_device} x {plan.accumulation} accumulated"
    )
  if plan.model is not None and plan.abstract_params is not None:
    parameters = flops.count_params(plan.abstract_params)
    lines += [
      f"model         {config.model.name}, {parameters:,} parameters, "
      f"{plan.image_size[0]} x {plan.image_size[1]} px, "
      f"{plan.multiply_accumulates / 1e9:.3g} GMAC or "
      f"{2 * plan.multiply_accumulates / 1e9:.3g} GFLOP an image forward, "
      f"{6 * plan.multiply_accumulates / 1e9:.3g} GFLOP in training",
    ]
  lines.append(
    f"start         {config.init or 'random weights'}"
    + (f"; {plan.initial_note}" if plan.initial_note else "")
  )
  if config.data.name:
    examples = (
      f"{config.data.examples:,}" if config.data.examples else "unknown"
    )
    lines.append(
      f"data          {config.data.name}, {config.data.split}: {examples} "
      f"examples; {config.data.ops}"
    )
  if plan.total_steps:
    seen = plan.total_steps * config.batch
    epochs = (
      f", {seen / config.data.examples:.4g} epochs"
      if config.data.examples
      else ""
    )
    lines.append(
      f"length        {plan.total_steps:,} steps{epochs}, {seen:,} images, "
      f"warm-up {plan.warmup_steps:,} steps"
    )
    if plan.multiply_accumulates:
      lines.append(
        f"compute       {6 * plan.multiply_accumulates * seen:.3g} FLOP"
      )
  for name, evaluation in plan.evals.items():
    often = f"every {evaluation.every:,} steps and " if evaluation.every else ""
    lines.append(
      f"evaluation    {name}: {evaluation.data_name}, "
      f"{evaluation.options.split}; {evaluation.options.ops}; {often}at the end"
    )
  often = (
    f"every {plan.checkpoint_every:,} steps and at the end"
    if plan.checkpoint_every
    else "at the end"
  )
  lines.append(f"checkpoints   {often}, newest {config.checkpoint.keep} kept")
  return "\n".join(lines)
