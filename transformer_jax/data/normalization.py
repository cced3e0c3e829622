# SPDX-License-Identifier: Apache-2.0
"""Text that looks the same becomes the same: the rule same_look of config.data.normalization.

    spaces of all kinds, tabs, line ends                 a space
    what nobody sees: soft hyphens, zero-width spaces,   nothing
      direction marks, byte order marks, controls
    letters and marks that are one letter in Unicode     that letter (canonical composition, NFC)
    hyphens that only forbid a line's end, half- and     the common form
      full-width letters and digits, Arabic presentation
      forms, ligatures such as fi, the micro sign
    joiners (U+200C, U+200D)                             kept behind letters of scripts that join, and
                                                         behind emoji; nothing elsewhere

What looks different stays different, unlike with Unicode's NFKC, of which sentencepiece's own rules are
made: m², ½, ™, … and CO₂ keep their form.
"""

import re
import unicodedata

SAME_LOOK = "same_look"


def same_look(text: str) -> str:
    """The text as it is learned from and tokenised."""
    if unicodedata.is_normalized("NFC", text) and not _ODD.search(text):
        return text  # as nearly all do
    text = _JOINERS.sub(
        "", text.translate(_TABLE)
    )  # first: such things stand between letters and marks
    return unicodedata.normalize("NFC", text)


def _characters(*spans: tuple[int, int]) -> list[str]:
    return [chr(code) for first, last in spans for code in range(first, last + 1)]


def _common_form(character: str) -> str:
    """What a character is a form of; the character itself if that looks different."""
    tag, _, codes = unicodedata.decomposition(character).partition(" ")
    # U+0020 carries a mark that stands alone; of full-width punctuation the width shows.
    if "0020" in codes or (tag == "<wide>" and unicodedata.category(character)[0] not in "LN"):
        return character
    return unicodedata.normalize("NFKC", character)


_SPACES = [
    *"\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u1680\u2028\u2029\u202f\u205f\u3000\u00a0",
    *_characters((0x2000, 0x200A)),
    "\u2581",  # how sentencepiece writes one
]
_INVISIBLE = [
    *"\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\ufeff",
    *_characters((0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F)),
    *_characters((0x202A, 0x202E), (0x2060, 0x206F), (0xFFF9, 0xFFFB)),
]
_FORMS = [
    *"\u00b5\u0132\u0133\u013f\u0140",  # the micro sign; two letters as one character
    *_characters((0x1C4, 0x1CC), (0x1F1, 0x1F3), (0xFB00, 0xFB06)),
    *_characters((0xFB50, 0xFDCF), (0xFE70, 0xFEFC)),  # Arabic letters as they stand in words
    *_characters((0xFF01, 0xFFEE)),  # half and full width
]
_TABLE = str.maketrans(
    dict.fromkeys(_SPACES, " ")
    | dict.fromkeys(_INVISIBLE)
    | dict.fromkeys("\u2010\u2011", "-")
    | {"\u2585": "\u2584"}  # a block that sentencepiece keeps for itself, and the next lower one
    | {form: _common_form(form) for form in _FORMS if _common_form(form) != form}
)
# Kept behind Arabic, Syriac and the scripts of India; Burmese, Khmer, Mongolian; symbols and emoji.
_JOINERS = re.compile(
    "(?<![\u0620-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\u2300-\u2bff\ufe0f\U0001f300-\U0001faff])"
    "[\u200c\u200d]+"
)
_ODD = re.compile(f"[{re.escape(''.join(map(chr, _TABLE)))}\u200c\u200d]")
