# SPDX-License-Identifier: Apache-2.0
"""What was measured here for the rows of the paper's tables."""

from pathlib import Path

PROJECT = Path(__file__).parents[3]
RESULTS = PROJECT / "results"
