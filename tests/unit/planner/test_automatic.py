"""What `parallel.strategy: auto` takes: whole models where they fit, and weights in parts where they do not."""

from tunesmith.defaults import Device, with_values
from tunesmith.planner import automatic, fleet, spread
from tunesmith.planner.layout import Layout
from tunesmith.recipe import Recipe

CUDA = Device("cuda", "a CUDA device", True)
DDP = Layout("ddp", replicate=4)


def test_auto_shares_weights_where_a_whole_model_does_not_fit(told):
    recipe, shape = told()
    needed = spread.share(recipe, shape, CUDA, DDP).peak.total
    room, short = int(needed / fleet.ROOM) + 1, int(needed / fleet.ROOM) - 1
    assert automatic.strategy(recipe, CUDA, room, 4)[0] == "ddp"
    chosen, why = automatic.strategy(recipe, CUDA, short, 4)
    assert chosen == "fsdp" and why.startswith("a whole model with its states needs 1.")
    muon, _ = told(optimizer="muon")
    chosen, why = automatic.strategy(muon, CUDA, 1, 4)
    assert chosen == "ddp" and "which will not do, and its weights cannot be shared out: optimizer=muon" in why
    rows = with_values(recipe, {"train.row_tokens": "auto"})
    assert automatic.strategy(rows, CUDA, 1, 4) == ("ddp", "train.row_tokens=auto fits rows beside a whole model")
    other, _ = told()
    other = Recipe(**other.model_dump() | {"objective": "seq2seq"})
    assert "the plan does not say what a whole model needs" in automatic.strategy(other, CUDA, 1, 4)[1]


def test_auto_plans_layers_in_parts_where_they_are(told):
    """And copies of layers in parts are for what is trained beside them alone."""
    recipe, shape = told({"type": "lora", "r": 4})
    cut = with_values(recipe, {"parallel.tensor": 2})
    needed = spread.share(recipe, shape, CUDA, Layout("ddp", replicate=2, tensor=2)).peak.total
    assert needed < spread.share(recipe, shape, CUDA, DDP).peak.total
    assert [automatic.strategy(one, CUDA, int(needed / fleet.ROOM) + 1, 4)[0] for one in (recipe, cut)] == [
        "fsdp",
        "ddp",
    ]
    whole = with_values(told()[0], {"parallel.tensor": 2})
    assert automatic.strategy(whole, CUDA, 10**12, 2)[0] == "ddp"
    chosen, why = automatic.strategy(whole, CUDA, 10**12, 4)
    assert chosen == "fsdp" and "4 processes hold copies of weights that are trained" in why


def test_auto_plans_pieces_of_rows_where_rows_lie_in_pieces(told):
    """What does not fit with whole rows fits with halves of them; where neither does, weights are shared out too."""
    recipe, shape = told(train={"row_tokens": 8192, "activation_checkpointing": False})
    pieces = with_values(recipe, {"parallel.context": 2})
    halves = spread.share(recipe, shape, CUDA, Layout("ddp", replicate=2, context=2)).peak.total
    assert halves < spread.share(recipe, shape, CUDA, DDP).peak.total
    room, short = int(halves / fleet.ROOM) + 1, int(halves / fleet.ROOM) - 1
    assert [automatic.strategy(one, CUDA, room, 4)[0] for one in (recipe, pieces)] == ["fsdp", "ddp"]
    assert automatic.strategy(pieces, CUDA, short, 4)[0] == "fsdp"
