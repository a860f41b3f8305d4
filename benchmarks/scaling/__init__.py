# SPDX-License-Identifier: Apache-2.0
"""What a step takes from one chip to a Pod, and what it asks of the hosts."""
