# SPDX-License-Identifier: Apache-2.0
"""The message names the path as the user gave it."""

import errno

import pytest

from mixer import cli
from mixer.errors import UserError
from mixer.storage import atomic_write


def write(path, raises=None):
  with atomic_write(path) as aside:
    aside.write_text("new")
    if raises:
      raise raises


@pytest.mark.parametrize(
  "place, raises, words",
  [
    ("gone/page.html", None, "gone/page.html: No such file or directory."),
    ("folder", None, "folder: Is a directory."),
    ("page.html", OSError(errno.ENOSPC, "No space left"), "page.html: No spac"),
  ],
)
def test_a_file_that_cannot_be_written_is_named(
  place, raises, words, tmp_path, capsys
):
  (tmp_path / "folder").mkdir()

  code = cli.run_cli(write, path=tmp_path / place, raises=raises)

  assert code == cli.EX_USAGE
  said = capsys.readouterr().err
  assert said.startswith(f"error: Cannot write {tmp_path}/{words}")
  assert said.count("\n") == 1
  assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_the_old_file_stays_and_other_errors_are_not_of_the_file(tmp_path):
  file = tmp_path / "page.html"
  file.write_text("old")

  with pytest.raises(FileNotFoundError) as error:
    write(file, FileNotFoundError(errno.ENOENT, "No such file", "image.png"))

  assert not isinstance(error.value, UserError)
  assert file.read_text() == "old"


def test_a_refusal_of_the_system_is_a_sentence(tmp_path, capsys):
  (tmp_path / "file").write_text("")

  code = cli.run_cli((tmp_path / "file" / "tables").mkdir)

  assert code == cli.EX_USAGE
  assert capsys.readouterr().err == (
    f"error: Cannot read or write {tmp_path}/file/tables: Not a directory. "
    "Name another place, or change its permissions.\n"
  )
