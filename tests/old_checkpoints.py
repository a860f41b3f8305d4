# SPDX-License-Identifier: Apache-2.0
"""Parameters under the names and shapes of former files.

Every function takes and returns a flat dict of arrays.
"""

import re


def old_mixer(params, second_norm="LayerNorm_1"):
  """Returns a Mixer under the names of its training code.

  Args:
    params: under the published names.
    second_norm: name of a block's second LayerNorm; Flax once counted all
      layers of a block together.
  """
  old = {}
  for name, array in params.items():
    name = name.replace("stem/", "embedding/")
    name = name.replace("pre_head_layer_norm/", "Mixer/encoder_norm/")
    name = name.replace("MixerBlock_", "Mixer/encoderblock_")
    name = name.replace("LayerNorm_1", second_norm)
    if match := re.fullmatch(r"(.*_mixing)/Dense_(\d)/(\w+)", name):
      place, layer, kind = match.groups()
      name, array = f"{place}_phase_0/{kind}{int(layer) + 1}", array[None]
    old[name] = array
  return old


def old_vit(params):
  """Returns a ViT under the names of the time before Linen."""
  old = {}
  for name, array in params.items():
    name = name.replace("Attention_0", "Attention_1")
    name = name.replace("LayerNorm_1", "LayerNorm_2")
    old[name.replace("MlpBlock_0", "MlpBlock_3")] = array
  return old


def old_bit(params):
  """Returns a BiT under the names and shapes of its TensorFlow code."""
  conv = "standardized_conv2d"
  kinds = {"scale": "gamma", "bias": "beta", "kernel": "kernel"}
  old = {}
  for name, array in params.items():
    *place, layer, kind = name.split("/")
    unit = "/".join(["resnet", *place])
    letter = dict(zip("123", "abc", strict=True)).get(layer[-1])
    if layer == "head":
      new = f"resnet/head/conv2d/{kind}"
      array = array[None, None] if kind == "kernel" else array
    elif layer == "conv_root":
      new = f"resnet/root_block/{conv}/kernel"
    elif layer == "conv_proj":
      new = f"{unit}/a/proj/{conv}/kernel"
    elif layer == "norm-pre-head":
      new = f"resnet/group_norm/{kinds[kind]}"
      array = array.ravel()
    elif layer.startswith("gn"):
      new = f"{unit}/{letter}/group_norm/{kinds[kind]}"
      array = array.ravel()
    else:
      # Some files number the second unit's convolutions.
      number = f"_{layer[-1]}" if "unit02" in unit else ""
      new = f"{unit}/{letter}/{conv}{number}/kernel"
    old[new] = array
  return old
