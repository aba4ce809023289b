"""The stopwatch: parts that add up to the step, and a trainer that does what it does without one."""

import contextlib
import json
import time
from itertools import pairwise

import pytest

import tunesmith.engine.trainer as engine
from fixtures_models import save_model
from tunesmith import Data, Model, Recipe, Source, Train
from tunesmith.defaults import resolve
from tunesmith.engine.device import choose
from tunesmith.engine.flops import Sequence
from tunesmith.engine.stopwatch import PARTS, WatchedTrainer
from tunesmith.objectives.sft import SFT
from tunesmith.optimizers.adamw import AdamW
from tunesmith.parts import Given, Job, load, make_trainer

ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(24)]
WAIT = 0.05


@pytest.fixture
def train(tmp_path):
    """Train three steps of two rows each with a trainer of some kind; gives it back, and the lines of its metrics."""
    save_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def run(kind, name, **options):
        recipe = Recipe(
            model=Model(path=str(tmp_path / "model")),
            data=Data(
                train=[Source(path=str(tmp_path / "rows.jsonl"))],
                max_tokens=64,
                cache_dir=str(tmp_path / "cache"),
            ),
            optimizer={"learning_rate": 1e-2},
            train=Train(
                max_steps=3, row_tokens=64, gradient_accumulation_steps=2, device="cpu", save_steps=1, **options
            ),
        )
        device = choose("cpu")
        job = Job(recipe, resolve(recipe, device), device, Given(), None, lambda line: None)
        with contextlib.ExitStack() as until_the_end:
            loaded = load(job, None, None, until_the_end)
            folder = tmp_path / name
            folder.mkdir()
            trainer = make_trainer(job, folder, loaded, (), kind)
            trainer.train()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return trainer, lines, loaded

    return run


def test_it_trains_as_without_a_stopwatch(train, tmp_path):
    _, plain, _ = train(None, "plain")
    trainer, watched, loaded = train(WatchedTrainer, "watched")
    for one in (*plain, *watched):
        del one["seconds"]
    assert plain == watched and len(plain) == 3
    steps = trainer.stopwatch.steps()
    assert [step.loss for step in steps] == [pytest.approx(line["loss"]) for line in plain]
    assert [sum(step.asked for step in steps[:end]) for end in (1, 2, 3)] == [line["trained_tokens"] for line in plain]
    assert [sum(step.real_tokens for step in steps[:end]) for end in (1, 2, 3)] == [line["tokens"] for line in plain]
    rows = [loaded.rows.train[number] for number in (2, 3)]  # of the second step
    assert steps[1].sequences == tuple(Sequence(int(length)) for row in rows for length in row["lengths"])
    assert steps[1].row_tokens == sum(len(row["input_ids"]) for row in rows)
    assert (tmp_path / "plain" / "checkpoints").exists() and not (tmp_path / "watched" / "checkpoints").exists()


def test_each_part_is_where_its_time_was_spent(train, monkeypatch):
    join, log, loss, build = engine.join, WatchedTrainer.log, SFT.loss, AdamW.build

    def slow_join(rows):
        time.sleep(2 * WAIT)
        return join(rows)

    def slow_log(self, *args):
        time.sleep(WAIT)
        log(self, *args)

    def slow_loss(self, scores, batch):
        time.sleep(3 * WAIT)
        found = loss(self, scores, batch)
        found.total.register_hook(lambda gradient: time.sleep(4 * WAIT))
        return found

    def slow_build(self, model, factors):
        optimizer = build(self, model, factors)
        optimizer.register_step_pre_hook(lambda *args: time.sleep(5 * WAIT))
        return optimizer

    monkeypatch.setattr(engine, "join", slow_join)
    monkeypatch.setattr(WatchedTrainer, "log", slow_log)
    monkeypatch.setattr(SFT, "loss", slow_loss)
    monkeypatch.setattr(AdamW, "build", slow_build)
    trainer, _, _ = train(WatchedTrainer, "slow")
    second = trainer.stopwatch.steps()[1].seconds
    slept = {"logging": 1, "data": 2 * 2, "forward": 2 * 3, "backward": 2 * 4, "optimizer": 5}  # two batches a step
    for part in PARTS:
        assert second[part] >= slept[part] * WAIT, part  # had it slept in another part, this one would be short


def test_the_parts_are_the_whole(train):
    trainer, _, _ = train(WatchedTrainer, "whole")
    ends = [moment for part, moment in trainer.stopwatch.moments if part == "optimizer"]
    whole = [end - start for start, end in pairwise(ends)]
    assert [sum(step.seconds.values()) for step in trainer.stopwatch.steps()[1:]] == pytest.approx(whole)
