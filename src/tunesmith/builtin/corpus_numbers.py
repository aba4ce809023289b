"""Topics about numbers, dates and sizes."""

from random import Random

from tunesmith.builtin.corpus_language import NUMBER_WORDS, Turn, joined, plural, question, say
from tunesmith.builtin.corpus_stories import person
from tunesmith.builtin.corpus_tables import material

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_COUNTED = (
    "apple pear ball book coin egg toy car star cookie flower pencil card shell stone cake bird marble sweet"
).split()
_SIZES = (
    "ant bee mouse hamster cat dog sheep cow elephant whale",
    "seed cherry apple melon pumpkin",
    "spoon cup pot bucket bath lake sea",
    "pebble stone rock hill mountain",
    "bicycle car bus train",
    "house village city country continent planet",
    "button coin plate table house castle",
    "feather book chair table car ship",
)
_SPOKEN = {"+": "plus", "-": "minus", "x": "times"}


def compute(left: int, sign: str, right: int) -> int:
    """Work out one small sum."""
    return {"+": left + right, "-": left - right, "x": left * right}[sign]


def _ask(rng: Random, name: str, **fields: object) -> str:
    return question(rng, material("numbers")[name], **{key: str(value) for key, value in fields.items()})


def _operands(rng: Random, sign: str) -> tuple[int, int]:
    if sign == "x":
        return rng.randint(0, 10), rng.randint(0, 10)
    top = 20 if rng.random() < 0.8 else 100
    left, right = rng.randint(0, top), rng.randint(0, top)
    if sign == "-":
        return max(left, right), min(left, right)
    return (left, right) if left + right <= 100 else (left % 50, right % 50)


def _sum(rng: Random, asks: dict[str, list[str]], sign: str) -> Turn:
    left, right = _operands(rng, sign)
    words = {"plus": rng.choice(("+", "plus", "and")), "minus": rng.choice(("-", "minus", "less"))}
    result = compute(left, sign, right)
    ask = question(rng, asks[sign], a=str(left), b=str(right), **words)
    return Turn(ask, f"{left} {sign} {right} = {result}", short=str(result))


def sums(rng: Random) -> list[Turn]:
    """Ask for sums, differences and products, sometimes a few in a row."""
    sign = rng.choices("+-x", (5, 4, 3))[0]
    asks = material("numbers")
    more = rng.choice((0, 0, 0, 1, 2))
    return [_sum(rng, asks, sign)] + [_sum(rng, asks["again"], sign) for _ in range(more)]


def chained(rng: Random) -> list[Turn]:
    """Ask for a sum, then change its result."""
    left, right, third = rng.randint(1, 20), rng.randint(1, 20), rng.randint(1, 10)
    total = left + right
    sign = "+" if rng.random() < 0.6 or third > total else "-"
    result = compute(total, sign, third)
    return [
        Turn(
            _ask(rng, "+", a=left, b=right, plus="+"),
            f"{left} + {right} = {total}",
            short=str(total),
        ),
        Turn(
            _ask(rng, "then_add" if sign == "+" else "then_take", n=third),
            f"{total} {sign} {third} = {result}",
            short=str(result),
        ),
    ]


def spoken_sums(rng: Random) -> list[Turn]:
    """Ask for small sums written in words."""
    sign = rng.choice("+-")
    left, right = rng.randint(0, 10), rng.randint(0, 10)
    left, right = (max(left, right), min(left, right)) if sign == "-" else (left, right)
    result = NUMBER_WORDS[compute(left, sign, right)]
    fields = {"a": NUMBER_WORDS[left], "b": NUMBER_WORDS[right], "sign": _SPOKEN[sign], "r": result}
    answer = say(rng, "{a} {sign} {b} is {r}.", **fields)
    return [Turn(_ask(rng, "spoken", **fields), answer, short=result.capitalize() + ".")]


def word_problems(rng: Random) -> list[Turn]:
    """Ask how many are left when things are given, lost and bought."""
    who, thing = person(rng), rng.choice(_COUNTED)
    sign = rng.choice("+-")
    left, right = rng.randint(2, 15), rng.randint(1, 10)
    left = left if sign == "+" else max(left, right)
    friend = rng.choice(
        [other["name"] for other in (person(rng), person(rng)) if other["name"] != who["name"]] or ["Quentin"]
    )
    fields = who | {
        "a": str(left),
        "b": str(right),
        "thing": plural(thing),
        "friend": friend,
    }
    asks = material("numbers")
    ask = say(rng, asks["gains" if sign == "+" else "losses"], **fields) + " " + say(rng, asks["how_many"], **fields)
    result = compute(left, sign, right)
    named = thing if result == 1 else fields["thing"]
    return [
        Turn(
            ask,
            f"{left} {sign} {right} = {result}. {who['name']} has {result} {named}.",
            short=str(result),
        )
    ]


def doubles(rng: Random) -> list[Turn]:
    """Ask for doubles and halves, even and odd."""
    number = rng.randint(1, 20)
    kind = rng.choice(("double", "half", "parity"))
    ask = _ask(rng, kind, n=number, m=2 * number)
    if kind == "double":
        return [Turn(ask, f"Double {number} is {2 * number}.", short=str(2 * number))]
    if kind == "half":
        return [Turn(ask, f"Half of {2 * number} is {number}.", short=str(number))]
    word = "odd" if number % 2 else "even"
    return [Turn(ask, f"{number} is {word}.", short=word.capitalize() + ".")]


def comparisons(rng: Random) -> list[Turn]:
    """Ask which number is bigger or smaller."""
    small, big = sorted(rng.sample(range(101), 2))
    return [_compared(rng, str(small), str(big), "")]


