"""Names of persons, places and organisations: which words may be one, and a small linear tagger that decides.

A word becomes a candidate by its form (a capital, or a word no dictionary has, or a name after "my sister"); the tagger
weighs classes of the words around it, not the words alone, so that it works on names and sentences it has not seen.
Trained by `scripts/train_tagger.py`; its weights are a table of numbers in `lists/tagger.json.gz`.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from warmline.corpus.anonymise.words import COUNTRIES, NATIONS, STATES, load, longer_places, plain

TAGS = ("O", "PERSON", "PLACE", "ORG")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CLASSES: dict[str, frozenset[str]] = {
    "kin": _words(

"mother mum mom mommy mummy mam mama ma father dad daddy papa pa parents brother bro "
"sister sis son daughter baby child kid twin "

"husband wife spouse partner boyfriend girlfriend bf gf fiance fiancee fiancé "
"fiancée ex ex-husband ex-wife ex-boyfriend "

"ex-girlfriend lover crush date uncle aunt auntie aunty cousin nephew niece grandma "
"grandmother gran nan nana granny grandpa "

"grandfather grandad granddad gramps stepdad stepmom stepmum stepfather stepmother "
"stepson stepdaughter stepbrother stepsister "

"half-brother half-sister godmother godfather godson goddaughter mother-in-law "
"father-in-law sister-in-law brother-in-law "

"daughter-in-law son-in-law family relative friend mate bestie buddy pal bff friends "
"roommate flatmate housemate neighbour neighbor "

"dog cat puppy kitten pet horse rabbit brother's sister's amma appa abuela abuelo "
"tia tio oma opa bibi halmoni eldest youngest "

"oldest toddler girl boy man guy woman lady person grandson granddaughter foster "
"classmate colleague coworker co-worker manager "

"supervisor boss lead teammate carer caregiver landlord landlady tenant lodger hubby "
"missus other half soulmate bully stalker "
        "abuser rapist kids children sons daughters sisters brothers twins"
    ),
    "pro": _words(

"therapist counsellor counselor psychologist psychiatrist doctor gp physician nurse "
"midwife social-worker worker teacher "

"professor tutor lecturer principal headteacher coach trainer pastor priest rabbi "
"imam minister vicar reverend chaplain mentor "

"sponsor lawyer solicitor attorney judge officer caseworker physio dentist surgeon "
"consultant advisor adviser adviser keyworker "

"specialist instructor sergeant detective dean secretary assistant receptionist "
"paediatrician pediatrician nanny babysitter"
    ),
    "title": _words(

"dr doctor mr mrs ms miss mx prof professor sir madam lady lord father sister "
"brother rev reverend pastor imam rabbi coach nurse "

"officer sergeant uncle aunt auntie aunty grandma grandpa nana nan gran judge "
"captain sheikh ustad chief dame sensei master "
        "herr frau señor señora monsieur madame tio tia cousin detective"
    ),
    "nameis": _words("named called name name's names nicknamed aka alias calls goes"),
    "greet": _words(
"hi hello hey dear hiya yo thanks thank bye goodbye sorry please regards love cheers "
"signed sincerely ok okay welcome xx morning"),
    "be": _words("is was are were am 's be been isn't wasn't is'nt isnt wasnt"),
    "aux": _words(

"has had have will would can could can't cant couldn't won't wont wouldn't should "
"does did do doesn't didn't doesnt didnt never "

"always just also still keeps kept left came went goes comes got gets gave gives "
"thinks thought wants wanted needs needed knows "

"knew loves loved hates hated likes liked feels felt died passed moved lives lived "
"lied cheated hit hits called calls texted "

"texts cried cries laughed laughs looked looks started starts stopped stops broke "
"works worked found finds took takes made makes "

"helped helps tried tries walked ran sat stood drinks drank seems seemed used hurt "
"hurts ignores ignored blames blamed blocked ghosted "

"refuses refused yells yelled shouted shouts screamed threatened promised proposed "
"noticed drove drives smiled sees saw heard bought "
        "brought let lets put puts turned turns became becomes won't hasn't hadn't hasnt"
    ),
    "say": _words(
"said says told tells asked asks say tell ask replied mentioned suggested explained "
"wrote texts insists insisted swears admitted"),
    "meet": _words(

"met meet meeting miss missed love loved hate saw see seeing visit visited visiting "
"date dated dating marry married marrying "

"divorced divorcing divorce lost losing left leave leaving trust trusted called call "
"calling text texted texting told tell telling "

"ask asked know knew remember hug hugged kissed hurt forgive forgave blame blamed "
"help helped raised raise adopted introduced "

"invite invited contacted contact emailed email phoned phone rang ring choose chose "
"want need watch watched find found"
    ),
    "with": _words(
"with without about by for between like of from to except besides against toward "
"towards and or & both poor little sweet young old dear"),
    "in": _words(
"in at near around outside inside across into via through throughout within from to "
"towards toward off"),
    "live": _words(

"live lives lived living born raised grew moved moving move relocated relocate "
"relocating settled stay stayed staying based from "

"flew fly flying drove drive driving travel travelled traveled travelling visit "
"visiting visited trip holiday vacation returned "

"return home back leave leaving left here down over up outskirts suburb suburbs area "
"town city village north south east west "
        "downtown central flat apartment house hometown"
    ),
    "work": _words(

"work works worked working job jobs employed hired fired intern internship interned "
"employer company firm shift shifts office "

"manager boss position role career contract redundant promoted quit resigned started "
"joined join volunteer volunteered cashier nurse "
        "accountant driver cleaner engineer developer clerk cook chef waiter waitress server receptionist barista"
    ),
    "study": _words(

"student students study studying studied school college university uni campus class "
"classes course degree freshman sophomore junior "

"senior graduate graduated dropped enrolled attend attends attended attending "
"transferred pupil teacher grade year"
    ),
    "poss": _words("my our his her their your ur mine ours"),
    "det": _words("the a an this that these those some any every each no another"),
    "pron": _words(
"i he she they we you it me him them us who i'm im she's he's they're we're you're "
"it's i've i'd i'll he'd she'd"),
    "and": _words("and & or"),
}  # fmt: skip
_CLASS_OF: dict[str, tuple[str, ...]] = {}
for _name, _members in CLASSES.items():
    for _word in _members:
        _CLASS_OF[_word] = (*_CLASS_OF.get(_word, ()), _name)

ORG_HEADS = _words(
    "inc ltd llc llp plc gmbh ag corp corporation company co group holdings partners "
    "associates sons brothers industries enterprises "
    "solutions services systems technologies technology tech consulting logistics foods "
    "motors electronics software studios media "
    "insurance bank credit union pharmacy clinic hospital infirmary hospice surgery "
    "medical centre center counselling counseling "
    "foundation trust charity society association institute council church chapel mosque "
    "temple synagogue cathedral parish ministries "
    "supermarket superstore store stores market hotel inn restaurant cafe café bakery "
    "diner pub bar grill gym fitness salon dental "
    "nursery daycare preschool school academy college university polytechnic elementary "
    "high library museum theatre laboratories labs "
    "pharma pharmaceuticals health healthcare care lodge house home works manufacturing "
    "plant factory warehouse construction builders "
    "plumbing roofing airlines airways railways transport trucking freight shipping "
    "express energy oil gas electric power securities "
    "capital financial finance advisors law legal agency staffing recruitment realty "
    "properties estates bookshop books press times "
    "daily herald gazette post prison jail shelter rehab recovery farm farms nurseries "
    "garage autos brewery distillery textiles "
    "security analytics plastics steel metals freight housing homes wholesale retail "
    "digital robotics engineering dynamics networks "
    "communications telecom mobile chemicals mining cement paper packaging printing "
    "catering cleaning laundry dairy butchers florist "
    "optics opticians veterinary vets kennels stables riding shelters outreach fashions "
    "designs interiors furniture hardware tools supplies wellness"
)
SCHOOL_HEADS = _words(
    "school academy college university polytechnic elementary preschool kindergarten "
    "secondary primary high grammar comprehensive "
    "middle institute sixth infant infants juniors prep seminary conservatory uni"
)
_GENERIC = _words(

"the a an my our his her their your this that local high middle primary elementary "
"secondary grammar public private state "

"medical nursing law business community technical junior senior boarding catholic "
"christian art music drama summer night sunday "

"old new first big small next same another every no any some mental health care home "
"nursing residential children's childrens "

"women's womens men's crisis counselling counseling family drug rehab rehabilitation "
"psychiatric general emergency animal "

"homeless youth support group insurance oil gas car construction tech call data in "
"at to from of for with and or but is was "

"day after before since during finish start left leave hate good bad online local "
"nearby whole entire dental eye food credit "

"department grocery clothing convenience corner book coffee fast free play pre post "
"middle-school high-school graduate grad "

"parent law-firm parish village town city county nearest favourite favorite rival "
"phone trust best world power recovery "

"special foster open cyber driving medical-school church dance cooking i it's its "
"i'm went go going skip skipping attend about "

"finance legal finished joining entered starting quit into through only one two "
"three four last which what when where during"
)  # fmt: skip

_TOKEN = re.compile(r"\[[A-Z]+_\d+\]|[^\W\d_]+(?:['’.\-][^\W\d_]+)*|\d+(?:[.,:]\d+)*|\n|[^\s]")


@dataclass(frozen=True, slots=True)
class Look:
    """What a word is wherever it stands; told once for every spelling."""

    word: str
    """Lower case, no accents, no possessive ending."""
    cut: int
    """Characters of "'s" and loose marks at its end."""
    shape: str
    """l lower, C capital, U all capitals, M mixed, n number, p punctuation, b placeholder."""
    lists: str
    """Letters for its lists: e everyday, c common, k known, f first, l last, t town, y city, s state, n nation."""
    name: Literal["never", "inside", "always", "ask"]
    """Whether it may be (part of) a name: never, only inside a sentence, always, or as the words around it say."""
    begins_place: bool
    """True if a place of several words begins with it."""


@dataclass(slots=True)
class Token:
    """A word of a text, and what is known about it."""

    text: str
    start: int
    end: int
    word: str
    core_end: int
    """Where the word ends without "'s"."""
    shape: str
    lists: str
    opens: bool
    """True at the beginning of a sentence or line."""
    look: Look
    place: bool = False
    """Part of a place of several words."""


def _shape(text: str) -> str:
    first = text[0]
    if first == "[" and len(text) > 3:
        return "b"
    if not first.isalpha():
        return "n" if first.isdigit() else "p"
    if text.islower():
        return "l"
    if text.isupper():
        return "U" if len(text) > 1 else "C"
    return "C" if first.isupper() else "M"


@functools.lru_cache(maxsize=65_536)
def _lists(word: str) -> str:
    found = ""
    for letter, name in _LETTERS:
        if word in load(name):
            found += letter
    if "c" not in found and "k" not in found and word.endswith("s") and len(word) > 3 and word[:-1] in load("common"):
        found += "c"
    if word in STATES:
        found += "s"
    if word in NATIONS or word in COUNTRIES:
        found += "n"
    if "-" in word and not found:
        parts = word.split("-")
        if all(p in load("common") or p in load("everyday") or len(p) < 2 for p in parts):
            found += "c"
        elif any(p in load("first") for p in parts):
            found += "f"
    if "'" in word and word.split("'")[-1] in ("t", "m", "ve", "re", "ll", "d"):
        found += "e"
    return found


_LETTERS = (
    ("e", "everyday"),
    ("c", "common"),
    ("k", "known"),
    ("f", "first"),
    ("l", "last"),
    ("y", "cities"),
    ("t", "towns"),
)


@functools.lru_cache(maxsize=32_768)
def _look(piece: str) -> Look:
    shape = _shape(piece)
    if shape in "npb":
        return Look(plain(piece), 0, shape, "", "never", piece in longer_places())
    core = piece
    if core[-2:] in ("'s", "’s", "'S", "’S"):
        core = core[:-2]
    core = core.rstrip("'’.-")
    word = plain(core)
    lists = _lists(word)
    return Look(word, len(piece) - len(core), shape, lists, _may_be_name(word, shape, lists), word in longer_places())


def _may_be_name(word: str, shape: str, lists: str) -> Literal["never", "inside", "always", "ask"]:
    """Made to miss nothing; the tagger says no to most."""
    if not word or len(word) > 30 or ("." in word and len(word) > 4) or word in _NEVER:
        return "never"
    if shape != "l":
        return "always" if "e" not in lists or "f" in lists or "l" in lists else "inside"
    if len(word) < 2:
        return "never"
    return "always" if "e" not in lists and ("c" not in lists or "f" in lists or "y" in lists) else "ask"


def tokens(text: str) -> list[Token]:
    """Words and marks of a text with what the lists say of them."""
    found: list[Token] = []
    opens = True
    placed = False
    for match in _TOKEN.finditer(text):
        piece = match[0]
        start, end = match.span()
        look = _look(piece)
        shape = look.shape
        if piece == "\n":
            opens = True
        found.append(Token(piece, start, end, look.word, end - look.cut, shape, look.lists, opens, look))
        placed = placed or look.begins_place
        if shape != "p":
            opens = False
        elif piece in ".!?:\n" or piece in '"“-–—*•':
            opens = True
    if placed:
        _mark_places(found)
    return found


def _mark_places(found: list[Token]) -> None:
    longer = longer_places()
    for index, token in enumerate(found):
        if not token.look.begins_place:
            continue
        rests = longer[token.word]
        following = found[index + 1].word if index + 1 < len(found) else ""
        for rest in rests:
            if rest[0] != following:
                continue
            words = tuple(t.word for t in found[index + 1 : index + 1 + len(rest)])
            if words != rest:
                continue
            span = found[index : index + 1 + len(rest)]
            capital = all(t.shape in "CU" for t in span)
            # "most", "of", "the bay": everyday words in lower case are no place.
            if capital or not all("e" in t.lists for t in span):
                for member in span:
                    member.place = True
                break


def _caps_lock(found: Sequence[Token]) -> bool:
    """True when capitals say nothing because (nearly) all is in capitals, or nearly every word begins with one."""
    shapes = "".join([t.shape for t in found if t.end - t.start > 1])
    upper, capital = shapes.count("U"), shapes.count("C")
    long = upper + capital + shapes.count("l") + shapes.count("M")
    return long >= 5 and (upper > 0.6 * long or capital > 0.7 * long)


def is_candidate(found: Sequence[Token], index: int) -> bool:
    """Whether a word may be (part of) a name at all."""
    token = found[index]
    maybe, lists = token.look.name, token.lists
    if token.place:
        return token.shape not in "npb" and len(token.word) <= 30 and ("." not in token.word or len(token.word) <= 4)
    if maybe != "ask":
        return maybe == "always" or (maybe == "inside" and not token.opens)
    before = _before(found, index, 1)
    classes = _CLASS_OF.get(before.word, ()) if before else ()
    if ("kin" in classes or "pro" in classes) and ("f" in lists or "l" in lists):
        return True
    if "title" in classes and "e" not in lists:
        return True
    if "nameis" in classes and token.word not in _CLASS_OF and ("e" not in lists or "f" in lists):
        return True
    if "f" in lists:
        after = _after(found, index, 1)
        return bool(
            ("with" in classes or "and" in classes or "meet" in classes or "greet" in classes)
            or (after and {"say", "aux", "be"} & set(_CLASS_OF.get(after.word, ())))
        )
    return bool(("y" in lists or "t" in lists) and "in" in classes)


_NEVER = _words(
    "i i'm im i've ive i'd i'll a an the and or but if so it it's its is was he she they "
    "we you my your his her our their to of in on at by "
    "for with not no yes do don't dont can't cant what when how why who that this there "
    "here me him them us as be am are were will would can "
    "could should have has had just then than too very really like ok okay oh well up "
    "down out off over about from into all any some more most "
    "one two three now never always because been being did does didn't get got going "
    "gonna wanna know think feel want need see say said let "
    "much many also only even still back after before again ever every something nothing "
    "anything everything someone anyone everyone nobody "
    "mum mom dad mother father sister brother wife husband therapist doctor mr mrs ms dr "
    "miss god lol omg tbh idk ptsd ocd adhd bpd cbt dbt "
    "emdr gp er a&e hr tv pc cv ceo ssri ssris lgbt lgbtq usa uk us eu bf gf nhs aa na "
    "covid pm am etc ie eg ps pps faq diy ok thanks hello hi "
    "hey dear please sorry btw tho imo tbf"
)


def _before(found: Sequence[Token], index: int, back: int) -> Token | None:
    at = index - back
    return found[at] if at >= 0 else None


def _after(found: Sequence[Token], index: int, ahead: int) -> Token | None:
    at = index + ahead
    return found[at] if at < len(found) else None


def _context(token: Token | None) -> tuple[str, ...]:
    """What a neighbouring word is, in a few words."""
    if token is None:
        return ("edge",)
    if token.shape == "p":
        return ("p" + token.text,) if token.text in ",.!?:;\"'()-–—\n&/@" else ("p",)
    if token.shape in "nb":
        return (token.shape,)
    classes = _CLASS_OF.get(token.word, ())
    if classes:
        return classes
    if token.word in ORG_HEADS:
        return ("org",)
    if token.shape in "CU" and not token.opens:
        return ("cap",)
    if "e" in token.lists or "c" in token.lists:
        return ("w",)
    return ("rare",)


def features(found: Sequence[Token], index: int, before_tag: str, locked: bool, lower_too: bool) -> list[str]:
    """What the tagger sees of a candidate. `before_tag` is the tag of the word before; `lower_too`: the same word also
    stands in lower case elsewhere in the text."""
    token = found[index]
    shape = "X" if locked else token.shape
    opens = token.opens and shape == "C"
    s = f"{shape}{'o' if opens else ''}"
    lists = token.lists
    level = "e" if "e" in lists else "c" if "c" in lists else "k" if "k" in lists else "u"
    if lower_too and level == "u":
        level = "v"
    gaz = "".join(letter for letter in "flytsn" if letter in lists)
    name = "f" if "f" in gaz else "l" if "l" in gaz else ""
    spot = "y" if "y" in gaz else "s" if "s" in gaz else "t" if "t" in gaz else ""
    one, two, three = _before(found, index, 1), _before(found, index, 2), _before(found, index, 3)
    next_one, next_two = _after(found, index, 1), _after(found, index, 2)
    c1, c2, c3 = _context(one), _context(two), _context(three)
    n1, n2 = _context(next_one), _context(next_two)
    owned = token.core_end < token.end
    out = [
        "bias", f"s:{s}", f"v:{level}:{s}", f"g:{gaz}:{level}:{s}", f"nm:{name}:{level}:{s}", f"sp:{spot}:{level}:{s}",
        f"t1:{before_tag}", f"t1g:{before_tag}:{name}{spot}:{level}:{s}", f"pl:{token.place}:{s}",
        f"ow:{owned}:{name}:{level}", f"len:{min(len(token.word), 9)}:{level}",
    ]  # fmt: skip
    out += [f"p1:{c}" for c in c1] + [f"p1v:{c}:{level}:{s}" for c in c1] + [f"p1g:{c}:{name}:{spot}" for c in c1]
    out += [f"n1:{c}" for c in n1] + [f"n1v:{c}:{level}:{s}" for c in n1] + [f"n1g:{c}:{name}:{spot}" for c in n1]
    out += [f"p2:{a}:{b}" for a in c2 for b in c1] + [f"n2:{a}:{b}" for a in n1 for b in n2]
    out += [f"pn:{a}:{b}:{level}" for a in c1 for b in n1]
    out += [f"p3:{c}:{level}" for c in c3]
    if one is not None and one.shape in "lC" and "e" in one.lists:
        out.append(f"w1:{one.word}")
        out.append(f"w1v:{one.word}:{level}")
    if two is not None and two.shape in "lC" and "e" in two.lists:
        out.append(f"w2:{two.word}")
    if next_one is not None and next_one.shape == "l" and "e" in next_one.lists:
        out.append(f"x1:{next_one.word}")
    if level in "ukv":
        out.append(f"suf3:{token.word[-3:]}")
        out.append(f"suf2:{token.word[-2:]}:{s}")
    for neighbour, label in ((one, "gp"), (next_one, "gn")):
        if neighbour is not None and neighbour.shape in "lCUM":
            kind = "".join(letter for letter in "efly" if letter in neighbour.lists)
            out.append(f"{label}:{kind}:{neighbour.shape}:{s}")
    if token.word in ORG_HEADS:
        out.append(f"head:{s}")
    return out


@functools.cache
def weights() -> tuple[dict[str, tuple[float, ...]], tuple[float, ...]]:
    """The trained table: feature → weight of each tag, and what a tag must win by."""
    packed = (resources.files("warmline.corpus") / "lists" / "tagger.json.gz").read_bytes()
    table = json.loads(gzip.decompress(packed))
    return {name: tuple(row) for name, row in table["weights"].items()}, tuple(table["offsets"])


def after_other(token: Token, previous: str) -> str:
    """What is remembered past a word that is no candidate: "Ana, Bo and Cy" goes on through its marks."""
    if token.text == "," or token.word in ("and", "or", "&", "+"):
        return previous if previous == "O" or previous.endswith(",") else previous + ","
    return "O" if token.shape != "p" or token.text in ".!?\n" else previous


def tag(found: Sequence[Token]) -> list[str]:
    """The tag of every word, left to right."""
    table, offsets = weights()
    tags = ["O"] * len(found)
    locked = _caps_lock(found)
    lower: set[str] | None = None
    previous = "O"
    for index, token in enumerate(found):
        if (token.look.name == "never" and not token.place) or not is_candidate(found, index):
            if previous != "O":
                previous = after_other(token, previous)
            continue
        if lower is None:
            lower = {t.word for t in found if t.shape == "l"}
        scores = list(offsets)
        for feature in features(found, index, previous, locked, token.word in lower):
            row = table.get(feature)
            if row is not None:
                for position, weight in enumerate(row):
                    scores[position] += weight
        scores[0] -= _doubt(found, index, locked)
        best = max(range(len(TAGS)), key=scores.__getitem__)
        tags[index] = previous = TAGS[best]
    if not locked:
        _complete(found, tags)
    return tags


def _doubt(found: Sequence[Token], index: int, locked: bool) -> float:
    """By how much a name is preferred in doubt. Masking too little harms a person, masking too much a sentence."""
    token = found[index]
    if token.word in _CLINICAL or "n" in token.lists:
        return -4.0
    capital = token.shape in "CM" and not token.opens and not locked
    unknown = not {"e", "c", "k"} & set(token.lists)
    if token.shape == "l" and not unknown and index and found[index - 1].shape == "n":
        return -6.0  # "2 miles": a number is followed by what is counted
    if token.opens and token.shape == "C" and "e" in token.lists and token.core_end == token.end:
        after = _after(found, index, 1)
        if after is not None and after.shape == "l" and "e" in after.lists:
            # "Hope this helps", "Will you": a verb opens the sentence; "Hope said" is a name.
            return 0.5 if {"say", "aux", "be", "and"} & set(_CLASS_OF.get(after.word, ())) else -3.0
    if capital:
        return 6.0 if unknown else 2.5 if {"f", "l", "y"} & set(token.lists) else 0.5
    if not token.lists and token.shape == "l" and _misspelt(token.word):
        return -1.5
    if token.shape == "U" and not locked and len(token.word) <= 5:
        return -1.5  # letters that stand for something: degrees, offices, methods
    return 2.0 if unknown else 0.5 if "f" in token.lists else 1.0


def _complete(found: Sequence[Token], tags: list[str]) -> None:
    """A capital word that stands beside a name belongs to it: "Will O'Hara", "Hexagon Street"."""
    for index in range(len(found)):
        if tags[index] == "O" or found[index].shape not in "CM":
            continue
        for step in (-1, 1):
            at = index + step
            while 0 <= at < len(found) and tags[at] == "O" and found[at].shape in "CM" and found[at].word not in _NEVER:
                left = found[min(at, at - step)]
                lists = found[at].lists
                if left.core_end < left.end or "n" in lists or ("e" in lists and not {"f", "l"} & set(lists)):
                    break
                if found[at].opens and {"e", "c"} & set(lists) and not {"f", "l"} & set(lists):
                    break
                tags[at] = tags[index]
                at += step


@functools.cache
def _near_everyday() -> frozenset[str]:
    return frozenset(w[:i] + w[i + 1 :] for w in load("everyday") if len(w) >= 5 for i in range(len(w)))


@functools.lru_cache(maxsize=16_384)
def _misspelt(word: str) -> bool:
    """Looks like an everyday word with a letter too many, too few, changed or swapped."""
    if len(word) < 5 or "f" in _lists(word):
        return False
    near, everyday = _near_everyday(), load("everyday")
    if word in near:
        return True
    return any((cut := word[:i] + word[i + 1 :]) in everyday or cut in near for i in range(len(word)))


_CLINICAL = _words(
    "prozac zoloft lexapro celexa paxil effexor wellbutrin cymbalta xanax ativan "
    "klonopin valium ambien trazodone remeron lamictal seroquel "
    "abilify zyprexa risperdal lithium depakote ritalin adderall concerta vyvanse "
    "strattera sertraline fluoxetine citalopram escitalopram "
    "paroxetine venlafaxine mirtazapine duloxetine bupropion amitriptyline diazepam "
    "lorazepam clonazepam alprazolam zopiclone propranolol "
    "quetiapine olanzapine aripiprazole risperidone clozapine haloperidol lamotrigine "
    "valproate methylphenidate atomoxetine naltrexone "
    "methadone buprenorphine suboxone naloxone antabuse melatonin ibuprofen paracetamol "
    "tylenol advil benadryl nyquil ketamine psilocybin "
    "mdma lsd thc cbd weed cannabis marijuana kratom fentanyl oxycontin percocet vicodin "
    "tramadol codeine gabapentin pregabalin lyrica "
    "buspar buspirone hydroxyzine vistaril ozempic insulin metformin levothyroxine "
    "asperger aspergers autism alzheimer alzheimers "
    "parkinson parkinsons tourette tourettes bipolar schizophrenia schizoaffective "
    "borderline narcissist narcissistic depression anxiety "
    "agoraphobia emetophobia trichotillomania dermatillomania bulimia anorexia "
    "orthorexia misophonia fibromyalgia endometriosis pcos pmdd "
    "dissociation dpdr alexithymia codependency limerence freud jung freudian jungian "
    "phq gad lent advent netflix tinder hinge bumble "
    "grindr whatsapp facebook instagram snapchat tiktok twitter youtube google reddit "
    "discord zoom minecraft fortnite xbox playstation "
    "internet english maths math biology chemistry physics geography history french "
    "spanish german psychology gcse gcses sats btec "
    "january february march june july august september october november december monday "
    "tuesday wednesday thursday friday "
    "saturday sunday christmas easter halloween hanukkah ramadan diwali eid xmas nye kpop anime bts potter "
    "haha hahaha lol lmao hehe hmm hm ah oh ooh aw aww ugh uh um wow yay yeah yea yep "
    "yup nope nah bye goodbye fuck shit damn bleh welp jus atm "
    "rn irl smh imo imho omg wtf lmk ty tysm np soo sooo okie alot thats whats dont cant "
    "wont iam merry happy edit update tldr people love true "
    "lady job art press cash chase lockdown corona pandemic mturk uber lyft linkedin "
    "facetime rollercoaster fricking freaking uni hi-fi wifi "
    "yoga lmhc lmft lcsw lpc lpcc lmsw ncc dbh phd psyd lmac msw mft meds mindset stressors subreddit"
)


def runs_of(found: Sequence[Token], tags: Sequence[str]) -> Iterable[tuple[int, int, str]]:
    """Neighbouring words with the same tag as one name: (first, last, tag)."""
    index = 0
    while index < len(found):
        name = tags[index]
        if name == "O":
            index += 1
            continue
        last = index
        while last + 1 < len(found):
            following = found[last + 1]
            if tags[last + 1] == name:
                last += 1
            elif (
                following.text in (".", "-", "'")
                and last + 2 < len(found)
                and tags[last + 2] == name
                and (len(found[last].word) <= 2 and found[last].shape in "CU")
            ):
                last += 2
            else:
                break
            if found[last - 1].core_end < found[last - 1].end:
                last -= 1
                break
        yield index, last, name
        index = last + 1
