"""A whole synthesis: what it writes, that all is accounted for, and that a killed one ends as an uninterrupted one."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures_authors import SEEDS, Script, write_seeds
from tunesmith.data import source
from tunesmith.errors import DataError, RunError
from tunesmith.formats.auto import choose
from tunesmith.recipe_data import Source
from tunesmith.synthesis import make, seeds, stages
from tunesmith.synthesis.author import Reply
from tunesmith.synthesis.options import Synthesis
from tunesmith.types import Message

FILES = (make.INSTRUCTIONS, make.KINDS, make.INSTANCES, make.TRAIN, make.LEDGER)


def options(**changes):
    return Synthesis(model="scripted", num_instructions=12, num_prompt_tasks=3, num_prompt_generated=1, **changes)


def written(out):
    return {name: (out / name).read_bytes() for name in FILES}


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished synthesis: its folder, its author, what it said and its seeds."""
    folder = tmp_path_factory.mktemp("synthesis")
    path, author, said = write_seeds(folder / "seeds.jsonl"), Script(), []
    ledger = make.synthesize(path, folder / "out", options(), said.append, author)
    return folder / "out", author, said, path, ledger


def test_every_text_is_kept_or_dropped_for_a_reason(done):
    out, author, _, _, ledger = done
    requests, kinds, answers = (entries(out / name) for name in FILES[:3])
    assert json.loads((out / make.LEDGER).read_text()) == ledger
    assert len(author.prompts) == len(requests) + len(kinds) + len(answers)
    for stage, texts in (("instructions", 3 * len(requests)), ("instances", None)):
        counts = ledger[stage]
        assert counts["texts"] == counts["kept"] + sum(entry["count"] for entry in counts["dropped"].values())
        assert texts in (None, counts["texts"])  # the script writes a list of three
    dropped = {reason: entry["count"] for reason, entry in ledger["instructions"]["dropped"].items()}
    assert dropped["under 4 words"] == dropped["has a banned word"] == len(requests)  # one of each list is so
    assert ledger["instructions"]["kept"] == 12 == len(kinds) == len(answers)
    judges = sum(entry["instruction"].startswith("Judge") for entry in kinds)
    assert ledger["kinds"] == {"answers": 12, "classification": judges, "other": 12 - judges, "undecided": 0}
    # The script gives two labels, or three examples of which the last has no output.
    assert ledger["instances"]["texts"] == 2 * judges + 3 * (12 - judges)
    assert ledger["instances"]["dropped"]["no output"]["count"] == 12 - judges
    assert ledger["rows"] == ledger["instances"]["kept"] == 24 and judges not in (0, 12)


def test_a_request_shows_seeds_and_generated_ones(done):
    requests = entries(done[0] / make.INSTRUCTIONS)
    own = {row["instruction"] for row in SEEDS}
    assert set(requests[0]["shown"]) == own
    for number, request in enumerate(requests[1:], 1):
        earlier = {task["instruction"] for one in requests[:number] for task in one["tasks"] if task["dropped"] is None}
        assert len(request["shown"]) == 3 and len(set(request["shown"]) & own) == (2 if earlier else 3)
        assert set(request["shown"]) <= own | earlier
    kept = [task for one in requests for task in one["tasks"] if task["dropped"] is None]
    assert max(task["similarity"] for task in kept) <= 0.7
    assert len({request["text"] for request in requests}) > 6  # each is drawn anew


def test_instructions_are_drawn_and_the_rest_is_likeliest(done):
    warm = [prompt.startswith("Come up with a series") for prompt, _, temperature in done[1].prompts if temperature]
    assert all(warm) and len(warm) == len(entries(done[0] / make.INSTRUCTIONS))


def test_the_rows_train_as_they_are(done):
    rows = [row for _, row in source.read(Source(path=str(done[0] / make.TRAIN)))]
    assert all(row.keys() == {"instruction", "input", "output"} for row in rows) and len(rows) == 24
    sample = choose(rows[0]).read(rows[0])
    question, answer = sample.branches[0]
    assert question == Message("user", f"{rows[0]['instruction']}\n{rows[0]['input']}")
    assert answer == Message("assistant", rows[0]["output"])


@pytest.mark.parametrize("dies_at", [0, 1, 7, 13, 14, 25, 26, 35])
def test_a_killed_one_goes_on_to_the_same_end(done, tmp_path, dies_at):
    with pytest.raises(KeyboardInterrupt):
        make.synthesize(done[3], tmp_path / "out", options(), print, Script(dies_at))
    author = Script()
    ledger = make.synthesize(done[3], tmp_path / "out", options(), print, author)
    assert ledger == done[4] and written(tmp_path / "out") == written(done[0])
    assert len(author.prompts) == len(done[1].prompts) - dies_at  # nothing is asked twice


