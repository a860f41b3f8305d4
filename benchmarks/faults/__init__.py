# SPDX-License-Identifier: Apache-2.0
"""What a run survives, and whether its result is the same afterwards."""
