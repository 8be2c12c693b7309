"""Fetching with the real pip, from a small package index that the test serves on loopback."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from edgekit.errors import EdgekitError, ExportError
from edgekit.export.sources import download as download_module
from edgekit.export.sources import fetch as fetch_module
from edgekit.export.sources.download import RefusedError, download
from edgekit.export.sources.fetch import PinnedFile, WheelPart, fetch
from edgekit.export.sources.wheel_index import download_wheel, wheel_urls
from edgekit.machine import cache_folder


class Index(ThreadingHTTPServer):
    """Serves wheels; it can cut a transfer short, fail, and ignore Range.

    Attributes:
        cut: How many more transfers of a wheel end half-way.
        ranges: Whether Range is honoured.
        status: HTTP status of every wheel for edgekit; 0 serves it.
        sent: Bytes of wheels sent, by range header.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.cut = 0
        self.ranges = True
        self.status = 0
        self.sent: list[tuple[str | None, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("#")[0]
        if path.startswith("/simple/"):
            name = path.split("/")[2].replace("-", "_")
            wheels = sorted(self.server.folder.glob(f"{name}-*.whl"))
            links = "".join(f'<a href="/files/{wheel.name}">{wheel.name}</a>' for wheel in wheels)
            self.reply(200 if wheels else 404, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), {})
            return
        wheel = self.server.folder / path.rsplit("/", 1)[1]
        ours = self.headers.get("User-Agent") == "edgekit"
        if not wheel.exists() or (ours and self.server.status):
            self.reply(self.server.status or 404, b"", {})
            return
        data = wheel.read_bytes()
        requested = self.headers.get("Range")
        headers = {"Accept-Ranges": "bytes"}
        if requested is not None and self.server.ranges:
            first, _, last = requested.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            stop = int(last) + 1 if first and last else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data = data[start:stop]
        self.reply(206 if "Content-Range" in headers else 200, data, headers, ours=ours)

    def reply(self, status: int, data: bytes, headers: dict[str, str], *, ours: bool = False) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Type": "text/html", "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if ours:
            if self.server.cut:
                self.server.cut -= 1
                data = data[: len(data) // 2]
            self.server.sent.append((self.headers.get("Range"), len(data)))
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    """Write a wheel that pip accepts."""
    stem = name.replace("-", "_")
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{stem}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{stem}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{stem}-1.0.dist-info/RECORD", "")
    return path


def pinned(folder: Path, *contents: bytes) -> PinnedFile:
    """Make one wheel for each content, and the pins of the file that they form."""
    parts = []
    for number, data in enumerate(contents, 1):
        member = f"data/part{number}.bin"
        wheel = make_wheel(folder, f"tiny-part{number}", {member: data, "data/other": b"x" * 1000})
        parts.append(
            WheelPart(
                package=f"tiny-part{number}",
                version="1.0",
                member=member,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                wheel_size=wheel.stat().st_size,
                wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            )
        )
    data = b"".join(contents)
    return PinnedFile("tiny.bin", len(data), hashlib.sha256(data).hexdigest(), tuple(parts))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The only index that pip uses, and an empty cache."""
    for key in [key for key in os.environ if key.startswith(("PIP_", "pip_"))]:
        monkeypatch.delenv(key)
    (tmp_path / "wheels").mkdir()
    with Index(tmp_path / "wheels") as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for key, value in {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{server.url}/simple",
            "PIP_NO_CACHE_DIR": "1",
            "NO_PROXY": "127.0.0.1",
            "EDGEKIT_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(download_module, "_PAUSE_S", 0.0)
        yield server
        server.shutdown()


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network or pip was used")

    monkeypatch.setattr(fetch_module, "wheel_urls", refuse)
    monkeypatch.setattr(fetch_module, "download", refuse)
    monkeypatch.setattr(fetch_module, "download_wheel", refuse)


A, B = os.urandom(300_000), os.urandom(200_000)


def test_a_file_is_found_by_pip_fetched_verified_and_then_needs_no_network(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pinned(index.folder, A)
    seen: list[tuple[str, int, int | None]] = []
    path = fetch(file, lambda *report: seen.append(report))
    assert path.read_bytes() == A
    assert cache_folder() in path.parents
    total = file.parts[0].wheel_size
    assert seen[-1] == ("download tiny.bin", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "tiny.bin"]
    no_network(monkeypatch)
    assert fetch(file) == path


def test_parts_are_put_together_in_order(index: Index) -> None:
    assert fetch(pinned(index.folder, A, B, b"end")).read_bytes() == A + B + b"end"


def test_a_dropped_download_resumes_where_it_broke(index: Index) -> None:
    file = pinned(index.folder, A)
    index.cut = 2
    assert fetch(file).read_bytes() == A
    size = file.parts[0].wheel_size
    half, quarter = size // 2, (size - size // 2) // 2
    rest = size - half - quarter
    assert index.sent == [(None, half), (f"bytes={half}-", quarter), (f"bytes={half + quarter}-", rest)]


def test_the_next_run_resumes_an_interrupted_one(index: Index) -> None:
    file = pinned(index.folder, A, B)

    def interrupt(_: str, done: int, __: int | None) -> None:
        if done > file.parts[0].wheel_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(file, interrupt)
    index.sent.clear()
    assert fetch(file).read_bytes() == A + B
    assert sum(size for _, size in index.sent) < file.parts[1].wheel_size


def test_a_server_that_cannot_resume_sends_the_full_file_again(index: Index) -> None:
    index.cut, index.ranges = 1, False
    file = pinned(index.folder, A)
    assert fetch(file).read_bytes() == A
    assert index.sent[-1][1] == file.parts[0].wheel_size


def test_a_wheel_with_another_hash_is_deleted_and_never_used(index: Index) -> None:
    file = pinned(index.folder, A)
    make_wheel(index.folder, "tiny-part1", {"data/part1.bin": A[::-1], "data/other": b"x" * 1000})
    with pytest.raises(ExportError, match="SHA-256 differs; it was deleted") as caught:
        fetch(file)
    assert caught.value.code == "hash_mismatch"
    folder = cache_folder() / "models" / file.sha256[:16]
    assert [entry.stat().st_size for entry in folder.iterdir() if entry.name != ".lock"] in ([], [0])
    (index.folder / "tiny_part1-1.0-py3-none-any.whl").unlink()
    assert fetch(pinned(index.folder, A)).read_bytes() == A


def test_a_longer_file_than_pinned_is_refused(index: Index) -> None:
    file = pinned(index.folder, A)
    make_wheel(index.folder, "tiny-part1", {"data/part1.bin": A + B})
    with pytest.raises(ExportError, match="sent more than"):
        fetch(file)


@pytest.mark.parametrize("change", ["member", "sha256", "size"])
def test_a_member_that_is_not_the_pinned_one_is_refused(index: Index, change: str) -> None:
    file = pinned(index.folder, A)
    part = file.parts[0]
    values = {name: getattr(part, name) for name in WheelPart.__slots__}
    values[change] = {"member": "data/none", "sha256": "0" * 64, "size": part.size - 1}[change]
    with pytest.raises(ExportError, match=r"no readable `data/none`|SHA-256 differs"):
        fetch(PinnedFile(file.name, file.size, file.sha256, (WheelPart(**values),)))
    assert fetch(file).read_bytes() == A


def test_without_network_the_error_says_that_once_fetched_it_works_offline(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pinned(index.folder, A)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ExportError, match=r"pip cannot find tiny-part1==1\.0") as caught:
        fetch(file)
    assert "offline" in str(caught.value.hint)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("status", "message"), [(404, "answers HTTP 404"), (503, "cannot be reached")])
def test_a_server_that_fails_is_named_in_one_line(index: Index, status: int, message: str, tmp_path: Path) -> None:
    pinned(index.folder, A)
    index.status = status
    url = f"{index.url}/files/tiny_part1-1.0-py3-none-any.whl"
    with pytest.raises(ExportError, match=message) as caught:
        download(url, tmp_path / "x.part", 1000, lambda _: None)
    assert "127.0.0.1" in caught.value.message
    assert "\n" not in caught.value.message


def test_where_a_server_wants_credentials_pip_downloads(index: Index, tmp_path: Path) -> None:
    file = pinned(index.folder, A)
    index.status = 401
    with pytest.raises(RefusedError):
        download(f"{index.url}/files/tiny_part1-1.0-py3-none-any.whl", tmp_path / "x.part", 1000, lambda _: None)
    assert fetch(file).read_bytes() == A
    assert not index.sent


def test_a_local_folder_of_wheels_serves_as_well(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    file = pinned(index.folder, A)
    assert wheel_urls(["tiny-part1==1.0"])["tiny-part1==1.0"].startswith("file://")
    assert fetch(file).read_bytes() == A


def test_pip_downloads_a_wheel_by_itself(index: Index, tmp_path: Path) -> None:
    pinned(index.folder, A)
    wheel = download_wheel("tiny-part1==1.0", tmp_path)
    assert wheel.read_bytes() == (index.folder / wheel.name).read_bytes()


def test_three_processes_at_once_fetch_it_once(index: Index) -> None:
    file = pinned(index.folder, A, B)
    program = f"from edgekit.export.sources.fetch import *\nprint(fetch({file!r}))"
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == A + B
    assert sum(size for _, size in index.sent) == sum(part.wheel_size for part in file.parts)


def test_a_full_disk_is_reported_before_the_download(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pinned(index.folder, A)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ExportError, match="has 0 MB free") as caught:
        fetch(file)
    assert (caught.value.code, index.sent) == ("disk_full", [])


def test_a_disk_that_fills_up_meanwhile_is_one_line(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pinned(index.folder, A)

    class Full:
        def __enter__(self) -> object:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing is open."""

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download_module, "open_unlinked", lambda *_: Full())
    with pytest.raises(ExportError, match="no space left on the disk") as caught:
        fetch(file)
    assert "EDGEKIT_CACHE" in str(caught.value.hint)


@pytest.mark.parametrize("name", [".lock", "tiny.bin.partial", "tiny-part1-1.0.whl.part"])
def test_a_link_in_the_cache_is_refused_and_its_target_neither_written_nor_truncated(
    index: Index, tmp_path: Path, name: str
) -> None:
    file = pinned(index.folder, A)
    folder = tmp_path / "cache" / "models" / file.sha256[:16]
    folder.mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"mine")
    (folder / name).symlink_to(tmp_path / "precious")
    with pytest.raises(ExportError, match="it is a link"):
        fetch(file)
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_cache_that_cannot_be_written_is_one_line(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ExportError, match="cannot be written") as caught:
        fetch(pinned(index.folder, A))
    assert "EDGEKIT_CACHE" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"EDGEKIT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/edgekit"),
        ({"HOME": "/c"}, "/c/Library/Caches/edgekit" if sys.platform == "darwin" else "/c/.cache/edgekit"),
    ],
)
def test_the_cache_is_where_the_user_or_the_system_wants_it(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: str
) -> None:
    for name in ("EDGEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not an address that edgekit can fetch from"):
        download("ftp://host/x.whl", tmp_path / "x", 10, print)


def test_without_pip_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.export.sources.wheel_index.find_spec", lambda _: None)
    with pytest.raises(EdgekitError, match="needs `pip`") as caught:
        wheel_urls(["tiny-part1==1.0"])
    assert "edgekit-llm[export]" in str(caught.value.hint)
