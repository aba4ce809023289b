"""What a run says at its end is of the weights that it kept."""

import json

import pytest

from fixtures_models import tiny_config
from tunesmith.ending import _classes, closing_words

SUMMARY = {
    "steps": 6, "loss": 1.0, "tokens": 10, "trained_tokens": 5, "seconds": 1.0,
    "eval_loss_before": 5.0, "eval_loss_after": 2.0, "kept_step": 2,
}  # fmt: skip


def write(folder, answers):
    lines = [{"step": step, "prompt": "Who?", "answer": answer} for step, answer in answers.items()]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_answer_is_that_of_the_kept_weights(tmp_path):
    write(tmp_path, {0: "nobody", 2: "I am\nSmith\x07.", 6: "shared shared"})
    words = closing_words(tmp_path, SUMMARY, "sft")
    assert words[1:4] == ["Q      Who?", "before nobody", "after  I am Smith\ufffd."]
    assert "kept: the weights of step 2, whose held-out loss is the lowest of training" in words
    assert "held-out loss: 5.000 -> 2.000" in words


def test_a_loss_that_rose_is_said(tmp_path):
    write(tmp_path, {0: "a", 6: "b"})
    words = closing_words(tmp_path, SUMMARY | {"eval_loss_after": 9.0, "kept_step": 6}, "sft")
    assert any("the held-out loss rose" in word for word in words)
    assert not any(word.startswith("kept:") for word in words)


def test_paths_in_the_next_commands_can_be_pasted(tmp_path):
    summary = {name: value for name, value in SUMMARY.items() if "eval" not in name}
    words = closing_words(tmp_path / "my run", summary, "sft")
    assert f"  tunesmith chat '{tmp_path / 'my run'}'" in words


@pytest.mark.parametrize(("kind", "target"), [("LORA", "merged"), ("PREFIX_TUNING", "adapter")])
def test_the_next_command_makes_what_can_be_made(tmp_path, kind, target):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    words = closing_words(tmp_path, SUMMARY | {"kept_step": 6}, "sft")
    assert f"  tunesmith export {tmp_path} {tmp_path}-{target} type={target}" in words


def test_the_two_classes_that_transformers_leaves_out_of_a_config_have_names(tmp_path):
    (tmp_path / "final").mkdir()
    for kind, expected in (("BertForTokenClassification", ["LABEL_0", "LABEL_1"]), ("BertForMaskedLM", [])):
        (tmp_path / "final" / "config.json").write_text(json.dumps({"architectures": [kind]}))
        assert _classes(tmp_path) == expected


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("sft", "recipes copy sft-lora my-recipe.yaml"),
        ("kto", "recipes copy kto-lora my-recipe.yaml"),
        ("reward", "recipes copy reward my-recipe.yaml"),
        ("orpo", "recipes"),
    ],
)
def test_the_next_recipe_is_of_the_same_objective(tmp_path, objective, said):
    assert closing_words(tmp_path, SUMMARY | {"kept_step": 6}, objective)[-1] == f"  tunesmith {said}"


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, ["LABEL_0", "LABEL_1"]),  # which transformers does not write
        ({0: "bad", 1: "good"}, ["bad", "good"]),
        ({0: "reward"}, ["reward"]),
    ],
)
def test_classes_are_found_with_and_without_names(tmp_path, labels, found):
    config = tiny_config(architectures=["LlamaForSequenceClassification"], id2label=labels)
    config.save_pretrained(tmp_path / "final")
    assert ("id2label" in json.loads((tmp_path / "final" / "config.json").read_text())) == ("LABEL_0" not in found)
    assert _classes(tmp_path) == found


def test_a_model_that_says_words_has_no_classes(tmp_path):
    tiny_config(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "final")
    assert _classes(tmp_path) == []
