# SPDX-License-Identifier: Apache-2.0
"""Compares a Mixer block's kernels with its layers on this machine's GPU.

python -m benchmarks.kernels [--models=Mixer-S/16,Mixer-L/*] [--time]

For a block of random weights, prints the errors of the output, the tokens'
gradient and the weights' gradients (the worst), relative to the norm of those
of the layers in float32 with products of highest precision. Exits with 2 if
the kernels' errors are more than twice the layers'.

With --time, times each pass in bfloat16 instead, forward and backward, and
writes results/kernels/DEVICE.json. The rate counts each array of the pass once.
"""

import contextlib
import functools
import importlib
import itertools
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import device
from benchmarks.cells import IMAGE_SIZE, choose
from benchmarks.harness import Results, speed, time_calls
from mixer import models
from mixer.cli import create_parser, run_cli
from mixer.errors import UserError
from mixer.models.kernels import gpu
from mixer.models.kernels import statistics as moments
from mixer.models.layers import gelu
from mixer.models.mixer import MixerBlock
from mixer.tools.table import render

EXAMPLES = 8
TIMED_EXAMPLES = 128
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
LAYERS = "layers"
BACKENDS = "triton", "mosaic"  # modules of mixer.models.kernels
HEAD = ("model", "dtype", "by", "output", "tokens", "weights")
TIME_HEAD = ("model", "pass", "by", "µs", "GB/s")
ROUNDING = 1e-5  # allowed error where the layers have almost none


class Errors(NamedTuple):
  """Errors of a block, relative to the norm of the exact values."""

  output: float
  tokens: float
  weights: float


def main() -> int:
  parser = create_parser("benchmarks.kernels", __doc__)
  parser.add_argument(
    "--models", default="*", help="names, with * for any part; default: *"
  )
  parser.add_argument("--time", action="store_true", help="time the passes")
  parser.add_argument(
    "--results", type=Path, default=Path("results"), help="default: results"
  )
  flags = parser.parse_args()
  results = flags.results if flags.time else None
  return run_cli(run, patterns=flags.models, results=results)


def run(patterns: str, results: Path | None = None) -> str:
  """Compares the Mixers that match the patterns; returns a table.

  Args:
    patterns: their names.
    results: times the passes instead, and writes to this folder.

  Raises:
    UserError: an unknown name, no GPU, or kernels that are wrong.
  """
  chosen = choose(patterns, models.names("Mixer"))
  if jax.default_backend() != "gpu":
    raise UserError(
      "There is no GPU here, and these kernels are for one. Tests run them in "
      "Pallas' interpret mode."
    )
  return time_models(chosen, results) if results else compare_models(chosen)


