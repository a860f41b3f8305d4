# SPDX-License-Identifier: Apache-2.0
"""XLA flags: ours are added to the user's, and have their effect."""

import os
import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import run

from mixer.jax_setup import (
  ASYNC_DISPATCH,
  DETERMINISTIC,
  LIBRARY_PRODUCTS,
  _explain_start,
  configure_xla,
  set_flags,
)
from mixer.tools import export, predict
from mixer.tools.paper import __main__ as paper

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


@pytest.mark.usefixtures("dispatch")
def test_training_takes_the_librarys_products(monkeypatch):
  for deterministic in False, True:
    monkeypatch.setenv("XLA_FLAGS", "")
    configure_xla(deterministic=deterministic)
    flags = {LIBRARY_PRODUCTS} | ({DETERMINISTIC} if deterministic else set())
    assert set(os.environ["XLA_FLAGS"].split()) == flags


@pytest.fixture
def dispatch():
  """Restores jax's dispatch option."""
  before = jax.config.read(ASYNC_DISPATCH)
  yield
  jax.config.update(ASYNC_DISPATCH, before)


@pytest.mark.usefixtures("dispatch")
def test_a_users_dispatch_stays(monkeypatch):
  jax.config.update(ASYNC_DISPATCH, True)
  monkeypatch.setenv("JAX_CPU_ENABLE_ASYNC_DISPATCH", "1")
  configure_xla()
  assert jax.config.read(ASYNC_DISPATCH)
  monkeypatch.delenv("JAX_CPU_ENABLE_ASYNC_DISPATCH")
  configure_xla()
  assert not jax.config.read(ASYNC_DISPATCH)


STEPS = """
import resource
import jax
import jax.numpy as jnp
from mixer.jax_setup import configure_xla

configure_xla()
x = jnp.ones(4096)
step = jax.jit(lambda x: jnp.cumsum(jnp.outer(x, x), axis=0)[::7].sum())
step = step.lower(x).compile()
assert step.memory_analysis().temp_size_in_bytes > 100e6
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(10):
  step(x).block_until_ready()
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
# Threads' pieces may lie elsewhere the first times.
print(min(after - before for before, after in zip(faults, faults[1:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_step_on_a_cpu_finds_its_memory_where_it_left_it():
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("XLA_", "JAX_", "GLIBC_"))
  } | {"JAX_PLATFORMS": "cpu"}
  found = run([sys.executable, "-c", STEPS], environment)
  assert found.returncode == 0, found.stderr
  # Of 4 KiB; those of the temporaries would be 30,000.
  assert int(found.stdout) < 300


TINY = "tests/goldens/mixer_tiny.npz"


def test_a_platform_that_is_not_here_is_one_sentence(tmp_path):
  words = ["train.py", "--config=configs/digits.py", f"--workdir={tmp_path}"]
  done = run([sys.executable, *words], os.environ | {"JAX_PLATFORMS": "rocm"})

  assert (done.returncode, done.stdout) == (2, "")
  assert 'error: JAX has no rocm here: pip install "jax[rocm' in done.stderr
  assert done.stderr.count("\n") == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "main, words",
  [
    (predict.main, [f"--init={TINY}", "docs/digits.png"]),
    (export.main, [f"--init={TINY}", "--out={}/x.stablehlo"]),
    (paper.main, ["table", "1"]),
  ],
)
def test_a_tool_without_a_platform_is_one_sentence(
  main, words, tmp_path, monkeypatch, capsys
):
  def fail():
    raise RuntimeError("Unable to initialize backend 'cpu'")

  monkeypatch.setattr(jax, "device_count", fail)

  assert main([word.format(tmp_path) for word in words]) == 2

  out, err = capsys.readouterr()
  assert (out, err.count("\n")) == ("", 1)
  assert err.startswith("error: JAX has no cpu here")
  assert not list(tmp_path.iterdir())


def test_a_platform_in_capitals_is_the_same_platform():
  program = "from mixer.jax_setup import device_count; print(device_count())"
  environment = os.environ | {"JAX_PLATFORMS": "CPU", "XLA_FLAGS": ""}
  done = run([sys.executable, "-c", program], environment)
  assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize(
  ("platforms", "error", "answer"),
  [
    ("cdua,cpu", "", "JAX has no platform cdua; did you mean cuda?"),
    ("cuda", "", 'no cuda here: pip install "jax[cuda13]", look'),
    ("gpu", "backend 'rocm': 'rocm' is not in known backends", "no gpu here:"),
    ("cpu,tpu", "backend 'tpu': NOT_FOUND: x", "JAX has no tpu here:"),
    ("tpu", "backend 'tpu': is in use (x)", "(is in use): pip"),
    ("", "backend 'tpu': x", "or set JAX_PLATFORMS=cpu."),
  ],
)
def test_a_device_that_does_not_start_has_its_reason(platforms, error, answer):
  assert answer in _explain_start(platforms, error)


@pytest.fixture
def predict(environment):
  """Predicts with the programs that are cached in a folder."""
  environment = {**environment}
  del environment["JAX_COMPILATION_CACHE_DIR"]
  words = ["-m", "mixer", "predict", f"--init={TINY}", "docs/digits.png"]

  def predict(folder):
    folder = {"MIXER_CACHE_DIR": str(folder)}
    done = run([sys.executable, *words], environment | folder)
    assert done.returncode == 0, done.stderr
    return done.stderr

  return predict


def test_the_second_start_finds_the_programs_of_the_first(predict, tmp_path):
  folder = tmp_path / "programs"
  folder.mkdir()
  (folder / "killed-cache").write_bytes(b"half")  # within a write
  programs = []
  for _ in range(2):
    predict(tmp_path)
    programs.append({file.name for file in folder.glob("*-cache")})

  assert programs[0] and programs[0] == programs[1]
  assert "killed-cache" not in programs[0]


def test_a_cache_that_cannot_be_written_is_one_sentence(predict, tmp_path):
  (tmp_path / "file").touch()

  first, *others = predict(tmp_path / "file").splitlines()

  assert f"because {tmp_path}/file/programs cannot be written" in first
  assert not [line for line in others if "cache" in line]


def test_the_installed_jax_sums_squares_of_products():
  """jaxlib 0.10.2 takes some rows twice on CPUs, and others never."""
  rows = np.zeros((32_769, 3), np.float32)
  rows[:, 0] = np.arange(len(rows))

  sums = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)

  np.testing.assert_allclose(sums, (rows**2).sum(1), rtol=1e-6)
