"""Measure how much of one composed file is already in another.

The measure is the share of the word n-grams (lower-cased, within one document) of the
fresh file that also occur somewhere in the other one.

Run: ``python training/embedded_base/overlap.py FRESH.jsonl OTHER.jsonl [--size 12]``
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_WORD = re.compile(r"[a-z0-9']+")


def document_words(document: dict[str, Any]) -> list[str]:
    """Return the lower-cased words of a document, its messages in order."""
    texts = [m["content"] for m in document.get("messages", ())] or [document["text"]]
    return _WORD.findall(" ".join(texts).lower())


def ngrams(words: list[str], size: int) -> Iterator[int]:
    """Yield the n-grams as hashes, which keeps the set of a large file small."""
    for at in range(len(words) - size + 1):
        yield hash(tuple(words[at : at + size]))


def overlap(
    fresh: Iterable[dict[str, Any]], other: Iterable[dict[str, Any]], size: int = 12
) -> tuple[float, dict[str, float]]:
    """Return the share of n-grams of ``fresh`` that occur in ``other``, in all and by kind."""
    seen: set[int] = set()
    for document in other:
        seen.update(ngrams(document_words(document), size))
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for document in fresh:
        for gram in ngrams(document_words(document), size):
            total[document["kind"]] += 1
            found[document["kind"]] += gram in seen
    share = sum(found.values()) / max(1, sum(total.values()))
    return share, {kind: found[kind] / total[kind] for kind in sorted(total)}


def read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("fresh", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--size", type=int, default=12)
    options = parser.parse_args(argv)
    share, kinds = overlap(read(options.fresh), read(options.other), options.size)
    for kind, part in kinds.items():
        print(f"{kind:10} {part:7.2%}")
    print(f"{'all':10} {share:7.2%} of the {options.size}-word n-grams")


if __name__ == "__main__":
    main()
