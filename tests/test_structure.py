# SPDX-License-Identifier: Apache-2.0
"""The package: floors of its imports, heavy libraries, and its files."""

import ast
import fnmatch
import subprocess
import sys
import tomllib

import pytest
from layouts import write_tfds
from runs import ROOT, command, run
from test_own_images import write_images

PACKAGE = ROOT / "mixer"
FLOORS = {
  "ground": "errors chips storage jax_setup models training/sharding"
  " training/step training/optimizer training/mixup training/sam"
  " training/semantic_softmax"
  " training/__init__ __init__",
  "config": "schema config config_check recipe cli cluster distributed",
  "data": "data datasets",
  "weights": "weights",
  "evaluators": "evaluators",
  "plan": "plan data_plan model_plan teacher_plan",
  "run": "training evaluators/runner",
  "core": "train evaluate",
  "tools": "tools __main__",
}
LEVELS = {
  room: level
  for level, rooms in enumerate(FLOORS.values())
  for room in rooms.split()
}
FILES = sorted(PACKAGE.rglob("*.py"))


def level_of(path):
  """Returns the floor of a file, by its own entry or by its room's."""
  name = path.relative_to(PACKAGE).with_suffix("").as_posix()
  return LEVELS.get(name, LEVELS.get(name.partition("/")[0]))


def imported_files(path):
  """Returns the package's files that a file imports, anywhere in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
      names.add(node.module)
  for name in names:
    parts = name.split(".")
    if parts[0] == "mixer":
      base = PACKAGE.joinpath(*parts[1:])
      for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file in FILES:
          yield file


@pytest.mark.parametrize("path", FILES, ids=lambda x: x.stem)
def test_no_import_runs_to_a_higher_floor(path):
  assert level_of(path) is not None, f"{path} has no floor"
  higher = [
    str(file.relative_to(PACKAGE))
    for file in imported_files(path)
    if level_of(file) > level_of(path)
  ]
  assert not higher


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_only_front_doors_and_tools_start_runs(name):
  file = PACKAGE / f"{name}.py"

  importers = [path for path in FILES if file in imported_files(path)]

  assert all(level_of(path) == LEVELS["tools"] for path in importers)


def test_models_and_step_import_only_jax_flax_and_optax():
  code = (
    "import sys, mixer.models, mixer.training.step,"
    " mixer.training.optimizer; print(*sys.modules)"
  )

  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )

  loaded = {name.partition(".")[0] for name in done.stdout.split()}
  assert loaded.isdisjoint(
    "tensorflow tensorflow_datasets clu grain ml_collections cv2 einops"
    " array_record matplotlib".split()
  )


READS = """
import sys
from mixer.data import preprocess
from mixer.data.input_pipeline import train_batches
from mixer.data.sources import open_source
from mixer.datasets import class_names

assert "tensorflow_datasets" not in sys.modules
for name in "digits", "cifar10", f"folder:{sys.argv[2]}":
  source = open_source(name, "train", sys.argv[1])
  ops = preprocess.parse("resize(8)")
  batch = next(train_batches(source, ops, batch=4, seed=0))
  assert batch["image"].shape == (4, 8, 8, 3)
class_names.imagenet2012(), class_names.imagenet21k()
assert "tensorflow" not in sys.modules
"""


def test_reading_any_kind_of_source_does_not_import_tensorflow(
  digits_dir, tmp_path
):
  (tmp_path / "digits").symlink_to(f"{digits_dir}/digits")
  write_tfds(tmp_path, "cifar10", {"train": 8}, 32, "tfrecord")
  write_images(tmp_path / "images" / "train", "ab", 1)
  arguments = [str(tmp_path), str(tmp_path / "images")]

  subprocess.run([sys.executable, "-c", READS, *arguments], check=True)


def test_training_does_not_import_tensorflow(digits_dir, environment, tmp_path):
  python, *arguments = command(digits_dir, tmp_path, total_steps=6)

  done = run([python, "-X", "importtime", *arguments], environment)

  imports = {
    line.rpartition("|")[2].strip() for line in done.stderr.split("\n")
  }
  assert done.returncode == 0, done.stderr
  assert "tensorboardX.event_file_writer" in imports
  assert "tensorflow" not in imports


def test_every_file_of_the_package_is_installed():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  data = project["tool"]["setuptools"]["package-data"]
  for path in PACKAGE.rglob("*"):
    if path.is_dir() or path.suffix in (".py", ".pyc"):
      continue
    package = ".".join(path.parent.relative_to(ROOT).parts)
    assert any(
      fnmatch.fnmatch(path.name, pattern) for pattern in data.get(package, ())
    ), f"{path} is not in package-data"


def test_every_folder_of_the_package_is_found():
  for path in FILES:
    assert (path.parent / "__init__.py").exists(), f"{path} is in no package"
