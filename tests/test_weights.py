# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save, save_file

from mixer import weights
from mixer.errors import UserError
from mixer.models import create, flops
from mixer.tools import export, predict
from mixer.tools.inference import made_for
from mixer.tools.weights import main
from mixer.weights import convert, io

TINY = dict(patch=8, hidden=24, blocks=2, tokens_mlp=12, channels_mlp=48)
FILE = "tests/goldens/mixer_tiny.npz"


def assert_equal(one, other):
  one, other = (flatten_dict(tree, sep="/") for tree in (one, other))
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].dtype == other[name].dtype
    assert one[name].shape == other[name].shape
    assert one[name].tobytes() == other[name].tobytes()


def test_other_readers_of_npz_find_the_arrays_only(tmp_path):
  weights.save(tmp_path / "again.npz", weights.load(FILE), gelu="exact")

  with np.load(FILE) as old, np.load(tmp_path / "again.npz") as new:
    assert set(old.files) == set(new.files)
    assert all(np.array_equal(old[name], new[name]) for name in old.files)
  assert zipfile.ZipFile(tmp_path / "again.npz").testzip() is None
  assert [file.name for file in tmp_path.iterdir()] == ["again.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_a_file_says_with_which_gelu_it_was_trained(tmp_path, suffix, gelu):
  params = weights.load(FILE)
  path = tmp_path / f"weights{suffix}"

  weights.save(path, params, gelu=gelu)

  assert weights.read(path).gelu == gelu
  assert_equal(weights.load(path), params)


@pytest.mark.parametrize(
  "place, gelu",
  [
    ("mixer_b16_224.goog_in21k/model.safetensors", "tanh"),
    ("models--timm--mixer_l16_224.goog_in21k_ft_in1k/s/m.safetensors", "tanh"),
    ("jx_mixer_b16_224-76587d61.safetensors", "tanh"),
    ("imagenet21k/Mixer-B_16.safetensors", "tanh"),
    ("model.safetensors", "exact"),
  ],
)
def test_timms_files_have_the_exact_gelu_unless_they_are_googles(
  tmp_path, place, gelu
):
  path = tmp_path / place
  path.parent.mkdir(parents=True, exist_ok=True)
  save_file(timms_arrays(), path)

  assert weights.read(path).gelu == gelu


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("layout", ["npz", "safetensors"])
def test_halves_become_float32(tmp_path, dtype, layout):
  params = flatten_dict(weights.load(FILE), sep="/")
  halves = {name: array.astype(dtype) for name, array in params.items()}
  path = tmp_path / f"halves.{layout}"

  weights.save(path, halves)
  again = flatten_dict(weights.load(path), sep="/")

  for name, half in halves.items():
    assert again[name].dtype == np.float32
    assert np.array_equal(again[name], half.astype(np.float32))


def test_what_a_file_does_not_say_is_taken_from_its_shapes(tmp_path):
  params = weights.load(FILE)
  wide = weights.grow(params, tokens=(4, 6))
  weights.save(tmp_path / "wide.npz", wide)

  square = weights.read(FILE)

  assert (square.gelu, square.image_size) == ("tanh", (32, 32))
  assert square.class_names is None and square.name == FILE
  assert weights.read(tmp_path / "wide.npz").image_size is None


def test_a_runs_folder_says_how_it_was_trained(tmp_path):
  wide = weights.grow(weights.load(FILE), tokens=(4, 9))  # 36, a square number
  weights.save(tmp_path / "weights.npz", wide)
  (tmp_path / "classes.txt").write_text("ant\nbee\nsea horse\n")
  config = {
    "data": {"ops": "resize((40, 80)) | central_crop((32, 72))"},
    "model": {"name": "Mixer", "num_classes": 7, "gelu": "exact", **TINY},
  }
  (tmp_path / "config.json").write_text(json.dumps(config))

  run = weights.read(str(tmp_path))

  assert run.gelu == "exact" and run.image_size == (32, 72)
  assert run.class_names == ("ant", "bee", "sea horse")
  assert run.name == str(tmp_path)
  (tmp_path / "config.json").write_text('{"data": {}}')
  with pytest.raises(UserError, match="bring config.json back"):
    weights.read(tmp_path)
  (tmp_path / "config.json").write_text('{"da')
  with pytest.raises(UserError, match="config.json is damaged"):
    weights.read(tmp_path)


@pytest.mark.parametrize(
  "content, words",
  [
    (b"", "is damaged, or no .npz, .safetensors or PyTorch file"),
    (b"<!DOCTYPE html>", "is damaged"),
    (open(FILE, "rb").read()[:9000], "is damaged"),
    (b"\xff" * 7 + b"\0{", "is damaged"),
    (save({"norm.bias": np.zeros(99)})[:200], "is damaged"),
    (save({"conv1.weight": np.zeros(3)}), "Only a Mixer's.*conv1.weight"),
    ({}, "no arrays in it"),
    ({"x": np.array([print], "O")}, "is damaged"),
    ({"x/y": ["a"]}, "x/y holds str"),
    ({"x/y": np.zeros(3, "F")}, "x/y holds complex64 instead of floats"),
    ({"a": [1.0], "a/b": [1.0]}, "is damaged"),
    ({"head/bias": [np.nan]}, "not finite, in head/bias"),
  ],
)
def test_files_that_hold_no_model_are_refused(tmp_path, content, words):
  path = tmp_path / "weights.npz"
  if isinstance(content, dict):
    np.savez(path, **content)
  else:
    path.write_bytes(content)

  with pytest.raises(UserError, match=words) as raised:
    weights.load(path)
  assert str(path) in str(raised.value)


def test_places_without_weights_are_refused(tmp_path):
  with pytest.raises(UserError, match="There are no weights"):
    weights.load(tmp_path / "nothing.npz")
  for file, words in (
    ("nothing", "which a run writes at its end"),
    ("_CHECKPOINT_METADATA", "is a checkpoint: name the folder of a finished"),
    ("sweep.json", "holds a sweep: name one of the"),
  ):
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=words):
      weights.load(tmp_path)


