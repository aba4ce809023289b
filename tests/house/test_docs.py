import subprocess
import sys
from pathlib import Path

import pytest

from house import docs
from tunesmith.component import all_of
from tunesmith.launching import Launcher
from tunesmith.recipe import Eval, Model
from tunesmith.recipe_data import Data, Source
from tunesmith.recipe_train import Train
from tunesmith.seams import Adapter, Export, Format, Objective, Optimizer, Quantization, Template

ROOT = Path(__file__).parents[2]
GENERATED = {
    "docs/reference/options.md": ("options", "--markdown"),
    "docs/reference/compatibility.md": ("options", "--compatibility"),
}
SEAMS = (Adapter, Export, Format, Launcher, Objective, Optimizer, Quantization, Template)


def test_public_names_links_and_versions():
    assert docs.check(ROOT) == []


@pytest.mark.parametrize("page", GENERATED)
def test_generated_pages_are_what_the_program_prints(page):
    command = [sys.executable, "-m", "tunesmith", *GENERATED[page]]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert (ROOT / page).read_text(encoding="utf-8") == printed, "run `make docs` and read the difference"


def test_every_option_has_its_help():
    components = [kind for seam in SEAMS for kind in all_of(seam).values()]
    silent = [
        f"{section.__name__}.{name}"
        for section in (Data, Eval, Model, Source, Train, *components)
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert silent == []
