"""The version tells builds apart: it comes from the tag, the commit and uncommitted changes, or from a build's file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.version import Version

import edgekit
from edgekit import version
from edgekit.version import FILE, NEXT_RELEASE, current_version

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """An empty repository with a folder `edgekit`; calls git in it."""

    def call(*arguments: str) -> str:
        settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "edgekit").mkdir()
    (tmp_path / "edgekit" / "a.py").write_text("0\n")
    call("init", "--quiet")
    call("add", ".")
    return call


def commit(git: Git, count: int = 1) -> str:
    """Make commits, and return the last one's name as the version has it."""
    for _ in range(count):
        git("commit", "--quiet", "--allow-empty", "-m", "x")
    return "g" + git("rev-parse", "--short=8", "HEAD")


def test_without_a_tag_all_commits_are_counted(git: Git, tmp_path: Path) -> None:
    name = commit(git, 3)
    assert current_version(tmp_path / "edgekit") == f"{NEXT_RELEASE}.dev3+{name}"


def test_a_tag_is_the_version_and_what_follows_it_leads_to_the_next(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "NEXT_RELEASE", "0.2.0")
    found = []
    for tag in (None, "v0.2.0rc1", "v0.2.0", "v0.2.1", None):
        for _ in range(2):
            commit(git)
            found.append(current_version(tmp_path / "edgekit"))
        if tag:
            git("tag", tag)
            found.append(current_version(tmp_path / "edgekit"))
    public = [text.partition("+")[0] for text in found]
    assert public == [
        *("0.2.0.dev1", "0.2.0.dev2", "0.2.0.dev3", "0.2.0.dev4", "0.2.0rc1"),
        *("0.2.0rc2.dev1", "0.2.0rc2.dev2", "0.2.0"),
        *("0.2.1.dev1", "0.2.1.dev2", "0.2.1"),
        *("0.2.2.dev1", "0.2.2.dev2"),
    ]


def test_a_later_commit_has_a_higher_version(git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = []
    for at in range(14):
        commit(git)
        monkeypatch.setattr(version, "NEXT_RELEASE", "0.1.0" if at < 9 else "1.0.0")
        if at in {2, 5, 12}:
            git("tag", {2: "v0.1.0rc1", 5: "v0.1.0", 12: "v1.0.0"}[at])
        versions.append(Version(current_version(tmp_path / "edgekit")))
    assert all(earlier < later for earlier, later in pairwise(versions)), versions


def test_a_planned_release_is_what_development_leads_to(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(git)
    git("tag", "v0.9.9")
    name = commit(git)
    monkeypatch.setattr(version, "NEXT_RELEASE", "0.10.0")
    assert current_version(tmp_path / "edgekit") == f"0.10.0.dev1+{name}"


def test_tags_of_other_forms_are_no_versions(git: Git, tmp_path: Path) -> None:
    name = commit(git)
    for tag in ("nightly", "v1", "v1.2.3-final", "1.2.3"):
        git("tag", tag)
        assert current_version(tmp_path / "edgekit") == f"{NEXT_RELEASE}.dev1+{name}"


def test_uncommitted_changes_show_and_tell_builds_apart(git: Git, tmp_path: Path) -> None:
    commit(git)
    git("tag", "v0.1.0")
    seen = {current_version(tmp_path / "edgekit")}
    for text in ("1\n", "2\n"):
        (tmp_path / "edgekit" / "a.py").write_text(text)
        dirty = current_version(tmp_path / "edgekit")
        assert dirty == current_version(tmp_path / "edgekit")
        assert dirty.startswith("0.1.1.dev0+g")
        assert ".dirty" in dirty
        assert str(Version(dirty)) == dirty
        seen.add(dirty)
    assert len(seen) == 3


def test_a_shallow_clone_does_not_count_what_it_does_not_have(git: Git, tmp_path: Path) -> None:
    name = commit(git, 3)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", tmp_path.as_uri(), str(clone)], check=True)
    assert current_version(clone / "edgekit") == f"{NEXT_RELEASE}.dev0+{name}"


def test_without_git_or_a_repository_of_its_own_the_version_says_so(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(git)
    unknown = f"{NEXT_RELEASE}.dev0+unknown"
    # Sources of edgekit in a folder of another project's repository.
    (tmp_path / "vendored" / "edgekit").mkdir(parents=True)
    assert current_version(tmp_path / "vendored" / "edgekit") == unknown
    monkeypatch.setenv("PATH", str(tmp_path))
    assert current_version(tmp_path / "edgekit") == unknown


def test_a_repository_that_the_environment_names_is_not_ours(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = commit(git)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert current_version(tmp_path / "edgekit") == f"{NEXT_RELEASE}.dev1+{name}"


def test_an_installed_package_reads_its_version_and_starts_no_process(tmp_path: Path) -> None:
    package = tmp_path / "edgekit"
    package.mkdir()
    for name in ("__init__.py", "version.py"):
        (package / name).write_bytes((Path(version.__file__).parent / name).read_bytes())
    (package / FILE).write_text("1.2.3.dev4+g5\n")
    program = "import sys, edgekit; print(edgekit.__version__, 'subprocess' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "1.2.3.dev4+g5 False\n"


def test_edgekit_says_its_version() -> None:
    assert edgekit.__version__ == current_version()
    assert str(Version(edgekit.__version__)) == edgekit.__version__
