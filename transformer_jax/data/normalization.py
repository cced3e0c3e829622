# SPDX-License-Identifier: Apache-2.0
"""Text that looks the same has the same ids: the rules behind config.data.normalization=same_look.

    spaces of all kinds, line ends, tabs                  one space
    letters and marks that are one letter in Unicode      that letter (canonical composition, NFC)
    what nobody sees: soft hyphens, zero-width spaces,    nothing
      direction marks, byte order marks, controls
    joiners (U+200C, U+200D)                              kept behind letters of scripts that join, and
                                                          behind emoji; nothing elsewhere
    no-break hyphens, half-width and Arabic presentation  the common form of the same character
      forms, full-width letters and digits, fi as one
      character and other digraphs

What looks different stays different, unlike with Unicode's NFKC: m², ½, ™, … and the full-width
punctuation of Chinese and Japanese.

sentencepiece replaces, from the left, the longest text that has a rule, and looks at no character
twice. So each sequence of marks that is written in another order, or is a letter in part, needs a rule
of its own. What has none: runs of invisible characters between a letter and its mark, and three marks
that Unicode has no letter for. NUL can stand in no rule and stays, an unknown character.
"""

import functools
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Mapping

SAME_LOOK = "same_look"

_nfc = functools.partial(unicodedata.normalize, "NFC")
_nfd = functools.partial(unicodedata.normalize, "NFD")


def _span(*ends: int) -> str:
    """All characters from the first to the second end, from the third to the fourth, ..."""
    pairs = zip(ends[::2], ends[1::2], strict=True)
    return "".join(chr(code) for first, last in pairs for code in range(first, last + 1))


@functools.cache
def _characters() -> list[str]:
    """All that Unicode has, as far as this Python knows."""
    every = map(chr, range(1, 0x110000))
    return [c for c in every if unicodedata.category(c) not in ("Cn", "Cs", "Co")]


# Besides those of category Zs; the last is what sentencepiece writes for a space.
_SPACES = "\t\n\v\f\r\x85\u2028\u2029\u2581"
_JOINERS = "\u200c\u200d"
_INVISIBLE = (
    _span(0x01, 0x08, 0x0E, 0x1F, 0x7F, 0x84, 0x86, 0x9F)
    + "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\ufeff"
    + _span(0x202A, 0x202E, 0x2060, 0x206F, 0xFFF9, 0xFFFB)
)
# Of a letter and its mark: what a hyphenation or a broken conversion leaves there.
_BETWEEN = "\u00ad\u034f\u200b\u2060\ufeff" + _JOINERS
# Hyphens that look like the common one; the block by which sentencepiece means "unknown".
_OTHERS = {"\u2010": "-", "\u2011": "-", "\u2585": "\u2584"}

_FORMS = "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>"
_WORDS = _span(0xFDF0, 0xFDFF)  # Arabic ones as one character, unlike their letters in looks
# The micro sign; two letters as one character.
_DIGRAPHS = "\u00b5\u0132\u0133\u013f\u0140" + _span(0x1C4, 0x1CC, 0x1F1, 0x1F3, 0xFB00, 0xFB06)

# Marks that stand on one letter at the same time, although no character has both.
_ABOVE = _span(0x300, 0x304, 0x306, 0x30C) + "\u030f\u0311"
_BELOW = "\u031b\u0323\u0324\u0325\u0327\u0328\u032d\u032e\u0330\u0331"
_ARABIC_MARKS = _span(0x64B, 0x652) + "\u0670"
_HEBREW_MARKS = _span(0x5B0, 0x5BC) + "\u05bf\u05c1\u05c2\u05c7"

_JOINING = (  # scripts whose letters look different before a joiner
    _span(0x620, 0x74F, 0x750, 0x77F, 0x8A0, 0x8FF)  # Arabic, Syriac
    + _span(0x900, 0xDFF)  # Devanagari to Sinhala
    + _span(0x1000, 0x109F, 0x1780, 0x17D3, 0x1820, 0x18AA)  # Myanmar, Khmer, Mongolian
)
_EMOJI = "\ufe0f" + _span(0x2300, 0x23FF, 0x2600, 0x27BF, 0x2B00, 0x2BFF, 0x1F300, 0x1FAFF)


def same_look() -> dict[str, str]:
    """What each character or sequence of characters becomes; all others stay as they are."""
    single = _single()

    def look(text: str) -> str:
        return _nfc("".join(single.get(character, character) for character in text))

    rules = dict(single)
    letters = _letters(single)
    _add(rules, {text: look(text) for text in letters | _two_marks()})
    for text in letters:
        if _script(look(text)[0]) in ("LATIN", "GREEK", "CYRILLIC"):
            for place, gap in itertools.product(range(1, len(text)), _BETWEEN):
                rules[text[:place] + gap + text[place:]] = look(text)
    rules |= _hangul()
    rules |= _kept_joiners(rules)
    return rules


