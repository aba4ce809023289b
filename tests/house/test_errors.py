from pathlib import Path

from house import errors

ROOT = Path(__file__).parents[2]

ALLOWED = {
    (
        "src/tunesmith/generate/engine.py",
        "there is nothing to answer",
    ): "what was wrong is that there is no value",
    ("src/tunesmith/serve/served.py", "there is nothing to answer"): "as above",
    ("src/tunesmith/serve/answering.py", "the client has gone"): "nobody reads it",
    ("src/tunesmith/serve/app.py", "the client has gone"): "nobody reads it",
    ("src/tunesmith/serve/guard.py", "there is no such key"): "a key is a secret, and is not repeated",
    ("src/tunesmith/serve/requests.py", "the body holds half"): "the value is no text, and cannot be written",
}
"""Messages without a value that are right, by file and first words, each with its reason."""


def test_errors_name_the_value_that_was_wrong():
    assert errors.check(ROOT, ALLOWED) == []
