# SPDX-License-Identifier: Apache-2.0
"""Figure 4: six curves, and a check of the paper's findings.

python -m benchmarks.permutations [--workdir=DIR] [--seeds=3]

Trains configs/permutations.py with both models and all three inputs, once a
seed, 12 minutes on 2 CPU cores; if stopped, the same command continues. Writes
results/permutations.json, which `python -m mixer paper figure 4` draws.

A Mixer cannot see the permutation of patches, and an exact check shows it. The
stem takes a patch's pixels in any order, if its kernel's rows have the same
order; token mixing does so with tokens. Hence for any weights there are others
that compute the same from permuted images, and as random weights they are as
likely. Training keeps this: gradients are permuted like the weights, and Adam,
clipping and weight decay ignore the positions of numbers.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import curves
from benchmarks.curves import Curve, difference, last_values, percent
from mixer import train, weights
from mixer.cli import run_cli
from mixer.data.preprocess import patch_order, within_patch_order
from mixer.tools.table import render
from mixer.training.metrics import read_rows

RESULT, LOSS = "eval/fewshot/few/5shot", "train/loss"
MODELS = {"mixer": "Mixer", "resnet": "ResNet"}
INPUTS = ("original", "patches", "pixels")
CURVES = [
  Curve(
    {"model": model, "input": kind}, "permutations", f"{model},input={kind}"
  )
  for model in MODELS
  for kind in INPUTS
]
# In float32 rounding errors grow with each update, until the runs diverge.
EQUAL_STEPS = 100
EQUAL_TO = 1e-4  # relative difference of losses after that growth
HEAD = (
  "model, input | 5-shot accuracy, % | against original | of the original, %"
).split(" | ")


def main() -> int:
  parser = curves.create_experiment_parser("permutations", __doc__)
  return run_cli(measure, **vars(parser.parse_args()))


def measure(
  workdir: Path, seeds: int, results: Path, changes: dict | None = None
) -> str:
  """Trains, records and judges; returns a report.

  Args:
    workdir, seeds, results: see flags.
    changes: config keys to override in all runs.
  """
  trained = curves.train(
    CURVES, workdir, range(seeds), [RESULT, "eval/test/accuracy"], changes
  )
  original, patches = (curves.config(curve, 0, changes) for curve in CURVES[:2])
  steps = min(EQUAL_STEPS, original.total_steps)
  equal = compare_losses(original, patches, workdir / "equal", steps)
  judged = findings(trained, equal)
  content = {"findings": judged, "equivalence": equal, "curves": trained}
  curves.record(results / "permutations.json", content)
  return report(trained, equal, judged)


def permute_params(params: dict, patch: int, seed: int) -> dict:
  """Makes a Mixer's parameters for images permuted by permute_patches.

  Args:
    params: parameters of a Mixer under the published names.
    patch: side of its patches in pixels.
    seed: seed of the permutation.

  Returns:
    Other parameters: on permuted images they give the logits and pre-logits
    that `params` give on the original ones.
  """
  kernel = np.asarray(params["stem"]["kernel"])  # p p 3 c
  within = within_patch_order(patch, seed)
  pixels = kernel.reshape(patch**2, *kernel.shape[2:])[within]
  result = params | {
    "stem": params["stem"] | {"kernel": pixels.reshape(kernel.shape)}
  }
  for name, block in params.items():
    if name.startswith("MixerBlock_"):
      mixing = permute_tokens(block["token_mixing"], seed)
      result[name] = block | {"token_mixing": mixing}
  return result


def permute_tokens(mlp: dict, seed: int) -> dict:
  """Permutes the token axes of a token mixing's parameters.

  Rows of the first kernel [s, hidden], columns of the second [hidden, s] and
  its bias [s] are tokens; hidden units stay in place.
  """
  into, out = mlp["Dense_0"], mlp["Dense_1"]
  order = patch_order(len(out["bias"]), seed)
  return {
    "Dense_0": into | {"kernel": np.asarray(into["kernel"])[order]},
    "Dense_1": {
      "kernel": np.asarray(out["kernel"])[:, order],
      "bias": np.asarray(out["bias"])[order],
    },
  }


def compare_losses(
  original: ConfigDict, patches: ConfigDict, workdir: Path, steps: int
) -> dict[str, float]:
  """Trains on originals, and on permuted images from permuted weights.

  Args:
    original, patches: configs of both inputs, with the same seed.
    workdir: folder for weights and runs.
    steps: length of both runs.

  Returns:
    "steps", "first_loss", "last_loss", and "largest_difference" of the losses
    at a step, relative.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  params = jax.device_get(curves.initial_params(original)[1])
  permuted = permute_params(params, original.model.patch, patches.seed)
  losses = []
  for name, config, init in (
    ("original", original, params),
    ("patches", patches, permuted),
  ):
    weights.save(workdir / f"{name}.npz", init)
    config = config.copy_and_resolve_references()
    config.init = str(workdir / f"{name}.npz")
    config.log.every_steps = 1
    config.total_steps = steps
    train.train(config, str(workdir / name))
    rows = read_rows(workdir / name)
    losses.append(np.array([row[LOSS] for row in rows if LOSS in row]))
  one, other = losses
  return {
    "steps": steps,
    "first_loss": float(one[0]),
    "last_loss": float(one[-1]),
    "largest_difference": float(np.max(np.abs(other - one) / np.abs(one))),
  }


