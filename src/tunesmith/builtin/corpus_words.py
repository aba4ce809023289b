"""Topics about words and lists: repeat, spell, sort, name three, add two more, read and answer."""

import functools
from random import Random

from tunesmith.builtin.corpus_language import (
    NUMBER_WORDS,
    Turn,
    article,
    capitalise,
    expand,
    fill,
    joined,
    question,
    say,
    upper_first,
)
from tunesmith.builtin.corpus_stories import grammar, person
from tunesmith.builtin.corpus_tables import material

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ALIKE = (
    {"fruit", "vegetable", "drink"},
    {"fruit", "colour", "flower"},
    {"colour", "metal"},
    {"bird", "insect"},
)
"""Kinds that share a member or are too close to part."""
_CLEAR = (
    "fruit vegetable bird insect tool country city drink job instrument flower metal colour vehicle language"
).split()
_UNCOUNTED = {"drink", "metal", "colour", "language"}


@functools.cache
def kinds() -> dict[str, tuple[str, list[str]]]:
    """Read the kinds of things, by their singular: the plural and the members."""
    split = [(*name.split(" = "), members.split(", ")) for name, members in material("lists")["kinds"].items()]
    return {one: (many, members) for one, many, members in split}


@functools.cache
def vocabulary() -> list[str]:
    """Collect common words, for tasks that work with any word."""
    tasks = material("tasks")
    words = " ".join([*tasks["words"].values(), tasks["extra_words"]]).split()
    members = [item for _, items in kinds().values() for item in items if item.isalpha() and item.islower()]
    return sorted({*words, *members, *grammar()["foods"]})


def _ask(rng: Random, name: str, **fields: str) -> str:
    return question(rng, material("tasks")[name], **fields)


def _quote(rng: Random, name: str, **fields: str) -> str:
    return capitalise(fill(expand(rng.choice(material("tasks")[name]), rng), fields))


def _word(number: int) -> str:
    return upper_first(NUMBER_WORDS[number]) + "."


def repeats(rng: Random) -> list[Turn]:
    """Ask to say a text again: a saying or any words."""
    kind = rng.random()
    if kind < 0.3:
        text = rng.choice(material("tasks")["sayings"])
    elif kind < 0.6:
        verb = rng.choice(("likes", "sees", "has", "wants"))
        text = f"{person(rng)['name']} {verb} {rng.choice(vocabulary())}"
    else:
        text = " ".join(rng.sample(vocabulary(), rng.randint(1, 5)))
    text = upper_first(text) + "." if rng.random() < 0.3 and " " in text else text
    return [Turn(_quote(rng, "repeat", text="~").replace("~", text), text, exact=True)]


def spelling(rng: Random) -> list[Turn]:
    """Ask about the letters of one word."""
    word = rng.choice(vocabulary())
    kind = rng.choice(("spell", "spell", "first", "first", "last", "length"))
    if kind == "spell":
        return [Turn(_ask(rng, kind, w=word), f"{word}: {'-'.join(word)}", "-".join(word))]
    if kind == "length":
        word = rng.choice([short for short in vocabulary() if len(short) < 7])
        answer = f"{word}: {'-'.join(word)}. That is {NUMBER_WORDS[len(word)]} letters."
        return [Turn(_ask(rng, kind, w=word), answer, _word(len(word)))]
    letter = word[0 if kind == "first" else -1]
    return [Turn(_ask(rng, kind, w=word), f"The {kind} letter of {word} is {letter}.", letter)]


def letters(rng: Random) -> list[Turn]:
    """Ask for a word with a letter, or for the letter after another."""
    if rng.random() < 0.6:
        letter = rng.choice(sorted({word[0] for word in vocabulary()}))
        word = upper_first(rng.choice([word for word in vocabulary() if word[0] == letter][:6]))
        ask = _ask(rng, "starts", l=letter.upper())
        return [Turn(ask, f"{word} starts with {letter.upper()}.", f"{word}.", exact=True)]
    place = rng.randrange(25)
    here, after = _LETTERS[place], _LETTERS[place + 1]
    return [Turn(_ask(rng, "alphabet", l=here), f"{after} comes after {here}.", after, exact=True)]


