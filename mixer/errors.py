# SPDX-License-Identifier: Apache-2.0
"""Errors that the user can correct, and helpers for messages."""

import difflib
import sys
from collections.abc import Iterable, Sequence

# Wide and narrow spaces, and the joiners of Persian and of emoji.
_HARMLESS = "\xa0\u200c\u200d\u202f\u3000"


class UserError(ValueError):
  """One or two sentences: the fault, and how to correct it.

  The CLI prints the message without a traceback and exits with code 2.
  """


class DatasetNotFoundError(UserError):
  """The data set is known, but not on disk in a readable form."""


class RecipeHelp(Exception):
  """The list of a recipe's arguments, in the place of its config."""


class RetryableError(UserError):
  """A transient failure; the CLI exits with code 75 so that launchers retry."""


def nearest(
  word: str, words: Iterable[str], *, most: int = 1, cutoff: float = 0.5
) -> list[str]:
  """Returns the most similar words, the nearest first, ignoring case."""
  by_lower = {each.lower(): each for each in words}
  near = difflib.get_close_matches(word.lower(), by_lower, most, cutoff)
  return [by_lower[each] for each in near]


def did_you_mean(word: str, words: Iterable[str], path: str = "") -> str:
  """Ends a sentence about an unknown word with the nearest known, or with all.

  Args:
    word: the unknown one.
    words: the known ones.
    path: prefix of the known ones in the message.
  """
  words = list(words)
  if near := nearest(word, words):
    return f"; did you mean {path}{near[0]}?"
  return f"; there are {', '.join(words)}."


def format_list(names: Sequence[str], shown: int = 10) -> str:
  """Joins the first names for a message, and counts the others."""
  more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
  return ", ".join(names[:shown]) + more


def printable(text: object, limit: int = 200) -> str:
  """Returns a stranger's text on one line, safe for terminals and files.

  Text beyond `limit` characters loses its middle. Control characters, bytes
  that are no text and marks that change the direction of writing are escaped.
  """
  text = str(text)
  if len(text) > limit:
    text = f"{text[: limit // 2]}...{text[-(limit // 2) :]}"
  return "".join(
    c if c.isprintable() or c in _HARMLESS else ascii(c)[1:-1] for c in text
  )


def notify(text: object) -> None:
  """Prints a message to standard error, at once even if that is a file."""
  text = "\n".join(printable(line, 4000) for line in str(text).split("\n"))
  print(text, file=sys.stderr, flush=True)
