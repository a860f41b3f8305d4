# SPDX-License-Identifier: Apache-2.0
"""Downloads from a real server on this machine."""

import contextlib
import hashlib
import http.server
import importlib.util
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from runs import TIMEOUT, wait_until

from mixer import weights
from mixer.errors import UserError
from mixer.tools.weights import main
from mixer.weights import download, zoo
from mixer.weights.download import fetch
from mixer.weights.zoo import Mirror, Published

FILE = Path("tests/goldens/mixer_tiny.npz")
CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves the server's `files`, and records the requests."""

  def do_GET(self):
    asked = self.headers.get("Range")
    self.server.asked.append((self.path, asked))
    answer = self.server.files.get(self.path, 404)
    if isinstance(answer, int):
      return self.send_error(answer)
    if isinstance(answer, str):
      self.send_response(302)
      self.send_header("Location", answer)
      self.send_header("Content-Length", "0")
      return self.end_headers()
    with contextlib.suppress(ConnectionError):  # of who would not wait
      self._send(answer, asked)

  def _send(self, file, asked):
    if "stalls" in file:
      file["stalls"].wait(TIMEOUT)
    content, begin = file["content"], 0
    if asked and not file.get("sends all"):
      begin = int(asked.removeprefix("bytes=").removesuffix("-"))
      if begin >= len(content):
        return self.send_error(416)
    self.send_response(206 if begin else 200)
    self.send_header("Content-Length", str(len(content) - begin))
    if "Content-Type" in file:
      self.send_header("Content-Type", file["Content-Type"])
    self.end_headers()
    part = content[begin:]
    if file.get("breaks"):
      part = part[: file["breaks"].pop(0)]
    self.wfile.write(part)

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.files, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def entry(*mirrors, name="test/Mixer-X_1"):
  return Published(
    name=name,
    model="Mixer-B/16",
    classes="imagenet2012",
    recipe="none",
    mirrors=mirrors,
  )


def files_in(folder):
  files = {path.name for path in folder.rglob("*") if path.is_file()}
  return files - {"Mixer-X_1.lock"}


def test_a_file_is_fetched_once(server, tmp_path):
  server.files["/a.npz"] = {"content": CONTENT}
  published = entry(Mirror(f"{server.url}/a.npz", "0.29 MiB", SHA256[:8]))

  path = fetch(published, str(tmp_path))
  lock = tmp_path / "test" / "Mixer-X_1.lock"
  lock.unlink()
  again = fetch(published, str(tmp_path))

  assert not lock.exists()  # which a cache that is only read cannot have
  assert path == again == tmp_path / "test" / "Mixer-X_1.npz"
  assert path.read_bytes() == CONTENT
  assert len(server.asked) == 1
  assert files_in(tmp_path) == {"Mixer-X_1.npz"}


def test_a_broken_connection_goes_on_where_it_was(server, tmp_path):
  server.files["/hub.npz"] = f"{server.url}/store/a"
  server.files["/store/a"] = {"content": CONTENT, "breaks": [100_000, 50_000]}

  path = fetch(entry(Mirror(f"{server.url}/hub.npz")), str(tmp_path))

  assert path.read_bytes() == CONTENT
  ranges = [asked for place, asked in server.asked if place == "/store/a"]
  assert ranges == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize(
  "now, size",
  [
    ({}, 70_000),
    ({"sends all": True}, 70_000),
    ({}, 300_000),  # stopped just before it had its name
  ],
)
def test_an_earlier_commands_part_is_continued(server, tmp_path, now, size):
  file = {"content": CONTENT, "breaks": [size, 0, 0]}
  server.files["/a.npz"] = file
  published = entry(Mirror(f"{server.url}/a.npz", None, SHA256[:8]))
  if size < len(CONTENT):
    with pytest.raises(UserError, match="ended at byte 70,000 of 300,000"):
      fetch(published, str(tmp_path))
    assert not (tmp_path / "test" / "Mixer-X_1.npz").exists()
  else:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "Mixer-X_1.npz.partial").write_bytes(CONTENT)
  file |= now
  server.asked.clear()

  path = fetch(published, str(tmp_path))

  assert path.read_bytes() == CONTENT
  assert server.asked == [("/a.npz", f"bytes={size}-")]
  assert files_in(tmp_path) == {"Mixer-X_1.npz"}


