"""Every published file previews, and every one of text trains, through the command line and with `format: auto`.

They belong to others and are not part of this repository. Without them the tests skip and say so.
"""

import json

import pytest

from golden.test_real_formats import DATA, FORMATS, files, pytestmark  # noqa: F401  # the mark is this module's too
from tunesmith.cli.main import main

ONLY = {"dpo_en_demo.json": "chosen", "kto_en_demo.json": "good"}  # what SFT learns of rows that compare or judge
IMAGES = "mllm_demo.json"
LIMITS = ["data.max_tokens=1024", "data.overlong=truncate", "train.row_tokens=1024"]
TOOLS = {"glaive_toolcall_en_demo.json": "qwen2_5"}  # the built-in model's own template writes no tools


def words(name: str, **more: object) -> list[str]:
    source = {"path": str(DATA / name), "num_samples": 6, **more}
    said = [f"data.train={json.dumps([source])}", "data.eval=0", "eval.eval_steps=null", "eval.prompts=[]", *LIMITS]
    return ["quickstart", *said, f"data.template={TOOLS.get(name, 'jinja')}"]


def format_of(name: str) -> str:
    return FORMATS["cmmlu/dev/anatomy.csv" if name.startswith("cmmlu/") else name][0]


@pytest.mark.parametrize("name", files())
def test_every_file_previews_with_the_format_said_aloud(name, capsys):
    assert main(["preview", *words(name), "--rows", "2", "--all"]) == 0
    told = capsys.readouterr()
    assert f"read as {format_of(name)} (format: auto)" in told.out + told.err
    assert f"{5 if name.startswith('cmmlu/dev') else 6} rows read" in told.out


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in files() if name != IMAGES and not name.startswith("cmmlu/test")])
def test_every_file_of_text_trains(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"format": {"type": format_of(name), "only": ONLY[name]}} if name in ONLY else {}
    chosen = [*words(name, **more), "train.output_dir=out", "train.max_steps=1"]
    assert main(["train", *chosen]) == 0
    told = capsys.readouterr()
    if not more:
        assert f"read as {format_of(name)} (format: auto)" in told.out + told.err
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())["train"]
    assert ledger["rows_read"] == ledger["rows_kept"] + sum(one["count"] for one in ledger["dropped"].values())
    assert ledger["trained_tokens"] > 0


@pytest.mark.parametrize("name", ONLY)
def test_rows_that_compare_or_judge_say_how_sft_learns_from_them(name, capsys):
    assert main(["train", *words(name)]) == 1
    assert f"format: {{type: {format_of(name)}, only: {ONLY[name]}}}" in capsys.readouterr().err


def test_rows_with_images_are_left_out_by_name(capsys):
    assert main(["preview", *words(IMAGES), "--all"]) == 0
    assert "6 dropped: holds images, and only text is trained so far" in capsys.readouterr().out
