"""What a whole model learns from another one equals a loss on both models' whole logits in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from fixtures_models import tiny_lora, tiny_model
from numerics.packed import gradients, packed_batch
from numerics.test_divergence import expected
from tunesmith.engine import kernels
from tunesmith.engine.teacher import Teacher
from tunesmith.objectives.distill import Distill

LENGTHS = (7, 1, 12, 4)
TEACHER = {"seed": 5, "hidden_size": 48, "intermediate_size": 96}
STUDENTS = {
    "llama": lambda: tiny_model(),
    "gemma2": lambda: tiny_model(arch="gemma2", final_logit_softcapping=4.0),
    "granite": lambda: tiny_model(arch="granite", logits_scaling=3.0),
    "head of its own": lambda: tiny_model(arch="qwen2", tied=False),
    "lora": lambda: tiny_lora(tiny_model()),
    "lora on the head": lambda: tiny_lora(tiny_model(tied=False), target_modules=["q_proj", "lm_head"]),
    "whole head beside lora": lambda: tiny_lora(
        tiny_model(tied=False), target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
}
TEACHERS = {
    "larger": lambda: tiny_model(**TEACHER),
    "capped": lambda: tiny_model(arch="gemma2", final_logit_softcapping=3.0, seed=4),
    "adapted": lambda: tiny_lora(tiny_model(tied=False, **TEACHER), target_modules=["q_proj", "lm_head"]),
}


class Both:
    """Whole logits at the asked positions, as `test_divergence.expected` reads them."""

    def __init__(self, student, teacher, batch):
        self.ours, self.theirs = (whole(one, batch) for one in (student, teacher))


def whole(model, batch):
    bounds = batch.offsets.tolist()
    parts = [
        model(input_ids=batch.input_ids[:, first:last], use_cache=False).logits[0]
        for first, last in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return torch.cat(parts)[batch.weight[0] != 0]


def exact(model):
    other = copy.deepcopy(model).double()
    (other.get_base_model() if hasattr(other, "peft_config") else other).set_attn_implementation("eager")
    return other


def taught(student, teacher, how):
    """The student's scorer beside its teacher."""
    words = min(one.get_output_embeddings().weight.shape[0] for one in (student, teacher))
    beside = Teacher(teacher, kernels.choose(teacher).scorer, how, words)
    return replace(kernels.choose(student).scorer, teacher=beside)


@pytest.mark.parametrize(
    ("student", "teacher"), [*((one, "larger") for one in STUDENTS), *(("llama", one) for one in TEACHERS)]
)
@pytest.mark.parametrize("options", [{}, {"sft_weight": 0.5, "temperature": 2.0, "divergence": "jsd", "top_k": 9}])
def test_the_loss_and_its_gradients(student, teacher, options):
    objective, student, teacher = Distill(**options), STUDENTS[student](), TEACHERS[teacher]().requires_grad_(False)
    batch = packed_batch(LENGTHS, 200)
    right = exact(student)
    both = Both(right, exact(teacher), batch)
    weight, target = batch.weight[batch.weight != 0], batch.target[batch.weight != 0]
    nll = -both.ours.log_softmax(-1).gather(1, target[:, None])[:, 0]
    wanted = weight * (objective.temperature**2 * expected(both, objective.teaching()) + objective.sft_weight * nll)
    wanted.sum().backward()
    found = objective.loss(taught(student, teacher, objective.teaching())(student, batch), batch)
    assert found.total.item() == pytest.approx(wanted.sum().item(), rel=1e-5)
    assert found.metrics["nll"][0].item() == pytest.approx((weight * nll).sum().item(), rel=1e-5)
    found.total.backward()
    theirs, ours = gradients(right), gradients(student)
    assert theirs.keys() == ours.keys() and ours
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].double(), gradient, rtol=1e-3, atol=2e-4, msg=name)


def test_words_that_are_kept_give_what_a_teacher_in_the_step_does():
    student, teacher, how = tiny_model(), tiny_model(**TEACHER), Distill(top_k=5, temperature=1.5).teaching()
    batch, scorer = packed_batch(LENGTHS, 200), taught(student, teacher, how)
    told = scorer.teacher.told(batch)
    rows = replace(batch, teacher_words=told.words, teacher_logps=told.logps)
    kept = replace(scorer, teacher=replace(scorer.teacher, model=None, scorer=None))
    torch.testing.assert_close(kept(student, rows).divergence, scorer(student, batch).divergence, rtol=0, atol=0)


@pytest.mark.parametrize(("ours", "theirs"), [(400, 448), (448, 400)])
@pytest.mark.parametrize("top_k", [None, 6])
def test_a_larger_head_of_the_same_words(ours, theirs, top_k):
    """Heads are padded to round numbers: what one has more than the other is no word."""
    student, teacher = tiny_model(vocab=ours), tiny_model(vocab=theirs, **TEACHER)
    batch, how = packed_batch(LENGTHS, 200), Distill(top_k=top_k).teaching()
    both = Both(exact(student), exact(teacher), batch)
    both.theirs, both.ours = both.theirs[:, :400], both.ours[:, :400]
    found = taught(student, teacher, how)(student, batch).divergence[batch.weight != 0]
    torch.testing.assert_close(found.double(), expected(both, how), rtol=1e-5, atol=1e-5)


def test_log_probabilities_have_no_gradient_where_the_loss_has_no_part_of_theirs():
    student, batch = tiny_model(), packed_batch(LENGTHS, 200)
    scores = {
        weight: taught(student, tiny_model(**TEACHER), Distill(sft_weight=weight).teaching())(student, batch)
        for weight in (0.0, 0.5)
    }
    assert not scores[0.0].logps.requires_grad and scores[0.5].logps.requires_grad
    torch.testing.assert_close(scores[0.0].logps, scores[0.5].logps.detach())


def test_bfloat16_autocast():
    student, teacher, batch = tiny_model(), tiny_model(**TEACHER), packed_batch(LENGTHS, 200)
    how = Distill().teaching()
    wanted = taught(student, teacher, how)(student, batch).divergence
    with torch.autocast("cpu", torch.bfloat16):
        found = taught(student, teacher, how)(student, batch).divergence
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.max()
