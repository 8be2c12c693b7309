"""Checks what linters do not: retired words in code and documents, links between documents, decisions in the index.

Links may be inline, by reference (`[text][label]`) or in HTML tags (`href`, `src`, `srcset`).

`python scripts/check_texts.py` prints `file:line: what is wrong` and exits with 1 if anything is. The retired words are
in `scripts/vocabulary.txt`; CHANGELOG.md and docs/decisions/ may use them, as they tell history.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = Path(__file__).with_name("vocabulary.txt")
CHECKED = {".py", ".md", ".c", ".h", ".sh", ".toml", ".yaml", ".yml", ".service", ".plist", ".txt", ""}
HISTORY = ("CHANGELOG.md", "docs/decisions/")

_FENCE = re.compile(r"^(`{3,}|~{3,}).*?(?:^\1|\Z)", re.MULTILINE | re.DOTALL)
# It ends in the paragraph that it begins in.
_CODE = re.compile(r"(?<!`)(`+)(?!`)(?:(?!\n[ \t]*\n).)+?(?<!`)\1(?!`)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# A target ends at a space, after which a title may follow, or stands in angle brackets.
_TARGET = r"(?:<(?P<bracketed>[^<>\n]*)>|(?P<bare>[^\s()<>]+))"
_INLINE = re.compile(rf"\]\(\s*{_TARGET}(?:\s+[\"'(][^\n]*?[\"')])?\s*\)")
_DEFINITION = re.compile(rf"^ {{0,3}}\[(?P<label>(?!\^)[^\[\]]+)\]:[ \t]*\n?[ \t]*{_TARGET}", re.MULTILINE)
# `[text][label]`, `[label][]`, and `[![image](file)][label]`, whose text is not needed.
_REFERENCE = re.compile(r"(?:\[(?P<text>[^\[\]]*))?\]\[(?P<label>[^\[\]]*)\]")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)
_LINK_ATTRIBUTES = {"href", "src", "srcset"}


@dataclass(frozen=True)
class Retired:
    """A pattern that must not be found.

    Attributes:
        pattern: Matched case-sensitively if it has an upper-case letter.
        instead: What to write.
    """

    pattern: re.Pattern[str]
    instead: str


def read_vocabulary(text: str) -> list[Retired]:
    """Read lines of the form `pattern -> what to write instead`; `#` begins a comment.

    A pattern is a regular expression between word boundaries, where an underscore bounds a word too: `knob` is found in
    `make_knob`, and not in `doorknob`.
    """
    found = []
    for line in text.splitlines():
        stripped = line.partition("#")[0].strip()
        if not stripped:
            continue
        pattern, arrow, instead = (part.strip() for part in stripped.partition("->"))
        if not (pattern and arrow and instead):
            raise ValueError(f"not of the form `pattern -> instead`: {line}")
        flags = 0 if pattern != pattern.lower() else re.IGNORECASE
        found.append(Retired(re.compile(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", flags), instead))
    return found


def retired_words(name: str, text: str, vocabulary: list[Retired]) -> Iterator[str]:
    """Yield a complaint for each retired word of a file."""
    for number, line in enumerate(text.splitlines(), 1):
        for entry in vocabulary:
            if match := entry.pattern.search(line):
                yield f"{name}:{number}: `{match[0]}` is retired; write {entry.instead}"


class _Tags(HTMLParser):
    """Collects the links and the anchors of a document's HTML tags."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.links: list[tuple[int, str]] = []
        self.anchors: set[str] = set()
        self.feed(markdown)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value or "")
            elif name in _LINK_ATTRIBUTES:
                # A `srcset` lists files, each with a width or a density.
                entries = (value or "").split(",") if name == "srcset" else [value or ""]
                self.links += [(self.getpos()[0], (entry.split() or [""])[0]) for entry in entries]


