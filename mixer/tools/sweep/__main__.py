# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes as the paper does: chooses a learning rate, reports a mean.

python -m mixer sweep --config=FILE --workdir=DIR [--config.KEY=VALUE ...]
python -m mixer sweep --config=FILE --datasets=all --workdir=DIR ...

One run for each of config.sweep.learning_rates, then the final runs with the
best of them, each in its folder in DIR. The same command goes on where DIR left
off; finished runs are not repeated. With --dry_run checks and reports.

With --parallel, any number of processes with the same command share the runs:
on several machines, or as a SLURM array, which turns it on.
"""

import os
import time

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
  "datasets", [], "Data sets of the recipe, or 'all'; one subfolder each."
)
SKIP_MISSING = flags.DEFINE_bool(
  "skip_missing", False, "Leave out data sets that are not on this machine."
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check and report, train nothing."
)
ACCEPT_CHANGES = flags.DEFINE_bool(
  "accept_changes", False, "Accept runs in DIR although the config has changed."
)
PARALLEL = flags.DEFINE_bool(
  "parallel",
  "SLURM_ARRAY_TASK_ID" in os.environ,
  "Share the runs with other processes that sweep in DIR; one that finds all "
  "of them taken waits.",
)
flags.mark_flag_as_required("config")

WAIT_SECONDS = 60.0  # until a process looks again for a run that it can train


def main() -> int:
  if (cluster := find_cluster()).hosts > 1:
    raise UserError(
      f"A sweep's runs take one host each, and this is host {cluster.host} of "
      f"{cluster.hosts}: start the sweep on one machine, or as several jobs of "
      "one machine each with --parallel."
    )
  # After the flags: they take seconds.
  from mixer.tools.sweep import multi_dataset, sweep

  options = {"accept_changes": ACCEPT_CHANGES.value}
  if DATASETS.value:
    tool = multi_dataset
    options["skip_missing"] = SKIP_MISSING.value
    arguments = [
      tool.choose(flags.FLAGS["config"], DATASETS.value, WORKDIR.value)
    ]
  else:
    tool = sweep
    if SKIP_MISSING.value:
      raise UserError(
        "--skip_missing is for several data sets: --datasets=all."
      )
    arguments = [CONFIG.value, WORKDIR.value]
  if DRY_RUN.value:
    return tool.dry_run(*arguments, **options)
  with sweep.listen_for_signals() as should_stop:
    while True:
      code = tool.sweep(
        *arguments, parallel=PARALLEL.value, should_stop=should_stop, **options
      )
      if code != cli.EX_TEMPFAIL or not PARALLEL.value or should_stop():
        return code
      # Others train the runs. A signal raises KeyboardInterrupt here.
      time.sleep(WAIT_SECONDS)


if __name__ == "__main__":
  cli.run(main)
