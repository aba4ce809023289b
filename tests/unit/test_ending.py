"""What a run says at its end is of the weights that it kept."""

import json

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
    words = closing_words(tmp_path, SUMMARY)
    assert words[1:4] == ["Q      Who?", "before nobody", "after  I am Smith\ufffd."]
    assert "kept: the weights of step 2, whose held-out loss is the lowest of training" in words
    assert "held-out loss: 5.000 -> 2.000" in words


def test_a_loss_that_rose_is_said(tmp_path):
    write(tmp_path, {0: "a", 6: "b"})
    words = closing_words(tmp_path, SUMMARY | {"eval_loss_after": 9.0, "kept_step": 6})
    assert any("the held-out loss rose" in word for word in words)
    assert not any(word.startswith("kept:") for word in words)


def test_paths_in_the_next_commands_can_be_pasted(tmp_path):
    words = closing_words(tmp_path / "my run", {name: value for name, value in SUMMARY.items() if "eval" not in name})
    assert f"  tunesmith chat '{tmp_path / 'my run'}'" in words


def test_the_two_classes_that_transformers_leaves_out_of_a_config_have_names(tmp_path):
    (tmp_path / "final").mkdir()
    for kind, expected in (("BertForTokenClassification", ["LABEL_0", "LABEL_1"]), ("BertForMaskedLM", [])):
        (tmp_path / "final" / "config.json").write_text(json.dumps({"architectures": [kind]}))
        assert _classes(tmp_path) == expected
