from pathlib import Path

from house import layers

ROOT = Path(__file__).parents[2]


def test_imports_go_downward_without_cycles_and_recipes_are_read_without_torch():
    assert layers.check(ROOT) == []


def test_no_layer_is_empty():
    units = {path.stem for path in (ROOT / "src" / "tunesmith").iterdir()} | {""}
    assert set().union(*layers.LAYERS) | layers.LEAVES <= units
