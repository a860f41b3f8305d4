# SPDX-License-Identifier: Apache-2.0
"""Messages and refusals of `python -m mixer data prepare`."""

import importlib.util
import os
import re
import sys

import pytest
import requests
import tensorflow_datasets
from runs import ROOT, run
from tensorflow_datasets.core.download.util import DownloadError

from mixer.data.sources import open_source, tfds
from mixer.tools.data import TENSORFLOW, main, prepare


@pytest.mark.parametrize(
  "name, words",
  [
    ("imagnet", "the nearest names are"),
    ("imagenet2012", "ILSVRC2012_img_train.tar"),
    ("cifar10:9.9.9", "9.9.9"),
    ("mnist/foo", "mnist has no config 'foo': write just mnist."),
    ("digits/foo", "digits has no config 'foo': write one of 0to4, 5to9, all"),
    ("imagenet21k/fall12", "no config 'fall12': write one of fall11, winter21"),
    ("folder:cats", "folder:cats needs no preparation"),
  ],
)
def test_what_cannot_be_prepared_is_one_message(tmp_path, capsys, name, words):
  code = main(["prepare", name, f"--data_dir={tmp_path}"])

  assert code == 2
  assert words in capsys.readouterr().err


def test_another_archive_is_not_taken_for_the_missing_one(tmp_path, capsys):
  manual = tmp_path / "downloads" / "manual"
  manual.mkdir(parents=True)
  (manual / "fall11_whole.tar").touch()

  code = main(["prepare", "imagenet2012", f"--data_dir={tmp_path}"])

  message = capsys.readouterr().err
  assert code == 2
  assert f"imagenet2012 needs files that are not in {manual}" in message
  assert "ILSVRC2012_img_val.tar" in message


def test_an_incomplete_version_is_to_be_moved_away(tmp_path, capsys):
  version = tmp_path / "digits/all/1.0.0"
  version.mkdir(parents=True)

  code = main(["prepare", "digits", f"--data_dir={tmp_path}"])

  assert code == 2
  message = capsys.readouterr().err
  assert f"{version} is not complete" in message and "move it away" in message


WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: (
  None if name == "tensorflow" else find_spec(name, *rest)
)
from mixer.tools.data import main
sys.exit(main(["prepare", "digits", f"--data_dir={sys.argv[1]}"]))
"""


def test_our_builders_need_no_tensorflow_and_draw_no_bars_in_a_file(tmp_path):
  program = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)]
  done = run(program, os.environ)

  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  assert "train: 1437 examples" in done.stdout


def test_the_builders_of_tfds_need_tensorflow(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

  assert main(["prepare", "mnist", f"--data_dir={tmp_path}"]) == 2

  words = f"mnist needs TensorFlow, .*tensorflow-cpu=={TENSORFLOW},"
  assert re.search(words, capsys.readouterr().err)
  requirements = (ROOT / "requirements-dev.txt").read_text().split()
  assert f"tensorflow-cpu=={TENSORFLOW}" in requirements


@pytest.mark.parametrize(
  "error, code, words",
  [
    (requests.ConnectionError("<object at 0x7f>"), 75, "does not answer"),
    (ImportError("Failed importing scipy.\nMore."), 2, "importing scipy"),
    (DownloadError("No http://host/a.zip. HTTP code: 501."), 2, "a.zip.*501"),
  ],
)
def test_a_failed_download_is_one_sentence(
  tmp_path, capsys, monkeypatch, error, code, words
):
  base = tensorflow_datasets.core.GeneratorBasedBuilder

  class Fetched(base, skip_registration=True):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
      return tensorflow_datasets.core.DatasetInfo(builder=self)

    def _split_generators(self, dl_manager):
      raise error

    def _generate_examples(self):
      pass

  monkeypatch.setattr(tfds, "builder_class", lambda name: Fetched)

  assert main(["prepare", "fetched", f"--data_dir={tmp_path}"]) == code
  [message] = capsys.readouterr().err.splitlines()
  assert re.search(words, message) and "0x7f" not in message


def test_a_raised_version_is_prepared_and_read(tmp_path, monkeypatch):
  prepare("digits", str(tmp_path))
  builder = tfds.builder_class("digits")
  version = tensorflow_datasets.core.Version("1.0.1")
  monkeypatch.setattr(builder, "VERSION", version)

  prepare("digits", str(tmp_path))

  source = open_source("digits", "test", str(tmp_path))
  assert "digits/all/1.0.1/" in source.locate(0)
