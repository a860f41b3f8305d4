# SPDX-License-Identifier: Apache-2.0
"""Waiting time of a user of `predict` or of an exported program."""