def _single() -> dict[str, str]:
    """The rules of one character."""
    spaces = _SPACES + "".join(
        c for c in _characters() if unicodedata.category(c) == "Zs" and c != " "
    )
    rules = dict.fromkeys(spaces, " ") | dict.fromkeys(_INVISIBLE + _JOINERS, "") | _OTHERS
    for character in _characters():
        plain = _nfc(_common_form(character))
        if plain != character:
            rules.setdefault(character, plain)
    return rules


def _common_form(character: str) -> str:
    """The character itself, or the one or two of which it is a form."""
    tag, _, codes = unicodedata.decomposition(character).partition(" ")
    form = tag in _FORMS and "0020" not in codes and character not in _WORDS
    wide = tag == "<wide>" and unicodedata.category(character)[0] in "LN"
    if not (form or wide or character in _DIGRAPHS):
        return character
    return "".join(_common_form(chr(int(code, 16))) for code in codes.split())


def _letters(single: Mapping[str, str]) -> set[str]:
    """All sequences that mean a character with marks: the marks in any order, some composed."""
    looks = defaultdict(list)  # a decomposition: the characters that look like it
    for character in _characters():
        looks[_nfd(single.get(character, character))].append(character)
    found = set()
    for whole, characters in looks.items():
        composed = any(unicodedata.decomposition(c)[:1] not in ("", "<") for c in characters)
        if len(whole) < 2 or not composed or unicodedata.combining(whole[0]):
            continue
        for marks in set(itertools.permutations(whole[1:])):
            if (
                _nfd(whole[0] + "".join(marks)) != whole
            ):  # another letter: the order means something
                continue
            for count in range(len(marks)):
                head = _nfd(whole[0] + "".join(marks[:count]))
                alike = (looks.get(head, ()), *(looks.get(mark, [mark]) for mark in marks[count:]))
                found |= set(map("".join, itertools.product(*alike)))
    return found


def _two_marks() -> set[str]:
    """Marks, alone and behind Latin letters, in orders that Unicode holds for the same."""
    found = {a + b for marks in (_ARABIC_MARKS, _HEBREW_MARKS) for a in marks for b in marks}
    for vowel, dot in itertools.product(_HEBREW_MARKS, "\u05c1\u05c2"):  # of the letter shin
        found |= set(map("".join, itertools.permutations((vowel, "\u05bc", dot))))
    bases = {_nfd(c)[0] for c in _characters() if len(_nfd(c)) > 1}
    latin = [base for base in bases if _script(base) == "LATIN"]
    for above, below in itertools.product(_ABOVE, _BELOW):
        found.add(above + below)
        for base, (first, second) in itertools.product(latin, ((above, below), (below, above))):
            found |= {base + first + second, _nfc(base + first) + second}
    return found


def _add(rules: dict[str, str], wanted: Mapping[str, str]) -> None:
    """Add those that do not follow from shorter ones."""
    for text in sorted(wanted, key=len):
        if _replaced(rules, text) != wanted[text]:
            rules[text] = wanted[text]


def _replaced(rules: Mapping[str, str], text: str) -> str:
    """What sentencepiece makes of the text."""
    result = ""
    while text:
        length = next((n for n in range(len(text), 0, -1) if text[:n] in rules), 0)
        result += rules[text[:length]] if length else text[0]
        text = text[length or 1 :]
    return result


def _hangul() -> dict[str, str]:
    """Korean syllables that are written as two or three letters."""
    rules: dict[str, str] = {}
    for syllable in _span(0xAC00, 0xD7A3):
        letters = _nfd(syllable)
        rules |= {letters: syllable, _nfc(letters[:2]) + letters[2:]: syllable}
    return {text: syllable for text, syllable in rules.items() if text != syllable}


def _kept_joiners(rules: Mapping[str, str]) -> dict[str, str]:
    """Rules by which a joiner stays where it shows.

    They change nothing, which sentencepiece refuses. But what a rule makes ends at a NUL.
    """
    kept = {}
    for text, joiners in (
        *((c, _JOINERS) for c in _JOINING if unicodedata.category(c)[0] in "LM"),
        *((c, "\u200d") for c in _EMOJI if unicodedata.category(c) != "Cn"),
        *(
            (text, _JOINERS)
            for text, look in rules.items()
            if len(text) > 1 and look[-1:] in _JOINING
        ),
    ):
        for joiner in joiners:
            kept[text + joiner] = f"{rules.get(text, text)}{joiner}\0"
    return kept


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


@functools.cache
def rules_file() -> bytes:
    """The rules as sentencepiece reads them from a file: normalization_rule_tsv."""
    lines = (f"{_codes(text)}\t{_codes(look)}\n" for text, look in same_look().items())
    return "".join(lines).encode()


def _codes(text: str) -> str:
    return " ".join([f"{ord(character):X}" for character in text])
