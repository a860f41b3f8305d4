# SPDX-License-Identifier: Apache-2.0
"""Tools on top of the core, each a command: python -m mixer NAME."""
