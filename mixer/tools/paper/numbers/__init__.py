# SPDX-License-Identifier: Apache-2.0
"""The numbers of the paper (arXiv 2105.01601v4), as it prints them.

A module a table, and one for figures that are in the text alone. What is known
to contradict itself is noted where it stands.
"""

from mixer.tools.paper.numbers.comparisons import (
  ROWS,
  TABLE_2,
  TABLE_3,
  Row,
  find,
)
from mixer.tools.paper.numbers.settings import SETTINGS, TABLE_4, Settings
from mixer.tools.paper.numbers.specifications import TABLE_1, Specification
from mixer.tools.paper.numbers.text import (
  AVERAGE_5,
  FOOTNOTE_2,
  SPEED_RATIOS,
  SpeedRatio,
)

__all__ = [
  "AVERAGE_5",
  "FOOTNOTE_2",
  "ROWS",
  "SETTINGS",
  "SPEED_RATIOS",
  "Row",
  "Settings",
  "Specification",
  "SpeedRatio",
  "TABLE_1",
  "TABLE_2",
  "TABLE_3",
  "TABLE_4",
  "find",
]
