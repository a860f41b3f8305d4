# SPDX-License-Identifier: Apache-2.0
"""Experiments of several runs: training, records and findings."""

import itertools
import json
import re
import sys

import numpy as np
import pytest
import recipes

from benchmarks import curves, data_size, permutations
from benchmarks.curves import Curve
from benchmarks.data_size import FEWSHOT, TEST
from benchmarks.permutations import RESULT, findings, report
from mixer.errors import UserError

SMALL = {
  "total_steps": 2,
  "schedule.warmup_steps": 1,
  "batch": 16,
  "model.hidden": 8,
  "model.blocks": 1,
  "model.tokens_mlp": 4,
  "model.channels_mlp": 8,
  "evals.few.draws": 1,
  "evals.few.every_steps": 2,
  "evals.test.every_steps": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
  """One small curve, trained twice by the same call."""
  folder = tmp_path_factory.mktemp("experiment")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
    curve = Curve(
      {"model": "mixer", "input": "pixels"}, "permutations", "input=pixels"
    )
    both = [
      curves.train([curve], folder, [3, 4], [RESULT], SMALL) for _ in range(2)
    ]
  return folder, both


def test_a_curve_has_its_config_and_the_results_of_each_run(trained):
  folder, ([curve], again) = trained

  assert curve["recipe"] == "configs/permutations.py:input=pixels"
  assert curve["config"]["model.hidden"] == 8
  assert curve["config"]["data.ops"].endswith("| permute_pixels(seed=3)")
  assert "optimizer.b1" not in curve["config"]  # as in the schema
  run, other = curve["runs"]
  assert (run["seed"], other["seed"]) == (3, 4)
  assert run["steps"] == [2]
  assert all(0 <= share <= 1 for share in run[RESULT])
  assert {"date", "git_commit", "device"} <= {*run}
  # A finished run is not trained again.
  assert again == [curve]
  file = folder / "mixer_pixels_seed_3" / "provenance.json"
  assert len(json.loads(file.read_text())["starts"]) == 1


def test_a_folder_of_another_experiment_is_refused(trained):
  folder, _ = trained
  curve = Curve({"model": "mixer", "input": "pixels"}, "permutations", "mixer")

  with pytest.raises(UserError, match="another config"):
    curves.finish(
      curves.config(curve, 3, SMALL | {"data.data_dir": str(folder / "data")}),
      folder / "mixer_pixels_seed_3",
      [RESULT],
    )


def test_one_seed_is_not_enough(tmp_path):
  with pytest.raises(UserError, match="Two seeds at least"):
    curves.train([], tmp_path, [0], [RESULT])


def test_a_file_of_results_has_its_command_and_commit(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "__main__", permutations)
  monkeypatch.setattr(sys, "argv", [permutations.__file__, "--seeds=2"])

  curves.record(tmp_path / "new" / "results.json", {"curves": [1]})

  content = json.loads((tmp_path / "new" / "results.json").read_text())
  assert content["curves"] == [1]
  assert content["command"] == "python -m benchmarks.permutations --seeds=2"
  assert {"date", "git_commit", "devices", "versions"} <= {*content}


def test_differences_are_judged_by_pairs_of_seeds():
  one = np.array([0.1, 0.5, 0.9])

  found = curves.difference(one, one + [0.09, 0.1, 0.11])

  assert found["mean"] == pytest.approx(0.1)
  # Student's t for two degrees of freedom, 4.303, times the standard error.
  assert found["interval"] == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)


def ends(**values):
  """Makes curves of figure 4 that end at these values, with a little noise."""
  return [
    {"model": model, "input": kind}
    | {"runs": [{RESULT: [0.1, values[f"{model}_{kind}"] + n]} for n in noise]}
    for model in ("mixer", "resnet")
    for kind, noise in (
      ("original", (0, 0.01, 0.02)),
      ("patches", (0.001, 0.009, 0.021)),
      ("pixels", (0, 0.012, 0.019)),
    )
  ]


AS_PUBLISHED = {
  "mixer_original": 0.4,
  "mixer_patches": 0.4,
  "mixer_pixels": 0.22,
  "resnet_original": 0.5,
  "resnet_patches": 0.3,
  "resnet_pixels": 0.1,
}
EQUAL = {"steps": 100, "largest_difference": 1e-6}


def test_the_papers_findings_hold_for_the_papers_curves():
  found = findings(ends(**AS_PUBLISHED), EQUAL)

  assert all(each["holds"] for each in found)
  text = report(ends(**AS_PUBLISHED), EQUAL, found)
  assert "NO" not in text
  assert "| Mixer, pixels    |" in text
  assert "costs it more than the Mixer: 22.0 ± 0.0" in text


@pytest.mark.parametrize(
  "change, places",
  [
    ({"mixer_patches": 0.38}, [1]),
    ({"mixer_pixels": 0.4}, [2]),
    ({"resnet_patches": 0.5}, [3]),
    ({"resnet_pixels": 0.5}, [4, 5]),
    ({"resnet_pixels": 0.32}, [5]),  # as much as the Mixer
  ],
)
def test_a_finding_that_the_curves_contradict_fails(change, places):
  trained = ends(**(AS_PUBLISHED | change))
  unequal = EQUAL | {"largest_difference": 0.01}

  judged = findings(trained, EQUAL)

  assert [i for i, each in enumerate(judged) if not each["holds"]] == places
  assert "NO   " in report(trained, EQUAL, judged)
  assert not findings(trained, unequal)[0]["holds"]


GAINS = {"mixer-small": 0.2, "mixer-large": 0.5, "vit": 0.3, "resnet": 0.4}
BEGINS = {"mixer-small": 0.1, "mixer-large": 0.15, "vit": 0.2, "resnet": 0.25}


