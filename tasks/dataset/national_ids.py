"""Social security, tax and identity numbers of people, in text.

Numbers with a checksum are checked by python-stdnum.  A number of digits alone passes a weak
checksum one time in ten, and orders, containers and parcels have numbers too.  So what is found is

- in its own form, where that is distinctive and no word such as `order` or `lot` is before it:
  Belgium (85.07.30-033.28), Brazil CPF (390.533.447-05), Chile RUT (12.531.909-2), China (18
  digits), Czechia and Slovakia (710319/2745), Finland (131052-308T), France NIR, Italy codice
  fiscale, Korea RRN, Latvia (161175-19997), Mexico CURP, Norway (151086 95077), Spain DNI and NIE
  with a hyphen, Sweden (880320-0016), Switzerland AHV (756.9217.0769.85), Thailand
  (7-1006-00445-63-5), United Kingdom National Insurance with spaces (AB 12 34 56 C), United States
  SSN and ITIN (536-90-4399);
- beside a word that names it: the above without their punctuation, and Australia TFN, Austria VNR,
  Bulgaria EGN, Canada SIN, Croatia OIB, Denmark CPR, Estonia, Germany IdNr, Greece AMKA, Iceland,
  India Aadhaar and PAN, Ireland PPS, Israel, Lithuania, Malaysia NRIC, Netherlands BSN, Poland
  PESEL, Portugal NIF, Romania CNP, Slovenia EMSO, South Africa, Turkey, United Kingdom NHS.

The British National Insurance, the American, Danish and Malaysian numbers have no checksum; they
are judged by form, by ranges never issued and by dates no calendar has.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator

Span = tuple[int, int]


def find(text: str) -> Iterator[Span]:
    """Start and end of every national id in a text; spans may overlap."""
    for kind, match in _forms(text):
        if not is_unlike(text, match.start()) and (
            _is_proof(kind, match[0]) or kind in _named(text, match.start())
        ):
            yield match.span()
    for match in _CANDIDATE.finditer(text):
        if any(_holds(kind, match[0]) for kind in _named(text, match.start())):
            yield match.span()


def find_proven(text: str) -> Iterator[Span]:
    """Those that need no word beside them."""
    for kind, match in _forms(text):
        if _is_proof(kind, match[0]) and not is_unlike(text, match.start()):
            yield match.span()


def is_unlike(text: str, start: int) -> bool:
    """Whether the word before a number says that it is that of a thing: an order, a part, a lot."""
    return _THING.search(text, max(0, start - _REACH), start) is not None


def _forms(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    for pattern, possible in ((_NUMERIC, _STRETCH), (_LETTERED, _CAPITALS)):
        for match in pattern.finditer(text) if possible.search(text) else ():
            kind = match.lastgroup or ""
            if _holds(kind, match[0]):
                yield kind, match


def _is_proof(kind: str, number: str) -> bool:
    """Whether a number of this kind is distinctive enough to be found by itself."""
    if kind in _NEED_PUNCTUATION:
        return " " in number or "-" in number
    return kind not in _NEED_A_WORD


def _named(text: str, start: int) -> tuple[str, ...]:
    """Kinds that the word before a number allows."""
    before = _BEFORE.search(text, max(0, start - _REACH), start)
    if before is None:
        return ()
    return _WORDS.get(" ".join(before["word"].casefold().replace("-", " ").split()), _ALL)


# A group is named after the module of python-stdnum that knows the checksum.
_NUMERIC = re.compile(
    r"(?<![\w.,/+-])(?:"
    r"(?P<us_ssn>[0-8][0-9]{2}-[0-9]{2}-[0-9]{4})"
    r"|(?P<us_itin>9[0-9]{2}-[0-9]{2}-[0-9]{4})"
    r"|(?P<es_dni>[0-9]{8}-?[A-Z])"
    r"|(?P<fr_nir>[12] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2})"
    r"|(?P<be_nn>[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2})"
    r"|(?P<ch_ssn>756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2})"
    r"|(?P<se_personnummer>(?:19|20)?[0-9]{6}[-+][0-9]{4})"
    r"|(?P<fi_hetu>[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-Y])"
    r"|(?P<lv_pvn>[0-9]{6}-[0-9]{5})"
    r"|(?P<cz_rc>[0-9]{6}/[0-9]{4})"
    r"|(?P<no_fodselsnummer>[0-9]{6} [0-9]{5})"
    r"|(?P<br_cpf>[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2})"
    r"|(?P<cl_rut>[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk])"
    r"|(?P<cn_ric>[1-9][0-9]{16}[0-9Xx])"
    r"|(?P<kr_rrn>[0-9]{6}-[0-9]{7})"
    r"|(?P<ca_sin>[0-9]{3}-[0-9]{3}-[0-9]{3})"
    r"|(?P<my_nric>[0-9]{6}-[0-9]{2}-[0-9]{4})"
    r"|(?P<th_pin>[0-9]-[0-9]{4}-[0-9]{5}-[0-9]{2}-[0-9])"
    r")(?![\w/-]|[.,][0-9])"
)
_STRETCH = re.compile(r"[0-9][0-9 ./+-]{5}[0-9 A-Z./+-]{3}")
_LETTERED = re.compile(
    r"(?<![\w.,/+-])(?:"
    r"(?P<gb_nino>[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D])"
    r"|(?P<es_nie>[XYZ]-?[0-9]{7}-?[A-Z])"
    r"|(?P<in__pan>[A-Z]{5}[0-9]{4}[A-Z])"
    r"|(?P<it_codicefiscale>[A-Z]{3} ?[A-Z]{3} ?[0-9L-V]{2}[A-EHLMPR-T][0-9L-V]{2} ?"
    r"[A-Z][0-9L-V]{3}[A-Z])"
    r"|(?P<mx_curp>[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9])"
    r")(?![\w/-])"
)
_CAPITALS = re.compile(r"[A-Z](?:[A-Z](?: ?[0-9]{2}){3}|-?[0-9]{7}|[A-Z]{2,5}[0-9A-Z ]{5})")

_NEED_PUNCTUATION = frozenset({"gb_nino", "es_dni", "es_nie"})
_NEED_A_WORD = frozenset({"ca_sin", "my_nric", "in__pan"})
"""A part number or a booking may have the same form and pass, or there is no checksum."""

_THING = re.compile(
    r"(?<!\w)(?:sku|parts?|p/n|upc|ean|gtin|isbn|issn|m?awb|hawb|waybill|tracking|order|article|art"
    r"|ticket|lot|batch|serial|s/n|version|imei|invoice|booking|container|parcel|consignment"
    r"|shipment|model|item|po|fedex|dhl)(?!\w)"
    r"(?:[ -]?(?:number|num|no|nr|id|code)(?!\w))?[ .:#=(\"'-]{0,4}\Z",
    re.IGNORECASE,
)

_WORDS: dict[str, tuple[str, ...]] = {
    "ssn": ("us_ssn", "us_itin"),
    "itin": ("us_itin",),
    "social": ("us_ssn", "us_itin"),
    "nie": ("es_nie",),
    "nric": ("my_nric",),
    "mykad": ("my_nric",),
    "pan": ("in__pan",),
    "social insurance": ("ca_sin",),
    "sin": ("ca_sin",),
    "bsn": ("nl_bsn",),
    "burgerservicenummer": ("nl_bsn",),
    "nhs": ("gb_nhs",),
    "national insurance": ("gb_nino",),
    "nino": ("gb_nino",),
    "steuer id": ("de_idnr",),
    "idnr": ("de_idnr",),
    "steueridentifikationsnummer": ("de_idnr",),
    "svnr": ("at_vnr",),
    "sozialversicherungsnummer": ("at_vnr",),
    "pesel": ("pl_pesel",),
    "cnp": ("ro_cnp",),
    "egn": ("bg_egn",),
    "oib": ("hr_oib",),
    "emso": ("si_emso",),
    "isikukood": ("ee_ik",),
    "asmens kodas": ("lt_asmens",),
    "kennitala": ("is__kennitala",),
    "cpr": ("dk_cpr",),
    "personnummer": ("se_personnummer", "no_fodselsnummer"),
    "fødselsnummer": ("no_fodselsnummer",),
    "rijksregisternummer": ("be_nn",),
    "registre national": ("be_nn",),
    "sécurité sociale": ("fr_nir",),
    "amka": ("gr_amka",),
    "pps": ("ie_pps",),
    "ppsn": ("ie_pps",),
    "nif": ("pt_nif", "es_dni"),
    "dni": ("es_dni", "es_nie", "cl_rut"),
    "rut": ("cl_rut",),
    "cpf": ("br_cpf",),
    "tfn": ("au_tfn",),
    "tax file number": ("au_tfn",),
    "aadhaar": ("in__aadhaar",),
    "tckn": ("tr_tckimlik",),
    "tc kimlik": ("tr_tckimlik",),
    "teudat zehut": ("il_idnr",),
    "rodné číslo": ("cz_rc",),
    "ahv": ("ch_ssn",),
}
# Words that every country uses: a number beside them need only satisfy one country's checksum.
_ANYWHERE = (
    *("social security", "national id", "identity number", "identity card", "id card"),
    *("personal code", "personal identification number", "tax id", "taxpayer id", "tax number"),
)
_ALL = tuple(
    dict.fromkeys(
        [
            *(kind for kinds in _WORDS.values() for kind in kinds),
            *("es_nie", "in__pan", "za_idnr", "cn_ric", "kr_rrn", "lv_pvn", "my_nric", "th_pin"),
        ]
    )
)
_CANDIDATE = re.compile(r"[0-9](?<![\w.,/+-][0-9])(?:[ ./-]?[0-9]){5,17}(?:[ -]?[A-Z]{1,2})?(?!\w)")
_REACH = 48
_BEFORE = re.compile(
    r"(?<!\w)(?P<word>"
    + "|".join(
        re.escape(word).replace(r"\ ", "[ -]")
        for word in sorted([*_WORDS, *_ANYWHERE], key=len, reverse=True)
    )
    + r")(?!\w)(?:[ -]?(?:number|no|nr|id|code))?\.?[ :=#(\"'\\-]{0,6}(?:(?:is|was)[ :]{1,2})?\Z",
    re.IGNORECASE,
)


def _holds(kind: str, number: str) -> bool:
    return _validator(kind)(number.replace(" ", "") if kind.startswith("us_") else number)


@functools.cache
def _validator(kind: str) -> Callable[[str], bool]:
    if kind == "gb_nino":
        return _is_nino
    country, _, name = kind.rpartition("_")
    valid: Callable[[str], bool] = importlib.import_module(f"stdnum.{country}.{name}").is_valid
    return valid


def _is_nino(number: str) -> bool:
    """HMRC, NIM39110: two letters but for prefixes never used, six digits, A to D."""
    compact = number.replace(" ", "").upper()
    return compact[:2] not in {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"} and bool(
        re.fullmatch(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]", compact)
    )
