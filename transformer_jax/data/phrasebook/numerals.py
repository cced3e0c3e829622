# SPDX-License-Identifier: Apache-2.0
"""Numbers in words, and what is made of them: dates, clock times, prices.

German says the ones before the tens: twenty-one is einundzwanzig, one-and-twenty.
"""

from transformer_jax.data.phrasebook.nouns import words

_ONES = words("zero one two three four five six seven eight nine ten eleven twelve")
_ONES += [f"{stem}teen" for stem in words("thir four fif six seven eigh nine")]
_TENS = words("- - twenty thirty forty fifty sixty seventy eighty ninety")

_EINS = words("null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf")
_EINS += [f"{stem}zehn" for stem in words("drei vier fünf sech sieb acht neun")]
_ZIGS = words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")

_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth"}
_ORDINALS |= {"nine": "ninth", "twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"}
_ERSTE = {1: "erst", 3: "dritt", 7: "siebt", 8: "acht"}

DAYS = {
    "Monday": "Montag",
    "Tuesday": "Dienstag",
    "Wednesday": "Mittwoch",
    "Thursday": "Donnerstag",
    "Friday": "Freitag",
    "Saturday": "Samstag",
    "Sunday": "Sonntag",
}

MONTHS = {
    "January": ("Januar", 31),
    "February": ("Februar", 29),
    "March": ("März", 31),
    "April": ("April", 30),
    "May": ("Mai", 31),
    "June": ("Juni", 30),
    "July": ("Juli", 31),
    "August": ("August", 31),
    "September": ("September", 30),
    "October": ("Oktober", 31),
    "November": ("November", 30),
    "December": ("Dezember", 31),
}


def english_number(n: int) -> str:
    """2341: two thousand three hundred and forty-one."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        tail = f" and {english_number(n % 100)}" if n % 100 else ""
        return f"{_ONES[n // 100]} hundred{tail}"
    rest = n % 1000
    joint = " and " if rest < 100 else " "
    return f"{english_number(n // 1000)} thousand" + (joint + english_number(rest) if rest else "")


def german_number(n: int) -> str:
    """2341: zweitausenddreihunderteinundvierzig, one word."""
    if n < 20:
        return _EINS[n]
    if n < 100:
        ones = _EINS[n % 10].removesuffix("s") if n % 10 == 1 else _EINS[n % 10]
        return (f"{ones}und" if n % 10 else "") + _ZIGS[n // 10]
    unit, word = (100, "hundert") if n < 1000 else (1000, "tausend")
    count = german_number(n // unit) if n // unit > 1 else "ein"
    return count + word + (german_number(n % unit) if n % unit else "")


def year(n: int) -> tuple[str, str]:
    """1984: nineteen eighty-four, neunzehnhundertvierundachtzig; 2005: two thousand and five."""
    if n >= 2000:
        return english_number(n), german_number(n)
    english = f"{english_number(n // 100)} {english_number(n % 100)}"
    return english, f"{german_number(n // 100)}hundert{german_number(n % 100)}"


def english_ordinal(n: int) -> str:
    """21: twenty-first."""
    head, hyphen, last = english_number(n).rpartition("-")
    return head + hyphen + _ORDINALS.get(last, f"{last}th")


def german_ordinal(n: int) -> str:
    """21: einundzwanzigst-, the stem that an adjective's ending follows."""
    return _ERSTE.get(n) or german_number(n) + ("t" if n < 20 else "st")


def dates() -> list[tuple[str, str, str]]:
    """Every day of the year: the third of May, dritte Mai, dritten Mai (dative)."""
    return [
        (
            f"the {english_ordinal(day)} of {month}",
            f"{german_ordinal(day)}e {monat}",
            f"{german_ordinal(day)}en {monat}",
        )
        for month, (monat, length) in MONTHS.items()
        for day in range(1, length + 1)
    ]


def clock_times() -> list[tuple[str, str]]:
    """Twelve hours by five minutes. Half past three is halb vier: half of the fourth hour."""
    times = []
    for hour in range(1, 13):
        after = hour % 12 + 1
        this, following = english_number(hour), english_number(after)
        diese, folgende = german_number(hour), german_number(after)
        times.append((f"{this} o'clock", "ein Uhr" if hour == 1 else f"{diese} Uhr"))
        times.append((f"a quarter past {this}", f"Viertel nach {diese}"))
        times.append((f"half past {this}", f"halb {folgende}"))
        times.append((f"a quarter to {following}", f"Viertel vor {folgende}"))
        for minutes in (5, 10, 20, 25):
            english, german = english_number(minutes), german_number(minutes)
            times.append((f"{english} past {this}", f"{german} nach {diese}"))
            times.append((f"{english} to {following}", f"{german} vor {folgende}"))
    return times


def price(euros: int, cents: int = 0) -> tuple[str, str]:
    """Three euros fifty, drei Euro fünfzig; one euro is an accusative: einen Euro."""
    english = "one euro" if euros == 1 else f"{english_number(euros)} euros"
    german = "einen Euro" if euros == 1 else f"{german_number(euros)} Euro"
    if cents:
        english, german = f"{english} {english_number(cents)}", f"{german} {german_number(cents)}"
    return english, german


def counting(n: int, english: str, german: str) -> tuple[str, str]:
    """Two hundred pages, zweihundert Seiten."""
    return f"{english_number(n)} {english}", f"{german_number(n)} {german}"


def countable(n: int) -> bool:
    """Whether a plural noun may follow: not after 1, 101, ..., where German says (hundert)ein."""
    return n % 100 != 1
