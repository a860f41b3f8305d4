# SPDX-License-Identifier: Apache-2.0
"""Answers to slips on the command line, and to questions about a recipe."""

import os
import re
import signal
import subprocess
import sys

import pytest
from runs import ROOT, run

from mixer.cli import run_cli
from mixer.errors import UserError, printable

DIGITS = "--config=configs/digits.py"
# A value of another type, and no config returned.
RECIPE = """from mixer.config import default

def get_config(arg=None):
  config = default()
  config.model.hidden = "64" if arg is None else 64
"""


def start(*flags):
  """Returns exit code, stdout and stderr of train.py with these flags."""
  done = run([sys.executable, "train.py", *flags], os.environ)
  assert "Traceback" not in done.stderr
  return done.returncode, done.stdout, done.stderr


def test_every_unknown_argument_is_answered_at_once_with_the_one_to_write():
  slips = {
    "--config.log.every=10": "--config.log.every_steps=10",
    "--config.lr=0.1": "--config.optimizer.learning_rate=0.1",
    "--config.optimiser.eps=1e-6": "--config.optimizer.eps=1e-6",
    "--config.evals.test.every_step=5": "--config.evals.test.every_steps=5",
    "--config.sweep.learning_rate=(1, 2)": "optimizer.learning_rate='(1, 2)'?",
    "--batch=32": "--config.batch=32",
    "--model=ViT-B/16": "--config.model.name=ViT-B/16",
    "--workdri=runs/x": "--workdir=runs/x",
    "--config.zzz=1": "mixer/config.py lists the keys",
  }

  code, out, err = start(DIGITS, "--config.batch=8", *slips)

  assert (code, out) == (2, "")
  lines = err.splitlines()
  assert len(lines) == len(slips)
  for line, (slip, answer) in zip(lines, slips.items(), strict=True):
    assert slip.partition("=")[0].removeprefix("--config.") in line
    assert answer in line


