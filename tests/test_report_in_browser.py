# SPDX-License-Identifier: Apache-2.0
"""A browser shows the report: all of it, on a phone too, light and dark."""

import math

import browser
import pytest
import reports

from mixer.tools.paper import report
from mixer.tools.paper.render import Page, to_html

pytestmark = pytest.mark.skipif(
  browser.CHROMIUM is None, reason="Chromium is not installed"
)
LONG = "central_crop(8) | " * 20 + "flip"
PAGE_SIZE = "[document.documentElement.clientWidth, innerWidth, "
PAGE_SIZE += "document.documentElement.scrollWidth]"
PICTURES = "[...document.images].map(i => [i.complete, i.naturalWidth])"
# Drawings, and whether each has a line and letters with some size.
DRAWINGS = """[...document.querySelectorAll("svg")].map(drawing =>
  ["path", "text"].every(kind => [...drawing.querySelectorAll(kind)].some(
    part => part.getBoundingClientRect().width > 3)))"""
LETTERS = """Math.min(...[...document.querySelectorAll("svg text")].map(
  part => part.getBoundingClientRect().height))"""
COLOURS = """[document.body, document.querySelector("svg text")].map(
  part => [getComputedStyle(part).backgroundColor, getComputedStyle(part).fill])
"""
UNFOLD = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  """An open browser."""
  with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
    yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Reports of a finished run and of one with whatever makes pages wide."""
  folder = tmp_path_factory.mktemp("runs")
  done = reports.write(
    folder / "digits", config=reports.config(), rows=reports.rows()
  )
  rows = reports.rows(90)
  rows[1]["train/loss"] = math.nan
  config = reports.config(data__ops=LONG)
  config["evals"]["a_rather_long_name_of_an_evaluator" * 3] = config["evals"][
    "test"
  ]
  rows[-1]["eval/" + "a_rather_long_name_of_an_evaluator" * 3 + "/loss"] = 1e9
  skipped = [
    {
      "step": 1,
      "loss": math.nan,
      "gradient_norm": math.nan,
      "examples": [12345678] * 64,
    },
  ]
  going = reports.write(
    folder / ("a_long_name_of_a_run" * 4),
    config=config,
    rows=rows,
    done=False,
    skipped=skipped,
  )
  for run in (done, going):
    report.write(run)
  return [run / "report.html" for run in (done, going)]


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("which", [0, 1])
def test_a_page_is_whole_and_not_wider_than_the_screen(
  page, files, which, width
):
  page.open(files[which], width=width)
  page.evaluate(UNFOLD)

  client, inner, scroll = page.evaluate(PAGE_SIZE)
  pictures, drawings = page.evaluate(PICTURES), page.evaluate(DRAWINGS)

  assert scroll <= client <= inner == width
  # Three blocks of four and the stem; loss, accuracy, rate and speed.
  assert len(pictures) == (4 if which == 0 else 0)
  assert all(complete and natural > 0 for complete, natural in pictures)
  assert drawings == [True] * 4
  assert page.evaluate(LETTERS) > 8  # px


def test_a_long_name_in_a_note_does_not_widen_a_table_s_page(page, tmp_path):
  note = "a", f"results/tables/{'a_long_name' * 12}.json, one run.", ()
  file = tmp_path / "table.html"
  file.write_text(to_html(Page("Table", ("Intro",), (), {"Notes": (note,)})))

  page.open(file, width=360)

  client, _, scroll = page.evaluate(PAGE_SIZE)
  assert scroll <= client == 360


def test_a_page_raises_no_errors_and_asks_for_nothing(page, files):
  for file in files:
    page.open(file, width=1200)

    asked = [
      x["request"]["url"] for x in page.told("Network.requestWillBeSent")
    ]
    assert [url for url in asked if not url.startswith("data:image/png")] == [
      file.as_uri()
    ]
    for event in (
      "Log.entryAdded",
      "Runtime.consoleAPICalled",
      "Runtime.exceptionThrown",
      "Network.loadingFailed",
    ):
      assert page.told(event) == []


def test_a_dark_page_has_light_letters_in_its_drawings_too(page, files):
  def brightness(colour):
    return sum(map(int, colour.strip("rgb()").split(",")))

  found = []
  for scheme in ("light", "dark"):
    page.open(files[0], width=1200, scheme=scheme)
    (background, _), (_, letters) = page.evaluate(COLOURS)
    found.append(brightness(background) - brightness(letters))

  light, dark = found
  assert light > 200 and dark < -200
