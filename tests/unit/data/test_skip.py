"""Skipped positions: gaps by the seed and the sample alone, the same wherever it is packed; none where held out."""

import json
import shutil

import numpy as np
import pytest

import fixtures_models
from tunesmith import Recipe, resume, train
from tunesmith.data.batch import join
from tunesmith.data.load import context_problem, load_rows
from tunesmith.data.skip import Skips
from tunesmith.defaults import Device, resolve
from tunesmith.errors import RecipeError

TOKENIZER = fixtures_models.tiny_tokenizer()
ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure. " * (1 + i % 3)} for i in range(20)]
REACH = 500


@pytest.fixture
def said(tmp_path, monkeypatch):
    """A resolved recipe of some rows."""
    monkeypatch.chdir(tmp_path)
    fixtures_models.save_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def recipe(train=None, **data):
        options = {"train": "rows.jsonl", "max_tokens": 128, "position_skipping": REACH, "cache_dir": "cache"} | data
        return Recipe(
            model="./model", data=options, adapter={"r": 4}, optimizer={"learning_rate": 1e-2},
            train={"num_train_epochs": 2, "device": "cpu"} | (train or {}),
        )  # fmt: skip

    return recipe


def rows_of(recipe):
    return load_rows(resolve(recipe, Device("cpu", "cpu", False)).recipe, TOKENIZER)


def by_sample(rows):
    """The positions of each sequence, by its ids, in the order in which it comes."""
    found = {}
    for number in range(len(rows)):
        batch = join([rows[number]])
        bounds = batch["offsets"].tolist()
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            ids = tuple(batch["input_ids"][0, first:last].tolist())
            found.setdefault(ids, []).append(batch["position_ids"][0, first:last].tolist())
    return found


def test_each_sample_has_one_gap_within_the_reach(said):
    gaps, cuts = [], []
    for ids, each in by_sample(rows_of(said()).train).items():
        assert len(each) == 2  # epochs
        for positions in each:
            assert positions[0] == 0 and len(positions) == len(ids) and positions[-1] < REACH
            steps = np.diff(positions)
            assert sorted(steps)[:-1] == [1] * (len(ids) - 2)
            gaps.append(int(steps.max()) - 1)
            cuts.append(int(steps.argmax() + 1) / len(ids) if steps.max() > 1 else 0.5)
        assert each[0] != each[1]  # another epoch, another gap
    assert min(gaps) < 60 and max(gaps) > 380 and 150 < np.mean(gaps) < 310  # uniform up to 500 less the length
    assert min(cuts) < 0.25 and max(cuts) > 0.75


def test_packing_the_batch_and_the_order_change_no_gap(said):
    expected = by_sample(rows_of(said()).train)
    for other in (
        said({"row_tokens": 700}),
        said({"row_tokens": 300, "per_device_train_batch_size": 3}),
        said(shuffle=False, window_samples=3),
    ):
        assert by_sample(rows_of(other).train) == expected
    assert by_sample(rows_of(said(seed=1)).train) != expected


def test_a_stream_has_the_gaps_of_the_whole_set(said):
    expected = by_sample(rows_of(said()).train)
    rows = rows_of(said({"max_steps": 12}, streaming=True, buffer_samples=8, num_processes=1))
    try:
        streamed = by_sample(rows.train)
    finally:
        rows.close()
    assert {ids: each[0] for ids, each in streamed.items()} == {ids: each[0] for ids, each in expected.items()}


def test_held_out_rows_skip_nothing(said):
    rows = rows_of(said(eval=5))
    for each in by_sample(rows.held_out).values():
        assert each == [list(range(len(each[0])))]


def test_a_micro_batch_of_several_rows(said):
    rows = rows_of(said({"row_tokens": 128})).train
    both = join([rows[0], rows[1]])["position_ids"][0].tolist()
    assert both == [*join([rows[0]])["position_ids"][0].tolist(), *join([rows[1]])["position_ids"][0].tolist()]


def test_what_sequences_share_keeps_its_positions():
    row = {
        "input_ids": np.arange(14),
        "lengths": np.asarray([5, 3, 6]),
        "prefix": np.asarray([[0, 0], [0, 4], [0, 0]]),
        "branch": np.asarray([0, 1, 0]),
    }
    seen = set()
    for epoch in range(200):
        positions = Skips(20, 3).positions(row, epoch)
        first, second, other = positions[:5], positions[5:8], positions[8:]
        whole = [*first[:4], *second]  # the second sequence behind what it shares
        assert sorted(np.diff(whole))[:-1] == [1] * 5 and whole[0] == 0 and whole[-1] < 20
        assert first[4] == second[0]  # both stand behind the same four
        assert other[0] == 0 and other[-1] < 20
        seen.add((int(np.diff(whole).argmax()), int(np.diff(whole).max())))
    assert max(gap for _, gap in seen) == 14 and len({cut for cut, _ in seen}) == 6  # 20 less 7, and the step itself


def test_a_sample_that_fills_the_reach_is_as_it_was():
    one = {"branch": np.zeros(1, int), "prefix": np.zeros((1, 2), int)}
    for length in (1, 30, 40):
        row = one | {"input_ids": np.arange(length), "lengths": np.asarray([length])}
        assert Skips(30, 0).positions(row).tolist() == list(range(length))


def test_a_resumed_run_has_the_same_weights(said):
    recipe = said({"max_steps": 6, "save_steps": 2, "row_tokens": 128, "output_dir": "run"})
    run = train(recipe)
    plain = train(said({"max_steps": 6, "row_tokens": 128, "output_dir": "plain"}, position_skipping=None))
    name = "adapter_model.safetensors"
    weights = (run.folder / "final" / name).read_bytes()
    assert weights != (plain.folder / "final" / name).read_bytes()
    shutil.rmtree(run.folder / "final")
    shutil.rmtree(run.folder / "checkpoints" / "step-6")
    record = json.loads((run.folder / "record.json").read_text())
    record.pop("summary")
    (run.folder / "record.json").write_text(json.dumps(record | {"status": "running"}))
    resume(run.folder)
    assert (run.folder / "final" / name).read_bytes() == weights


def test_a_reach_beyond_the_model_is_said(said):
    ledger = rows_of(said()).ledger
    assert context_problem(ledger, REACH, REACH) is None
    line = context_problem(ledger, REACH - 1, REACH)
    assert line.startswith("data.position_skipping goes to 500 tokens, and the model was made for 499 ")


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward", "seq2seq", {"type": "distill"}])
def test_it_is_for_one_text_by_itself(objective):
    teacher = {"teacher": {"model": "builtin:tiny"}} if isinstance(objective, dict) else {}
    data = {"train": "builtin:identity", "position_skipping": 64}
    with pytest.raises(RecipeError, match="data.position_skipping=64 is for objectives that learn from one text"):
        Recipe(model="builtin:tiny", objective=objective, data=data, **teacher)


def test_a_model_that_reads_boundaries_from_positions_is_refused(said, monkeypatch):
    from tunesmith.engine import kernels

    monkeypatch.setattr(kernels, "_try_packed", lambda trial, own: "a test says so")
    with pytest.raises(RecipeError, match="data.position_skipping=500: this model does not run packed attention"):
        train(said({"max_steps": 1}))
