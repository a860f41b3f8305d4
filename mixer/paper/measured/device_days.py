# SPDX-License-Identifier: Apache-2.0
"""What a run has cost, by its own clock."""

import collections
from collections.abc import Sequence

HOURS_PER_DAY = 24.0
_SECONDS_PER_DAY = 86_400.0
UNKNOWN = "unknown device"


def device_days(
  rows: Sequence[dict], starts: Sequence[dict], batch: int
) -> dict[str, float]:
  """Counts devices x days of all updates, by the devices' kind.

  A row of the log tells how fast the updates since the row before were. What
  the run's clock leaves out, is left out: evaluation, saving, compilation.

  Args:
    rows: of metrics.jsonl.
    starts: of provenance.json; a run may go on with other devices.
    batch: images in an update.

  Returns:
    Device kind -> device-days. One TPUv3 core is one device.
  """
  days = collections.Counter()
  before = 0
  for row in rows:
    step, rate = row["step"], row.get("images_per_second")
    if not rate:
      continue  # evaluated only, or too soon after a start to be measured
    start = max(
      (each for each in starts if each.get("from_step", 0) < step),
      key=lambda each: each.get("from_step", 0),
      default={},
    )
    kind, devices = start.get("device_kind", UNKNOWN), start.get("devices", 1)
    seconds = (step - before) * batch / rate
    days[kind] += devices * seconds / _SECONDS_PER_DAY
    before = step
  return dict(days)
