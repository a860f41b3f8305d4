# SPDX-License-Identifier: Apache-2.0
"""Command-line entry points: flags, error messages and exit codes.

Exit codes: 0 done; 2 the user must change something; 75 start the same command
again; anything else is a crash, with a traceback.
"""

import argparse
import ast
import contextlib
import os
import re
import select
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging

from mixer.errors import RecipeHelp, RetryableError, UserError, nearest, notify
from mixer.storage import DISK_ERRORS

EX_OK, EX_USAGE, EX_TEMPFAIL = 0, 2, 75
PROCESS_START = time.monotonic()  # before the imports that take seconds


def run(main: Callable[[], int]):
  """Parses the flags, runs `main` and exits with its exit code."""
  # In place, because config_flags reads sys.argv itself.
  sys.argv[1:] = map(_rename_key, sys.argv[1:])
  with output_errors():
    app.run(lambda _: _call(main), flags_parser=_parse)


class _Parser(argparse.ArgumentParser):
  """Takes no abbreviations, and answers a misspelt flag with the nearest."""

  def __init__(self, **options):
    super().__init__(allow_abbrev=False, **options)

  def parse_known_args(self, args=None, namespace=None):
    # A subcommand's parser is asked for the arguments that it knows.
    namespace, unknown = super().parse_known_args(args, namespace)
    if unknown:
      flag = unknown[0].partition("=")[0]
      near = nearest(flag, self._option_string_actions)
      hint = f"; did you mean {near[0]}?" if near else ""
      self.error(f"there is no argument {flag}{hint}")
    return namespace, unknown


