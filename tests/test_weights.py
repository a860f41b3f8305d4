# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import shutil
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from runs import ROOT
from safetensors.numpy import save, save_file
from small_models import SIZES, assert_same, golden

from mixer import weights
from mixer.errors import UserError
from mixer.models import create, flops
from mixer.tools.weights import main
from mixer.weights import convert, io

TINY = SIZES["Mixer"]
FILE = "tests/goldens/mixer_tiny.npz"
WHOLE = (ROOT / FILE).read_bytes()


def test_other_readers_of_npz_find_the_arrays_only(tmp_path):
  weights.save(tmp_path / "again.npz", weights.load(FILE), gelu="exact")

  with np.load(FILE) as old, np.load(tmp_path / "again.npz") as new:
    assert set(old.files) == set(new.files)
    assert all(np.array_equal(old[name], new[name]) for name in old.files)
  assert zipfile.ZipFile(tmp_path / "again.npz").testzip() is None
  assert [file.name for file in tmp_path.iterdir()] == ["again.npz"]


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
    (WHOLE[:9000], "is damaged"),
    (WHOLE[:9000] + b"?" + WHOLE[9001:], "is damaged"),
    (b"\xff" * 7 + b"\0{", "is damaged"),
    (save({"norm.bias": np.zeros(99)})[:200], "is damaged"),
    (save({"conv1.weight": np.zeros(3)}), "Only a Mixer's.*conv1.weight"),
    ({}, "no arrays in it"),
    ({"x": np.array([print], "O")}, "is damaged"),
    ({"x/y": ["a"]}, "x/y holds str"),
    ({"x/y": np.zeros(3, "F")}, "x/y holds complex64 instead of floats"),
    ({"a": [1.0], "a/b": [1.0]}, "is damaged"),
    ({"head/bias": [np.nan]}, "not finite, in head/bias"),
    ({"blocks.1.norm2.bias": None}, "MixerBlock_1/LayerNorm_1/bias: missing"),
    ({"stem.proj.weight": None}, "stem"),
    ({"head.bias": None}, "head/bias: missing"),
    ({"blocks.7.norm1.bias": np.zeros(3)}, "MixerBlock_7|Block_2/"),
    ({"norm.bias": np.zeros(3)}, r"\(3,\) in the weights, \(24,\) in "),
    ({"_x.norm.bias": np.zeros(24)}, "Two arrays have the name pre_head"),
    ({"fc.bias": np.zeros(3)}, "these do not: fc.bias"),
    ({"norm.bias": np.zeros(24, np.int8)}, "holds I8 instead.*quantised"),
    ({"norm.bias": np.zeros(24, ml_dtypes.float8_e4m3fn)}, "holds F8_E4M3"),
    ({"norm.bias": np.full(24, np.inf)}, "not finite, in pre_head_layer_norm"),
  ],
)
def test_files_that_hold_no_whole_model_are_refused(tmp_path, content, words):
  """Bytes, the arrays of an .npz, or changes of timm's file."""
  path = tmp_path / "weights.npz"
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif any("." in name for name in content):
    arrays = timms_arrays() | content
    save_file({k: v for k, v in arrays.items() if v is not None}, path)
  else:
    np.savez(path, **content)

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
  with pytest.raises(UserError, match="Cannot write .*nowhere/weights.npz"):
    weights.save(tmp_path / "nowhere" / "weights.npz", weights.load(FILE))
  assert not list(tmp_path.iterdir())


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

  assert_same(weights.load(path), weights.load(FILE))
  assert "Leaves out the prefixes of wrappers" in capsys.readouterr().err


def test_files_are_measured_before_they_are_unpacked(tmp_path, monkeypatch):
  np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(10**6, "f"))
  monkeypatch.setattr(io, "MAX_BYTES", 3 * 2**20)

  with pytest.raises(UserError, match="holds 0.0 GiB, and no model here"):
    weights.load(tmp_path / "bomb.npz")


def test_the_largest_models_are_within_the_measure():
  for name in "BiT-R152x4", "Mixer-H/14":
    model = create(name, num_classes=21_843)
    numbers = flops.count_params(flops.abstract_params(model, (448, 448)))
    assert 4 * numbers < 0.8 * io.MAX_BYTES


