"""Counts which real-world JSON Schemas are accepted, and how answers are judged, beside plain llguidance.

    scripts/bench schemas [--schemas 1200]

The schemas come from packages on npm and PyPI (`inputs/schema_packages.py`). For each, values are generated and mutated
without knowledge of edgekit, and random answers are generated under the compiled grammar. The package jsonschema judges
all of them, formats too: an invalid one that a grammar accepts is a fault; a valid one that it rejects is a loss.
Values are written as models write them: compact, with blanks, or indented, and with few escapes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import llguidance
from inputs.instances import Instances
from inputs.schema_packages import sample
from jsonschema.exceptions import SchemaError
from llguidance import LLMatcher, LLTokenizer
from quick import parse

from edgekit.errors import EdgekitError
from edgekit.generation.grammar.matcher import Matcher
from edgekit.generation.grammar.vocabulary import Vocabulary
from tests.generation.grammar.kits import Kit, kit, text_of, walk

# Longer values take long and say little.
MAX_CHARS = 4000
LAYOUTS: tuple[dict[str, Any], ...] = ({}, {"separators": (",", ":")}, {"indent": 2})


def edgekit(used: Kit, schema: Any) -> tuple[Callable[[], Matcher] | None, str]:
    """Compile a schema; return None and the reason if it is refused."""
    try:
        return used.schema(schema).matcher, ""
    except EdgekitError as error:
        return None, f"{error.code}: {error.message}"


def plain(used: Kit, schema: Any) -> LLMatcher | None:
    """Compile a schema with llguidance's own reading of it and its own limits."""
    try:
        matcher = LLMatcher(vocabulary(used), LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    except ValueError:
        return None
    matcher.compute_bitmask()
    return None if matcher.is_error() else matcher


@cache
def vocabulary(used: Kit) -> LLTokenizer:
    """The tokenizer's tokens, for llguidance."""
    return Vocabulary(used.tokenizer, vocab_size=used.vocab_size, eos_token_ids=used.eos).trie


def accepts(matcher: Matcher | LLMatcher, tokens: list[int]) -> bool:
    """Whether output may be these tokens."""
    if isinstance(matcher, LLMatcher):
        return bool(matcher.consume_tokens(tokens)) and bool(matcher.is_accepting())
    try:
        for token in tokens:
            matcher.accept(token)
    except EdgekitError:
        return False
    return matcher.accepting


def instances(schema: Any, seed: int, count: int) -> list[tuple[Any, bool, bool]]:
    """Return values, whether they are valid, and whether they would be with types stated; none for a bad schema."""
    try:
        source = Instances(schema, seed)
    except (SchemaError, RecursionError, ValueError, TypeError):
        return []
    drawn = [source.draw() for _ in range(count)]
    return [
        (value, valid, source.is_meant(value))
        for value in [*drawn, *(source.mutate(value) for value in drawn)]
        if (valid := source.is_valid(value)) is not None and len(json.dumps(value)) < MAX_CHARS
    ]


def measure(used: Kit, schema: Any, seed: int, count: int, totals: Counter[tuple[str, str]]) -> list[str]:
    """Add one schema to the totals; return its faults."""
    faults = []
    new, _ = edgekit(used, schema)
    peer = plain(used, schema)
    for name, matcher in (("edgekit", new), ("llguidance", peer)):
        totals[name, "accepted"] += matcher is not None
    totals["edgekit", "alone"] += new is not None and peer is None
    totals["llguidance", "alone"] += peer is not None and new is None
    values = instances(schema, seed, count) if new or peer else []
    for at, (value, valid, meant) in enumerate(values):
        text = json.dumps(value, ensure_ascii=False, **LAYOUTS[at % len(LAYOUTS)])
        tokens = used.tokenizer.encode(text, obey_special=False)
        for name, matcher in (("edgekit", new() if new else None), ("llguidance", peer.deep_copy() if peer else None)):
            if matcher is None:
                continue
            taken = accepts(matcher, tokens)
            totals[name, "valid" if valid else "invalid"] += 1
            totals[name, "valid rejected"] += valid and not taken
            totals[name, "formally valid"] += valid and not meant
            totals[name, "formally valid rejected"] += valid and not meant and not taken
            totals[name, "invalid accepted"] += taken and not valid
            if name == "edgekit" and taken is not valid:
                kind = "INVALID ACCEPTED" if not valid else "valid rejected" if meant else "formally valid rejected"
                faults.append(f"{kind}: {json.dumps(value, ensure_ascii=False)[:300]}")
    if new and values:
        source = Instances(schema, seed)
        for at in range(3):
            try:
                tokens, ended = walk(used, used.schema(schema), seed + at, max_tokens=400, hurry=0.6, forced=False)
            except EdgekitError as error:
                totals["edgekit", "answers failed"] += 1
                faults.append(f"ANSWER FAILED: {error.message[:300]}")
                continue
            if not ended:
                continue
            value = json.loads(text_of(used, tokens))
            if (valid := source.is_valid(value)) is not None:
                totals["edgekit", "answers"] += 1
                totals["edgekit", "answers invalid"] += not valid
                if not valid:
                    faults.append(f"INVALID ANSWER: {json.dumps(value)[:300]}")
    return faults


ROWS = {
    "accepted": "schemas accepted",
    "alone": "accepted by this one alone",
    "invalid": "invalid values under accepted schemas",
    "invalid accepted": "of these accepted",
    "valid": "valid values",
    "valid rejected": "of these rejected",
    "formally valid": "of the valid ones valid only because no `type` is stated",
    "formally valid rejected": "of these rejected",
    "answers": "random answers",
    "answers invalid": "of these invalid",
    "answers failed": "answers that failed",
}


def main() -> int:
    """Measure the sample and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=1200, help="number of schemas (1200)")
    parser.add_argument("--values", type=int, default=12, help="values drawn for a schema; as many are mutated (12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--faults", action="store_true", help="print every rejected valid value, and why schemas are refused"
    )
    options = parse(parser, {"schemas": 40, "values": 4})

    used = kit("byte_level")
    totals: Counter[tuple[str, str]] = Counter()
    schemas = sample(options.schemas, options.seed)
    bad = 0
    for number, (name, schema) in enumerate(schemas):
        faults = measure(used, schema, number, options.values, totals)
        severe = [fault for fault in faults if fault[:6].isupper()]
        bad += len(severe)
        for fault in faults if options.faults else severe:
            print(f"{name}: {fault}", file=sys.stderr)
        if options.faults and (reason := edgekit(used, schema)[1]):
            print(f"{name}: refused: {reason}", file=sys.stderr)
    print(f"{len(schemas)} schemas, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}\n")
    print(f"| | edgekit | llguidance {llguidance.__version__} |\n|---|---|---|")
    for row, title in ROWS.items():
        cells = [
            f"{totals[name, row]:,}"
            if row in {"alone", "accepted"} or name == "edgekit" or not row.startswith("answers")
            else ""
            for name in ("edgekit", "llguidance")
        ]
        print(f"| {title} | {' | '.join(cells)} |")
    share = [totals[name, "valid rejected"] / max(totals[name, "valid"], 1) for name in ("edgekit", "llguidance")]
    print(f"| share of valid values rejected | {share[0]:.2%} | {share[1]:.2%} |")
    meant = [
        (totals[name, "valid rejected"] - totals[name, "formally valid rejected"])
        / max(totals[name, "valid"] - totals[name, "formally valid"], 1)
        for name in ("edgekit", "llguidance")
    ]
    print(f"| the same without those valid only because no `type` is stated | {meant[0]:.2%} | {meant[1]:.2%} |")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
