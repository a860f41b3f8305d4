# SPDX-License-Identifier: Apache-2.0
"""Publishes a run's weights, with a model card, on the Hugging Face Hub."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mixer import weights
from mixer.config_check import beyond_defaults
from mixer.errors import UserError
from mixer.models.infer import describe
from mixer.storage import cache_folder
from mixer.tools import manifest
from mixer.tools.inference import choose_ops
from mixer.tools.paper.run_reader import Run, find_folder, read_run
from mixer.weights.download import HUB, open_hub

_CARD = """---
{metadata}
---

# {title}

{model}, trained on {data} with MLP-Mixer in JAX/Flax (`mlp-mixer-jax`).

| data | result | value |
| --- | --- | --- |
{results}

```python
from mixer import weights
checkpoint = weights.read("{name}")
model, params = checkpoint.create_model(), checkpoint.params
```

- Preprocessing: `{ops}`, RGB, pixels scaled from 0..255 to [-1, 1].
- GELU: {gelu}.
- sha256 over all parameters: `{sha256}`, which
  `python -m mixer weights verify {name}` compares.

Recipe: `config.json`, at commit {commit}. Keys that are not the default:

{recipe}
"""


def push(
  run_folder: str, repository: str, *, license: str | None, dry_run: bool
) -> str:
  """Writes the repository's folder into the user's cache, and uploads it.

  Args:
    run_folder: of a finished run.
    repository: "OWNER/NAME"; made if needed, public.
    license: of the weights, as the hub writes it; None for none.
    dry_run: upload nothing.
  """
  with open_hub(repository) as hub:
    token = hub.get_token()
  run = read_run(find_folder(run_folder))
  if token is None and not dry_run:
    raise UserError(
      "There is no token of the hub: log in with hf auth login, set HF_TOKEN, "
      "or give --dry_run."
    )
  target = cache_folder("push") / repository
  shutil.rmtree(target, ignore_errors=True)
  target.mkdir(parents=True)
  _write(target, hub, run, repository, license)
  if dry_run:
    files = ", ".join(sorted(each.name for each in target.iterdir()))
    return f"Wrote {target} ({files}); nothing was uploaded."
  with open_hub(repository):
    hub.create_repo(repository, exist_ok=True)
    commit = hub.upload_folder(repo_id=repository, folder_path=target)
  return f"Uploaded {target}: {commit.commit_url}; use {HUB}{repository}."


def _write(
  target: Path, hub: ModuleType, run: Run, repository: str, license: str | None
) -> None:
  """Writes weights, manifest, config and model card."""
  checkpoint, name = weights.read(run.folder), f"{HUB}{repository}"
  params, config, gelu = checkpoint.params, checkpoint.config, checkpoint.gelu
  # timm's layout has no other models.
  suffix = ".safetensors" if "MixerBlock_0" in params else ".npz"
  file, names = target / f"weights{suffix}", checkpoint.class_names
  weights.save(file, params, gelu=gelu, config=config, class_names=names)
  # As `read` returns it: stems that took other pixels are converted.
  (target / "config.json").write_text(json.dumps(config, indent=2))
  content = manifest.make_manifest(run.folder)
  content["origin"]["name"] = name
  text = manifest.to_json(content)
  (target / f"{file.name}{manifest.SUFFIX}").write_text(text)

  title, model = Path(repository).name, checkpoint.create_model()
  kind, data = _describe_data(config["data"]["name"])
  results = list(_results(hub, run))
  metadata = hub.ModelCardData(
    license=license,
    library_name="mlp-mixer-jax",
    pipeline_tag="image-classification",
    tags=["jax", "flax", type(model).__name__],
    datasets=None if kind == "imagefolder" else [kind],
    metrics=sorted({each.metric_type for each in results}) or None,
    model_name=title if results else None,
    eval_results=results or None,
  )
  card = _CARD.format(
    metadata=metadata.to_yaml(),
    title=title,
    model=describe(model),
    data=data,
    results="\n".join(
      f"| {x.dataset_name}, {x.dataset_split} | {x.metric_name} | "
      f"{x.metric_value:.4f} |"
      for x in results
    ),
    name=name,
    ops=choose_ops(checkpoint, None)[0],
    gelu=f"the {gelu} form" if hasattr(model, "gelu") else "none",
    sha256=content["sha256"]["float32"],
    commit=content["origin"]["git_commit"] or "unknown",
    recipe="\n".join(
      f"- `{key} = {json.dumps(value)}`"
      for key, value in sorted(beyond_defaults(run.config).items())
      if not key.startswith("evals.")
    ),
  )
  hub.ModelCard(card).save(target / "README.md")  # parses the metadata


def _describe_data(name: str) -> tuple[str, str]:
  """Returns a data set's identifier on the hub, and its name in words."""
  if name.startswith("folder:"):  # without the path on this machine
    return "imagefolder", Path(name).name
  return name.partition("/")[0], name


def _results(hub: ModuleType, run: Run) -> Iterator:
  """Yields the last value of each result, for the model index."""
  for full_name in run.evaluation_names:
    *_, evaluator, result = full_name.split("/")
    values = run.series(full_name)[1]
    options = run.config["evals"].get(evaluator)
    if values and options:  # and no evaluator of an earlier config
      name = options["name"] or run.config["data"]["name"]
      kind, data = _describe_data(name)
      yield hub.EvalResult(
        task_type="image-classification",
        dataset_type=kind,
        dataset_name=data,
        dataset_split=options["split"],
        metric_type=result,
        metric_name=full_name,
        metric_value=values[-1],
      )
