# SPDX-License-Identifier: Apache-2.0
"""A browser shows pages whole, on a phone too, light and dark."""

import html
import json
import math
import re
import shutil
import subprocess

import pytest
import reports

from mixer.tools.paper import report
from mixer.tools.paper.render import Page, to_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
  CHROMIUM is None, reason="Chromium is not installed"
)
LONG = "a_rather_long_name" * 5
# Measures each frame, with all its parts unfolded. A drawing is whole if it has
# a line and letters with some size.
MEASURE = """
onload = () => {
  const measured = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    const all = selector => [...page.querySelectorAll(selector)];
    const size = part => part.getBoundingClientRect();
    const style = part => page.defaultView.getComputedStyle(part);
    all("details").forEach(part => part.open = true);
    return {
      width: page.documentElement.clientWidth,
      scrolls: page.documentElement.scrollWidth,
      pictures: all("img").map(part => part.complete && part.naturalWidth > 0),
      drawings: all("svg").map(svg => ["path", "text"].every(kind =>
        [...svg.querySelectorAll(kind)].some(part => size(part).width > 3))),
      letters: Math.min(...all("svg text").map(part => size(part).height)),
      background: style(page.body).backgroundColor,
      ink: all("svg text").map(part => style(part).fill)[0],
    };
  });
  document.body.textContent = JSON.stringify(measured);
}
"""


def measure(folder, pages, widths, scheme):
  """Opens pages in frames of some pixels; returns each page's measures."""
  frames = [
    f'<iframe width={width} height=800 srcdoc="{html.escape(page)}"></iframe>'
    for page in pages
    for width in widths
  ]
  file = folder / "frames.html"
  file.write_text(
    f"<!doctype html><body>{''.join(frames)}<script>{MEASURE}</script>"
  )
  command = [CHROMIUM, "--headless", "--dump-dom", "--disable-gpu"]
  # Root cannot have the sandbox.
  command += ["--no-sandbox", "--disable-dev-shm-usage"]
  number = {"dark": 0, "light": 1}[scheme]
  command.append(f"--blink-settings=preferredColorScheme={number}")
  command += [f"--user-data-dir={folder / 'profile'}", file.as_uri()]
  done = subprocess.run(command, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  return json.loads(re.search(r"<body>(\[.*\])</body>", done.stdout)[1])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """Reports of a finished run and of one with whatever makes pages wide."""
  folder = tmp_path_factory.mktemp("runs")
  done = reports.write(folder / "digits", done=True)
  rows = reports.rows(90)
  rows[1]["train/loss"] = math.nan
  rows[-1][f"eval/{LONG}/loss"] = 1e9
  config = reports.config(data__ops="central_crop(8) | " * 20 + "flip")
  config["evals"][LONG] = config["evals"]["test"]
  row = {"step": 1, "loss": math.nan, "gradient_norm": math.nan}
  skipped = [row | {"examples": [12345678] * 64}]
  wide = reports.write(folder / LONG, config, rows, skipped=skipped)
  for run in (done, wide):
    report.write(run)
  return [(run / "report.html").read_text() for run in (done, wide)]


@pytest.fixture(scope="module")
def shown(pages, tmp_path_factory):
  """Measures of both reports and of a table, on a phone and on a screen."""
  note = "a", f"results/tables/{LONG}{LONG}.json, one run.", ()
  table = to_html(Page("Table", ("Intro",), (), {"Notes": (note,)}))
  folder = tmp_path_factory.mktemp("shown")
  return measure(folder, [*pages, table], (360, 1200), "light")


def test_a_page_is_whole_and_not_wider_than_the_screen(shown):
  for each in shown:
    assert each["scrolls"] <= each["width"] <= 1200
  assert shown[0]["width"] <= 360
  for each in shown[:4]:
    assert each["drawings"] == [True] * 4  # loss, accuracy, rate and speed
    assert each["letters"] > 8  # px
  # Three blocks of four and the stem, once the run is done.
  assert [each["pictures"] for each in shown[:3:2]] == [[True] * 4, []]


def test_a_dark_page_has_light_letters_in_its_drawings_too(
  pages, shown, tmp_path
):
  def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)))

  def contrast(measures):
    return brightness(measures["background"]) - brightness(measures["ink"])

  [dark] = measure(tmp_path, pages[:1], [1200], "dark")

  assert contrast(shown[1]) > 200 and contrast(dark) < -200
