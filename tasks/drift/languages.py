"""Which language a text seems to be in: by its script, and where that is Latin or Cyrillic, by the
commonest function words.

No library: those that tell languages apart well bring megabytes of model and are one more input of
every stage, where a drift check asks only whether the mix has changed.  A text with too few such words
(a reference, a list of goods) is `unsure`, which is a class like any other.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

UNSURE = "unsure"
LEAST_WORDS = 2
"""Function words that a text must have of a language."""

_FUNCTION_WORDS = {
    "en": "the and is are was to of for with not we you please has have be our this that it on at",
    "de": "der die das und ist sind nicht mit für auf wir sie bitte ein eine von zu im den wurde hat",
    "fr": "le la les et est sont pas avec pour sur nous vous une des du au dans ce que qui il elle",
    "es": "el la los las y es son no con para por una del que en se su al como está hay lo",
    "pt": "o os as e é são não com para por uma do da que em se seu ao como está há um",
    "it": "il la gli e è sono non con per una del della che in si su al come di lo nel",
    "nl": "de het een en is zijn niet met voor op wij u van te in dat die wordt aan bij naar",
    "sv": "och är inte med för på vi en ett av att som till den det har från kan ska om",
    "da": "og er ikke med for på vi en et af at som til den det har fra kan skal om jeg",
    "nb": "og er ikke med for på vi en et av å som til den det har fra kan skal om jeg",
    "fi": "ja on ei että se ovat mutta kun tai oli ole joka myös niin kuin hän minä tämä",
    "pl": "i jest nie z na w do się że to o są jak dla od po ale czy przez tak",
    "cs": "a je není s na v do se že to o jsou jak pro od po ale nebo která byl",
    "ro": "și este nu cu pe în la de că o sunt pentru din un care mai fi ca sau dar",
    "tr": "ve bir bu için ile değil da de ne var daha çok gibi olarak ama kadar mi en",
    "hu": "a az és nem hogy van egy is de ez meg csak már mint volt vagy kell ha",
    "id": "dan yang di ke dari untuk tidak ini itu dengan adalah pada akan sudah saya kami atau ada",
    "ru": "и в не на что с по это как для из от мы вы был есть но то или уже",
    "uk": "і в не на що з по це як для із від ми ви був є але то або вже",
    "bg": "и в не на че с по това как за от ние вие беше е но то или вече са",
}
_OF_WORD: dict[str, tuple[str, ...]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _OF_WORD[_word] = (*_OF_WORD.get(_word, ()), _language)

_SHARED = ("LATIN", "CYRILLIC")
"""Scripts that many languages are written in."""


def guess(words: Sequence[str]) -> str:
    """The language of a text by its words, case folded: an ISO 639-1 code, a script's name in lower
    case, or UNSURE."""
    known = _OF_WORD.keys() & set(words)
    if len(known) >= LEAST_WORDS:
        votes = Counter(language for word in known for language in _OF_WORD[word])
        (best, most), *rest = votes.most_common(2)
        if most >= LEAST_WORDS and (not rest or rest[0][1] < most):
            return best
    if all(map(str.isascii, words)):
        return UNSURE
    scripts = Counter(filter(None, map(_script, words)))
    if scripts and (script := scripts.most_common(1)[0][0]) not in _SHARED:
        return script.lower()
    return UNSURE


def guess_all(texts: Iterable[Sequence[str]]) -> list[str]:
    """The language of each text."""
    return [guess(words) for words in texts]


@lru_cache(1 << 16)
def _script(word: str) -> str | None:
    """The script of a word's first letter, as Unicode names it."""
    letter = next((letter for letter in word if letter.isalpha()), None)
    return None if letter is None else unicodedata.name(letter, "UNKNOWN").split(" ")[0]
