# SPDX-License-Identifier: Apache-2.0
"""How a program starts and ends: flags, messages and exit codes.

0 done; 2 the user must change something; 75 start me again; anything else is a
crash, with a traceback.
"""

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging

from mixer.errors import RetryableError, UserError

EX_OK, EX_USAGE, EX_TEMPFAIL = 0, 2, 75
PROCESS_START = time.monotonic()  # before the imports that take seconds


def run(main: Callable[[], int]):
  """Parses the flags, runs `main`, leaves with its exit code."""
  app.run(lambda _: _without_traceback(main), flags_parser=_parse)


def run_cli(work: Callable[..., str | None], **given) -> int:
  """Calls a small program's work and prints what it returns.

  Returns:
    The process's exit code; 130 after Ctrl-C or SIGTERM.
  """
  try:
    with sigterm_to_keyboard_interrupt():
      if (text := work(**given)) is not None:
        print(text, flush=True)
  except BrokenPipeError:  # the reader, such as head, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (UserError, OSError) as error:
    print(f"error: {_refusal(error)}", file=sys.stderr)
    return exit_code(error)
  except KeyboardInterrupt:
    print("Stopped. Give the same command again.", file=sys.stderr)
    return 130
  return EX_OK


@contextlib.contextmanager
def sigterm_to_keyboard_interrupt() -> Iterator[None]:
  """Makes SIGTERM what Ctrl-C is, where there is nothing to save."""
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _refusal(error: Exception) -> str:
  """What the user is told, of the system's refusals as well."""
  if isinstance(error, UserError) or not getattr(error, "filename", None):
    return str(error)
  return (
    f"Cannot read or write {error.filename}: {error.strerror}. Name another "
    "place, or change its permissions."
  )


def exit_code(error: Exception) -> int:
  """Of what the user can change, or what passes by itself."""
  if isinstance(error, RetryableError):
    return EX_TEMPFAIL
  return EX_USAGE


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; what config_flags raises on the way becomes a message."""
  try:
    rest = flags.FLAGS(argv)
    if flags.FLAGS["verbosity"].using_default_value:
      logging.set_verbosity(logging.WARNING)
    flags.FLAGS["config"].value.keys()  # a missing file is an error only now
    if rest[1:]:
      raise UserError(
        f"{' '.join(rest[1:])} is no flag: write --NAME=VALUE, such as "
        "--config.batch=64."
      )
    return rest
  except Exception as error:
    # A recipe is code of the user's: whatever it raises is theirs to mend.
    _stop(_explain(error))


def _without_traceback(main: Callable[[], int]) -> int:
  try:
    return main()
  except UserError as error:
    _stop(error, exit_code(error))
  except KeyboardInterrupt:
    print("Interrupted. The same command starts again.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: what compiles in other threads does not survive a slower end.
    os._exit(EX_TEMPFAIL)


def _stop(message: object, code: int = EX_USAGE):
  for line in str(message).splitlines():
    # Indented lines go on with the one before them.
    print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)
  sys.exit(code)


def _explain(error: Exception) -> str:
  """Says what is wrong, and where in the recipe it was raised."""
  message = str(error)
  if "Traceback (most recent call last)" in message:
    # config_flags puts what a recipe raises into its own, traceback and all.
    return message.strip().splitlines()[-1].removeprefix(_USER_ERROR)
  if nearest := re.search(r'Did you mean "(.*?)" instead of "(.*?)"', message):
    return f"The config has no key {nearest[2]}; did you mean {nearest[1]}?"
  if "must have a value other than None" in message:
    return "Name a recipe, such as --config=configs/digits.py."
  for complaint, kind in _KINDS.items():
    given, found, _ = message.partition(f": {complaint}")
    if found and given.startswith("flag --"):
      return f"{given.removeprefix('flag ')}: write {kind}."
  if isinstance(error, (UserError, flags.Error)):
    return message
  if isinstance(error, OSError):
    given = [arg for arg in sys.argv if re.match("--?config(=|$)", arg)]
    folder = Path(__file__).parent.parent / "configs"
    return f"There is no recipe to read at {given[0]}. Recipes are in {folder}."
  if isinstance(error, AttributeError) and not _places(error):
    return f"The config has no key {message.strip(_QUOTES)}."
  if isinstance(error, SyntaxError):  # its message has the place
    return f"The recipe does not import: {message}."
  place = (*_places(error), "--config")[0]
  return f"{place}: {type(error).__name__}: {message}"


def _places(error: Exception) -> list[str]:
  """Where in code of the user's own it was raised, innermost first."""
  return [
    f"{frame.filename}, line {frame.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__))
    if not frame.filename.startswith((*_NOT_RECIPES, "<"))
  ]


# What absl's parsers complain with, and what they ask for.
_KINDS = {
  "invalid literal for int": "a whole number",
  "could not convert string to float": "a number",
  "('Non-boolean argument": "true or false",
}
_QUOTES = "'\""
_USER_ERROR = f"{UserError.__module__}.{UserError.__name__}: "
_NOT_RECIPES = (sys.prefix, sys.base_prefix, str(Path(__file__).parent))
