# SPDX-License-Identifier: Apache-2.0
"""A page opened in Chromium without a window, over its debugging pipe."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
  "--headless",
  "--no-sandbox",  # which root cannot have
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--remote-debugging-pipe",
)
_SECONDS = 180  # on a busy machine it takes long to start


class Page:
  """An open page.

  events: all that the browser has told, in order.
  """

  def __init__(self, requests: int, answers: int):
    self.events = []
    self._requests, self._answers = requests, answers
    self._unread = b""
    self._number = 0
    self._session = {}
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = {"sessionId": attached["sessionId"]}
    for domain in "Page", "Runtime", "Log", "Network":
      self.call(f"{domain}.enable")

  def call(self, method: str, **params) -> dict:
    """Calls a method of the DevTools protocol and returns its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    text = json.dumps(message | self._session).encode()
    os.write(self._requests, text + b"\0")
    while "id" not in (answer := self._next()):
      self.events.append(answer)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]

  def open(self, file: Path, *, width: int, scheme: str = "light"):
    """Loads a page as a phone or a screen of this many pixels shows it."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=800,
      deviceScaleFactor=1,
      mobile=width < 500,
    )
    self.call(
      "Emulation.setEmulatedMedia",
      features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    self.events.clear()
    self.call("Page.navigate", url=file.absolute().as_uri())
    while not self.told("Page.loadEventFired"):
      self.events.append(self._next())

  def told(self, method: str) -> list[dict]:
    """Parameters of all events of a name since the page was opened."""
    return [e["params"] for e in self.events if e.get("method") == method]

  def evaluate(self, expression: str):
    """The value of a JavaScript expression."""
    answer = self.call(
      "Runtime.evaluate", expression=expression, returnByValue=True
    )
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")

  def _next(self) -> dict:
    """Waits for what the browser tells next."""
    deadline = time.monotonic() + _SECONDS
    while b"\0" not in self._unread:
      left = deadline - time.monotonic()
      ready, _, _ = select.select([self._answers], [], [], max(left, 0))
      more = os.read(self._answers, 1 << 20) if ready else b""
      if not more:
        raise RuntimeError("The browser does not answer.")
      self._unread += more
    message, _, self._unread = self._unread.partition(b"\0")
    return json.loads(message)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
  """Starts Chromium with a profile of its own and gives an empty page."""
  to_read, requests = os.pipe()
  answers, to_write = os.pipe()
  # It reads from descriptor 3 and writes to 4.
  command = f'exec "$@" 3<&{to_read} 4>&{to_write}'
  process = subprocess.Popen(
    ["bash", "-c", command, "bash", CHROMIUM, *_FLAGS]
    + [f"--user-data-dir={profile}"],
    pass_fds=(to_read, to_write),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(to_read)
  os.close(to_write)
  try:
    yield Page(requests, answers)
  finally:
    os.close(requests)  # which ends it
    try:
      process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
    os.close(answers)
