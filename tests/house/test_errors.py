from pathlib import Path

from house import errors

ROOT = Path(__file__).parents[2]


def test_errors_name_the_value_that_was_wrong():
    assert errors.check(ROOT) == []