def test_what_timm_has_no_names_for_is_not_written_in_its_layout(tmp_path):
  with pytest.raises(UserError, match="Only a Mixer's parameters.*these .*cls"):
    weights.save(tmp_path / "vit.safetensors", {"cls": np.zeros((1, 1, 24))})
  with pytest.raises(UserError, match="must end in .npz or .safetensors"):
    weights.save(tmp_path / "weights.pth", weights.load(FILE))
  with pytest.raises(UserError, match="no folder"):
    weights.save(tmp_path / "nowhere" / "weights.npz", weights.load(FILE))
  assert not list(tmp_path.iterdir())
  (tmp_path / "weights.npz").mkdir()
  with pytest.raises(UserError, match="Cannot write .*weights.npz"):
    weights.save(tmp_path / "weights.npz", weights.load(FILE))
  assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]


def test_without_pytorch_its_files_say_what_to_install(tmp_path, monkeypatch):
  (tmp_path / "model.pth").write_bytes(b"\x80\x02.")
  monkeypatch.setitem(sys.modules, "torch", None)  # as where it is missing

  with pytest.raises(UserError, match="pip install torch, or take the .safete"):
    weights.load(tmp_path / "model.pth")


def timms_arrays():
  arrays = flatten_dict(weights.load(FILE), sep="/")
  return {
    name: np.ascontiguousarray(array)
    for name, array in convert.to_timm(arrays).items()
  }


def timms_tensors(torch):
  return {name: torch.tensor(array) for name, array in timms_arrays().items()}


