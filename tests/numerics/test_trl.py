"""Our losses of preferences and rewards equal trl's own trainers on the same tiny model and batch: value and gradients.

Run where trl is importable: `PYTHONPATH=src python -m pytest tests/numerics/test_trl.py`.
"""

import copy
import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch

from fixtures_models import tiny_model, tiny_tokenizer
from fixtures_values import tiny_values
from numerics.packed import gradients
from tunesmith.engine import kernels
from tunesmith.objectives._preference_losses import LOSSES
from tunesmith.objectives.cpo import CPO
from tunesmith.objectives.dpo import DPO
from tunesmith.objectives.kto import KTO
from tunesmith.objectives.orpo import ORPO
from tunesmith.objectives.reward import Reward
from tunesmith.objectives.simpo import SimPO
from tunesmith.types import Batch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl, which is not a dependency"),
    pytest.mark.filterwarnings("ignore"),  # of trl's and what it stands on
]
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

PAIRS = [
    {"prompt": "What is two and three?", "chosen": " Two and three is five.", "rejected": " Six, or more."},
    {"prompt": "The cat", "chosen": " sat on the mat", "rejected": " looked at the moon and the river and the rain."},
    {"prompt": "name a colour", "chosen": " second", "rejected": " list"},
]
JUDGED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row, side in zip(PAIRS + PAIRS, ["chosen"] * 3 + ["rejected"] * 3, strict=True)
]


def laid(sequences, labels=None):
    """A batch of (ids, where the answer begins, which branch), laid end to end with nothing shared."""
    lengths = torch.tensor([len(ids) for ids, *_ in sequences])
    ids = torch.cat([ids for ids, *_ in sequences])[None]
    ends = lengths.cumsum(0)
    weight = torch.cat([(torch.arange(1, len(ids) + 1) >= begins).float() for ids, begins, _ in sequences])[None]
    weight[0, ends - 1] = 0
    return Batch(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        target=ids.roll(-1, 1),
        weight=weight,
        seq=torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None],
        label=torch.full((len(lengths),), torch.nan) if labels is None else labels.float(),
        offsets=torch.tensor([0, *ends], dtype=torch.int32),
        longest=int(lengths.max()),
        branch=torch.tensor([branch for *_, branch in sequences]),
    )


