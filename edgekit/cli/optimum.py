"""`edgekit optimum`: the environment that `edgekit export --exporter optimum` needs."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.output import console, stderr

__all__ = ["optimum"]


@click.group()
def optimum() -> None:
    """Make the environment in which Optimum exports models that edgekit itself does not know."""


@optimum.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Where [edgekit's cache].")
@click.option(
    "--extra-index-url",
    "urls",
    multiple=True,
    metavar="URL",
    help="Another package index. On Linux PyPI's torch is a CUDA build of gigabytes; "
    "https://download.pytorch.org/whl/cpu has the small one.",
)
def install(*, folder: Path | None, urls: tuple[str, ...]) -> None:
    """Install Optimum, torch and transformers into an environment of their own, and print its python."""
    from edgekit.export.optimum import env

    place = folder or env.default_folder()
    python = env.install(place, extra_index_urls=urls)
    console.print(str(python), markup=False)
    if folder is not None and console.is_terminal:
        stderr.print(f"\nto use it: export {env.VARIABLE}={python}")