@pytest.mark.parametrize("name", FILES[:3])
def test_a_torn_last_line_is_asked_again(done, tmp_path, name):
    out = copied(done[0], tmp_path)
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[: content.rindex(b"\n", 0, -1) + 9])  # the kill came in the middle of a line
    author = Script()
    make.synthesize(done[3], out, options(), print, author)
    assert written(out) == written(done[0]) and len(author.prompts) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (make.SETTINGS, "{", "settings.json is missing or damaged .*: .*out cannot go on. Choose another$"),
        (make.SETTINGS, "{}", "settings.json is missing or damaged"),
        (make.INSTRUCTIONS, "5\n", "instructions.jsonl:1 is no object with 'tasks': take the line and those below out"),
        (make.KINDS, '{"a": 1}\n', "kinds.jsonl:1 is no object with 'instruction'"),
        (make.INSTANCES, "[" * 100_000 + "\n", "instances.jsonl:1 is not valid JSON .*recursion"),
    ],
)
def test_a_damaged_file_is_named(done, tmp_path, name, content, said):
    out = copied(done[0], tmp_path)
    (out / name).write_text(content)
    with pytest.raises(RunError, match=said):
        make.synthesize(done[3], out, options(), print, Script())
    (out / make.SETTINGS).unlink()
    with pytest.raises(RunError, match="settings.json is missing or damaged"):
        make.synthesize(done[3], out, options(), print, Script())


def test_a_finished_one_asks_nothing(done, tmp_path):
    author = Script(dies_at=0)
    assert make.synthesize(done[3], copied(done[0], tmp_path), options(), print, author) == done[4]


def test_more_instructions_can_be_asked_for_later(done, tmp_path):
    out = copied(done[0], tmp_path)
    more = options().model_copy(update={"num_instructions": 15})
    ledger = make.synthesize(done[3], out, more, print, Script())
    assert ledger["instructions"]["kept"] == 15
    assert (out / make.TRAIN).read_text().startswith((done[0] / make.TRAIN).read_text())
    back = make.synthesize(done[3], out, options(), print, Script(dies_at=0))
    assert back["rows"] == 24 and (out / make.TRAIN).read_bytes() == (done[0] / make.TRAIN).read_bytes()
    spare = [back[stage]["dropped"][make.SPARE]["count"] for stage in ("instructions", "instances")]
    assert spare[0] == 3 and spare[1] >= 6


def copied(folder, tmp_path):
    (tmp_path / "out").mkdir()
    for path in folder.iterdir():
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "out"