def unpadded(inputs, key=""):
    """The sequences of trl's padded inputs, with where their answers begin."""
    columns = (inputs[f"{key}{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))
    return [(ids[seen == 1], int(answer.argmax())) for ids, seen, answer in zip(*columns, strict=True)]


def plain(folder, rows):
    """The options of one of trl's trainers: all rows at once, on a CPU, in float32."""
    options = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none"}
    return options | {"gradient_checkpointing": False, "per_device_train_batch_size": len(rows)}


def measured(trainer, inputs):
    """The mean loss, the metrics and the gradients of one of trl's trainers."""
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    reported = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), reported, gradients(trainer.model)


class Theirs:
    """One of trl's trainers with a tiny policy and another reference, its inputs, and the same as our batch."""

    def __init__(self, folder, trainer, config, rows, lay):
        from datasets import Dataset

        policy, reference = tiny_model(seed=1), tiny_model(seed=2)
        self.policy, self.reference = copy.deepcopy(policy), copy.deepcopy(reference)
        self.trainer = trainer(
            policy,
            reference,
            config(**plain(folder, rows)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
        )
        self.inputs = self.trainer.data_collator(list(self.trainer.train_dataset))
        self.batch = lay(self.inputs)

    def ours(self, objective, shift=0.0, seconds=None):
        """Our mean loss, its metrics and the gradients of the model."""
        model = copy.deepcopy(self.policy)
        batch = copy.copy(self.batch)
        with torch.no_grad():
            reference = kernels.choose(self.reference).scorer(self.reference, batch).logps
        first = (batch.weight != 0) & (batch.weight.roll(1, 1) == 0)
        values = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
        batch = Batch(**values | {"reference": reference + shift * first})
        found = objective.loss(kernels.choose(model).scorer(model, batch), batch)
        mean = found.total / objective.count(batch)
        mean.backward()
        return (
            mean.item(),
            {name: float(total) / count for name, (total, count) in found.metrics.items()},
            gradients(model),
        )

    def theirs(self, inputs=None):
        """The same of trl's trainer."""
        return measured(self.trainer, inputs or self.inputs)


def agree(ours, theirs, names):
    """Losses, gradients and metrics, ours by trl's names, are the same."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-6)
    assert {ours_: ours[1][ours_] for ours_ in names} == pytest.approx(
        {ours_: theirs[1][name] for ours_, name in names.items()}, rel=1e-4, abs=1e-5
    )
    assert ours[2].keys() == theirs[2].keys()
    for name, gradient in theirs[2].items():
        torch.testing.assert_close(
            ours[2][name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, gradient.abs().max().item())
        )


REPORTED = {
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
    "margins": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logps_chosen": "logps/chosen",
    "logps_rejected": "logps/rejected",
}
SIDES = {name: REPORTED[name] for name in ("logps_chosen", "logps_rejected")}


@pytest.fixture(scope="module")
def dpo(tmp_path_factory):
    from trl import DPOConfig, DPOTrainer

    def lay(inputs):
        found = unpadded(inputs)
        pairs = zip(found[: len(PAIRS)], found[len(PAIRS) :], strict=True)
        return laid([(*answer, branch) for pair in pairs for branch, answer in enumerate(pair)])

    return Theirs(tmp_path_factory.mktemp("dpo"), DPOTrainer, DPOConfig, PAIRS, lay)


def said(dpo, losses, weights=None, **options):
    """Tell trl's trainer to take these losses."""
    defaults = {"beta": 0.1, "label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl"}
    for name, value in (defaults | options).items():
        setattr(dpo.trainer, name, value)
    dpo.trainer.loss_types, dpo.trainer.loss_weights = losses, weights or [1.0] * len(losses)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bco_pair"])
def test_every_loss_of_dpo(dpo, name):
    smoothing = 0.2 if name in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0
    said(dpo, [name], label_smoothing=smoothing)
    agree(dpo.ours(DPO(loss_type=name, label_smoothing=smoothing)), dpo.theirs(), REPORTED)


def test_bco_where_its_shift_which_trl_leaves_out_is_zero(dpo):
    said(dpo, ["bco_pair"])
    _, found, _ = dpo.ours(DPO())
    shift = (found["rewards_chosen"] + found["rewards_rejected"]) / 2 / 0.1  # of the reference's log-probabilities
    with torch.no_grad():
        sums = dpo.trainer.compute_ref_log_probs(dpo.trainer.ref_model, dpo.inputs)
    named = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), (one + shift for one in sums), strict=True))
    dpo.trainer.precompute_ref_logps = True
    try:
        agree(dpo.ours(DPO(loss_type="bco_pair"), shift), dpo.theirs(dpo.inputs | named), REPORTED)
    finally:
        dpo.trainer.precompute_ref_logps = False


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "hinge"])
def test_other_divergences(dpo, name, kind):
    said(dpo, [name], f_divergence_type=kind, f_alpha_divergence_coef=0.7, beta=0.01)
    alpha = {"f_alpha": 0.3} if kind == "alpha_divergence" else {}  # the paper's; trl's is 1 minus it
    agree(dpo.ours(DPO(loss_type=name, f_divergence=kind, beta=0.01, **alpha)), dpo.theirs(), SIDES)


def test_length_normalised_is_what_trl_calls_sigmoid_norm(dpo):
    said(dpo, ["sigmoid_norm"])
    agree(dpo.ours(DPO(length_normalised=True)), dpo.theirs(), SIDES)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_longer_answers_beyond_the_shorter_ones_length(dpo, alpha):
    said(dpo, ["sigmoid", "apo_zero"], ld_alpha=alpha)
    agree(dpo.ours(DPO(loss_type={"sigmoid": 1.0, "apo_zero": 1.0}, ld_alpha=alpha)), dpo.theirs(), REPORTED)


def test_a_mixture_with_likelihood_of_one_pair(tmp_path):
    from trl import DPOConfig, DPOTrainer

    def lay(inputs):
        return laid([(*answer, branch) for branch, answer in enumerate(unpadded(inputs))])

    one = Theirs(tmp_path, DPOTrainer, DPOConfig, PAIRS[:1], lay)  # trl's is a mean over the tokens of all pairs
    said(one, ["sigmoid", "hinge", "sft"], [0.8, 0.2, 1.5])
    agree(one.ours(DPO(loss_type={"sigmoid": 0.8, "hinge": 0.2}, sft_weight=1.5)), one.theirs(), REPORTED)


