# SPDX-License-Identifier: Apache-2.0
"""How many parameters a model has, and what one image costs."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from mixer.models.kernels import plain_model


def abstract_params(model: nn.Module, image_size: tuple[int, int]) -> dict:
  """Shapes and dtypes of the parameters, without making them.

  Args:
    model: from `mixer.models.create`.
    image_size: height and width in pixels.

  Returns:
    The nested dict of parameters, with jax.ShapeDtypeStruct as leaves.
  """
  images = jnp.zeros((1, *image_size, model.image_channels))
  return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def count_params(params: dict) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def multiply_accumulates(model: nn.Module, image_size: tuple[int, int]) -> int:
  """Counts multiply-accumulates of one image's forward pass.

  Matrix products and convolutions count, element-wise work does not, as in the
  tables that this field compares by (1 MAC is 2 FLOP). Counted in the traced
  program, so that it holds for whatever the model computes.
  """
  model = plain_model(model)  # some fill up what they multiply with zeros
  params = abstract_params(model, image_size)
  images = jax.ShapeDtypeStruct(
    (1, *image_size, model.image_channels), jnp.float32
  )
  program = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x)[0])
  return sum(_products(program(params, images).jaxpr))


def _products(jaxpr: core.Jaxpr) -> Iterator[int]:
  for equation in jaxpr.eqns:
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      yield out * math.prod(shape[axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      kernel = equation.invars[1].aval.shape
      axis = equation.params["dimension_numbers"].rhs_spec[0]
      yield out * math.prod(kernel) // kernel[axis]
    else:
      repeats = equation.params.get("length", 1)  # of lax.scan
      for inner in core.jaxprs_in_params(equation.params):
        yield repeats * sum(_products(inner))
