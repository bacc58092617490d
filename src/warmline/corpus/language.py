"""Tell which language a text is in, from its script and its commonest words. No model, no network.

Made for one decision, whether a conversation is in the wanted language; short texts stay undecided.
"""

from __future__ import annotations

import re
from collections import Counter

_COMMON: dict[str, str] = {
    "en": "the and to of a i is that it in you my for me not have be with but on this do are was so what he she they "
    "just if your can about how at when feel from or as know would all like been am we there want get don't i'm im "
    "dont it's will an has who her him had them really because no out up more think time any should could",
    "de": "der die das und ich nicht ist es zu ein eine mit mir du sie wir auf für den dem im auch wenn aber war wie "
    "mich dass habe haben bin sich von so noch nur schon kann was mein meine immer oder nach bei mehr über weil hat",
    "fr": "le la les et je de un une est pas que qui des en pour dans ce mon ma mes il elle sur avec ne se au suis "
    "mais plus moi tout vous nous j'ai c'est être avoir si comme ou très depuis fait ai me on cette sont par",
    "es": "el la los las y que de no en un una es me mi por con para lo se como pero muy yo más mis estoy soy tengo "
    "cuando porque si su le todo esto sobre hace desde ha al nada siempre sin también este del puedo qué ella",
    "it": "il la i gli le e di che non un una è mi per con sono ma come più ho mia mio se questo anche quando nel "
    "della cosa molto lo da perché tutto sempre io ci si al dei ha essere fare sento o mai poi",
    "pt": "o a os as e que de não um uma é eu me para com em por mais mas como minha meu se isso muito quando porque "
    "já estou tenho ele ela do da no na você também ser foi tudo sem sobre sinto nos dos ao à até",
    "nl": "de het een en ik van niet is dat in te je mijn met voor op zijn maar als er aan ook heb ben die wat bij nog "
    "me naar om zo hij ze we of kan moet mij door uit over geen wel meer altijd omdat hebben",
    "id": "yang dan aku saya di ini itu tidak dengan untuk dari ke ada juga bisa kamu kita mereka sudah akan tapi "
    "gak nggak lagi karena kalau apa banget sama udah jadi aja buat sih kok ya pada dalam atau lebih merasa tak hanya",
    "sv": "och jag att det är inte som en på för med har av till den mig så men om kan när min var vi ett de du han "
    "hon mitt alltid eller också från bara vad mycket skulle detta sig vid här känner",
    "pl": "i nie się to w na że z jest jak do mnie ja co mam ale po za tak od już mi jestem być tylko czy dla ten "
    "przez przy jego ich być kiedy może bardzo moja mój sobie tego",
    "tr": "bir ve bu ben için çok ne ama de da gibi daha o var benim mi kadar sonra bana beni her şey değil olarak ki "
    "nasıl zaman hiç yok en ya ile kendimi neden diye olan",
    "ro": "și de nu în la că o cu pe un mai este sunt să mă din pentru ce am dar îmi se ca fi care când foarte mea "
    "meu asta tot fost acum",
    "tl": "ang ng sa na ako ko mga ay hindi at po naman lang siya kasi para yung nang mo ka niya pero ito kung may",
    "sw": "na ya wa ni kwa mimi si sana nina yangu kuwa hii katika lakini kama hiyo au yake za la cha mtu hawa wangu",
    "vi": "tôi là và của không có cho một với những được này trong rất đã người khi nhưng mình thì cũng như bạn",
}
_SCRIPTS = (
    ("ru", "[\u0400-\u04ff]"),
    ("el", "[\u0370-\u03ff]"),
    ("he", "[\u0590-\u05ff]"),
    ("ar", "[\u0600-\u06ff]"),
    ("hi", "[\u0900-\u097f]"),
    ("bn", "[\u0980-\u09ff]"),
    ("ta", "[\u0b80-\u0bff]"),
    ("th", "[\u0e00-\u0e7f]"),
    ("ko", "[\uac00-\ud7af]"),
    ("ja", "[\u3040-\u30ff]"),
    ("zh", "[\u4e00-\u9fff]"),
)
_OWNERS: dict[str, list[str]] = {}
for _code, _line in _COMMON.items():
    for _word in set(_line.split()):
        _OWNERS.setdefault(_word, []).append(_code)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_ENOUGH = 12
"""Words below which a text stays undecided."""


def of(text: str) -> str:
    """The language's code, or "" when the text is too short or too mixed to say.

    >>> of("I don't know what to do, my mother says that I should just get over it and go back to work")
    'en'
    >>> of("Ich weiß nicht mehr weiter, meine Mutter sagt immer, dass ich mich nicht so anstellen soll")
    'de'
    """
    if not text.isascii():
        letters = sum(c.isalpha() for c in text[:4000]) or 1
        for code, pattern in _SCRIPTS:
            if len(re.findall(pattern, text[:4000])) > 0.4 * letters:
                return code
    words = _WORD.findall(text[:6000].lower().replace("’", "'"))[:400]
    if len(words) < _ENOUGH:
        return ""
    points: dict[str, float] = {}
    for word, times in Counter(words).items():
        if owners := _OWNERS.get(word):
            # A word that many languages share says little.
            each = times / len(owners)
            for code in owners:
                points[code] = points.get(code, 0.0) + each
    if not points:
        return ""
    ranked = sorted(points.items(), key=lambda pair: -pair[1])
    (best, most), second = ranked[0], ranked[min(1, len(ranked) - 1)][1]
    if most < 0.12 * len(words):
        return ""
    return best if most > 1.3 * second or len(points) == 1 else ""
