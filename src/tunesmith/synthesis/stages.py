"""The four stages of Self-Instruct: instructions, their kinds, examples, and the rows that train.

The first three ask the model, and write each answer to a journal as it comes; what is asked next follows from the
seed tasks, the options and the journal alone. What is kept and what is dropped, and why, is read from the journals.
"""

import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.journal import Journal
from tunesmith.rouge import Pool, words
from tunesmith.synthesis import prompts
from tunesmith.synthesis.author import Author
from tunesmith.synthesis.options import Synthesis
from tunesmith.synthesis.prompts import Instance, Task

Say = Callable[[str], None]

FEWEST_WORDS, MOST_WORDS = 4, 150  # of an instruction; the paper's bounds
FRUITLESS_REQUESTS = 20  # in a row without a new instruction: the model has no more
SHOWN_TASKS = 8  # in a request that decides a kind
SHOWN_SOLVED = 4  # tasks in a request for examples
SHOWN_CHARACTERS = 600  # of their inputs and outputs, where there are enough such tasks
VERDICT_TOKENS = 16
SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK", "BOPOMOFO": "CJK"}  # written together

CUT = "cut off by max_new_tokens"


@dataclass(frozen=True)
class Work:
    """What every stage needs."""

    options: Synthesis
    seeds: tuple[Task, ...]
    author: Callable[[], Author]  # opened when it is first asked: a finished stage needs no model
    say: Say

    def ask(self, prompt: str, rng: random.Random, free: bool, max_new_tokens: int, stop: str | None) -> dict[str, Any]:
        """The model's answer as an entry of a journal; `free` draws it, else it is the likeliest."""
        reply = self.author().write(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=self.options.temperature if free else 0.0,
            top_p=self.options.top_p if free else 1.0,
            seed=rng.getrandbits(31),
            stop=stop,
        )
        return {"text": reply.text, "cut": reply.cut}


def instructions(work: Work, journal: Journal) -> list[str]:
    """Stage 1: new instructions, `num_instructions` of them unless the model has no more."""
    wanted = work.options.num_instructions
    pool = Pool([one.instruction for one in work.seeds])
    kept: list[str] = []
    number = fruitless = 0
    while len(kept) < wanted and fruitless < FRUITLESS_REQUESTS:
        if number == len(journal.entries):
            journal.append(_requested(work, number, kept, pool))
            new = _new(journal.entries[number])
            work.say(f"instructions: {len(kept) + len(new):,} of {wanted:,} after {number + 1:,} requests")
        else:
            new = _new(journal.entries[number])
            for text in new:
                pool.add(text)
        kept += new
        fruitless = 0 if new else fruitless + 1
        number += 1
    if fruitless:
        work.say(f"instructions: stopped after {fruitless} requests without a new one")
    return kept[:wanted]


def _new(entry: dict[str, Any]) -> list[str]:
    """The instructions of a request that were kept."""
    return [task["instruction"] for task in entry["tasks"] if task["dropped"] is None]


def _requested(work: Work, number: int, kept: Sequence[str], pool: Pool) -> dict[str, Any]:
    """Ask for more instructions, and judge them. Those that are kept go into the pool."""
    options = work.options
    rng = random.Random(f"{options.seed} instructions {number}")
    generated = rng.sample(kept, min(options.num_prompt_generated, len(kept)))
    own = [one.instruction for one in work.seeds if options.kinds in ("auto", _kind(one))]
    listed = [*generated, *rng.sample(own, min(options.num_prompt_tasks - len(generated), len(own)))]
    rng.shuffle(listed)
    prompt, stop = prompts.more(listed, options.kinds == "classification")
    answer = work.ask(prompt, rng, True, options.max_new_tokens, stop)
    found = prompts.instructions_in(answer["text"])
    scripts = {script(one.instruction) for one in work.seeds}
    tasks: list[dict[str, Any]] = []
    for place, text in enumerate(found, 1):
        reason = CUT if answer["cut"] and place == len(found) else unfit(text, options.banned, scripts)
        task: dict[str, Any] = {"instruction": text, "dropped": reason}
        if reason is None:
            likeness, nearest = pool.nearest(text)
            task |= {"similarity": round(likeness, 4), "nearest": nearest}
            if likeness > options.max_similarity or likeness == 1:
                task["dropped"] = f"ROUGE-L above {options.max_similarity} with an earlier instruction"
            else:
                pool.add(text)
        tasks.append(task)
    return {"request": number + 1, "shown": listed, **answer, "tasks": tasks}


def _kind(task: Task) -> str:
    return "classification" if task.classification else "other"


def unfit(instruction: str, banned: Sequence[str], scripts: set[str]) -> str | None:
    """Why an instruction cannot be used, by the rules of the paper, if so.

    The paper's rule of an English first letter is here one of the seed tasks' scripts.
    """
    said = words(instruction)
    if not instruction:
        return "empty"
    if len(said) < FEWEST_WORDS:
        return f"under {FEWEST_WORDS} words"
    if len(said) > MOST_WORDS:
        return f"over {MOST_WORDS} words"
    if unicodedata.category(instruction[0])[0] in "PS":
        return "begins with punctuation"
    if instruction.endswith((":", "：")):
        return "ends with a colon"
    if script(instruction) not in scripts:
        return "another script than the seed tasks'"
    if any(_holds(said, words(phrase)) for phrase in banned):
        return "has a banned word"
    return None


