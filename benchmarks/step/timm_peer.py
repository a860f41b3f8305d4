# SPDX-License-Identifier: Apache-2.0
"""timm's models through PyTorch, compiled or eager.

Model and loss under torch.compile, then clipping and fused AdamW, as in timm's
own train.py; parameters float32, bfloat16 by autocast. In float32 a GPU uses
TF32 for products, because jax does so, too. timm computes the exact GELU, the
other implementations the tanh form. It has no H/14.

Seconds of compilation are the first call's minus a later one's.
"""

import contextlib
import math
import time

import timm
import torch
from torch import nn
from torch.nn import functional

from benchmarks import device, programs
from benchmarks.cells import CLASSES, IMAGE_SIZE, TRAINING, Cell
from benchmarks.step.implementations import AbsentError, draw_squares
from mixer.data.workers import usable_cores

DEVICES = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "rocm": "cuda"}


class Timm:
  """timm's Mixers, with the methods of `OnJax`."""

  packages = ("torch", "timm")
  errors = (Exception,)

  def __init__(self, platform: str, *, compiled: bool):
    """Configures PyTorch.

    Args:
      platform: platform on which jax computes.
      compiled: whether to use torch.compile.
    """
    kind = DEVICES.get(platform)
    if kind is None or kind == "cuda" and not torch.cuda.is_available():
      raise AbsentError(
        f"PyTorch does not compute on this machine's {platform}"
      )
    self._device = torch.device(kind)
    self._compiled = compiled
    if kind == "cpu":
      torch.set_num_threads(usable_cores())
    else:
      torch.set_float32_matmul_precision("high")

  def make(self, cell):
    name = timm_name(cell.model)
    if name not in timm.list_models():
      raise AbsentError(f"timm has no {cell.model}")
    model = timm.create_model(name, num_classes=CLASSES)
    draw_weights(model)
    model.to(self._device)
    batch = programs.draw_batch(cell.image_shape)
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(batch["label"]).long()
    make = self.update_of if cell.passes == TRAINING else self._infer
    call = make(model, cell, images.to(self._device), labels.to(self._device))
    first, second = self._time(call), self._time(call)
    if not torch.isfinite(call()).all():
      raise ValueError("The result of random weights is not finite.")
    return programs.Program(call, 0, max(0.0, first - second))

  def product(self, size, dtype):
    a, b = (
      torch.from_numpy(x).to(self._device, getattr(torch, dtype))
      for x in draw_squares(size)
    )
    return lambda: a @ b

  def wait(self, result):
    if self._device.type == "cuda":
      torch.cuda.synchronize()

  def reset_peak(self):
    if self._device.type == "cuda":
      torch.cuda.reset_peak_memory_stats()
    device.reset_peak_memory()

  def peak_bytes(self):
    if self._device.type == "cuda":
      return torch.cuda.max_memory_allocated()
    return device.peak_memory()

  def _infer(self, model, cell, images, labels):
    model.eval()

    def forward(images):
      with self._autocast(cell):
        return model(normalise(images))

    forward = self._compile(forward)

    def call():
      with torch.inference_mode():
        return forward(images)

    return call

  def update_of(self, model, cell, images, labels):
    """Makes a function that updates the model and returns the loss."""
    model.train()
    optimizer = torch.optim.AdamW(
      parameter_groups(model), lr=programs.LEARNING_RATE, fused=True
    )
    params = list(model.parameters())

    def mean_loss(images, labels):
      with self._autocast(cell):
        logits = model(normalise(images))
      targets = functional.one_hot(labels, CLASSES).float()
      total = functional.binary_cross_entropy_with_logits(
        logits.float(), targets, reduction="sum"
      )
      return total / len(labels)

    mean_loss = self._compile(mean_loss)

    def call():
      loss = mean_loss(images, labels)
      loss.backward()
      nn.utils.clip_grad_norm_(params, programs.CLIP_NORM)
      optimizer.step()
      optimizer.zero_grad()
      return loss.detach()

    return call

  def _compile(self, function):
    if not self._compiled:
      return function
    return torch.compile(function, dynamic=False)

  def _autocast(self, cell: Cell):
    if cell.dtype == "float32":
      return contextlib.nullcontext()
    return torch.autocast(self._device.type, getattr(torch, cell.dtype))

  def _time(self, call) -> float:
    start = time.perf_counter()
    self.wait(call())
    return time.perf_counter() - start


def timm_name(model: str) -> str:
  """Returns timm's name, such as mixer_b16_224 for Mixer-B/16."""
  return f"{model.replace('-', '_').replace('/', '').lower()}_{IMAGE_SIZE}"


def normalise(images: torch.Tensor) -> torch.Tensor:
  """Maps uint8 0..255 to float32 -1..1."""
  return images.float() / 127.5 - 1


def parameter_groups(model: nn.Module) -> list[dict]:
  """Decays only matrices; AdamW multiplies decay by the rate, we do not."""
  kernels = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim <= 1]
  return [
    {
      "params": kernels,
      "weight_decay": programs.WEIGHT_DECAY / programs.LEARNING_RATE,
    },
    {"params": others, "weight_decay": 0.0},
  ]


@torch.no_grad()
def draw_weights(model: nn.Module):
  """Draws weights like `draw_params`: none is zero, not even in the head."""
  torch.manual_seed(0)
  for name, weight in model.named_parameters():
    values = torch.randn_like(weight)
    if weight.ndim > 1:
      weight.copy_(values / math.sqrt(math.prod(weight.shape[1:])))
    else:
      is_scale = "norm" in name and name.endswith("weight")
      weight.copy_(0.1 * values + is_scale)
