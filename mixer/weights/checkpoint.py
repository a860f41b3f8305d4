# SPDX-License-Identifier: Apache-2.0
"""Weights as they are read, with what is known about them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Parameters and where they come from.

  Attributes:
    params: nested dict of float32 NumPy arrays, under the published names.
    gelu: the form that they were trained with, "tanh" or "exact".
    class_names: in the order of the head's outputs; None if not known.
    image_size: height and width in pixels; None if not known.
    name: as asked for.
  """

  params: dict = dataclasses.field(repr=False)
  gelu: str
  class_names: tuple[str, ...] | None
  image_size: tuple[int, int] | None
  name: str
