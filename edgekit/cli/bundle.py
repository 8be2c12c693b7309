"""`edgekit info` and `edgekit verify`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from edgekit.bundle.bundle import Bundle, open_bundle, verify_bundle
from edgekit.cli.output import bytes_text, console, print_json, progress_bar, stderr
from edgekit.errors import BundleError

__all__ = ["info", "verify"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def info(*, bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE is: model, recipe, size, memory, licence, and which devices run it."""
    manifest = open_bundle(bundle).manifest
    if as_json:
        print_json(manifest.to_dict())
        return
    weights, per_token = manifest.memory.weights, manifest.memory.kv_cache_per_token
    full = per_token * manifest.context_length
    kind = f"{manifest.artifact.kind} {manifest.artifact.dialect}".strip()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for row in (
        ("model", f"{manifest.name}  ({manifest.architecture}, {manifest.parameters / 1e6:,.0f} M parameters)"),
        ("for", ", ".join(manifest.compatible)),
        ("artifact", kind),
        ("recipe", str(manifest.recipe.get("summary", ""))),
        ("weights", bytes_text(weights)),
        (
            "context",
            f"{manifest.context_length:,} tokens; KV cache {bytes_text(per_token)} each, {bytes_text(full)} when full",
        ),
        ("licence", manifest.licence),
        ("source", str(manifest.source.get("id", ""))),
        ("made", f"{manifest.created} by edgekit {manifest.edgekit}"),
        ("files", ", ".join(f"{entry.path} ({bytes_text(entry.size)})" for entry in manifest.files)),
    ):
        table.add_row(*row)
    console.print(table)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--build", is_flag=True, help="Also parse and build the graph with NVIDIA's parser and builder.")
@click.option("--json", "as_json", is_flag=True, help="Print data for a script.")
def verify(*, bundle: Path, build: bool, as_json: bool) -> None:
    """Check every byte of BUNDLE against its manifest."""
    opened = open_bundle(bundle)
    total = sum(entry.size for entry in opened.manifest.files)
    done = 0
    with progress_bar(in_bytes=True) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar("hash", done, total)

        problems = verify_bundle(opened, advance)
    if problems:
        if as_json:
            print_json({"sound": False, "problems": [{"path": p.path, "what": p.what} for p in problems]})
        for problem in problems:
            stderr.print(f"  {problem.detail}")
        raise BundleError(
            f"{bundle} is damaged: {', '.join(problem.path for problem in problems)}", hint="copy or export it again"
        )
    result: dict[str, object] = {"sound": True, "files": len(opened.manifest.files), "bytes": total}
    if build:
        result["build"] = _build(opened, quiet=as_json)
    if as_json:
        print_json(result)
    else:
        console.print(f"{bundle} is sound: {len(opened.manifest.files)} files, {bytes_text(total)}")


def _build(bundle: Bundle, *, quiet: bool) -> dict[str, object]:
    raise NotImplementedError
