# SPDX-License-Identifier: Apache-2.0
"""Complaints about a config, collected to be reported together."""

import contextlib
import dataclasses
from collections.abc import Iterator

from mixer.data.sources import DatasetNotFoundError
from mixer.errors import RetryableError, UserError
from mixer.schema import EpochLengthError


@dataclasses.dataclass
class Complaints:
  """Faults of a config: sentences that also say how to correct it.

  missing: about data sets that are not on this machine.
  problems: about everything else.
  """

  missing: list[str] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)

  @contextlib.contextmanager
  def collect(self, prefix: str = "", *, once: bool = False) -> Iterator[None]:
    """Collects errors raised inside; problems get the prefix.

    Args:
      prefix: the part of the config that they are about.
      once: drop a problem that another part has as well, from the same cause.
    """
    try:
      yield
    except RetryableError:
      raise
    except DatasetNotFoundError as error:
      if str(error) not in self.missing:
        self.missing.append(str(error))
    except EpochLengthError:
      pass  # follows from a complaint about the training split
    except ValueError as error:
      if not (once and any(x.endswith(str(error)) for x in self.problems)):
        self.problems.append(f"{prefix}{error}")

  def raise_all(self):
    """Raises UserError with all complaints, missing data sets first."""
    if lines := self.missing + self.problems:
      raise UserError("\n".join(lines))
