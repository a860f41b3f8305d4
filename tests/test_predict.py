# SPDX-License-Identifier: Apache-2.0
"""Predictions are the model's for the same pixels, with names of classes."""

import csv
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import recipes
import scipy.special
from photographs import PHOTOGRAPHS
from PIL import Image
from runs import read_rows
from sklearn.datasets import load_digits
from small_models import SIZES, golden

from mixer import train, weights
from mixer.data import preprocess
from mixer.datasets import class_names
from mixer.models import create
from mixer.tools import inference, predict

TINY = Path(__file__).parent / "goldens" / "mixer_tiny.npz"
COLOURS = (200, 10, 20), (0, 40, 180)


@pytest.fixture(scope="module")
def trained(digits_dir, tmp_path_factory):
  """The folder of a short run on the digits."""
  config = recipes.load("digits")
  config.data.data_dir = digits_dir
  config.total_epochs, config.total_steps = 0.0, 100
  config.schedule.warmup_epochs = 0.0
  config.evals.test.every_epochs = 0.0
  config.checkpoint.every_epochs = 0.0
  config.model.hidden, config.model.blocks = 32, 1
  config.mixup = config.ema_decay = 0.0
  folder = tmp_path_factory.mktemp("runs") / "digits"
  assert train.train(config, str(folder)) == 0
  return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """The 360 test images as files, and their labels."""
  folder = tmp_path_factory.mktemp("digits")
  values = load_digits()
  test = np.random.RandomState(0).permutation(1797)[1437:]
  for place, i in enumerate(test):
    pixels = np.round(values.images[i] * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{place:03d}.png")
  return folder, values.target[test]


@pytest.fixture
def photo(tmp_path):
  file = tmp_path / "chelsea.png"
  Image.fromarray(PHOTOGRAPHS["chelsea"]).save(file)
  return file


def write_head(path, classes):
  """Weights of a tiny Mixer with another head."""
  params = weights.load(TINY)
  rng = np.random.default_rng(0)
  params["head"] = {
    "kernel": rng.normal(size=(24, classes)).astype(np.float32),
    "bias": np.zeros(classes, np.float32),
  }
  weights.save(path, params)
  return str(path)


def read_table(file):
  with open(file, newline="") as opened:
    return list(csv.DictReader(opened))


def run(*arguments):
  return predict.main([str(argument) for argument in arguments])


def test_the_accuracy_is_that_of_the_runs_evaluator(
  trained, digits, tmp_path, capsys
):
  folder, labels = digits
  table = tmp_path / "predictions.csv"

  code = run(f"--init={trained}", folder, f"--out={table}", "--topk=3")

  rows = read_table(table)
  best = np.array([int(row["class"]) for row in rows if row["rank"] == "1"])
  accuracy = read_rows(trained)[-1]["eval/test/accuracy"]
  out, err = capsys.readouterr()
  assert code == 0
  assert accuracy > 0.5
  assert np.mean(best == labels) == pytest.approx(accuracy)
  assert len(rows) == 3 * 360
  assert len(out.splitlines()) == 360
  assert "classes  10, of the weights" in err
  assert "central_crop(8) (of the run's evaluator test), softmax" in err
  assert "Only the middle" not in err
  assert not list(tmp_path.glob("*.partial*"))


def test_an_image_of_which_only_the_middle_is_seen_is_told(
  trained, photo, capsys
):
  assert run(f"--init={trained}", photo) == 0
  assert "Only the middle of 1 of 1 images" in capsys.readouterr().err

  assert run(f"--init={trained}", photo, "--ops=resize((8, 8))") == 0
  assert "Only the middle" not in capsys.readouterr().err


def test_a_copy_of_a_runs_weights_predicts_as_the_run_does(trained, tmp_path):
  copy = shutil.copy(trained / "weights.npz", tmp_path / "copy.npz")

  run, other = map(inference.open_classifier, map(str, (trained, copy)))

  for field in ("model", "ops", "size", "loss", "class_names", "notes"):
    assert getattr(other, field) == getattr(run, field)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_probabilities_are_the_models_on_the_same_pixels(
  trained, digits, tmp_path, loss, monkeypatch
):
  """19 images: two batches of 16, the second filled up, on eight devices."""
  traced = []

  def watched(*arguments, top_classes=inference.top_classes, **options):
    traced.append(1)
    return top_classes(*arguments, **options)

  monkeypatch.setattr(inference, "top_classes", watched)
  shutil.copytree(trained, tmp_path / "run")
  config = json.loads((tmp_path / "run/config.json").read_text())
  (tmp_path / "run/config.json").write_text(json.dumps(config | {"loss": loss}))
  files = sorted(map(str, digits[0].glob("*.png")))[:19]

  opened = inference.open_classifier(str(tmp_path / "run"))
  found = list(inference.predict(opened, files, topk=10, batch=15))

  pixels = np.stack([Image.open(file).convert("RGB") for file in files])
  sizes = {key: config["model"][key] for key in SIZES["Mixer"]}
  model = create("Mixer", **sizes, num_classes=10)
  params = {"params": weights.load(trained)}
  images = np.float32(pixels) / 127.5 - 1
  logits = np.asarray(jax.jit(model.apply)(params, images)[0])
  function = {
    "softmax": lambda x: scipy.special.softmax(x, axis=-1),
    "sigmoid": scipy.special.expit,
  }[loss]
  order = np.argsort(-logits, axis=-1, kind="stable")
  wanted = np.take_along_axis(function(logits), order, axis=-1)
  assert [one.path for one in found] == files
  np.testing.assert_array_equal([one.pixels for one in found], pixels)
  np.testing.assert_array_equal([one.classes for one in found], order)
  np.testing.assert_allclose(
    [one.probabilities for one in found], wanted, rtol=1e-5, atol=1e-7
  )
  assert len(traced) == 1, "one program is for all batches"


def test_weights_that_take_any_size_get_that_of_the_paper(photo, capsys):
  assert run("--init=tests/goldens/bit_tiny.npz", photo) == 0

  assert "resize_small(256) | central_crop(224)" in capsys.readouterr().err


def test_weights_alone_get_the_papers_preprocessing(photo, capsys):
  code = run(f"--init={TINY}", photo, "--topk=7")

  out, err = capsys.readouterr()
  transform = preprocess.parse("resize_small(37) | central_crop(32)")
  pixels = transform(PHOTOGRAPHS["chelsea"], np.random.default_rng(0))
  model, params, *_ = golden("Mixer")
  images = np.float32(pixels[None]) / 127.5 - 1
  [logits] = np.asarray(model.apply({"params": params}, images)[0])
  wanted = scipy.special.softmax(logits)
  shown = [line.split() for line in out.splitlines()[1:]]
  assert code == 0
  assert "resize_small(37) | central_crop(32) (as in the paper)" in err
  assert [int(name) for _, name in shown] == list(np.argsort(-wanted))
  probabilities = [float(probability) for probability, _ in shown]
  np.testing.assert_allclose(probabilities, -np.sort(-wanted), atol=5.1e-5)


def test_a_bad_image_is_reported_and_the_rest_is_predicted(
  trained, digits, tmp_path, capsys
):
  files = sorted(digits[0].glob("*.png"))[:30]
  (tmp_path / "page.jpg").write_bytes(b"<html>404</html>")
  (tmp_path / "gone.png").symlink_to("nowhere.png")
  Image.new("RGB", (5, 9)).save(tmp_path / "small.png")
  bad = [tmp_path / name for name in ("page.jpg", "gone.png", "small.png")]
  table = tmp_path / "predictions.csv"

  code = run(
    f"--init={trained}", *bad[:2], *files, bad[2], f"--out={table}", "--topk=1"
  )

  err = capsys.readouterr().err
  assert code == 0
  assert f"not read: {bad[0]}: Cannot decode 16 bytes that begin with" in err
  assert f"not read: {bad[1]}: No such file or directory" in err
  assert f"not read: {bad[2]}: central_crop cannot cut 8 x 8" in err
  assert err.endswith("3 of 33 files could not be read.\n")
  assert [row["image"] for row in read_table(table)] == list(map(str, files))


def test_decoding_stays_only_a_little_ahead(trained, digits):
  """Else thousands of images would fill the memory."""

  class Watched(list):
    furthest = 0

    def __getitem__(self, i):
      if isinstance(i, int):
        self.furthest = max(self.furthest, i)
      return super().__getitem__(i)

  paths = Watched(sorted(map(str, digits[0].glob("*.png"))) * 20)
  opened = inference.open_classifier(str(trained))

  predictions = inference.predict(opened, paths, batch=8)
  next(predictions)

  assert len(paths) == 7200
  assert paths.furthest < 200
  predictions.close()


def test_files_folders_and_patterns_are_found_once_and_in_order(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  for name in (
    "b/2.JPG",
    "b/1.png",
    "b/deep/er/3.webp",
    "b/notes.txt",
    "b/.hidden/4.png",
    "b/._5.png",
    "b/@eaDir/6.png",
    "a.data",
    "c[1].png",
    "d1.png",
    "d2.png",
  ):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()

  found, others = predict.find_images(
    ["./a.data", "./c[1].png", "./b", "./d?.png", "./*"]
  )

  assert "./b/notes.txt" in others
  assert " ".join(map(os.path.relpath, found)) == (
    "a.data c[1].png b/1.png b/2.JPG b/deep/er/3.webp d1.png d2.png"
  )


def test_the_limit_of_pixels_is_that_of_the_run_and_nothing_is_written(
  trained, digits, tmp_path, capsys
):
  shutil.copytree(trained, tmp_path / "run")
  config = json.loads((trained / "config.json").read_text())
  config["data"]["max_pixels"] = 63
  (tmp_path / "run/config.json").write_text(json.dumps(config))
  words = f"--init={tmp_path / 'run'}", f"--out={tmp_path / 'table.csv'}"

  assert run(*words, digits[0] / "000.png") == 2

  err = capsys.readouterr().err
  assert "8 x 8 pixels has more than 63" in err
  assert "error: No image could be read." in err
  assert os.listdir(tmp_path) == ["run"]


def test_files_that_are_left_out_count_as_not_read(
  trained, digits, tmp_path, capsys
):
  for name in "1.CR2", "2.svg", "3", "Thumbs.db", "album.jpg/4.svg":
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / "link.jpg").symlink_to(tmp_path)
  (tmp_path / "bad.png").write_bytes(b"<html>404</html>")
  for file in sorted(digits[0].glob("*.png"))[:5]:
    (tmp_path / file.name).symlink_to(file)

  assert run(f"--init={trained}", tmp_path) == 0

  err = capsys.readouterr().err
  assert "2 .svg, 1 .cr2, 1 without a suffix." in err
  assert err.endswith("5 of 10 files could not be read.\n")


def test_the_published_heads_are_known_by_their_width(photo, tmp_path, capsys):
  for number, names in (
    (1000, class_names.imagenet2012()),
    (21_843, class_names.imagenet21k()),
  ):
    init = write_head(tmp_path / "weights.npz", number)
    table = tmp_path / "table.csv"

    assert run(f"--init={init}", photo, f"--out={table}") == 0

    out, err = capsys.readouterr()
    assert f"classes  {number:,}, as in the published heads" in err
    for row, line in zip(read_table(table), out.splitlines()[1:], strict=True):
      assert row["label"] == names[int(row["class"])]
      assert line.endswith(f"  {row['label']} ({row['class']})")


def test_a_file_of_names_goes_before_all(photo, tmp_path, capsys):
  lines = ["null", "eins", "zwei", "n02123045", "vier", "fünf", "sechs"]
  names = tmp_path / "names.txt"
  names.write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")

  assert run(f"--init={TINY}", photo, f"--classes={names}", "--topk=9") == 0

  out = capsys.readouterr().out
  for i, name in enumerate(lines):
    shown = "tabby, tabby cat" if name == "n02123045" else name
    assert f"  {shown} ({i})\n" in out


def prediction(path, guess, probability, colour=COLOURS[0]):
  pixels = np.full((8, 8, 3), colour, np.uint8)
  rest = (guess + 1) % 3
  return inference.Prediction(
    path, "", pixels, [guess, rest], [probability, 1 - probability]
  )


def test_the_grid_shows_pixels_guesses_labels_and_file_names(tmp_path):
  images = [
    (prediction("a/red.png", 0, 0.75), None),
    (prediction("a/blue.png", 1, 0.75, COLOURS[1]), 1),
    (prediction("a/$x$.png", 1, 0.5, COLOURS[1]), 2),
  ]
  names = ["tench, Tinca tinca", r"an $\frac$", "unseen, not seen"]

  predict.draw(images, names, tmp_path / "picture.png")

  drawn = np.array(Image.open(tmp_path / "picture.png").convert("RGB"))
  thirds = np.array_split(drawn, 3, axis=1)
  for part, (image, _) in zip(thirds, images, strict=True):
    assert np.mean(np.all(part == image.pixels[0, 0], axis=-1)) > 0.4
  predict.draw(images, names, tmp_path / "picture.svg")
  # Letters are drawn, and each text stands in a comment next to its outlines.
  written = (tmp_path / "picture.svg").read_text()
  for text in (
    "0.75 tench",
    "✓ 0.75 an $\\frac$",
    "✗ 0.50 an $\\frac$",
    "label: unseen",
    "red.png",
    "$x$.png",
  ):
    assert text in written


@pytest.mark.parametrize(
  "images, size, expected",
  [
    # Guesses, probabilities and labels: the worst mistakes come first.
    (
      [(0, 0.9, 0), (1, 0.6, 0), (2, 0.5, 2), (1, 0.8, 2), (0, 0.7, None)],
      3,
      "312",
    ),
    # Images without a label are of all classes.
    ([(guess, 0.5, None) for guess in (2, 2, 2, 2, 2, 0, 1, 2)], 4, "5601"),
  ],
)
def test_the_grid_has_the_most_telling_images_first(images, size, expected):
  chosen = []
  for i, (guess, probability, label) in enumerate(images):
    image = prediction(str(i), guess, probability), label
    chosen = predict.choose([*chosen, image], size)

  assert "".join(image.path for image, _ in chosen) == expected


def test_the_accuracy_of_labelled_folders_is_printed(
  trained, digits, tmp_path, capsys
):
  folder, labels = digits
  for i, label in enumerate(labels[:20]):
    (tmp_path / str(label)).mkdir(exist_ok=True)
    shutil.copy(folder / f"{i:03d}.png", tmp_path / str(label))
  table, picture = tmp_path / "table.csv", tmp_path / "picture.png"

  flags = f"--out={table}", f"--grid={picture}", "--topk=1"
  assert run(f"--init={trained}", tmp_path, *flags) == 0

  right = [
    row["class"] == row["image"].split("/")[-2] for row in read_table(table)
  ]
  out = capsys.readouterr().out
  assert f"accuracy {np.mean(right):.2%} of 20 images" in out
  assert f"Drew 20 of 20 images in {picture}." in out
  assert Image.open(picture).width == 8 * 300


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--batch=0"], "--batch=0 must be 1 or more."),
    (["--ops=resize(40)"], "make 25 tokens of 8 px, but these parameters are"),
    (["--ops=resize_small(32)"], "end it with a crop or a resize to one size"),
    (["--classes=none.txt"], "Cannot read --classes=none.txt: No such file"),
    ([f"--classes={__file__}"], "are not those of a head with 7 outputs: give"),
    (["--out={folder}/chelsea.png"], "chelsea.png must end in .csv."),
    (["--grid={folder}/chelsea.png"], "chelsea.png is an input, {folder}/ch"),
    (["nothing/*.png"], "There is no nothing/*.png"),
    (["{folder}/chelsae.png"], "In {folder} there is chelsea.png."),
    (["{folder}/empty"], "There is no image in {folder}/empty."),
    (["--init=none.npz"], "There are no weights at none.npz"),
  ],
)
def test_a_mistake_is_told_in_a_sentence(photo, capsys, flags, message):
  folder = photo.parent
  (folder / "empty").mkdir()

  code = run(
    f"--init={TINY}", photo, *(flag.format(folder=folder) for flag in flags)
  )

  out, err = capsys.readouterr()
  assert code == 2
  assert out == ""
  assert err.count("error: ") == 1
  assert message.format(folder=folder) in err


def test_weights_without_a_head_are_told(photo, tmp_path, capsys):
  params = weights.load(TINY)
  del params["head"]
  weights.save(tmp_path / "body.npz", params)

  assert run(f"--init={tmp_path / 'body.npz'}", photo) == 2

  assert "body.npz has no head" in capsys.readouterr().err