def compare_models(names: list[str]) -> str:
  """Returns the table of errors; see `run`."""
  rows, wrong = [], []
  for name in names:
    sizes = models.sizes(name)
    tokens = (IMAGE_SIZE // sizes["patch"]) ** 2
    for dtype in DTYPES:
      errors_by = compare(sizes, tokens, EXAMPLES, DTYPES[dtype])
      for by, errors in errors_by.items():
        rows.append((name, dtype, by, *(f"{x:.1e}" for x in errors)))
        if not agree(errors_by[LAYERS], errors):
          wrong.append(f"{name} in {dtype} by {by}")
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


def backends() -> dict[str, object]:
  """Returns the modules of kernels that the installed jax can run, by name."""
  found = {}
  for name in BACKENDS:
    with contextlib.suppress(ImportError):
      found[name] = importlib.import_module(f"mixer.models.kernels.{name}")
  return found


def compare(
  sizes: dict[str, int],
  tokens: int,
  examples: int,
  dtype: jnp.dtype | None,
  kernels: dict[str, object] | None = None,
) -> dict[str, Errors]:
  """Returns the errors of "layers", and of the kernels of each backend.

  Args:
    sizes: fields of a Mixer, from `mixer.models.sizes`.
    tokens: number of tokens of an example.
    examples: batch size.
    dtype: dtype of the products; None for float32.
    kernels: modules by name; all that are here by default.
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
  blocks = {LAYERS: MixerBlock} | {
    name: gpu.block_with(passes)
    for name, passes in (kernels or backends()).items()
  }
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


class Layers:
  """The passes as XLA compiles them from plain expressions."""

  @staticmethod
  def layer_norm(x, scale, shift, rows, dtype):
    mean, deviation = moments(x)
    y = (x.astype(jnp.float32) - mean) * deviation * scale + shift
    padding = (0, 0), (0, rows - x.shape[1]), (0, 0)
    return jnp.pad(y.astype(dtype), padding)

  @staticmethod
  def layer_norm_gradient(x, scale, d_y, skip):
    def both(x, scale, shift):
      x = x.astype(jnp.float32)
      return x, Layers.layer_norm(x, scale, shift, d_y.shape[1], d_y.dtype)

    _, back = jax.vjp(both, x, scale, scale)
    return back((skip.astype(jnp.float32), d_y))

  @staticmethod
  def bias_gelu(x, bias, axis):
    bias = jnp.expand_dims(bias, 2 - axis)
    return gelu(x.astype(jnp.float32) + bias, "tanh").astype(x.dtype)

  @staticmethod
  def bias_gelu_gradient(x, bias, cotangent, axis):
    _, back = jax.vjp(functools.partial(Layers.bias_gelu, axis=axis), x, bias)
    return back(cotangent)


def time_models(names: list[str], results: Path) -> str:
  """Times all passes of a block; returns the table. For args see `run`."""
  known = Results(results, "kernels", device.describe(), limit=0, again=True)
  rows = []
  for name, (by, kernels) in itertools.product(
    names, {LAYERS: Layers, **backends()}.items()
  ):
    for label, function, arrays in timed_passes(models.sizes(name), kernels):
      out = jax.eval_shape(function, *arrays)
      size = sum(x.nbytes for x in arrays)
      size += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(out))
      call = functools.partial(jax.jit(function), *arrays)
      timings = time_calls(call, repeats=7, seconds=0.1)
      seconds = statistics.median(timings)
      figures = 1e6 * seconds, size / seconds / 1e9
      rows.append((name, label, by, *(f"{x:.0f}" for x in figures)))
      key = {"model": name, "pass": label, "by": by, "batch": TIMED_EXAMPLES}
      row = {"dtype": "bfloat16", "bytes": size}
      known.put(key, [speed(TIMED_EXAMPLES, timings) | row])
  return f"{render(TIME_HEAD, rows)}\n\n{known.path}"


def timed_passes(sizes: dict[str, int], kernels: object) -> Iterator[tuple]:
  """Yields name, function and bfloat16 arrays of each pass over a batch."""
  n, c = TIMED_EXAMPLES, sizes["hidden"]
  s = (IMAGE_SIZE // sizes["patch"]) ** 2
  padded = s + -s % gpu.MULTIPLE

  def draw(*shape, dtype=jnp.bfloat16):
    return jax.random.normal(jax.random.key(math.prod(shape)), shape, dtype)

  x, vector = draw(n, s, c), draw(c, dtype=jnp.float32)
  norm = functools.partial(
    kernels.layer_norm, rows=padded, dtype=jnp.dtype(jnp.bfloat16)
  )
  yield "layer norm", norm, (x, vector, vector)
  arrays = x, vector, draw(n, padded, c), x
  yield "layer norm, back", kernels.layer_norm_gradient, arrays
  hidden = {
    "tokens": (draw(n, sizes["tokens_mlp"], c), 1),
    "channels": (draw(1, n * s, sizes["channels_mlp"]), 2),
  }
  for mixing, (x, axis) in hidden.items():
    bias = draw(x.shape[axis], dtype=jnp.float32)
    value, gradient = (
      functools.partial(function, axis=axis)
      for function in (kernels.bias_gelu, kernels.bias_gelu_gradient)
    )
    yield f"GELU of {mixing}", value, (x, bias)
    yield f"GELU of {mixing}, back", gradient, (x, bias, x)


if __name__ == "__main__":
  sys.exit(main())
