"""The graph of a model as transformers' exporter writes it, and as ONNX Runtime computes it.

Letters: B sequences, P tokens of the prompt, K tokens of an answer, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith import extras
from tunesmith.engine.model import load_model, load_tokenizer
from tunesmith.exports.checks.compare import TOKENS, TOLERANCE, Reference, refuse_difference, said_by
from tunesmith.exports.checks.manners import stated
from tunesmith.recipe import Model
from tunesmith.types import Report

FILE = "model.onnx"
ROWS, LENGTH = 2, 16  # of the tokens that a graph is traced with: an axis of 1 would stay 1


def need() -> None:
    """Look for what writes and runs a graph. Raises MissingExtra."""
    extras.need("export type=onnx", "onnx")


def write(merged: Path, folder: Path) -> None:
    """Write the graph of a merged model into a folder, in float32."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    model: Any = load_model(Model(path=str(merged), dtype="float32"), "cpu").eval()
    model.config.use_cache = False
    ids = torch.arange(LENGTH).expand(ROWS, LENGTH).contiguous()
    asked: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made: Any = OnnxExporter().export(model, asked, config=OnnxConfig(dynamic=True))
    OnnxExporter.save_program(made.program, folder / FILE)
    model.config.use_cache = True
    model.config.save_pretrained(folder)


class Session:
    """A graph in ONNX Runtime, on the CPU."""

    def __init__(self, folder: Path) -> None:
        from onnxruntime import InferenceSession

        self._session = InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """What it gives each token of an answer: [K, V] float32."""
        ids = torch.tensor([[*prompt, *tokens[:-1]]])
        given = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
        found = torch.from_numpy(self._session.run(["logits"], given)[0])  # [1, P + K - 1, V]
        return found[0, len(prompt) - 1 :]

    def greedy(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The likeliest answer, whatever ends it."""
        tokens: list[int] = []
        while len(tokens) < TOKENS:
            tokens.append(int(self.logits(prompt, [*tokens, 0])[-1].argmax()))
        return tuple(tokens)


def compared(run: Reference, folder: Path, out: Path) -> Report:
    """How a graph compares with the run. Raises RunError where what stands beside it is other than the run's."""
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(Model(path=str(folder), tokenizer=str(folder)))
    refuse_difference(run.manners, stated(GenerationConfig.from_pretrained(str(folder)), tokenizer))
    session = Session(folder)
    return said_by(session.greedy, session.logits, run, out, TOLERANCE[run.dtype])
