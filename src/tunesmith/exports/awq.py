"""A merged model in few bits whose weights are scaled first, so that those that matter most are rounded least."""

from typing import ClassVar

from tunesmith.exports.formats.calibrated import Calibrated


class Awq(Calibrated):
    """Merge a run, and hold its linear layers, but the head, in few bits by AWQ (arXiv 2306.00978).

    The scales are chosen by the run's own rows. The folder is a checkpoint of compressed-tensors, as transformers and
    vLLM load it.
    """

    method: ClassVar[str] = "AWQ"
