# SPDX-License-Identifier: Apache-2.0
"""What others report for the results of a run."""


def published_results(config: dict) -> dict[str, float]:
  """Takes what the config's evaluators name as published.

  Args:
    config: of the run, in JSON's types.

  Returns:
    Result, such as "eval/val/accuracy" -> the value, 0 to 1.
  """
  return {
    f"eval/{name}/accuracy": options["published"]
    for name, options in config["evals"].items()
    if options.get("published") is not None
  }
