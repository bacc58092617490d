"""Measure masking of personal data: ours beside others, on turns whose sentences and names were held out of training.

    python benchmarks/anonymise.py [--others] [--json FILE] [--show KIND]

`--others` adds Presidio and scrubadub where they are installed (they are no dependency; see docs/corpus/anonymise.md).
Counted: gold spans of which at least 80 % of the characters are masked, and the share of all other characters masked.
`lists` are the shipped word lists; `without` is the same with every name of the measured set taken out of them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

HERE = Path(__file__).parent / "pii"
STRUCTURED = {"phone", "email", "url", "handle", "ssn", "iban", "card", "ip", "id"}
FIND = Callable[[str], list[tuple[int, int]]]


def build(seed: int = 11, fills: int = 4) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """The measured turns with their gold spans; the same for the same seed."""
    pick = random.Random(seed)
    names = yaml.safe_load((HERE / "names.yaml").read_text("utf-8"))
    templates, block = [], []
    for line in (HERE / "templates.txt").read_text("utf-8").splitlines():
        if line.startswith("#") or not line:
            continue
        # Three templates run over several lines.
        block.append(line)
        if line.endswith((" is", "to:")) or line == "{address_lines}":
            continue
        templates.append("\n".join(block))
        block = []

    def value(kind: str) -> tuple[str, str]:
        if kind == "full":
            return f"{pick.choice(names['person'])} {pick.choice(names['family'])}", "person"
        if kind in ("pro", "pro_lower"):
            text = f"{pick.choice(('Dr', 'Dr.', 'Mrs', 'Mr', 'Ms', 'Prof.'))} {pick.choice(names['family'])}"
            return (text.lower() if kind == "pro_lower" else text), "person"
        if kind.endswith("_lower"):
            base = kind.removesuffix("_lower")
            return str(pick.choice(names[base])).lower(), base
        return str(pick.choice(names[kind])), kind

    turns: list[tuple[str, list[tuple[int, int, str]]]] = []
    for template in templates:
        for _ in range(fills):
            turns.append(_fill(template, value))
    turns += [(line, []) for line in (HERE / "negatives.txt").read_text("utf-8").splitlines() if line]
    return turns


LOCALES = (
    "en_US en_GB en_IN en_IE de_DE fr_FR es_MX pl_PL tr_TR it_IT id_ID vi_VN yo_NG zu_ZA tw_GH sv_SE pt_BR ro_RO"
).split()


def fresh(seed: int = 3, fills: int = 9) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """The second set: sentences written after the tagger was finished, values by Faker."""
    from faker import Faker

    pick = random.Random(seed)
    fakers = {name: Faker(name) for name in LOCALES}
    for index, faker in enumerate(fakers.values()):
        faker.seed_instance(seed + index)
    english = [fakers[name] for name in ("en_US", "en_GB", "en_IN", "en_IE")]

    def value(kind: str) -> tuple[str, str]:
        base = kind.removesuffix("_lower")
        faker, anywhere = pick.choice(english), fakers[pick.choice(LOCALES)]
        made = {
            "person": lambda: anywhere.first_name(),
            "family": lambda: anywhere.last_name(),
            "full": lambda: f"{anywhere.first_name()} {anywhere.last_name()}",
            "pro": lambda: f"{pick.choice(('Dr', 'Dr.', 'Mrs', 'Mr', 'Ms'))} {anywhere.last_name()}",
            "place": lambda: pick.choice([faker, anywhere]).city(),
            "org": lambda: pick.choice([faker, anywhere]).company(),
            "address": lambda: faker.address(),
            "date": lambda: pick.choice(
                [faker.date(), faker.date("%d/%m/%Y"), faker.date("%B %d, %Y"), faker.date("%d %b %Y")]
            ),
            "age": lambda: str(pick.randint(13, 84)),
            "phone": lambda: pick.choice([faker.phone_number(), anywhere.phone_number()]),
            "email": faker.email,
            "url": faker.url,
            "nino": lambda: fakers["en_GB"].ssn(),
            "card": faker.credit_card_number,
            "iban": fakers[pick.choice(("de_DE", "en_GB", "fr_FR", "pl_PL"))].iban,
            "ssn": fakers["en_US"].ssn,
            "ip": lambda: pick.choice([faker.ipv4(), faker.ipv6()]),
        }[base]()
        gold = "person" if base in ("full", "pro", "family") else "ssn" if base == "nino" else base
        return (made.lower() if kind.endswith("_lower") else made), gold

    turns: list[tuple[str, list[tuple[int, int, str]]]] = []
    text_lines = [t for t in (HERE / "fresh.txt").read_text("utf-8").splitlines() if t and t[0] != "#"]
    templates = "\n".join(text_lines).replace("scare me:\n", "scare me:\x00").split("\n")
    for template in templates:
        for _ in range(fills):
            turns.append(_fill(template.replace("\x00", "\n"), value))
    return turns


def third(seed: int = 5, fills: int = 2) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """The third set: values written by hand, many of them lower-case, not western, or in words."""
    pick = random.Random(seed)
    values = yaml.safe_load((HERE / "third.yaml").read_text("utf-8"))

    def value(kind: str) -> tuple[str, str]:
        base = kind.removesuffix("_lower")
        if base == "full":
            made, gold = f"{pick.choice(values['given'])} {pick.choice(values['family'])}", "person"
        elif base == "pro":
            made, gold = f"{pick.choice(('Dr', 'Dr.', 'Ms', 'Mrs'))} {pick.choice(values['family'])}", "person"
        else:
            made = pick.choice(values[base])
            gold = {"given": "person", "family": "person", "street": "address", "addr": "address"}.get(base, base)
        return (made.lower() if kind.endswith("_lower") else made), gold

    lines = [t for t in (HERE / "third.txt").read_text("utf-8").splitlines() if t and t[0] != "#"]
    return [_fill(line.replace("\\n", "\n"), value) for line in lines for _ in range(fills)]


def _fill(template: str, value: Callable[[str], tuple[str, str]]) -> tuple[str, list[tuple[int, int, str]]]:
    text, spans, last = "", [], 0
    for slot in re.finditer(r"\{(\w+)\}", template):
        text += template[last : slot.start()]
        new, kind = value(slot[1])
        spans.append((len(text), len(text) + len(new), "address" if kind == "address_lines" else kind))
        text += new
        last = slot.end()
    return text + template[last:], spans


def measure(find: FIND, turns: list[tuple[str, list[tuple[int, int, str]]]], show: str = "") -> dict[str, object]:
    total, hit = Counter[str](), Counter[str]()
    plain = masked_plain = 0
    wrong = Counter[str]()
    begun = time.perf_counter()
    found = [find(text) for text, _ in turns]
    seconds = time.perf_counter() - begun
    for (text, gold), spans in zip(turns, found, strict=True):
        covered = [False] * len(text)
        for start, end in spans:
            covered[start:end] = [True] * (end - start)
        inside = [False] * len(text)
        for start, end, kind in gold:
            inside[start:end] = [True] * (end - start)
            total[kind] += 1
            if sum(covered[start:end]) >= 0.8 * (end - start):
                hit[kind] += 1
            elif show in (kind, "all"):
                print(f"missed {kind}: {text[start:end]!r} in {text!r}", file=sys.stderr)
        plain += sum(not flag for flag in inside)
        masked_plain += sum(c and not g for c, g in zip(covered, inside, strict=True))
        for start, end in spans:
            if not any(inside[start:end]):
                wrong[text[start:end]] += 1
                if show in ("wrong", "all"):
                    print(f"wrong: {text[start:end]!r} in {text!r}", file=sys.stderr)
    structured = sum(hit[k] for k in STRUCTURED) / max(1, sum(total[k] for k in STRUCTURED))
    return {
        "turns": len(turns),
        "spans": sum(total.values()),
        "masked": round(sum(hit.values()) / sum(total.values()), 4),
        "wrongly": round(masked_plain / plain, 4),
        "structured": round(structured, 4),
        "by_kind": {kind: f"{hit[kind]}/{total[kind]}" for kind in sorted(total)},
        "texts_per_second": round(len(turns) / seconds),
    }


def ours(turns: list[tuple[str, list[tuple[int, int, str]]]], hidden: bool) -> FIND:
    from warmline.corpus.anonymise import masking, names, words

    if hidden:
        taken = {
            words.plain(part)
            for text, gold in turns
            for start, end, kind in gold
            if kind in ("person", "place", "org", "school")
            for part in (text[start:end], *re.findall(r"[^\W\d_]+", text[start:end]))
        }
        load = words.load.__wrapped__

        def without(name: str) -> frozenset[str]:
            full = load(name)
            return full - taken if name in ("first", "last", "cities", "towns") else full

        cache: dict[str, frozenset[str]] = {}

        def cached(name: str) -> frozenset[str]:
            if name not in cache:
                cache[name] = without(name)
            return cache[name]

        names.load = cached  # type: ignore[assignment]
        words.load = names.load  # type: ignore[assignment]
        names._lists.cache_clear()
        names._look.cache_clear()
        words.longer_places.cache_clear()
    masking.find("Warm up: my friend Ada went home.")
    return lambda text: [(s.start, s.end) for s in masking.find(text)]


def _apart(turns: list[tuple[str, list[tuple[int, int, str]]]]) -> FIND:
    """Ours without the measured names, in a process of its own so that the lists elsewhere stay whole."""
    import multiprocessing

    pool = multiprocessing.get_context("spawn").Pool(1, _hide, (turns,))
    found = dict(
        zip(
            [text for text, _ in turns],
            pool.map(_find_hidden, [text for text, _ in turns], chunksize=5000),
            strict=True,
        )
    )
    pool.close()
    return found.__getitem__


_hidden: FIND | None = None


def _hide(turns: list[tuple[str, list[tuple[int, int, str]]]]) -> None:
    global _hidden
    _hidden = ours(turns, True)


def _find_hidden(text: str) -> list[tuple[int, int]]:
    assert _hidden is not None
    return _hidden(text)


def presidio() -> FIND:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine

    class NoModel(NlpEngine):  # Presidio without a language model: spaCy's are not on the package index.
        def load(self) -> None: ...
        def is_loaded(self) -> bool:
            return True

        def process_text(self, text, language):  # type: ignore[no-untyped-def]
            return NlpArtifacts([], [], [], [], self, language)

        def process_batch(self, texts, language, **kwargs):  # type: ignore[no-untyped-def]
            return ((t, self.process_text(t, language)) for t in texts)

        def is_stopword(self, word, language):  # type: ignore[no-untyped-def]
            return False

        def is_punct(self, word, language):  # type: ignore[no-untyped-def]
            return False

        def get_supported_entities(self):  # type: ignore[no-untyped-def]
            return []

        def get_supported_languages(self):  # type: ignore[no-untyped-def]
            return ["en"]

    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(nlp_engine=NoModel())
    engine = AnalyzerEngine(registry=registry, nlp_engine=NoModel())
    engine.analyze("warm up", language="en")
    return lambda text: [(r.start, r.end) for r in engine.analyze(text=text, language="en")]


def scrubadub() -> FIND:
    import scrubadub as package

    scrubber = package.Scrubber()
    return lambda text: [(f.beg, f.end) for f in scrubber.iter_filth(text)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--show", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    for label, turns in (("written", build(args.seed)), ("fresh", fresh()), ("third", third())):
        if args.others:
            for name, make in (("presidio", presidio), ("scrubadub", scrubadub)):
                try:
                    results[f"{name} ({label})"] = measure(make(), turns)
                except ImportError as error:
                    print(f"{name} is not installed here: {error.name}", file=sys.stderr)
        try:
            import warmline  # noqa: F401
        except ImportError:
            print("warmline is not installed here", file=sys.stderr)
        else:
            results[f"warmline ({label})"] = measure(ours(turns, False), turns, args.show)
            apart = measure(_apart(turns), turns)
            apart["texts_per_second"] = "-"  # found beforehand in another process
            results[f"warmline, names in no list ({label})"] = apart
    for name, row in results.items():
        print(
            f"{name:38} spans masked {row['masked']}  other characters {row['wrongly']}  "
            f"structured {row['structured']}  "
            f"{row['texts_per_second']} texts/s"
        )
    print(json.dumps(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