def sizes(test_gains=GAINS, begins=BEGINS):
  """Makes curves of figure 2 with these gains and a little noise."""
  gains = {FEWSHOT: GAINS, TEST: test_gains}
  best = "eval/val/accuracy"
  return [
    {"model": model, "share": share}
    | {
      "runs": [
        {best: [0.0, 1.0, 0.5]}
        | {
          k: [0.0, at + noise + each[model] * gained, 0.05]
          for k, each in gains.items()
        }
        for noise in (0, 0.01, 0.02 if share == 3 else 0.0)
      ]
    }
    for model, at in begins.items()
    for share, gained in ((3, 0), (10, 0.4), (30, 0.7), (100, 1))
  ]


def test_all_findings_on_data_size_hold_for_the_papers_curves():
  found = data_size.findings(sizes())

  assert [each["holds"] for each in found] == [True] * 2 * (4 + 4 + 4 + 3)
  text = data_size.report(sizes(), found)
  assert "NO" not in text
  few, test = (x for x in text.splitlines() if x.startswith("| small Mixer, "))
  assert few.split()[3:5] == ["5-shot", "|"]
  assert test.split()[3:5] == ["test", "|"]


@pytest.mark.parametrize(
  "change, failing, measures",
  [
    (
      {"test_gains": GAINS | {"vit": -0.1}},
      "ViT: 100 % of the images are worth more than 3",
      ["test", "test"],  # than 3 and than 30 %
    ),
    (
      {"begins": BEGINS | {"mixer-large": 0.2}},
      "large Mixer: worse than the ViT with 3 % of the images",
      ["5-shot", "test"],
    ),
    (
      {"test_gains": GAINS | {"mixer-small": 0.5}},
      "large Mixer: gains more than the small Mixer from 33 times",
      ["test"],
    ),
  ],
)
def test_findings_on_data_size_fail_by_either_accuracy(
  change, failing, measures
):
  trained = sizes(**change)

  judged = data_size.findings(trained)

  failed = [each for each in judged if not each["holds"]]
  assert [each["measure"] for each in failed] == measures
  assert all(each["finding"].startswith(failing) for each in failed)
  assert data_size.report(trained, judged).count(" NO ") == len(measures)


@pytest.mark.parametrize(
  "name, arg, said",
  [
    ("permutations", "input=pixel", "input=pixel is none of original"),
    ("data_size", "mixer", "model=mixer is none of mixer-small"),
    ("data_size", "share=0", "share=0 must be a percentage above 0"),
  ],
)
def test_an_unknown_argument_is_refused_with_the_known_ones(name, arg, said):
  with pytest.raises(UserError, match=said):
    recipes.load(name, arg)


def samples(seed):
  """Returns the ids of each share's images, read from its split."""
  found = {}
  for share in (3, 10, 30, 100):
    config = recipes.load("data_size", f"share={share},seed={seed}")
    parts = re.findall(r"train\[(\d+):(\d+)\]", config.data.split)
    found[share] = [i for part in parts for i in range(*map(int, part))]
    assert len(found[share]) == config.data.examples
  return found


def test_shares_of_a_seed_are_nested_and_take_equal_steps():
  for seed in range(5):
    ids = list(samples(seed).values())

    assert [len({*each}) for each in ids] == [35, 116, 348, 1160]
    for less, more in itertools.pairwise(ids):
      assert {*less} < {*more}
  whole, part = (
    recipes.load("data_size", f"Mixer-L/16,scale=paper,share={share}")
    for share in (100, 10)
  )
  assert whole.data.split == "full[51200:14197122]"
  assert part.data.split == "full[51200:1465792]"
  configs = [recipes.load("data_size", f"share={share}") for share in (3, 100)]
  assert len({config.total_steps for config in configs}) == 1


def test_at_the_papers_scale_all_models_are_trained_alike():
  """Section 3: Adam, linear decay, crops and flips, 7 epochs of JFT-300M."""
  loaded = [
    recipes.load("permutations", "mixer,scale=paper"),
    recipes.load("permutations", "resnet,scale=paper"),
    *(
      recipes.load("data_size", f"{model},scale=paper,share={share}")
      for model in ("Mixer-L/32", "ViT-B/32", "BiT-R152x2")
      for share in (3, 100)
    ),
  ]

  assert len({config.model.name for config in loaded}) == 5
  for config in loaded:
    assert config.total_steps == pytest.approx(7 * 303e6 / 4096, rel=1e-3)
    assert config.optimizer.name == "adam"
    assert str(config.schedule) == str(loaded[0].schedule)
    assert config.data.ops == "inception_crop(224) | flip"
    assert not config.mixup and not config.model.stoch_depth


def test_seeds_draw_different_images():
  drawn = [samples(seed) for seed in range(3)]

  for one, other in itertools.combinations(drawn, 2):
    for share in (3, 10):
      assert not {*one[share]} & {*other[share]}
    assert len({*one[30]} & {*other[30]}) < 0.3 * 348  # as if by chance


def test_a_sample_wraps_around_at_the_end():
  config = recipes.load("data_size", "Mixer-L/16,scale=paper,share=50,seed=1")

  first = 51_200 + 8_742_661
  assert config.data.split == (
    f"full[{first}:14197122]+full[51200:{first - 7_072_961}]"
  )
  assert config.data.examples == 7_072_961


def test_training_and_all_evaluators_see_the_same_permutation():
  for scale in "photographs", "paper":
    config = recipes.load("permutations", f"input=pixels,scale={scale},seed=2")

    parts = config.data, *config.evals.values()
    assert len(parts) > 2
    assert all(x.ops.endswith("| permute_pixels(seed=2)") for x in parts)
    assert config.seed == 2
