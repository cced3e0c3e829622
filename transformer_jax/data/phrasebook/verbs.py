# SPDX-License-Identifier: Apache-2.0
"""The phrasebook's verbs: their principal parts, and what they may act on."""

from dataclasses import dataclass

from transformer_jax.data.phrasebook.nouns import table


@dataclass(frozen=True, eq=False)
class Verb:
    """A verb of both languages.

    `particle` and `prefix` are what separates: *pick* the child *up*, ich *hole* das Kind *ab*.
    `third` is the English form for he and she; `present` the German ones for ich du er wir sie.
    `objects` has the categories of nouns that the verb may act on.
    """

    english: str
    third: str
    past: str
    english_participle: str
    particle: str
    infinitive: str
    present: tuple[str, ...]
    participle: str
    auxiliary: str
    prefix: str
    objects: tuple[str, ...]


GROUPS = {"goods": ("text", "clothing", "thing", "machine")}
WISSEN = ("weiß", "weißt", "weiß", "wissen", "wissen")


def _third(english: str) -> str:
    """The English form for he and she: buys, watches television, carries, goes, has."""
    first, space, rest = english.partition(" ")
    if first == "have":
        return "has"
    if first.endswith(("s", "sh", "ch", "x", "o")):
        first += "es"
    elif first.endswith("y") and first[-2] not in "aeiou":
        first = first[:-1] + "ies"
    else:
        first += "s"
    return first + space + rest


def _present(infinitive: str, er_form: str) -> tuple[str, ...]:
    """The German present of ich, du, er, wir, sie from a dictionary's two forms."""
    if infinitive == "wissen":
        return WISSEN
    stem = er_form.removesuffix("t")
    du_form = stem + ("t" if stem.endswith(("s", "ß", "z")) else "st")
    return (infinitive.removesuffix("n"), du_form, er_form, infinitive, infinitive)


def _verbs(text: str) -> list[Verb]:
    verbs = []
    for english, past, english_participle, infinitive, er_form, perfect, *objects in table(text):
        base, _, particle = english.partition("|")
        prefix, _, stem = infinitive.rpartition("|")
        auxiliary, participle = perfect.split()
        categories = [GROUPS.get(name, (name,)) for name in " ".join(objects).split()]
        verbs.append(
            Verb(
                english=base,
                third=_third(base),
                past=past,
                english_participle=english_participle,
                particle=particle,
                infinitive=stem,
                present=_present(stem, er_form),
                participle=participle,
                auxiliary=auxiliary,
                prefix=prefix,
                objects=sum(categories, ()),
            )
        )
    return verbs


# English, past, participle; German infinitive, er-form, perfect; categories of the object.
# A | shows what separates. The er-form is without its prefix: ruft, from er ruft an.
TRANSITIVE = _verbs("""
buy          bought      bought      kaufen       kauft      hat gekauft      food drink goods
sell         sold        sold        verkaufen    verkauft   hat verkauft     food goods
read         read        read        lesen        liest      hat gelesen      text
write        wrote       written     schreiben    schreibt   hat geschrieben  text
eat          ate         eaten       essen        isst       hat gegessen     food
drink        drank       drunk       trinken      trinkt     hat getrunken    drink
see          saw         seen        sehen        sieht      hat gesehen      person animal place
visit        visited     visited     besuchen     besucht    hat besucht      person place
find         found       found       finden       findet     hat gefunden     animal goods
look for     looked for  looked for  suchen       sucht      hat gesucht      person goods
love         loved       loved       lieben       liebt      hat geliebt      person animal
meet         met         met         treffen      trifft     hat getroffen    person
hear         heard       heard       hören        hört       hat gehört       person animal
understand   understood  understood  verstehen    versteht   hat verstanden   person text
paint        painted     painted     malen        malt       hat gemalt       person animal place
draw         drew        drawn       zeichnen     zeichnet   hat gezeichnet   animal place
repair       repaired    repaired    reparieren   repariert  hat repariert    machine
wash         washed      washed      waschen      wäscht     hat gewaschen    clothing
wear         wore        worn        tragen       trägt      hat getragen     clothing
take         took        taken       nehmen       nimmt      hat genommen     food clothing thing
forget       forgot      forgotten   vergessen    vergisst   hat vergessen    goods
lose         lost        lost        verlieren    verliert   hat verloren     goods
need         needed      needed      brauchen     braucht    hat gebraucht    person thing machine
have         had         had         haben        hat        hat gehabt       animal goods
call         called      called      an|rufen     ruft       hat angerufen    person
invite       invited     invited     ein|laden    lädt       hat eingeladen   person
pick|up      picked      picked      ab|holen     holt       hat abgeholt     person
bring|along  brought     brought     mit|bringen  bringt     hat mitgebracht  person food goods
open         opened      opened      auf|machen   macht      hat aufgemacht   container
close        closed      closed      zu|machen    macht      hat zugemacht    container
put|on       put         put         an|ziehen    zieht      hat angezogen    clothing
take|off     took        taken       aus|ziehen   zieht      hat ausgezogen   clothing
throw|away   threw       thrown      weg|werfen   wirft      hat weggeworfen  food text thing
""")

