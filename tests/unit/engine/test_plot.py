import math
import sys

import numpy as np
import pytest
from PIL import Image

from tunesmith.engine.plot import HELD_OUT, LOSS, loss_picture

pytestmark = pytest.mark.usefixtures("drawn")
SIZE = (1800, 1000)
TRAINED = [{"step": step, "loss": 3 / step, "learning_rate": 1e-4 / step} for step in range(1, 30)]
EVALUATED = [{"step": 0, "eval_loss": 3.1}, {"step": 29, "eval_loss": 0.2}]


def dots_of(path, colour: str) -> int:
    """How many dots of a picture have exactly this colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("RGB")) == wanted).all(-1).sum())


def test_both_losses_are_drawn(tmp_path):
    path = tmp_path / "loss.png"
    loss_picture([EVALUATED[0], *TRAINED, EVALUATED[1]], path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.size == SIZE
    assert dots_of(path, LOSS) > 2000 and dots_of(path, HELD_OUT) > 500
    loss_picture(TRAINED, path)
    assert dots_of(path, LOSS) > 2000 and dots_of(path, HELD_OUT) == 0
    loss_picture(EVALUATED, path)
    assert dots_of(path, LOSS) == 0 and dots_of(path, HELD_OUT) > 500


@pytest.mark.parametrize(
    "lines",
    [
        [],
        TRAINED[:1],
        EVALUATED[:1],
        [{"step": 1, "loss": None, "learning_rate": 0.0}],
        [*TRAINED, {"step": 30, "loss": None}, {"step": 31, "loss": 0.1}, {"step": 31, "eval_loss": None}],
        [{"step": 1, "loss": -2.0}, {"step": 2, "loss": -3.0}],
        [{"step": 1, "loss": 1e30}, {"step": 2, "loss": 1.0}],
    ],
    ids=["nothing", "one step", "one evaluation", "only null", "gaps", "negative", "huge"],
)
def test_whatever_was_logged_makes_a_picture(tmp_path, lines):
    loss_picture(lines, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == SIZE


def test_the_picture_says_the_first_and_last_held_out_loss(tmp_path, monkeypatch):
    said = []
    from matplotlib.axes import Axes

    real = Axes.annotate
    monkeypatch.setattr(Axes, "annotate", lambda self, text, *a, **k: said.append(text) or real(self, text, *a, **k))
    middle = {"step": 10, "eval_loss": math.pi}
    loss_picture([EVALUATED[0], middle, EVALUATED[1]], tmp_path / "loss.png")
    assert said == ["3.10", "0.200"]


def test_the_same_lines_draw_the_same_file(tmp_path):
    for name in ("one.png", "two.png"):
        loss_picture(TRAINED + EVALUATED[1:], tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_failure_leaves_the_old_picture(tmp_path):
    path = tmp_path / "loss.png"
    loss_picture(TRAINED, path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        loss_picture([{"step": 1, "loss": "three"}], path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_a_picture_is_replaced_and_not_written_over(tmp_path):
    path, same = tmp_path / "loss.png", tmp_path / "same.png"
    loss_picture(TRAINED, path)
    same.hardlink_to(path)  # another name of the old file: it changes if that is written over
    before = same.read_bytes()
    loss_picture(EVALUATED, path)
    assert same.read_bytes() == before != path.read_bytes()


def test_no_global_state_of_matplotlib_is_used(tmp_path):
    loss_picture(TRAINED, tmp_path / "loss.png")
    assert "matplotlib.pyplot" not in sys.modules
