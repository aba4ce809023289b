"""Answers put together from several tables: tell me about an animal or a country, tea or coffee."""

import functools
from random import Random

from tunesmith.builtin.corpus_language import Turn, question, say
from tunesmith.builtin.corpus_tables import material, table


@functools.cache
def animals() -> dict[str, dict[str, str]]:
    """Collect what the tables say about each animal whose kind and legs they know."""
    known: dict[str, dict[str, str]] = {}
    for name in ("animal_kinds", "legs", "animal_sounds", "homes", "diets"):
        for row in table("nature", name).rows:
            known.setdefault(row["animal"], {}).update(row)
    return {animal: row for animal, row in sorted(known.items()) if {"kind", "number"} <= set(row)}


@functools.cache
def countries() -> list[dict[str, str]]:
    """Join the capital and the continent of each country whose both are known."""
    capitals = {row["country"]: row["city"] for row in table("geography", "capitals").rows}
    return [row | {"city": capitals[row["country"]]} for row in table("geography", "continents").rows]


def about_animals(rng: Random) -> list[Turn]:
    """Ask about an animal, then for one more fact."""
    asks = material("about")
    row = animals()[rng.choice(list(animals()))]
    more = [part for part in ("sound", "home", "food") if part in row]
    answer = say(
        rng,
        ["{a animal} is {a kind} and has {number} legs.", "{a animal} is {a kind}. It has {number} legs."],
        **row,
    )
    if more:
        answer += " " + say(rng, asks["animal_facts"][more[0]], **row)
    turns = [Turn(question(rng, asks["animal"], **row), answer)]
    if len(more) > 1 and rng.random() < 0.3:
        turns.append(
            Turn(
                question(rng, asks["more"][more[1]], **row),
                say(rng, asks["animal_facts"][more[1]], **row),
            )
        )
    return turns


def about_countries(rng: Random) -> list[Turn]:
    """Ask about a country, then about another or its capital."""
    asks, row = material("about"), rng.choice(countries())
    answer = say(rng, "{country} is a country in {continent}. Its capital is {city}.", **row)
    turns = [Turn(question(rng, asks["country"], **row), answer)]
    if rng.random() < 0.3:
        other = rng.choice(countries())
        answer = say(rng, "{country} is a country in {continent}. Its capital is {city}.", **other)
        turns.append(Turn(question(rng, asks["country_again"], **other), answer))
    elif rng.random() < 0.3:
        answer = say(rng, "The capital of {country} is {city}.", **row)
        turns.append(Turn(question(rng, asks["its_capital"], **row), answer, short=f"{row['city']}."))
    return turns


def choices(rng: Random) -> list[Turn]:
    """Ask which of two things to take."""
    asks = material("about")
    first, second = rng.sample(rng.choice(asks["pairs"]), 2)
    answer = say(rng, asks["choice_answers"], a=first, b=second)
    return [Turn(question(rng, asks["choice"], a=first, b=second), answer)]


TOPICS = [(1.6, about_animals), (1.2, about_countries), (0.6, choices)]
