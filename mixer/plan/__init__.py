# SPDX-License-Identifier: Apache-2.0
"""What a config comes to, and everything that is wrong with it, beforehand.

Nothing here compiles, and nothing waits for anything dear: keys, cross-field
rules, models, data sets and weights are all looked at, and all complaints are
reported together.
"""

from mixer.plan.base import EvalPlan, Plan
from mixer.plan.make import make_plan

__all__ = ["EvalPlan", "Plan", "make_plan"]