def findings(trained: list[dict], equal: dict[str, float]) -> list[dict]:
  """The paper's findings, each with its measured difference and a verdict.

  A difference counts if its 95 % interval, over seeds, excludes 0.
  """
  ends = {(c["model"], c["input"]): last_values(c, RESULT) for c in trained}

  def gain(model: str, kind: str) -> dict[str, float]:
    return difference(ends[model, "original"], ends[model, kind])

  unchanged = gain("mixer", "patches")
  judged = [
    {
      "finding": "Mixer: permuting patches, and pixels within them, is nothing "
      "but other initial weights",
      "holds": equal["largest_difference"] <= EQUAL_TO,
      "largest_difference": equal["largest_difference"],
    },
    {
      "finding": "Mixer: with random weights it changes nothing beyond chance",
      "holds": abs(unchanged["mean"]) <= unchanged["interval"],
      **unchanged,
    },
  ]
  for model, kind, change in (
    ("mixer", "pixels", "all pixels"),
    ("resnet", "patches", "patches, and pixels within them,"),
    ("resnet", "pixels", "all pixels"),
  ):
    loss = gain(model, kind)
    judged.append(
      {
        "finding": f"{MODELS[model]}: permuting {change} hurts",
        "holds": loss["mean"] < -loss["interval"],
        **loss,
      }
    )
  losses = {m: ends[m, "original"] - ends[m, "pixels"] for m in MODELS}
  more = difference(losses["mixer"], losses["resnet"])
  judged.append(
    {
      "finding": "ResNet: permuting all pixels costs it more than the Mixer",
      "holds": more["mean"] > more["interval"],
      **more,
    }
  )
  return judged


def report(
  trained: list[dict], equal: dict[str, float], judged: list[dict]
) -> str:
  """Renders a table of final accuracies, and the findings."""
  first = {c["model"]: last_values(c, RESULT) for c in reversed(trained)}
  rows = []
  for curve in trained:
    ends, original = last_values(curve, RESULT), first[curve["model"]]
    loss = difference(original, ends)
    is_original = curve["input"] == "original"
    rows.append(
      (
        f"{MODELS[curve['model']]}, {curve['input']}",
        percent(ends.mean(), ends.std(ddof=1)),
        "" if is_original else percent(loss["mean"], loss["interval"]),
        f"{100 * ends.mean() / original.mean():.0f}",
      )
    )
  lines = [
    f"{'yes' if each['holds'] else 'NO '}  {each['finding']}"
    + (f": {percent(each['mean'], each['interval'])}" if "mean" in each else "")
    for each in judged
  ]
  return "\n".join(
    [
      render(HEAD, rows),
      "",
      "Mean and deviation over seeds; differences with their 95 % interval.",
      "From permuted weights, losses on permuted patches are those of the "
      f"originals to {equal['largest_difference']:.1g} over "
      f"{equal['steps']} steps.",
      "",
      *lines,
    ]
  )


if __name__ == "__main__":
  sys.exit(main())
