# SPDX-License-Identifier: Apache-2.0
"""Allowed words of options that the config shares with models and training.

The schema in mixer.config and `mixer.models.create` check against these; the
code behind them asserts. This file imports nothing, so that both may use it.
"""

LOSSES = ("softmax", "sigmoid")
DTYPES = ("float32", "bfloat16")  # of computation, or of the first moment
OPTIMIZERS = ("adam", "momentum")
SCHEDULES = ("linear", "cosine", "constant")
# Fields of models.
MODEL_FIELDS = {
  "gelu": ("tanh", "exact"),
  "remat": ("none", "products", "token_mixing", "blocks"),
  "kernels": ("auto", "plain", "fused"),
  "pool": ("token", "mean"),
}
