from pathlib import Path

import transformers

from house import private
from tunesmith.engine.trainer import Trainer
from tunesmith.engine.zero_trainer import ZeroTrainer

ROOT = Path(__file__).parents[2]

OVERRIDDEN = {
    "__init__": "keeps the recipe and the metrics file",
    "create_optimizer": "the recipe's optimizer component builds it",
    "_get_grad_norm": "of gradients that are dropped in the backward pass: upstream asks for them after it",
    "compute_loss": "an objective's sum over the units of the whole step",
    "evaluate": "a sum divided once: upstream's mean depends on the batch size",
    "log": "the loss over all units since the last line, token counts, and a stop when it is not finite",
    "_defer_fsdp_gradient_reduction": "gradients of shared weights are not kept whole between micro-batches",
    "_get_num_items_in_batch": "units of the step: upstream counts labels that are not -100",
    "_save_checkpoint": "atomic, and without pickle",
    "_load_from_checkpoint": "verified, and without pickle",
    "_load_optimizer_and_scheduler": "without pickle",
    "_load_rng_state": "without pickle",
    "_load_scaler": "without pickle",
}
"""What the trainer overrides of transformers.Trainer, and why no option or callback serves."""

OVERRIDDEN_FOR_DEEPSPEED = {
    "__init__": "DeepSpeed's engine is there before the trainer",
    "create_optimizer": "it is in the engine already",
    "_prepare_for_training": "upstream would wrap the model",
    "training_step": "DeepSpeed's backward pass",
    "_clip_grad_norm": "DeepSpeed clips as it steps",
    "_get_grad_norm": "DeepSpeed's step, which has to come before the norm is known",
    "evaluate": "what is gathered beforehand is dropped afterwards",
    "_save_checkpoint": "pieces of each process",
    "_load_from_checkpoint": "pieces of each process",
    "_load_optimizer_and_scheduler": "pieces of each process",
}


def test_private_names_are_used_in_one_file():
    assert private.check(ROOT) == []


def test_what_the_trainer_overrides_is_still_upstream():
    assert private.check_overrides(Trainer, transformers.Trainer, OVERRIDDEN) == []
    assert private.check_overrides(ZeroTrainer, transformers.Trainer, OVERRIDDEN_FOR_DEEPSPEED) == []
