"""One process and one device, whatever a machine has."""

import pytest
import torch
import transformers

import fixtures_chats as chats
from tunesmith.engine.arguments import arguments, look_for_trackers, warm_up_note
from tunesmith.errors import RecipeError


def test_a_process_that_sees_two_gpus_uses_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    theirs = transformers.TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=3)
    assert theirs.n_gpu == 2 and theirs.train_batch_size == 6  # what one_device is for
    ours = arguments(chats.recipe(train={"per_device_train_batch_size": 3}), tmp_path, 1, evaluates=False)
    assert ours.n_gpu == 1 and ours.train_batch_size == 3
    assert ours.parallel_mode == transformers.training_args.ParallelMode.NOT_PARALLEL


def test_no_gpu_stays_none(tmp_path):
    assert arguments(chats.recipe(train={"device": "cpu"}), tmp_path, 1, evaluates=False).n_gpu == 0


def test_a_tracker_is_looked_for_before_anything_is_loaded(monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    look_for_trackers(("wandb", "none", "all"))
    with pytest.raises(RecipeError, match="train.report_to: mlflow is not installed: install it, or leave it out"):
        look_for_trackers(("wandb", "mlflow"))
    with pytest.raises(RecipeError, match=r"there is no tracker 'wandbb'. Did you mean 'wandb'"):
        look_for_trackers(("wandbb",))


@pytest.mark.parametrize(
    ("train", "steps", "told"),
    [
        ({}, 1, "all steps are warm-up"),
        ({}, 2, "1 of 2 steps are warm-up"),
        ({"warmup_steps": 9}, 3, "all steps are warm-up"),
        ({}, 3, None),
        ({}, 300, None),
        ({"warmup_steps": 0}, 1, None),
        ({"lr_scheduler_type": "constant"}, 1, None),
    ],
)
def test_a_run_of_little_but_warm_up_is_told_of(train, steps, told, tmp_path):
    recipe = chats.recipe(train={"device": "cpu"} | train)
    said = warm_up_note(arguments(recipe, tmp_path, steps, evaluates=False))
    assert said == (
        told and f"warm-up: {told}, and the first has a learning rate of 0: train.warmup_steps=0 leaves it out"
    )


def test_the_first_of_them_has_a_rate_of_0(tmp_path):
    """What is said, of every schedule with a warm-up that transformers makes."""
    args = arguments(chats.recipe(train={"device": "cpu"}), tmp_path, 2, evaluates=False)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    transformers.get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(2), 2)
    assert optimizer.param_groups[0]["lr"] == 0
