# SPDX-License-Identifier: Apache-2.0
"""Every test runs on eight simulated devices, without a network."""

import os
import signal

import pytest

# A shell that starts tests in the background makes them deaf to Ctrl-C, and
# the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile for longer than they compute.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
  """The folder of data sets in which digits is prepared."""
  from mixer.tools.data import prepare

  folder = tmp_path_factory.mktemp("tensorflow_datasets")
  prepare("digits", str(folder))
  return str(folder)


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Keeps what is cached between runs out of the user's own folder."""
  os.environ["MIXER_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
  """Of a process with one device; programs are compiled once for all tests.

  Each of them, so that a machine's load does not decide which are kept.
  """
  cache = tmp_path_factory.mktemp("compiled")
  return os.environ | {
    "XLA_FLAGS": "",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """The same program is compiled in one test only."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {key: jax.config.values[key] for key in options}
  for key, value in options.items():
    jax.config.update(key, value)
  yield
  for key, value in before.items():
    jax.config.update(key, value)
  compilation_cache.reset_cache()
