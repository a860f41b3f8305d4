# SPDX-License-Identifier: Apache-2.0
"""Evaluators by type: one class each, `run(params)` gives names and numbers."""

from mixer.evaluators.classification import Classification

TYPES = {"classification": Classification}
