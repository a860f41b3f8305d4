# SPDX-License-Identifier: Apache-2.0
"""Every output of the published heads has its name, in its place."""

import pytest

from mixer.data.sources.tfds import builder_class
from mixer.datasets import class_names

# The places of ILSVRC 2012's classes that everybody quotes.
WELL_KNOWN = {
  0: "tench",
  65: "sea snake",
  281: "tabby",
  657: "missile",
  744: "projectile",
  850: "teddy",
  981: "ballplayer",
  999: "toilet tissue",
}


def test_the_classes_of_imagenet_are_where_everybody_knows_them():
  names = class_names.imagenet2012()

  assert {i: names[i].split(",")[0] for i in WELL_KNOWN} == WELL_KNOWN
  assert (names[134], names[517]) == ("crane (n02012849)", "crane (n03126707)")


@pytest.mark.parametrize(
  ("names", "number"),
  [(class_names.imagenet2012(), 1000), (class_names.imagenet21k(), 21_843)],
)
def test_every_class_has_a_name_of_its_own(names, number):
  assert len(names) == len(set(names)) == number
  assert not [name for name in names if name.startswith("n0")]


def test_the_order_of_imagenet_is_that_of_its_prepared_data(tmp_path):
  """TFDS's own feature says which label an id has."""
  builder = builder_class("imagenet2012")(data_dir=tmp_path)
  ids = builder.info.features["label"].names

  assert class_names.readable(ids) == class_names.imagenet2012()


def test_the_21k_names_are_where_the_authors_put_them():
  names = class_names.imagenet21k()

  assert names[0] == "organism, being"
  assert names[5564].startswith("chemise")
  # By their ids, which are sorted.
  assert names.index("kit fox, Vulpes macrotis") < names.index("tabby, queen")


def test_what_is_no_id_of_wordnet_stays():
  own = "cat", "n02123045", "n99999999", "cat"
  shown = "cat", "tabby, tabby cat", "n99999999", "cat"

  assert class_names.readable(own) == shown


def test_folders_name_classes_by_name_or_by_wordnet_id():
  folders = class_names.folder_classes(["tabby, tabby cat", "dog"])

  assert class_names.true_class("/pets/dog/old/1.png", folders) == 1
  assert class_names.true_class("/dog/n02123045/1.png", folders) == 0
  assert class_names.true_class("/pets/cat/dog.png", folders) is None


def test_a_folder_names_a_class_in_every_unicode_form():
  for name, folder in ("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9"):
    folders = class_names.folder_classes([name])
    assert class_names.true_class(f"/{folder}/1.png", folders) == 0
