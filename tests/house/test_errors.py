from pathlib import Path

from house import errors

ROOT = Path(__file__).parents[2]

ALLOWED = {
    (
        "src/tunesmith/generate/engine.py",
        "there is nothing to answer",
    ): "what was wrong is that there is no value",
}
"""Messages without a value that are right, by file and first words, each with its reason."""


def test_errors_name_the_value_that_was_wrong():
    assert errors.check(ROOT, ALLOWED) == []
