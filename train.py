# SPDX-License-Identifier: Apache-2.0
"""Trains a model: python train.py --config=configs/digits.py --workdir=DIR.

Goes on where DIR left off. With --dry_run checks, reports and trains nothing.
Recipes are in configs/; mixer/config.py lists the keys of --config.KEY=VALUE.
On several hosts each is given the same command: docs/pods.md.
"""

from absl import flags
from ml_collections import config_flags

from mixer import cli
from mixer.cluster import cluster_from_flags, define_flags

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, such as configs/pretrain_i21k.py:B/16."
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder, local or gs://."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check and report, train nothing."
)
ACCEPT_CHANGES = flags.DEFINE_bool(
  "accept_changes", False, "Go on in WORKDIR although the config has changed."
)
SKIP_MISSING = flags.DEFINE_bool(
  "skip_missing", False, "Leave out evaluators whose data are missing."
)
FROM_STEP = flags.DEFINE_integer(
  "from_step", None, "Go back to this checkpoint; later ones are set aside."
)
define_flags()
flags.mark_flag_as_required("config")


def main() -> int:
  from mixer import train  # after the flags: it takes seconds

  options = dict(
    accept_changes=ACCEPT_CHANGES.value,
    skip_missing=SKIP_MISSING.value,
    from_step=FROM_STEP.value,
  )
  if DRY_RUN.value:
    return train.dry_run(CONFIG.value, WORKDIR.value, **options)
  return train.train(
    CONFIG.value,
    WORKDIR.value,
    cluster=cluster_from_flags(),
    started=cli.PROCESS_START,
    **options,
  )


if __name__ == "__main__":
  cli.run(main)
