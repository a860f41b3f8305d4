# SPDX-License-Identifier: Apache-2.0
"""Counts of parameters and of multiply-accumulates per image."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from mixer.models.kernels import plain_model


def abstract_params(model: nn.Module, image_size: tuple[int, int]) -> dict:
  """Returns the parameters' shapes and dtypes, without computing them.

  Args:
    model: from `mixer.models.create`.
    image_size: height and width in pixels.

  Returns:
    The nested dict of parameters, with jax.ShapeDtypeStruct as leaves.
  """
  shapes = _init_shapes(plain_model(model), tuple(image_size))
  return jax.tree.map(lambda x: x, shapes)


@functools.cache  # it takes a second or two for a large model
def _init_shapes(model: nn.Module, image_size: tuple[int, int]) -> dict:
  images = jnp.zeros((1, *image_size, model.image_channels))
  return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def count_params(params: dict) -> int:
  """Counts the numbers in a nested dict of arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@functools.cache
def multiply_accumulates(model: nn.Module, image_size: tuple[int, int]) -> int:
  """Counts multiply-accumulates (MACs; 1 MAC is 2 FLOPs) of a forward pass.

  Only matrix products and convolutions count, as in published tables. Counts
  them in the traced program, so that it holds for any model.

  Args:
    model: from `mixer.models.create`.
    image_size: height and width of the one image, in pixels.
  """
  return sum(macs for macs, _ in _trace_products(model, image_size, images=1))


def product_bytes(model: nn.Module, image_size: tuple[int, int]) -> int:
  """Counts bytes of each product's factors and result, without parameters.

  Args: as of `multiply_accumulates`, for one image as well.
  """
  one, two = (
    sum(size for _, size in _trace_products(model, image_size, images=n))
    for n in (1, 2)
  )
  return two - one


def _trace_products(
  model: nn.Module, image_size: tuple[int, int], images: int
) -> list[tuple[int, int]]:
  model = plain_model(model)  # some kernels pad their factors
  params = abstract_params(model, image_size)
  batch = jax.ShapeDtypeStruct(
    (images, *image_size, model.image_channels), jnp.float32
  )
  program = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x)[0])
  return list(_products(program(params, batch).jaxpr))


def _products(jaxpr: core.Jaxpr) -> Iterator[tuple[int, int]]:
  """Yields the MACs of each product, and the bytes of its three arrays."""
  for equation in jaxpr.eqns:
    arrays = [each.aval for each in (*equation.invars, *equation.outvars)]
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      inner = math.prod(arrays[0].shape[axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      kernel = arrays[1].shape
      axis = equation.params["dimension_numbers"].rhs_spec[0]
      inner = math.prod(kernel) // kernel[axis]
    else:
      repeats = equation.params.get("length", 1)  # of lax.scan
      for body in core.jaxprs_in_params(equation.params):
        for macs, size in _products(body):
          yield repeats * macs, repeats * size
      continue
    size = sum(each.size * each.dtype.itemsize for each in arrays)
    yield math.prod(arrays[-1].shape) * inner, size
