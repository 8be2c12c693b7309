"""Terminals, pipes and accounts as they are: other encodings, full and closed streams, no home folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import Export, edgekit_command
from tests.models import tiny_checkpoint

LATIN1 = "Où est Besançon?".encode("latin-1")


def run(
    arguments: Sequence[str | Path | bytes],
    *,
    script: str = 'exec "$@"',
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run edgekit through a shell that redirects its streams; there is never a traceback."""
    command: list[str | bytes] = [*edgekit_command(), *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    environment = {key: value for key, value in {**os.environ, **(env or {})}.items() if key not in without}
    done = subprocess.run(
        ["/bin/bash", "-c", script, "bash", *command],
        input=stdin, capture_output=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    for word in (b"Traceback", b"Exception ignored", b"UnicodeEncodeError"):
        assert word not in done.stderr, done.stderr.decode(errors="replace")
    return done


def test_latin_1_on_standard_input_is_refused_with_the_command_that_converts_it(export: Export) -> None:
    done = run(["run", export("cpu"), "-", "--max-tokens", "2"], stdin=LATIN1)
    assert done.returncode == 2
    assert b"standard input is not UTF-8: byte 2 is 0xf9\n\nhint: convert it: iconv -f latin1 -t utf-8" in done.stderr
    assert done.stdout == b""
    # In a terminal of that encoding it is what was typed.
    done = run(["run", export("cpu"), "--max-tokens", "2"], stdin=LATIN1, env={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0


def test_latin_1_in_an_argument_is_refused(export: Export) -> None:
    done = run(["run", export("cpu"), LATIN1])
    assert (done.returncode, b"error: the prompt is not UTF-8" in done.stderr) == (2, True)
    done = run(["run", export("cpu"), "hi", "--system", LATIN1])
    assert (done.returncode, b"error: the system message is not UTF-8" in done.stderr) == (2, True)
    assert run(["ask", LATIN1]).returncode == 2
    assert run(["export", LATIN1, "-t", "cpu"]).returncode == 1
    assert run(["info", LATIN1]).returncode == 1


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_prompt(export: Export) -> None:
    outputs = [
        run(["run", export("cpu"), "-", "--max-tokens", "8"], stdin=text).stdout
        for text in (b"Count to\nten", b"\xef\xbb\xbfCount to\r\nten")
    ]
    assert outputs[0] == outputs[1] != b""


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_characters_that_the_terminal_lacks_are_replaced(export: Export, env: dict[str, str], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle-\N{ROCKET}"
    bundle.symlink_to(export("cpu"))
    question = "Repeat these: \N{ROCKET} \N{CJK UNIFIED IDEOGRAPH-4E2D} \N{ROCKET} \N{CJK UNIFIED IDEOGRAPH-4E2D}"
    done = run(["run", bundle, question, "--max-tokens", "30"], env=env)
    assert done.returncode == 0, done.stderr
    others: list[list[str | Path]] = [["info", bundle], ["verify", bundle], ["doctor"], ["models"], ["run", "--help"]]
    for arguments in others:
        assert run(arguments, env=env).returncode in {0, 1}, arguments


@pytest.mark.parametrize(
    "arguments", [["models"], ["models", "--json"], ["--help"], ["targets", "orin"], ["run", "{bundle}", "hi"]]
)
@pytest.mark.parametrize(("script", "status"), [('exec "$@" >/dev/full', 1), ('exec "$@" >&-', 0)])
def test_a_full_or_closed_standard_output_is_one_line(
    export: Export, arguments: list[str], script: str, status: int
) -> None:
    done = run([word.format(bundle=export("cpu")) for word in arguments], script=script)
    assert done.returncode == status
    if status:
        assert done.stderr.splitlines()[0] == b"error: cannot write the output: No space left on device"


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(export: Export) -> None:
    for arguments in (["models"], ["run", str(export("cpu")), "Tell me a story", "--max-tokens", "60"]):
        done = run(arguments, script='"$@" | true; exit ${PIPESTATUS[0]}')
        assert (done.returncode, done.stderr) == (1, b""), arguments


def test_without_standard_input_a_prompt_is_asked_for(export: Export) -> None:
    done = run(["run", export("cpu")], script='exec "$@" <&-')
    assert (done.returncode, b"error: there is no standard input" in done.stderr) == (2, True)
    done = run(["run", export("cpu"), "-"], script='exec "$@" 0>/dev/null')
    assert (done.returncode, b"error: standard input cannot be read: Bad file descriptor" in done.stderr) == (2, True)
    assert run(["run", export("cpu"), "hi", "--max-tokens", "2"], script='exec "$@" <&- 2>&-').returncode == 0


def test_a_huge_line_is_refused_as_too_long(export: Export) -> None:
    done = run(["run", export("cpu")], stdin=b"word " * 400_000)
    assert done.returncode == 1
    assert b"tokens; the context holds" in done.stderr


def account(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run edgekit as a user without an entry in /etc/passwd, and with no environment but this.

    The user may read all files, as this Python may be in another one's home folder.
    """
    user = ["setpriv", "--reuid=54321", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    done = subprocess.run(
        [*user, *edgekit_command(*arguments)],
        capture_output=True, text=True, timeout=120, check=False, cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes another user")
def test_an_account_without_a_home_folder_can_do_what_needs_none(export: Export, tmp_path: Path) -> None:
    done = account("doctor")
    assert "there is no folder for downloads: no home folder" in done.stdout
    assert account("models").returncode == 0
    assert account("run", export("cpu"), "Hello", "--max-tokens", "2").returncode == 0
    done = account("export", "smollm2-135m-instruct", "-t", "cpu", "-o", tmp_path / "out")
    assert (done.returncode, "export EDGEKIT_CACHE=FOLDER" in done.stderr) == (2, True)
    done = account("service", "status", "--user")
    assert (done.returncode, "no home folder" in done.stderr) == (2, True)
    assert account("export", "~/model", "-t", "cpu").returncode == 1
    assert account("export", "~no-such-user/model", "-t", "cpu", HOME="/").returncode == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(
        ["export", "smollm2-135m-instruct", "-t", "cpu", "-o", tmp_path / "out"],
        env={"EDGEKIT_CACHE": str(tmp_path / "file/cache")},
    )
    assert done.returncode in {1, 2}
    assert b"EDGEKIT_CACHE" in done.stderr, done.stderr


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(["export", tiny_checkpoint(tmp_path / "model"), "-t", "cpu", "-o", tmp_path / "file/out"])
    assert done.returncode in {1, 2}
    assert b"file" in done.stderr.splitlines()[0]


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    done = run(["export", "nowhere", "-t", "cpu"], script=f'cd {tmp_path}; mkdir x; cd x; rmdir ../x; exec "$@"')
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
