from pathlib import Path

from house import sizes

ROOT = Path(__file__).parents[2]


def test_files_functions_and_verbs_fit_on_their_screens():
    assert sizes.check(ROOT) == []
