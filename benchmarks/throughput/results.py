# SPDX-License-Identifier: Apache-2.0
"""results/throughput/DEVICE.json: what was measured on a device.

{"device", "platform", "versions", "date", "git_commit", "command", "rows",
"training_rows"}: the header is of the last run that added to it. Rows are of
inference, the paper's column; training has its own. A row has "model",
"image_size", "dtype", "batch", "images_per_second", "spread" (highest less
lowest timing, as a part of the median), "bytes" (that the program needs),
"date", "git_commit"; or images_per_second null and the reason in "why", which
then holds for larger batches, too.
"""

import dataclasses
import datetime
import json
from pathlib import Path

from benchmarks.throughput.cells import INFERENCE, TRAINING, Part
from benchmarks.throughput.machine import file_name, git_commit
from mixer.errors import UserError
from mixer.whole_file import whole_file

ROWS = {INFERENCE: "rows", TRAINING: "training_rows"}


class Results:
  """The file of a device; every change is written at once."""

  def __init__(self, folder: Path, device: dict, command: str):
    """Opens the file, or begins one.

    Args:
      folder: of results.
      device: from `machine.describe`.
      command: that this process was started with.

    Raises:
      UserError: the file is damaged.
    """
    self.file = folder / "throughput" / f"{file_name(device['device'])}.json"
    self._header = device | {"command": command}
    self.rows = {passes: [] for passes in ROWS}
    if not self.file.exists():
      return
    try:
      content = json.loads(self.file.read_text())
      self.rows = {passes: content[key] for passes, key in ROWS.items()}
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{self.file} is damaged ({type(error).__name__}: {error}): move it "
        "away to measure anew."
      ) from error

  def missing(self, part: Part) -> Part:
    """The part with the batch sizes that nothing is known of yet."""
    known = [row for row in self.rows[part.passes] if part.is_of(row)]
    too_large = min(
      (row["batch"] for row in known if row["images_per_second"] is None),
      default=float("inf"),
    )
    done = {row["batch"] for row in known}
    return dataclasses.replace(
      part,
      batches=[b for b in part.batches if b not in done and b < too_large],
    )

  def forget(self, part: Part):
    """Takes out what is known of a part's batch sizes."""
    self.rows[part.passes] = [
      row
      for row in self.rows[part.passes]
      if not (part.is_of(row) and row["batch"] in part.batches)
    ]

  def add(self, part: Part, found: dict):
    """Adds a row and writes the file."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    commit = git_commit()
    row = {
      "model": part.model,
      "image_size": part.image_size,
      "dtype": part.dtype,
      **found,
      "date": now,
      "git_commit": commit,
    }
    self.rows[part.passes].append(row)
    header = self._header | {"date": now, "git_commit": commit}
    self.file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(self.file) as aside:
      aside.write_text(_text(header, self.rows))


def _text(header: dict, rows: dict[str, list[dict]]) -> str:
  """JSON with a line for each row."""
  parts = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in header.items()]
  for passes, key in ROWS.items():
    lines = ",".join(f"\n  {json.dumps(row)}" for row in rows[passes])
    parts.append(f' "{key}": [{lines}]')
  return "{\n" + ",\n".join(parts) + "\n}\n"
