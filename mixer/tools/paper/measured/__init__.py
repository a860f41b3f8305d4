# SPDX-License-Identifier: Apache-2.0
"""What was measured here for the rows of the paper's tables."""

from pathlib import Path

PROJECT = Path(__file__).parents[4]
RESULTS = PROJECT / "results"
