"""Processes that their starter begins again go on with their own run, and with nobody else's."""

import pytest

from tunesmith import Recipe, train
from tunesmith.errors import RunError

NOT_EMPTY = "is not empty. Choose another folder"


def recipe(folder, **options):
    return Recipe(
        model="builtin:tiny",
        data={"train": "builtin:identity", "cache_dir": str(folder / "cache")},
        train={"max_steps": 1, "device": "cpu", "output_dir": str(folder / "run"), **options},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a job that is called first."""
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "first")
        train(recipe(folder))
    return folder


def test_a_machine_that_joins_a_job_goes_on_with_its_run(run, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")  # torchrun does not count it as a restart
    train(recipe(run))
    assert "is finished: nothing to do" in capsys.readouterr().err


def test_another_job_that_failed_because_of_a_full_folder_fails_again(run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(RunError, match=NOT_EMPTY):
        train(recipe(run))


def test_where_jobs_have_no_names_the_recipe_tells(tmp_path, monkeypatch, capsys):
    train(recipe(tmp_path))
    with pytest.raises(RunError, match=NOT_EMPTY):
        train(recipe(tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(RunError, match=NOT_EMPTY):
        train(recipe(tmp_path, seed=7))
    train(recipe(tmp_path))
    assert "is finished: nothing to do" in capsys.readouterr().err
