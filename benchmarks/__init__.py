# SPDX-License-Identifier: Apache-2.0
"""Measurements of this project; NOTES.md has their results."""
