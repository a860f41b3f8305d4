# SPDX-License-Identifier: Apache-2.0
"""Lists, fetches, converts, verifies and publishes weights.

python -m mixer weights list [NAME ...]
python -m mixer weights fetch NAME [--cache=DIR]
python -m mixer weights convert FROM TO [--grow=K | --tokens=ROWSxCOLUMNS]
python -m mixer weights manifest WEIGHTS [--out=FILE.json]
python -m mixer weights verify WEIGHTS [--manifest=FILE.json or WEIGHTS]
python -m mixer weights push RUN OWNER/NAME [--license=L] [--dry_run]

WEIGHTS is a file, a published name, a run's folder or hf:OWNER/NAME of the
Hugging Face Hub. `verify` exits with 0 if the parameters are the same, 1 if
they differ, 2 if they cannot be compared.
"""

import argparse
import os
import re
import sys
import textwrap

from mixer import cli
from mixer.errors import UserError
from mixer.models.infer import describe_params, infer
from mixer.storage import check_output, is_in_bucket, write_text
from mixer.weights import download, io
from mixer.weights.grow import grid_shape, grow
from mixer.weights.load import locate, read
from mixer.weights.zoo import REGISTRY, UNPUBLISHED, Mirror, Published, find

_WIDTH = 100
# The authors' repositories name no other licence for the weights.
_LICENCE = "Google Research; Apache-2.0, of the authors' repository"
_WARNINGS = (
  "timm's tag goog_in21k_ft_in1k of Mixer-B/16 and -L/16 is wrong: these are "
  "imagenet1k/Mixer-B_16 and -L_16, trained on ImageNet-1k only.",
  "timm's miil_in21k and miil_in21k_ft_in1k are other people's weights: exact "
  "GELU, 11,221 classes for miil_in21k, and pixels in [0, 1]. The stem is "
  "converted to [-1, 1] here if the hub's config.json next to the file, or "
  "else its path, has miil in it.",
  "timm computes the exact GELU also for Google's weights, which were trained "
  "with the tanh form; this project computes them as trained.",
)


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 the user must change something."""
  options = vars(_parser().parse_args(arguments))
  return cli.run_cli(options.pop("run"), **options)


def _parser() -> argparse.ArgumentParser:
  parser = cli.create_parser("mixer weights", __doc__)
  commands = parser.add_subparsers(required=True)

  command = commands.add_parser("list", help="list published weights")
  command.set_defaults(run=_list)
  command.add_argument("names", nargs="*", metavar="NAME", help="in detail")

  command = commands.add_parser("fetch", help="download published weights")
  command.set_defaults(run=_fetch)
  command.add_argument("name", help="such as imagenet21k/Mixer-B_16")
  cache = "default: $MIXER_CACHE_DIR/weights or ~/.cache/mixer/weights"
  command.add_argument("--cache", metavar="DIR", help=cache)

  command = commands.add_parser("convert", help="change layout or image size")
  command.set_defaults(run=convert)
  add = command.add_argument
  add("source", metavar="FROM", help="a file, a published name, a run's folder")
  add("target", metavar="TO", help="a .npz (Google) or .safetensors (timm)")
  add = command.add_mutually_exclusive_group().add_argument
  add(
    "--grow",
    dest="factor",
    type=int,
    choices=range(1, 9),
    metavar="K",
    help="2 for 448 px instead of 224",
  )
  beyond = "interpolate to these tokens; for a Mixer beyond the paper"
  add("--tokens", type=_grid, metavar="24x24", help=beyond)

  command = commands.add_parser("manifest", help="write checksums")
  command.set_defaults(run=_manifest)
  command.add_argument("source", metavar="WEIGHTS")
  command.add_argument("--out", help="default: the file's .manifest.json")

  command = commands.add_parser("verify", help="compare with a manifest")
  command.set_defaults(run=_verify)
  command.add_argument("source", metavar="WEIGHTS")
  default = "a file, or other weights; default: the file's .manifest.json"
  command.add_argument("--manifest", dest="reference", help=default)

  command = commands.add_parser("push", help="publish a run on a hub")
  command.set_defaults(run=_push)
  command.add_argument("run_folder", metavar="RUN")
  command.add_argument("repository", metavar="OWNER/NAME")
  command.add_argument("--license", help="such as apache-2.0; default: none")
  only_write = "write the repository's folder, upload nothing"
  command.add_argument("--dry_run", action="store_true", help=only_write)
  return parser


def _grid(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)x(\d+)", text)
  if match is None:
    raise argparse.ArgumentTypeError(f"{text!r} is not written as 24x24")
  return int(match[1]), int(match[2])


def _list(names: list[str]) -> str:
  if names:
    return "\n\n".join(_describe_published(find(name)) for name in names)
  rows = [f"{'name':37} {'classes':>7} {'size':>10} {'top-1':<5}  measured by"]
  for each in REGISTRY.values():
    size = each.mirrors[0].size or "unknown"
    top1 = "" if each.top1 is None else f"{each.top1:g}"
    rows.append(
      f"{each.name:37} {each.num_classes:>7,} {size:>10} {top1:<5}  "
      f"{each.measured}".rstrip()
    )
  unpublished = [
    f"{description[0].upper()}{description[1:]}. {instead}"
    for _, description, instead in UNPUBLISHED
  ]
  return "\n".join(
    [
      *rows,
      "",
      "ImageNet top-1 in %, of the published file. `list NAME` says more. ViT "
      "and BiT are the paper's",
      "baselines.",
      "",
      "Never published:",
      *map(_item, unpublished),
      "",
      "Beware:",
      *map(_item, _WARNINGS),
    ]
  )


def _item(text: str) -> str:
  return textwrap.fill(
    text, _WIDTH, initial_indent="- ", subsequent_indent="  "
  )


def _fetch(name: str, cache: str | None) -> str:
  if name.startswith(download.HUB):
    path = locate(name)
    return f"{path}, {_describe(read(path).params)}"
  published = find(name)
  path = download.fetch(published, cache)
  size = f"{path.stat().st_size / 2**20:,.2f} MiB"
  return f"{_describe_published(published)}\nfile       {path}, {size}"


def _describe_published(published: Published) -> str:
  """Describes published weights in full."""
  top1 = "" if published.top1 is None else f"{published.top1} % "
  facts = {
    "name": published.name,
    "model": f"{published.model}, patch {published.patch}"
    if published.patch
    else published.model,
    "classes": f"{published.num_classes:,} of {published.classes}",
    "trained": published.recipe,
    "top-1": f"{top1}{published.measured and f'({published.measured})'}",
    "images": f"pixels in [-1, 1], short side {published.short_side}, central "
    f"{published.image_size[0]}",
    "GELU": "" if published.model.startswith("BiT") else "tanh",
    "by": _LICENCE,
    "mirrors": f"\n{' ' * 11}".join(map(_describe_mirror, published.mirrors)),
  }
  return "\n".join(f"{key:10} {value}" for key, value in facts.items() if value)


def _describe_mirror(mirror: Mirror) -> str:
  size = f", {mirror.size}" if mirror.size else ""
  sha256 = f", sha256 {mirror.sha256}..." if mirror.sha256 else ""
  return f"{mirror.url}{size}{sha256}"


def convert(
  source: str,
  target: str,
  factor: int | None = None,
  tokens: tuple[int, int] | None = None,
  *,
  flag: str = "TO",
) -> str:
  """Writes weights, grown if asked, in the layout of the target's suffix.

  Args:
    source: argument of `read`.
    target: a file; `flag` gave it.
    factor, tokens: arguments of `grow`.

  Returns:
    Sentences about the model, its growth and the file.
  """
  path, inputs = target, [source, os.path.join(source, "weights.npz")]
  if not is_in_bucket(target) or target in inputs:
    path = check_output(
      target, flag, io.WRITTEN, suffixes=io.SUFFIXES, inputs=inputs
    )
  checkpoint = read(source)
  params, config = checkpoint.params, checkpoint.config
  names = checkpoint.class_names
  checkpoint.create_model()  # complains of an unknown one
  lines = [f"{source}: {_describe(params)}."]
  if factor is not None or tokens is not None:
    grid = grid_shape(params, checkpoint.image_size)
    params = grow(params, factor=factor, tokens=tokens, grid=grid)
    config = None  # it is of smaller images
    how = f"by {factor}" if factor else "by interpolation"
    if tokens and "MixerBlock_0" in params:
      how += ", beyond the paper"
    lines.append(f"Grown {how}: {_describe(params)}.")
  io.save(path, params, gelu=checkpoint.gelu, config=config, class_names=names)
  layout = "Google's" if target.endswith(".npz") else "timm's"
  lines.append(f"Written to {path} in {layout} layout.")
  lines.append(_gelu_note(target, params, checkpoint.gelu))
  return "\n".join(filter(None, lines))


def _describe(params: dict) -> str:
  classes = len(params.get("head", {}).get("bias", ()))
  head = f"{classes:,} classes" if classes else "no head"
  return f"{describe_params(params)}, {head}"


def _gelu_note(target: str, params: dict, gelu: str) -> str:
  """Returns a sentence about the GELU that other programs use with a file.

  Returns "" if the model has no GELU, or is unknown.
  """
  if not hasattr(infer(params), "gelu"):
    return ""
  trained = f"They were trained with the {gelu} form of GELU"
  if target.endswith(".npz"):
    others = "the tanh form" if gelu == "exact" else "the same"
    return f"{trained}; other programs that read .npz compute {others}."
  if gelu == "exact":
    return f"{trained}, which timm computes."
  return (
    f"{trained}, and timm computes the exact one, unless told: timm."
    "create_model(NAME, act_layer=functools.partial(torch.nn.GELU, "
    "approximate='tanh')) gives the same logits."
  )


def _manifest(source: str, out: str | None) -> str:
  from mixer.tools import manifest

  path = out or f"{locate(source)}{manifest.SUFFIX}"
  path = check_output(path, "--out", manifest.WRITTEN, suffixes=[".json"])
  content = manifest.make_manifest(source)
  write_text(path, manifest.to_json(content))
  number, digest = len(content["parameters"]), content["sha256"]["float32"]
  return f"Wrote {path}: {number} parameters, sha256 {digest}."


def _verify(source: str, reference: str | None) -> str:
  """Compares weights; exits with 1 after printing the differences."""
  from mixer.tools import manifest

  if reference is None:
    reference = f"{locate(source)}{manifest.SUFFIX}"
    if not os.path.exists(reference):
      raise UserError(
        f"There is no {reference}: give --manifest=FILE.json, or weights, such "
        "as --manifest=imagenet21k/Mixer-B_16. The registry has no manifest of "
        "any published weights; python -m mixer weights manifest NAME makes "
        "one of the fetched file."
      )
  is_file = reference.endswith(".json")
  here = manifest.make_manifest(source, samples=16 if is_file else None)
  there = (
    manifest.read_manifest(reference)
    if is_file
    else manifest.make_manifest(reference, samples=None)
  )
  if lines := manifest.compare(here, there):
    print("\n".join([f"{source} differs from {reference}.", *lines]))
    sys.exit(1)
  return (
    f"{source} has the same {len(here['parameters'])} parameters as {reference}"
    f", sha256 {here['sha256']['float32']}."
  )


def _push(
  run_folder: str, repository: str, license: str | None, dry_run: bool
) -> str:
  from mixer.tools.push import push

  return push(run_folder, repository, license=license, dry_run=dry_run)


if __name__ == "__main__":
  sys.exit(main())