def test_other_options_or_seeds_are_refused(done, tmp_path):
    out = copied(done[0], tmp_path)
    with pytest.raises(RunError, match=r"was begun with temperature=0\.7 and not 0\.9\. Choose another folder"):
        make.synthesize(done[3], out, options(temperature=0.9), print, Script())
    (tmp_path / "seeds.jsonl").write_text(json.dumps(SEEDS[2]) + "\n" + json.dumps(SEEDS[1]) + "\n")
    with pytest.raises(RunError, match="was begun with other seed tasks than .*seeds.jsonl holds now"):
        make.synthesize(str(tmp_path / "seeds.jsonl"), out, options(), print, Script())
    assert written(out) == written(done[0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for place in (tmp_path / "full", tmp_path / "seeds.jsonl"):
        with pytest.raises(RunError, match="is not empty, and holds no synthesis"):
            make.synthesize(done[3], place, options(), print, Script())


def test_the_seeds_own_examples_come_first_when_asked(done, tmp_path):
    ledger = make.synthesize(done[3], copied(done[0], tmp_path), options(with_seeds=True), print, Script(dies_at=0))
    first, *_ = entries(tmp_path / "out" / make.TRAIN)
    assert first == {"instruction": "Sort these words.", "input": "b a", "output": "a b"}
    assert (ledger["seed_rows"], ledger["rows"]) == (3, 27)
    assert list(make.lines(ledger))[-1] == "27 rows, 3 of them of the seed tasks"


@pytest.mark.parametrize(("kinds", "verdict"), [("classification", True), ("other", False)])
def test_one_kind_alone_is_not_asked_about(done, tmp_path, kinds, verdict):
    author = Script()
    make.synthesize(done[3], tmp_path / "out", options(kinds=kinds), print, author)
    assert {entry["verdict"] for entry in entries(tmp_path / "out" / make.KINDS)} == {verdict}
    assert not any(prompt.startswith("Is the answer") for prompt, *_ in author.prompts)
    shown = {text for one in entries(tmp_path / "out" / make.INSTRUCTIONS)[:1] for text in one["shown"]}
    assert shown == {row["instruction"] for row in SEEDS if row["is_classification"] == verdict}


class Parrot(Script):
    """Says a seed task again, but for a number of new ones."""

    def __init__(self, new):
        super().__init__()
        self.new = new

    def write(self, prompt, **options):
        reply = super().write(prompt, **options)
        series = prompt.startswith("Come up with a series") and len(self.prompts) > self.new
        return Reply("Sort these words.", cut=False) if series else reply


def test_a_model_without_ideas_is_given_up_and_what_it_has_is_used(done, tmp_path):
    said = []
    ledger = make.synthesize(done[3], tmp_path / "some", options(), said.append, Parrot(new=2))
    assert ledger["instructions"]["answers"] == 2 + stages.FRUITLESS_REQUESTS and ledger["rows"] == 4
    assert "instructions: stopped after 20 requests without a new one" in said
    with pytest.raises(RunError, match="train.jsonl has no rows"):
        make.synthesize(done[3], tmp_path / "none", options(), print, Parrot(new=0))
    assert json.loads((tmp_path / "none" / make.LEDGER).read_text())["rows"] == 0


def test_a_line_that_is_no_json_is_named(done, tmp_path):
    out = copied(done[0], tmp_path)
    (out / make.KINDS).write_text('{"instruction": "a"}\nhello\n')
    with pytest.raises(RunError, match=r"kinds\.jsonl:2 is not valid JSON"):
        make.synthesize(done[3], out, options(), print, Script())


def test_a_folder_in_which_nothing_is_written_yet_may_begin_otherwise(done, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make.synthesize(done[3], tmp_path / "out", options(temperature=0.9), print, Script(dies_at=0))
    assert make.synthesize(done[3], tmp_path / "out", options(), print, Script()) == done[4]
    assert written(tmp_path / "out") == written(done[0])


def test_one_run_at_a_time_writes_in_a_folder(done, tmp_path):
    out, living = copied(done[0], tmp_path), f"{os.getppid()} {platform.node()}"
    for content, holder in ((living, living.replace(" ", " on ")), ("7 elsewhere", "7 on elsewhere"), ("", "unknown")):
        (out / make.LOCK).write_text(content)
        with pytest.raises(RunError, match=f"another synthesis writes there .process {holder}.*remove .*lock$"):
            make.synthesize(done[3], out, options(), print, Script(dies_at=0))
        assert (out / make.LOCK).read_text() == content
    (out / make.LOCK).unlink()

    twelve = options()

    class Slow(Script):
        def write(self, prompt, **options):
            if not self.prompts:
                assert (tmp_path / "new" / make.LOCK).read_text() == f"{os.getpid()} {platform.node()}"
                (tmp_path / "new" / make.LOCK).write_text(living)  # as another process sees it
                with pytest.raises(RunError, match=f"another synthesis writes there .process {os.getppid()} "):
                    make.synthesize(done[3], tmp_path / "new", twelve, print, Script(dies_at=0))
            return super().write(prompt, **options)

    assert make.synthesize(done[3], tmp_path / "new", options(), print, Slow()) == done[4]
    assert not (tmp_path / "new" / make.LOCK).exists()


def test_the_lock_of_a_dead_run_is_taken_over(done, tmp_path):
    out = copied(done[0], tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    for dead in (process.pid, os.getpid()):  # a machine that began anew may number its processes alike
        (out / make.LOCK).write_text(f"{dead} {platform.node()}")
        assert make.synthesize(done[3], out, options(), print, Script(dies_at=0)) == done[4]
        assert not (out / make.LOCK).exists()


# seed tasks


def read(tmp_path: Path, *rows, name="s.jsonl", **changes):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return seeds.read(str(tmp_path / name), options(**changes))


def test_seed_tasks_may_be_rows_of_a_table(tmp_path):
    (tmp_path / "s.csv").write_text("instruction,input,output,is_classification\nSay hi,,Hi,no\nIs it?,x, y ,TRUE\n")
    first, second = seeds.read(str(tmp_path / "s.csv"), options())
    assert (first.classification, second.classification) == (False, True)
    assert (second.instances[0].input, second.instances[0].output) == ("x", "y")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"instruction": " "}, r"s\.jsonl:2: column 'instruction' is empty"),
        ({"instances": []}, r"s\.jsonl:2: column 'instances' is empty"),
        ({"instances": [{"input": "a"}]}, r"s\.jsonl:2: instances\[0\]\.output is missing"),
        ({"instances": [{"input": "a", "output": " "}]}, r"s\.jsonl:2: column 'instances' is empty"),
        ({"is_classification": 3}, r"s\.jsonl:2: column 'is_classification' must be true or false and is 3"),
    ],
)
def test_a_row_that_is_no_task_is_named(tmp_path, change, problem):
    with pytest.raises(DataError, match=problem):
        read(tmp_path, SEEDS[0], SEEDS[2] | change)


def test_seeds_of_one_kind_need_the_option_that_says_so(tmp_path):
    with pytest.raises(DataError, match="none of its 2 tasks is a classification task.* say kinds=other"):
        read(tmp_path, *SEEDS[:2])
    assert len(read(tmp_path, *SEEDS[:2], kinds="other")) == 2
    with pytest.raises(DataError, match="none of its 1 tasks is not a classification task.* say kinds=classification"):
        read(tmp_path, SEEDS[2])
