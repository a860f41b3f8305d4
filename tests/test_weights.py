# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mixer import weights
from mixer.errors import UserError
from mixer.models import cost, create

TINY = dict(patch=8, hidden=24, blocks=2, tokens_mlp=12, channels_mlp=48)
FILE = "tests/goldens/mixer_tiny.npz"


def wanted(num_classes=7, size=32, **fields):
  model = create("Mixer", num_classes=num_classes, **(TINY | fields))
  return cost.abstract_params(model, (size, size))


def test_weights_come_back_as_they_were(tmp_path):
  params = weights.load(FILE)

  weights.save(tmp_path / "again.npz", params)

  with np.load(FILE) as old, np.load(tmp_path / "again.npz") as new:
    assert set(old.files) == set(new.files)
    assert all(np.array_equal(old[name], new[name]) for name in old.files)


def test_a_head_of_the_same_width_is_kept_unless_told_otherwise():
  params = weights.load(FILE)

  kept, note = weights.fit(params, wanted())
  zeros, _ = weights.fit(params, wanted(), head="zeros")

  assert np.array_equal(kept["head"]["kernel"], params["head"]["kernel"])
  assert "kept" in note
  assert not zeros["head"]["kernel"].any()


def test_a_head_of_another_width_is_replaced_by_zeros_and_said():
  fitted, note = weights.fit(weights.load(FILE), wanted(num_classes=5))

  assert fitted["head"]["kernel"].shape == (24, 5)
  assert not fitted["head"]["kernel"].any()
  assert "7 classes" in note and "(5)" in note


def test_a_new_head_has_the_models_bias():
  fitted, _ = weights.fit(
    weights.load(FILE), wanted(num_classes=5), head_bias=-6.9
  )

  assert np.all(fitted["head"]["bias"] == np.float32(-6.9))
  assert not fitted["head"]["kernel"].any()


@pytest.mark.parametrize(
  "options, words",
  [
    (
      dict(size=64),
      "token_mixing/Dense_0/kernel: (16, 12) in the weights, (64",
    ),
    (
      dict(hidden=32),
      "LayerNorm_0/bias: (24,) in the weights, (32,) in the model",
    ),
    (dict(blocks=3), "MixerBlock_2/LayerNorm_0/bias: missing in the weights"),
    (dict(blocks=1), "missing in the model"),
  ],
)
def test_what_does_not_fit_is_listed_with_both_shapes(options, words):
  with pytest.raises(UserError) as error:
    weights.fit(weights.load(FILE), wanted(**options))

  assert words in str(error.value)


def test_a_kept_head_of_another_width_is_refused():
  with pytest.raises(UserError, match=r"head/bias: \(7,\).*\(5,\)"):
    weights.fit(weights.load(FILE), wanted(num_classes=5), head="keep")


def test_files_that_are_no_weights_are_refused(tmp_path):
  (tmp_path / "text.npz").write_text("not a zip")
  whole = open(FILE, "rb").read()
  (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
  np.savez(tmp_path / "code.npz", x=np.array([print], dtype=object))

  for name in ("text.npz", "cut.npz", "code.npz"):
    with pytest.raises(UserError, match="is not an .npz file of arrays of"):
      weights.load(tmp_path / name)
  np.savez(tmp_path / "nan.npz", **{"head/bias": [np.nan]})
  with pytest.raises(UserError, match="not finite, in head/bias"):
    weights.load(tmp_path / "nan.npz")
  with pytest.raises(UserError, match="There are no weights"):
    weights.load(tmp_path / "nothing.npz")
  with pytest.raises(UserError, match="when it is done"):
    weights.load(tmp_path)
