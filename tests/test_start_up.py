# SPDX-License-Identifier: Apache-2.0
import re

from runs import command, run


def test_the_second_start_finds_the_programs_of_the_first(
  digits_dir, environment, tmp_path
):
  cache = tmp_path / "cache"
  environment = {
    key: value
    for key, value in environment.items()
    if key != "JAX_COMPILATION_CACHE_DIR"
  } | {"MIXER_CACHE_DIR": str(cache)}
  programs, messages = [], []
  for name in "first", "second":
    short = {"total_steps": 6}
    done = run(command(digits_dir, tmp_path / name, **short), environment)
    assert done.returncode == 0, done.stderr
    programs.append({x.name for x in (cache / "programs").glob("*-cache")})
    messages += re.findall(r"first update after \d+\.\d s", done.stderr)

  assert len(programs[0]) >= 1
  assert programs[0] == programs[1]
  assert len(messages) == 2


def test_training_does_not_import_tensorflow(digits_dir, environment, tmp_path):
  python, *arguments = command(digits_dir, tmp_path, total_steps=6)

  done = run([python, "-X", "importtime", *arguments], environment)

  imports = {
    line.rpartition("|")[2].strip() for line in done.stderr.split("\n")
  }
  assert done.returncode == 0, done.stderr
  assert "tensorboardX.event_file_writer" in imports
  assert "tensorflow" not in imports
