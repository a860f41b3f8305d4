# SPDX-License-Identifier: Apache-2.0
import re
import time

from runs import command, run

from mixer.training.start_up import StartUp


def test_phases_are_told_with_their_seconds_and_the_whole():
  times = iter([10.0, 20.0, 21.5, 30.0, 30.5, 40.0])
  start_up = StartUp(began=7.0, now=lambda: next(times))

  with start_up.phase("plan"):
    pass
  with start_up.phase("plan"):
    pass

  assert str(start_up) == "first update after 33.0 s: imports 3.0, plan 2.0"


def test_imports_are_counted_from_the_start_of_the_process():
  since = time.monotonic() - StartUp()._began

  assert 0 < since < 24 * 3600


def test_the_second_start_finds_the_programs_of_the_first(
  digits_dir, environment, tmp_path
):
  cache = tmp_path / "cache"
  environment = {
    key: value
    for key, value in environment.items()
    if key != "JAX_COMPILATION_CACHE_DIR"
  } | {"MIXER_CACHE_DIR": str(cache)}
  kept, said = [], []
  for name in "first", "second":
    short = {"total_steps": 6}
    done = run(command(digits_dir, tmp_path / name, **short), environment)
    assert done.returncode == 0, done.stderr
    kept.append({x.name for x in (cache / "programs").glob("*-cache")})
    said += re.findall("first update after .* compilation", done.stderr)

  assert len(kept[0]) >= 1
  assert kept[0] == kept[1]
  assert len(said) == 2
