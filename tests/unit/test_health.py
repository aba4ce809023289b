"""The report on a machine: what is there, what is missing, and the command that gives it."""

import copy
import json
import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tunesmith import extras, health
from tunesmith.errors import MissingExtra


@pytest.fixture(scope="module")
def facts():
    return health.examine()


def test_every_dependency_is_looked_for(facts):
    declared = [line for line in metadata.requires("tunesmith") if "extra ==" not in line]
    needed = [one for one in facts["features"] if one["needed"]]
    assert sorted(one["command"] for one in needed) == sorted(f"pip install '{line}'" for line in declared)
    assert all(one["version"] == metadata.version(one["package"]) for one in needed)
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["torch"] == metadata.version("torch")


def test_the_facts_are_json_and_this_machine_is_healthy(facts):
    assert json.loads(json.dumps(facts)) == facts
    assert health.healthy(facts)
    assert facts["device"]["type"] in ("cpu", "cuda", "mps", "xpu")
    assert facts["disk_free_bytes"] > 0 and facts["cores"] > 0


def test_what_is_missing_comes_with_its_command(facts):
    assert health.version("a-package-that-nobody-made") is None
    facts = copy.deepcopy(facts)
    for one in facts["features"]:
        if one["package"] in ("openpyxl", "wandb"):
            one |= {"present": False, "version": None}
    lines = list(health.lines(facts))
    command = next(line for line in metadata.requires("tunesmith") if line.startswith("openpyxl"))
    assert any(line.startswith("xlsx files") and line.endswith(f"pip install '{command}'") for line in lines)
    assert any("wandb" in line and line.endswith("pip install wandb") for line in lines)
    assert not health.healthy(facts)  # openpyxl is needed


def test_every_extra_is_told_of_and_can_be_installed(facts):
    """The table is that of pyproject.toml, but of what developers alone want."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {
        name: {re.split(r"[<>=\[]", line)[0] for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    told = {name: {*packages} for name, packages in extras.EXTRAS.items()}
    declared["test"] &= told["test"]
    assert told == declared
    of_facts = {(one["package"], one["command"]) for one in facts["features"]}
    assert {(one, extras.command(name)) for name, packages in told.items() for one in packages} <= of_facts


def test_what_an_extra_lacks_is_said_with_its_command(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name.startswith("onnx") else True)
    extras.need("one that is there", "gguf")
    said = "A needs onnx and onnxscript and onnxruntime, which are not installed: pip install 'tunesmith[onnx]'"
    with pytest.raises(MissingExtra, match=f"^{re.escape(said)}$"):
        extras.need("A", "onnx")


def test_a_machine_without_a_wish_is_healthy(facts):
    facts = copy.deepcopy(facts)
    for one in facts["features"]:
        if not one["needed"]:
            one |= {"present": False, "version": None}
    assert health.healthy(facts)
    assert not health.healthy(facts | {"device": {"type": None, "name": "torch cannot be imported: x"}})
