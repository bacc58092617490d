"""Train the name tagger of `warmline.corpus.anonymise.names` and write `lists/tagger.json.gz`.

    python scripts/train_tagger.py --negatives FILE...

Positives: sentences of `tagger_templates.txt` filled with names from the shipped lists, a third of them altered so that
no list has them. Negatives: sentences of counselling tables with a licence that allows it (CounselChat, MIT) and the
sample. No sentence and no name of the measured set (benchmarks/pii) is used here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from warmline.corpus import clean
from warmline.corpus.anonymise import names
from warmline.corpus.anonymise.words import COUNTRIES, STATES, load
from warmline.corpus.read import read

TARGET = Path(__file__).parents[1] / "src/warmline/corpus/lists/tagger.json.gz"
TEMPLATES = Path(__file__).with_name("tagger_templates.txt")
SYLLABLES = (
    "ka ri ma lo shi na te ro vi an el za du mi so li ja ny pe ku ra wen tho bel gri fa "
    "oo sha im ed bo chi ya nu ter es ki lan dra vo "
    "mar sel lin tor hal bri dan wy gor fen ash quil ber ost rek ham ver dol ser"
).split()
ORG_STEMS = (
    "Bright Green North South River Stone Oak Silver Golden Blue Red Lake Summit Harbor "
    "Sun Star Clear Swift Apex Vertex Omni Delta Nova "
    "Pine Cedar Iron Crown Royal Grand Metro Global Pioneer Heritage Liberty Union Eagle "
    "Falcon Phoenix Maple Willow Rose Ivy"
).split()
ORG_TAILS = (
    "Logistics|Solutions|Foods|Motors|Bank|Insurance|Group|Ltd|Inc|LLC|Hospital|Clinic|"
    "Medical Center|Pharmacy|Supermarket|Electronics|"
    "Consulting|Care Home|Counselling|Counseling Center|Dental|Law|Associates|Partners|"
    "and Sons|Systems|Hotel|Cafe|Bakery|Stores|Church|"
    "Foundation|Construction|Airlines|Health|Surgery|Nursery|Library|Media|Textiles|Farm|"
    "Garage|Airways|Books|Gym|Salon|Plumbing|Academy Trust"
).split("|")
SCHOOL_TAILS = (
    "High School|High|Elementary|Primary School|Academy|College|University|Middle School|"
    "Grammar School|Secondary School|"
    "Community College|Comprehensive|Prep|School|Polytechnic|School of Art|Girls School|"
    "Christian School|State University|uni"
).split("|")


class Names:
    """Draws names, a part of which no list has."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        common = load("common") | load("everyday")
        self.first = sorted(load("first"))
        self.first_plain = [n for n in self.first if n not in common]
        self.first_common = [n for n in self.first if n in load("common") and len(n) > 3]
        self.last = sorted(n for n in load("last") if n not in common)
        self.last_common = sorted(n for n in load("last") if n in common and len(n) > 3)
        self.cities = sorted(c for c in load("cities") if c not in common)
        self.towns = sorted(c for c in load("towns") if c not in common)
        self.states = sorted(STATES)

    def made_up(self) -> str:
        pick = self.random
        return "".join(pick.choice(SYLLABLES) for _ in range(pick.choice((2, 2, 3))))

    def given(self) -> str:
        pick, roll = self.random, self.random.random()
        if roll < 0.48:
            return pick.choice(self.first_plain).title()
        if roll < 0.61:
            return pick.choice(self.first_common).title()
        if roll < 0.70:
            return pick.choice(self.last).title()
        return self.made_up().title()

    def family(self) -> str:
        pick, roll = self.random, self.random.random()
        if roll < 0.5:
            return pick.choice(self.last).title()
        if roll < 0.62:
            return pick.choice(self.last_common).title()
        if roll < 0.68:
            return pick.choice(("Mc", "O'", "Al-", "De ", "Van ", "Ben ")) + pick.choice(self.last).title()
        return (self.made_up() + pick.choice(("", "ov", "ez", "son", "wala", "ski", "ye", "man", "ou"))).title()

    def place(self) -> str:
        pick, roll = self.random, self.random.random()
        if roll < 0.4:
            return pick.choice(self.cities).title()
        if roll < 0.6:
            return pick.choice(self.towns).title()
        if roll < 0.7:
            return pick.choice(self.states).title()
        tail = pick.choice(
            (
                "ton",
                "ville",
                "burg",
                "ford",
                "ham",
                " Falls",
                " Springs",
                "pur",
                "abad",
                "stad",
                "field",
                "",
                "port",
                "dale",
            )
        )
        return (self.made_up() + tail).title()

    def organisation(self) -> str:
        pick = self.random
        stem = pick.choice(
            (
                pick.choice(ORG_STEMS) + pick.choice(ORG_STEMS).lower(),
                self.family(),
                f"{pick.choice(ORG_STEMS)} {pick.choice(ORG_STEMS)}",
                "St " + self.given(),
                self.made_up().title(),
                self.place(),
            )
        )
        return stem if pick.random() < 0.25 and " " not in stem else f"{stem} {pick.choice(ORG_TAILS)}"

    def school(self) -> str:
        pick = self.random
        stem = pick.choice(
            (
                self.family(),
                self.place(),
                pick.choice(ORG_STEMS) + pick.choice(("wood", "field", "view", "side", "dale")),
                "St " + self.given(),
            )
        )
        return f"{stem} {pick.choice(SCHOOL_TAILS)}" if pick.random() < 0.85 else f"University of {self.place()}"

    def fill(self, slot: str) -> tuple[str, str]:
        if slot == "P":
            return self.given(), "PERSON"
        if slot == "L":
            return self.family(), "PERSON"
        if slot == "F":
            return f"{self.given()} {self.family()}", "PERSON"
        if slot == "C":
            return self.place(), "PLACE"
        return (self.organisation() if slot == "O" else self.school()), "ORG"


