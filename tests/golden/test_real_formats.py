"""Published rows, where a checkout has them beside it: `auto` chooses the right format, and it reads every row.

They belong to others and are not part of this repository. Without them the tests skip and say so.
"""

from pathlib import Path

import pytest

from tunesmith.component import name_of
from tunesmith.data import source
from tunesmith.formats.auto import choose
from tunesmith.recipe_data import Source

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the published rows are not in {DATA.name}/ beside the checkout"
)

NO_DATA = {"dataset_info.json", "README.md"}  # a registry, and a page
FORMATS = {  # the format and the number of rows that each file's own page gives
    "alpaca_en_demo.json": ("alpaca", 999),
    "identity.json": ("alpaca", 91),
    "dpo_en_demo.json": ("pairs", 300),
    "kto_en_demo.json": ("labelled", 300),
    "glaive_toolcall_en_demo.json": ("sharegpt", 300),
    "mllm_demo.json": ("messages", 6),
    "c4_demo.jsonl": ("text", 300),
    "wiki_demo.txt": ("text", 30),
    "MedQA2019.xlsx": ("qa", 690),
    "MedQA2019-structured-train.jsonl": ("xtuner", 482),
    "gsm8k_test.jsonl": ("gsm8k", 1319),
    "seed_tasks.jsonl": ("seed_tasks", 175),
    "cmmlu/dev/anatomy.csv": ("choices", 5),
    "cmmlu/test/anatomy.csv": ("choices", 148),
    "cmmlu/test/agronomy.csv": ("choices", 169),
    "cmmlu/test/chinese_history.csv": ("choices", 323),
    "cmmlu/test/computer_science.csv": ("choices", 204),
    "cmmlu/test/high_school_mathematics.csv": ("choices", 164),
    "cmmlu/test/logical.csv": ("choices", 123),
}


def files() -> list[str]:
    found = (path.relative_to(DATA) for path in sorted(DATA.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if path.suffix != ".jpg" and path.name not in NO_DATA]


def samples(name: str) -> list:
    rows = [row for _, row in source.read(Source(path=str(DATA / name)))]
    read_as = choose(rows[0])
    return [read_as.read(row) for row in rows]


@pytest.mark.parametrize("name", files())
def test_the_format_is_chosen_and_every_row_is_read(name):
    (_, first), *_ = source.read(Source(path=str(DATA / name), num_samples=1))
    chosen = choose(first)
    if name.startswith("cmmlu/dev/"):
        assert (name_of(chosen), len(samples(name))) == FORMATS["cmmlu/dev/anatomy.csv"]
    else:
        assert (name_of(chosen), len(samples(name))) == FORMATS[name]


def test_calls_are_learned_and_their_results_are_not():
    turns = [turn for sample in samples("glaive_toolcall_en_demo.json") for turn in sample.branches[0]]
    calls = [turn for turn in turns if turn.tool_calls]
    results = [turn for turn in turns if turn.role == "tool"]
    assert len(calls) > 100 and len(results) > 100
    assert all(turn.weight == 1 for turn in calls) and not any(turn.weight for turn in results)


def test_half_of_the_labelled_answers_are_good():
    assert sum(sample.label for sample in samples("kto_en_demo.json")) == 150


def test_both_answers_of_a_pair_follow_the_same_prompt():
    for sample in samples("dpo_en_demo.json"):
        chosen, rejected = sample.branches
        assert chosen[:-1] == rejected[:-1]
        assert [turn.weight for turn in chosen] == [turn.weight for turn in rejected] == [0] * (len(chosen) - 1) + [1]


def test_every_picture_has_its_place():
    contents = [turn.content for sample in samples("mllm_demo.json") for turn in sample.branches[0]]
    paths = [part["path"] for content in contents if isinstance(content, tuple) for part in content if "path" in part]
    assert len(paths) == 8 and all((DATA / path).is_file() for path in paths)
