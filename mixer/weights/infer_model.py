# SPDX-License-Identifier: Apache-2.0
"""Infers the model of any family from its parameters."""

from flax import linen as nn

from mixer.errors import UserError
from mixer.models import create, fields_of
from mixer.weights.baseline_sizes import (
  BitSizes,
  VitSizes,
  bit_sizes_of,
  vit_sizes_of,
)
from mixer.weights.sizes import Sizes, sizes_of


def read_sizes(params: dict) -> Sizes | VitSizes | BitSizes | None:
  """Reads the sizes off the shapes; None if they are of no known family.

  Args:
    params: nested dict of arrays, or of anything that has a shape.
  """
  return sizes_of(params) or vit_sizes_of(params) or bit_sizes_of(params)


def infer_model(params: dict, *, gelu: str = "tanh", **fields) -> nn.Module:
  """Creates the model that parameters are of.

  Args:
    params: nested dict of arrays.
    gelu: "tanh" or "exact", see `LoadedWeights.gelu`; a BiT has none.
    **fields: any field of the model, over those of the shapes.

  Raises:
    UserError: they are not those of a Mixer, a ViT or a BiT.
  """
  sizes = read_sizes(params)
  if sizes is None:
    raise UserError(
      "These are not the parameters of a Mixer, a ViT or a BiT, so that their "
      "shapes do not tell the model: make it with mixer.models.create."
    )
  given = sizes.fields | fields
  if "gelu" in fields_of(sizes.family):
    given = {"gelu": gelu} | given
  return create(sizes.family, **given)
