"""The hub, played by a small server on loopback; the library reads its environment at import, so it runs apart."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from tests.models import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import json, sys
from contextlib import closing
from edgekit.errors import EdgekitError
from edgekit.export.checkpoints import open_checkpoint
stages = []
try:
    with closing(open_checkpoint(sys.argv[1], revision=sys.argv[2] or None, report=lambda *a: stages.append(a))) as c:
        size = sum(c.read(name).size for name in c.tensors)
        print(json.dumps({"name": c.name, "id": c.id, "size": size, "licence": c.licence, "stages": len(stages)}))
except EdgekitError as error:
    print(json.dumps({"message": error.message, "hint": error.hint}))
"""


class Hub(BaseHTTPRequestHandler):
    folder: ClassVar[Path]
    asked: ClassVar[list[tuple[str, str, str | None]]]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append((self.command, self.path, self.headers.get("Authorization")))
        path = self.path.split("?")[0]
        if path.startswith(("/api/models/org/gated", "/org/gated")):
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
        elif path in (
            "/api/models/org/Tiny",
            "/api/models/org/Tiny/revision/main",
            f"/api/models/org/Tiny/revision/{COMMIT}",
        ):
            names = [{"rfilename": file.name} for file in self.folder.iterdir()]
            self.reply(200, json.dumps({"id": "org/Tiny", "sha": COMMIT, "siblings": names}).encode(), {}, body=body)
        elif path.startswith("/api/models/org/Tiny/tree/"):
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
                for file in self.folder.iterdir()
            ]
            self.reply(200, json.dumps(tree).encode(), {}, body=body)
        elif path.startswith("/api/models/org/Tiny/revision/"):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif path.startswith(f"/org/Tiny/resolve/{COMMIT}/") and (self.folder / path.rsplit("/", 1)[1]).exists():
            data = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
            tag = hashlib.sha256(data).hexdigest()
            self.reply(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, body=body)
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def reply(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.folder = tiny_checkpoint(tmp_path / "Tiny", layers=1)
    (Hub.folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (Hub.folder / "pytorch_model.bin").write_bytes(b"never wanted")
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def opened(endpoint: str, home: Path, ref: str = "org/Tiny", revision: str = "", **env: str) -> dict[str, object]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ref, revision],
        env={**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_hub_id_is_downloaded_without_pickles_and_read_offline_afterwards(hub: str, tmp_path: Path) -> None:
    first = opened(hub, tmp_path / "home", HF_TOKEN="hf_secret")  # noqa: S106  no real one
    assert first["id"] == f"org/Tiny@{COMMIT}"
    assert (first["name"], first["licence"]) == ("tiny", "MIT")
    assert int(str(first["stages"])) > 0
    assert int(str(first["size"])) > 10_000
    files = [path.rsplit("/", 1)[1] for method, path, _ in Hub.asked if method == "GET" and "/resolve/" in path]
    assert "model.safetensors" in files
    assert "pytorch_model.bin" not in files
    assert {token for _, path, token in Hub.asked if "/resolve/" in path} == {"Bearer hf_secret"}
    Hub.asked.clear()
    again = opened(hub, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert (again["id"], again["size"]) == (first["id"], first["size"])
    assert not Hub.asked


def test_a_revision_is_asked_for(hub: str, tmp_path: Path) -> None:
    assert opened(hub, tmp_path, revision=COMMIT)["id"] == f"org/Tiny@{COMMIT}"
    assert opened(hub, tmp_path, revision="nope")["message"] == "org/Tiny has no revision `nope`"


@pytest.mark.parametrize(
    ("ref", "says", "hint"),
    [("org/absent", "the hub has no model org/absent", "HF_TOKEN"), ("org/gated", "accepted its terms", "HF_TOKEN")],
)
def test_a_model_that_cannot_be_had_is_told_with_what_to_do(
    hub: str, tmp_path: Path, ref: str, says: str, hint: str
) -> None:
    found = opened(hub, tmp_path, ref)
    assert says in str(found["message"])
    assert hint in str(found["hint"])


def test_a_model_that_is_not_in_the_cache_offline_is_one_line(tmp_path: Path) -> None:
    found = opened("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert str(found["message"]).startswith("org/Tiny cannot be downloaded: ")
    assert "\n" not in str(found["message"])
