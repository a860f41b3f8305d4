# SPDX-License-Identifier: Apache-2.0
"""Parts that all models share: dense layers, GELU, residual blocks, remat.

In bfloat16, matrix products and convolutions take bfloat16 factors. Biases,
norms, activations, skip connections and sums are computed in float32.

Letters in shape comments: n examples, s tokens, c channels.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

GELUS = ("tanh", "exact")
# Checkpoint names, which the remat policies below refer to.
HIDDEN = "hidden"  # product before the GELU in a block's second branch
PRODUCT = "product"  # product with a derivative of its own

_CUBIC = 0.044715
_SLOPE = 2 * math.sqrt(2 / math.pi)


def cast_products(inputs, kernel, bias, *, dtype, inexact=True, shifts=False):
  """Casts the factors of a Flax layer's product to `dtype`, but not its bias.

  Adds biases in float32: in bfloat16 the gradient of a bias, a sum over all
  tokens, was seen to come out a third too small. `shifts`: the bias has no
  effect on the loss, see `freeze_shift`.
  """
  bias = freeze_shift(bias, dtype) if shifts else bias
  inputs, kernel = promote_dtype(inputs, kernel, dtype=dtype, inexact=inexact)
  return inputs, kernel, bias


def freeze_shift(bias: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
  """Stops the gradient of a bias whose effect a later layer removes.

  Layer norms remove what shifts all channels of a token alike, and a softmax
  what shifts all its logits, so that the gradient is 0. In bfloat16 it would be
  the sum of rounding errors, and Adam, which normalizes gradients, would walk
  at random (benchmarks/NOTES.md). In float32 the errors are too small for that.
  """
  is_float32 = jnp.dtype(dtype or jnp.float32) == jnp.float32
  return bias if is_float32 else jax.lax.stop_gradient(bias)


def dense(
  features: int,
  dtype: jnp.dtype | None,
  *,
  saved_as: str | None = None,
  shifts: bool = False,
  **options,
) -> nn.Dense:
  """Returns a dense layer whose product is computed in `dtype`.

  Args:
    features: width of the output.
    dtype: of the product's factors; None for float32.
    saved_as: checkpoint name of the product.
    shifts: its bias has no effect on the loss, see `freeze_shift`.
    **options: of flax's Dense.
  """

  def named_dot(*arguments, **keywords):
    y = jax.lax.dot_general(*arguments, **keywords)
    return checkpoint_name(y, saved_as) if saved_as else y

  return nn.Dense(
    features,
    dtype=dtype,
    promote_dtype=functools.partial(cast_products, shifts=shifts),
    dot_general=named_dot,
    **options,
  )


def apply_mask(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Multiplies by a drop mask; None keeps everything."""
  return x if mask is None else x * mask


def share_over(module: type[nn.Module], axis: int) -> type[nn.Module]:
  """Lifts a module over one axis of its inputs, with shared parameters."""
  return nn.vmap(
    module,
    in_axes=axis,
    out_axes=axis,
    variable_axes={"params": None},
    split_rngs={"params": False},
  )


def gpu_barrier(x: jax.Array) -> jax.Array:
  """Makes a GPU store an array and its cotangent with this dtype and layout.

  Otherwise XLA folds the bfloat16 round trip away and moves float32, or
  transposes the array first. TPUs would lose by it (benchmarks/NOTES.md).
  """
  barrier = jax.lax.optimization_barrier
  return jax.lax.platform_dependent(
    x, cuda=barrier, rocm=barrier, default=lambda x: x
  )


def multiply_patches(images, kernel, strides, *_, **__):
  """Convolves without overlap: n h w c to n h/P w/P d, by one product.

  GPU convolutions take ten times as long.
  """
  n, height, width, c = images.shape
  p, _ = strides
  patches = images.reshape(n, height // p, p, width // p, p, c)
  patches = patches.transpose(0, 1, 3, 2, 4, 5)  # n h/P w/P P P c
  patches = patches.reshape(*patches.shape[:3], p * p * c)
  return patches @ kernel.reshape(p * p * c, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gelu(x: jax.Array, form: str) -> jax.Array:
  """Applies GELU element by element.

  Args:
    x: floating-point, any shape.
    form: "tanh", the approximation in the authors' code, or "exact".
  """
  assert form in GELUS
  return jax.nn.gelu(x, approximate=form == "tanh")


@gelu.defjvp
def _gelu_jvp(form, primals, tangents):
  # The derivative uses other functions than the value. XLA would share a common
  # one, and, because it is expensive, keep it in float32 from the forward to
  # the backward pass: a quarter of a B/16 step's traffic on a GPU
  # (benchmarks/NOTES.md).
  (x,), (tangent,) = primals, tangents
  if form == "tanh":
    _, slope = gelu_gate_and_grad(x)
  else:
    gate = 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    slope = gate + x * density
  return gelu(x, form), tangent * slope


def gelu_gate_and_grad(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the gate g of the tanh form, GELU(x) = x g, and the derivative.

  The gate is a sigmoid: g = sigmoid(gelu_gate_logit(x)).
  """
  gate = jax.nn.sigmoid(gelu_gate_logit(x))
  return gate, gelu_grad(x, gate)


def gelu_gate_logit(x: jax.Array) -> jax.Array:
  """Returns the logit of the tanh form's gate."""
  return _SLOPE * x * (1 + _CUBIC * (x * x))


def gelu_grad(x: jax.Array, gate: jax.Array) -> jax.Array:
  """Returns the derivative of the tanh form, given its gate."""
  density = gate * (1 - gate) * _SLOPE * (1 + 3 * _CUBIC * (x * x))
  return gate + x * density


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
    keys, prob = scale_rate(keys, prob)
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


class ScaledKeys(NamedTuple):
  """PRNG keys that also scale the drop rates, in place of plain keys.

  keys: [n], one per example.
  scale: float32 [], factor on every rate, 0 to 1.
  """

  keys: jax.Array
  scale: jax.Array


def scale_rate(
  keys: jax.Array | ScaledKeys, prob: float | jax.Array
) -> tuple[jax.Array, float | jax.Array]:
  """Returns plain keys, and the probability to stay at the scaled rate."""
  if not isinstance(keys, ScaledKeys):
    return keys, prob
  return keys.keys, 1 - (1 - prob) * keys.scale


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
  keys: jax.Array | ScaledKeys | None,
  rate: float,
  number: int,
  shape: tuple[int, ...],
) -> jax.Array | None:
  """Draws factors 0 or 1 / (1 - rate), [n, *shape]; None if all stay."""
  if keys is None or not rate:
    return None
  keys, prob = scale_rate(keys, 1 - rate)
  return keep_mask(keys, number, prob, shape) / prob


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
