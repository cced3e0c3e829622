# SPDX-License-Identifier: Apache-2.0
"""Text that looks the same has the same ids, and what looks different keeps its form."""

import functools
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from transformer_jax.data.batch import EOS
from transformer_jax.data.normalization import same_look
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary

nfc, nfd, nfkc = (functools.partial(unicodedata.normalize, form) for form in ("NFC", "NFD", "NFKC"))
LETTERS = [
    character
    for first, last in ((0x20, 0x24F), (0x370, 0x52F), (0x1E00, 0x1FFF), (0xAC00, 0xAC7F))
    for character in map(chr, range(first, last + 1))
    if unicodedata.category(character)[0] == "L"
    and nfc(character) == character
    and not unicodedata.decomposition(character).startswith("<compat>")
]
YORUBA = ["ẹ\u0301", "Ọ\u0300", "ị\u0302", "ę\u0301", "i\u0307\u0303"]  # no letter in Unicode
# Each of these alone, or several one after the other.
INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u2060\ufeff\u202c\u0001\u007f\u034f"
SPACES = " \u00a0\u1680\u2003\u2009\u202f\u205f\u3000\t\r\x0b\x0c\x85\u2028\u2581"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Every letter of the above is a piece."""
    lines = ["".join(LETTERS[start : start + 20]) for start in range(0, len(LETTERS), 20)]
    marks = "a b " + " ".join(f"x{mark}" for mark in map(chr, range(0x300, 0x346)))
    others = "m²½™CO₂…①IV-.,!\uff1f\uff0c\uff08\uff09「」アガバー€ﷺ☎️👩‍🚒🏴󠁧󠁢󠁥󠁮󠁧󠁿 می‌روم क्‍ष بَّ שׁ שּׁ"
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    lines = [*lines, nfc(marks), *others.split(), *YORUBA]
    return train_vocabulary(lines, size=2600, kind="bpe", path=path)


@functools.cache
def same(text: str) -> list[str]:
    """Canonically equal forms of one letter with its marks."""
    whole, (base, *marks) = nfd(text), nfd(text)
    forms = {text, whole}
    for number, mark in enumerate(marks):
        head = nfc(base + "".join(marks[:number]))
        forms.add(head + "".join(marks[number:]))
        forms.add(nfc(base + mark) + "".join(marks[:number] + marks[number + 1 :]))
    return sorted(form for form in forms if nfc(form) == nfc(text))


@st.composite
def written(draw: st.DrawFn) -> tuple[str, str]:
    """Clean text, and text that looks like it."""
    clean, other = "", draw(st.text(INVISIBLE, max_size=3))
    for letter in draw(st.lists(st.sampled_from([*LETTERS, *YORUBA, *" " * 300]), max_size=12)):
        if letter == " ":
            clean += " "
            form = "".join(draw(st.lists(st.sampled_from(SPACES), min_size=1, max_size=3)))
        else:
            clean += letter
            form = draw(st.sampled_from(same(letter)))
            place = draw(st.integers(1, len(form)))
            form = form[:place] + draw(st.text(INVISIBLE, max_size=3)) + form[place:]
        other += form + draw(st.text(INVISIBLE, max_size=3))
    return clean, other


@hypothesis.given(written())
@hypothesis.settings(max_examples=100)
def test_text_that_looks_the_same_has_the_same_ids(vocabulary: Vocabulary, texts) -> None:
    clean, other = texts
    ids, same_ids = vocabulary.encode([clean, other])
    assert ids == same_ids
    (decoded,) = vocabulary.decode([ids])
    assert decoded == " ".join(nfc(clean).split())
    assert vocabulary.encode([decoded]) == [ids], "normalising twice is normalising once"


def test_what_looks_different_stays_different(vocabulary: Vocabulary) -> None:
    text = [
        "m² ½ ™ CO₂ … ① €",
        "\uff1f\uff0c\uff08\uff09「」",
        "ﷺ ☎️ 👩‍🚒 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "می‌روم क्‍ष",
    ]
    assert vocabulary.decode(vocabulary.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "ﬁ ﬂ ﬀ ﬃ",
        "\uff21\uff42\uff11 \uff19",
        "ｱ ｶﾞ ﾊﾞ ｰ ｢ｱ｣",
        "\u00b5 \u212b \u2126 \u212a",
        "ﺑﻢ ﻻ",
        "Ĳ ǆ ǉ",
    ],
)
def test_forms_of_one_character_are_it_as_unicode_has_it(text: str) -> None:
    assert same_look(text) == nfkc(text)


def test_all_that_is_canonically_equal_has_the_same_form() -> None:
    """Every character that Unicode composes, in each order of its marks, and every Korean syllable."""
    texts = [
        form
        for code in range(0x21, 0x2FA20)
        if nfd(chr(code)) != chr(code) and unicodedata.category(chr(code))[0] not in "ZM"
        for form in same(chr(code))
    ]
    assert len(texts) > 35_000
    assert [same_look(text) for text in texts] == [nfc(text) for text in texts]
    for text in ("\u05e9\u05c1\u05bc\u05b8", "\u0628\u0651\u064e", "q\u0301\u0323", "\ufe8d\u0653"):
        assert same_look(text) == nfkc(text)


def test_normalising_twice_is_normalising_once() -> None:
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    once = list(map(same_look, every))
    assert list(map(same_look, once)) == once


def test_what_is_invisible_alone_is_no_text(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode(["\u200b", "\u00a0\u200d\ufeff", "\x01 \u2028"]) == [[EOS]] * 3
