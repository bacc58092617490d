"""Put the embedded base's training text together: composed documents and gathered ones, as Warmline's own rows.

    python training/embedded_base/documents.py --data ../shared/data

Leaves `documents.jsonl` beside this file (about 55 MB, not kept in the repository: the same seed makes it again).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from compose import MIXES, Composer, Grammar
from gather import gather

LICENCES = {"composed": "Apache-2.0"}


def row(document: dict[str, Any], number: int) -> dict[str, Any]:
    """A document as one line that `warmline.messages.Conversation` reads."""
    kind = document["kind"]
    labels = {"kind": kind}
    messages = document.get("messages")
    if messages is None:
        labels["form"] = "prose"
        messages = [{"role": "assistant", "content": document["text"]}]
    source = document.get("source", "composed")
    return {
        "id": f"{source}-{number:06d}",
        "messages": messages,
        "theme": document.get("theme", ""),
        "group": "",
        "labels": labels,
        "provenance": {
            "source": source,
            "licence": document.get("licence", LICENCES.get(source, "unknown")),
            "row": number,
            "consent": "as published",
        },
    }


def documents(count: int, seed: int, data: Path | None, mix: str) -> Iterator[dict[str, Any]]:
    for number, document in enumerate(Composer(Grammar.load(HERE), seed, mix).documents(count), 1):
        yield row(dict(document), number)
    for number, document in enumerate(gather(data) if data else (), 1):
        yield row(dict(document), number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the public sets; without: composed text only")
    parser.add_argument("--documents", type=int, default=90_000)
    parser.add_argument("--mix", choices=sorted(MIXES), default="learning", help="shares of the kinds")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--out", type=Path, default=HERE / "documents.jsonl")
    arguments = parser.parse_args()
    rows = list(documents(arguments.documents, arguments.seed, arguments.data, arguments.mix))
    random.Random(arguments.seed).shuffle(rows)
    with open(arguments.out, "w", encoding="utf-8") as file:
        for line in rows:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(json.dumps({"documents": len(rows), "bytes": arguments.out.stat().st_size}))


if __name__ == "__main__":
    main()
