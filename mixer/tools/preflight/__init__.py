# SPDX-License-Identifier: Apache-2.0
"""What a recipe would need on a machine that is not there."""