def sizes(rng: Random) -> list[Turn]:
    """Ask which of two things is bigger or smaller."""
    ladder = rng.choice(_SIZES).split()
    low, high = sorted(rng.sample(range(len(ladder)), 2))
    return [_compared(rng, ladder[low], ladder[high], "_thing")]


def _compared(rng: Random, small: str, big: str, kind: str) -> Turn:
    first, second = rng.sample((small, big), 2)
    fields = {"a": first, "b": second, "small": small, "big": big}
    which = rng.choice(("bigger", "smaller", "is_bigger"))
    ask = _ask(rng, which + kind, **fields)
    noun = "{{a {0}}}" if kind else "{{{0}}}"
    if which == "is_bigger":
        word, yes = ("bigger", "Yes") if first == big else ("smaller", "No")
        answer = say(rng, f"{yes}, {noun.format('a')} is {word} than {noun.format('b')}.", **fields)
        return Turn(ask, answer, short=f"{yes}.")
    one, other = ("big", "small") if which == "bigger" else ("small", "big")
    answer = say(rng, f"{noun.format(one)} is {which} than {noun.format(other)}.", **fields)
    return Turn(ask, answer, short=say(rng, noun.format(one), **fields) + ("." if kind else ""))


def counting(rng: Random) -> list[Turn]:
    """Ask to count up and down."""
    kind = rng.choice(("count_up", "count_to", "count_down"))
    low = 1 if kind == "count_to" else rng.randint(0, 12)
    high = low + rng.randint(3, 9)
    numbers = list(range(low, high + 1))
    if kind == "count_down":
        return [Turn(_ask(rng, kind, a=high, b=low), ", ".join(map(str, numbers[::-1])))]
    return [Turn(_ask(rng, kind, a=low, b=high), ", ".join(map(str, numbers)))]


def neighbours(rng: Random) -> list[Turn]:
    """Ask for the next number of a row, the one before, the one after."""
    kind = rng.choice(("next", "before", "after"))
    if kind == "next":
        start, step = rng.randint(0, 40), rng.choice((1, 1, 1, 2, 5, 10))
        run = [str(start + step * place) for place in range(5)]
        return [
            Turn(
                _ask(rng, kind, run=", ".join(run[:4])),
                f"The next number is {run[4]}.",
                short=run[4],
            )
        ]
    number = rng.randint(1, 99)
    result = number + (1 if kind == "after" else -1)
    return [
        Turn(
            _ask(rng, kind, n=number),
            f"The number {kind} {number} is {result}.",
            short=str(result),
        )
    ]


def orders(rng: Random) -> list[Turn]:
    """Ask to put numbers in order, or for the biggest or smallest."""
    numbers = rng.sample(range(1, 60), rng.choice((3, 3, 4)))
    kind = rng.choice(("sort", "biggest", "smallest"))
    ask = _ask(rng, kind, items=joined([str(number) for number in numbers]))
    if kind == "sort":
        return [Turn(ask, ", ".join(map(str, sorted(numbers))))]
    result = max(numbers) if kind == "biggest" else min(numbers)
    return [Turn(ask, f"The {kind} number is {result}.", short=str(result))]


def calendar(rng: Random) -> list[Turn]:
    """Ask for the day after, the month before, all the days."""
    noun, names = rng.choice((("day", DAYS), ("month", MONTHS)))
    place = rng.randrange(len(names))
    here, before = names[place], names[place - 1]
    after, then = names[(place + 1) % len(names)], names[(place + 2) % len(names)]
    fields = {
        "here": here,
        "noun": noun,
        "after": after,
        "n": len(names),
        "whole": "week" if noun == "day" else "year",
    }
    kind = rng.choice(("date_after", "date_after", "date_before", "dates"))
    ask = _ask(rng, kind, **fields)
    if kind == "dates":
        return [Turn(ask, f"The {noun}s are {joined(names)}.")]
    if kind == "date_before":
        return [Turn(ask, f"{before} comes before {here}.", short=before + ".")]
    turns = [Turn(ask, f"{after} comes after {here}.", short=after + ".")]
    if rng.random() < 0.4:
        asked = _ask(rng, "date_then", **fields)
        turns.append(Turn(asked, f"{then} comes after {after}.", short=then + "."))
    return turns


def dates(rng: Random) -> list[Turn]:
    """Ask for tomorrow and yesterday, the third month, the season of a month."""
    kind = rng.choice(("tomorrow", "yesterday", "nth_month", "season"))
    place = rng.randrange(7 if kind in ("tomorrow", "yesterday") else 12)
    ask = _ask(rng, kind, here=DAYS[place % 7], o=_ORDINALS[place], m=MONTHS[place])
    if kind == "nth_month":
        return [Turn(ask, f"The {_ORDINALS[place]} month is {MONTHS[place]}.", short=MONTHS[place] + ".")]
    if kind == "season":
        season = ("winter", "spring", "summer", "autumn")[(place + 1) % 12 // 3]
        answer = f"In the north, {MONTHS[place]} is in {season}."
        return [Turn(ask, answer, short=season.capitalize() + ".")]
    day = DAYS[(place + (1 if kind == "tomorrow" else -1)) % 7]
    answer = f"Tomorrow is {day}." if kind == "tomorrow" else f"Yesterday was {day}."
    return [Turn(ask, answer, short=day + ".")]


TOPICS = [
    (9.0, sums), (1.2, chained), (1.5, spoken_sums), (3.0, word_problems), (1.5, doubles), (2.0, comparisons),
    (2.2, sizes), (1.2, counting), (1.8, neighbours), (1.0, orders), (2.2, calendar), (1.3, dates),
]  # fmt: skip
