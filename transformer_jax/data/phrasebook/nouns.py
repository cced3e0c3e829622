# SPDX-License-Identifier: Apache-2.0
"""The phrasebook's nouns and adjectives, in tables that read like a printed dictionary.

Columns are separated by two spaces or more. To teach the phrasebook a word, add a line: a word has
one translation only, in either direction.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Noun:
    """A noun of gender m, f or n. Both plurals are empty for what is not counted (water)."""

    english: str
    english_plural: str
    german: str
    genitive: str
    plural: str
    gender: str

    @property
    def weak(self) -> bool:
        """Whether every case but the nominative ends in -n: der Junge, den Jungen."""
        return self.gender == "m" and not self.genitive.endswith("s")


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective; German has the bare form (teuer) and the stem that takes endings (teur-)."""

    english: str
    german: str
    stem: str


def table(text: str) -> list[list[str]]:
    """Splits a table into its rows, and these into cells."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.strip().splitlines()]


def words(text: str) -> list[str]:
    """A table of one row."""
    return text.split()


def _nouns(text: str) -> list[Noun]:
    nouns = []
    for english, english_plural, singular, genitive, plural in table(text):
        article, german = singular.split()
        gender = {"der": "m", "die": "f", "das": "n"}[article]
        plurals = ("", "") if plural == "-" else (english_plural, plural)
        nouns.append(Noun(english, plurals[0], german, genitive, plurals[1], gender))
    return nouns


def _adjectives(text: str) -> dict[str, list[Adjective]]:
    by_category: dict[str, list[Adjective]] = {}
    for english, german, categories in table(text):
        bare, _, stem = german.partition("/")
        for category in categories.split():
            by_category.setdefault(category, []).append(Adjective(english, bare, stem or bare))
    return by_category


NAMES = words("Anna Peter Maria Paul Laura Martin Julia David")

# English singular and plural; German with its article, genitive, plural.
NOUNS: dict[str, list[Noun]] = {
    "person": _nouns("""
man          men            der Mann         Mannes        Männer
woman        women          die Frau         Frau          Frauen
child        children       das Kind         Kindes        Kinder
boy          boys           der Junge        Jungen        Jungen
girl         girls          das Mädchen      Mädchens      Mädchen
teacher      teachers       der Lehrer       Lehrers       Lehrer
doctor       doctors        der Arzt         Arztes        Ärzte
friend       friends        der Freund       Freundes      Freunde
neighbour    neighbours     der Nachbar      Nachbarn      Nachbarn
colleague    colleagues     der Kollege      Kollegen      Kollegen
student      students       der Student      Studenten     Studenten
brother      brothers       der Bruder       Bruders       Brüder
sister       sisters        die Schwester    Schwester     Schwestern
uncle        uncles         der Onkel        Onkels        Onkel
aunt         aunts          die Tante        Tante         Tanten
grandmother  grandmothers   die Großmutter   Großmutter    Großmütter
son          sons           der Sohn         Sohnes        Söhne
daughter     daughters      die Tochter      Tochter       Töchter
guest        guests         der Gast         Gastes        Gäste
"""),
    "animal": _nouns("""
dog          dogs           der Hund         Hundes        Hunde
cat          cats           die Katze        Katze         Katzen
horse        horses         das Pferd        Pferdes       Pferde
bird         birds          der Vogel        Vogels        Vögel
cow          cows           die Kuh          Kuh           Kühe
bear         bears          der Bär          Bären         Bären
rabbit       rabbits        das Kaninchen    Kaninchens    Kaninchen
"""),
    "food": _nouns("""
apple        apples         der Apfel        Apfels        Äpfel
pear         pears          die Birne        Birne         Birnen
egg          eggs           das Ei           Eis           Eier
cake         cakes          der Kuchen       Kuchens       Kuchen
potato       potatoes       die Kartoffel    Kartoffel     Kartoffeln
sausage      sausages       die Wurst        Wurst         Würste
onion        onions         die Zwiebel      Zwiebel       Zwiebeln
bread        -              das Brot         Brotes        -
cheese       -              der Käse         Käses         -
meat         -              das Fleisch      Fleisches     -
butter       -              die Butter       Butter        -
"""),
    "drink": _nouns("""
water        -              das Wasser       Wassers       -
milk         -              die Milch        Milch         -
coffee       -              der Kaffee       Kaffees       -
tea          -              der Tee          Tees          -
beer         -              das Bier         Bieres        -
juice        -              der Saft         Saftes        -
"""),
    "text": _nouns("""
book         books          das Buch         Buches        Bücher
letter       letters        der Brief        Briefes       Briefe
newspaper    newspapers     die Zeitung      Zeitung       Zeitungen
story        stories        die Geschichte   Geschichte    Geschichten
poem         poems          das Gedicht      Gedichtes     Gedichte
novel        novels         der Roman        Romans        Romane
report       reports        der Bericht      Berichtes     Berichte
"""),
    "clothing": _nouns("""