def test_mirrors_are_tried_in_order_and_every_failure_is_told(
  server, tmp_path, capsys
):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    closed = f"http://127.0.0.1:{free.getsockname()[1]}/a.npz"
  server.files |= {
    "/forbidden.npz": 403,
    "/page.npz": {"content": b"Sign in", "Content-Type": "text/html"},
    "/size.npz": {"content": CONTENT[:1000]},
    "/sha.npz": {"content": b"?" + CONTENT[1:]},
    "/good.safetensors": {"content": CONTENT},
  }
  size, sha = "0.29 MiB", SHA256[:8]
  bad = {
    Mirror(f"{server.url}/forbidden.npz"): "403 Forbidden",
    Mirror(f"{server.url}/missing.npz"): "404 Not Found",
    Mirror(f"{server.url}/page.npz"): "a web page came",
    Mirror(f"{server.url}/size.npz", size): f"has 0.00 MiB instead of {size}",
    Mirror(f"{server.url}/sha.npz", size, sha): f"instead of {sha}",
    Mirror("http://nowhere.invalid/a.npz"): "no network, or no such host",
    Mirror(closed): "refused",
  }

  with pytest.raises(UserError) as error:
    fetch(entry(*bad), str(tmp_path))
  told = capsys.readouterr().err
  path = fetch(
    entry(*bad, Mirror(f"{server.url}/good.safetensors")), str(tmp_path)
  )

  lines = str(error.value).splitlines()
  assert [line.strip() for line in lines[1:15:2]] == [m.url for m in bad]
  for line, words in zip(lines[2:16:2], bad.values(), strict=True):
    assert words in line
  assert f"copy it to {tmp_path / 'test' / 'Mixer-X_1.npz'} " in lines[0]
  assert f"{server.url}/forbidden.npz: 403 Forbidden." in told
  assert path.name == "Mixer-X_1.safetensors"
  assert path.read_bytes() == CONTENT
  assert not (tmp_path / "test" / "Mixer-X_1.npz").exists()


def test_a_mirror_that_does_not_answer_is_given_up(
  server, tmp_path, monkeypatch
):
  never = threading.Event()
  monkeypatch.setattr(download, "_TIMEOUT", 0.2)
  server.files["/slow.npz"] = {"content": CONTENT, "stalls": never}

  with pytest.raises(UserError, match="no answer within 0.2 s"):
    fetch(entry(Mirror(f"{server.url}/slow.npz")), str(tmp_path))

  never.set()


def test_a_file_of_pytorchs_is_passed_over_where_it_cannot_be_read(
  server, tmp_path
):
  server.files["/a.pth"] = {"content": CONTENT}
  published = entry(Mirror(f"{server.url}/a.pth", sha256=SHA256[:8]))

  if importlib.util.find_spec("torch") is not None:
    assert fetch(published, str(tmp_path)).suffix == ".pth"
    return
  with pytest.raises(UserError, match="PyTorch, which reads it, is not"):
    fetch(published, str(tmp_path))
  assert not server.asked


def test_a_file_that_was_brought_by_hand_is_looked_at(server, tmp_path):
  published = entry(Mirror(f"{server.url}/a.npz", "0.29 MiB", SHA256[:8]))
  path = tmp_path / "test" / "Mixer-X_1.npz"
  path.parent.mkdir()
  path.write_bytes(CONTENT[:200_000])

  with pytest.raises(UserError, match="has 0.19 MiB instead of 0.29"):
    fetch(published, str(tmp_path))
  path.write_bytes(CONTENT)

  assert fetch(published, str(tmp_path)) == path
  assert not server.asked


def test_processes_that_fetch_the_same_fetch_it_once(server, tmp_path, capsys):
  go_on = threading.Event()
  server.files["/a.npz"] = {"content": CONTENT, "stalls": go_on}
  published = entry(Mirror(f"{server.url}/a.npz"))
  errors = []

  def have_begun():
    errors.append(capsys.readouterr().err)
    return "".join(errors).count("Fetching test/Mixer-X_1, or waiting") == 3

  with ThreadPoolExecutor(3) as pool:
    paths = pool.map(fetch, [published] * 3, [str(tmp_path)] * 3)
    wait_until(have_begun)
    go_on.set()

  assert [path.read_bytes() == CONTENT for path in paths] == [True] * 3
  assert len(server.asked) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()

  with pytest.raises(UserError, match="file/test .*MIXER_CACHE_DIR"):
    fetch(entry(Mirror("http://nowhere.invalid/a.npz")), f"{tmp_path}/file")


@pytest.fixture
def published(server, monkeypatch):
  """Puts a name into the registry that the server has."""
  server.files["/a.npz"] = {"content": FILE.read_bytes()}
  each = entry(Mirror(f"{server.url}/a.npz"))
  monkeypatch.setitem(zoo.REGISTRY, each.name, each)


def test_a_name_is_fetched_when_it_is_loaded(
  published, server, tmp_path, monkeypatch
):
  monkeypatch.setenv("MIXER_CACHE_DIR", str(tmp_path))

  checkpoint = weights.read("test/Mixer-X_1")
  weights.load("test/Mixer-X_1")

  assert checkpoint.params["stem"]["kernel"].shape == (8, 8, 3, 24)
  assert checkpoint.name == "test/Mixer-X_1" and checkpoint.gelu == "tanh"
  assert (tmp_path / "weights" / "test" / "Mixer-X_1.npz").exists()
  assert len(server.asked) == 1


def test_the_command_fetches_and_says_what_it_is(
  published, tmp_path, capsys, server
):
  assert main(["fetch", "test/Mixer-X_1", f"--cache={tmp_path}"]) == 0

  out = capsys.readouterr().out
  assert str(tmp_path / "test" / "Mixer-X_1.npz") in out
  assert "Mixer-B/16" in out and "[-1, 1]" in out
  server.files.clear()
  assert main(["fetch", "test/Mixer-X_1", f"--cache={tmp_path}/empty"]) == 2
  err = capsys.readouterr().err
  assert "error: test/Mixer-X_1 could not be fetched" in err
  assert "404 Not Found" in err and "Traceback" not in err
