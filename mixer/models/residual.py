# SPDX-License-Identifier: Apache-2.0
"""Blocks with skip connections: their precision, how branches are dropped, what
is kept for the backward pass, and how many blocks are compiled as one.

Letters in shape comments: n examples, s tokens, c channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name


def cast_products(inputs, kernel, bias, *, dtype, inexact=True):
  """Which dtype the parts of a Flax layer take: only the products take `dtype`.

  Biases are added in float32: in bfloat16 a bias's gradient, a sum over all
  tokens, was seen to come out a third too small.
  """
  inputs, kernel = promote_dtype(inputs, kernel, dtype=dtype, inexact=inexact)
  return inputs, kernel, bias


# Arrays that policies know by name.
_MIXED, _HIDDEN, _PRODUCT = "mixed_tokens", "hidden_channels", "product"


def keep_products(primitive, *_, name: str | None = None, **__) -> bool:
  """Keeps what products and convolutions leave; the rest is computed again."""
  return primitive.name in ("dot_general", "conv_general_dilated") or (
    name == _PRODUCT
  )


# What of a block is kept for the backward pass, by name; the rest is computed
# again there.
REMAT = {
  "none": None,  # everything that the compiler does not drop itself
  "products": keep_products,
  # What goes in, what the first branch leaves (token mixing or self-attention),
  # and the product inside the second.
  "token_mixing": jax.checkpoint_policies.save_only_these_names(
    _MIXED, _HIDDEN
  ),
  "blocks": jax.checkpoint_policies.nothing_saveable,  # what goes in alone
}


def rematerialise(
  kind: type[nn.Module], policy: str, *, looped: bool = False
) -> type[nn.Module]:
  """A block's class that keeps what a policy says; it needs a name when made.

  Args:
    kind: the block's class.
    policy: of `REMAT`.
    looped: whether the block is the body of a loop, of which the compiler drops
      nothing itself: "none" is "products" there. Nor can it merge its passes.
  """
  if policy not in REMAT:
    raise ValueError(f"remat={policy!r} is none of {', '.join(REMAT)}.")
  keep = REMAT[policy] or (keep_products if looped else None)
  if keep is None:
    return kind
  return nn.remat(kind, policy=keep, prevent_cse=not looped)


def mixed_tokens(x: jax.Array) -> jax.Array:
  """Marks what a block's first branch leaves, for `REMAT`."""
  return checkpoint_name(x, _MIXED)


def hidden_channels(x: jax.Array) -> jax.Array:
  """Marks the product inside a block's second branch, for `REMAT`."""
  return checkpoint_name(x, _HIDDEN)


def hidden_product(*arguments, **options) -> jax.Array:
  """That product, as a Flax layer takes it."""
  return hidden_channels(jax.lax.dot_general(*arguments, **options))


def product(x: jax.Array) -> jax.Array:
  """Marks a product that has its own derivative, for `REMAT`."""
  return checkpoint_name(x, _PRODUCT)


def hold_on_gpu(x: jax.Array) -> jax.Array:
  """Has a GPU's compiler put an array, and its cotangent, in memory as it is.

  It would move another one that is wider, because it takes rounding and
  widening again for nothing, or that has axes in another order. TPUs would
  lose by it (benchmarks/NOTES.md).
  """
  barrier = jax.lax.optimization_barrier
  return jax.lax.platform_dependent(
    x, cuda=barrier, rocm=barrier, default=lambda x: x
  )


def draw_kept(keys: jax.Array, site: int, keep: float, shape: tuple[int, ...]):
  """Draws which entries stay, from one key an example.

  Args:
    keys: [n] PRNG keys.
    site: which of the model's draws this is.
    keep: probability with which an entry stays.
    shape: of one example's mask.

  Returns:
    bool [n, *shape].
  """

  def draw(key):
    return jax.random.bernoulli(jax.random.fold_in(key, site), keep, shape)

  return jax.vmap(draw)(keys)


class Residual(nn.Module):
  """A block of branches, each added to what it was computed from, or dropped.

  index: of the block, by which its draws differ from those of the others.
  keep_path: probability with which a branch stays. It and `index` are arrays in
    a loop over blocks.
  """

  index: int | jax.Array = 0
  keep_path: float | jax.Array = 1.0
  rescale: bool = False
  dropout: float = 0.0
  dtype: jnp.dtype | None = None
  gelu: str = "tanh"

  def _dropout(self, keys, site, shape):
    """Factors 0 or 1 / (1 - rate) for [n, *shape], None when all stay."""
    if keys is None or not self.dropout:
      return None
    kept = draw_kept(keys, 6 * self.index + site, 1 - self.dropout, shape)
    return kept / (1 - self.dropout)

  def _add(self, x, branch, keys, site):
    """Adds what is not dropped of a branch, and rounds the sum once."""
    x = x + self._drop(branch, keys, site)
    x = x.astype(self.dtype or jnp.float32)
    return x if x.dtype == jnp.float32 else hold_on_gpu(x)

  def _drop(self, branch, keys, site):
    """Drops entries (dropout), then whole branches (stochastic depth)."""
    scale = self._dropout(keys, site, branch.shape[1:])
    if scale is not None:
      branch = branch * scale
    kept = self._kept_paths(keys, site, (1,) * (branch.ndim - 1))
    return branch if kept is None else branch * kept

  def _kept_paths(self, keys, site, shape):
    """Factors [n, *shape] of whole branches, None when all stay as they are."""
    never = not isinstance(self.keep_path, jax.Array) and self.keep_path == 1
    if keys is None or never:
      return None
    kept = draw_kept(keys, 6 * self.index + site + 1, self.keep_path, shape)
    # The authors' code leaves the branches that stay as they are.
    return kept * (1 / self.keep_path if self.rescale else 1.0)


def keep_rates(stoch_depth: float, blocks: int) -> list[float]:
  """Stochastic depth: block i of L is dropped at i / (L - 1) of the rate."""
  return [1 - stoch_depth * i / max(blocks - 1, 1) for i in range(blocks)]


def run_blocks(
  model: nn.Module,
  x: jax.Array,
  keys: jax.Array | None,
  *,
  name: str,
  make: Callable[..., Residual],
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Runs a model's blocks in turn, as often as it has of them.

  With `model.scan` one block is compiled, and looped over the parameters of all
  of them, which are put side by side for that. Their names stay the same.

  Args:
    model: has the blocks' parameters, and the fields blocks, stoch_depth, dtype
      and scan.
    x: n s c.
    keys: [n] PRNG keys, or None.
    name: of a block without its number.
    make: makes a block of index=, keep_path=, and flax's name= or parent=.

  Returns:
    What the last block leaves, and what each does, as "block00" and so on.
  """
  every = range(model.blocks)
  rates = keep_rates(model.stoch_depth, model.blocks)
  if not model.scan or model.is_initializing():
    out = {}
    for i in every:
      block = make(index=i, keep_path=rates[i], name=f"{name}_{i}")
      x = out[f"block{i:02d}"] = block(x, keys)
    return x, out

  params = [model.variables["params"][f"{name}_{i}"] for i in every]
  rates = jnp.array(rates) if model.stoch_depth else None

  def step(x, each):
    index, rate, params = each
    rate = 1.0 if rate is None else rate
    block = make(index=index, keep_path=rate, parent=None)
    x = block.apply({"params": params}, x, keys)
    return x, x

  x = x.astype(model.dtype or jnp.float32)  # as every block leaves it
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  x, left = jax.lax.scan(step, x, (jnp.arange(model.blocks), rates, stacked))
  return x, {f"block{i:02d}": left[i] for i in every}
