# SPDX-License-Identifier: Apache-2.0
"""eval.py: weights without a run, missing data, published results."""

import re

import jax
import numpy as np
import pytest
import recipes
import runs

from mixer import evaluate, train, weights
from mixer.cli import EX_OK
from mixer.config import default, evaluator
from mixer.errors import UserError
from mixer.models import create
from mixer.plan import make_plan
from mixer.weights import zoo

pytestmark = pytest.mark.usefixtures("compiled_once")

SIZES = dict(patch=4, hidden=8, blocks=1, tokens_mlp=4, channels_mlp=8)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
  """A file of weights."""
  model = create("Mixer", num_classes=10, **SIZES)
  params = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))["params"]
  params = jax.device_get(params)
  params["head"]["kernel"] = np.random.RandomState(0).randn(8, 10)
  path = tmp_path_factory.mktemp("weights") / "weights.npz"
  weights.save(path, params)
  return str(path)


def config_of(digits_dir, init, **evals):
  """No training data, no length of a run, an optimizer that is wrong."""
  config = default()
  config.init = init
  config.batch = 64
  config.model.name = "Mixer"
  config.model.num_classes = 10
  config.model.update(SIZES)
  config.optimizer.multipliers = (("no such parameter", 0.0),)
  config.data.data_dir = digits_dir
  for name, options in evals.items():
    config.evals[name] = evaluator(ops="central_crop(8)", **options)
  return config


TEST = {"name": "digits", "split": "test"}
FEW = {"type": "fewshot", **TEST, "shots": (5,)}
REAL = {"type": "real"}
MISSING = "imagenet2012_real is not prepared"


def test_weights_are_evaluated_without_a_training_run(
  digits_dir, init, tmp_path, capsys
):
  config = config_of(digits_dir, init, test=TEST, few=FEW)

  assert evaluate.evaluate(config, str(tmp_path)) == EX_OK

  printed = capsys.readouterr().out
  assert f"Evaluates {init}." in printed
  names = re.findall(r"^(eval/\S+) +([\d.]+)$", printed, re.MULTILINE)
  assert [name for name, _ in names] == [
    "eval/fewshot/few/5shot",
    "eval/fewshot/few/5shot_std",
    "eval/test/loss",
    "eval/test/accuracy",
    "eval/test/accuracy_top5",
  ]
  # Even random features tell digits apart better than chance.
  assert float(dict(names)["eval/fewshot/few/5shot"]) > 0.3


def test_what_others_report_stands_next_to_what_is_measured(
  digits_dir, init, tmp_path, capsys
):
  config = config_of(digits_dir, init, test=TEST | {"published": 0.5})

  evaluate.evaluate(config, str(tmp_path))

  [line] = re.findall("eval/test/accuracy .*", capsys.readouterr().out)
  measured, published, difference = re.findall(r"[-+]?\d\.\d{5}", line)
  assert published == "0.50000"
  assert float(difference) == pytest.approx(float(measured) - 0.5, abs=1e-5)


def test_everything_missing_is_listed_at_once(
  digits_dir, init, tmp_path, capsys
):
  v2 = {"name": "imagenet_v2", "split": "test"}
  config = config_of(digits_dir, init, test=TEST, real=REAL, v2=v2)

  with pytest.raises(UserError) as error:
    evaluate.evaluate(config, str(tmp_path))

  assert MISSING in str(error.value)
  assert "python -m mixer data prepare imagenet_v2" in str(error.value)
  assert "eval/" not in capsys.readouterr().out


def test_evaluators_without_data_can_be_left_out(
  digits_dir, init, tmp_path, capsys
):
  config = config_of(digits_dir, init, real=REAL, test=TEST)

  code = evaluate.evaluate(config, str(tmp_path), skip_missing=True)

  printed = capsys.readouterr().out
  assert code == EX_OK
  assert "Leaves out real:" in printed and MISSING in printed
  assert "eval/test/accuracy" in printed and "eval/real" not in printed


def test_what_is_wrong_with_an_evaluator_is_not_left_out(
  digits_dir, init, tmp_path
):
  wrong = TEST | {"split": "tset"}
  config = config_of(digits_dir, init, real=REAL, test=TEST, wrong=wrong)

  with pytest.raises(UserError, match="no split 'tset'"):
    evaluate.evaluate(config, str(tmp_path), skip_missing=True)
  config = config_of(digits_dir, init, real=REAL)
  with pytest.raises(UserError, match=MISSING):
    evaluate.evaluate(config, str(tmp_path), skip_missing=True)


def test_training_data_are_never_left_out(digits_dir, tmp_path):
  config = runs.small(digits_dir, data__name="imagenet_v2")

  with pytest.raises(UserError, match="imagenet_v2 is not prepared"):
    train.train(config, str(tmp_path), skip_missing=True)


@pytest.mark.parametrize(
  "options, words",
  [
    (REAL | {"per_class": True}, "evals.x.per_class is not a key"),
    (FEW | {"calibration": True}, "evals.x.calibration is not a key"),
    (FEW | {"shot": (5,)}, "evals.x.shot is not a key; did you mean.*shots"),
    (TEST | {"pool_splt": "train"}, "evals.x.pool_splt is not a key"),
    (TEST | {"published": 76.44}, "published = 76.44 must be 0 to 1"),
    ({"split": "test"}, "evals.x: name, the data set, is not set."),
    (FEW | {"pool_split": "trian"}, "no split 'trian'"),
    (FEW | {"shots": ()}, r"shots = \(\) must be numbers"),
    (FEW | {"shots": (0, 5)}, r"shots = \(0, 5\) must be numbers"),
    (FEW | {"draws": 0}, "draws = 0 must be 1 or more"),
    (FEW | {"l2": 0.0}, "l2 = 0.0 must be above 0"),
  ],
)
def test_wrong_options_of_evaluators_are_named(
  digits_dir, init, options, words
):
  config = config_of(digits_dir, init, x=options)

  with pytest.raises(UserError, match=words):
    make_plan(config, for_training=False).complaints.raise_all()


