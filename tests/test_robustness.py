# SPDX-License-Identifier: Apache-2.0
"""ImageNet-A, -R and -C on miniatures of TFDS's layout, against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layouts import write_tfds

from mixer import cluster
from mixer.config import EVALUATORS, default, evaluator
from mixer.data.decode import decode
from mixer.data.preprocess import parse
from mixer.data.sources import open_source
from mixer.distributed import Hosts
from mixer.evaluators.corruptions import ALEXNET_ERRORS
from mixer.evaluators.runner import EvalRunner
from mixer.models import create
from mixer.plan import make_plan
from mixer.training.sharding import replicate

SIZES = dict(patch=4, hidden=8, blocks=1, tokens_mlp=4, channels_mlp=8)
MODEL = create("Mixer", num_classes=1000, **SIZES)
APPLY = jax.jit(functools.partial(MODEL.apply, train=False))
OPS = "resize(8)"
# Of ImageNet-A, few of its 200.
PRESENT = [6, 11, 13, 301, 307, 886, 988]
# Top-1 errors of AlexNet in percent, as the paper prints them.
ALEXNET = {
  **{"gaussian_noise": 88.6, "shot_noise": 89.4, "impulse_noise": 92.3},
  **{"defocus_blur": 82.0, "glass_blur": 82.6, "motion_blur": 78.6},
  **{"zoom_blur": 79.8, "snow": 86.7, "frost": 82.7, "fog": 81.9},
  **{"brightness": 56.5, "contrast": 85.3, "elastic_transform": 64.6},
  **{"pixelate": 71.8, "jpeg_compression": 60.7},
}


@pytest.fixture(scope="module")
def params():
  """Weights that look at the image and like two present classes best."""
  init = jax.jit(MODEL.init)
  params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  kernel = np.random.RandomState(0).randn(8, 1000)
  bias = np.isin(np.arange(1000), [6, 307]) * 7.0
  params["head"] = {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}
  return params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """ImageNet-A, and ImageNet-C of seven parts that its 75 configs share."""
  folder = tmp_path_factory.mktemp("data")
  labels = {"label": lambda i: PRESENT[i % 7]}
  write_tfds(folder, "imagenet_a", {"test": 37}, fixed=labels)
  configs = EVALUATORS["corruptions"].configs
  for n, config in enumerate(configs):
    name = f"imagenet2012_corrupted/{config}"
    if n < 7:
      labels = {"label": lambda i, n=n: 6 if i < n else 307}
      write_tfds(folder, name, {"validation": 3 + n % 3}, fixed=labels)
    else:
      corruption, severity = divmod(n, 5)
      part = configs[(corruption + severity**2) % 7]
      (folder / name).symlink_to(folder / "imagenet2012_corrupted" / part)
  return folder


def plan_of(folder, **evals):
  config = default()
  config.model.update(name="Mixer", **SIZES)
  config.data.data_dir = str(folder)
  config.batch = 16
  for name, options in evals.items():
    config.evals[name] = evaluator(**{"ops": OPS} | options)
  return make_plan(config, for_training=False, load_init=False)


def evaluate(folder, params, **options):
  plan = plan_of(folder, x=options)
  plan.complaints.raise_all()
  runner = EvalRunner(plan, None, Hosts(cluster.ONE_HOST))
  results = runner.run(["x"], replicate(params, jax.local_devices()))
  return {k.removeprefix("eval/x/"): x for k, x in results.items()}


def logits_of(folder, params, name, split):
  """Returns logits [n, 1000] and labels [n], without an evaluator."""
  source = open_source(name, split, str(folder))
  images, labels = zip(*source.read(range(len(source))), strict=True)
  images = [parse(OPS)(decode(image), None) for image in images]
  images = np.stack(images).astype(np.float32) / 127.5 - 1
  logits, _ = APPLY({"params": params}, images)
  return np.array(logits, np.float64), np.array(labels)


A = {"name": "imagenet_a", "split": "test"}


def test_only_the_classes_of_the_split_compete(folder, params):
  logits, labels = logits_of(folder, params, "imagenet_a", "test")
  few = logits[:, PRESENT]
  classes = np.array(PRESENT)[few.argmax(1)]
  shares = np.exp(few) / np.exp(few).sum(1, keepdims=True)
  top = np.array(PRESENT)[np.argsort(-few)[:, :5]]

  result = evaluate(folder, params, **A, present_classes_only=True)
  among_all = evaluate(folder, params, **A)

  assert result == pytest.approx(
    {
      "loss": -np.log(shares[np.arange(37), np.arange(37) % 7]).mean(),
      "accuracy": np.mean(classes == labels),
      "accuracy_top5": np.mean((top == labels[:, None]).any(1)),
    },
    rel=1e-5,
  )
  assert among_all["accuracy"] == np.mean(logits.argmax(1) == labels)
  assert among_all["accuracy"] < result["accuracy"] < 1


def test_the_mean_corruption_error_is_relative_to_alexnets(folder, params):
  parts, errors = {}, {}
  for corruption in ALEXNET:
    each = []
    for severity in range(1, 6):
      name = f"imagenet2012_corrupted/{corruption}_{severity}"
      part = (folder / name).resolve()
      if part not in parts:
        logits, labels = logits_of(folder, params, name, "validation")
        parts[part] = np.mean(logits.argmax(1) != labels)
      each.append(parts[part])
    errors[corruption] = np.mean(each)

  result = evaluate(folder, params, type="corruptions")

  relative = [100 * errors[name] / ALEXNET[name] for name in ALEXNET]
  assert result.pop("mce") == pytest.approx(np.mean(relative), rel=1e-3)
  assert result == pytest.approx(
    {"accuracy": 1 - np.mean([*errors.values()])}
    | {f"accuracy_{name}": 1 - error for name, error in errors.items()}
  )
  assert len({*errors.values()}) > 3
  printed = [*ALEXNET.values()]
  np.testing.assert_allclose(100 * ALEXNET_ERRORS, printed, atol=0.0501)


def test_what_is_not_there_is_named(folder, tmp_path):
  write_tfds(tmp_path, "imagenet2012_corrupted/fog_1", {"validation": 2})
  corrupted = {"name": "imagenet2012_corrupted/fog_6", "split": "validation"}

  plan = plan_of(tmp_path, a=A, c={"type": "corruptions"})
  other = plan_of(folder, x=corrupted)

  a, c = plan.complaints.missing
  assert "python -m mixer data prepare imagenet_a" in a
  assert "All 75 configs of imagenet2012_corrupted" in c
  assert c.endswith(
    f"prepare imagenet2012_corrupted/gaussian_noise_1 --data_dir={tmp_path}"
  )
  [problem] = other.complaints.problems
  assert "no config 'fog_6'" in problem and "fog_5" in problem