@pytest.mark.parametrize(
  "flags, words",
  [
    (["configs/digits.py"], "Name a recipe, such as --config="),
    (["--confg=configs/digits.py"], "did you mean --config=configs/digits.py?"),
    (["--config.batch=8"], "name that first, such as --config="),
    # Files that are no recipe, and recipes that fail.
    (["--config", "none.py"], "no recipe to read at --config=none.py"),
    (["--config=docs/digits.png"], "no recipe to read"),
    (["--config=configs/digit.py:a=b"], "configs/digits.py?"),
    (["--config=RUN/config.json"], "RUN/config.json is no recipe, but the"),
    (["--config={tmp}/broken.py"], "broken.py, line 1: ModuleNotFoundError"),
    (["--config={tmp}/type.py"], "type.py, line 5: TypeError: Could not"),
    (["--config={tmp}/other.py"], "other.py has no get_config()"),
    (
      ["--config=configs/finetune.py:dataset=cifar11"],
      "error: There is no fine-tuning recipe for 'cifar11'; did you mean",
    ),
    # Values.
    ([DIGITS, "batch=64"], "batch=64 is no flag"),
    ([DIGITS, "--config.batch=a: b"], "batch=a: b: write a whole number."),
    ([DIGITS, "--config.total_epochs=None"], "write a number; 0 unsets it."),
    ([DIGITS, "--config.model.scan=maybe"], "maybe: write true or false."),
    ([DIGITS, "--config.log=5"], "a group of keys: set one, as --config.log"),
    ([DIGITS, "--config.data=folder:my photos"], "name='folder:my photos'."),
    ([DIGITS, "--wait=nan"], "error: --wait=nan is not a duration: give"),
    # Places.
    ([DIGITS, "--workdir=train.py"], "--workdir=train.py (File exists)"),
    (
      [DIGITS, "--workdir={tmp}", "--config.data.data_dir={tmp}"],
      "python -m mixer data prepare digits",
    ),
  ],
)
def test_a_mistake_is_one_message_and_exit_2(flags, words, tmp_path):
  (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
  (tmp_path / "type.py").write_text(RECIPE)
  (tmp_path / "other.py").write_text("")

  code, out, err = start(*(flag.format(tmp=tmp_path) for flag in flags))

  assert (code, out) == (2, "")
  assert words in err
  assert err.count("\n") == 1


def test_a_recipe_that_returns_nothing_is_told_so(tmp_path):
  (tmp_path / "empty.py").write_text(RECIPE)

  code, _, err = start(f"--config={tmp_path}/empty.py:64")

  assert code == 2
  assert f"error: get_config() in {tmp_path}/empty.py returns nothing" in err


@pytest.mark.parametrize("steps, warmup", [(20, 2), (5, 0)])
def test_a_shortened_run_is_answered_with_the_flag_to_add(
  steps, warmup, digits_dir
):
  data = f"--config.data.data_dir={digits_dir}"
  flags = [DIGITS, data, "--dry_run", f"--config.total_steps={steps}"]
  added = f"--config.schedule.warmup_steps={warmup}"

  code, _, err = start(*flags)
  # The recipe has 100 epochs, and a warm-up of 5.
  done, out, _ = start(*flags, added)

  assert code == 2 and f"add {added}, " in err
  assert done == 0
  assert re.search(rf"length +{steps} steps, .*warm-up {warmup} steps", out)


@pytest.mark.parametrize(
  "text, shown",
  [
    ("Grüße\u3000花 ✓\u202f👩\u200d🚀.png",) * 2,
    ("a\x1b[31mb\r\n\tc", r"a\x1b[31mb\r\n\tc"),
    ("caf\udce9", r"caf\udce9"),
    ("gpj.\u202eexe\u2028", r"gpj.\u202eexe\u2028"),
    ("begin" + "x" * 10**8 + "end", f"begin{'x' * 95}...{'x' * 97}end"),
  ],
)
def test_names_from_elsewhere_are_cut_and_cannot_steer_a_terminal(text, shown):
  assert printable(text) == shown


def test_an_error_is_printed_line_by_line_without_control_characters(capsys):
  def fail():
    raise UserError(f"The file \x1b[2J{'x' * 10**6} is bad:\n  mend it.")

  assert run_cli(fail) == 2
  first, second = capsys.readouterr().err.splitlines()
  assert first.startswith(r"error: The file \x1b[2Jxx") and len(first) < 5000
  assert first.endswith(" is bad:") and second == "  mend it."


@pytest.mark.parametrize(
  "flags, words",
  [
    (
      ["--config=configs/finetune.py", "--help"],
      ["--[no]dry_run", "Fine-tunes pre-trained", "  dataset=imagenet2012\n"],
    ),
    (
      ["--config=configs/transfer.py:help"],
      ["  stage=pretrain           pretrain, finetune, scratch", "  res=16\n"],
    ),
    ([f"{DIGITS}:help"], ["handwritten digits", "takes no argument"]),
    (["--config=none.py", "--help"], ["no recipe to read", "--[no]dry_run"]),
  ],
)
def test_help_lists_a_recipes_arguments_with_their_values(flags, words):
  code, out, err = start(*flags)

  assert (code, err) == (0, "")
  assert all(each in out for each in words)


def start_into(stdout, words, stderr=subprocess.PIPE):
  """Runs a program whose output goes to a file or a pipe."""
  return subprocess.run(
    [sys.executable, *words],
    cwd=ROOT,
    stdout=stdout,
    stderr=stderr,
    text=True,
  )


@pytest.fixture
def closed_pipe():
  reader, writer = os.pipe()
  os.close(reader)
  yield writer
  os.close(writer)


TABLE = "-m", "mixer", "paper", "table", "2"


@pytest.mark.parametrize("words", [["train.py", DIGITS, "--help"], TABLE])
def test_an_output_that_nobody_reads_is_no_traceback(words, closed_pipe):
  done = start_into(closed_pipe, words)

  # absl does not tell for its help.
  assert done.returncode in (0, 128 + signal.SIGPIPE)
  assert "rror" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
def test_a_full_disk_is_one_message():
  with open("/dev/full", "w") as full:
    done = start_into(full, TABLE)

  assert done.returncode == 2
  message = "error: Cannot write the output: No space left on device.\n"
  assert done.stderr == message


def test_a_closed_pipe_for_messages_is_no_traceback(closed_pipe):
  words = ["train.py", DIGITS, "--config.none=1"]

  done = start_into(closed_pipe, words, stderr=subprocess.STDOUT)

  assert done.returncode == 128 + signal.SIGPIPE


def test_a_program_without_an_output_ends_as_ever():
  command = f"exec {sys.executable} -m mixer paper table 2 >&-"

  done = run(["sh", "-c", command], os.environ)

  assert done.returncode == 0, done.stderr


def test_a_terminal_without_a_character_shows_another(tmp_path):
  words = [sys.executable, *TABLE, f"--out={tmp_path / 'Müll.md'}"]

  done = run(words, os.environ | {"PYTHONIOENCODING": "ascii"})

  assert done.returncode == 0, done.stderr
  assert "M?ll.md" in done.stdout
