"""`edgekit optimum`: the environment that `edgekit export --exporter optimum` needs."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.console import console, stderr
from edgekit.cli.termination import clean_up_when_terminated

__all__ = ["optimum"]


@click.group()
def optimum() -> None:
    """Manage the environment in which Optimum exports architectures that edgekit does not support itself."""


@optimum.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Target folder [edgekit's cache].")
@click.option(
    "--extra-index-url",
    "urls",
    multiple=True,
    metavar="URL",
    help="Additional package index. On Linux PyPI's torch is a CUDA build of gigabytes; "
    "https://download.pytorch.org/whl/cpu has the CPU build.",
)
def install(*, folder: Path | None, urls: tuple[str, ...]) -> None:
    """Install Optimum, torch and transformers into a separate environment and print the path of its Python."""
    from edgekit.export.optimum import env

    clean_up_when_terminated()

    python = env.install(folder or env.default_folder(), extra_index_urls=urls)
    console.print(str(python))
    if folder is not None and console.is_terminal:
        stderr.print(f"\nto use it: export {env.VARIABLE}={python}")