coat         coats          der Mantel       Mantels       Mäntel
shirt        shirts         das Hemd         Hemdes        Hemden
dress        dresses        das Kleid        Kleides       Kleider
hat          hats           der Hut          Hutes         Hüte
jacket       jackets        die Jacke        Jacke         Jacken
shoe         shoes          der Schuh        Schuhes       Schuhe
"""),
    "thing": _nouns("""
table        tables         der Tisch        Tisches       Tische
chair        chairs         der Stuhl        Stuhles       Stühle
picture      pictures       das Bild         Bildes        Bilder
key          keys           der Schlüssel    Schlüssels    Schlüssel
cup          cups           die Tasse        Tasse         Tassen
knife        knives         das Messer       Messers       Messer
umbrella     umbrellas      der Regenschirm  Regenschirms  Regenschirme
flower       flowers        die Blume        Blume         Blumen
gift         gifts          das Geschenk     Geschenkes    Geschenke
"""),
    "machine": _nouns("""
car          cars           das Auto         Autos         Autos
bicycle      bicycles       das Fahrrad      Fahrrades     Fahrräder
clock        clocks         die Uhr          Uhr           Uhren
lamp         lamps          die Lampe        Lampe         Lampen
computer     computers      der Computer     Computers     Computer
radio        radios         das Radio        Radios        Radios
"""),
    "container": _nouns("""
box          boxes          die Kiste        Kiste         Kisten
bottle       bottles        die Flasche      Flasche       Flaschen
suitcase     suitcases      der Koffer       Koffers       Koffer
door         doors          die Tür          Tür           Türen
window       windows        das Fenster      Fensters      Fenster
"""),
    "place": _nouns("""
garden       gardens        der Garten       Gartens       Gärten
town         towns          die Stadt        Stadt         Städte
village      villages       das Dorf         Dorfes        Dörfer
school       schools        die Schule       Schule        Schulen
library      libraries      die Bibliothek   Bibliothek    Bibliotheken
house        houses         das Haus         Hauses        Häuser
church       churches       die Kirche       Kirche        Kirchen
park         parks          der Park         Parks         Parks
hotel        hotels         das Hotel        Hotels        Hotels
museum       museums        das Museum       Museums       Museen
shop         shops          das Geschäft     Geschäftes    Geschäfte
kitchen      kitchens       die Küche        Küche         Küchen
office       offices        das Büro         Büros         Büros
forest       forests        der Wald         Waldes        Wälder
"""),
    "vehicle": _nouns("""
train        trains         der Zug          Zuges         Züge
bus          buses          der Bus          Busses        Busse
ship         ships          das Schiff       Schiffes      Schiffe
"""),
    "event": _nouns("""
film         films          der Film         Filmes        Filme
concert      concerts       das Konzert      Konzertes     Konzerte
party        parties        die Feier        Feier         Feiern
meeting      meetings       die Besprechung  Besprechung   Besprechungen
"""),
}

# English, German bare form (and /stem- where it differs), the categories of nouns it may describe.
ADJECTIVES: dict[str, list[Adjective]] = _adjectives("""
old          alt            person animal text clothing thing machine container place vehicle
new          neu            person text clothing thing machine container place vehicle
big          groß           animal food clothing thing machine container place vehicle
small        klein          person animal food clothing thing machine container place
beautiful    schön          person animal text clothing thing place event
red          rot            food clothing thing machine container vehicle
blue         blau           clothing thing machine container vehicle
green        grün           food clothing thing machine container place vehicle
black        schwarz        animal clothing thing machine
white        weiß           animal clothing thing machine
brown        braun          animal clothing thing container
expensive    teuer/teur     food drink clothing thing machine text
cheap        billig         food drink clothing machine
young        jung           person animal
friendly     freundlich     person animal
kind         nett           person
tired        müde/müd       person animal
rich         reich          person
poor         arm            person
clever       klug           person animal
happy        glücklich      person
strong       stark          person animal
lazy         faul           person animal
famous       berühmt        person text place
ill          krank          person animal
fresh        frisch         food drink
cold         kalt           food drink
warm         warm           food drink clothing
hot          heiß           drink
sweet        süß            food drink
good         gut            person food drink text
long         lang           text event
short        kurz           text event clothing
interesting  interessant    text event place
boring       langweilig     text event place
sad          traurig        person text event
important    wichtig        text event
heavy        schwer         thing container
empty        leer           container place vehicle
broken       kaputt         machine container thing
dark         dunkel/dunkl   place clothing
modern       modern         place machine vehicle
quiet        ruhig          place person
strange      seltsam        person animal text
""")
