"""Postal addresses, also over several lines: a sure piece (street with number, post code, P.O. box) grows outwards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from warmline.corpus.anonymise import signs
from warmline.corpus.anonymise.patterns import Span
from warmline.corpus.anonymise.signs import Signs, letters
from warmline.corpus.anonymise.words import load, plain

_SUFFIX = (
    r"street|st|avenue|ave|av|road|rd|lane|ln|drive|dr|boulevard|blvd|way|court|ct|place|pl|square|sq|terrace|ter|close|"
    r"crescent|cres|gardens|gdns|grove|hill|parkway|pkwy|highway|hwy|row|walk|mews|quay|wharf|rise|view|park|green|parade|"
    r"esplanade|circle|cir|trail|trl|alley|loop|path|pike|route|rte|turnpike|crossing|point|ridge|heights|plaza|bypass|vale|"
    r"croft|drove|bank|estate|cove|bend|creek|glen|hollow|meadow|meadows|run|causeway|embankment|promenade|lock|bridge|"
    r"avenida|calle|rue|via|strasse|straße|str|weg|allee|platz|gasse|laan|straat|plein|gade|vej|gatan|vägen|ulica|ul|marg|nagar|"
    r"colony|layout|chowk|jalan|jl|lorong|soi|close|common|commons|corner|corners|estates|fields|forest|fort|gateway|harbor|"
    r"islands?|junctions?|knolls?|lake|lakes|landing|manor|mill|mills|mission|mountain|orchard|overpass|passage|pines|plains|"
    r"port|ports|prairie|ranch|rapids|river|roads|shoals?|shores?|springs?|spurs?|station|stravenue|stream|summit|throughway|"
    r"trace|track|trafficway|tunnel|underpass|union|valley|viaduct|village|ville|vista|walks|wall|wells|brook|burgs?|camp|canyon|"
    r"cape|center|cliffs?|club|course|curve|dale|dam|divide|extension|ext|falls|ferry|flats?|fords?|forges?|forks?|freeway|haven|"
    r"inlet|isle|key|keys|light|lodge|neck|oval|rest|shore|skyway|squares"
)
_COMMON_SUFFIX = (
    r"street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|terrace|crescent|close|square|parkway|pkwy|highway|hwy|"
    r"gardens|grove|mews|strasse|straße|way|place|circle|gasse|allee|platz|straat|laan"
)
_NUMBER = r"(?:no\.?\s*)?\d{1,5}(?:\s?[-/–]\s?\d{1,4})?\s?[a-z]?"
_WORD = r"(?:[^\W\d_][\w'’.\-]*|\d{1,3}(?:st|nd|rd|th))"
# 12 Rose Hill Lane; 4b kilmorey st.; 0487 Hull Village
_STREET = re.compile(
    rf"(?<![\w$€£.,-]){_NUMBER},?\s+(?:(?:n|s|e|w|north|south|east|west|old|new|upper|lower|great|little|st|saint)\.?\s+)?"
    rf"(?:{_WORD}\s+){{1,3}}?(?:{_SUFFIX})\b\.?(?:\s+(?:{_COMMON_SUFFIX})\b\.?)?(?:\s+(?:n|s|e|w|ne|nw|se|sw|north|south|east|west)\b\.?)?",
    re.I,
)
# the street first: Lindenstrasse 14, Calle Mayor 3, rue de la Paix 12, Via Roma, 8
_STREET_FIRST = re.compile(
    r"\b(?:[^\W\d_]{3,20}(?:strasse|straße|str\.|weg|gasse|allee|platz|straat|laan|gracht|kade|plein|vej|gade|gatan|vägen|katu|tie)"
    r"|(?:calle|avenida|avda\.?|rua|rue|via|viale|piazza|plaza|paseo|carrera|ulica|ul\.|jalan|jl\.?|lorong|all[ée]e|impasse|chemin)"
    r"(?:\s+(?:de|la|las|los|el|del|della|dei|di|du|des|da|do|dos|l'))*\s+[^\W\d_][\w'’.\-]+(?:\s+[^\W\d_][\w'’.\-]+)?)"
    r"\s*,?\s*(?:n[ºo°.]*\s*)?\d{1,4}\s?[a-z]?\b",
    re.I,
)
_STREET_ABROAD = re.compile(
    r"(?<![\w.,])\d{1,4}(?:\s?(?:bis|ter|[a-d]))?,?\s+(?:rue|calle|rua|via|avenida|avenue|chemin|boulevard|bd|route|place|impasse|all[ée]e)"
    r"\s+(?:(?:de|la|las|los|el|del|della|dei|di|du|des|da|do|dos|le|les)\s+|l['’]|d['’])*[^\W\d_][\w'’.\-]+(?:\s+[A-Z][\w'’.\-]+)?",
    re.I,
)
_NAMED_ROAD = re.compile(
    r"\b(?:[A-Z][\w'’\-]+\s+){1,2}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Boulevard|Blvd|Court|Terrace|Crescent|Close|"
    r"Square|Parkway|Pkwy|Highway|Hwy|Gardens|Grove|Mews|Way|Circle|Allee|Platz|Straat|Laan)\b"
)
_NAMED_ROAD_LOWER = re.compile(
    r"\b(?:on|off|down|along|lives? (?:at|on|in)|living (?:at|on)|corner of|house on|flat "
    r"on|address is|place on|to|from|near|at)\s+"
    r"(?P<value>(?!the\b|a\b|my\b|our\b|this\b|that\b)[a-z][\w'’\-]+\s+(?:[a-z][\w'’\-]+\s+)?(?:street|avenue|road|lane|drive|boulevard|crescent|terrace|ave|rd|blvd))\b",
    re.I,
)
_UNIT = re.compile(
    r"\b(?:apt|apartment|suite|ste|unit|flat|room|rm|floor|fl|building|bldg|block|house|lot|box|p\.?\s?o\.?\s?box|postfach|plot|"
    r"tower|wing|piso|dept|departamento|trailer|studio)\b\.?\s*(?:no\.?\s*|#\s*)?(?=[\w-]*\d|[A-Za-z]\b)[\w-]{1,8}(?!\w)|#\s?\d{1,5}[a-z]?\b",
    re.I,
)
_BOX = re.compile(
    r"\b(?:p\.?\s?o\.?\s?box|postfach|psc|gpo box|private "
    r"bag)\s*(?:no\.?\s*)?\d{1,7}(?:,?\s*(?:apo|box)\s*(?:\d+|[a-z]{2}))?\b",
    re.I,
)
_MILITARY = re.compile(
    r"\b(?:(?:PSC|Unit|USNS|USS|USCGC|USNV)\s+[\w "
    r"]{1,25}?(?:,?\s*Box\s+\d+)?\s*[\n,]\s*)?(?:APO|FPO|DPO),?\s+(?:AA|AE|"
    r"AP)\s+\d{5}(?:-\d{4})?",
    re.I,
)
_POST = re.compile(
    r"\b(?:[A-PR-UWYZ][A-HK-Y]?\d[A-Z\d]?\s?\d[ABD-HJLNP-UW-Z]{2}"  # British
    r"|[ABCEGHJ-NPRSTVXY]\d[A-Z][ -]?\d[A-Z]\d"  # Canadian
    r"|[AC-FHKNPRTV-Y]\d[\dW]\s?(?=[A-Z\d]{0,3}\d)[A-Z\d]{4})\b",  # Irish
    re.I,
)
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR|PA|RI|SC|SD|"
    "TN|TX|UT|VT|VA|WA|WV|WI|WY|DC|PR|VI|GU|AS|MP|PW|FM|MH|NSW|VIC|QLD|TAS|ACT|NT|SA|ON|QC|BC|AB|MB|SK|NS|NB|NL|PE|YT|NU"
)
_STATE_NAMES = (
    "alabama|alaska|arizona|arkansas|california|colorado|connecticut|delaware|florida|georgia|hawaii|idaho|illinois|indiana|iowa|"
    "kansas|kentucky|louisiana|maine|maryland|massachusetts|michigan|minnesota|mississippi|missouri|montana|nebraska|nevada|"
    "new hampshire|new jersey|new mexico|new york|north carolina|north dakota|ohio|"
    "oklahoma|oregon|pennsylvania|rhode island|"
    "south carolina|south dakota|tennessee|texas|utah|vermont|virginia|washington|west virginia|wisconsin|wyoming"
)
_CITY_WORD = r"[^\W\d_][\w'’.\-]+"
# Joshuaville, NV 12345; 80331 München; Leeds LS1 4AP
_TOWN = re.compile(
    rf"(?:{_CITY_WORD}[ ]){{0,3}}{_CITY_WORD},?\s+(?:(?:{_STATES})|(?i:{_STATE_NAMES})),?\s+\d{{4,5}}(?:-\d{{4}})?\b"
    # In lower case only states that are no words: "he died on 2018" is not Ontario.
    rf"|(?:{_CITY_WORD}[ ]){{0,1}}{_CITY_WORD},?\s+(?!(?:in|on|or|me|hi|ok|ma|pa|oh|de|la|al|id|mo|as|co|sa|act)\b)"
    rf"(?i:{_STATES}),?\s+\d{{5}}(?:-\d{{4}})?\b"
)
_TOWN_CODE_FIRST = re.compile(
    r"(?<![\w,.$€£-])(?:[A-Z]{1,2}-)?\d{4,5}(?:\s?[A-Z]{2})?\s+[A-ZÄÖÜÉÅØ][\w'’\-]+(?:[ -][A-ZÄÖÜÉÅØ][\w'’\-]+){0,2}"
)
_TOWN_PIN = re.compile(
    r"\b[A-Z][\w'’]+(?:\s[A-Z][\w'’]+)?\s*[-–]\s*\d{6}\b|\b[A-Z][a-z'’]+,?\s+\d{3}\s?\d{3}(?![-\s]?\d)"
)
_TOWN_LAST = re.compile(r"(?:(?<=\n)|(?<=, ))[A-Z][\w'’]+(?:\s[A-Z][\w'’]+)?,?\s+\d{5,6}(?!\d)")
_PLOT = re.compile(r"(?<![\w/])\d{1,4}(?:/\d{1,4})?,\s+[A-Z][\w'’]+(?:\s[A-Z][\w'’]+)?(?=\n[A-Z])")
_SECTOR = re.compile(
    r"\b(?:house|plot|block|sector|phase|blk|lot)\s+[A-Z]?-?\d{1,4}[A-Z]?(?:\s*,\s*(?:sector|phase|block|lane)\s+\w{1,4})+\b",
    re.I,
)
# What may follow a sure piece: ", Riverton", "\nManchester", ", TX 75001", " M1 4BH"
_NEXT = re.compile(
    rf"\s*[,\n]\s*(?:(?:{_STATES})\b(?:\s+\d{{4,5}}(?:-\d{{4}})?)?|(?:{_STATE_NAMES})\b(?:\s+\d{{4,5}}(?:-\d{{4}})?)?"
    r"|(?:[A-ZÄÖÜÉÅØ][\w'’.\-]+)(?:[ "
    rf"-][A-ZÄÖÜÉÅØ][\w'’.\-]+){{0,3}}(?:,?\s+(?:{_STATES})\b)?(?:\s+\d{{4,6}}(?:-\d{{3,4}})?)?(?=\s*(?:[,.\n;!?)]|$|\d|[A-Z]{{1,2}}\d)|\s+[a-z])"
    r"|\d{4,6}(?:-\d{4})?\b(?:\s+[A-Z][\w'’\-]+)?)"
    r"|\s+\d{5}(?:-\d{4})?\b"
)
_NEXT_LOWER = re.compile(
    rf"\s*[,\n]\s*(?:{_CITY_WORD})(?:[ "
    rf"-]{_CITY_WORD}){{0,2}}\s*(?=[,\n]?\s*(?:[,\n]\s*(?:{_STATES}|{_STATE_NAMES})\b|"
    rf"[a-z]{{1,2}}\d))",
    re.I,
)
_POST_NEXT = re.compile(rf"[,\s]+(?:{_POST.pattern})", re.I)
# A line before: "Flat 3, Rosewood House," or a house's name.
_BEFORE = re.compile(
    rf"(?:(?:{_UNIT.pattern})|\b[A-Z][\w'’]+\s+(?:House|Court|Tower|Towers|Lodge|Cottage|Mansions?|Villas?|Apartments|Farm|Manor|Hall|Heights))\s*[,\n]\s*$",
    re.I,
)
_NOT_STREETS = re.compile(
    r"(?i)^(?:no\.?\s*)?\d{1,5}\s?[a-z]?,?\s+(?:years?|months?|weeks?|days?|hours?|minutes?|mins?|times?|people|kids|of|other|more|different|or|and|to|"
    r"in|on|by|percent|am|pm|miles?|dollars?|things?|steps?|mg|good|long|years'|feet|ft|pounds?|lbs?|sisters?|brothers?|nights?|calls?|times|million|thousand|"
    r"half|at|for|is|was|from|the|a|i|my|per|days')\b"
)


_LONG = re.compile(r"\d{3}\s?\d{1,3}")
_LETTER_DIGIT = re.compile(r"[a-z]\d")
# Letters only, as `Signs.words` has them: "straße" leaves "stra", "vägen" leaves "gen".
_SUFFIX_WORDS = letters(_SUFFIX.replace("s?", "")) | letters(_SUFFIX.replace("s?", "s")) | {"stra", "gen"}
_STREET_ENDS = (
    *(
        "strasse",
        "stra",
        "str",
        "weg",
        "gasse",
        "allee",
        "platz",
        "straat",
        "laan",
        "gracht",
        "kade",
        "plein",
        "vej",
        "gade",
    ),
    *("gatan", "katu", "tie"),
)
_STREET_BEGINS = letters(
    "calle|avenida|avda|rua|rue|via|viale|piazza|plaza|paseo|carrera|ulica|ul|jalan|jl|lorong|allee|impasse|chemin"
)
_ABROAD_WORDS = letters("rue|calle|rua|via|avenida|avenue|chemin|boulevard|bd|route|place|impasse|allee")
_ZIP = re.compile(r",?\s+\d{4,5}(?:-\d{4})?\b")
_STATE_WORDS = letters(_STATES.lower()) | {name.split()[-1] for name in _STATE_NAMES.split("|")}
_BOX_WORDS = letters("box|pobox|obox|postfach|psc|bag")
_MILITARY_WORDS = letters("apo|fpo|dpo")
_SECTOR_WORDS = letters("house|plot|block|sector|phase|blk|lot")
_ROAD_WORDS = letters(
    "street|st|avenue|ave|road|rd|lane|ln|drive|boulevard|blvd|court|terrace|crescent|close|square|parkway|pkwy|highway|hwy|gardens|"
    "grove|mews|way|circle|allee|platz|straat|laan"
)


def _word_before(low: str, end: int) -> str:
    start = end
    while start and low[start - 1].isalpha():
        start -= 1
    return low[start:end]


def _likely(sign: Signs, text: str) -> Iterator[re.Pattern[str]]:
    """The patterns that can match at all."""
    allee = "allée" in sign.low
    if allee or "vägen" in sign.low or sign.any_of(_STREET_BEGINS) or any(w.endswith(_STREET_ENDS) for w in sign.words):
        yield _STREET_FIRST
    if allee or sign.any_of(_ABROAD_WORDS):
        yield _STREET_ABROAD
    if sign.any_of(_BOX_WORDS):
        yield _BOX
    if sign.any_of(_MILITARY_WORDS):
        yield _MILITARY
    if sign.digits >= 4 and _LONG.search(text):
        yield from (_TOWN_PIN, _TOWN_LAST)
        if any(_word_before(sign.low, m.start()) in _STATE_WORDS for m in _ZIP.finditer(sign.low)):
            yield _TOWN
    if sign.any_of(_SECTOR_WORDS):
        yield _SECTOR
    if "\n" in text:
        yield _PLOT


def find(text: str, sign: Signs | None = None) -> list[Span]:
    """All addresses, each as one span over all its lines."""
    sign = sign or signs.of(text)
    roads = sign.any_of(_ROAD_WORDS)
    if not sign.digits and not roads:
        return []
    seeds: list[tuple[int, int]] = []
    if sign.digits:
        for found in _STREET.finditer(text) if sign.any_of(_SUFFIX_WORDS) else ():
            if _NOT_STREETS.match(found[0]) or not _is_street(found[0]):
                continue
            seeds.append(found.span())
        for pattern in _likely(sign, text):
            seeds += [found.span() for found in pattern.finditer(text)]
        if _LETTER_DIGIT.search(sign.low):
            seeds += [m.span() for m in _POST.finditer(text) if any(c.isdigit() for c in m[0]) and _looks_posted(m[0])]
        for found in _TOWN_CODE_FIRST.finditer(text) if sign.digits >= 4 and _LONG.search(text) else ():
            # 80331 München: sure only beside a street, or when the line holds nothing else.
            line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
            if not line.strip() or any(abs(end - found.start()) <= 3 for _, end in seeds):
                seeds.append(found.span())
    if roads:
        seeds += [m.span() for m in _NAMED_ROAD.finditer(text) if not m[0].startswith(("The ", "A ", "My ", "Main St"))]
    if not seeds and not roads:
        return []
    seeds += [
        found.span("value")
        for found in _NAMED_ROAD_LOWER.finditer(text)
        if plain(found["value"].split()[0]) not in load("everyday")
    ]
    grown = [_grow(text, start, end) for start, end in seeds]
    return [Span(start, end, "ADDRESS") for start, end in _joined(text, sorted(grown))]


def _is_street(found: str) -> bool:
    """Rarer suffixes ("Village", "Hill") make a street only with capitals, as addresses have them."""
    words = found.split()
    if re.fullmatch(_COMMON_SUFFIX, words[-1].rstrip(".").lower()) or (
        len(words) > 2 and words[-1].lower() in ("n", "s", "e", "w")
    ):
        # "2 st" and "3 way" need a name between.
        return not (
            len(words) == 3
            and words[1].lower()
            in ("my", "the", "a", "this", "that", "long", "hard", "best", "only", "one", "big", "other", "same")
        )
    return all(word[0].isupper() for word in words[1:] if word[0].isalpha())


def _looks_posted(code: str) -> bool:
    # "a1 2bc" in lower case is rarely meant; with a space or capitals it is.
    return code.upper() == code or " " in code or "\n" in code


_AFTER_POST = re.compile(r"[ ]+[A-Z][\w'’]+(?:[ ][A-Z][\w'’]+)?(?=\s|[.,;!?]|$)")


def _grow(text: str, start: int, end: int) -> tuple[int, int]:
    while found := _BEFORE.search(text, max(0, start - 60), start):
        start = found.start()
    start = _lines_before(text, start)
    if unit := _UNIT.match(text, _skip(text, end)):
        end = unit.end()
    for _ in range(4):
        after_post = _AFTER_POST.match(text, end)
        posted = after_post and _POST.search(text, max(start, end - 9), end)
        if after_post and posted and not _sentence_begins("\n" + after_post[0].strip()):
            end = after_post.end()
        following = _POST_NEXT.match(text, end) or _NEXT.match(text, end) or _NEXT_LOWER.match(text, end)
        if following is None or _sentence_begins(following[0]):
            unit = _UNIT.match(text, _skip(text, end))
            if unit is None:
                break
            end = unit.end()
            continue
        end = following.end()
    return start, end


_ADDRESS_LINE = re.compile(
    r"[ ]*(?:[A-Z\d][\w'’.\-/]*,?[ ]?){1,5}|[ ]*\d{1,5}[a-z]?[ ](?:[\w'’.\-]+[ ,]?){1,4}|[ ]*[A-Z][\w'’]+ [a-z]{3,10}"
)


def _lines_before(text: str, start: int) -> int:
    """Short lines without a sentence above a sure piece that begins its line belong to the same address."""
    for _ in range(3):
        before = text.rfind("\n", 0, start)
        if before < 0 or text[before + 1 : start].strip():
            return start
        top = text.rfind("\n", 0, before) + 1
        line = text[top:before]
        if not (_ADDRESS_LINE.fullmatch(line) or _UNIT.match(line)):
            return start
        if line.rstrip().endswith((".", "!", "?", ":")) or _SENTENCE_WORDS.match("\n" + line):
            return start
        start = top
    return start


_SENTENCE_WORDS = re.compile(
    r"^\s*[,\n]\s*(?:I|I'm|I’m|My|He|She|They|We|It|The|And|But|So|You|What|When|How|Please|Thanks|Thank|Is|Can|This|That|If|Or|Call|Tel|Phone|"
    r"Email|Mobile|Just|Not|No|Yes|There|Then|Now|Every|After|Before|Since|Because|For|With|At|In|On|To|From|His|Her|Our|Their|A|An)\b"
)


def _sentence_begins(piece: str) -> bool:
    return bool(_SENTENCE_WORDS.match(piece))


_GAP = re.compile(r"[,\s]*")


def _skip(text: str, at: int) -> int:
    found = _GAP.match(text, at)
    return found.end() if found else at


def _joined(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping or adjacent pieces become one address."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] <= 3 and not text[joined[-1][1] : start].strip(" ,\n"):
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
