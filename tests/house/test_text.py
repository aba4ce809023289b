from pathlib import Path

from house import text

ROOT = Path(__file__).parents[2]


def test_no_machine_path_registry_secret_or_large_file():
    assert text.check(ROOT) == []
