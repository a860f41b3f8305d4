# SPDX-License-Identifier: Apache-2.0
"""The filters that a model looks at its image with: its first convolution."""

import numpy as np

from mixer.errors import UserError
from mixer.models.bit import standardize_filters
from mixer.weights import LoadedWeights

# Names of the first convolution's part of the parameters.
_PLACES = {
  "Mixer": ("stem", "kernel"),
  "ViT": ("embedding", "kernel"),
  "BiT": ("root_block", "conv_root", "kernel"),
}


def read_filters(checkpoint: LoadedWeights) -> np.ndarray:
  """Takes the filters out of weights of a Mixer, a ViT or a BiT.

  Those of a BiT as the network uses them, standardised: what mean and scale its
  weights have is of no effect.

  Returns:
    float64 [n, h, w, channels], in the order of the weights.

  Raises:
    UserError: the model has none, or they are not finite.
  """
  for place in _PLACES.values():
    kernel = checkpoint.params
    for name in place:
      kernel = kernel.get(name, {}) if isinstance(kernel, dict) else {}
    if getattr(kernel, "ndim", 0) == 4:
      break
  else:
    places = ", ".join(
      f"{'/'.join(place)} ({model})" for model, place in _PLACES.items()
    )
    raise UserError(
      f"{checkpoint.name} has no stem whose filters could be drawn: none of "
      f"{places}."
    )
  kernel = np.asarray(kernel, np.float64)  # h w c n
  if not np.isfinite(kernel).all():
    raise UserError(
      f"{checkpoint.name} has a stem with weights that are not finite: take an "
      "earlier checkpoint."
    )
  if place == _PLACES["BiT"]:
    kernel = np.asarray(standardize_filters(kernel), np.float64)
  return kernel.transpose(3, 0, 1, 2)  # n h w c
