# SPDX-License-Identifier: Apache-2.0
"""Errors that the user can correct, and helpers for messages."""

import difflib
import sys
import unicodedata
from collections.abc import Iterable, Sequence


class UserError(ValueError):
  """One or two sentences: the fault, and how to correct it.

  The CLI prints the message without a traceback and exits with code 2.
  """


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
  return "".join(c if _is_safe(c) else ascii(c)[1:-1] for c in text)


def _is_safe(c: str) -> bool:
  # Spaces of any width are in names; joiners in Persian, in Hindi and in emoji.
  is_space = unicodedata.category(c) == "Zs"
  return c.isprintable() or is_space or c in "\u200c\u200d"


def notify(text: object) -> None:
  """Prints a message to standard error, at once even if that is a file."""
  text = "\n".join(printable(line, 4000) for line in str(text).split("\n"))
  print(text, file=sys.stderr, flush=True)
