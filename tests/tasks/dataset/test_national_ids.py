"""Whether the table knows its validators, and what stands beside a number."""

import re

import pytest
from stdnum import get_cc_module  # type: ignore[import-untyped]

from tasks.dataset import national_ids

FORMS = {**national_ids._NUMERIC.groupindex, **national_ids._LETTERED.groupindex}
EXAMPLE = re.compile(r"(?:validate|format|compact)\('([0-9][^']+)'\)")


def found(text: str) -> list[str]:
    return [text[start:end] for start, end in national_ids.find(text)]


@pytest.mark.parametrize("kind", sorted({*FORMS, *national_ids._ALL}))
def test_every_kind_has_a_validator(kind: str) -> None:
    assert national_ids._validator(kind)("not a number") is False


@pytest.mark.parametrize("word", sorted(national_ids._WORDS))
def test_a_word_finds_the_numbers_that_python_stdnum_shows(word: str) -> None:
    for kind in national_ids._WORDS[word]:
        country, _, name = kind.rpartition("_")
        if kind == "gb_nino":
            continue
        module = get_cc_module(country.strip("_"), name)
        numbers = [n for n in EXAMPLE.findall(module.__doc__) if module.is_valid(n)]
        numbers = [number for number in numbers if "." not in number]
        for number in numbers:
            assert number in found(f"{word} {number}, see there")
            assert number in found(f"{word.upper()}-number: {number}.")
            assert number in found(f'{{"{word}":"{number}"}}')


def test_a_number_without_its_word_is_left_alone() -> None:
    for number in ("111222333", "44051401359", "36574261809", "9434765870", "2341 2341 2346"):
        assert found(f"order {number}, container {number}, tracking {number}") == []
        assert found(f"pesel is missing for the order with the reference {number}") == []


def test_a_wrong_checksum_is_left_alone_beside_its_word() -> None:
    assert found("pesel 44051401358") == []
    assert found("bsn 111222334") == []
    assert found("DNI 54362315A, RSSMRA85T10A562T, 390.533.447-06") == []


def test_british_numbers_with_prefixes_never_issued() -> None:
    assert found("GB 12 34 56 C, ZZ123456A, DA123456A, AB123456E") == []
