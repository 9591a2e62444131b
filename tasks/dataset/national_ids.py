"""Social security, tax and identity numbers of people, in text.

Numbers with a checksum are checked by python-stdnum.  A number of digits alone passes a weak
checksum one time in ten, and orders, containers and parcels have numbers too.  So what is found is

- in its own form: Belgium (85.07.30-033.28), Brazil CPF (390.533.447-05), Canada SIN
  (046-454-286), Chile RUT (12.531.909-2), China (18 digits), Czechia and Slovakia (710319/2745),
  Finland (131052-308T), France NIR, India PAN, Italy codice fiscale, Korea RRN, Latvia
  (161175-19997), Malaysia NRIC (770305-02-1234), Mexico CURP, Norway (151086 95077), Spain DNI and
  NIE, Sweden (880320-0016), Switzerland AHV (756.9217.0769.85), Thailand (7-1006-00445-63-5),
  United Kingdom National Insurance (AB 12 34 56 C), United States SSN and ITIN (536-90-4399);
- beside a word that names it: the above without their punctuation, and Australia TFN, Austria VNR,
  Bulgaria EGN, Croatia OIB, Denmark CPR, Estonia, Germany IdNr, Greece AMKA, Iceland, India
  Aadhaar, Ireland PPS, Israel, Lithuania, Netherlands BSN, Poland PESEL, Portugal NIF, Romania CNP,
  Slovenia EMSO, South Africa, Turkey, United Kingdom NHS.

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
    for match in _NUMERIC.finditer(text) if _STRETCH.search(text) else ():
        if _holds(match.lastgroup or "", match[0]):
            yield match.span()
    for match in _LETTERED.finditer(text) if _CAPITALS.search(text) else ():
        if _holds(match.lastgroup or "", match[0]):
            yield match.span()
    for match in _CANDIDATE.finditer(text):
        before = _BEFORE.search(text, max(0, match.start() - _REACH), match.start())
        if before is None:
            continue
        word = " ".join(before["word"].casefold().replace("-", " ").split())
        if any(_holds(kind, match[0]) for kind in _WORDS.get(word, _ALL)):
            yield match.span()


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

_WORDS: dict[str, tuple[str, ...]] = {
    "ssn": ("us_ssn", "us_itin"),
    "itin": ("us_itin",),
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
    "dni": ("es_dni", "cl_rut"),
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
            *("za_idnr", "cn_ric", "kr_rrn", "lv_pvn", "my_nric", "th_pin"),
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
    return _validator(kind)(number)


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
