# SPDX-License-Identifier: Apache-2.0
"""A Mixer block by kernels and by layers on this machine's GPU: the same?

python -m benchmarks.kernels [--models=Mixer-S/16,Mixer-L/*]

For a block of random weights, how far its output and its gradients, of tokens
and of the weights (the worst), are from those of the layers in float32 with
products of highest precision, as a part of their norm. Leaves with 2 if kernels
are more than twice as far off as layers are.
"""

import argparse
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.throughput.cells import IMAGE_SIZE, choose
from mixer import models
from mixer.cli import run_cli
from mixer.errors import UserError
from mixer.models.kernels.gpu import GpuMixerBlock
from mixer.models.mixer import MixerBlock
from mixer.tools.table import render

EXAMPLES = 8
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
HEAD = ("model", "dtype", "by", "output", "tokens", "weights")
# What kernels may be further off, where layers are exact but for rounding.
ROUNDING = 1e-5


class Errors(NamedTuple):
  """Of a block, relative to the norm of what is right."""

  output: float
  tokens: float
  weights: float


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.kernels",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--models", default="*", help="names, with * for any part; default: *"
  )
  return run_cli(run, patterns=parser.parse_args().models.split(","))


def run(patterns: list[str]) -> str:
  """Compares the Mixers that patterns are of; returns a table.

  Raises:
    UserError: a name that is none, no GPU, or kernels that are not right.
  """
  mixers = [(name, IMAGE_SIZE) for name in models.names("Mixer")]
  chosen = choose(patterns, mixers)
  if jax.default_backend() != "gpu":
    raise UserError(
      "There is no GPU here, and these kernels are for one. Tests run them in "
      "Pallas' interpret mode."
    )
  rows, wrong = [], []
  for name, image_size in chosen:
    sizes = models.sizes(name)
    tokens = (image_size // sizes["patch"]) ** 2
    for dtype in DTYPES:
      found = compare(sizes, tokens, EXAMPLES, DTYPES[dtype])
      for by, errors in found.items():
        rows.append((name, dtype, by, *(f"{x:.1e}" for x in errors)))
      if not agree(**found):
        wrong.append(f"{name} in {dtype}")
  table = render(HEAD, rows)
  if wrong:
    raise UserError(
      f"{table}\nKernels are not what the layers are: {', '.join(wrong)}. Take "
      "--config.model.kernels=plain here."
    )
  return table


def agree(layers: Errors, kernels: Errors) -> bool:
  """Whether kernels are about as near as layers are; NaN is not."""
  return all(
    own <= 2 * others + ROUNDING
    for own, others in zip(kernels, layers, strict=True)
  )


def compare(
  sizes: dict[str, int], tokens: int, examples: int, dtype: jnp.dtype | None
) -> dict[str, Errors]:
  """The errors of "layers" and of "kernels".

  Args:
    sizes: of a Mixer, as `mixer.models.sizes` has them.
    tokens: of an example.
    examples: that are computed at once.
    dtype: of the products; None for float32.
  """
  fields = {key: sizes[key] for key in ("tokens_mlp", "channels_mlp")}
  exact = MixerBlock(**fields)
  *draws, of_params = jax.random.split(jax.random.key(0), 3)
  x, cotangent = (
    jax.random.normal(key, (examples, tokens, sizes["hidden"])) for key in draws
  )
  params = exact.init(of_params, x)["params"]
  # Biases begin at zero, with which nothing of theirs would be seen.
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape),
    params,
  )
  with jax.default_matmul_precision("highest"):
    right = _compute(exact, params, x, cotangent)
  blocks = {"layers": MixerBlock, "kernels": GpuMixerBlock}
  return {
    by: _errors(
      _compute(block(**fields, dtype=dtype), params, x, cotangent), right
    )
    for by, block in blocks.items()
  }


def _compute(block, params, x, cotangent):
  """Output, and gradients of tokens and of parameters."""

  @jax.jit
  def both(params, x, cotangent):
    out, back = jax.vjp(lambda p, x: block.apply({"params": p}, x), params, x)
    d_params, d_x = back(cotangent.astype(out.dtype))
    return out, d_x, d_params

  return both(params, x, cotangent)


def _errors(found, right) -> Errors:
  def error(value, exact):
    value = value.astype(jnp.float32)
    return float(jnp.linalg.norm(value - exact) / jnp.linalg.norm(exact))

  output, tokens, weights = (
    jax.tree.leaves(jax.tree.map(error, *pair))
    for pair in zip(found, right, strict=True)
  )
  return Errors(output[0], tokens[0], max(weights))


if __name__ == "__main__":
  sys.exit(main())
