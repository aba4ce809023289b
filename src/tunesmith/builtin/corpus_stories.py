"""Tiny stories, their summaries, and the plain documents, from one grammar (`material/stories.yaml`)."""

import functools
from random import Random
from typing import Any

from tunesmith.builtin.corpus_language import Turn, capitalise, expand, fill, joined, plural, question, say
from tunesmith.builtin.corpus_tables import material, table

_FACT_TABLES = (
    ("geography", "capitals"), ("geography", "languages"), ("nature", "legs"), ("nature", "colours"),
    ("nature", "diets"), ("nature", "babies"), ("things", "definitions"), ("things", "jobs"),
    ("things", "tools"), ("words", "opposites"),
)  # fmt: skip


@functools.cache
def grammar() -> dict[str, Any]:
    """Read the story grammar, its word lists as lists."""
    return {name: value.split() if isinstance(value, str) else value for name, value in material("stories").items()}


def person(rng: Random) -> dict[str, str]:
    """Draw a name with its pronouns."""
    if rng.random() < 0.5:
        return {"name": rng.choice(grammar()["girls"]), "he": "she", "him": "her", "his": "her"}
    return {"name": rng.choice(grammar()["boys"]), "he": "he", "him": "him", "his": "his"}


def cast(rng: Random) -> dict[str, str]:
    """Draw everything a plot may mention."""
    words = grammar()
    hero, helper = rng.sample(words["animals"], 2)
    if rng.random() < 0.4:
        hero = rng.choice(words["people"])
    fields = person(rng) | {"hero": hero, "helper": helper}
    feminine = {"girl", "queen", "old woman", "cow", "hen"}
    if hero in feminine | {"boy", "king", "old man", "postman", "fisherman"}:
        gender = "girls" if hero in feminine else "boys"
        pronouns = ("she", "her", "her") if gender == "girls" else ("he", "him", "his")
        fields |= {"name": rng.choice(words[gender])} | dict(zip(("he", "him", "his"), pronouns, strict=True))
    single = {
        "place": "places",
        "thing": "things",
        "food": "foods",
        "colour": "colours",
        "adjective": "adjectives",
        "person": "people",
    }
    return fields | {field: rng.choice(words[many]) for field, many in single.items()}


def tell(rng: Random, fields: dict[str, str], *, sentences: int = 5) -> tuple[str, str]:
    """Tell a story about a cast, with its ending only if there is room, and its summary."""
    words = grammar()
    plot = rng.choice(words["plots"])
    parts = [rng.choice(words["openings"]), plot["body"]] + ([rng.choice(words["endings"])] if sentences > 4 else [])
    text = " ".join(fill(expand(part, rng), fields) for part in parts)
    return capitalise(text), say(rng, plot["summary"], **fields)


def stories(rng: Random) -> list[Turn]:
    """Ask for a story, sometimes with a name, sometimes for one more or about its hero."""
    words, fields = grammar(), cast(rng)
    kind = rng.choices(("asks", "named_asks", "free_asks"), (4, 2, 1))[0]
    turns = [Turn(question(rng, words[kind], **fields), tell(rng, fields)[0])]
    after = rng.random()
    if after < 0.12:
        other = cast(rng)
        turns.append(Turn(question(rng, words["again_asks"], **other), tell(rng, other)[0]))
    elif after < 0.3:
        answer = say(rng, "the {hero} is called {name}.", **fields)
        turns.append(Turn(question(rng, words["hero_asks"], **fields), answer))
    return turns


def summaries(rng: Random) -> list[Turn]:
    """Ask to sum up a short story in one sentence."""
    fields = cast(rng)
    story, summary = tell(rng, fields, sentences=4)
    ask = expand(rng.choice(grammar()["summaries"]), rng).replace("{story}", story)
    return [Turn(capitalise(ask), summary, exact=True)]


def _facts(rng: Random) -> str:
    facts = table(*rng.choice(_FACT_TABLES))
    answer = facts.frames[0].answer
    return " ".join(say(rng, answer, **row) for row in rng.sample(facts.rows, rng.randint(3, 6)))


def _drill(rng: Random) -> str:
    sign, first = rng.choice("+-x"), rng.randint(0, 12 if rng.random() < 0.7 else 20)
    numbers = range(11)
    if sign == "+":
        return "\n".join(f"{first} + {n} = {first + n}" for n in numbers)
    if sign == "-":
        return "\n".join(f"{first + n} - {n} = {first}" for n in numbers)
    return "\n".join(f"{first % 11} x {n} = {first % 11 * n}" for n in numbers)


def _day(rng: Random) -> str:
    fields = cast(rng) | {"other": cast(rng)["name"]}
    first, *parts = grammar()["day"]
    keep = sorted(rng.sample(range(len(parts)), rng.randint(2, 5)))
    return " ".join(say(rng, part, **fields) for part in [first, *(parts[place] for place in keep)])


def _recipe(rng: Random) -> str:
    rows = rng.sample(table("howto", "howto").rows, rng.randint(2, 4))
    return "\n".join(say(rng, "how to {task}: {steps}", **row).replace(" my ", " your ", 1) for row in rows)


def _craft(rng: Random) -> str:
    fields, words = cast(rng), grammar()
    things = [plural(thing) for thing in rng.sample(words["iron_things"], 2)]
    return " ".join(say(rng, part, thing_plural=joined(things), **fields) for part in rng.sample(words["crafts"], 2))


def _tales(rng: Random) -> str:
    return "\n\n".join(tell(rng, cast(rng))[0] for _ in range(rng.choice((1, 1, 2))))


_DOCUMENTS = {_tales: 9, _day: 5, _facts: 4, _drill: 1, _recipe: 1, _craft: 0.6}


def document(rng: Random) -> str:
    """Write one plain text: a story, a day, some facts, a table of sums, a page about craftsmen."""
    return rng.choices(list(_DOCUMENTS), list(_DOCUMENTS.values()))[0](rng)


TOPICS = [(5.5, stories), (1.6, summaries)]