@pytest.fixture(scope="module")
def trained(digits_dir, tmp_path_factory):
  """The folder of a run of a few steps, and its config."""
  folder = tmp_path_factory.mktemp("trained")
  best = "eval/fewshot/digits/5shot"
  config = runs.small(digits_dir, total_steps=6, checkpoint__best=best)
  options = {"split": "test", "ops": "central_crop(8)", "every_steps": 2}
  config.evals.v2 = evaluator(name="imagenet_v2", **options)
  config.evals.digits = evaluator(type="fewshot", **options)
  assert train.train(config, str(folder), skip_missing=True) == EX_OK
  return folder, config


def test_training_leaves_out_evaluators_without_data_on_request(
  trained, capsys
):
  folder, config = trained

  with pytest.raises(UserError, match="imagenet_v2 is not prepared"):
    train.train(config, str(folder))
  assert train.dry_run(config, skip_missing=True) == EX_OK

  assert "Leaves out v2:\n" in capsys.readouterr().out
  assert "eval/test/accuracy" in runs.read_rows(folder)[-1]


def test_training_and_eval_py_agree(trained, capsys):
  folder, _ = trained

  assert evaluate.evaluate(None, str(folder), skip_missing=True) == EX_OK

  rows = {row["step"]: row for row in runs.read_rows(folder)}
  printed = capsys.readouterr().out
  found = dict(re.findall(r"^(eval/\S+) +([\d.]+)$", printed, re.MULTILINE))
  logged = {k: v for k, v in rows[6].items() if k.startswith("eval/")}
  assert found == {name: f"{value:.5f}" for name, value in logged.items()}
  assert {k for k in rows[2] if k.startswith("eval/")} == {
    f"eval/fewshot/digits/{k}shot{end}" for k in (5, 10) for end in ("", "_std")
  }


def test_the_few_shot_suite_is_big_visions():
  """Data sets and splits of its configs/common_fewshot.py."""
  config = recipes.load("evaluate", "imagenet21k/Mixer-B_16,fewshot=True")

  suite = {
    name: (x.name, x.pool_split, x.split) for name, x in config.evals.items()
  }
  assert suite == {
    "caltech": ("caltech101", "train", "test"),
    "cars": ("cars196", "train", "test"),
    "cifar100": ("cifar100", "train", "test"),
    "dtd": ("dtd", "train", "test"),
    "imagenet": ("imagenet2012", "train[:65000]", "validation"),
    "pets": ("oxford_iiit_pet", "train", "test"),
    "uc_merced": ("uc_merced", "train[:1000]", "train[1000:]"),
  }
  for name, options in config.evals.items():
    assert options.shots == (1, 5, 10, 25)[: 3 if name == "cars" else 4]
    assert (options.type, options.draws, options.l2) == ("fewshot", 3, 2**10)
    assert options.ops == "resize(256) | central_crop(224)"


def test_checkpoints_that_happen_to_lie_here_are_not_evaluated(
  digits_dir, init, trained, capsys, monkeypatch
):
  monkeypatch.chdir(trained[0])

  evaluate.evaluate(config_of(digits_dir, init, test=TEST), None)

  assert f"Evaluates {init}." in capsys.readouterr().out


def test_without_weights_to_evaluate_the_flags_are_named(
  digits_dir, init, tmp_path
):
  config = config_of(digits_dir, init, test=TEST)
  without_init = config_of(digits_dir, "", test=TEST)
  for arguments, words in (
    ((None, None), "Name a recipe"),
    ((None, "none"), "no config.json"),
    ((config_of(digits_dir, init), None), "no evaluators: add to config.evals"),
    ((without_init, None), "^There is no --workdir, and config.init"),
    ((without_init, str(tmp_path)), "^There is no checkpoint in"),
  ):
    with pytest.raises(UserError, match=words):
      evaluate.evaluate(*arguments)
  with pytest.raises(UserError, match="--best and --step.*--workdir"):
    evaluate.evaluate(config, None, best=True)


def test_a_run_that_may_have_seen_what_it_is_judged_by_is_told(trained, capsys):
  folder, config = trained
  config = config.copy_and_resolve_references()
  del config.evals.digits, config.evals.v2
  config.checkpoint.best = ""

  evaluate.evaluate(config, str(folder))
  assert "has learned from" not in capsys.readouterr().out

  config.data.split, config.data.examples = "train[:50%]", None
  evaluate.evaluate(config, str(folder))
  assert "was trained on 'train' of digits" in capsys.readouterr().out


def test_every_published_name_has_a_model_and_its_own_preprocessing():
  for name, published in zoo.REGISTRY.items():
    config = recipes.load("evaluate", name)
    side = published.image_size[0]

    fields = {k: x for k, x in config.model.to_dict().items() if x is not None}
    model = create(fields.pop("name"), **fields)
    assert model == create(
      published.model,
      **{"num_classes": published.num_classes, "dtype": model.dtype}
      | published.fields,
    )
    for options in config.evals.values():
      assert options.ops.endswith(f"central_crop({side})")
    if published.top1 is not None:
      first, _, _ = config.evals.val.ops.partition(" ")
      assert first == f"resize_small({published.short_side})"
  with pytest.raises(UserError, match="imagenet1k/Mixer-H_14"):
    recipes.load("evaluate", "imagenet1k/Mixer-H_14")
