"""Model cards, and pushes that are dry unless they are asked for."""

import json
from pathlib import Path

import pytest
import yaml

import fixtures_models
from tunesmith.cli.main import main
from tunesmith.errors import RunError
from tunesmith.exports.adapter import PlainAdapter
from tunesmith.exports.checks import signature
from tunesmith.exports.hub import Hub
from tunesmith.exports.merged import Merged
from unit.exports.test_exports import make_run

RECORD = {
    "recipe": {
        "model": {"path": "someone/base"},
        "data": {"train": [{"path": "someone/rows"}, {"path": "/srv/me/secret/own.json"}, {"path": "data/own.json"}]},
        "adapter": {"type": "lora"},
        "objective": {"type": "sft"},
    },
    "data": {
        "ledger": {
            "train": {
                "rows_read": 1234, "rows_kept": 1233, "rows_truncated": 0, "samples": 1233, "tokens": 9999,
                "trained_tokens": 5000, "dropped": {"an empty answer": {"count": 1}},
            }
        }
    },
    "summary": {"steps": 7, "loss": 1.5, "eval_loss_after": 1.25, "folder": "/srv/me/runs/x"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path, prompts=["What is two and three?"])
    (run / "record.json").write_text(json.dumps(RECORD))
    Merged().write(run, tmp_path / "out")
    return run


@pytest.fixture
def hub(monkeypatch):
    """What is asked of the hub, in place of asking it."""
    calls = []

    class Api:
        def create_repo(self, repo, **options):
            calls.append((repo, options))

        def upload_folder(self, repo_id, folder_path, **options):
            calls.append((repo_id, {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}))
            return type("Sent", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return calls


def test_a_dry_run_writes_the_card_and_sends_nothing(run, hub, tmp_path):
    out = tmp_path / "out"
    report = Hub(repo="me/tuned", license="apache-2.0").write(run, out)
    assert report.passed and hub == []
    files, size = len(list(out.iterdir())), sum(file.stat().st_size for file in out.iterdir())
    assert report.notes == (
        f"{files} files, {size / 1e6:,.1f} MB, README.md among them: a dry run: push=true sends them to me/tuned",
    )
    _, head, body = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["tunesmith", "lora", "sft"],
        "datasets": ["someone/rows"], "license": "apache-2.0",
    }  # fmt: skip
    assert "# tuned" in body and "License: apache-2.0." in body and "| train | 1,234 | 1,233 | 0 |" in body
    assert "train: 1 dropped: an empty answer" in body and "| eval loss after | 1.2500 |" in body
    assert "On 1 prompts against the trained weights: the same greedy tokens" in body
    assert str(tmp_path) not in body and "/srv/me" not in body and '"path": "base"' in body
    assert Merged().check(run, out).passed  # the card is no damage


def test_rows_held_out_of_those_of_training_are_in_the_card(hub, tmp_path):
    """A run as people make it: their own counts are those of the samples alone."""
    rows = [{"instruction": f"What is {i} and two?", "output": f"It is {i + 2}."} for i in range(6)]
    fixtures_models.save_model(tmp_path / "base", fixtures_models.tiny_model())
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{path: {tmp_path}/base, dtype: float32}}\ndata: {{train: {tmp_path}/rows.json, eval: 2}}\n"
        f"train: {{output_dir: {tmp_path}/run, max_steps: 1, row_tokens: 128, device: cpu}}\neval: {{prompts: [Hi]}}\n"
    )
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    Merged().write(tmp_path / "run", tmp_path / "out")
    Hub(repo="me/tuned").write(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| train | 6 | 6 | 0 | 6 |" in card and "| eval |  |  |  | 2 |  |  |" in card


def test_a_card_that_was_edited_is_kept(run, hub, tmp_path):
    out, card = tmp_path / "out", tmp_path / "out" / "README.md"
    Hub(repo="me/tuned").write(run, out)
    Hub(repo="me/other").write(run, out)
    assert "# other" in card.read_text()  # nobody's words were in it
    edited = card.read_text().replace("License: not said.", "Ask me.")
    card.write_text(edited)
    notes = Hub(repo="me/tuned", push=True).write(run, out).notes
    assert notes[-2] == "README.md was edited, and is kept: delete it to have it written anew"
    assert card.read_text() == edited == hub[1][1]["README.md"].decode()


def test_a_push_sends_the_folder(run, hub, tmp_path):
    report = Hub(repo="me/tuned", push=True).write(run, tmp_path / "out")
    asked, (repo, sent) = hub
    assert asked == ("me/tuned", {"private": True, "exist_ok": True}) and repo == "me/tuned"
    assert sent == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert report.notes[-1].endswith("pushed to https://hub/me/tuned/commit/1")
    assert "License: not said." in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_is_sent_with_a_base_that_others_have(run, hub, tmp_path):
    out = tmp_path / "adapter"
    PlainAdapter().write(run, out)
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    note = Hub(repo="me/tuned").write(run, out).notes[-1]
    assert note.endswith(f"and base_model=OWNER/NAME, for {tmp_path}/base is on this machine alone")
    with pytest.raises(
        RunError, match="adapter is an adapter of .*base, which is not on the hub: say base_model=OWNER"
    ):
        Hub(repo="me/tuned", push=True).write(run, out)
    assert hub == []
    Hub(repo="me/tuned", push=True, base_model="someone/base").write(run, out)
    sent = hub[1][1]
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "someone/base"
    assert "\nbase_model: someone/base\n" in sent["README.md"].decode()
    assert not [name for name, content in sent.items() if str(tmp_path).encode() in content]
    assert files == {file.name: file.read_bytes() for file in out.iterdir() if file.name != "README.md"}
    (tmp_path / "got").mkdir()
    for name, content in sent.items():
        (tmp_path / "got" / name).write_bytes(content)
    assert signature.damage(tmp_path / "got", signature.signed(tmp_path / "got")[1]) is None


def test_places_of_this_machine_are_not_sent(run, hub, tmp_path):
    """A merged one was told them, and says in export.json what it was told."""
    (tmp_path / "more").mkdir()
    make_run(tmp_path / "more", prompts=["What is two and three?"])
    Merged(adapters=(str(tmp_path / "more/run/final"),)).write(run, tmp_path / "both")
    assert str(tmp_path) in (tmp_path / "both" / "export.json").read_text()
    Hub(repo="me/tuned", push=True).write(run, tmp_path / "both")
    assert not [name for name, content in hub[1][1].items() if str(tmp_path).encode() in content]
    assert json.loads(hub[1][1]["export.json"])["export"]["adapters"] == ["final"]


def test_what_cannot_be_pushed(run, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"none is no export: write one first, as with tunesmith export .* type=merged"):
        Hub(repo="me/tuned").write(run, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty has no readable export\.json"):
        Hub(repo="me/tuned").write(run, tmp_path / "empty")
    data = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out" / "model.safetensors").write_bytes(data)
    with pytest.raises(RunError, match="is damaged"):
        Hub(repo="me/tuned", push=True).write(run, tmp_path / "out")


def test_a_hub_that_refuses_is_one_line(run, hub, tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise OSError("no way there\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(RunError, match=r"^me/tuned was not pushed: no way there\. See hf auth login$"):
        Hub(repo="me/tuned", push=True).write(run, tmp_path / "out")
