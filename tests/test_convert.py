# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from old_checkpoints import old_mixer, old_vit
from small_models import assert_same, golden

from mixer import weights
from mixer.errors import UserError
from mixer.weights import convert

FILE = "tests/goldens/mixer_tiny.npz"
# What timm calls the parts of its MlpMixer, up to the second block.
TIMM = {
  "stem.proj.weight": (24, 3, 8, 8),
  "stem.proj.bias": (24,),
  "blocks.0.norm1.weight": (24,),
  "blocks.0.norm1.bias": (24,),
  "blocks.0.mlp_tokens.fc1.weight": (12, 16),
  "blocks.0.mlp_tokens.fc1.bias": (12,),
  "blocks.0.mlp_tokens.fc2.weight": (16, 12),
  "blocks.0.mlp_tokens.fc2.bias": (16,),
  "blocks.0.norm2.weight": (24,),
  "blocks.0.norm2.bias": (24,),
  "blocks.0.mlp_channels.fc1.weight": (48, 24),
  "blocks.0.mlp_channels.fc1.bias": (48,),
  "blocks.0.mlp_channels.fc2.weight": (24, 48),
  "blocks.0.mlp_channels.fc2.bias": (24,),
  "norm.weight": (24,),
  "norm.bias": (24,),
  "head.weight": (7, 24),
  "head.bias": (7,),
}


def flat_file():
  return dict(np.load(FILE))


def load_as_file(arrays, tmp_path):
  np.savez(tmp_path / "file.npz", **arrays)
  return flatten_dict(weights.load(tmp_path / "file.npz"), sep="/")


def test_timms_names_and_shapes_are_timms():
  timms = convert.to_timm(flat_file())

  first = {k: v.shape for k, v in timms.items() if "blocks.1." not in k}
  assert first == TIMM
  second = {k.replace(".1.", ".0.", 1) for k in timms if "blocks.1." in k}
  assert second == {k for k in TIMM if "blocks." in k}


def test_a_patchs_pixels_and_a_layers_units_keep_their_places():
  ours = flat_file()

  timms = convert.to_timm(ours)

  kernel, weight = ours["stem/kernel"], timms["stem.proj.weight"]
  for y, x, channel, unit in ((0, 5, 2, 7), (5, 0, 1, 23), (3, 4, 0, 0)):
    assert weight[unit, channel, y, x] == kernel[y, x, channel, unit]
  for block in (0, 1):
    kernel = ours[f"MixerBlock_{block}/token_mixing/Dense_0/kernel"]
    weight = timms[f"blocks.{block}.mlp_tokens.fc1.weight"]
    assert weight[11, 3] == kernel[3, 11]


@pytest.mark.parametrize("second_norm", ["LayerNorm_1", "LayerNorm_2"])
def test_mixers_of_the_time_of_their_training_are_read(tmp_path, second_norm):
  ours = flat_file()
  old = old_mixer(ours, second_norm)
  assert "Mixer/encoderblock_1/token_mixing_phase_0/kernel1" in old

  assert_same(load_as_file(old, tmp_path), ours)


def test_parameters_are_taken_out_of_a_whole_training_state(tmp_path, capsys):
  ours = flat_file()
  state = {f"params/{name}": array for name, array in ours.items()}
  state["opt/count"] = np.int32(3)

  assert_same(load_as_file(state, tmp_path), ours)
  assert "and not opt/count" in capsys.readouterr().err


def test_two_arrays_that_would_get_one_name_are_refused(tmp_path):
  old = old_vit(flatten_dict(golden("ViT").params, sep="/"))
  name = "Transformer/encoderblock_0/LayerNorm_{}/bias"
  old[name.format(1)] = old[name.format(2)]

  with pytest.raises(UserError, match="Two arrays have the name .*LayerNorm_1"):
    load_as_file(old, tmp_path)
