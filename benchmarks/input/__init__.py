# SPDX-License-Identifier: Apache-2.0
"""Measurements of the input pipeline: python -m benchmarks.input [PART ...]."""
