"""What every test runs under: no hub, no cache of the user's, one thread a worker, the same random rows, no pictures.

The environment is set before any library reads it, and the processes that tests start inherit it.
"""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

from tunesmith import drawing

_HOME = tempfile.mkdtemp(prefix="tunesmith-tests-")
_ROOT = Path(__file__).parents[1]

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": f"{_HOME}/huggingface",
    "XDG_CACHE_HOME": f"{_HOME}/cache",
    "MPLCONFIGDIR": str(_ROOT / ".pytest_cache" / "matplotlib"),  # kept, as its list of fonts takes seconds
    "OMP_NUM_THREADS": "1",  # torch's threads: workers share the processors, and sums do not depend on them
    "TOKENIZERS_PARALLELISM": "false",
}

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


DRAWN = drawing.png
drawing.png = lambda figure: b"not drawn"  # a third of a short run's time; processes that tests start do draw


@pytest.fixture
def drawn(monkeypatch) -> None:
    """For tests that look at pictures."""
    monkeypatch.setattr(drawing, "png", DRAWN)


def pytest_collection_finish() -> None:
    gc.freeze()  # of libraries: every run begins with a collection, and looks through them


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
