# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk, under the names that the authors published."""

from mixer.weights.files import RUN_FILE, load, save
from mixer.weights.fit import fit

__all__ = ["RUN_FILE", "fit", "load", "save"]
