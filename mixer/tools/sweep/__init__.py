# SPDX-License-Identifier: Apache-2.0
"""Learning-rate sweep on a held-out split, then the mean over seeds."""
