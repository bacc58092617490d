"""Gather the real part of the embedded base's text: public sets under MIT and CC BY, stripped of anything personal.

Three sets are read from a folder that you name (see `docs/embedded-base.md` for where they come from):
counsel-chat (MIT, nbertagnolli), the 172 questions of heliosbrahma (MIT), MedQuAD's mental-health part (CC BY 4.0).

Anonymising is blunt on purpose: a sentence that holds a capitalised word where none belongs, a digit run, an address
or a link is left out whole, so that no name of a person or place can stay. Authors' columns are never read.

    python training/embedded_base/gather.py --data ../shared/data --out gathered.jsonl
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import ftfy

csv.field_size_limit(sys.maxsize)

ALLOWED_CAPITALS = frozenset(
    "I I'm I've I'd I'll OK Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May "
    "June July August September October November December English God Christmas TV AI PTSD OCD ADHD DNA MRI".split()
)
SENTENCE = re.compile(r"(?<=[.!?])\s+")
FORBIDDEN = re.compile(
    r"https?:|www\.|@|\.com|\.org|\.net|\d{3,}|#|\b(?:LMFT|LCSW|PhD|Psy\.?D|Inc|Ph\.D|mg)\b|suicid|medicat|kill", re.I
)


def sentences(text: str, common: frozenset[str]) -> list[str]:
    """The text's sentences without those that could name somebody, advertise something or touch on means.

    `common` are words known in lower case: a sentence may begin with no other, for it could be a name.
    """
    text = html.unescape(re.sub(r"<[^>]+>", " ", ftfy.fix_text(text))).replace("\xa0", " ")
    text = re.sub(r"([a-z])([.!?])([A-Z])", r"\1\2 \3", re.sub(r"\s+", " ", text)).strip()
    kept = []
    for sentence in SENTENCE.split(text):
        words = re.findall(r"[A-Za-z][\w'’]*", sentence)
        capitals = {word.replace("’", "'") for word in words[1:] if word[0].isupper()}
        if (
            3 <= len(words) <= 45
            and not FORBIDDEN.search(sentence)
            and capitals <= ALLOWED_CAPITALS
            and (words[0].lower() in common or words[0] in ALLOWED_CAPITALS)
        ):
            kept.append(sentence.replace("’", "'").replace("“", '"').replace("”", '"'))
    return kept


Pair = tuple[str, str, str, str, int]
"""Question, answer, source, licence, row."""


def split(pair: Pair, common: frozenset[str]) -> Iterator[dict[str, object]]:
    question, answer, source, licence, row = pair
    asked, said = sentences(question, common), sentences(answer, common)
    if not asked or len(said) < 2:
        return
    for start in range(0, len(said), 6):  # long answers become several short ones, cut between sentences
        part = " ".join(said[start : start + 6])
        if len(part.split()) >= 20:
            yield {
                "kind": "gathered",
                "theme": "",
                "source": source,
                "licence": licence,
                "row": row,
                "messages": [
                    {"role": "user", "content": " ".join(asked[:4])},
                    {"role": "assistant", "content": part},
                ],
            }


def pairs(data: Path) -> Iterator[Pair]:
    with open(data / "counsel_chat" / "20200325_counsel_chat.csv", encoding="utf-8", newline="") as file:
        for row, line in enumerate(csv.DictReader(file), 1):
            question = f"{line['questionTitle'] or ''} {line['questionText'] or ''}"
            yield question, line["answerText"] or "", "counsel-chat", "MIT", row
    path = data / "heliosbrahma_mental_health" / "mental_health_chatbot_dataset_172_text.jsonl"
    for row, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        question, _, answer = json.loads(text)["text"].partition("<ASSISTANT>:")
        yield question.replace("<HUMAN>:", ""), answer, "heliosbrahma", "MIT", row
    row = 0
    for path in sorted((data / "medquad_mental_health").glob("*.xml")):
        for pair in ElementTree.parse(path).iter("QAPair"):
            row += 1
            yield pair.findtext("Question") or "", pair.findtext("Answer") or "", "MedQuAD", "CC-BY-4.0", row


def gather(data: Path) -> Iterator[dict[str, object]]:
    """Question and answer as documents for the base's training, anonymised."""
    found = list(pairs(data))
    seen = Counter(word for pair in found for word in re.findall(r"[a-z']+", f"{pair[0]} {pair[1]}"))
    common = frozenset(word for word, count in seen.items() if count >= 5)
    for pair in found:
        yield from split(pair, common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = list(gather(arguments.data))
    arguments.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    words = sum(len(m["content"].split()) for row in rows for m in row["messages"])  # type: ignore[attr-defined]
    print(json.dumps({"documents": len(rows), "words": words}))


if __name__ == "__main__":
    main()
