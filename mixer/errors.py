# SPDX-License-Identifier: Apache-2.0
"""What the user can put right, as opposed to what is wrong with the code."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
  """One or two sentences: what is wrong, and what to do about it.

  The front doors print the message without a traceback and exit with 2.
  """


class RetryableError(UserError):
  """What may pass by itself: the front doors exit with 75, start me again."""


def nearest(
  word: str, words: Iterable[str], *, most: int = 1, cutoff: float = 0.5
) -> list[str]:
  """The words that one may have meant, the nearest first, in any case."""
  by_lower = {each.lower(): each for each in words}
  near = difflib.get_close_matches(word.lower(), by_lower, most, cutoff)
  return [by_lower[each] for each in near]


def format_list(names: Sequence[str], shown: int = 10) -> str:
  """Lists the first names for a message, and counts the others."""
  more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
  return ", ".join(names[:shown]) + more
