"""The word lists: what is an everyday word, a name, a place. Loaded once, looked up in lower case without accents."""

from __future__ import annotations

import functools
import gzip
import unicodedata
from importlib import resources


@functools.cache
def load(name: str) -> frozenset[str]:
    """One of the lists in `warmline.corpus.lists`, by name."""
    packed = (resources.files("warmline.corpus") / "lists" / f"{name}.txt.gz").read_bytes()
    return frozenset(gzip.decompress(packed).decode("utf-8").split("\n")) - {""}


@functools.cache
def longer_places() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Places of several words by their first word."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for name in load("cities") | load("towns") | _STATES_OF_SEVERAL:
        parts = tuple(name.replace("-", " ").split())
        if 1 < len(parts) <= 4:
            found.setdefault(parts[0], []).append(parts[1:])
    return {first: tuple(sorted(rest, key=len, reverse=True)) for first, rest in found.items()}


def plain(word: str) -> str:
    """Lower case, without accents, with a straight apostrophe."""
    lower = word.lower()
    if lower.isascii():
        return lower
    stripped = unicodedata.normalize("NFKD", lower.replace("’", "'"))
    return "".join(c for c in stripped if not unicodedata.combining(c))


STATES = frozenset(
    """
    alabama alaska arizona arkansas california colorado connecticut delaware florida hawaii idaho illinois
    indiana iowa kansas kentucky louisiana maine maryland massachusetts michigan minnesota mississippi missouri
    montana nebraska nevada ohio oklahoma oregon pennsylvania tennessee texas utah vermont virginia wisconsin
    wyoming ontario quebec manitoba saskatchewan alberta queensland tasmania bavaria saxony catalonia andalusia
    tuscany lombardy sicily brittany normandy kerala gujarat rajasthan bihar maharashtra karnataka telangana
    odisha assam punjab sindh balochistan yorkshire cornwall devon kent essex sussex surrey norfolk suffolk
    lancashire cheshire derbyshire hampshire somerset dorset wiltshire cumbria durham northumberland merseyside
    lincolnshire oxfordshire berkshire buckinghamshire hertfordshire bedfordshire cambridgeshire gloucestershire
    worcestershire warwickshire leicestershire staffordshire shropshire nottinghamshire fife galway mayo cork
    kerry donegal sligo connaught munster leinster gauteng limpopo mpumalanga""".split()
)
_STATES_OF_SEVERAL = frozenset(
    {"new jersey", "new mexico", "new hampshire", "new york", "north carolina", "south carolina", "north dakota",
     "south dakota", "rhode island", "west virginia", "british columbia", "nova scotia", "new brunswick",
     "new south wales",
     "western australia", "south australia", "northern ireland", "county cork", "tamil nadu", "uttar pradesh",
     "west bengal", "madhya pradesh", "andhra pradesh", "himachal pradesh", "long island", "bay area", "silicon valley"}
)  # fmt: skip

COUNTRIES = frozenset(
    """
    afghanistan albania algeria argentina armenia australia austria azerbaijan bahrain bangladesh belarus
    belgium belize bolivia botswana brazil bulgaria burundi cambodia cameroon canada chile china colombia congo
    croatia cuba cyprus denmark ecuador egypt england eritrea estonia ethiopia europe africa asia america fiji
    finland france gambia germany ghana greece greenland guatemala guyana haiti honduras hungary iceland india
    indonesia iran iraq ireland israel italy jamaica japan kazakhstan kenya kosovo kuwait laos latvia lebanon
    liberia libya lithuania luxembourg malawi malaysia mali malta mauritius mexico moldova mongolia morocco
    mozambique myanmar namibia nepal netherlands nicaragua niger nigeria norway oman pakistan palestine panama
    paraguay peru philippines poland portugal qatar romania russia rwanda samoa scotland senegal serbia
    singapore slovakia slovenia somalia spain sudan suriname sweden switzerland syria taiwan tanzania thailand
    tonga trinidad tunisia uganda ukraine uruguay uzbekistan venezuela vietnam wales yemen zambia zimbabwe usa
    uk us eu""".split()
)
NATIONS = frozenset(
    """
    english american british german french spanish italian indian chinese japanese korean african asian european
    mexican christian muslim jewish catholic hindu buddhist sikh mormon islam islamic arab arabic latino latina
    latinx hispanic black white irish scottish welsh polish russian ukrainian turkish greek dutch swedish
    canadian australian brazilian nigerian ghanaian kenyan somali ethiopian eritrean egyptian iranian iraqi
    afghan pakistani bangladeshi vietnamese filipino filipina thai caribbean jamaican portuguese romanian
    hungarian israeli palestinian syrian lebanese western eastern southern northern bible god jesus christ allah
    lord buddha quran koran torah ramadan eid diwali christmas easter thanksgiving halloween hanukkah passover
    lent covid monday tuesday wednesday thursday friday saturday sunday january february march april may june
    july august september october november december""".split()
)
"""Capitalised, but nobody's name."""
