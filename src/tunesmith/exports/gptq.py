"""A merged model whose weights are rounded one after the other, each making up for those before it."""

from typing import ClassVar

from tunesmith.exports.formats.calibrated import Calibrated


class Gptq(Calibrated):
    """Merge a run, and hold its linear layers, but the head, in few bits by GPTQ (arXiv 2210.17323).

    The bits are chosen by the run's own rows. The folder is a checkpoint of compressed-tensors, as transformers and
    vLLM load it.
    """

    method: ClassVar[str] = "GPTQ"