@pytest.mark.parametrize("reference_is_better", [False, True])
def test_kto(tmp_path, reference_is_better):
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    def lay(inputs):
        both = zip(unpadded(inputs), unpadded(inputs, "KL_"), strict=True)
        sequences = [(*answer, branch) for pair in both for branch, answer in enumerate(pair)]
        return laid(sequences, torch.as_tensor(inputs["label"]).repeat_interleave(2))

    judged = Theirs(tmp_path, KTOTrainer, KTOConfig, JUDGED, lay)
    if reference_is_better:  # so that the estimate is on the other side of 0
        judged.policy, judged.reference = judged.reference, judged.policy
        judged.trainer.model.load_state_dict(judged.policy.state_dict())
        judged.trainer.ref_model.load_state_dict(judged.reference.state_dict())
    judged.trainer.desirable_weight, judged.trainer.undesirable_weight = 0.7, 1.3
    names = {
        "kl": "kl",
        "rewards_desirable": "rewards/chosen",
        "rewards_undesirable": "rewards/rejected",
        "logps_desirable": "logps/chosen",
        "logps_undesirable": "logps/rejected",
    }
    ours = judged.ours(KTO(desirable_weight=0.7, undesirable_weight=1.3))
    agree(ours, judged.theirs(), names)
    assert (ours[1]["kl"] > 0) != reference_is_better or ours[1]["kl"] == 0


@pytest.mark.parametrize("kind", ["simpo", "cpo", "orpo"])
def test_losses_without_a_reference_on_the_same_log_probabilities(dpo, kind):
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    batch = dpo.batch
    with torch.no_grad():
        scores = kernels.choose(dpo.policy).scorer(dpo.policy, batch)
    lengths = torch.zeros(len(batch.label)).index_add(0, batch.seq[0], batch.weight[0])
    sums = torch.zeros(len(batch.label)).index_add(0, batch.seq[0], scores.logps[0])
    logps = sums if kind == "cpo" else sums / lengths
    likelihood = -(sums / lengths)[0::2].sum()
    accelerator = SimpleNamespace(device="cpu")
    if kind == "orpo":
        losses, *_ = ORPOTrainer.odds_ratio_loss(
            SimpleNamespace(beta=0.3, accelerator=accelerator), logps[0::2], logps[1::2]
        )
        ours, theirs = ORPO(beta=0.3), likelihood - losses.sum()
    else:
        options = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.7, "accelerator": accelerator, "beta": 0.3}
        name = "simpo" if kind == "simpo" else "sigmoid"
        losses, *_ = CPOTrainer.cpo_loss(SimpleNamespace(loss_type=name, **options), logps[0::2], logps[1::2])
        ours = SimPO(beta=0.3, gamma=0.7, sft_weight=0.5) if kind == "simpo" else CPO(beta=0.3, sft_weight=0.5)
        theirs = losses.sum() + 0.5 * likelihood
    torch.testing.assert_close(ours.loss(scores, batch).total, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("coefficient", [None, 0.3])
@pytest.mark.parametrize("margins", [None, [0.5, 0.0, 2.0]])
def test_reward(tmp_path, margins, coefficient):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = PAIRS if margins is None else [row | {"margin": own} for row, own in zip(PAIRS, margins, strict=True)]
    policy = tiny_values("llama", labels=1)
    trainer = RewardTrainer(
        copy.deepcopy(policy),
        RewardConfig(center_rewards_coefficient=coefficient, **plain(tmp_path, rows)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    inputs = trainer.data_collator(list(trainer.train_dataset))
    assert ("margin" in inputs) == (margins is not None)
    found = [ids[seen == 1] for ids, seen in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    pairs = list(zip(found[: len(rows)], found[len(rows) :], strict=True))
    labels = None if margins is None else inputs["margin"].repeat_interleave(2)
    batch = laid([(ids, 1, branch) for pair in pairs for branch, ids in enumerate(pair)], labels)
    theirs = measured(trainer, inputs)
    objective = Reward(center_rewards_coefficient=coefficient or 0.0)
    ours = objective.loss(kernels.choose(policy).scorer(policy, batch), batch)
    mean = ours.total / objective.count(batch)
    mean.backward()
    reported = {name: float(total) / count for name, (total, count) in ours.metrics.items()}
    agree((mean.item(), reported, gradients(policy)), theirs, {"margins": "margin", "accuracy": "accuracy"})
