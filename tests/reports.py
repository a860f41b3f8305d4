# SPDX-License-Identifier: Apache-2.0
"""Folders as runs leave them, without the training, and readers of pages."""

import html.parser
import json

import recipes
from small_models import random_params

from mixer import weights
from mixer.config_check import resolve, to_dict
from mixer.models.infer import create_from_config

STEPS = 200


def rows(steps=STEPS, every=10):
  """Rows of a log: a loss that falls, and an evaluation every 50 steps."""
  found = []
  for step in range(every, steps + 1, every):
    row = {
      "step": step,
      "train/loss": 2.0 * 0.99**step,
      "train/learning_rate": 0.003 * (1 - step / STEPS),
      "train/skipped": 0,
      "images_per_second": 640.0,
      "images_per_second_per_device": 320.0,
      "data_wait": 0.25,
    }
    if step % 50 == 0:
      row["eval/test/loss"] = 1.0 / step
      row["eval/test/accuracy"] = 0.9 if step == 100 else 0.8
      row["eval/test/accuracy_top5"] = 0.975
      row["eval/test/f1"] = 100 / step
    found.append(row)
  return found


def config(**changes):
  """The digits recipe, of so many steps."""
  recipe = recipes.load("digits")
  recipe.total_epochs, recipe.total_steps = 0.0, STEPS
  recipe.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in changes.items()}
  )
  return to_dict(resolve(recipe))


def write(folder, content=None, log=None, *, done=False, skipped=()):
  """Writes a run's folder; with weights if it is done.

  content: of config.json; None for that of `config`.
  log: of metrics.jsonl; None for `rows`.
  """
  content = config() if content is None else content
  log = rows() if log is None else log
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(content))
  for name, lines in ("metrics", log), ("skipped", skipped):
    lines = "".join(json.dumps(row) + "\n" for row in lines)
    if lines or name == "metrics":
      (folder / f"{name}.jsonl").write_text(lines)
  start = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": ["train.py", "--config=configs/digits.py"],
    "git_commit": "0123456789abcdef",
    "git_changes": True,
    "python": "3.11.7",
    "packages": {"jax": "0.10.2"},
    "device_kind": "TPU v3",
    "devices": 2,
    "hosts": 1,
    "from_step": 0,
    "changes": ["seed: 1 -> 0"],
  }
  (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
  if done:
    params = random_params(create_from_config(content["model"]), (8, 8))
    weights.save(folder / weights.RUN_FILE, params)
  return folder


class Page(html.parser.HTMLParser):
  """A page's text, links, ids, and its tables as lists of rows of cells.

  marked: whether each row of all tables is marked.
  """

  def __init__(self, source):
    super().__init__()
    self.tables, self.marked, self.open = [], [], []
    self.links, self.ids, self.words = [], [], []
    self.feed(source)
    assert not self.open, "elements that are not closed"
    assert len(self.ids) == len(set(self.ids))
    self.text = " ".join(" ".join(self.words).split())

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    links = "src", "href", "xlink:href", "srcset"
    self.links += [attributes[key] for key in links if key in attributes]
    self.ids += [attributes["id"]] if "id" in attributes else []
    if tag in ("meta", "img", "link", "br"):
      return
    self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
      self.marked.append(attributes.get("class") == "set")
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" in self.open:
      return
    self.words.append(data)
    if "td" in self.open or "th" in self.open:
      self.tables[-1][-1][-1] += data

  def table(self, head):
    """Rows of the first table whose head begins with a word, by first cell."""
    table = next(table for table in self.tables if table[0][0] == head)
    return {row[0]: row[1:] for row in table[1:]}