@pytest.mark.parametrize(
  "pattern, new",
  [
    ("^", "module."),
    ("^", "0."),
    ("^", "module._orig_mod.model.backbone."),
    ("^", "model._orig_mod.module."),
    (r"^(?!head)", "backbone."),
    (r"^(?!head)", "_orig_mod."),
    (r"^blocks\.1\.", "blocks.1._orig_mod."),
  ],
)
def test_names_that_wrappers_have_changed_are_read(
  tmp_path, pattern, new, capsys
):
  path = tmp_path / "wrapped.safetensors"
  arrays = {re.sub(pattern, new, k): v for k, v in timms_arrays().items()}
  save_file(arrays, path)

  assert_equal(weights.load(path), weights.load(FILE))
  assert "Leaves out the prefixes of wrappers" in capsys.readouterr().err


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"blocks.1.norm2.bias": None}, "MixerBlock_1/LayerNorm_1/bias: missing"),
    ({"stem.proj.weight": None}, "stem"),
    ({"head.bias": None}, "head/bias: missing"),
    ({"blocks.7.norm1.bias": np.zeros(3)}, "MixerBlock_7|Block_2/"),
    (
      {"norm.bias": np.zeros(3)},
      r"\(3,\) in the weights, \(24,\) in the model",
    ),
    ({"_x.norm.bias": np.zeros(24)}, "Two arrays have the name pre_head"),
    ({"fc.bias": np.zeros(3)}, "these do not: fc.bias"),
    ({"norm.bias": np.zeros(24, np.int8)}, "holds I8 instead.*quantised"),
    (
      {"norm.bias": np.zeros(24, ml_dtypes.float8_e4m3fn)},
      "norm.bias holds F8_E4M3",
    ),
    ({"norm.bias": np.full(24, np.inf)}, "not finite, in pre_head_layer_norm"),
  ],
)
def test_every_command_refuses_weights_that_are_no_whole_model(
  tmp_path, changes, words, capsys
):
  arrays = timms_arrays() | changes
  path, image = tmp_path / "bad.safetensors", tmp_path / "image.png"
  save_file({k: v for k, v in arrays.items() if v is not None}, path)
  Image.new("RGB", (32, 32)).save(image)

  for command in (
    lambda: predict.main([f"--init={path}", str(image)]),
    lambda: export.main([f"--init={path}", f"--out={tmp_path}/x.stablehlo"]),
    lambda: main(["convert", str(path), f"{tmp_path}/x.npz"]),
  ):
    assert command() == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert str(path) in error and re.search(words, error)
  assert {file.name for file in tmp_path.iterdir()} == {path.name, image.name}


def test_files_are_measured_before_they_are_unpacked(tmp_path, monkeypatch):
  np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(10**6, "f"))
  monkeypatch.setattr(io, "MAX_BYTES", 3 * 2**20)

  with pytest.raises(UserError, match="holds 0.0 GiB, and no model here"):
    weights.load(tmp_path / "bomb.npz")


def test_the_largest_models_are_within_the_measure():
  for name in ("BiT-R152x4", "Mixer-H/14"):
    model = create(name, num_classes=21_843)
    numbers = flops.count_params(flops.abstract_params(model, (448, 448)))
    assert 4 * numbers < 0.8 * io.MAX_BYTES


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_of_a_run_knows_what_its_folder_knows(tmp_path, suffix):
  params = weights.load(FILE)
  config = {
    "data": {"ops": "resize((32, 32))"},
    "model": {"name": "Mixer", "num_classes": 7, **TINY},
    "loss": "sigmoid",
  }
  record = dict(gelu="exact", config=config, class_names=tuple("abcdefg"))
  weights.save(tmp_path / f"weights{suffix}", params, **record)
  shutil.copy(tmp_path / f"weights{suffix}", tmp_path / "renamed.bin")
  main(["convert", f"{tmp_path}/renamed.bin", f"{tmp_path}/again.npz"])
  shutil.copy(tmp_path / "again.npz", tmp_path / "last.safetensors")

  for name in ("", "renamed.bin", "again.npz", "last.safetensors"):
    found = weights.read(tmp_path / name)
    assert {key: getattr(found, key) for key in record} == record
    assert found.image_size == (32, 32)
    assert_equal(found.params, params)


