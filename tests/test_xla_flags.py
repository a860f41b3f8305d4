# SPDX-License-Identifier: Apache-2.0
"""Flags of XLA are added to the user's."""

import os

import pytest
from ml_collections import ConfigDict

from mixer.training.setup import choose_operations
from mixer.xla_flags import DETERMINISTIC, LIBRARY_PRODUCTS, set_flags

OPPOSITE = LIBRARY_PRODUCTS.replace("false", "true")


@pytest.mark.parametrize(
  ("given", "then"),
  [
    (None, LIBRARY_PRODUCTS),
    ("", LIBRARY_PRODUCTS),
    # Of a flag that is given twice XLA takes the later one.
    (OPPOSITE, f"{LIBRARY_PRODUCTS} {OPPOSITE}"),
    (f"--a=1 {LIBRARY_PRODUCTS}", f"--a=1 {LIBRARY_PRODUCTS}"),
  ],
)
def test_a_users_flags_stay_and_win(monkeypatch, given, then):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  if given is not None:
    monkeypatch.setenv("XLA_FLAGS", given)
  set_flags(LIBRARY_PRODUCTS)
  assert os.environ["XLA_FLAGS"] == then
  set_flags(LIBRARY_PRODUCTS, DETERMINISTIC)
  assert os.environ["XLA_FLAGS"] == f"{DETERMINISTIC} {then}"


def test_a_users_file_of_flags_stays(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "my/flags.txt")
  set_flags(LIBRARY_PRODUCTS)
  assert os.environ["XLA_FLAGS"] == "my/flags.txt"


@pytest.mark.parametrize(
  ("deterministic", "flags"),
  [(False, {LIBRARY_PRODUCTS}), (True, {LIBRARY_PRODUCTS, DETERMINISTIC})],
)
def test_training_takes_the_librarys_products(
  monkeypatch, deterministic, flags
):
  monkeypatch.setenv("XLA_FLAGS", "")
  choose_operations(ConfigDict({"deterministic_operations": deterministic}))
  assert set(os.environ["XLA_FLAGS"].split()) == flags
