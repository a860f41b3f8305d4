# SPDX-License-Identifier: Apache-2.0
"""Residual blocks: skip connections in float32, drop masks, remat policies.

Letters in shape comments: n examples, s tokens, c channels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mixer.models.layers import HIDDEN, PRODUCT, apply_mask, gpu_barrier


class ResidualBlock(nn.Module):
  """A block of branches, each added to its input or dropped.

  A branch: `norm`, some layers, `add`. Its drop masks are numbered within the
  model, so that each is drawn from keys of its own: 0 for hidden units, 1 for
  the branch's output (both dropout), 2 for the whole branch (drop path), plus 3
  for the second branch and 6 for each block before.

  index: number of the block.
  survival_prob: probability that a branch is not dropped. It and `index` are
    arrays in a loop over blocks.
  rescale, dropout, dtype, gelu: as in the model.
  """

  index: int | jax.Array = 0
  survival_prob: float | jax.Array = 1.0
  rescale: bool = False
  dropout: float = 0.0
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"

  output_mask = 1  # number of the mask of a branch's output; drop path is next

  def norm(
    self, x: jax.Array, *, branch: int, keep_layout: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Normalizes a branch's input.

    Args:
      x: n s c.
      branch: 0 or 1.
      keep_layout: makes GPUs store the result and its cotangent as they are.

    Returns:
      x in float32, for `add`, and its layer norm in `dtype`. Only one cast for
      both, so that their cotangents are added in float32.
    """
    x = x.astype(jnp.float32)
    y = nn.LayerNorm(dtype=self.dtype, name=f"LayerNorm_{branch}")(x)
    return x, gpu_barrier(y) if keep_layout else y

  def hidden_mask(
    self, keys: jax.Array | None, shape: tuple[int, ...], *, branch: int
  ) -> jax.Array | None:
    """Draws the dropout mask [n, *shape] of an MLP's hidden units."""
    return dropout_mask(keys, self.dropout, self._number(branch, 0), shape)

  def drop_path_mask(
    self, keys: jax.Array | None, shape: tuple[int, ...], *, branch: int
  ) -> jax.Array | None:
    """Draws the mask [n, *shape] that drops a branch for some examples."""
    prob = self.survival_prob
    if keys is None or (not isinstance(prob, jax.Array) and prob == 1):
      return None
    number = self._number(branch, self.output_mask) + 1
    mask = keep_mask(keys, number, prob, shape)
    # The authors' code does not rescale the remaining branches.
    return mask * (1 / prob if self.rescale else 1.0)

  def add(
    self, x: jax.Array, y: jax.Array, keys: jax.Array | None, *, branch: int
  ) -> jax.Array:
    """Adds a branch, drops some of it, and rounds the sum once to `dtype`.

    Args:
      x: float32 input of the branch.
      y: its output, of the same shape.
      keys: [n] PRNG keys turn dropping on.
      branch: 0 or 1.
    """
    number = self._number(branch, self.output_mask)
    y = apply_mask(y, dropout_mask(keys, self.dropout, number, y.shape[1:]))
    ones = (1,) * (y.ndim - 1)
    y = apply_mask(y, self.drop_path_mask(keys, ones, branch=branch))
    x = (x + y).astype(self.dtype or jnp.float32)
    x = x if x.dtype == jnp.float32 else gpu_barrier(x)
    return checkpoint_name(x, f"branch_{branch}")

  def _number(self, branch, mask):
    return 6 * self.index + (3 * branch + mask)


def survival_probs(stoch_depth: float, blocks: int) -> list[float]:
  """Returns each block's probability that a branch is not dropped."""
  return [1 - stoch_depth * i / max(blocks - 1, 1) for i in range(blocks)]


def keep_mask(
  keys: jax.Array, number: int, prob: float, shape: tuple[int, ...]
) -> jax.Array:
  """Draws which entries stay.

  Args:
    keys: [n] PRNG keys, one per example.
    number: of this mask within the model.
    prob: probability that an entry stays.
    shape: of one example's mask.

  Returns:
    bool [n, *shape].
  """

  def draw(key):
    return jax.random.bernoulli(jax.random.fold_in(key, number), prob, shape)

  return jax.vmap(draw)(keys)


def dropout_mask(
  keys: jax.Array | None, rate: float, number: int, shape: tuple[int, ...]
) -> jax.Array | None:
  """Draws factors 0 or 1 / (1 - rate), [n, *shape]; None if all stay."""
  if keys is None or not rate:
    return None
  return keep_mask(keys, number, 1 - rate, shape) / (1 - rate)


def _save_products(primitive, *_, name: str | None = None, **__) -> bool:
  return primitive.name in ("dot_general", "conv_general_dilated") or (
    name == PRODUCT
  )


# Remat policies: which arrays of a block are saved for the backward pass. All
# others are computed again there.
REMAT = {
  "none": None,  # whatever XLA does not drop itself
  "products": _save_products,  # of matrices, and convolutions
  # The block's input, the output of its first branch (token mixing or
  # self-attention), and the product before the GELU of the second.
  "token_mixing": jax.checkpoint_policies.save_only_these_names(
    "branch_0", HIDDEN
  ),
  "blocks": jax.checkpoint_policies.nothing_saveable,  # the input only
}


def remat_block(
  block: type[nn.Module], policy: str, *, scanned: bool = False
) -> type[nn.Module]:
  """Returns a block's class under a remat policy; instances need a name.

  Args:
    block: its class.
    policy: key of `REMAT`.
    scanned: whether the block is the body of a loop, where XLA drops nothing
      itself, so that "none" means "products", and cannot merge the passes.
  """
  saveable = REMAT[policy] or (_save_products if scanned else None)
  if saveable is None:
    return block
  return nn.remat(block, policy=saveable, prevent_cse=not scanned)