def test_names_of_classes_that_fill_a_comment_are_left_out(tmp_path):
  names = [f"class {i}" for i in range(10_000)]

  for suffix, found in ((".npz", None), (".safetensors", tuple(names))):
    path = tmp_path / f"weights{suffix}"
    weights.save(path, weights.load(FILE), class_names=names)
    assert weights.read(path).class_names == found


def test_the_comment_of_older_files_is_read(tmp_path):
  for comment, gelu in ((b"gelu=exact", "exact"), (b"made by me", "tanh")):
    shutil.copy(FILE, tmp_path / "old.npz")
    with zipfile.ZipFile(tmp_path / "old.npz", "a") as file:
      file.comment = comment
    assert weights.read(tmp_path / "old.npz").gelu == gelu


@pytest.mark.parametrize(
  "suffix, keys",
  [
    (".pth", []),
    (".pth.tar", ["state_dict"]),
    (".pt", ["model"]),
    (".bin", ["model_state_dict"]),
    (".ckpt", ["model", "state_dict"]),
  ],
)
def test_files_of_pytorchs_are_read_wrapped_or_not(tmp_path, suffix, keys):
  torch = pytest.importorskip("torch")
  path = tmp_path / f"jx_mixer_b16_224-76587d61{suffix}"
  content = state = timms_tensors(torch)
  for key in reversed(keys):
    content = {key: content, "epoch": 3}
  torch.save(content, path)

  read = weights.read(path)

  assert_equal(read.params, weights.load(FILE))
  assert read.gelu == "tanh"
  torch.save({f"module.{k}": v.bfloat16() for k, v in state.items()}, path)
  half = weights.load(path)["head"]["bias"]
  old = weights.load(FILE)["head"]["bias"]
  assert np.array_equal(half, old.astype(ml_dtypes.bfloat16).astype(np.float32))


class RunsCode:
  def __reduce__(self):
    return print, ("this must not run",)


def test_files_of_pytorchs_that_would_run_code_are_refused(tmp_path, capsys):
  torch = pytest.importorskip("torch")
  torch.save({"state_dict": RunsCode()}, tmp_path / "bad.pth")
  torch.save([1, 2], tmp_path / "list.pth")
  torch.save(timms_tensors(torch), tmp_path / "whole.pth")
  whole = (tmp_path / "whole.pth").read_bytes()
  (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])

  with pytest.raises(UserError, match="run any code.*print"):
    weights.load(tmp_path / "bad.pth")
  with pytest.raises(UserError, match="no dict of tensors"):
    weights.load(tmp_path / "list.pth")
  with pytest.raises(UserError, match="damaged"):
    weights.load(tmp_path / "cut.pth")
  assert capsys.readouterr().out == ""


def test_convert_grows_and_says_what_it_did(tmp_path, capsys):
  target = tmp_path / "grown.safetensors"

  code = main(["convert", FILE, str(target), "--grow=2"])

  out = capsys.readouterr().out
  assert code == 0
  assert "16 tokens (32 px / 8)" in out and "64 tokens (64 px / 8)" in out
  assert "timm computes the exact one" in out
  assert_equal(weights.load(target), weights.grow(weights.load(FILE), factor=2))


def test_convert_interpolates_to_rows_and_columns(tmp_path, capsys):
  target = tmp_path / "wide.npz"

  code = main(["convert", FILE, str(target), "--tokens=4x6"])

  assert code == 0 and "beyond the paper" in capsys.readouterr().out
  assert_equal(
    weights.load(target), weights.grow(weights.load(FILE), tokens=(4, 6))
  )