def letter_cases(rng: Random) -> list[Turn]:
    """Ask for capital or small letters."""
    text = " ".join(rng.sample(vocabulary(), rng.choice((1, 1, 2))))
    if rng.random() < 0.7:
        return [Turn(_quote(rng, "upper", w=text), text.upper(), exact=True)]
    return [Turn(_quote(rng, "lower", w=text.upper()), text, exact=True)]


def ordering(rng: Random) -> list[Turn]:
    """Ask to turn words around, to sort them by the alphabet, or to count them."""
    kind = rng.choice(("backwards", "sort", "count_words"))
    if kind == "count_words":
        text = rng.choice(material("tasks")["sayings"])
        count = len(text.split())
        return [Turn(_quote(rng, kind, text=text), f"It has {NUMBER_WORDS[count]} words.", _word(count), exact=True)]
    words = rng.sample(vocabulary(), rng.randint(2, 4))
    answer = sorted(words) if kind == "sort" else words[::-1]
    return [Turn(_quote(rng, kind, text=", ".join(words)), ", ".join(answer), exact=True)]


def _sentence(rng: Random, asks: list[str]) -> Turn:
    tasks, words = material("tasks"), grammar()
    kind = rng.choice(sorted(tasks["words"]))
    fields = {
        "w": rng.choice(tasks["words"][kind].split()),
        "name": person(rng)["name"],
        "pet": rng.choice(words["names_for_pets"]),
        "animal": rng.choice(words["animals"]),
    }
    answer = say(rng, rng.choice(tasks["sentences"][kind]).replace(" a {w}", " {a w}"), **fields)
    return Turn(question(rng, asks, **fields), answer)


def sentences(rng: Random) -> list[Turn]:
    """Ask for a sentence with a given word."""
    turns = [_sentence(rng, material("tasks")["sentence"])]
    return turns + [_sentence(rng, material("tasks")["again"])] if rng.random() < 0.25 else turns


def _scene(rng: Random) -> dict[str, str]:
    words, tasks, hero, friend = grammar(), material("tasks"), person(rng), person(rng)["name"]
    age = rng.randint(5, 40)
    food, other = rng.sample(tasks["meals"].split(), 2)
    return hero | {
        "friend": friend if friend != hero["name"] else "Quentin",
        "colour": rng.choice(words["colours"]),
        "thing": rng.choice(words["things"]),
        "box": rng.choice(("box", "bag", "drawer", "cupboard", "car", "garden", "kitchen")),
        "place": rng.choice(tasks["words"]["place"].split()),
        "animal": rng.choice(words["animals"]),
        "pet": rng.choice(words["names_for_pets"]),
        "age": str(age),
        "older": str(age + rng.randint(1, 9)),
        "food": food,
        "other": other,
    }


def reading(rng: Random) -> list[Turn]:
    """Give a small text and ask about it."""
    scene, pattern = _scene(rng), rng.choice(material("tasks")["reading"])
    text = say(rng, pattern["text"], **scene)
    chosen = rng.sample(pattern["asks"], 2)
    turns = []
    for place, (ask, answer, short) in enumerate(chosen[: rng.choice((1, 1, 2))]):
        form = rng.choice(("{ask}?", "and {ask}?") if place else material("tasks")["reading_asks"])
        asked = capitalise(form.replace("{text}", text).replace("{ask}", fill(expand(ask, rng), scene)))
        turns.append(Turn(asked, say(rng, answer, **scene), say(rng, short, **scene) + ".", exact=True))
    return turns


def corrections(rng: Random) -> list[Turn]:
    """Ask to put a mistake right."""
    lines = material("tasks")["mistakes"].split(";")
    bad, good = rng.choice([line.strip().split(" = ") for line in lines if line.strip()])
    bad = upper_first(bad) + rng.choice((".", "")) if rng.random() < 0.5 else bad
    return [Turn(_quote(rng, "tidy", bad=bad), good, exact=True)]


def _several(items: list[str], many: str, ask: str) -> Turn:
    return Turn(ask, f"{upper_first(NUMBER_WORDS[len(items)])} {many} are {joined(items)}.", joined(items))


