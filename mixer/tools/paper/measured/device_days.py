# SPDX-License-Identifier: Apache-2.0
"""What a run has cost, by its own clock."""

import collections
import math
from collections.abc import Iterator, Sequence

_SECONDS_PER_DAY = 86_400.0
UNKNOWN = "unknown device"


def device_days(
  rows: Sequence[dict], starts: Sequence[dict], batch: int
) -> dict[str, float]:
  """Counts devices x days of all updates, by the devices' kind.

  What the run's clock leaves out, is left out: evaluation, saving, compilation.

  Args:
    rows: of metrics.jsonl.
    starts: of provenance.json; a run may go on with other devices.
    batch: images in an update.

  Returns:
    Device kind -> device-days. One TPUv3 core is one device.
  """
  days = collections.Counter()
  for step, seconds in update_seconds(rows, batch):
    start = max(
      (each for each in starts if each.get("from_step", 0) < step),
      key=lambda each: each.get("from_step", 0),
      default={},
    )
    kind, devices = start.get("device_kind", UNKNOWN), start.get("devices", 1)
    days[kind] += devices * seconds / _SECONDS_PER_DAY
  return dict(days)


def update_seconds(
  rows: Sequence[dict], batch: int
) -> Iterator[tuple[int, float]]:
  """Yields steps, and what the updates up to each took since the one before.

  A row of the log tells how fast the updates since the row before were; those
  that evaluate only, or come too soon after a start to be measured, do not.
  """
  before = 0
  for row in rows:
    rate = row.get("images_per_second")
    if rate and math.isfinite(rate):
      yield row["step"], (row["step"] - before) * batch / rate
      before = row["step"]
