# SPDX-License-Identifier: Apache-2.0
"""Manifests of parameters, and repositories of a hub."""

import base64
import hashlib
import http.server
import json
import re
import shutil
import sys
import threading

import jax
import ml_dtypes
import numpy as np
import pytest
import recipes
import reports
import runs
from flax.traverse_util import flatten_dict
from old_checkpoints import old_bit, old_vit
from small_models import assert_same, golden

from mixer import weights
from mixer.config_check import resolve, to_dict
from mixer.tools.manifest import make_manifest
from mixer.tools.weights import main

FILE = "tests/goldens/mixer_tiny.npz"
NAME = "hf:me/tiny"
SHA = "1" * 40  # of the hub's commit


def run_main(*arguments):
  try:
    return main([*map(str, arguments)])
  except SystemExit as exit:
    return exit.code


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  """A file of weights with its manifest."""
  path = tmp_path_factory.mktemp("original") / "tiny.npz"
  shutil.copy(FILE, path)
  assert run_main("manifest", path) == 0
  return path


def test_the_hash_is_that_of_names_shapes_and_values():
  manifest, digest = make_manifest(FILE), hashlib.sha256()
  with np.load(FILE) as file:
    arrays = {name: file[name] for name in sorted(file.files)}
  for name, array in arrays.items():
    data = f"{name} {list(array.shape)}\n".encode() + array.tobytes()
    digest.update(data)
    parameter = manifest["parameters"][name]
    assert parameter["sha256"] == hashlib.sha256(data).hexdigest()
    assert np.isin(np.float32(parameter["sample"]), array).all()

  assert manifest["sha256"]["float32"] == digest.hexdigest()


@pytest.mark.parametrize(
  ("family", "old"), [("ViT", old_vit), ("BiT", old_bit)]
)
def test_older_names_have_the_same_manifest(tmp_path, family, old):
  arrays = flatten_dict(golden(family).params, sep="/")
  np.savez(tmp_path / "old.npz", **old(arrays))

  one = make_manifest(tmp_path / "old.npz")
  other = make_manifest(f"tests/goldens/{family.lower()}_tiny.npz")

  assert one["sha256"] == other["sha256"] and one["outputs"] == other["outputs"]


def nudge(params, by=0.25):
  params["stem"]["kernel"][0, 0, 0, 0] += np.float32(by)
  return params


def rounded(dtype):
  return lambda params: jax.tree.map(lambda x: x.astype(dtype), params)


@pytest.mark.parametrize(
  ("suffix", "gelu", "change", "words"),
  [
    (".safetensors", "tanh", dict, "the same 30 parameters"),
    (".npz", "tanh", nudge, "1 of 30 .*stem/kernel: up to 0.25, 1 of 16 sam"),
    (".npz", "tanh", lambda x: x | {"head": {}}, "2 missing: head/bias"),
    (".npz", "exact", dict, "are the same.*model.gelu=tanh"),
    (".npz", "tanh", lambda x: nudge(x, 1e-7), "up to .*rounded to float16"),
    (".npz", "tanh", rounded(np.float16), "rounded to float16"),
    (".safetensors", "tanh", rounded(ml_dtypes.bfloat16), "to bfloat16"),
  ],
)
def test_a_copy_is_the_original_or_the_difference_is_told(
  original, tmp_path, capsys, suffix, gelu, change, words
):
  path = tmp_path / f"copy{suffix}"
  weights.save(path, change(weights.load(FILE)), gelu=gelu)

  code = run_main("verify", path, f"--manifest={original}.manifest.json")

  assert code == ("same 30" not in words)
  assert re.search(words, capsys.readouterr().out, re.DOTALL)


def test_other_weights_are_compared_value_by_value(tmp_path, original, capsys):
  weights.save(tmp_path / "a.npz", nudge(weights.load(FILE)))

  assert run_main("verify", original) == 0
  assert run_main("verify", tmp_path / "a.npz", f"--manifest={original}") == 1

  assert "up to 0.25, 1 of 4,608 values" in capsys.readouterr().out


def test_a_zero_has_no_sign(tmp_path):
  for zero in (0.0, -0.0):
    params = weights.load(FILE)
    params["head"]["bias"][0] = zero
    weights.save(tmp_path / f"{zero}.npz", params)

  one, other = (make_manifest(path) for path in tmp_path.iterdir())

  assert one["sha256"] == other["sha256"]


