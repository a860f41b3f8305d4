# SPDX-License-Identifier: Apache-2.0
"""python -m mixer lists the tools and runs them."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from matplotlib.figure import Figure
from PIL import Image
from runs import ROOT, run

from mixer.__main__ import TOOLS, main
from mixer.errors import UserError
from mixer.storage import check_output
from mixer.tools import data, export, predict, weights
from mixer.tools.paper import __main__ as paper


def mixer(*arguments):
  return run([sys.executable, "-m", "mixer", *arguments], os.environ)


def test_without_a_name_every_tool_is_listed_with_an_example():
  done = mixer()

  assert done.returncode == 0
  _, *lines, rest = done.stdout.splitlines()
  assert "train.py" in rest
  assert [line.split()[0] for line in lines] == list(TOOLS)
  for name, line in zip(TOOLS, lines, strict=True):
    assert f" {name} " in line[3 + len(name) :], "no example"


def test_every_command_among_the_tools_is_listed():
  tools = ROOT / "mixer" / "tools"
  commands = {
    path.stem if path.parent == tools else path.parent.name
    for path in tools.rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
  }

  assert commands == {*TOOLS}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_tool_names_its_command_and_is_no_error(
  name, monkeypatch, capsys
):
  if name in ("data", "sweep", "preflight"):  # they set up their process
    done = mixer(name, "--help")
    code, out = done.returncode, done.stdout
  else:
    monkeypatch.setattr(sys, "argv", ["mixer", name, "--help"])
    with pytest.raises(SystemExit) as end:
      main()
    code, out = end.value.code, capsys.readouterr().out

  assert code == 0
  assert f"python -m mixer {name}" in out


def test_help_of_train_says_where_recipes_and_keys_are():
  done = run([sys.executable, "train.py", "--help"], os.environ)

  assert done.returncode == 0
  assert "configs/" in done.stdout and "mixer/config.py" in done.stdout


@pytest.mark.parametrize(
  "tool, arguments, flag",
  [
    (predict, ["photo.png", "--init=RUN", "--topq=3"], "--topk"),
    (predict, ["photo.png", "--init=RUN", "--top=3"], "--topk"),
    (paper, ["table", "3", "--ot=FILE"], "--out"),
    (paper, ["figure", "3", "--ot=FILE"], "--out"),
    (data, ["prepare", "digits", "--datadir=DIR"], "--data_dir"),
  ],
)
def test_a_misspelt_flag_of_a_tool_gets_the_nearest_one(
  tool, arguments, flag, capsys
):
  with pytest.raises(SystemExit, match="2"):
    tool.main(arguments)

  assert f"did you mean {flag}?" in capsys.readouterr().err


def test_an_unknown_tool_gets_the_nearest_one():
  done = mixer("swep")

  assert done.returncode == 2
  assert "did you mean sweep?" in done.stderr


TINY = str(ROOT / "tests/goldens/mixer_tiny.npz")


def write_own(file):
  """Writes a user's own file of the same format as an output."""
  suffix = file.suffix.lower()
  if suffix in (".png", ".jpg"):
    Figure().savefig(file)
  elif suffix == ".npz":
    np.savez(file, **{"head/kernel": np.zeros(3)})
  elif suffix == ".safetensors":
    safetensors.numpy.save_file({"a": np.zeros(3)}, file)
  else:
    file.write_text("<html># Table 1: my image,rank,class notes</html>")


@pytest.mark.parametrize(
  ("tool", "words", "name"),
  [
    (predict.main, [f"--init={TINY}", "photo.png", "--out={}"], "a.csv"),
    (predict.main, [f"--init={TINY}", "photo.png", "--grid={}"], "a.JPG"),
    (predict.main, [f"--init={TINY}", "photo.png", "--grid={}"], "a.pdf"),
    (export.main, [f"--init={TINY}", "--out={}"], "a.stablehlo"),
    (weights.main, ["convert", TINY, "{}"], "a.npz"),
    (weights.main, ["convert", TINY, "{}"], "a.safetensors"),
    (paper.main, ["table", "2", "--out={}"], "a.txt"),
    (paper.main, ["table", "2", "--out={}"], "a.md"),
    (paper.main, ["table", "2", "--out={}"], "a.html"),
    (paper.main, ["figure", "3", "--out={}"], "a.svg"),
    (paper.main, ["figure", "3", "--out=a.svg"], "a.png"),
    (data.main, ["hash", "folder:d", "--split=train", "--out={}"], "a.tsv"),
  ],
)
def test_a_tool_replaces_its_own_output_and_nothing_else(
  tmp_path, monkeypatch, capsys, tool, words, name
):
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (40, 40)).save("photo.png")
  os.makedirs("d/train/x")
  shutil.copy("photo.png", "d/train/x/1.png")
  words = [word.format(name) for word in words]
  file = Path(name)
  write_own(file)
  content = file.read_bytes()

  assert tool(words) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert f"{name} is there already" in line
  assert file.read_bytes() == content

  file.unlink()
  assert tool(words) == 0
  first = file.stat().st_ino
  assert tool(words) == 0
  assert file.stat().st_ino != first


@pytest.mark.parametrize(
  ("tool", "words"),
  [
    (weights.main, ["convert", "a.npz", "./a.npz", "--grow=2"]),
    (weights.main, ["convert", "a.npz", "link.npz"]),
    (weights.main, ["convert", "run", "run/weights.npz"]),
    (export.main, ["--init=link.npz", "--out=a.npz"]),
    (export.main, ["--init=run", "--out=run/weights.npz"]),
    (predict.main, ["--init=a.npz", "grid.png", "--grid=./grid.png"]),
  ],
)
def test_an_output_is_not_an_input(tmp_path, monkeypatch, capsys, tool, words):
  monkeypatch.chdir(tmp_path)
  shutil.copy(TINY, "a.npz")
  os.symlink("a.npz", "link.npz")
  os.mkdir("run")
  shutil.copy(TINY, "run/weights.npz")
  Figure().savefig("grid.png")
  contents = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}

  assert tool(words) == 2
  assert "is an input" in capsys.readouterr().err
  assert all(file.read_bytes() == x for file, x in contents.items())


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("", "--out= is a folder or a device: name a file"),
    ("folder", "--out=folder is a folder or a device: name"),
    ("none/a.csv", "There is no folder for --out=none/a.csv"),
    ("gs://bucket/a.csv", "gs://bucket/a.csv must be a local file"),
    ("a.txt", "a.txt must end in .csv or .md"),
    ("folder/../in.csv", "is an input, in.csv"),
  ],
)
def test_an_output_that_cannot_be_written_is_refused(
  tmp_path, monkeypatch, name, words
):
  monkeypatch.chdir(tmp_path)
  os.mkdir("folder")
  Path("in.csv").touch()

  with pytest.raises(UserError, match=words):
    check_output(
      name, "--out", b"", suffixes=(".csv", ".md"), inputs=["in.csv"]
    )