def test_convert_describes_the_model_of_any_family(tmp_path, capsys):
  vit, bit = tmp_path / "vit.npz", tmp_path / "bit.npz"

  assert main(["convert", "tests/goldens/vit_tiny.npz", str(vit)]) == 0
  assert main(["convert", "tests/goldens/bit_tiny.npz", str(bit)]) == 0
  assert (
    main(["convert", "tests/goldens/vit_tiny.npz", str(vit), "--tokens=6x6"])
    == 0
  )

  printed = capsys.readouterr().out
  for words in (
    "a ViT with patch=8, hidden=24, blocks=2, mlp=48, heads=4, 16 tokens "
    "(32 px / 8), 7 classes",
    "a BiT with width=0.5, units=(2, 1), images of any size, 7 classes",
    "Grown by interpolation: a ViT",
    "36 tokens (48 px / 8)",
  ):
    assert words in printed
  assert weights.read(vit).image_size == (48, 48)
  assert main(["convert", str(bit), str(vit), "--grow=2"]) == 2
  assert "any size as it is" in capsys.readouterr().err


def test_the_command_line_reports_without_traceback(tmp_path, capsys):
  assert main(["convert", "nothing.npz", str(tmp_path / "x.npz")]) == 2
  assert "error: There are no weights at nothing.npz" in capsys.readouterr().err
  np.savez(tmp_path / "other.npz", **{"conv/kernel": np.zeros(3, "f")})
  assert main(["convert", f"{tmp_path}/other.npz", f"{tmp_path}/x.npz"]) == 2
  assert "not the parameters of a Mixer" in capsys.readouterr().err
  assert not (tmp_path / "x.npz").exists()
  with pytest.raises(SystemExit):
    main(["convert", FILE, str(tmp_path / "x.npz"), "--tokens=4"])
  assert "'4' is not written as 24x24" in capsys.readouterr().err


@pytest.mark.parametrize(
  "folder, about, mean, std, gelu",
  [
    ("mixer_b16_224.miil_in21k", {}, 0, 1, "exact"),
    ("mine", {"tag": "miil_in21k"}, 0, 1, "exact"),
    ("mine", {"mean": 0.4, "std": [0.2, 0.3, 1]}, 0.4, [0.2, 0.3, 1], "exact"),
    ("mine", {"tag": "goog_in21k"}, 0.5, 0.5, "tanh"),
  ],
)
def test_weights_for_other_pixels_take_ours(
  tmp_path, folder, about, mean, std, gelu
):
  """The folder's name or the config.json of timm's hub tells mean and std."""
  theirs = tmp_path / folder / "model.safetensors"
  theirs.parent.mkdir()
  save_file(timms_arrays(), theirs)
  if about:
    config = {
      "architecture": "mixer_b16_224",
      "label_names": list("abcdefg"),
      "pretrained_cfg": about,
    }
    theirs.with_name("config.json").write_text(json.dumps(config))
  image = np.random.default_rng(0).uniform(size=(2, 32, 32, 3))

  ours = weights.read(theirs.parent)

  model = create("Mixer", num_classes=7, gelu=gelu, **TINY)
  expected, _ = model.apply(
    {"params": weights.load(FILE)}, np.float32((image - mean) / std)
  )
  logits, _ = model.apply({"params": ours.params}, np.float32(2 * image - 1))
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  assert ours.gelu == gelu
  assert ours.class_names == (tuple("abcdefg") if about else None)
  # Converted once, whatever the place.
  again = theirs.with_name("again.safetensors")
  assert main(["convert", str(theirs), str(again)]) == 0
  assert_equal(weights.load(again), ours.params)


def test_a_grown_file_in_the_place_of_published_weights_tells_its_own_size(
  tmp_path,
):
  model = create("Mixer-S/32", num_classes=1000)
  params = jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32),
    flops.abstract_params(model, (224, 224)),
  )
  path = tmp_path / "gsam" / "Mixer-S_32.npz"
  path.parent.mkdir()
  weights.save(path, weights.grow(params, factor=2))

  assert weights.read(path).image_size == (448, 448)


def test_images_are_made_for_the_weights_or_as_in_the_paper():
  vit, bit = (
    weights.read(f"tests/goldens/{family}_tiny.npz")
    for family in ("vit", "bit")
  )

  assert (vit.image_size, bit.image_size) == ((32, 32), None)
  assert made_for(vit) == (32, 32)
  assert made_for(bit) == (224, 224)
