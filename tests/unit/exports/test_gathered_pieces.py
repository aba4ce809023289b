"""A checkpoint whose weights lie in flat pieces, as DeepSpeed's processes have them, is exported as a plain folder."""

import pytest
import torch
from safetensors.torch import load_file

from fixtures_models import tiny_model, tiny_tokenizer
from tunesmith.cli.main import main
from tunesmith.engine import checkpoint, flat_parts, shares
from tunesmith.exports.merging import gathered


@pytest.mark.parametrize("tied", [False, True])
def test_pieces_of_two_processes_make_the_model(tmp_path, monkeypatch, capsys, tied):
    """No two of its weights are held at once where so few bytes are."""
    model, place = tiny_model(tied=tied).bfloat16(), checkpoint.place(tmp_path / "run", 1)
    own, held, read = dict(model.named_parameters()), [], flat_parts.read
    with checkpoint.atomic_folder(place) as folder:
        shares.describe(model, folder, flat_parts.FOLDER)
        tiny_tokenizer().save_pretrained(folder)
        for rank in (0, 1):
            pieces = []
            for number, one in enumerate(own.values()):
                half = -(-one.numel() // 2)
                values = one.detach().float().flatten()[rank * half : (rank + 1) * half].clone()
                pieces.append(flat_parts.Piece(number, flat_parts.WEIGHT, rank * half, values))
                pieces.append(flat_parts.Piece(number, "exp_avg", rank * half, values + 1))
            flat_parts.save(pieces, folder, rank, {name: one.dtype for name, one in own.items()})
    assert main(["chat", str(place)]) == 1
    assert f"weights of {place} lie in parts, as several processes wrote them" in capsys.readouterr().err
    monkeypatch.setattr(gathered, "AT_ONCE", 1)
    monkeypatch.setattr(flat_parts, "read", lambda folder, wanted: held.append(list(wanted)) or read(folder, wanted))
    assert main(["export", str(place), str(tmp_path / "out")]) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == own.keys() and held == [[name] for name in own]
    assert ("lm_head.weight" in found) is not tied
    for name, one in own.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], one.detach())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
