# SPDX-License-Identifier: Apache-2.0
"""Accuracy and mean corruption error (mCE) on ImageNet-C.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (arXiv 1903.12261, section 4).
"""

import numpy as np

from mixer.config import CORRUPTIONS, SEVERITIES
from mixer.errors import UserError
from mixer.evaluators import EvalSetup
from mixer.evaluators.classification import predict_step

# AlexNet's top-1 error on each corruption, the mean over severities: table 1 of
# the paper, 88.6 to 60.7 %, with the digits of the public code of AugMix.
ALEXNET_ERRORS = np.array(
  [0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360]
  + [0.866816, 0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840]
  + [0.606500]
)


class Corruptions:
  """Accuracy on each corruption, and the error relative to AlexNet's."""

  def __init__(self, setup: EvalSetup):
    self._setup = setup

  def run(self, params: dict) -> dict[str, float]:
    """Evaluates parameters that every device holds.

    Returns:
      "accuracy" (0 to 1), the mean over corruptions and severities; "mce", the
      mean over corruptions of error / AlexNet's error, each summed over
      severities (1 is AlexNet's; papers report it in percent); and
      "accuracy_NAME" of each corruption, the mean over severities.
    """
    ends = self._setup.source.ends  # one part for each corruption and severity
    examples, right = np.zeros(len(ends)), np.zeros(len(ends))
    for outputs, rest in self._setup.run_pass(predict_step, params):
      part = np.searchsorted(ends, rest["position"], side="right")
      correct = outputs["prediction"] == rest["label"]
      examples += np.bincount(part, minlength=len(ends))
      right += np.bincount(part, correct, minlength=len(ends))
    if not examples.all():
      raise UserError("No image of one of the corruptions can be decoded.")
    accuracy = (right / examples).reshape(-1, len(SEVERITIES)).mean(axis=1)
    each = zip(CORRUPTIONS, accuracy, strict=True)
    return {
      "accuracy": float(accuracy.mean()),
      "mce": float(np.mean((1 - accuracy) / ALEXNET_ERRORS)),
    } | {f"accuracy_{name}": float(x) for name, x in each}