def test_other_outputs_of_the_same_parameters_are_told(original, tmp_path):
  content = make_manifest(original)
  content["outputs"]["china.jpg"][0][1] += 0.01
  (tmp_path / "a.json").write_text(json.dumps(content))

  assert run_main("verify", original, f"--manifest={tmp_path}/a.json") == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a finished run."""
  config = recipes.load("digits")
  config.data.name, config.data.examples = "folder:/home/me/insects", 100
  config.model.update(patch=8, hidden=24, blocks=2, num_classes=7, gelu="tanh")
  config.model.update(tokens_mlp=12, channels_mlp=48)
  config.data.ops = config.evals.test.ops = "resize(32)"
  log = [{"step": i, "eval/test/accuracy": x} for i, x in ((1, 0.1), (2, 0.75))]
  folder = tmp_path_factory.mktemp("mine") / "run"
  reports.write(folder, to_dict(resolve(config)), log)
  (folder / "classes.txt").write_text("\n".join("abcdefg"))
  shutil.copy(FILE, folder / "weights.npz")
  return folder


class Hub(http.server.BaseHTTPRequestHandler):
  """A hub of one repository."""

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    answer = {"url": "me/tiny", "files": []}
    if self.path.endswith("/preupload/main"):
      how = {"uploadMode": "regular", "shouldIgnore": False}
      answer["files"] = [
        how | {"path": file["path"]} for file in json.loads(body)["files"]
      ]
    elif self.path.endswith("/commit/main"):
      for line in body.splitlines()[1:]:
        file = json.loads(line)["value"]
        self.server.files[file["path"]] = base64.b64decode(file["content"])
      answer = {"commitUrl": "me/tiny", "commitOid": SHA, "hookOutput": ""}
    self.reply(json.dumps(answer).encode())

  def do_GET(self):
    files = self.server.files
    if "/resolve/" in self.path:
      return self.reply(files[self.path.rpartition("/")[2]])
    answer = {"id": "me/tiny", "sha": SHA, "siblings": []}
    if "/tree/" in self.path:
      kind = {"type": "file", "oid": SHA}
      answer = [kind | {"path": k, "size": len(x)} for k, x in files.items()]
    self.reply(json.dumps(answer).encode())

  do_HEAD = do_GET

  def reply(self, content):
    self.send_response(200)
    self.send_header("Content-Length", str(len(content)))
    self.send_header("ETag", hashlib.sha1(content).hexdigest())
    self.send_header("X-Repo-Commit", SHA)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def log_message(self, *_):
    pass


def test_a_run_goes_to_a_hub_and_back(run, environment, tmp_path):
  hub = pytest.importorskip("huggingface_hub")
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    server.files = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_TOKEN": "t"}
    push, verify = [str(run), "me/tiny", "--license=mit"], [NAME]
    program = f"""
from mixer.tools.weights import main
assert main(["push", *{push!r}]) == main(["verify", *{verify!r}]) == 0
"""
    done = runs.run([sys.executable, "-c", program], environment | variables)
    assert done.returncode == 0, done.stderr
    server.shutdown()

  assert "the same 30 parameters" in done.stdout
  [copy] = [file.parent for file in tmp_path.rglob("config.json")]
  assert_same(weights.load(copy), weights.load(run))
  assert weights.read(copy).class_names == tuple("abcdefg")
  card = hub.ModelCard(server.files["README.md"].decode())
  assert card.data.license == "mit" and card.data.datasets is None
  [result] = card.data.eval_results
  assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
  assert "tanh" in card.text and "resize(32)" in card.text
  assert NAME in card.text and "/home/me" not in card.content.split("Recipe")[0]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["verify", FILE], "There is no .*tiny.npz.manifest.json: give --manifest"),
    (["verify", FILE, "--manifest=a.json"], "a.json is not a manifest"),
    (["manifest", "hf:tiny"], "write OWNER/NAME"),
    (["push", "{run}", "tiny"], "write OWNER/NAME"),
    (["push", "{run}", "../tiny"], "write OWNER/NAME"),
    (["push", "{run}", "me/.."], "write OWNER/NAME"),
    (["push", "{run}", "me/tiny"], "hf auth login|pip install hugg"),
    (["push", "nothing", "me/tiny"], "There is no folder|pip install hugg"),
  ],
)
def test_wrong_input_is_told_in_a_line(
  run, capsys, tmp_path, monkeypatch, arguments, words
):
  monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
  monkeypatch.delenv("HF_TOKEN", raising=False)

  assert run_main(*(each.format(run=run) for each in arguments)) == 2

  [line] = capsys.readouterr().err.splitlines()
  assert re.search(words, line)
