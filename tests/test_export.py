# SPDX-License-Identifier: Apache-2.0
"""Exported programs run without this project and give the model's logits."""

import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export as jax_export
from small_models import golden

from mixer import weights
from mixer.models.kernels import target_device
from mixer.tools import export

TINY = Path(__file__).parent / "goldens" / "mixer_tiny.npz"
BIT = TINY.with_name("bit_tiny.npz")
PIXELS = np.random.default_rng(7).integers(256, size=(5, 32, 32, 3), dtype="u1")
IMAGES = PIXELS.astype(np.float32) / 127.5 - 1

# Needs the file, an array, and jax.
CALL = """
import sys
import numpy as np
from jax import export
program = export.deserialize(open(sys.argv[1], "rb").read())
np.save(sys.argv[3], program.call(np.load(sys.argv[2])))
assert not {"mixer", "flax"} & sys.modules.keys()
"""


def run(file, *flags, init=TINY):
  return export.main([f"--init={init}", f"--out={file}", *flags])


def logits_of(params, **fields):
  model = golden("Mixer").model.clone(**fields)
  # Compiled: run in parts, bfloat16 would be rounded in more places.
  return np.asarray(jax.jit(model.apply)({"params": params}, IMAGES)[0])


def read(file):
  return jax_export.deserialize(bytearray(file.read_bytes()))


def test_a_program_gives_the_models_logits_with_only_jax(tmp_path, capsys):
  file = tmp_path / "tiny.stablehlo"
  np.save(tmp_path / "pixels.npy", PIXELS)

  assert run(file) == 0

  names = file, "pixels.npy", "logits.npy"
  command = [sys.executable, "-I", "-c", CALL, *names]
  subprocess.run(command, check=True, cwd=tmp_path)
  out = capsys.readouterr().out
  np.testing.assert_allclose(
    np.load(tmp_path / "logits.npy"), logits_of(weights.load(TINY)), atol=1e-5
  )
  assert read(file).platforms == ("cpu", "cuda", "tpu")
  assert f"export.deserialize(open({str(file)!r}, 'rb').read())" in out
  assert "images is uint8 [n, 32, 32, 3], RGB, 0 to 255, for any n" in out
  assert "as in the paper: resize_small(37) | central_crop(32)." in out
  assert not list(tmp_path.glob("*.partial*"))


def test_a_batch_of_any_size_gives_features_without_a_head(tmp_path, capsys):
  params = weights.load(TINY)
  del params["head"]
  weights.save(tmp_path / "body.npz", params)
  file = tmp_path / "body.stablehlo"

  assert run(file, "--input=float32", init=tmp_path / "body.npz") == 0

  out = capsys.readouterr().out
  expected = logits_of(params, num_classes=None)
  assert "features = program.call(images)" in out
  assert "images is float32 [n, 32, 32, 3], RGB, -1 to 1, for any n" in out
  for number in (1, 5):
    logits = read(file).call(IMAGES[:number])
    np.testing.assert_allclose(logits, expected[:number], atol=1e-5)


def test_bfloat16_is_the_models_and_stores_half_the_bytes(tmp_path):
  file = tmp_path / "tiny.stablehlo"

  assert run(file, "--dtype=bfloat16") == 0

  params = weights.load(TINY)
  program = read(file)
  expected = logits_of(params, dtype="bfloat16")
  factors = [
    "x".join(map(str, array.shape))
    for name, array in flatten_dict(params, sep="/").items()
    if name.endswith("kernel") and name != "head/kernel"
  ]
  halves = re.findall(
    r"constant dense.*: tensor<([\dx]+)xbf16>", program.mlir_module()
  )
  np.testing.assert_allclose(program.call(PIXELS), expected, atol=1e-5)
  assert np.abs(expected - logits_of(params)).max() > 1e-4
  assert program.out_avals[0].dtype == np.float32
  assert sorted(halves) == sorted(factors)


def test_a_program_is_of_layers_and_compared_with_layers_on_a_gpu(tmp_path):
  a_gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")

  # Kernels of a GPU would not run here.
  with target_device(a_gpu):
    assert run(tmp_path / "tiny.stablehlo") == 0


def test_the_exact_gelu_stays_exact(tmp_path):
  file = tmp_path / "tiny.stablehlo"
  params = weights.load(TINY)
  for mixing in ("token_mixing", "channel_mixing"):
    # From where the two forms differ most, and with more weight.
    layers = params["MixerBlock_1"][mixing]
    layers["Dense_0"]["bias"] += 2
    layers["Dense_1"]["kernel"] *= 4
  weights.save(tmp_path / "exact.safetensors", params, gelu="exact")

  assert run(file, init=tmp_path / "exact.safetensors") == 0

  logits = read(file).call(PIXELS)
  np.testing.assert_allclose(logits, logits_of(params, gelu="exact"), atol=2e-6)
  assert np.abs(logits - logits_of(params, gelu="tanh")).max() > 1e-4


def test_a_program_for_another_machine_is_tried_on_this_one(tmp_path, capsys):
  file = tmp_path / "tiny.stablehlo"

  assert run(file, "--platforms=tpu,rocm") == 0

  assert read(file).platforms == ("tpu", "rocm")
  assert "tried on cpu." in capsys.readouterr().out


def test_a_program_with_other_logits_is_not_written(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(export, "normalise", lambda x: x.astype("float32") / 255)

  assert run(tmp_path / "tiny.stablehlo") == 2

  assert "too much, so nothing is written." in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("suffix", "sentence"),
  [(".npz", "the tanh form of GELU"), (".safetensors", "approximate='tanh'")],
)
def test_weights_come_back_from_either_layout(
  tmp_path, capsys, suffix, sentence
):
  file = tmp_path / f"tiny{suffix}"

  assert run(file) == 0

  assert sentence in capsys.readouterr().out
  np.testing.assert_array_equal(
    logits_of(weights.load(file)), logits_of(weights.load(TINY))
  )


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--out=tiny.onnx"], "--out=tiny.onnx does not say what to write: end it"),
    (["--out=tiny.npz", "--input=uint8"], "--input is for programs"),
    (["--platforms=cpu,gpu"], "no 'gpu': there are cpu, cuda"),
    (["--image_size=0"], "--image_size=0 must be 1 or more."),
    (["--image_size=64"], "but these parameters are for 16"),
    ([f"--init={BIT}", "--out=bit.safetensors"], "written as .npz."),
  ],
)
def test_an_error_of_the_user_is_one_sentence(
  tmp_path, capsys, monkeypatch, flags, message
):
  monkeypatch.chdir(tmp_path)

  assert run("tiny.stablehlo", *flags) == 2

  err = capsys.readouterr().err
  assert err.startswith("error: ") and len(err.splitlines()) == 1
  assert message in err
  assert not list(tmp_path.iterdir())
