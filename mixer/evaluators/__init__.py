# SPDX-License-Identifier: Apache-2.0
"""Evaluators; `mixer.config.EVALUATORS` is the table of their types."""
