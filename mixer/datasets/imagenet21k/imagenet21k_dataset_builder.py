# SPDX-License-Identifier: Apache-2.0
"""ImageNet-21k from the official tar of tars, as ArrayRecord.

  python -m mixer data prepare imagenet21k [--workers=N] [--exclude=FILE ...]

Config fall11, the default, is the release of fall 2011, which the paper and the
published weights use; winter21 is the release of 2021 with fewer images of
people, which has the classes of its archive, sorted.

The only split, `full`, is ordered by a hash of the file names: any slice is a
random sample of all classes, the same on every machine, and
configs/pretrain_i21k.py holds out `full[:51200]`. Images keep their bytes.
unreadable.txt next to the records lists the images that cannot be decoded and
are left out, excluded.txt those that --exclude finds in other data sets.

After an interruption the same command continues with the next shard: unfinished
work lies in VERSION.unfinished next to the data set. Needs as much disk space
as the archive, and 0.7 GB of memory per worker.

synsets.txt lists the 21,843 classes in the order of the published heads, with
their names: the classes of fall 2011, and n03931044 and n09859684, of which
that archive has no images. The list was published with BiT (Google Research,
imagenet21k_wordnet_ids.txt); the list and the names from WordNet 3.0 are taken
from timm (Apache-2.0).
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from mixer.data.workers import usable_cores
from mixer.datasets import dedup
from mixer.datasets.class_names import synsets
from mixer.datasets.imagenet21k import archive, shards
from mixer.errors import UserError, format_list, printable
from mixer.storage import atomic_write

MAX_SHARDS = 2048


class Builder(dataset_builder.FileReaderBuilder):
  """Configs fall11 and winter21, split `full`."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(
      name="fall11", description="14,197,122 images, 21,841 of 21,843 classes"
    ),
    tfds.core.BuilderConfig(
      name="winter21", description="the classes of the archive, sorted"
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
  fall11_whole.tar, or winter21_whole.tar for imagenet21k/winter21, from
  https://image-net.org/download-images after registering
  """
  SHARD_BYTES = 640 << 20

  def __init__(
    self,
    *,
    workers: int | None = None,
    exclude: Sequence[str | os.PathLike] = (),
    **kwargs,
  ):
    """See `tfds.core.DatasetBuilder` for the other arguments.

    Args:
      workers: number of processes; None means one per usable core.
      exclude: files of `python -m mixer data hash`: images to leave out.
    """
    super().__init__(**kwargs)
    if workers is not None and workers < 1:
      raise UserError(f"workers={workers} must be at least 1.")
    self._workers = workers or usable_cores()
    self._exclude = tuple(os.fspath(Path(file).absolute()) for file in exclude)

  def _info(self) -> tfds.core.DatasetInfo:
    # The names of winter21 come with its archive.
    names = list(synsets()) if self.builder_config.name == "fall11" else None
    return tfds.core.DatasetInfo(
      builder=self,
      description="ImageNet-21k from its official archive.",
      homepage="https://image-net.org",
      features=shards.features(tfds.features.ClassLabel(names=names)),
      supervised_keys=("image", "label"),
      disable_shuffling=True,  # the order of the hashes is a shuffle
    )

  def _download_and_prepare(
    self,
    dl_manager: tfds.download.DownloadManager,
    download_config: tfds.download.DownloadConfig | None = None,
  ) -> None:
    assert self.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    release = self.builder_config.name
    path = archive.find(Path(dl_manager.manual_dir), release)
    folder = self._unfinished()
    with shards.claim(folder, self._plan(path)):
      # TFDS leaves its own folder behind when it is killed.
      for stale in folder.parent.glob(f"incomplete.*_{self.version}"):
        if stale != Path(self.data_path):
          shutil.rmtree(stale)
      tars = archive.inner_tars(path)
      self._set_names(tars, path)
      index = folder / shards.INDEX
      if not index.exists():
        print("Indexing the archive.")
        names = self.info.features["label"].names
        with atomic_write(index) as temporary:
          np.save(temporary, archive.index(tars, names, self._workers))
      files = self._files(folder, index)
      contents = shards.write(path, index, files, self._exclude, self._workers)
      self._take_over(files, contents)
      self._report_empty_classes(index)

  def _post_download_and_prepare_hook(self) -> None:
    shutil.rmtree(self._unfinished())

  def _unfinished(self) -> Path:
    """Returns the folder of unfinished work.

    A sibling of the data set: TFDS deletes its own where something fails.
    """
    config = Path(self.data_dir_root) / self.name / self.builder_config.name
    return config / f"{self.version}.unfinished"

  def _plan(self, path: Path) -> dict[str, object]:
    """Returns everything that the shards depend on."""
    stat = path.stat()
    dedup.load(self._exclude)  # reports faults of the files early
    digests = [
      hashlib.sha256(Path(file).read_bytes()).hexdigest()
      for file in self._exclude
    ]
    return {
      "archive": [path.name, stat.st_size, stat.st_mtime_ns],
      "list of exclusions": [dedup.DISTANCE, *digests],
      "size of the shards": self.SHARD_BYTES,
    }

  def _set_names(self, classes: Collection[str], path: Path) -> None:
    label = self.info.features["label"]
    if label.num_classes is None:
      label.names = sorted(classes)
    unknown = sorted(set(classes) - set(label.names))
    if unknown:
      raise UserError(
        f"{path} has classes that are not of this release:"
        f" {format_list(unknown)}. Is it the archive of another release?"
      )

  def _files(self, folder: Path, index: Path) -> list[Path]:
    """Returns the path of each shard, after a check of the free space."""
    num_bytes = int(np.load(index, mmap_mode="r")["size"].sum())
    written = folder.glob("*array_record-*")
    missing = num_bytes - sum(file.stat().st_size for file in written)
    free = shutil.disk_usage(folder).free
    if free < missing:
      raise UserError(
        f"{folder} needs {missing / 1e9:,.1f} GB more, and {free / 1e9:,.1f} GB"
        " are free: make room, or choose another --data_dir."
      )
    number = min(max(-(-num_bytes // self.SHARD_BYTES), 1), MAX_SHARDS)
    template = self._get_filename_template("full").replace(data_dir=folder)
    return [
      Path(template.sharded_filepath(shard_index=i, num_shards=number))
      for i in range(number)
    ]

  def _take_over(self, files: Sequence[Path], contents: Sequence[dict]) -> None:
    """Moves finished shards, and lists of images left out, to the data set."""
    target = Path(self.data_path)
    for file in files:
      _link(file, target / file.name)
    left_out = {}
    for kind in "unreadable", "excluded":
      lines = [line for shard in contents for line in shard[kind]]
      (target / f"{kind}.txt").write_text(
        "".join(f"{printable(name)}\t{why}\n" for name, why in sorted(lines))
      )
      left_out[kind] = len(lines)
    split = tfds.core.SplitInfo(
      name="full",
      shard_lengths=[shard["written"] for shard in contents],
      num_bytes=sum(shard["num_bytes"] for shard in contents),
      filename_template=self._get_filename_template("full"),
    )
    self.info.set_splits(tfds.core.SplitDict([split]))
    print(
      f"{split.num_examples:,} images written; left out:"
      f" {left_out['unreadable']:,} that cannot be decoded (unreadable.txt),"
      f" {left_out['excluded']:,} that other data sets hold (excluded.txt)."
    )

  def _report_empty_classes(self, index: Path) -> None:
    names = self.info.features["label"].names
    seen = np.unique(np.load(index, mmap_mode="r")["label"])
    if empty := sorted(set(names) - {names[i] for i in seen}):
      print(
        f"{len(empty):,} of {len(names):,} classes have no images:"
        f" {format_list(empty)}."
      )


def _link(file: Path, target: Path) -> None:
  """Links a file to a second name, so that a stop here loses nothing."""
  try:
    os.link(file, target)
  except OSError:  # a file system without hard links
    file.replace(target)
