# SPDX-License-Identifier: Apache-2.0
"""What all implementations are measured at, one after another."""

import dataclasses
import functools

from benchmarks.throughput.cells import IMAGE_SIZE, TRAINING
from mixer.models import create, flops

# Forward pass, and two such products for each in the backward pass: for the
# gradients of inputs and of parameters.
FORWARDS_OF_A_STEP = 3


@dataclasses.dataclass(frozen=True)
class Cell:
  """A model in one way, at a batch size.

  passes: "inference" or "training".
  dtype: of matrix products; parameters are float32.
  """

  model: str
  passes: str
  dtype: str
  batch: int

  @property
  def label(self) -> str:
    return f"{self.model}, {self.passes}, {self.dtype}, {self.batch}"

  @property
  def image_shape(self) -> tuple[int, int, int, int]:
    """n h w c."""
    return self.batch, IMAGE_SIZE, IMAGE_SIZE, 3

  @property
  def flops_per_image(self) -> int:
    """Of the model's products, 2 a multiply-accumulate.

    By arithmetic, so that it is the same whoever computes it, and however.
    """
    forwards = FORWARDS_OF_A_STEP if self.passes == TRAINING else 1
    return 2 * forwards * _multiply_accumulates(self.model)


@functools.cache
def _multiply_accumulates(model: str) -> int:
  return flops.multiply_accumulates(
    create(model, num_classes=1000), (IMAGE_SIZE, IMAGE_SIZE)
  )
