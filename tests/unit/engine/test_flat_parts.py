"""Pieces of flattened parameters as files: what any number of processes wrote is whole again, in its place."""

import torch

from tunesmith.engine import flat_parts
from tunesmith.engine.flat_parts import WEIGHT, Piece, Place


def cut(values, bounds):
    """Stretches of a flattened tensor, each with where it begins."""
    flat = values.flatten()
    return [(start, flat[start:end]) for start, end in zip(bounds, [*bounds[1:], flat.numel()], strict=True)]


def test_pieces_of_processes_make_wholes(tmp_path):
    first, second = torch.rand(3, 5), torch.rand(7)
    state = torch.rand(3, 5)
    processes = [[], [], []]
    for rank, (start, values) in enumerate(cut(first, [0, 4, 9])):
        processes[rank].append(Piece(0, WEIGHT, start, values))
    for rank, (start, values) in enumerate(cut(state, [0, 11])):
        processes[rank].append(Piece(0, "exp_avg", start, values))
    processes[2].append(Piece(1, WEIGHT, 0, second))  # one process has all of it
    for rank, pieces in enumerate(processes):
        flat_parts.save(pieces, tmp_path, rank)
    parameters = [torch.zeros(3, 5), torch.zeros(7)]
    found = {(number, name): value for number, name, value in flat_parts.whole(parameters, tmp_path)}
    assert found.keys() == {(0, WEIGHT), (0, "exp_avg"), (1, WEIGHT)}
    assert torch.equal(found[0, WEIGHT], first) and torch.equal(found[0, "exp_avg"], state)
    assert torch.equal(found[1, WEIGHT], second)
    assert [name for _, name, _ in flat_parts.whole(parameters, tmp_path, "exp_avg")] == ["exp_avg"]
    flat_parts.save([Piece(1, "exp_avg", 0, second)], tmp_path, 2, part="-1")  # what a process writes in parts
    assert {name for number, name, _ in flat_parts.whole(parameters, tmp_path) if number == 1} == {WEIGHT, "exp_avg"}
    assert flat_parts.there(tmp_path) and not flat_parts.has_weights(tmp_path)


def test_weights_that_lie_in_pieces_alone_are_found_by_name(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    values = torch.arange(6.0).view(2, 3)
    kinds = {"1.weight": torch.bfloat16}
    flat_parts.save([Piece(0, WEIGHT, 3, values.flatten()[3:])], tmp_path, 1, kinds)
    assert not flat_parts.has_weights(tmp_path)  # the first process names them
    flat_parts.save([Piece(0, WEIGHT, 0, values.flatten()[:3])], tmp_path, 0, kinds)
    assert flat_parts.has_weights(tmp_path)
    ((parameter, value),) = flat_parts.weights(model, tmp_path)
    assert parameter is model[1].weight and torch.equal(value, values)
    assert flat_parts.stored(tmp_path) == kinds
    read = flat_parts.read(tmp_path, {"1.weight": (values.shape, torch.bfloat16)})
    assert torch.equal(read["1.weight"], values.bfloat16()) and flat_parts.read(tmp_path, {}) == {}


def test_a_place_has_what_a_process_has_of_a_parameter():
    flat, whole = torch.zeros(10), torch.arange(12.0).view(3, 4)
    place = Place(flat, offset=2, start=5, length=4, group=0)
    place.put(whole, flat)
    assert flat.tolist() == [0, 0, 5, 6, 7, 8, 0, 0, 0, 0]
    assert place.of(flat).tolist() == [5, 6, 7, 8]
