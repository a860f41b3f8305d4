# SPDX-License-Identifier: Apache-2.0
"""results/SUBJECT/DEVICE.json: rows that were measured on a device.

A header, {"device", "platform", "versions", "command", "date", "git_commit"},
of the last run that added to it; then lists of rows, each with versions, a date
and a commit of its own.
"""

import collections
import datetime
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.throughput.machine import file_name, git_commit
from mixer.errors import UserError
from mixer.storage import atomic_write, check_writable


def still_holds(row: dict, limit: float) -> bool:
  """Whether a row says what measuring would; not if it took too long.

  Args:
    row: perhaps with "limit", seconds that were not enough.
    limit: seconds that there are now.
  """
  return row.get("limit", limit) >= limit


def versions(rows: Iterable[dict]) -> str:
  """All that rows are of, such as "jax 0.10.2 and 0.11.2, flax 0.12.8"."""
  found = collections.defaultdict(dict)
  for row in rows:
    for name, version in row["versions"].items():
      found[name][version] = None
  return ", ".join(f"{k} {' and '.join(v)}" for k, v in found.items())


class DeviceFile:
  """The file of a device; every change is written at once.

  path: where it is.
  lists: key -> rows.
  """

  def __init__(
    self,
    folder: Path,
    device: dict,
    command: str,
    keys: Iterable[str],
    check: Callable[[dict], object],
  ):
    """Opens the file, or begins one.

    Args:
      folder: of the subject's results.
      device: from `machine.describe`.
      command: that this process was started with.
      keys: of the lists of rows.
      check: of a row; raises KeyError, TypeError or ValueError if it is none.

    Raises:
      UserError: the file is damaged, or could not be written.
    """
    self.path = folder / f"{file_name(device['device'])}.json"
    self._header = device | {"command": command}
    self.lists = {key: [] for key in keys}
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(self.path, "results")
    if not self.path.exists():
      return
    try:
      content = json.loads(self.path.read_text())
      self.lists = {key: content[key] for key in self.lists}
      for row in itertools.chain(*self.lists.values()):
        check(row)
        row.setdefault("versions", content["versions"])  # older ones had none
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{self.path} is damaged ({type(error).__name__}: {error}): move it "
        "away to measure anew."
      ) from error

  def add(self, key: str, rows: Iterable[dict]):
    """Adds rows to a list, with date and commit, and writes the file.

    Versions are this process's, where a row has none of its own.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stamp = {"date": now, "git_commit": git_commit()}
    own = {"versions": self._header["versions"]}
    self.lists[key] += [own | row | stamp for row in rows]
    with atomic_write(self.path) as aside:
      aside.write_text(self._text(self._header | stamp))

  def _text(self, header: dict) -> str:
    """JSON with a line for each row."""
    parts = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in header.items()]
    for key, rows in self.lists.items():
      lines = ",".join(f"\n  {json.dumps(row)}" for row in rows)
      parts.append(f' "{key}": [{lines}]')
    return "{\n" + ",\n".join(parts) + "\n}\n"