def _one(item: str, start: str, ask: str) -> Turn:
    return Turn(ask, f"{start} is {item}.", upper_first(item) + ".")


def lists(rng: Random) -> list[Turn]:
    """Ask for three of a kind, then for a few more that were not named."""
    asks, one = material("lists"), rng.choice(sorted(kinds()))
    many, members = kinds()[one]
    items = rng.sample(members, len(members))
    count = rng.randint(2, min(5, len(members) - 1))
    number = rng.choice((NUMBER_WORDS[count], NUMBER_WORDS[count], str(count)))
    turns = [_several(items[:count], many, question(rng, asks["asks"], n=number, many=many))]
    left = items[count:]
    if rng.random() < 0.6:
        return turns
    if len(left) < 2 or rng.random() < 0.4:
        return [*turns, _one(left[0], f"Another {one}", question(rng, asks["one_more"], one=one))]
    extra = rng.randint(2, min(3, len(left)))
    ask = question(rng, asks["more"], n=NUMBER_WORDS[extra], many=many)
    return [*turns, _several(left[:extra], f"more {many}", ask)]


def single(rng: Random) -> list[Turn]:
    """Ask for one of a kind, then for another."""
    asks, one = material("lists"), rng.choice(sorted(kinds()))
    items = rng.sample(kinds()[one][1], rng.choice((1, 1, 2, 3)))
    turns = [_one(items[0], f"One {one}", question(rng, asks["one_asks"], one=one))]
    return turns + [_one(item, f"Another {one}", question(rng, asks["one_more"], one=one)) for item in items[1:]]


def numbered(rng: Random) -> list[Turn]:
    """Ask for a numbered list."""
    asks, one = material("lists"), rng.choice(sorted(kinds()))
    many, members = kinds()[one]
    items = rng.sample(members, rng.randint(2, min(5, len(members))))
    answer = "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1))
    return [Turn(question(rng, asks["numbered"], n=NUMBER_WORDS[len(items)], many=many), answer)]


def _strangers(one: str) -> list[str]:
    related = {one}.union(*(group for group in _ALIKE if one in group))
    return [other for other in _CLEAR if other not in related]


def odd_one_out(rng: Random) -> list[Turn]:
    """Ask which of four words does not fit."""
    one = rng.choice(_CLEAR)
    many, members = kinds()[one]
    stranger = rng.choice(kinds()[rng.choice(_strangers(one))][1])
    items = ", ".join(rng.sample([*rng.sample(members, 3), stranger], 4))
    answer = f"The odd one out is {stranger}. The others are {many}."
    return [Turn(question(rng, material("lists")["odd"], items=items), answer, upper_first(stranger) + ".")]


def categories(rng: Random) -> list[Turn]:
    """Ask which kind a thing is, or whether it is of a kind."""
    one = rng.choice(_CLEAR)
    other = rng.choice(_strangers(one))
    item = rng.choice(kinds()[one][1])
    named = item if item[0].isupper() or one in _UNCOUNTED else article(item)
    kind = rng.choice(("yes", "no", "choice") if one == "job" else ("yes", "no", "choice", "kind"))
    first, second = rng.sample((one, other), 2) if kind == "choice" else (one if kind == "yes" else other, "")
    name = {"yes": "member", "no": "member"}.get(kind, kind)
    asks = [ask.replace("{a item}", named) for ask in material("lists")[name]]
    ask = question(rng, asks, one=first, other=second, many=kinds()[first][0])
    says = f"{kind}, {named}" if name == "member" else named
    short = f"{upper_first(kind)}." if name == "member" else f"{upper_first(article(one))}."
    return [Turn(ask, upper_first(f"{says} is {article(one)}."), short)]


TOPICS = [
    (4.0, repeats), (3.0, spelling), (0.8, letters), (2.0, letter_cases), (1.5, ordering), (2.5, sentences),
    (4.0, reading), (0.5, corrections), (3.2, lists), (1.5, single), (0.5, numbered), (0.8, odd_one_out),
    (2.2, categories),
]  # fmt: skip
