"""The folder in which a bundle is written: next to its final place, and renamed at the end.

A failure or Ctrl-C therefore leaves nothing behind. `--force` replaces a bundle, and only if every file in its folder
is the bundle's.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.bundle.bundle import foreign_entries, open_bundle
from edgekit.errors import BundleError, ConfigError, ExportError, option

__all__ = ["check_output", "staging_folder"]


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output folder whose replacement would lose anything but a bundle.

    Args:
        output: Must not exist, or be an empty folder, unless `force`.
        force: Also accept a bundle that contains nothing else.

    Raises:
        ConfigError: It is something else.
    """
    try:
        if not output.exists() and not output.is_symlink():
            return
        if output.is_symlink():
            raise ConfigError(f"{output} is a link", hint=f"let {option('output')} name the folder itself")
        if output.is_dir() and not any(output.iterdir()):
            return
        if not force:
            raise ConfigError(
                f"{output} already exists",
                hint=f"choose another {option('output')}, or replace it with {option('force', value=True)}",
            )
        try:
            foreign = foreign_entries(open_bundle(output))
        except BundleError as error:
            raise ConfigError(
                f"{output} is not a bundle; {option('force', value=True)} replaces only a bundle",
                hint=f"{error.message}; choose another {option('output')}, or remove it yourself",
            ) from error
    except OSError as error:
        raise ConfigError(f"{output} cannot be read: {error.strerror or error}") from error
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ConfigError(
            f"{output} has files that are not the bundle's, which {option('force', value=True)} would delete: "
            f"{foreign[0]}{more}",
            hint=f"move them away, or choose another {option('output')}",
        )


@contextmanager
def staging_folder(output: Path, *, force: bool) -> Iterator[Path]:
    """Create a folder next to `output`; rename it to `output` on success, remove it on any failure.

    Args:
        output: The final place.
        force: As for `check_output`.

    Raises:
        ExportError: It cannot be written, or `output` was created meanwhile; the bundle is then kept under the name
            in the message.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise ExportError(f"cannot write to {output.parent}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        _move_into_place(folder, output, force=force)
    except OSError as error:
        raise ExportError(f"writing {output} failed: {error.strerror or error}", hint="is the disk full?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, output: Path, *, force: bool) -> None:
    try:
        check_output(output, force=force)  # an export takes minutes
    except ConfigError as error:
        kept = Path(tempfile.mkdtemp(prefix=f"{output.name}.", suffix=".new", dir=output.parent))
        folder.rename(kept)
        raise ExportError(f"{error.message}; the new bundle is {kept}", hint=error.hint) from error
    if not output.exists():
        folder.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
    output.replace(old)
    try:
        folder.rename(output)
    except OSError:
        old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
