# SPDX-License-Identifier: Apache-2.0
"""What a model keeps for its backward pass."""

import jax


def numbers_kept(model, params: dict, images) -> int:
  """How many numbers; nothing is computed."""

  def backward(params):
    return jax.vjp(lambda p: model.apply({"params": p}, images)[0], params)[1]

  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(backward, params)))
