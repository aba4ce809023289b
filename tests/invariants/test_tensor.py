"""Layers whose products are cut for two processes (gloo) equal whole ones on one process."""

import pytest

from fixtures_commands import together
from fixtures_models import save_model, tiny_model
from invariants.objective_runs import ACCUMULATED, ONE_A_ROW, equal, killed, learned, new_runs
from invariants.whole_runs import digests, metrics

CUT = "parallel.tensor=2"
FULL = ("adapter=full", "optimizer.learning_rate=1e-3", ONE_A_ROW, f"{ACCUMULATED}=12")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return new_runs(tmp_path_factory.mktemp("tensor"))


def command(runs, name, *words):
    """The command line of a run of two processes, whose cache is its own."""
    return runs.command("sft", runs.folder / f"2-{name}", f"data.cache_dir={runs.folder / f'cache-{name}'}", *words)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_cut_layers_equal_whole_ones(runs, arch):
    folder = runs.folder / arch
    save_model(folder, tiny_model(arch=arch))
    path = f"model.path={folder}"
    said = together(2, command(runs, arch, *FULL, path, CUT))
    assert said.count("parallel: each layer's products are cut for 2 processes") == 1
    one, two = runs.of("sft", *FULL, path), runs.folder / f"2-{arch}"
    assert learned(one)
    equal(one, two)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(runs):
    together(2, command(runs, "killed", *FULL, CUT))
    whole = runs.folder / "2-killed"
    again = killed(whole, 2, runs.folder / "again")
    together(2, ["train", str(again)])
    assert metrics(again) == metrics(whole) and digests(again / "final") == digests(whole / "final")
