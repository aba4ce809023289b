"""What a conversation needs its own past for: what the user said earlier, and answers said again."""

from random import Random

from tunesmith.builtin.corpus_language import Turn, question, say
from tunesmith.builtin.corpus_stories import grammar, person
from tunesmith.builtin.corpus_tables import Topic, material, table
from tunesmith.builtin.corpus_words import kinds, vocabulary


def _value(rng: Random, kind: str) -> str:
    if kind == "name":
        return person(rng)["name"]
    if kind == "pet":
        return rng.choice(grammar()["names_for_pets"])
    if kind in ("age", "number"):
        return str(rng.randint(5, 80) if kind == "age" else rng.randint(1, 999))
    if kind == "city":
        return rng.choice(table("geography", "capitals").rows)["city"]
    if kind == "food":
        return rng.choice(material("tasks")["meals"].split())
    return rng.choice(vocabulary() if kind == "word" else kinds()[kind][1])


def _pair(rng: Random, entry: dict[str, list[str]], value: str) -> tuple[Turn, Turn]:
    told = Turn(question(rng, entry["tell"], v=value), say(rng, entry["reply"], v=value), exact=True)
    short = value[:1].upper() + value[1:] + ("" if value.isdigit() else ".")
    return told, Turn(question(rng, entry["ask"], v=value), say(rng, entry["answer"], v=value), short=short)


def remembered(rng: Random, other: Topic) -> list[Turn]:
    """Let the user say something about themselves and ask for it later, other turns between."""
    count = rng.choice((1, 1, 1, 2))
    weights = [5 if entry["value"] == "name" else 1 for entry in material("memory")["memories"]]
    entries = rng.choices(material("memory")["memories"], weights, k=1)
    if count == 2:
        entries.append(rng.choice([entry for entry in material("memory")["memories"] if entry is not entries[0]]))
    pairs = [_pair(rng, entry, _value(rng, entry["value"])) for entry in entries]
    between = [turn for _ in range(rng.choice((0, 0, 1, 1, 2))) for turn in other(rng)[:2]]
    told, asked = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if rng.random() < 0.15:
        return told + between
    return told + between + rng.sample(asked, len(asked))


def recalled(rng: Random, other: Topic) -> list[Turn]:
    """Let the user ask for the last answer again, or for their own last question."""
    turns, recall = other(rng), material("memory")["recall"]
    last = turns[-1]
    if rng.random() < 0.6 or "\n" in last.ask or last.ask[-1] not in "?." or len(last.ask) > 70:
        return [*turns, Turn(question(rng, recall["said"]), last.answer, exact=False)]
    fixed = [*turns[:-1], Turn(last.ask, last.answer, short=last.short, exact=True)]
    return [*fixed, Turn(question(rng, recall["asks"]), f'You said: "{last.ask}"')]
