# SPDX-License-Identifier: Apache-2.0
"""The input pipeline, measured: python -m benchmarks.input [PART ...]."""
