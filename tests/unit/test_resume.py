"""Going on with a run: where it ended, what may have changed, and who began it."""

import json
import shutil
import signal

import pytest

from fixtures_models import save_model, tiny_model, tiny_tokenizer
from tunesmith import Recipe, resume, train
from tunesmith.engine import checkpoint
from tunesmith.engine.callbacks import StopOnSignal
from tunesmith.errors import RecipeError, RunError
from tunesmith.generate.load import locate

ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(24)]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A recipe with relative paths, in a working folder of its own; keywords replace its sections."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    save_model(work / "model")
    (work / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def recipe(train=None, **sections):
        options = {"output_dir": "run", "row_tokens": 64, "max_steps": 6, "save_steps": 2} | (train or {})
        data = {"train": "rows.jsonl", "max_tokens": 64, "eval": 4, "cache_dir": str(tmp_path / "cache")}
        base = {"model": "./model", "data": data, "adapter": {"r": 4}, "optimizer": {"learning_rate": 1e-2}}
        return Recipe(**(base | {"train": options} | sections))

    return recipe


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def cut_back(folder, step):
    """The folder as a kill would leave it just after the checkpoint of a step."""
    shutil.rmtree(folder / "final", ignore_errors=True)
    for later in checkpoint.steps(folder):
        if later > step:
            shutil.rmtree(checkpoint.place(folder, later))
    record = json.loads((folder / "record.json").read_text())
    record.pop("summary", None)
    (folder / "record.json").write_text(json.dumps(record | {"status": "running"}))


def test_an_early_stop_between_two_lines_is_logged_and_over_for_good(make):
    stopping = {"eval_steps": 1, "early_stopping_patience": 1}
    recipe = make(train={"max_steps": 30, "logging_steps": 100}, eval=stopping, optimizer={"learning_rate": 3.0})
    run = train(recipe)
    steps = run.summary["steps"]
    assert steps < 30
    before = lines(run.folder)
    assert before[-1]["step"] == steps and "loss" in before[-1]
    weights = (run.folder / "final" / "adapter_model.safetensors").read_bytes()

    cut_back(run.folder, steps)
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before[:-1]))
    again = resume(run.folder)
    assert again.summary["steps"] == steps
    assert (again.folder / "final" / "adapter_model.safetensors").read_bytes() == weights
    assert [line.get("loss") for line in lines(run.folder)] == [line.get("loss") for line in before]


def test_a_kill_after_the_weights_and_before_the_record_is_mended(make):
    run = train(make())
    cut_back_record = json.loads((run.folder / "record.json").read_text())
    cut_back_record.pop("summary")
    (run.folder / "record.json").write_text(json.dumps(cut_back_record | {"status": "running"}))
    (run.folder / "loss.png").unlink()
    again = resume(run.folder)
    assert again.summary | {"folder": ""} == run.summary | {"folder": ""}
    assert (run.folder / "loss.png").is_file()
    assert json.loads((run.folder / "record.json").read_text())["status"] == "finished"


def test_a_published_generation_config_does_not_stop_the_end(make, tmp_path):
    recipe = make()
    path = tmp_path / "work" / "model" / "generation_config.json"
    config = json.loads(path.read_text()) | {"temperature": 0.6, "do_sample": False}
    path.write_text(json.dumps(config))
    run = train(recipe)
    written = json.loads((run.folder / "final" / "generation_config.json").read_text())
    assert tiny_tokenizer().eos_token_id in written["eos_token_id"]


def test_a_damaged_newest_checkpoint_does_not_push_out_the_whole_one(make):
    run = train(make(train={"save_total_limit": 1, "max_steps": 6}))
    assert checkpoint.steps(run.folder) == [4, 6]  # the best, and one beside it
    shutil.copytree(checkpoint.place(run.folder, 6), checkpoint.place(run.folder, 9))
    (checkpoint.place(run.folder, 9) / "state.json").write_text("{}")
    (run.folder / "checkpoints" / ".step-8.partial").mkdir()
    cut_back(run.folder, 9)
    resume(run.folder)
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["step-4", "step-6"]


