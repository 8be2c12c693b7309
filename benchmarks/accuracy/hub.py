"""Fetches C-Eval or MMLU from the Hugging Face hub, as a file of questions.

    hub.py ceval|mmlu FILE [SOURCE]

It runs in the environment that has `datasets`. SOURCE is another repository, or a folder with a copy of it. C-Eval's
split `val` becomes `test`: the answers to its own `test` are not published. $HF_ENDPOINT names a mirror, $HF_TOKEN a
token. An error is printed on stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
from questions import Question, from_ceval, from_mmlu, write

_SOURCES = {"ceval": "ceval/ceval-exam", "mmlu": "cais/mmlu"}


def main() -> None:
    """Fetch, convert and write."""
    name, file, *source = sys.argv[1:]
    datasets.disable_progress_bars()
    convert = {"ceval": _ceval, "mmlu": _mmlu}[name]
    try:
        questions = list(convert(source[0] if source else _SOURCES[name]))
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0])
        sys.exit(1)
    write(Path(file), questions)


def _ceval(source: str) -> Iterator[Question]:
    for subject in datasets.get_dataset_config_names(source):
        for split, theirs in (("dev", "dev"), ("test", "val")):
            for row in datasets.load_dataset(source, subject, split=theirs):
                yield from_ceval(row, subject, split)


def _mmlu(source: str) -> Iterator[Question]:
    for split in ("dev", "test"):
        for row in datasets.load_dataset(source, "all", split=split):
            yield from_mmlu(row, split)


if __name__ == "__main__":
    main()
