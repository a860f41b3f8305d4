# SPDX-License-Identifier: Apache-2.0
"""Checks a recipe and its flags before a machine elsewhere is paid for.

python -m launch.check (train | eval | sweep) --config=... [FLAG ...]

The launchers call it. Data, weights and devices are those of the other machine,
so they are not looked for.
"""

import contextlib
import importlib
import io
import sys
import tempfile

from absl import flags
from etils import epath

from mixer import cli
from mixer.errors import DatasetNotFoundError, UserError

MODULES = {
  "train": "train",
  "eval": "eval",
  "sweep": "mixer.tools.sweep.__main__",
}


def main() -> int:
  """Raises UserError with all problems of the config."""
  config = flags.FLAGS["config"].value
  if config is None:  # eval takes that of the run
    return cli.EX_OK
  # After the flags: they take seconds.
  from mixer.plan import make_plan

  if sys.argv[0] == "sweep":
    complaints = plan_sweep(config).complaints
  else:
    complaints = make_plan(
      config, devices=1, for_training=sys.argv[0] == "train", load_init=False
    ).complaints
  if complaints.problems:
    raise UserError("\n".join(complaints.problems))
  return cli.EX_OK


def plan_sweep(config):
  """Plans a sweep in an empty folder; of several data sets, on the first."""
  from mixer.tools.sweep import multi_dataset, plan

  with tempfile.TemporaryDirectory() as folder:
    if names := flags.FLAGS["datasets"].value:
      multi = multi_dataset.choose(flags.FLAGS["config"], names, folder)
      config = next(iter(multi.configs.values()))
    return plan.plan_sweep(config, epath.Path(folder), load_init=False)


def is_about_data(error: BaseException | None) -> bool:
  """Returns whether an error was raised because of a missing data set."""
  while error and not isinstance(error, DatasetNotFoundError):
    error = error.__context__
  return error is not None


if __name__ == "__main__":
  del sys.argv[0]
  importlib.import_module(MODULES[sys.argv[0]])  # defines the flags
  messages = io.StringIO()
  try:
    with contextlib.redirect_stderr(messages):
      cli.run(main)
  except SystemExit as end:
    if not is_about_data(end):  # recipes for a folder of images read it
      sys.stderr.write(messages.getvalue())
      raise
    print("The recipe is not checked here: it reads its data.", file=sys.stderr)