def test_a_changed_model_is_refused(make, tmp_path):
    run = train(make())
    cut_back(run.folder, 4)
    shutil.rmtree(tmp_path / "work" / "model")
    save_model(tmp_path / "work" / "model", tiny_model(seed=5))
    with pytest.raises(RunError, match="the model of .* is not what it was when the run began"):
        resume(run.folder)


def test_a_changed_recipe_is_followed_and_said(make, capsys):
    run = train(make())
    cut_back(run.folder, 4)
    resume(run.folder)
    assert "was changed" not in capsys.readouterr().err
    cut_back(run.folder, 4)
    said = run.folder / "recipe.yaml"
    said.write_text(said.read_text().replace("max_steps: 6", "max_steps: 7"))
    assert resume(run.folder).summary["steps"] == 7
    assert "recipe.yaml was changed: train.max_steps is 7 now, and the run began with 6" in capsys.readouterr().err


def test_a_run_goes_on_from_another_folder(make, tmp_path, monkeypatch):
    run = train(make())
    folder = run.folder.absolute()
    before = (folder / "final" / "adapter_model.safetensors").read_bytes()
    cut_back(folder, 4)
    monkeypatch.chdir(tmp_path)
    resume(folder)
    assert (folder / "final" / "adapter_model.safetensors").read_bytes() == before


def test_what_a_script_brought_it_brings_again(make):
    recipe = make(model="mine")
    brought = {"model": tiny_model(), "tokenizer": tiny_tokenizer()}
    run = train(recipe, rows=ROWS, **brought)
    before = (run.folder / "final" / "adapter_model.safetensors").read_bytes()
    cut_back(run.folder, 4)
    with pytest.raises(RunError, match="brought model, tokenizer, rows: go on with tunesmith.resume"):
        resume(run.folder)
    said = r"tunesmith\.resume\('.*run', model=\.\.\., tokenizer=\.\.\., rows=\.\.\.\)"
    with pytest.raises(RunError, match=f"brought model, tokenizer: go on with {said}$"):
        resume(run.folder, rows=ROWS)
    with pytest.raises(RunError, match=f"its run has not ended. Go on with: {said}"):
        locate(str(run.folder))
    with pytest.raises(RunError, match=f"or go on with that run: {said}$"):
        train(recipe, rows=ROWS, **brought)
    resume(run.folder, rows=ROWS, model=tiny_model(), tokenizer=tiny_tokenizer())
    assert (run.folder / "final" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("brought", [{}, {"rows": ROWS}], ids=["nothing", "rows"])
def test_a_stopped_run_says_what_goes_on_with_it(make, monkeypatch, capsys, brought):
    own = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return own(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", on_step_end)
        run = train(make(train={"output_dir": "of 2 words"}), **brought)
    assert run.exit_code == 128 + signal.SIGTERM
    said = "tunesmith.resume('of 2 words', rows=...)" if brought else "tunesmith train 'of 2 words'"
    assert f"stopped at step 2. Go on with: {said}\n" in capsys.readouterr().err
    assert resume(run.folder, **brought).summary["steps"] == 6


def test_a_callers_model_is_usable_afterwards(make):
    model = tiny_model()
    train(make(model="mine", adapter="full"), model=model, tokenizer=tiny_tokenizer())
    ids = tiny_tokenizer()("What is", return_tensors="pt").input_ids
    assert (
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, min_new_tokens=3).shape[1] == ids.shape[1] + 3
    )
    assert model.config.use_cache
    train(make(model="mine", adapter="full", train={"output_dir": "again"}), model=model, tokenizer=tiny_tokenizer())


def test_names_of_the_runs_own_lines_are_refused(make):
    with pytest.raises(RecipeError, match="metrics: tokens is a name"):
        train(make(), metrics={"tokens": lambda scores, batch: (1, 1)})


def test_the_best_weights_must_be_whole(make, monkeypatch):
    monkeypatch.setattr(checkpoint, "damage", lambda folder: f"{folder} is damaged")
    with pytest.raises(RunError, match="the best weights cannot be loaded"):
        train(make(eval={"eval_steps": 2, "load_best_model_at_end": True}))
