"""Takes an engine that another device of the same kind built: from a folder, or over ssh from its store.

First `find_offer` reads which engine the source has, then `fetch_engine` copies it.

Over ssh the system's `ssh` is used, with the user's configuration, keys and prompts; the other device needs a POSIX
shell and nothing else. What arrives is verified before it is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekit.errors import RunnerError
from edgekit.runners.tensorrt.engine_set import (
    ENGINE_JSON,
    EngineSet,
    parse_engine_set,
    read_engine_set,
    write_engine_set,
)
from edgekit.runners.tensorrt.store import Wanted
from edgekit.runners.tensorrt.troubles import write_failed

__all__ = ["Offer", "fetch_engine", "find_offer", "is_host"]

_CHUNK = 1 << 20
_MAX_LISTING = 64 << 20
_HERE = "build it here: edgekit build BUNDLE"
_HOST = re.compile(r"[^\s@/-][^\s@/]*@[^\s@/-][^\s@/]*")
_END_S = 20.0
_NO_CONNECTION = 255
_OPTIONS = ("-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15")

# The stores of the user and of the service.
_LIST = r"""
for cache in "${EDGEKIT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgekit}" /var/cache/edgekit; do
  for file in "$cache"/engines/*/engine.json; do
    if [ -f "$file" ] && [ -r "$file" ]; then
      printf '%s\0' "${file%/engine.json}"; cat "$file"; printf '\0'
    fi
  done
done
"""


@dataclass(frozen=True, slots=True)
class Offer:
    """The engine that a source has.

    Attributes:
        source: The source, as the user named it.
        place: The engine's folder, there.
        engine: Its description; its files may be damaged.
    """

    source: str
    place: str
    engine: EngineSet


def is_host(text: str) -> bool:
    """Whether a source is `user@host` and not a folder."""
    return _HOST.fullmatch(text) is not None and not Path(text).exists()


def find_offer(source: str, wanted: Wanted) -> Offer:
    """Return the engine of a source that is wanted; of several, the one with the longest context.

    Args:
        source: A folder with an engine, or `user@host`, whose store is searched.
        wanted: The engine.

    Raises:
        RunnerError: There is no such source, it cannot be read, or it has no such engine.
    """
    if is_host(source):
        return _find(source, wanted)
    if not Path(source).is_dir():
        raise RunnerError(
            f"there is no folder {source}",
            hint=f"name the folder that has {ENGINE_JSON}, or user@host for a device's own engines; or {_HERE}",
        )
    engine = read_engine_set(Path(source))
    if (difference := wanted.difference(engine)) is not None:
        raise RunnerError(f"the engine in {source} is not for this bundle and device: {difference}", hint=_HERE)
    for segment in engine.segments:
        # A link could point at anything.
        if (Path(source) / segment.file).is_symlink():
            raise RunnerError(f"{Path(source) / segment.file} is a link", hint="copy the engine itself")
    return Offer(source, source, engine)


def fetch_engine(offer: Offer, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Copy an engine into an empty folder.

    Args:
        offer: From `find_offer`.
        folder: Where to write it.
        progress: Called with the bytes copied and in total.

    Raises:
        RunnerError: It cannot be read or written, or it is damaged.
    """
    source, place, engine = offer.source, offer.place, offer.engine
    if is_host(source):
        files = " ".join(shlex.quote(segment.file) for segment in engine.segments)
        with _ssh(source, f"cd {shlex.quote(place)} && cat {files}\n") as stream:
            _copy(lambda _: nullcontext(stream), engine, folder, source, progress)
    else:
        _copy(lambda name: (Path(place) / name).open("rb"), engine, folder, source, progress)
    write_engine_set(folder, engine)


def _copy(
    opened: Callable[[str], AbstractContextManager[IO[bytes]]],
    engine: EngineSet,
    folder: Path,
    source: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    done = 0
    for segment in engine.segments:
        digest, rest = hashlib.sha256(), segment.size
        try:
            with opened(segment.file) as stream, (folder / segment.file).open("xb") as write:
                while rest and (data := stream.read(min(rest, _CHUNK))):
                    digest.update(data)
                    write.write(data)
                    rest -= len(data)
                    done += len(data)
                    if progress is not None:
                        progress(done, engine.size)
                write.flush()
                os.fsync(write.fileno())
        except OSError as error:
            raise write_failed(f"copying {segment.file} from {source} failed", error) from error
        if rest or digest.hexdigest() != segment.sha256:
            raise RunnerError(
                f"{segment.file} from {source} is damaged: it has not the size and SHA-256 of {ENGINE_JSON}",
                hint=f"copy it again, or {_HERE}",
            )


def _find(host: str, wanted: Wanted) -> Offer:
    """The engine in a host's stores."""
    with _ssh(host, _LIST) as stream:
        parts = stream.read(_MAX_LISTING).split(b"\0")
    found, differences = [], []
    for place, text in zip(parts[::2], parts[1::2], strict=False):
        try:
            engine = parse_engine_set(text, f"{host}:{os.fsdecode(place)}")
        except RunnerError:
            continue
        difference = wanted.difference(engine)
        if difference is None:
            found.append(Offer(host, os.fsdecode(place), engine))
        else:
            differences.append(difference)
    if found:
        return max(found, key=lambda offer: offer.engine.context_length)
    raise RunnerError(
        f"{host} has no engine for this bundle and device"
        + (f" ({len(differences)} others; of the last, {differences[-1]})" if differences else ""),
        hint=f"build it there, with the same bundle: edgekit build BUNDLE; or {_HERE}",
    )


@contextmanager
def _ssh(host: str, script: str) -> Iterator[IO[bytes]]:
    """Run a script of the POSIX shell on a host and yield its output."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as commands:
        commands.write(script.encode("utf-8", "surrogateescape"))
        commands.seek(0)
        try:
            process = subprocess.Popen(  # noqa: S603  the user's own ssh
                ["ssh", *_OPTIONS, "--", host, "sh -s"],  # noqa: S607
                stdin=commands,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except OSError as error:
            raise RunnerError(f"ssh cannot be started: {error.strerror}", hint="apt install openssh-client") from error
        assert process.stdout is not None  # noqa: S101  a pipe, see above
        try:
            yield process.stdout
            _end(host, process.stdout)
            process.wait(_END_S)
        except RunnerError:
            process.stdout.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            # Of a connection that fails, the reason says more than that something is missing.
            if process.returncode == _NO_CONNECTION:
                raise _unreachable(host, errors) from None
            raise
        except subprocess.TimeoutExpired as error:
            raise RunnerError(f"the connection to {host} does not end") from error
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if process.returncode == _NO_CONNECTION:
            raise _unreachable(host, errors)


def _end(host: str, stream: IO[bytes]) -> None:
    if stream.read(1):
        raise RunnerError(f"{host} sends more than was asked for")


def _unreachable(host: str, errors: IO[bytes]) -> RunnerError:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return RunnerError(
        f"{host} cannot be reached by ssh: {lines[-1] if lines else 'no reason given'}", hint=f"try: ssh {host}"
    )
