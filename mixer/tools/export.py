# SPDX-License-Identifier: Apache-2.0
"""Exports weights as a StableHLO program, or in another layout.

  python -m mixer export --init=runs/pets --out=pets.stablehlo
  python -m mixer export --init=imagenet21k/Mixer-B_16 --out=b16.safetensors

The program is the model with its parameters inside, serialized by jax.export.
It takes a batch of any size, on each of its platforms, and needs jax and
flatbuffers, but not this project. Before the file is written, its bytes are
read back and run, and the logits are compared with the model's.

JAX promises to read such a file with releases up to 6 months newer and 3 weeks
older than the one that wrote it: for longer, keep the weights and export again.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export

from mixer import cli, weights
from mixer.data import preprocess
from mixer.errors import UserError, format_list
from mixer.jax_setup import device_count
from mixer.models.kernels import plain_model
from mixer.storage import atomic_write, check_output
from mixer.teacher_plan import PROGRAM
from mixer.tools.inference import DEFAULT_SIZE, check_shape, choose_ops
from mixer.tools.weights import convert
from mixer.training.step import normalise
from mixer.weights.io import SUFFIXES

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # GPUs are cuda or rocm
INPUTS = ("uint8", "float32")
# Largest difference of a logit from the float32 model's, as a part of the
# largest logit or of 1. Seen: 0, and 0.003 for bfloat16.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
TRIED = (1, 3)  # batch sizes; the program is compiled for any


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  parser = cli.create_parser("mixer export", __doc__)
  add = parser.add_argument
  add("--init", required=True, help="weights: a name, a file, a run's folder")
  kinds = " *".join((PROGRAM, *SUFFIXES))
  add("--out", required=True, metavar="FILE", help=f"*{kinds}")
  add("--image_size", type=int, help="in pixels; default: that of the weights")
  add("--platforms", help="of cpu,cuda,rocm,tpu; default: cpu,cuda,tpu")
  add("--input", choices=INPUTS, help="0 to 255 (the default) or -1 to 1")
  add("--dtype", choices=TOLERANCES, help="of products; default: float32")
  return cli.run_cli(run, **vars(parser.parse_args(arguments)))


def run(init: str, out: str, **options: str | int | None) -> str:
  """Writes the file of --out and returns a message about it."""
  suffix = Path(out).suffix
  options = {key: value for key, value in options.items() if value is not None}
  if suffix not in (PROGRAM, *SUFFIXES):
    raise UserError(
      f"--out={out} does not say what to write: end it in {PROGRAM} for a"
      f" program, in {' or '.join(SUFFIXES)} for weights."
    )
  if suffix == PROGRAM:
    out = check_output(out, "--out", rb".{,999}StableHLO_v", inputs=[init])
    _check_choices(options)
    device_count()
    return write_program(weights.read(init), out, **options)
  if options:
    raise UserError(
      f"--{next(iter(options))} is for programs, and weights are the same for"
      f" all: leave it out, or end --out in {PROGRAM}."
    )
  return convert(init, out, flag="--out")


def _check_choices(options: dict[str, str | int]) -> None:
  for platform in options.get("platforms", PLATFORMS[0]).split(","):
    if platform not in PLATFORMS:
      raise UserError(
        f"--platforms takes no {platform!r}: there are {', '.join(PLATFORMS)}."
      )
  if options.get("image_size", 1) < 1:
    raise UserError(f"--image_size={options['image_size']} must be 1 or more.")


def write_program(
  checkpoint: weights.LoadedWeights,
  out: Path,
  *,
  image_size: int | None = None,
  platforms: str = "cpu,cuda,tpu",
  input: str = "uint8",
  dtype: str = "float32",
) -> str:
  """Writes weights and their model as one program.

  Args:
    checkpoint: the weights.
    out: the file.
    image_size: side of the images in pixels; None means that of the weights.
    platforms: that it runs on, separated by commas.
    input: "uint8" for 0 to 255, "float32" for -1 to 1.
    dtype: of the factors of products, see `MlpMixer.dtype`.

  Returns:
    Its largest difference from the model, and how to call it.

  Raises:
    UserError: the images do not fit the weights, or the results differ.
  """
  size = checkpoint.image_size or DEFAULT_SIZE
  if image_size:
    size = image_size, image_size
  model = checkpoint.create_model(dtype=dtype)
  # Fused kernels are for one kind of device and a fixed batch size.
  model = plain_model(model)
  shape = (*size, model.image_channels)
  check_shape(model, checkpoint.params, shape, f"--image_size={size[0]}")
  names = platforms.split(",")

  def classify(images: jax.Array) -> jax.Array:
    # The parameters become constants of the dtype of the products.
    if input == "uint8":
      images = normalise(images)
    return model.apply({"params": checkpoint.params}, images, train=False)[0]

  program = _serialize(classify, shape, input, names)

  platform = jax_export.default_export_platform()
  runnable = program
  if platform not in names:
    runnable = _serialize(classify, shape, input, [platform])
  difference = _compare(runnable, checkpoint, shape, input, dtype)

  with atomic_write(out) as temporary:
    temporary.write_bytes(program)
  shown = ", ".join(map(str, shape))
  values = "0 to 255" if input == "uint8" else "-1 to 1"
  result = "logits" if model.num_classes else "features"
  lines, (ops, of_ops) = [], choose_ops(checkpoint, None)
  if preprocess.output_size(ops) == size:
    lines.append(f"Preprocessing, {of_ops}: {ops}.")
  if checkpoint.class_names:
    lines.append(f"The outputs are {format_list(checkpoint.class_names)}.")
  return "\n".join(
    (
      f"Wrote {out}: {len(program) / 1e6:,.2f} MB, for {', '.join(names)}.",
      f"{difference}, tried on {platform}.",
      "Call it with jax and flatbuffers:",
      "  from jax import export",
      f"  program = export.deserialize(open({str(out)!r}, 'rb').read())",
      f"  {result} = program.call(images)",
      f"where images is {input} [n, {shown}], RGB, {values}, for any n.",
      *lines,
    )
  )


def _serialize(
  classify: Callable[[jax.Array], jax.Array],
  shape: tuple[int, int, int],
  input: str,
  platforms: Sequence[str],
) -> bytes:
  """Lowers a function of images [n, *shape] for any n."""
  open_shape = jax_export.symbolic_shape(f"n, {', '.join(map(str, shape))}")
  images = jax.ShapeDtypeStruct(open_shape, input)
  program = jax_export.export(jax.jit(classify), platforms=platforms)(images)
  try:
    return bytes(program.serialize())
  except ImportError as error:
    raise UserError(f"{error}: pip install flatbuffers") from error


def _compare(
  program: bytes,
  checkpoint: weights.LoadedWeights,
  shape: tuple[int, int, int],
  input: str,
  dtype: str,
) -> str:
  """Compares a program's logits with those of the float32 model.

  Returns:
    The largest difference, as a sentence.

  Raises:
    UserError: the difference is too large.
  """
  call = jax_export.deserialize(bytearray(program)).call
  model = plain_model(checkpoint.create_model())  # as the program is
  apply = jax.jit(lambda params, x: model.apply({"params": params}, x)[0])
  pixels = np.random.default_rng(0).integers(
    256, size=(max(TRIED), *shape), dtype=np.uint8
  )
  images = np.float32(pixels) / 127.5 - 1  # independent of `normalise`
  expected = np.asarray(apply(checkpoint.params, images))
  inputs = pixels if input == "uint8" else images
  difference = np.max(
    [
      np.abs(call(inputs[:number]) - expected[:number]).max()
      for number in TRIED
    ]
  )
  largest = np.abs(expected).max()
  sizes = " and ".join(map(str, TRIED))
  sentence = (
    f"On {sizes} random images its largest difference from the model in"
    f" float32 is {difference:.2g}, the largest logit {largest:.3g}"
  )
  if not difference <= TOLERANCES[dtype] * max(largest, 1):  # nan as well
    raise UserError(f"{sentence}: too much, so nothing is written.")
  return sentence


if __name__ == "__main__":
  sys.exit(main())
