"""What every test runs under: no hub, no cache of the user's, one thread a worker, the same random rows.

The environment is set before any library reads it, and the processes that tests start inherit it.
"""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis

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


def pytest_collection_finish() -> None:
    gc.freeze()  # of libraries: every run ends with a collection, and looks through them


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
