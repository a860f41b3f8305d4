# SPDX-License-Identifier: Apache-2.0
"""Small files in former layouts, and their content in today's."""

import numpy as np

RNG = np.random.default_rng(0)


def _normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def old_mixer(params, second_norm="LayerNorm_1"):
  """Returns a Mixer under the names of its training code.

  Args:
    params: flat dict under the published names.
    second_norm: name of a block's second LayerNorm; Flax once counted all
      layers of a block together.
  """
  old = {}
  for name, array in params.items():
    block, _, rest = name.partition("/")
    if block.startswith("MixerBlock_"):
      block = block.replace("MixerBlock_", "Mixer/encoderblock_")
      rest = rest.replace("LayerNorm_1", second_norm)
      for layer in (0, 1):
        for kind in ("kernel", "bias"):
          rest = rest.replace(
            f"_mixing/Dense_{layer}/{kind}",
            f"_mixing_phase_0/{kind}{layer + 1}",
          )
      if "phase_0" in rest:
        array = array[None]
    block = {
      "stem": "embedding",
      "pre_head_layer_norm": "Mixer/encoder_norm",
    }.get(block, block)
    old[f"{block}/{rest}"] = array
  return old


def old_vit(head, layers=2, hidden=8, mlp=16, heads=2, patch=4):
  """Returns a ViT's old file, and its arrays under today's names."""
  block = {
    "LayerNorm_0/bias": ("LayerNorm_0/bias", (hidden,)),
    "LayerNorm_0/scale": ("LayerNorm_0/scale", (hidden,)),
    "LayerNorm_2/bias": ("LayerNorm_1/bias", (hidden,)),
    "LayerNorm_2/scale": ("LayerNorm_1/scale", (hidden,)),
    "MlpBlock_3/Dense_0/bias": ("MlpBlock_0/Dense_0/bias", (mlp,)),
    "MlpBlock_3/Dense_0/kernel": ("MlpBlock_0/Dense_0/kernel", (hidden, mlp)),
    "MlpBlock_3/Dense_1/bias": ("MlpBlock_0/Dense_1/bias", (hidden,)),
    "MlpBlock_3/Dense_1/kernel": ("MlpBlock_0/Dense_1/kernel", (mlp, hidden)),
  }
  each = hidden // heads
  for part, kernel, bias in (
    ("key", (hidden, heads, each), (heads, each)),
    ("query", (hidden, heads, each), (heads, each)),
    ("value", (hidden, heads, each), (heads, each)),
    ("out", (heads, each, hidden), (hidden,)),
  ):
    for kind, shape in (("kernel", kernel), ("bias", bias)):
      old = f"MultiHeadDotProductAttention_1/{part}/{kind}"
      new = f"MultiHeadDotProductAttention_0/{part}/{kind}"
      block[old] = (new, shape)
  same = {
    "cls": (1, 1, hidden),
    "embedding/kernel": (patch, patch, 3, hidden),
    "embedding/bias": (hidden,),
    "Transformer/posembed_input/pos_embedding": (1, 5, hidden),
    "Transformer/encoder_norm/scale": (hidden,),
    "Transformer/encoder_norm/bias": (hidden,),
    "pre_logits/kernel": (hidden, hidden),
    "pre_logits/bias": (hidden,),
    "head/kernel": (hidden, head),
    "head/bias": (head,),
  }
  old = {name: _normal(*shape) for name, shape in same.items()}
  today = dict(old)
  for i in range(layers):
    prefix = f"Transformer/encoderblock_{i}/"
    for before, (now, shape) in block.items():
      old[prefix + before] = today[prefix + now] = _normal(*shape)
  return old, today


def old_bit(head, width=4):
  """Returns a BiT's old file, and its arrays in today's names and shapes."""
  old, today = {}, {}

  def add(before, now, array, shape=None):
    old[before], today[now] = array, array.reshape(shape or array.shape)

  std = "standardized_conv2d"
  add(
    f"resnet/root_block/{std}/kernel",
    "root_block/conv_root/kernel",
    _normal(7, 7, 3, width),
  )
  for block, unit in ((1, 1), (1, 2), (4, 1)):
    place = f"block{block}/unit{unit:02d}"
    for i, (letter, side) in enumerate((("a", 1), ("b", 3), ("c", 1)), 1):
      # Some files number the second unit's convolutions.
      conv = f"{std}_{i}" if unit == 2 else std
      add(
        f"resnet/{place}/{letter}/{conv}/kernel",
        f"{place}/conv{i}/kernel",
        _normal(side, side, width, width),
      )
      for before, now in (("gamma", "scale"), ("beta", "bias")):
        add(
          f"resnet/{place}/{letter}/group_norm/{before}",
          f"{place}/gn{i}/{now}",
          _normal(width),
          (1, 1, 1, width),
        )
    if unit == 1:
      add(
        f"resnet/{place}/a/proj/{std}/kernel",
        f"{place}/conv_proj/kernel",
        _normal(1, 1, width, width),
      )
  for before, now in (("gamma", "scale"), ("beta", "bias")):
    add(
      f"resnet/group_norm/{before}",
      f"norm-pre-head/{now}",
      _normal(width),
      (1, 1, 1, width),
    )
  add(
    "resnet/head/conv2d/kernel",
    "head/kernel",
    _normal(1, 1, width, head),
    (width, head),
  )
  add("resnet/head/conv2d/bias", "head/bias", _normal(head))
  return old, today