def filled(template: str, source: Names) -> tuple[str, list[tuple[int, int, str]]]:
    text, spans, last = "", [], 0
    for slot in re.finditer(r"\{([A-Z])\}", template):
        text += template[last : slot.start()]
        value, tag = source.fill(slot[1])
        spans.append((len(text), len(text) + len(value), tag))
        text += value
        last = slot.end()
    return text + template[last:], spans


def cased(text: str, roll: float) -> str:
    """The ways people type: as written, all lower, all capitals. Lengths must not change."""
    new = text.lower() if roll < 0.45 else text.upper() if roll < 0.48 else text
    return new if len(new) == len(text) else text


def rows_of(text: str, spans: list[tuple[int, int, str]]) -> list[tuple[list[str], int]]:
    found = names.tokens(text)
    locked = names._caps_lock(found)
    lower = {t.word for t in found if t.shape == "l"}
    rows, previous = [], "O"
    for index, token in enumerate(found):
        tag = next((k for s, e, k in spans if s <= token.start and token.core_end <= e), "O")
        if not names.is_candidate(found, index):
            previous = names.after_other(token, previous)
            continue
        rows.append((names.features(found, index, previous, locked, token.word in lower), names.TAGS.index(tag)))
        previous = tag
    return rows


def negatives(paths: list[str], count: int, pick: random.Random) -> list[str]:
    sentences: list[str] = []
    for path in paths:
        for conversation in read(path, licence="unknown", on_reject=lambda reject: None):
            for message in conversation.messages:
                text = clean.mend(message.content, Counter(), reply=True)
                sentences += [s.strip() for s in re.findall(r"[^.!?\n]+[.!?]?", text) if 4 <= len(s.split()) <= 45]
    pick.shuffle(sentences)
    # A sentence in which a listed name stands with a capital inside it may hold a real name: no clean negative.
    clean_ones = []
    for sentence in sentences:
        inner = re.findall(r"(?<=\w[ ,])[A-Z][a-z]+", sentence)
        if any(
            w.lower() in load("first") | load("last") | load("cities") and w.lower() not in load("everyday")
            for w in inner
        ):
            continue
        clean_ones.append(sentence)
        if len(clean_ones) >= count:
            break
    return clean_ones


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--negatives", nargs="+", required=True)
    parser.add_argument("--fills", type=int, default=40)
    parser.add_argument("--count", type=int, default=40_000)
    args = parser.parse_args()
    pick = random.Random(5)
    source = Names(7)
    templates = [t for t in TEMPLATES.read_text().splitlines() if t and t[0] != "#"]
    background = negatives(args.negatives, args.count, pick)
    rows: list[tuple[list[str], int]] = []
    for template in templates:
        for _ in range(args.fills):
            text, spans = filled(template, source)
            # A sentence of somebody else before and after: names do not stand alone in real turns.
            if pick.random() < 0.5:
                lead = pick.choice(background) + pick.choice((" ", ". ", "\n"))
                text, spans = lead + text, [(s + len(lead), e + len(lead), k) for s, e, k in spans]
            rows += rows_of(cased(text, pick.random()), spans)
    positives = len(rows)
    for sentence in background:
        rows += rows_of(cased(sentence, pick.random()), [])
    # Countries and peoples are nobody's name.
    for country in sorted(COUNTRIES):
        for form in (
            f"I was born in {country.title()}.",
            f"we live in {country}",
            f"My family is from {country.title()} and I am here.",
        ):
            rows += rows_of(form, [])
    counts = Counter(f for features, _ in rows for f in set(features))
    kept = {f: i for i, f in enumerate(sorted(f for f, n in counts.items() if n >= 6))}
    indices, pointers = [], [0]
    for features, _ in rows:
        indices += sorted({kept[f] for f in features if f in kept})
        pointers.append(len(indices))
    matrix = csr_matrix((np.ones(len(indices), dtype=np.float32), indices, pointers), shape=(len(rows), len(kept)))
    labels = np.array([label for _, label in rows])
    model = LogisticRegression(C=0.3, max_iter=300, tol=1e-3)
    model.fit(matrix, labels)
    print(
        f"{positives:,} candidates from templates, {len(rows) - positives:,} from real text, {len(kept):,} features, "
        f"fit {model.score(matrix, labels):.4f}"
    )
    table = {
        name: [round(float(w), 2) for w in model.coef_[:, column]]
        for name, column in kept.items()
        if np.abs(model.coef_[:, column]).max() >= 0.02
    }
    # The prior of the training mix is not that of real turns; the offset of O is set on the development set.
    offsets = [round(float(b), 2) for b in model.intercept_]
    data = json.dumps({"weights": table, "offsets": offsets}, separators=(",", ":"), sort_keys=True).encode()
    with open(TARGET, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(data)
    print(f"{TARGET.name}: {len(table):,} features, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
