# SPDX-License-Identifier: Apache-2.0
"""Why a Mixer does not see the permutation of patches: an exact check.

The stem takes a patch's pixels in any order, if its kernel has them in the same
one, and token mixing the tokens. So there are weights with which a Mixer
computes of permuted images what given ones compute of the originals, and as
random weights they are as likely. All that a step does keeps this so: gradients
are permuted as the weights are, and neither Adam nor clipping nor the decay of
weights looks at the places of numbers.
"""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mixer import train, weights
from mixer.data.permutations import patch_order, within_patch_order
from mixer.plan import make_plan
from mixer.training.metrics import read_rows
from mixer.training.setup import create_optimizer, initial_state

LOSS = "train/loss"


def permute_params(params: dict, patch: int, seed: int) -> dict:
  """Makes a Mixer's parameters for images that permute_patches has permuted.

  Args:
    params: of a Mixer under the published names.
    patch: side of its patches in pixels.
    seed: of the permutation.

  Returns:
    Other parameters with which, on permuted images, the model gives the same
    logits and pre-logits as with `params` on the images as they were.
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
  """Token mixing of permuted tokens: it takes and gives them as they come.

  Rows of the first kernel [s, hidden], columns of the second [hidden, s] and
  its bias [s] are tokens; hidden units are none.
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


def compare(
  original: ConfigDict, patches: ConfigDict, workdir: Path, steps: int
) -> dict[str, float]:
  """Trains on originals, and on permuted images from permuted weights.

  Args:
    original, patches: configs of both inputs, with the same seed.
    workdir: for weights and runs.
    steps: of both runs.

  Returns:
    "steps", and over them "largest_difference" of the losses, relative.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  params = first_params(original)
  permuted = permute_params(params, original.model.patch, patches.seed)
  losses = []
  for name, config, begin in (
    ("original", original, params),
    ("patches", patches, permuted),
  ):
    weights.save(workdir / f"{name}.npz", begin)
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


def first_params(config: ConfigDict) -> dict:
  """The random parameters that a run of this config begins with."""
  plan = make_plan(config)
  plan.complaints.raise_all()
  _, optimizer = create_optimizer(plan)
  return jax.device_get(initial_state(plan, optimizer).params)
