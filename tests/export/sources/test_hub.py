"""The hub as a small server on loopback; the library reads its environment at import, so it runs in a child process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD = "89abcdef0123456789abcdef0123456789abcdef"
REVISIONS = {"main": COMMIT, "v1": OLD, COMMIT: COMMIT, OLD: OLD}
PROGRAM = """
import json, sys
from contextlib import closing
from edgekit.errors import EdgekitError
from edgekit.export.sources.open import open_checkpoint
stages = []
try:
    with closing(open_checkpoint(sys.argv[1], revision=sys.argv[2] or None, report=lambda *a: stages.append(a))) as c:
        size = sum(c.read(name).size for name in c.tensors)
        print(json.dumps({"name": c.name, "id": c.id, "size": size, "licence": c.licence, "stages": len(stages)}))
except EdgekitError as error:
    print(json.dumps({"message": error.message, "hint": error.hint}))
"""


class Hub(BaseHTTPRequestHandler):
    """The repositories `org/Tiny`, `org/Private` (the same, behind a token) and `org/gated`.

    Attributes:
        folders: A commit's files.
        requests: Method, path, `Authorization` and `Range` of every request.
        cut: Bytes after which the next response with this file's body breaks off, by file name.
        failing: Files that the server refuses.
        more: Further repositories: the files of `org/NAME`.
        sent: File name and number of bytes of every response with a file's contents.
    """

    folders: ClassVar[dict[str, Path]]
    requests: ClassVar[list[tuple[str, str, str | None, str | None]]]
    cut: ClassVar[dict[str, int]]
    failing: ClassVar[set[str]]
    more: ClassVar[dict[str, Path]]
    sent: ClassVar[list[tuple[str, int]]]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        token, span = self.headers.get("Authorization"), self.headers.get("Range")
        self.requests.append((self.command, self.path, token, span))
        path = self.path.split("?")[0]
        if "/org/Private" in path or path.startswith("/api/models/org/Private"):
            if token != "Bearer hf_secret":  # noqa: S105  no real one
                self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
                return
            path = path.replace("org/Private", "org/Tiny")
        folders = self.folders
        for name, folder in self.more.items():
            if path.startswith((f"/org/{name}/", f"/api/models/org/{name}/")) or path == f"/api/models/org/{name}":
                path, folders = path.replace(f"org/{name}", "org/Tiny"), dict.fromkeys(self.folders, folder)
        revision = path.removeprefix("/api/models/org/Tiny").removeprefix("/revision/") or "main"
        if path.startswith(("/api/models/org/gated", "/org/gated")):
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
        elif revision in REVISIONS:
            commit = REVISIONS[revision]
            names = [{"rfilename": name} for name in files_below(folders[commit])]
            self.reply(200, json.dumps({"id": "org/Tiny", "sha": commit, "siblings": names}).encode(), {}, body=body)
        elif path.startswith("/api/models/org/Tiny/tree/"):
            commit = REVISIONS[path.split("/")[6]]
            tree = [
                {"type": "file", "path": name, "size": (folders[commit] / name).stat().st_size, "oid": commit}
                for name in files_below(folders[commit])
            ]
            self.reply(200, json.dumps(tree).encode(), {}, body=body)
        elif path.startswith("/api/models/org/Tiny/revision/"):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif path.startswith("/org/Tiny/resolve/"):
            _, _, _, _, commit, name = path.split("/", 5)
            self.file(folders[commit] / name, commit, span, body=body)
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def file(self, path: Path, commit: str, span: str | None, *, body: bool) -> None:
        name = path.name
        if name in self.failing:
            self.reply(403, b"no", {}, body=body)
            return
        if not path.exists():
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        start, _, end = span.removeprefix("bytes=").partition("-") if span else ("0", "", "")
        first, after = int(start), min(int(end) + 1, len(data)) if end else len(data)
        if span:
            headers["Content-Range"] = f"bytes {first}-{after - 1}/{len(data)}"
        stop = self.cut.pop(name, None) if body else None
        if body:
            self.sent.append((name, after - first))
        self.reply(206 if span else 200, data[first:after], headers, body=body, stop=stop)

    def reply(self, status: int, data: bytes, headers: dict[str, str], *, body: bool, stop: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:stop])

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def files_below(folder: Path) -> list[str]:
    """Paths of the files in a repository."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = tiny_checkpoint(tmp_path / "Tiny", layers=1)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "original").mkdir()
    for name in ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors"):
        (folder / name).write_bytes(b"never wanted")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    old = Path(shutil.copytree(folder, tmp_path / "Old"))
    (old / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    Hub.folders = {COMMIT: folder, OLD: old}
    Hub.requests, Hub.cut, Hub.failing, Hub.more, Hub.sent = [], {}, set(), {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def in_process(
    program: str, *arguments: str, endpoint: str, home: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that finds the hub at `endpoint`, with its cache in `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def opened(endpoint: str, home: Path, ref: str = "org/Tiny", revision: str = "", **env: str) -> dict[str, object]:
    done = in_process(PROGRAM, ref, revision, endpoint=endpoint, home=home, **env)
    assert not done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def downloaded() -> list[str]:
    """Names of the files requested since `Hub.requests` was last cleared."""
    return [
        path.split("/resolve/")[1].split("/", 1)[1]
        for method, path, *_ in Hub.requests
        if method == "GET" and "/resolve/" in path
    ]


def weight_bytes() -> int:
    """Bytes of files with weights that were sent."""
    return sum(count for name, count in Hub.sent if name.endswith((".safetensors", ".gguf")))


def test_a_hub_id_is_downloaded_without_pickles_and_read_offline_afterwards(hub: str, tmp_path: Path) -> None:
    first = opened(hub, tmp_path / "home", HF_TOKEN="hf_secret")  # noqa: S106  no real one
    assert first["id"] == f"org/Tiny@{COMMIT}"
    assert (first["name"], first["licence"]) == ("tiny", "MIT")
    assert int(str(first["stages"])) > 0
    assert int(str(first["size"])) > 10_000
    files = downloaded()
    assert "model.safetensors" in files
    assert "additional_chat_templates/tool_use.jinja" in files
    assert not {"pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors"} & set(files)
    assert {token for _, path, token, _ in Hub.requests if "org/" in path} == {"Bearer hf_secret"}
    Hub.requests.clear()
    again = opened(hub, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert (again["id"], again["size"]) == (first["id"], first["size"])
    assert not Hub.requests


def test_a_revision_is_requested(hub: str, tmp_path: Path) -> None:
    newest = opened(hub, tmp_path)
    assert (newest["id"], newest["licence"]) == (f"org/Tiny@{COMMIT}", "MIT")
    found = opened(hub, tmp_path, revision="v1")
    assert (found["id"], found["licence"]) == (f"org/Tiny@{OLD}", "Apache-2.0")
    assert opened(hub, tmp_path, revision="nope")["message"] == "org/Tiny has no revision `nope`"
    Hub.requests.clear()
    assert opened(hub, tmp_path, revision=OLD, HF_HUB_OFFLINE="1")["id"] == f"org/Tiny@{OLD}"
    assert not Hub.requests


def test_a_private_model_needs_the_token_of_the_environment(hub: str, tmp_path: Path) -> None:
    refused = opened(hub, tmp_path, "org/Private")
    assert "or it is private" in str(refused["message"])
    assert "HF_TOKEN" in str(refused["hint"])
    assert {token for _, _, token, _ in Hub.requests} == {None}
    assert opened(hub, tmp_path, "org/Private", HF_TOKEN="hf_secret")["id"] == f"org/Private@{COMMIT}"  # noqa: S106


def test_a_download_that_is_cut_resumes_where_it_stopped(hub: str, tmp_path: Path) -> None:
    # The library resumes in steps of 10 MiB: the file is larger, and cut after the first.
    step = 10 << 20
    save_file({"big": np.ones(3 << 20, np.float32)}, Hub.folders[COMMIT] / "model-00001-of-00002.safetensors")
    (Hub.folders[COMMIT] / "model.safetensors").rename(Hub.folders[COMMIT] / "model-00002-of-00002.safetensors")
    Hub.cut = {"model-00001-of-00002.safetensors": step + 70_000}
    found = opened(hub, tmp_path)
    assert int(str(found["size"])) > 3 << 20
    assert not Hub.cut
    spans = [
        span for method, path, _, span in Hub.requests if method == "GET" and path.endswith("1-of-00002.safetensors")
    ]
    assert spans == [None, f"bytes={step}-"]


def test_a_download_that_failed_continues_with_the_missing_files(hub: str, tmp_path: Path) -> None:
    Hub.failing = {"model.safetensors"}
    failed = opened(hub, tmp_path)
    assert "org/Tiny cannot be downloaded" in str(failed["message"])
    assert "tokenizer.json" in downloaded()
    Hub.requests.clear()
    Hub.failing = set()
    assert opened(hub, tmp_path)["id"] == f"org/Tiny@{COMMIT}"
    assert downloaded() == ["model.safetensors"]


@pytest.mark.parametrize(
    ("ref", "message", "hint"),
    [
        ("org/absent", "the hub has no model org/absent", "HF_TOKEN"),
        ("org/gated", "its terms must be accepted", "HF_TOKEN"),
    ],
)
def test_a_model_that_cannot_be_downloaded_is_refused_with_a_hint(
    hub: str, tmp_path: Path, ref: str, message: str, hint: str
) -> None:
    found = opened(hub, tmp_path, ref)
    assert message in str(found["message"])
    assert hint in str(found["hint"])


def test_a_repository_without_configuration_is_refused_with_a_hint(hub: str, tmp_path: Path) -> None:
    (Hub.folders[COMMIT] / "config.json").unlink()
    found = opened(hub, tmp_path)
    assert found["message"] == "org/Tiny has no config.json"
    assert "GGUF" in str(found["hint"])


def test_a_model_that_is_not_cached_when_offline_is_a_one_line_error(tmp_path: Path) -> None:
    found = opened("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert str(found["message"]).startswith("org/Tiny cannot be downloaded: ")
    assert "\n" not in str(found["message"])
