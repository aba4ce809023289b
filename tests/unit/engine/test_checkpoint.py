"""A checkpoint's folder: whole, with a manifest that finds what changed, and replaced when it is saved again."""

import json

import pytest
import torch

from fixtures_models import tiny_model
from tunesmith.engine.checkpoint import MANIFEST, atomic_folder, damage, load_weights, save_weights


def save(folder, content):
    with atomic_folder(folder) as work:
        (work / "sub").mkdir()
        (work / "sub" / "weights").write_text(content)
        (work / "state").write_text("{}")


def test_what_is_saved_again_takes_the_place_of_the_old(tmp_path):
    for content in ("old", "new"):
        save(tmp_path / "step-1", content)
        assert (tmp_path / "step-1" / "sub" / "weights").read_text() == content
        assert damage(tmp_path / "step-1") is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    manifest = json.loads((tmp_path / "step-1" / MANIFEST).read_text())
    assert {name: size for name, (size, _) in manifest.items()} == {"state": 2, "sub/weights": 3}


def test_an_error_while_it_is_saved_again_leaves_the_old(tmp_path):
    save(tmp_path / "step-1", "old")
    with pytest.raises(OSError, match="gone"), atomic_folder(tmp_path / "step-1") as work:
        (work / "state").write_text("half")
        raise OSError("gone")
    assert damage(tmp_path / "step-1") is None and [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_what_changed_is_named(tmp_path):
    save(tmp_path / "a", "old")
    (tmp_path / "a" / "sub" / "weights").write_text("odd")
    assert str(damage(tmp_path / "a")).endswith("weights is damaged")
    (tmp_path / "a" / "sub" / "weights").unlink()
    assert str(damage(tmp_path / "a")).endswith("weights is missing")
    (tmp_path / "a" / MANIFEST).write_text("{")
    assert str(damage(tmp_path / "a")).endswith(f"has no readable {MANIFEST}")


def test_a_head_in_float32_is_read_back_as_it_was(tmp_path):
    model, other = (tiny_model(tied=False, seed=seed).to(torch.bfloat16) for seed in (0, 1))
    for one in (model, other):
        one.lm_head.float()
    torch.nn.init.normal_(model.lm_head.weight)
    save_weights(model, tmp_path)
    load_weights(other, tmp_path)
    kept = other.state_dict()
    assert all(torch.equal(one, kept[name]) for name, one in model.state_dict().items())
