# SPDX-License-Identifier: Apache-2.0
import io
import math
import re

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from old_checkpoints import old_bit, old_vit
from small_models import assert_same, golden

from mixer import weights
from mixer.errors import UserError
from mixer.models import create, flops
from mixer.storage import cache_folder
from mixer.tools.weights import main
from mixer.weights import convert, download
from mixer.weights.zoo import REGISTRY, UNPUBLISHED, find

MIXERS = [name for name in REGISTRY if "/Mixer" in name]
# One of each recipe.
OTHERS = {x.recipe: x.name for x in REGISTRY.values() if x.name not in MIXERS}
# To a hundredth of a MiB.
VITS_OF_A_LISTED_SIZE = (
  "imagenet21k/ViT-B_32",
  "imagenet21k/ViT-B_16",
  "imagenet21k+imagenet2012/ViT-B_16-224",
  "imagenet21k+imagenet2012/ViT-B_32",
  "imagenet21k+imagenet2012/ViT-B_16",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MIXER_CACHE_DIR", str(tmp_path))
  return cache_folder("weights")


@pytest.fixture
def accept_any_size(monkeypatch):
  monkeypatch.setattr(download, "_difference", lambda path, mirror: "")


def shapes(published, **fields):
  model = create(published.model, **published.fields).clone(**fields)
  params = flops.abstract_params(model, published.image_size)
  return {k: v.shape for k, v in flatten_dict(params, sep="/").items()}


def put(published, folder, arrays, suffix):
  """Leaves a file as a download does."""
  path = folder / f"{published.name}{suffix}"
  path.parent.mkdir(parents=True, exist_ok=True)
  if suffix == ".npz":
    np.savez(path, **arrays)
  elif suffix == ".pth":
    torch = pytest.importorskip("torch")
    timms = convert.to_timm(arrays)
    tensors = {name: torch.tensor(each) for name, each in timms.items()}
    torch.save(tensors, path)
  else:
    weights.save(path, arrays)


@pytest.mark.parametrize(
  "name, suffix",
  [(name, mirror.suffix) for name in MIXERS for mirror in find(name).mirrors],
)
def test_mixers_are_read_by_their_names_in_every_layout(
  cache, accept_any_size, name, suffix
):
  published = find(name)
  # The file's names and head, with little in between.
  sizes = shapes(published, hidden=4, blocks=2, tokens_mlp=2, channels_mlp=4)
  rng = np.random.default_rng(0)
  arrays = {k: np.float32(rng.uniform(size=v)) for k, v in sizes.items()}
  put(published, cache, arrays, suffix)

  checkpoint = weights.read(name)

  assert_same(checkpoint.params, unflatten_dict(arrays, sep="/"))
  assert checkpoint.gelu == "tanh" and checkpoint.image_size == (224, 224)
  assert checkpoint.create_model().num_classes == published.num_classes


@pytest.mark.parametrize("name", OTHERS.values())
def test_baselines_are_read_by_their_names(cache, accept_any_size, name):
  published = find(name)
  params = golden(published.model[:3]).params
  if published.fields.get("representation"):  # a hidden layer under the head
    layer = {"kernel": np.eye(24, dtype="f"), "bias": np.ones(24, "f")}
    params = params | {"pre_logits": layer}
  today = flatten_dict(params, sep="/")
  make = old_vit if "ViT" in published.model else old_bit
  put(published, cache, make(today), ".npz")

  checkpoint = weights.read(name)

  assert_same(checkpoint.params, params)
  # The ViT in the file is for 32 px, and says so by its shapes.
  own_size = (32, 32) if "ViT" in published.model else published.image_size
  assert checkpoint.image_size == own_size


@pytest.mark.parametrize("name", [*MIXERS, *VITS_OF_A_LISTED_SIZE])
def test_the_listed_size_is_that_of_the_models_parameters(name):
  published = find(name)
  sizes = shapes(published)
  file = io.BytesIO()
  np.savez(file, **{k: np.zeros(0, np.float32) for k in sizes})

  number = 4 * sum(math.prod(shape) for shape in sizes.values())
  mib = (number + len(file.getvalue())) / 2**20

  # The authors' zip files may have shorter headers.
  listed = float(published.mirrors[0].size.removesuffix(" MiB"))
  assert abs(mib - listed) < 0.012


def test_a_folder_goes_before_a_published_name(tmp_path, monkeypatch):
  tiny = weights.load("tests/goldens/mixer_tiny.npz")
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "imagenet1k" / "Mixer-B_16"
  folder.mkdir(parents=True)
  weights.save(folder / "weights.npz", tiny)

  assert weights.load("imagenet1k/Mixer-B_16")["head"]["bias"].shape == (7,)


def test_every_entry_is_whole():
  for name, published in REGISTRY.items():
    assert published.name == name
    assert published.num_classes in (1000, 21843)
    assert published.recipe
    for mirror in published.mirrors:
      assert re.fullmatch(r"https://[\w./%=-]+", mirror.url)
      assert mirror.suffix in (".npz", ".safetensors", ".pth")
    if published.top1 is not None:
      assert published.measured and 60 < published.top1 < 90
  urls = [mirror.url for each in REGISTRY.values() for mirror in each.mirrors]
  assert len(urls) == len(set(urls))
  assert find("gsam/Mixer-S_8").fields == {"num_classes": 1000, "patch": 8}
  assert find("imagenet21k/ViT-H_14").fields == {
    "num_classes": 21_843,
    "representation": 1280,
  }
  assert find("imagenet21k+imagenet2012/ViT-B_16").short_side == 384


@pytest.mark.parametrize(
  "name, words",
  [
    ("jft/Mixer-B_16", "JFT-300M"),
    ("imagenet21k/Mixer-H_14", "every Mixer-H/14"),
    ("bit/BiT-L-R152x4", "BiT-L"),
    ("imagenet21k+imagenet2012/Mixer-B_16", "dataset=imagenet2012"),
    ("imagenet21k/Mixer-L_16-448", "448 px"),
    ("imagenet1k/Mixer-S_32", "gsam/ has"),
    ("imagenet1k/Mixer-B_32", "gsam/ has"),
    ("imagenet21k/Mixer-B_32", "only Mixer-B_16 and -L_16"),
    ("sam/Mixer-S_16", "Mixer-S with SAM"),
    ("gsam/Mixer-L_16", "Mixer-L with SAM or GSAM"),
    ("imagenet1k/ViT-B_16", "augreg/ViT-B_16-i1k"),
    ("bit/BiT-M-R200x3", "BiT-R200x3, BiT-R152x1"),
  ],
)
def test_what_was_never_published_is_said_to_be(name, words):
  with pytest.raises(UserError, match="was never published") as error:
    weights.load(name)

  assert words in str(error.value)


def test_a_misspelt_name_gets_the_nearest_ones():
  with pytest.raises(UserError, match="Nearest: imagenet21k/Mixer-B_16,"):
    weights.load("imagenet21k/Mixer-B16")
  with pytest.raises(UserError, match="There are no weights at zzz") as error:
    weights.load("zzz")
  assert "Nearest" not in str(error.value)
  # A path is a path, whatever is in it.
  with pytest.raises(UserError, match="There are no weights at"):
    weights.load("/data/jft/Mixer-H_14")


def test_the_list_has_everything_in_a_hundred_columns(capsys):
  assert main(["list"]) == 0

  out = capsys.readouterr().out
  assert max(len(line) for line in out.splitlines()) <= 100
  assert all(f"\n{name} " in out for name in REGISTRY)
  joined = " ".join(out.split())
  for _, description, instead in UNPUBLISHED:
    assert f"{description[1:]}. {instead}" in joined
  assert "goog_in21k_ft_in1k" in out and "11,221 classes" in out
  assert "unknown" in out


def test_one_name_is_told_with_provenance_preprocessing_and_mirrors(capsys):
  assert main(["list", "imagenet1k/Mixer-B_16"]) == 0

  told = capsys.readouterr().out
  for words in (
    "ImageNet-1k from scratch: 300 epochs",
    "1,000 of imagenet2012",
    "76.44 % (paper",
    "[-1, 1], short side 256, central 224",
    "228.47 MiB",
    "mixer_b16_224.goog_in21k_ft_in1k",
    "sha256 76587d61",
  ):
    assert words in told
