# SPDX-License-Identifier: Apache-2.0
"""Measurements of this project; NOTES.md has their results."""

import argparse


def create_parser(name: str, description: str) -> argparse.ArgumentParser:
  """Makes a parser for `python -m benchmarks.NAME`, with a docstring."""
  return argparse.ArgumentParser(
    prog=f"python -m benchmarks.{name}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
