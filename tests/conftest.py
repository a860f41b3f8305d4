# SPDX-License-Identifier: Apache-2.0
"""Every test runs on eight simulated devices, without a network."""

import os
import signal

import pytest

# A shell that starts tests in the background makes them and their child
# processes ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile for longer than they compute.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# XLA aborts when a simulated device is late at a collective, which happens on a
# busy machine.
PATIENT_FLAG = "--xla_cpu_collective_call_terminate_timeout_seconds=900"
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} {PATIENT_FLAG} "
  "--xla_force_host_platform_device_count=8"
)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
  """The folder of data sets, with digits prepared."""
  from mixer.tools.data import prepare

  folder = tmp_path_factory.mktemp("tensorflow_datasets")
  prepare("digits", str(folder))
  return str(folder)


@pytest.fixture(scope="session")
def half_digits(tmp_path_factory: pytest.TempPathFactory) -> str:
  """The folder of data sets with the digits 0 to 4 and 5 to 9."""
  from mixer.tools.data import prepare

  folder = str(tmp_path_factory.mktemp("half_digits"))
  for name in "digits/0to4", "digits/5to9":
    prepare(name, folder)
  return folder


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Keeps the caches of the tests out of the user's folder."""
  os.environ["MIXER_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> str:
  """The folder of compiled programs that tests and their processes share.

  $JAX_COMPILATION_CACHE_DIR, if set, keeps them for the next run of the tests.
  """
  folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  return folder or str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def environment(compiled):
  """Environment of a process with one device.

  Every program is cached: by default only those that compile for long, which
  depends on the machine's load.
  """
  return os.environ | {
    "XLA_FLAGS": PATIENT_FLAG,
    "JAX_COMPILATION_CACHE_DIR": compiled,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


@pytest.fixture(scope="module", autouse=True)
def unload_programs():
  """Frees what a module has compiled.

  A process would hold gigabytes of programs at the end of the suite.
  """
  yield
  import jax

  jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_once(compiled):
  """Caches the programs that the tests of a module compile."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  options = {
    "jax_compilation_cache_dir": compiled,
    "jax_compilation_cache_max_size": -1,  # as in the tests' processes
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {key: jax.config.values[key] for key in options}
  for key, value in options.items():
    jax.config.update(key, value)
  compilation_cache.reset_cache()
  yield
  for key, value in before.items():
    jax.config.update(key, value)
  compilation_cache.reset_cache()