def _holds(said: Sequence[str], phrase: Sequence[str]) -> bool:
    return any(list(said[at : at + len(phrase)]) == list(phrase) for at in range(len(said) - len(phrase) + 1))


def script(text: str) -> str:
    """The script of a text's first letter, as Unicode names it: LATIN, CYRILLIC, CJK; empty where it has none."""
    first = next((character for character in text if character.isalpha()), "")
    name = unicodedata.name(first, "").partition(" ")[0] if first else ""
    return SCRIPTS.get(name, name)


def kinds(work: Work, found: Sequence[str], journal: Journal) -> list[bool]:
    """Stage 2: whether each instruction is a classification task. What the model leaves open is none."""
    shown = _of_both_kinds(work)
    decided = _answers(journal)
    for number, text in enumerate(found, 1):
        if text in decided:
            continue
        answer: dict[str, Any] = {"verdict": work.options.kinds == "classification"}
        if work.options.kinds == "auto":
            rng = random.Random(f"{work.options.seed} kinds {text}")
            answer = work.ask(prompts.decide(text, shown), rng, False, VERDICT_TOKENS, None)
            answer["verdict"] = prompts.verdict_in(answer["text"])
        journal.append({"instruction": text, **answer})
        _tell(work, "kinds", number, len(found))
    decided = _answers(journal)
    return [bool(decided[text]["verdict"]) for text in found]


def _of_both_kinds(work: Work) -> list[Task]:
    """Seed tasks to show how a kind is decided: half of them of classification, where there are enough."""
    rng = random.Random(f"{work.options.seed} kinds")
    told = rng.sample(work.seeds, len(work.seeds))
    yes = [one for one in told if one.classification][: SHOWN_TASKS // 2]
    no = [one for one in told if one.classification is False][: SHOWN_TASKS // 2]
    return rng.sample(yes + no, len(yes + no))


def instances(work: Work, found: Sequence[str], labelled: Sequence[bool], journal: Journal) -> None:
    """Stage 3: the model's text with examples of each instruction."""
    answered = _answers(journal)
    for number, (text, classification) in enumerate(zip(found, labelled, strict=True), 1):
        if text in answered:
            continue
        rng = random.Random(f"{work.options.seed} instances {classification}")  # so that all show the same tasks
        shown = _short([one for one in work.seeds if bool(one.classification) == classification], rng)
        prompt = prompts.instances(text, shown, classification, work.options.max_instances)
        answer = work.ask(prompt, rng, False, work.options.max_new_tokens, prompts.NEXT_TASK)
        journal.append({"instruction": text, "classification": classification, **answer})
        _tell(work, "instances", number, len(found))


def _short(tasks: Sequence[Task], rng: random.Random) -> list[Task]:
    """Some tasks whose examples leave room in a prompt, or the shortest."""
    mixed = rng.sample(tasks, len(tasks))
    mixed.sort(key=lambda one: max(0, len(str(one.instances)) - SHOWN_CHARACTERS))
    return mixed[:SHOWN_SOLVED]


def _answers(journal: Journal) -> dict[str, dict[str, Any]]:
    return {entry["instruction"]: entry for entry in journal.entries}


def _tell(work: Work, stage: str, number: int, of: int) -> None:
    if number % 10 == 0 or number == of:
        work.say(f"{stage}: {number:,} of {of:,}")


def rows(seeds: Sequence[Task], entry: dict[str, Any], most: int) -> Iterator[tuple[Instance | None, str | None]]:
    """Stage 4: the examples in an answer, each with the reason for which it is dropped, if any; (None, reason) for
    an answer or an example that cannot be read.
    """
    found = prompts.instances_in(entry["text"], entry["classification"])
    if not found:
        yield None, CUT if entry["cut"] else "no example in the answer"
    copied = {one for task in seeds for one in task.instances}
    usable = [one for one in found if one is not None and one.output]
    disputed = {one.input for one in usable for other in usable if one.input == other.input != "" and one != other}
    seen: set[Instance] = set()
    for number, one in enumerate(found, 1):
        reason: str | None = None
        if entry["cut"] and number == len(found):
            reason = CUT
        elif one is None or not one.output:
            reason = "no output"
        elif one.input == one.output:
            reason = "the output is the input"
        elif one.input.endswith((":", "：")) or one.output.endswith((":", "：")):
            reason = "ends with a colon"
        elif one in copied:
            reason = "copied from a seed task"
        elif one.input in disputed:
            reason = "other outputs for the same input"
        elif one in seen:
            reason = "said before"
        elif len(seen) == most:
            reason = "more than max_instances"
        else:
            seen.add(one)
        yield one, reason