def create_parser(command: str, description: str) -> argparse.ArgumentParser:
  """Makes a parser for `python -m COMMAND`, with a docstring as its help."""
  return _Parser(
    prog=f"python -m {command}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def run_cli(work: Callable[..., str | None], **arguments) -> int:
  """Calls `work` and prints its text; errors become messages.

  Returns:
    The process's exit code; 130 after Ctrl-C or SIGTERM.
  """
  try:
    with output_errors(), sigterm_to_keyboard_interrupt():
      if (text := work(**arguments)) is not None:
        print(text)
  except (UserError, OSError) as error:
    notify(f"error: {_format_error(error)}")
    return exit_code(error)
  except KeyboardInterrupt:
    print("Stopped. Give the same command again.", file=sys.stderr)
    return 130
  return EX_OK


@contextlib.contextmanager
def sigterm_to_keyboard_interrupt() -> Iterator[None]:
  """Raises KeyboardInterrupt on SIGTERM; for work with nothing to save."""
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
  """Exits if the output cannot be written.

  With 141, as Unix tools do, if the reader has exited, such as head; with 2 and
  a message if a disk is full. Characters that a terminal lacks become "?".
  """
  with contextlib.suppress(AttributeError):  # a notebook's
    sys.stdout.reconfigure(errors="replace")
  try:
    try:
      yield
    finally:
      print(end="", flush=True)  # also where it was closed before
  except OSError as error:
    is_closed = isinstance(error, BrokenPipeError) and _is_reader_gone()
    is_full = error.errno in DISK_ERRORS and error.filename is None
    if not is_closed and not is_full:
      raise
    # Python flushes its buffers once more at the end.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    if is_full:
      _exit(f"Cannot write the output: {error.strerror}.")
    os.dup2(null, sys.stderr.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _is_reader_gone() -> bool:
  """Returns whether nobody reads standard output or error any more."""
  pipes = select.poll()
  for stream in sys.stdout, sys.stderr:
    pipes.register(stream, 0)
  return any(event & select.POLLERR for _, event in pipes.poll(0))


def _format_error(error: Exception) -> str:
  """Returns the message for the user, also for errors of the system."""
  if isinstance(error, UserError) or not getattr(error, "filename", None):
    return str(error)
  return (
    f"Cannot read or write {error.filename}: {error.strerror}. Name another "
    "place, or change its permissions."
  )


def exit_code(error: Exception) -> int:
  """Returns 75 for transient errors, 2 for errors of the user."""
  return EX_TEMPFAIL if isinstance(error, RetryableError) else EX_USAGE


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; errors of absl and config_flags become messages."""
  if {"--help", "-help", "-h"} & {*argv[1:]}:
    app.usage(writeto_stdout=True, shorthelp=True)
    if recipe := _recipe():
      print(f"\n{_recipe_help(recipe)}")
    sys.exit(EX_OK)  # absl's own way exits with 1
  try:
    rest = flags.FLAGS(argv)
    if flags.FLAGS["verbosity"].using_default_value:
      logging.set_verbosity(logging.WARNING)
    if (config := flags.FLAGS["config"].value) is not None:
      config.keys()  # a missing file is an error only now
      _replace_units(config)
    if rest[1:]:
      raise UserError(
        f"{' '.join(rest[1:])} is no flag: write --NAME=VALUE, such as "
        "--config.batch=64."
      )
    return rest
  except RecipeHelp:
    print(_recipe_help(_recipe()))
    sys.exit(EX_OK)
  except Exception as error:
    # A recipe is the user's code, so any exception is theirs to correct.
    _exit(_explain_parse_error(error))


def _recipe() -> str:
  """Returns the value of --config, "" if it is not given."""
  match = re.search(r"\0--?config[=\0]([^\0]+)", "\0".join(sys.argv))
  return match[1] if match else ""


def _recipe_help(recipe: str) -> str:
  """Returns a recipe's docstring and the arguments that it takes."""
  file, text = recipe.partition(":")[0], ""
  try:
    text = ast.get_docstring(ast.parse(Path(file).read_text())) or ""
    flags.FLAGS["config"].parser.parse(f"{file}:help")
  except RecipeHelp as arguments:
    text = f"{text}\n\n{arguments}"
  except Exception as error:  # also of a recipe without parse_arg
    text = text or _explain_parse_error(error)
  return f"{file}: {text}"


def _replace_units(config):
  """Unsets a recipe's duration where a flag gives it in another unit."""
  from ml_collections import config_flags

  from mixer.schema import UNITS

  overrides = config_flags.get_override_values(flags.FLAGS["config"])
  for name, value in overrides.items():
    *path, key = name.split(".")
    prefix, _, unit = key.rpartition("_")
    if unit not in UNITS or not prefix or value is None:
      continue
    part = config
    for parent in path:
      part = part[parent]
    for other in (f"{prefix}_{unit}" for unit in UNITS):
      is_given = ".".join([*path, other]) in overrides
      if not is_given and part.get(other):
        part[other] = None


def _call(main: Callable[[], int]) -> int:
  try:
    return main()
  except UserError as error:
    _exit(error, exit_code(error))
  except KeyboardInterrupt:
    notify("Interrupted. The same command starts again.")
    sys.stdout.flush()
    # At once: threads that compile would crash in a slower shutdown.
    os._exit(EX_TEMPFAIL)


def _exit(message: object, code: int = EX_USAGE):
  for line in str(message).splitlines():
    # Indented lines continue the one before them.
    notify(line if line.startswith(" ") else f"error: {line}")
  sys.exit(code)


def _explain_parse_error(error: Exception) -> str:
  """Returns a message, with the line of the recipe that raised the error."""
  from mixer.config import SCHEMA  # small programs do without ml_collections

  message, recipe = str(error), _recipe()
  file = recipe.partition(":")[0]
  if recipe.endswith(".json"):
    return (
      f"--config={recipe} is no recipe, but the record of a run: name the "
      'recipe that provenance.json next to it has under "command", with the '
      "flags there."
    )
  if "Traceback (most recent call last)" in message:
    # config_flags wraps errors of a recipe in its own, with their traceback.
    last = message.strip().splitlines()[-1]
    if last.startswith(_USER_ERROR):
      return last.removeprefix(_USER_ERROR)
    return f"{_recipe_line(re.findall(_FRAME, message))}: {last}"
  if unknown := _unknown_arguments():
    return "\n".join(unknown)
  if group := re.match(
    r"flag --config\.(\S+?)=(.*): .* as a ConfigDict", message
  ):
    part, value = group.groups()
    keys = {"name", "kind"} & {*SCHEMA.get(part, {})}
    setting = f"{keys.pop()}={shlex.quote(value)}" if keys else "KEY=VALUE"
    flag = f"--config.{part}"
    if part == "optimizer.arguments":
      return f"{flag} takes a dict, such as {flag}='{{\"b2\": 0.95}}'."
    return f"{flag} is a group of keys: set one, as {flag}.{setting}."
  if "must have a value other than None" in message:
    if recipe:
      return f"get_config() in {file} returns nothing: let it return config."
    return "Name a recipe, such as --config=configs/digits.py."
  for complaint, kind in _KINDS.items():
    flag, is_match, _ = message.partition(f": {complaint}")
    if is_match and flag.startswith("flag --"):
      may_be_none = message.endswith("'None'") and ".model." not in flag
      unset = "; 0 unsets it" if may_be_none else ""
      return f"{flag.removeprefix('flag ')}: write {kind}{unset}."
  if isinstance(error, (UserError, flags.Error)):
    return message
  if "has no attribute 'get_config'" in message and file.endswith(".py"):
    return f"{file} has no get_config(), which returns a recipe's config."
  is_other_file = "'get_config'" in message or "null bytes" in message
  if isinstance(error, OSError) or is_other_file:
    folder = Path(__file__).parent.parent / "configs"
    recipes = [path.name for path in folder.glob("*.py")]
    near = nearest(Path(file).name, recipes)
    hint = f"did you mean {folder / near[0]}?" if near else f"see {folder}."
    return (
      f"There is no recipe to read at --config={recipe}, a Python file with "
      f"get_config(); {hint}"
    )
  if isinstance(error, SyntaxError):  # its message has the place
    return f"The recipe does not import: {message}."
  stack = traceback.extract_tb(error.__traceback__)
  place = _recipe_line([(frame.filename, frame.lineno) for frame in stack])
  return f"{place}: {type(error).__name__}: {message}"


def _recipe_line(frames: list[tuple[str, int | str]]) -> str:
  """Returns the line of the recipe, the last of files and their lines."""
  place = f"--config={_recipe()}"
  for file, line in frames:
    if not file.startswith((*_NOT_RECIPES, "<")):
      place = f"{file}, line {line}"
  return place


def _unknown_arguments() -> list[str]:
  """Returns a complaint about each argument that is no flag and no key.

  Returns none if the recipe cannot be read, because the keys are not known.
  """
  from mixer.config import default

  recipe = _recipe()
  try:
    config = flags.FLAGS["config"].parser.parse(recipe) if recipe else default()
    keys = list(_leaf_keys(config))
  except Exception:
    return []
  complaints = []
  for argument in sys.argv[1:]:
    flag, equals, value = argument.partition("=")
    name = flag.lstrip("-")
    if name in ("", flag) or {name, name.removeprefix("no")} & {*flags.FLAGS}:
      continue
    key = re.sub(r"^(no)?config\.|\[.*", "", name)
    if key == name:
      complaint = f"{flag} is no flag"
      near = nearest(name, flags.FLAGS, cutoff=0.75)
    elif not recipe:
      complaints.append(
        f"{argument} changes a recipe: name that first, such as "
        "--config=configs/digits.py."
      )
      continue
    elif any(f"{each}.".startswith(f"{key}.") for each in keys):
      continue
    elif key.startswith("optimizer.arguments."):
      group, _, name = key.rpartition(".")
      complaints.append(
        f"The recipe has no {key}: give the whole dict, such as "
        f"--config.{group}='{{\"{name}\": {value}}}'."
      )
      continue
    else:
      complaint, near = f"The config has no key {key}", []
    if key in keys or not near:
      near = [f"config.{each}" for each in _nearest_keys(key, keys)]
    if near:
      if near[0] not in flags.FLAGS or not flags.FLAGS[near[0]].boolean:
        near[0] += f"={shlex.quote(value) if value else 'VALUE'}"
      complaint += f"; did you mean --{near[0]}?"
    else:
      complaint += "; mixer/config.py lists the keys, --help the flags."
    complaints.append(complaint)
  return complaints


def _leaf_keys(config, path: str = "") -> Iterator[str]:
  """Yields the dotted names of a config's values."""
  for key, value in config.items():
    if hasattr(value, "items") and value:
      yield from _leaf_keys(value, f"{path}{key}.")
    else:
      yield path + key


def _nearest_keys(name: str, keys: list[str]) -> list[str]:
  """Returns the keys that an unknown one may stand for, the likeliest first."""
  parent, _, last = name.rpartition(".")
  ours = _OUR_NAMES.get(last)
  if ours in keys and parent in ("", ours.rpartition(".")[0]):
    return [ours]
  if elsewhere := [key for key in keys if key.rpartition(".")[2] == last]:
    return nearest(name, elsewhere, cutoff=0.0)
  siblings = [key for key in keys if key.rpartition(".")[0] == parent]
  by_last = {key.rpartition(".")[2]: key for key in siblings}
  near = [by_last[each] for each in nearest(last, by_last)]
  return near or nearest(name, keys, cutoff=0.7)


def _rename_key(argument: str) -> str:
  """Returns a flag that sets a config key by its present name."""
  from mixer.config import RENAMED  # small programs do without ml_collections

  return re.sub(
    rf"^(--?config\.(?:\w+\.)?)({'|'.join(RENAMED)})(?==)",
    lambda match: match[1] + RENAMED[match[2]],
    argument,
  )


# Names of config keys in other projects.
_OUR_NAMES = {
  "lr": "optimizer.learning_rate",
  "base_lr": "optimizer.learning_rate",
  "learning_rate": "optimizer.learning_rate",
  "wd": "optimizer.weight_decay",
  "weight_decay": "optimizer.weight_decay",
  "batch_size": "batch",
  "epochs": "total_epochs",
  "num_epochs": "total_epochs",
  "steps": "total_steps",
  "num_steps": "total_steps",
  "num_train_steps": "total_steps",
  "dataset": "data.name",
  "model": "model.name",
}
# Messages of absl's parsers, and the kind of value they expect.
_KINDS = {
  "invalid literal for int": "a whole number",
  "could not convert string to float": "a number",
  "('Non-boolean argument": "true or false",
}
_USER_ERROR = f"{UserError.__module__}.{UserError.__name__}: "
_FRAME = r'File "(.+)", line (\d+)'
_NOT_RECIPES = (sys.prefix, sys.base_prefix, str(Path(__file__).parent))
