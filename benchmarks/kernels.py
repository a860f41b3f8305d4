# SPDX-License-Identifier: Apache-2.0
"""Compares a Mixer block's kernels with its layers on this machine's GPU.

python -m benchmarks.kernels [--models=Mixer-S/16,Mixer-L/*]

For a block of random weights, prints the errors of the output, the tokens'
gradient and the weights' gradients (the worst), relative to the norm of those
of the layers in float32 with products of highest precision. Exits with 2 if
the kernels' errors are more than twice the layers'.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import create_parser
from benchmarks.cells import IMAGE_SIZE, choose
from mixer import models
from mixer.cli import run_cli
from mixer.errors import UserError
from mixer.models.kernels.gpu import GpuMixerBlock
from mixer.models.mixer import MixerBlock
from mixer.tools.table import render

EXAMPLES = 8
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
HEAD = ("model", "dtype", "by", "output", "tokens", "weights")
ROUNDING = 1e-5  # allowed error where the layers have almost none


class Errors(NamedTuple):
  """Errors of a block, relative to the norm of the exact values."""

  output: float
  tokens: float
  weights: float


def main() -> int:
  parser = create_parser("kernels", __doc__)
  parser.add_argument(
    "--models", default="*", help="names, with * for any part; default: *"
  )
  return run_cli(run, patterns=parser.parse_args().models)


def run(patterns: str) -> str:
  """Compares the Mixers that match the patterns; returns a table.

  Raises:
    UserError: an unknown name, no GPU, or kernels that are wrong.
  """
  chosen = choose(patterns, models.names("Mixer"))
  if jax.default_backend() != "gpu":
    raise UserError(
      "There is no GPU here, and these kernels are for one. Tests run them in "
      "Pallas' interpret mode."
    )
  rows, wrong = [], []
  for name in chosen:
    sizes = models.sizes(name)
    tokens = (IMAGE_SIZE // sizes["patch"]) ** 2
    for dtype in DTYPES:
      errors_by = compare(sizes, tokens, EXAMPLES, DTYPES[dtype])
      for by, errors in errors_by.items():
        rows.append((name, dtype, by, *(f"{x:.1e}" for x in errors)))
      if not agree(**errors_by):
        wrong.append(f"{name} in {dtype}")
  table = render(HEAD, rows)
  if wrong:
    raise UserError(
      f"{table}\nKernels are not what the layers are: {', '.join(wrong)}. Take "
      "--config.model.kernels=plain here."
    )
  return table


def agree(layers: Errors, kernels: Errors) -> bool:
  """Returns whether kernels are about as exact as layers; False for nan."""
  return all(
    kernel <= 2 * layer + ROUNDING
    for kernel, layer in zip(kernels, layers, strict=True)
  )


def compare(
  sizes: dict[str, int], tokens: int, examples: int, dtype: jnp.dtype | None
) -> dict[str, Errors]:
  """Returns the errors of "layers" and of "kernels".

  Args:
    sizes: fields of a Mixer, from `mixer.models.sizes`.
    tokens: number of tokens of an example.
    examples: batch size.
    dtype: dtype of the products; None for float32.
  """
  fields = {key: sizes[key] for key in ("tokens_mlp", "channels_mlp")}
  exact = MixerBlock(**fields)
  *draws, of_params = jax.random.split(jax.random.key(0), 3)
  x, cotangent = (
    jax.random.normal(key, (examples, tokens, sizes["hidden"])) for key in draws
  )
  params = exact.init(of_params, x)["params"]
  # Biases begin at zero, which would hide errors in their use.
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape),
    params,
  )
  with jax.default_matmul_precision("highest"):
    expected = _compute(exact, params, x, cotangent)
  blocks = {"layers": MixerBlock, "kernels": GpuMixerBlock}
  return {
    by: _errors(
      _compute(block(**fields, dtype=dtype), params, x, cotangent), expected
    )
    for by, block in blocks.items()
  }


def _compute(block, params, x, cotangent):
  """Returns the output, and the gradients of tokens and of parameters."""

  @jax.jit
  def both(params, x, cotangent):
    out, back = jax.vjp(lambda p, x: block.apply({"params": p}, x), params, x)
    d_params, d_x = back(cotangent.astype(out.dtype))
    # In a model it is 0, which bfloat16 makes of it here as well.
    del d_params["token_mixing"]["Dense_1"]["bias"]
    return out, d_x, d_params

  return both(params, x, cotangent)


def _errors(values, expected) -> Errors:
  def error(value, exact):
    value = value.astype(jnp.float32)
    return float(jnp.linalg.norm(value - exact) / jnp.linalg.norm(exact))

  output, tokens, weights = (
    jax.tree.leaves(jax.tree.map(error, *pair))
    for pair in zip(values, expected, strict=True)
  )
  return Errors(output[0], tokens[0], max(weights))


if __name__ == "__main__":
  sys.exit(main())
