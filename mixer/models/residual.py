# SPDX-License-Identifier: Apache-2.0
"""Blocks with skip connections: their precision, and how branches are dropped.

Letters in shape comments: n examples, s tokens, c channels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype


def cast_products(inputs, kernel, bias, *, dtype, inexact=True):
  """Which dtype the parts of a Flax layer take: only the products take `dtype`.

  Biases are added in float32: in bfloat16 a bias's gradient, a sum over all
  tokens, was seen to come out a third too small.
  """
  inputs, kernel = promote_dtype(inputs, kernel, dtype=dtype, inexact=inexact)
  return inputs, kernel, bias


def draw_kept(keys: jax.Array, site: int, drop: float, shape: tuple[int, ...]):
  """Draws which entries stay, from one key an example.

  Args:
    keys: [n] PRNG keys.
    site: which of the model's draws this is.
    drop: probability with which an entry goes.
    shape: of one example's mask.

  Returns:
    bool [n, *shape].
  """

  def draw(key):
    return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - drop, shape)

  return jax.vmap(draw)(keys)


class Residual(nn.Module):
  """A block of branches, each added to what it was computed from, or dropped.

  index: of the block, by which its draws differ from those of the others.
  """

  index: int = 0
  drop_path: float = 0.0
  rescale: bool = False
  dropout: float = 0.0
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"

  def _dropout(self, keys, site, shape):
    """Factors 0 or 1 / (1 - rate) for [n, *shape], None when all stay."""
    if keys is None or not self.dropout:
      return None
    kept = draw_kept(keys, 6 * self.index + site, self.dropout, shape)
    return kept / (1 - self.dropout)

  def _add(self, x, branch, keys, site):
    """Adds what is not dropped of a branch, and rounds the sum once."""
    x = x + self._drop(branch, keys, site)
    return x.astype(self.dtype or jnp.float32)

  def _drop(self, branch, keys, site):
    """Drops entries (dropout), then whole branches (stochastic depth)."""
    scale = self._dropout(keys, site, branch.shape[1:])
    if scale is not None:
      branch = branch * scale
    if keys is None or not self.drop_path:
      return branch
    ones = (1,) * (branch.ndim - 1)
    kept = draw_kept(keys, 6 * self.index + site + 1, self.drop_path, ones)
    # The authors' code leaves the branches that stay as they are.
    scale = 1 / (1 - self.drop_path) if self.rescale else 1.0
    return branch * (kept * scale)
