"""Courses of the learning rate through whole runs, as lines of metrics tell them; and what goes with schedule_free."""

import json
import math

import pytest

from fixtures_models import tiny_model, tiny_tokenizer
from tunesmith import Recipe, train
from tunesmith.errors import RecipeError

ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}."} for i in range(12)]
PEAK, STEPS = 1e-3, 10


def recipe(tmp_path, optimizer=None, **options):
    return Recipe(
        model="mine",
        data={"train": "rows", "max_tokens": 64, "cache_dir": str(tmp_path / "cache")},
        adapter="full",
        optimizer={"learning_rate": PEAK} | (optimizer or {}),
        train={"output_dir": str(tmp_path / "run"), "max_steps": STEPS, "warmup_steps": 2, "device": "cpu"} | options,
    )


def run(made):
    return train(made, model=tiny_model(scale=0.1), tokenizer=tiny_tokenizer(), rows=ROWS).folder


def rates(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["learning_rate"] / PEAK for line in lines if "loss" in line]


def falling(done, least):
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize(("said", "steps"), [(4, 4), (0.35, 4), (None, 1)])
def test_the_rate_stays_and_falls_in_the_last_steps(tmp_path, said, steps):
    options = {} if said is None else {"decay_steps": said, "min_lr_ratio": 0.2}
    least = 0.0 if said is None else 0.2
    rise = [least + (1 - least) * step / 2 for step in range(2)]
    wanted = rise + [1.0] * (STEPS - 2 - steps) + [falling(step / steps, least) for step in range(steps)]
    found = rates(run(recipe(tmp_path, lr_scheduler_type="warmup_stable_decay", **options)))
    assert found == pytest.approx(wanted)


def test_a_cosine_ends_at_a_part_of_the_peak(tmp_path):
    found = rates(run(recipe(tmp_path, lr_scheduler_type="cosine_with_min_lr", min_lr_ratio=0.25)))
    assert found[2:] == pytest.approx([falling(step / 8, 0.25) for step in range(8)])


def test_rates_that_transformers_takes_in_absolute_terms_are_those_of_the_recipe(tmp_path):
    """It divides them by the optimizer's default rate, which is therefore the recipe's."""
    options = {"lr_scheduler_kwargs": {"min_lr": PEAK / 2}}
    made = recipe(tmp_path, {"learning_rate": PEAK}, lr_scheduler_type="cosine_with_min_lr", transformers=options)
    assert made.optimizer.build(tiny_model()).defaults["lr"] == PEAK
    assert rates(run(made))[2:] == pytest.approx([falling(step / 8, 0.5) for step in range(8)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"decay_steps": 3},
            "decay_steps is for lr_scheduler_type=warmup_stable_decay, and that is not said: leave decay_steps out",
        ),
        (
            {"min_lr_ratio": 0.1, "lr_scheduler_type": "linear"},
            "min_lr_ratio is for .*, and that is linear: leave",
        ),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type"),
    ],
)
def test_options_of_other_schedules_are_refused(tmp_path, options, said):
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, **options)


def test_schedule_free_has_no_schedule_and_is_measured_by_its_mean(tmp_path):
    own = {"type": "schedule_free"}
    with pytest.raises(
        RecipeError, match="schedule_free goes with constant_with_warmup or constant, and this is cosine"
    ):
        recipe(tmp_path, own, lr_scheduler_type="cosine")
    folder = run(recipe(tmp_path, own))
    assert rates(folder) == pytest.approx([0, 0.5] + [1] * 8)
    assert json.loads((folder / "record.json").read_text())["derived"]["train.lr_scheduler_type"]
    (final,), (last,) = (folder.glob(f"{place}/*model.safetensors") for place in ("final", "checkpoints/step-10"))
    from safetensors.torch import load_file

    x, y = load_file(final), load_file(last)
    z = load_file(last.parent / "optimizer.safetensors")
    assert any(not (x[name] == y[name]).all() for name in y)
    name = max(y, key=lambda name: y[name].numel())
    (fast,) = [one for key, one in z.items() if key.endswith(".z") and one.shape == y[name].shape]
    assert (y[name] - (0.1 * fast + 0.9 * x[name])).abs().max() < 1e-6
