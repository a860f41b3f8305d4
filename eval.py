# SPDX-License-Identifier: Apache-2.0
"""Evaluates a run: python eval.py --workdir=DIR [--config=CONFIG].

Runs the config's evaluators on DIR's newest checkpoint, on that of --step, or
on the best one with --best; with no checkpoint there, on config.init. Writes
the results to DIR/evaluation.json as well.
"""

from absl import flags
from ml_collections import config_flags

from mixer import cli
from mixer.cluster import cluster_from_flags, define_flags
from mixer.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe; by default the config of the run."
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder, local or gs://."
)
STEP = flags.DEFINE_integer("step", None, "The checkpoint of this step.")
BEST = flags.DEFINE_bool("best", False, "The best checkpoint.")
SKIP_MISSING = flags.DEFINE_bool(
  "skip_missing", False, "Leave out evaluators whose data are not there."
)
define_flags()


def main() -> int:
  if STEP.value is not None and BEST.value:
    raise UserError("--step and --best name two checkpoints: give one.")
  # After the flags: it takes seconds.
  from mixer.evaluate import evaluate

  return evaluate(
    CONFIG.value,
    WORKDIR.value,
    step=STEP.value,
    best=BEST.value,
    skip_missing=SKIP_MISSING.value,
    cluster=cluster_from_flags(),
  )


if __name__ == "__main__":
  cli.run(main)
