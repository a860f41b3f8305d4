# SPDX-License-Identifier: Apache-2.0
"""pip install . takes all files that the package reads."""

import fnmatch
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_file_of_the_package_is_installed():
  data = PROJECT["tool"]["setuptools"]["package-data"]
  for path in (ROOT / "mixer").rglob("*"):
    if path.is_dir() or path.suffix in (".py", ".pyc"):
      continue
    package = ".".join(path.parent.relative_to(ROOT).parts)
    assert any(
      fnmatch.fnmatch(path.name, pattern) for pattern in data.get(package, ())
    ), f"{path} is not in package-data"


def test_every_folder_of_the_package_is_found():
  for path in (ROOT / "mixer").rglob("*.py"):
    assert (path.parent / "__init__.py").exists(), f"{path} is in no package"


def test_the_distribution_has_a_name_of_its_own():
  assert PROJECT["project"]["name"] != "mixer"  # another project on PyPI
