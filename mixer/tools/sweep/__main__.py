# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes as the paper does: chooses a learning rate, reports a mean.

python -m mixer sweep --config=FILE --workdir=DIR [--config.KEY=VALUE ...]
python -m mixer sweep --config=FILE --datasets=all --workdir=DIR ...

One run for each of config.sweep.learning_rates, then the final runs with the
best of them, each in a folder of its own in DIR. Goes on where DIR left off;
what is finished there is not run again. With --dry_run checks and reports.
"""

from absl import flags
from ml_collections import config_flags

from mixer import cli
from mixer.cluster import find_cluster
from mixer.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe, such as configs/finetune.py:dataset=cifar10."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The sweep's folder.")
DATASETS = flags.DEFINE_list(
  "datasets", [], "Those of the recipe, or 'all'; each one in a folder of DIR."
)
SKIP_MISSING = flags.DEFINE_bool(
  "skip_missing", False, "Leave out data sets that are not there."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check and report, train nothing."
)
ACCEPT_CHANGES = flags.DEFINE_bool(
  "accept_changes", False, "Take runs in DIR although the config has changed."
)
flags.mark_flag_as_required("config")


def main() -> int:
  if (cluster := find_cluster()).hosts > 1:
    raise UserError(
      f"A sweep takes one host, and this is host {cluster.host} of "
      f"{cluster.hosts}: start it on one machine only."
    )
  # After the flags: they take seconds.
  from mixer.tools.sweep import multi_dataset, sweep

  how = {"accept_changes": ACCEPT_CHANGES.value}
  if DATASETS.value:
    several = multi_dataset.choose(
      flags.FLAGS["config"], DATASETS.value, WORKDIR.value
    )
    how["skip_missing"] = SKIP_MISSING.value
    if DRY_RUN.value:
      return multi_dataset.dry_run(several, **how)
    with sweep.listen_for_signals() as stop_asked:
      return multi_dataset.sweep(several, stop_asked=stop_asked, **how)
  if SKIP_MISSING.value:
    raise UserError("--skip_missing is for several data sets: --datasets=all.")
  if DRY_RUN.value:
    return sweep.dry_run(CONFIG.value, WORKDIR.value, **how)
  with sweep.listen_for_signals() as stop_asked:
    return sweep.sweep(
      CONFIG.value, WORKDIR.value, stop_asked=stop_asked, **how
    )


if __name__ == "__main__":
  cli.run(main)
