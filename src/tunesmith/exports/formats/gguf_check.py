"""How a .gguf file is verified: read as transformers reads it, and by llama.cpp where that is installed.

The tokenizer and the sizes of the model are compared with the run's; each weight lies within half a step of its block
of the run's; and it answers as the run does, as closely as its type rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.engine.device import choose
from tunesmith.engine.model import base_of, load_config, load_model
from tunesmith.exports.checks.compare import TOKENS, TOLERANCE, Reference, Unlike, answers, judged, said_by
from tunesmith.exports.checks.costs import GGUF as COSTS
from tunesmith.exports.checks.manners import TEXTS, Manners
from tunesmith.exports.formats import gguf_families as families
from tunesmith.exports.formats import gguf_file, gguf_vocab, llama_cpp
from tunesmith.exports.merging.stream import Plan
from tunesmith.recipe import Model
from tunesmith.types import Report

HEAD = "lm_head.weight"
NAME = "general.name"  # what the run was called then, and may not be now
ROWS = 4096  # of a tensor that are compared at once
READ = (  # what transformers' reader takes from a file
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "rms_norm_eps", "vocab_size", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What a file was made of."""

    plan: Plan
    again: Callable[[], Plan]  # what peft merged once it does not merge again
    tokenizer: Any
    facts: dict[str, Any]
    outtype: str

    def write(self, file: Path) -> None:
        """Write the file."""
        gguf_file.write(file, self.plan.model.config, self.facts, *self.plan.laid(), self.outtype)

    def compared(self, run: Reference, device: str, file: Path, out: Path) -> Report:
        """How the file compares with the run. Raises RunError where it is another."""
        config, share = self.plan.model.config, max(COSTS[self.outtype], TOLERANCE[run.dtype])
        problem = _other(self, file)
        if problem is not None:
            raise Unlike(problem)
        read = Model(path=str(file), dtype=_word(run.dtype))
        model: Any = load_model(read, choose(device).type, said=_as_read(config)).eval()
        problem = _far(model, self)
        if problem is not None:
            raise Unlike(problem)
        report = judged(answers(model, run, out, share))
        if not llama_cpp.is_installed():
            return replace(report, notes=(f"not tried in llama.cpp itself: {llama_cpp.HOW}",))
        del model
        return replace(report, notes=tried(run, self.tokenizer, file, out, share).notes)


def facts_of(plan: Plan, tokenizer: Any, manners: Manners, outtype: str, run: Path) -> dict[str, Any]:
    """All that a file says beside its tensors, by llama.cpp's names.

    Raises RunError for a model or a tokenizer that llama.cpp's layout has no place for here.
    """
    config = plan.model.config
    families.refuse(config, all(spec.name != HEAD for spec in plan.laid()[0]))
    general = {
        "general.type": "model",
        NAME: run.resolve().name,
        "general.file_type": gguf_file.FILE_TYPES[outtype],
        "general.quantization_version": 2,
    }
    vocabulary = gguf_vocab.vocabulary(tokenizer, config.vocab_size, manners)
    return general | families.sizes(config) | vocabulary


def tried(run: Reference, tokenizer: Any, file: Path, out: Path, share: float) -> Report:
    """What llama.cpp makes of a file, and a note of it. Raises RunError where it is not what the run says."""
    longest = max(len(one.prompt) for one in run.probes) + TOKENS
    with llama_cpp.opened(file, longest) as other:
        spoken = judged(
            said_by(lambda prompt: other.greedy(prompt, TOKENS), other.logits, run, out, share + llama_cpp.COST)
        )
        goes_on = sorted(at for at, ends in other.ends(sorted(run.manners.ends)).items() if not ends)
        if goes_on:
            raise Unlike(f"llama.cpp goes on after the tokens {goes_on}, at which the run's answers end")
        begun = gguf_vocab.before(tokenizer)
        odd = [text for text in gguf_vocab.CUTS if other.ids(begun + text) != _ids(tokenizer, begun + text)]
    for text in odd:
        if text in TEXTS:
            raise Unlike(f"llama.cpp reads {text[:40]!r} as other tokens than the run does")
    same = len(gguf_vocab.CUTS) - len(odd)
    note = (
        f"in llama.cpp: {'the same greedy tokens' if spoken.same_greedy_tokens else 'other tokens at ties'}, largest "
        f"logit difference {spoken.largest_logit_difference:.3g} (allowed {spoken.tolerance:.3g}), mean divergence "
        f"{spoken.divergence:.2g} nats; reads {same} of {len(gguf_vocab.CUTS)} texts as the run"
    )
    return replace(spoken, notes=(note,))


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _word(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def _as_read(config: Any) -> Any:
    """The config that transformers gives a model of a file: Mistral's models are Llama's there."""
    from transformers import AutoConfig

    if families.FAMILIES[config.model_type].arch != "llama":
        return config
    said = config.to_dict()
    for name in ("model_type", "architectures", "sliding_window", "layer_types"):
        said.pop(name, None)
    return AutoConfig.for_model("llama", **said)


def _other(written: Written, file: Path) -> str | None:
    """The first thing beside its weights that is another in a file, in words."""
    found = gguf_file.read(file)
    wanted = {name: value for name, value in written.facts.items() if name.startswith("tokenizer.")}
    return gguf_vocab.difference(written.tokenizer, found, wanted) or _sizes(written, found, file)


def _sizes(written: Written, found: dict[str, Any], file: Path) -> str | None:
    """The first size of the model that is another in a file, in words."""
    for name, value in written.facts.items():
        other = found.get(name)
        if not (name.startswith("tokenizer.") or name == NAME or _equal(value, other)):
            return f"its {name} is {other!r}, and the run's is {value!r}"
    config, read = written.plan.model.config, load_config(Model(path=str(file))).get_text_config()
    for name in READ:
        own, other = getattr(config, name), getattr(read, name)
        if not _equal(own, other):
            return f"its {name} is {other!r} as transformers reads it, and the run's is {own!r}"
    return None


def _equal(own: Any, other: Any) -> bool:
    """Whether two values are one, in the float32 that a file has."""
    if isinstance(own, float) and isinstance(other, float):
        return torch.tensor(own).item() == torch.tensor(other).item()
    return bool(own == other)


@torch.no_grad()
def _far(model: Any, written: Written) -> str | None:
    """The first weight that is further from the run's than rounding explains, in words."""
    config = written.plan.model.config
    found = base_of(model).state_dict()
    specs, tensors = written.again().laid()
    names = gguf_file.names(config, specs)
    for spec, value in zip(specs, tensors, strict=True):
        named = names[spec.name]
        kind = gguf_file.kind(named, spec.shape, written.outtype)
        own = families.kept(config, spec.name, value.float())
        other = families.kept(config, spec.name, found[spec.name].cpu().float())
        for wanted, got in zip(own.split(ROWS), other.split(ROWS), strict=True):
            slack = wanted.abs() * torch.finfo(found[spec.name].dtype).eps
            off = (got - wanted).abs() - gguf_file.half_step(wanted, kind) - slack
            if not bool((off <= 0).all()):  # NaN is not
                return f"its tensor {named} is other than the run's by more than {kind} rounds"
    return None
