"""A run on a stream, from Python: rows read lazily, an account at each checkpoint, and the same end after a resume."""

import json
import shutil

from fixtures_models import save_model
from tunesmith import Recipe, resume, train
from tunesmith.engine import checkpoint

STEPS = 8


class Rows:
    """Rows that begin anew each time."""

    def __iter__(self):
        for number in range(30):
            yield {"instruction": f"What is {number} and 1?", "output": f"It is {number + 1}, sure." * (number > 0)}


def contents(folder):
    """What must not depend on a resume."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return (
        lines,
        json.loads((folder / "ledger.json").read_text()),
        (folder / "final/adapter_model.safetensors").read_bytes(),
    )


def test_a_run_on_rows_of_python_goes_on_in_the_middle_of_a_block(tmp_path):
    save_model(tmp_path / "model")
    recipe = Recipe(
        model=str(tmp_path / "model"),
        data={"train": "unused", "streaming": True, "buffer_samples": 2, "max_tokens": 64},
        adapter={"r": 4},
        optimizer={"learning_rate": 1e-2},
        train={
            "output_dir": str(tmp_path / "run"),
            "row_tokens": 64,
            "max_steps": STEPS,
            "save_steps": 3,
            "save_total_limit": 9,
        },
    )
    run = train(recipe, rows=Rows())
    whole = contents(run.folder)
    ledger = whole[1]["train"]
    assert (ledger["blocks"], ledger["samples"], ledger["packed_rows"]) == (4, 8, STEPS)  # a sample fills a row
    assert ledger["dropped"]["empty answer"]["first"] == ["rows:1"]

    shutil.rmtree(run.folder / "final")
    for step in checkpoint.steps(run.folder):
        if step > 3:
            shutil.rmtree(checkpoint.place(run.folder, step))
    point = checkpoint.read_state(checkpoint.place(run.folder, 3))["counters"]["stream"]
    assert point["packed_rows"] == 2, "step 3 ends within a block"
    (run.folder / "ledger.json").write_text('{"train": {}}')
    record = json.loads((run.folder / "record.json").read_text())
    record.pop("summary")
    (run.folder / "record.json").write_text(json.dumps(record | {"status": "running"}))
    again = resume(run.folder, rows=Rows())
    assert again.summary["steps"] == STEPS and contents(again.folder) == whole