# They govern the dative: I help the man, ich helfe dem Mann.
DATIVE = _verbs("""
help    helped    helped    helfen     hilft      hat geholfen     person
thank   thanked   thanked   danken     dankt      hat gedankt      person
follow  followed  followed  folgen     folgt      ist gefolgt      person animal
answer  answered  answered  antworten  antwortet  hat geantwortet  person
trust   trusted   trusted   vertrauen  vertraut   hat vertraut     person
""")

# Somebody (dative) gets something (accusative).
GIVING = _verbs("""
give     gave      given     geben        gibt        hat gegeben      animal food goods
show     showed    shown     zeigen       zeigt       hat gezeigt      animal place goods
send     sent      sent      schicken     schickt     hat geschickt    text clothing thing
lend     lent      lent      leihen       leiht       hat geliehen     goods
promise  promised  promised  versprechen  verspricht  hat versprochen  animal goods
""")

# Without an object, in a place.
LOCATED = _verbs("""
work              worked              worked              arbeiten    arbeitet  hat gearbeitet
sleep             slept               slept               schlafen    schläft   hat geschlafen
wait              waited              waited              warten      wartet    hat gewartet
live              lived               lived               wohnen      wohnt     hat gewohnt
play              played              played              spielen     spielt    hat gespielt
sing              sang                sung                singen      singt     hat gesungen
dance             danced              danced              tanzen      tanzt     hat getanzt
sit               sat                 sat                 sitzen      sitzt     hat gesessen
laugh             laughed             laughed             lachen      lacht     hat gelacht
stay              stayed              stayed              bleiben     bleibt    ist geblieben
go shopping       went shopping       gone shopping       ein|kaufen  kauft     hat eingekauft
watch television  watched television  watched television  fern|sehen  sieht     hat ferngesehen
""")

# To or into a place; the perfect takes sein.
MOVING = _verbs("""
go      went       gone       gehen   geht   ist gegangen
drive   drove      driven     fahren  fährt  ist gefahren
run     ran        run        laufen  läuft  ist gelaufen
come    came       come       kommen  kommt  ist gekommen
travel  travelled  travelled  reisen  reist  ist gereist
""")

# Without an object or a place.
HAPPENING = _verbs("""
get up       got up       got up         auf|stehen     steht    ist aufgestanden
wake up      woke up      woken up       auf|wachen     wacht    ist aufgewacht
fall asleep  fell asleep  fallen asleep  ein|schlafen   schläft  ist eingeschlafen
come back    came back    come back      zurück|kommen  kommt    ist zurückgekommen
""")

# What trains and concerts do, by the clock; here the category is that of the subject.
DEPARTING = _verbs("""
depart  departed  departed  ab|fahren  fährt  ist abgefahren  vehicle
arrive  arrived   arrived   an|kommen  kommt  ist angekommen  vehicle
begin   began     begun     an|fangen  fängt  hat angefangen  event
end     ended     ended     auf|hören  hört   hat aufgehört   event
""")

# They take a clause.
THINK, HOPE, SAY, KNOW, ASK, TRY = _verbs("""
think  thought  thought  glauben    glaubt    hat geglaubt
hope   hoped    hoped    hoffen     hofft     hat gehofft
say    said     said     sagen      sagt      hat gesagt
know   knew     known    wissen     weiß      hat gewusst
ask    asked    asked    fragen     fragt     hat gefragt
try    tried    tried    versuchen  versucht  hat versucht
""")

# Two verbs that have constructions of their own; this know is of people, and not a fact.
COST, KNOW_SOMEBODY = _verbs("""
cost  cost  cost   kosten  kostet  hat gekostet
know  knew  known  kennen  kennt   hat gekannt   person
""")