def _prose(markdown: str) -> str:
    """The text with code and comments blanked; every line keeps its number."""
    for pattern in (_FENCE, _COMMENT, _CODE):
        markdown = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), markdown)
    return markdown


def anchors(markdown: str) -> set[str]:
    """Return a document's anchors: those that GitHub gives its headings, and those of its HTML tags."""
    found: dict[str, int] = {}
    result = _Tags(_prose(markdown)).anchors
    for heading in _HEADING.findall(_FENCE.sub("", markdown)):
        plain = re.sub(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        seen = found.get(anchor, 0)
        found[anchor] = seen + 1
        result.add(anchor if not seen else f"{anchor}-{seen}")
    return result


def _label(text: str) -> str:
    """The form in which labels of reference links are compared."""
    return " ".join(text.split()).casefold()


def _links(prose: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the target of each link: inline, of a reference's definition, or in an HTML tag."""
    for match in (*_INLINE.finditer(prose), *_DEFINITION.finditer(prose)):
        target = match["bare"] if match["bracketed"] is None else match["bracketed"]
        yield prose.count("\n", 0, match.start(match.lastgroup or 0)) + 1, target
    yield from _Tags(prose).links


def broken_links(path: Path) -> Iterator[str]:
    """Yield a complaint for each link of a document that leads nowhere in the repository."""
    prose = _prose(path.read_text(encoding="utf-8"))
    complaints = [(line, complaint) for line, link in _links(prose) if (complaint := _complaint(path, link))]
    defined = {_label(match["label"]) for match in _DEFINITION.finditer(prose)}
    for match in _REFERENCE.finditer(prose):
        label = match["label"] or match["text"] or ""
        if _label(label) and _label(label) not in defined:
            complaints.append((prose.count("\n", 0, match.start()) + 1, f"no line defines [{label}]: TARGET"))
    for line, complaint in sorted(complaints, key=lambda found: found[0]):
        yield f"{path.relative_to(ROOT)}:{line}: {complaint}"


def _complaint(path: Path, link: str) -> str | None:
    """What is wrong with a link of the document at `path`; None if nothing is, or if it names a host."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", link):
        return None
    target, _, anchor = link.partition("#")
    name = unquote(target.partition("?")[0])
    # As on GitHub: a leading slash is the repository's root.
    file = (ROOT / name.lstrip("/") if name.startswith("/") else path.parent / name).resolve() if name else path
    if not file.exists() or not file.is_relative_to(ROOT.resolve()):
        return f"the link to {link} leads nowhere"
    if anchor and file.suffix == ".md" and unquote(anchor) not in anchors(file.read_text(encoding="utf-8")):
        return f"{target or path.name} has no heading #{anchor}"
    return None


def decisions_complaints(folder: Path) -> Iterator[str]:
    """Yield a complaint for each decision that lacks a heading, or its line in the index."""
    index = (folder / "README.md").read_text(encoding="utf-8")
    for path in sorted(folder.glob("[0-9]*.md")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        for heading in ("Context", "Decision", "Consequences"):
            if f"\n## {heading}\n" not in text:
                yield f"{name}:1: has no heading `{heading}`"
        if f"({path.name})" not in index:
            yield f"{name}:1: is not in the index, {(folder / 'README.md').relative_to(ROOT)}"


def main() -> int:
    """Print every complaint; return the exit status."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    vocabulary = read_vocabulary(VOCABULARY.read_text(encoding="utf-8"))
    complaints: list[str] = []
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_symlink() or not path.is_file() or path.suffix not in CHECKED or path == VOCABULARY:
            continue
        if not name.startswith(HISTORY) and path.name != "LICENSE":
            complaints += retired_words(name, path.read_text(encoding="utf-8"), vocabulary)
        if path.suffix == ".md":
            complaints += broken_links(path)
    complaints += decisions_complaints(ROOT / "docs" / "decisions")
    print(*complaints, sep="\n", end="\n" if complaints else "")  # noqa: T201
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
