"""What the folder says of itself: each file in a line."""

import re
from pathlib import Path

from tunesmith import data


def test_every_file_has_its_line_and_every_line_its_file():
    assert data.__doc__ is not None and data.__file__ is not None
    named = re.findall(r"^    (\w+) +\w", data.__doc__, re.MULTILINE)
    files = {path.stem for path in Path(data.__file__).parent.glob("*.py")}
    assert sorted(named) == sorted(files - {"__init__", "load"})
    assert "`load.py`" in data.__doc__
