# SPDX-License-Identifier: Apache-2.0
"""What the published recipes need on slices of TPUs, by the TPU compiler."""
