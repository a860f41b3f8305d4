# SPDX-License-Identifier: Apache-2.0
"""What pre-training on the digits 0 to 4 is worth on the digits 5 to 9."""