@pytest.mark.parametrize(
  "suffix, gelu",  # not what such files have by default
  [(".npz", "exact"), (".safetensors", "tanh")],
)
def test_a_file_of_a_run_knows_what_its_folder_knows(tmp_path, suffix, gelu):
  params = weights.load(FILE)
  config = {
    "data": {"ops": "resize((32, 32))"},
    "model": {"name": "Mixer", "num_classes": 7, **TINY},
    "loss": "sigmoid",
  }
  record = dict(gelu=gelu, config=config, class_names=tuple("abcdefg"))
  weights.save(tmp_path / f"weights{suffix}", params, **record)
  shutil.copy(tmp_path / f"weights{suffix}", tmp_path / "renamed.bin")
  main(["convert", f"{tmp_path}/renamed.bin", f"{tmp_path}/again.npz"])
  shutil.copy(tmp_path / "again.npz", tmp_path / "last.safetensors")

  for name in ("", "renamed.bin", "again.npz", "last.safetensors"):
    found = weights.read(tmp_path / name)
    assert {key: getattr(found, key) for key in record} == record
    assert found.image_size == (32, 32)
    assert_same(found.params, params)


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
  content = {k: torch.tensor(v).bfloat16() for k, v in timms_arrays().items()}
  for key in reversed(keys):
    content = {key: content, "epoch": 3}
  torch.save(content, path)

  read = weights.read(path)

  assert read.gelu == "tanh"
  half = weights.load(FILE)["head"]["bias"].astype(ml_dtypes.bfloat16)
  assert np.array_equal(read.params["head"]["bias"], half.astype(np.float32))


class RunsCode:
  def __reduce__(self):
    return print, ("this must not run",)


def test_files_of_pytorchs_that_would_run_code_are_refused(tmp_path, capsys):
  torch = pytest.importorskip("torch")
  torch.save({"state_dict": RunsCode()}, tmp_path / "bad.pth")
  torch.save([1, 2], tmp_path / "list.pth")
  whole = (tmp_path / "list.pth").read_bytes()
  (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])

  with pytest.raises(UserError, match="run any code.*print"):
    weights.load(tmp_path / "bad.pth")
  with pytest.raises(UserError, match="no dict of tensors"):
    weights.load(tmp_path / "list.pth")
  with pytest.raises(UserError, match="damaged"):
    weights.load(tmp_path / "cut.pth")
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
  "family, flags, growth, words",
  [
    ("mixer", ["--grow=2"], dict(factor=2), "tokens_mlp=48, .*, 64 tokens"),
    ("mixer", ["--tokens=4x6"], dict(tokens=(4, 6)), "beyond the paper"),
    ("vit", ["--tokens=6x6"], dict(tokens=(6, 6)), r"36 tokens \(48 px / 8\)"),
    ("bit", [], None, r"a BiT with width=0.5, .* of any size, 7 classes"),
  ],
)
def test_convert_grows_and_says_what_it_did(
  tmp_path, capsys, family, flags, growth, words
):
  source, target = f"tests/goldens/{family}_tiny.npz", tmp_path / "new.npz"

  assert main(["convert", source, str(target), *flags]) == 0

  assert re.search(words, capsys.readouterr().out)
  params = weights.load(source)
  assert_same(
    weights.load(target), weights.grow(params, **growth) if growth else params
  )


@pytest.mark.parametrize(
  "source, flags, words",
  [
    ("nothing.npz", [], "There are no weights at nothing.npz"),
    ("other.npz", [], "not the parameters of a Mixer"),
    (f"{ROOT}/tests/goldens/bit_tiny.npz", ["--grow=2"], "any size: only a"),
    (f"{ROOT}/{FILE}", ["--tokens=4"], "'4' is not written as 24x24"),
    (f"{ROOT}/{FILE}", ["--grow=448"], "invalid choice: 448"),
  ],
)
def test_the_command_line_reports_without_traceback(
  tmp_path, monkeypatch, capsys, source, flags, words
):
  monkeypatch.chdir(tmp_path)
  np.savez("other.npz", **{"conv/kernel": np.zeros(3, "f")})

  try:
    code = main(["convert", source, "x.npz", *flags])
  except SystemExit as error:
    code = error.code

  assert code == 2
  assert words in capsys.readouterr().err
  assert os.listdir() == ["other.npz"]


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
  assert_same(weights.load(again), ours.params)


@pytest.mark.parametrize("family", ["Mixer", "ViT"])
def test_a_run_on_imagenets_pixels_leaves_weights_for_ours(tmp_path, family):
  _, params, images, _ = golden(family)
  mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
  theirs = np.float32(((images + 1) / 2 - mean) / deviation)
  sizes = {"name": family, "num_classes": 7, **SIZES[family]}
  config = {
    "data": {"ops": "resize((32, 32))"},
    "model": sizes | {"pixels": "imagenet"},
  }
  weights.save(tmp_path / "weights.npz", params, config=config)

  expected, _ = create(**sizes).apply({"params": params}, theirs)
  trained, _ = create(**config["model"]).apply({"params": params}, images)
  np.testing.assert_allclose(trained, expected, atol=1e-5)
  copies = [tmp_path / "again.npz", tmp_path / "once_more.npz"]
  for before, after in zip([tmp_path, *copies], copies, strict=False):
    assert main(["convert", str(before), str(after)]) == 0
  for place in (tmp_path, *copies):
    read = weights.read(place)
    logits, _ = create(**sizes).apply({"params": read.params}, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert read.create_model().pixels is None
