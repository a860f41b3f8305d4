# SPDX-License-Identifier: Apache-2.0
"""The paper's authors' model, from a checkout of their code.

google-research/vision_transformer, vit_jax/models_mixer.py. Only that file is
loaded, because the package around it imports TensorFlow and more. Their own
training loop fine-tunes with momentum and a softmax. Here their model is timed
in the plainest step of optax: the other implementations' loss, clipping, Adam
and decay, under jit.

Their module has no dtype. For bfloat16, parameters and images are cast, as a
user would without changing their code: the whole network computes in bfloat16,
and the updated parameters stay float32.
"""

import functools
import importlib.util
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks import device, programs
from benchmarks.cells import CLASSES, TRAINING, Cell
from benchmarks.step.implementations import AbsentError, OnJax
from mixer import models
from mixer.training.step import normalise, sigmoid_cross_entropy, soft_labels

FILE = Path("vit_jax", "models_mixer.py")


def open_authors(checkout: Path | None) -> OnJax:
  """Opens the authors' Mixer, with optax.

  Raises:
    AbsentError: without a checkout of their code.
  """
  if checkout is None:
    raise AbsentError("give a checkout of their code by --authors=PATH")
  file = checkout / FILE
  if not file.is_file():
    raise AbsentError(f"there is no {file}")
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # flax looks up annotations there
  spec.loader.exec_module(module)
  return OnJax(
    functools.partial(make_authors, module),
    errors=(Exception,),
    packages=(*device.PACKAGES, "einops"),
  )


def make_authors(module: types.ModuleType, cell: Cell) -> programs.Program:
  """Compiles a cell's program of the authors' module."""
  model = _create(module, cell.model)
  shape = cell.image_shape
  params = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, *shape[1:])), train=False),
    jax.random.key(0),
  )["params"]
  dtype = jnp.dtype(cell.dtype)

  def apply(params, images):
    params, images = jax.tree.map(lambda x: x.astype(dtype), (params, images))
    logits = model.apply({"params": params}, images, train=False)
    return logits.astype(jnp.float32)

  if cell.passes == TRAINING:
    return _train(apply, params, shape)
  return programs.infer_with(apply, params, shape)


def _create(module: types.ModuleType, name: str) -> nn.Module:
  sizes = models.sizes(name)
  return module.MlpMixer(
    patches=types.SimpleNamespace(size=(sizes["patch"], sizes["patch"])),
    num_classes=CLASSES,
    num_blocks=sizes["blocks"],
    hidden_dim=sizes["hidden"],
    tokens_mlp_dim=sizes["tokens_mlp"],
    channels_mlp_dim=sizes["channels_mlp"],
  )


def _train(apply, params: dict, shape: tuple[int, ...]) -> programs.Program:
  """Compiles an update; see `make_authors` for `apply`."""
  optimizer = optax.chain(
    optax.clip_by_global_norm(programs.CLIP_NORM),
    optax.adamw(
      programs.LEARNING_RATE,
      weight_decay=programs.WEIGHT_DECAY / programs.LEARNING_RATE,
      mask=jax.tree.map_with_path(lambda k, _: k[-1].key == "kernel", params),
    ),
  )

  def update(state, batch):
    params, opt_state = state

    def mean_loss(params):
      logits = apply(params, normalise(batch["image"]))
      labels = soft_labels(batch["label"], CLASSES)
      return sigmoid_cross_entropy(logits, labels).mean()

    loss, gradients = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  def create(params):
    return params, optimizer.init(params)

  program = programs.bind_update(
    jax.jit(update, donate_argnums=0),
    create,
    params,
    programs.draw_batch(shape),
  )
  if not jnp.isfinite(program.call()):
    raise ValueError("The loss of random weights is not finite.")
  return program
