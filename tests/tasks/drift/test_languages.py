"""A language is guessed by its function words or its script, or not at all."""

from __future__ import annotations

import pytest

from tasks.dataset import duplicates
from tasks.drift import languages

TEXTS = {
    "en": "Please tell us where the shipment is, it was to be here on Monday",
    "de": "Die Sendung ist nicht da, bitte sagen Sie uns, wann wir mit ihr rechnen können",
    "fr": "La livraison est en retard, nous ne savons pas où elle est et le client attend",
    "es": "El camión está parado en la aduana y no hay noticias de los documentos",
    "pl": "Przesyłka jest na granicy i nie ma do niej dokumentów, proszę o kontakt",
    "ru": "Груз стоит на таможне и мы не знаем когда он будет у вас",
    "hiragana": "とどいたはこがこわれています",
    "arabic": "الشحنة متأخرة",
    "unsure": "AWB 60714 Tarn Logistics Bergen",
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_language_is_told(language: str) -> None:
    assert languages.guess(duplicates.words(TEXTS[language])) == language


def test_words_that_two_languages_share_decide_nothing() -> None:
    assert languages.guess(["og", "er", "ikke"]) == languages.UNSURE
    assert languages.guess([]) == languages.UNSURE
