# SPDX-License-Identifier: Apache-2.0
"""How long a user of `predict` or of an exported program waits."""
