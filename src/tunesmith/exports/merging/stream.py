"""Merging tensor by tensor: one is read from the base model's files, given its update by peft, and written.

peft's own code merges: its layers stand around the layers of a model whose weights take no memory, and each gets its
weight, in float32, for the moment of its merge. So whatever peft can merge is merged so.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.engine import quantised, stacked
from tunesmith.engine.conversions import Conversions, Part
from tunesmith.engine.model import base_of, load_config, resolve_path
from tunesmith.exports.merging import tensors
from tunesmith.exports.merging.tensors import Spec, Stored
from tunesmith.generate.load import is_adapter, named_base, positions_of, stored_head, trained_rows
from tunesmith.recipe import Dtype, Model

Values = dict[str, torch.Tensor]  # of a module's parameters, by their names in it


@dataclass(frozen=True)
class Source:
    """The tensors that a weight of the base model is stored as: itself, or parts with the patterns that they fit."""

    owner: str  # the weight; of two that are one, that which is stored
    parts: tuple[tuple[Stored, str | None], ...]

    @property
    def place(self) -> tuple[Path, int]:
        """Where it begins."""
        one = self.parts[0][0]
        return one.file, one.start


@dataclass(frozen=True)
class Job:
    """Tensors that are made together, and how."""

    specs: tuple[Spec, ...]
    make: Callable[[], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Plan:
    """The merge of a run's adapters into the files of its base model, or the copy of a run's own weights."""

    model: Any  # without weights
    dtype: torch.dtype
    conversions: Conversions
    sources: dict[str, Source]  # of every weight of the model
    shared: dict[str, tuple[str, ...]]  # weights that are one, by the name of each
    num_adapters: int
    modules: dict[str, list[Any]]  # what peft has around a module, in the order of merging
    made: dict[str, Values] = field(default_factory=dict)  # merged before it is their turn

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        return sorted({one.file for source in self.sources.values() for one, _ in source.parts})

    @functools.cached_property
    def _weights(self) -> Values:
        return self.model.state_dict()

    def laid(self) -> tuple[list[Spec], Iterator[torch.Tensor]]:
        """What the tensors will be, and they themselves, each made when it is its turn."""
        jobs = self._jobs()
        return [spec for job in jobs for spec in job.specs], _made(jobs)

    def write(self, folder: Path, limit: int) -> dict[str, str]:
        """Write config and weights. Returns the SHA-256 of each file of weights, as it was written."""
        digests = tensors.write(folder, *self.laid(), limit)
        config = self.model.config
        config.architectures, config.dtype = [type(self.model).__name__], self.dtype
        config.save_pretrained(folder)
        return digests

    def _jobs(self) -> list[Job]:
        """What is to be made, in the order of the files that are read."""
        touched = {f"{name}.{own}": name for name in self.modules for own in self._parameters(name)}
        left_out = self._left_out(touched)
        jobs, done = [], set()
        for name in sorted(self.sources, key=lambda name: (self.sources[name].place, name)):
            module = touched.get(name)
            if name in left_out or name in done:
                continue
            if module is None:
                jobs += self._copies(name)
                continue
            names = [f"{module}.{own}" for own in self._parameters(module)]
            done.update(names)
            kept = tuple(one for one in names if one not in left_out)
            hollow = self.conversions.parted({one: self.model.get_parameter(one) for one in kept})
            specs = tuple(Spec(one, self.dtype, tuple(value.shape)) for one, value in hollow.items())
            jobs.append(Job(specs, functools.partial(self._merged, module, kept, [spec.name for spec in specs])))
        return jobs

    def _copies(self, name: str) -> list[Job]:
        """A weight that is not updated, by the names that it is stored by."""
        source, jobs = self.sources[name], []
        for one, _ in source.parts:
            word = one.spec.name if source.owner == name else name
            kind = self.dtype if one.spec.dtype.is_floating_point else one.spec.dtype
            make = functools.partial(self._copied, one, kind)
            jobs.append(Job((Spec(word, kind, self._shape(name, one)),), make))
        return jobs

    def _shape(self, name: str, one: Stored) -> tuple[int, ...]:
        return one.spec.shape if self.sources[name].parts[0][1] else tuple(self._weights[name].shape)

    def _copied(self, one: Stored, kind: torch.dtype) -> list[torch.Tensor]:
        return [one.read().to(kind)]

    def _left_out(self, touched: dict[str, str]) -> set[str]:
        """Shared weights that another name writes. Where updates made them others, all are written, and shared no more.

        Which they are can only be seen by merging them.
        """
        left_out: set[str] = set()
        for group in set(self.shared.values()):
            updated = [name for name in group if name in touched]
            if not updated or (len(updated) == len(group) and self._equal(updated, touched)):
                left_out |= {*group} - {self.sources[group[0]].owner}
            else:
                self.model.config.get_text_config().tie_word_embeddings = False
                self.model.config.tie_word_embeddings = False
        return left_out

    def _equal(self, names: Sequence[str], touched: dict[str, str]) -> bool:
        for name in names:
            module = touched[name]
            if module not in self.made:
                self.made[module] = self._values(module)
        first, *others = (self.made[touched[name]][name.removeprefix(f"{touched[name]}.")] for name in names)
        return all(torch.equal(first, other) for other in others)

    def _parameters(self, module: str) -> list[str]:
        return [own for own, _ in self.model.get_submodule(module).named_parameters()]

    def read(self, name: str) -> torch.Tensor:
        """A weight of the base model, with rows of zeros for the tokens that it lacks."""
        parts = [(one.spec.name, pattern, one.read()) for one, pattern in self.sources[name].parts]
        if parts[0][1] is not None:
            return self.conversions.joined(name, [Part(stored, str(fits), value) for stored, fits, value in parts])
        value, rows = parts[0][2], self._weights[name].shape[:1]
        if value.shape[:1] == rows:
            return value
        return torch.cat([value, value.new_zeros(rows[0] - len(value), *value.shape[1:])])

    def _merged(self, module: str, names: Sequence[str], stored: Sequence[str]) -> list[torch.Tensor]:
        values = self.made.pop(module) if module in self.made else self._values(module)
        parted = self.conversions.parted({name: values[name.removeprefix(f"{module}.")] for name in names})
        return [parted[name] for name in stored]

    def _values(self, module: str) -> Values:
        """The weights of a module with all of its updates."""
        values = {own: self.read(f"{module}.{own}") for own in self._parameters(module)}
        for wrapper in self.modules[module]:
            values = {own: one.to(self.dtype) for own, one in _updated(wrapper, values).items()}
        return values


def _made(jobs: Sequence[Job]) -> Iterator[torch.Tensor]:
    for job in jobs:
        yield from job.make()


@torch.no_grad()
def _updated(wrapper: Any, values: Values) -> Values:
    """What peft merges into weights: in float32, where numbers are added; what is trained whole replaces them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adds = isinstance(wrapper, BaseTunerLayer)
    inner = wrapper.get_base_layer() if adds else wrapper.original_module
    for own, value in values.items():
        _put(inner, own, value.float() if adds else value)
    if adds:
        one = wrapper
        while isinstance(one, BaseTunerLayer):  # of several parameters of a module each has its own
            one.merge()
            one = one.base_layer
        done = wrapper.get_base_layer()  # which of a norm is another than before
    else:
        done = wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    found = {own: parameter.data for own, parameter in done.named_parameters()}
    for own, value in values.items():
        _put(inner, own, _nothing(value.shape))
    return found


def _put(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(module.get_submodule(owner), own, torch.nn.Parameter(value, requires_grad=False))


def _nothing(shape: torch.Size) -> torch.Tensor:
    """Zeros of a shape, which take the memory of one."""
    return torch.zeros(()).expand(shape)


def plan(place: str, dtype: Dtype | None, more: Sequence[str] = ()) -> Plan | None:
    """How a run's weights, with those of more adapters after them, are written tensor by tensor.

    None where its weights are not in its files as such: they are packed, or have a head that the files lack.
    """
    base = named_base(place) if is_adapter(place) else Model(path=place)
    files = _files(base)
    if not files or stored_head(place) is not None:
        return None
    chain = _chain(place, more)
    config = load_config(base, positions_of(Path(place), base) if chain else None)
    if quantised.stored_method(config) is not None or any(_trains_biases(one) for one in chain):
        return None
    text, rows = config.get_text_config(), [row + 1 for one in chain for row in trained_rows(one)]
    text.vocab_size = max([text.vocab_size, *rows])
    found, kept = tensors.stored(files), config.dtype
    model = _hollow(config)  # which sets a dtype of its own
    conversions = Conversions(model)
    sources, shared = _sources(model, found, conversions)
    if sources is None:
        return None
    modules: dict[str, list[Any]] = {}
    for one in chain:
        for name, wrapper in _wrapped(base_of(stacked.put_alone(_hollow(config), one))):
            modules.setdefault(name, []).append(wrapper)
    if dtype not in (None, "auto"):
        kept = getattr(torch, str(dtype))
    elif kept is None:
        kept = next((one.spec.dtype for one in found.values() if one.spec.dtype.is_floating_point), torch.float32)
    return Plan(model, kept, conversions, sources, shared, len(chain), modules)


def _files(base: Model) -> list[Path]:
    """The safetensors files of a model in a folder or in the hub's cache, where it was loaded from; [] for none."""
    from huggingface_hub import try_to_load_from_cache

    place = resolve_path(base.path)
    if not Path(place).exists():
        names = (tensors.INDEX, tensors.WEIGHTS)
        cached = [try_to_load_from_cache(place, name, revision=base.revision) for name in names]
        place = next((str(Path(path).parent) for path in cached if isinstance(path, str)), place)
    return tensors.files_of(Path(place)) if Path(place).is_dir() else []


def _chain(place: str, more: Sequence[str]) -> list[Path]:
    """The adapters that are merged one after the other: those below the run's own, that, and more."""
    if not is_adapter(place):
        return [stacked.place_of(one) for one in more]
    below = [stacked.place_of(one["folder"]) for one in stacked.beneath(Path(place))]
    return [*below, Path(place), *(stacked.place_of(one) for one in more)]


def _trains_biases(adapter: Path) -> bool:
    return getattr(stacked.config_of(adapter), "bias", "none") != "none"


def _hollow(config: Any) -> Any:
    """A model whose weights take no memory: each is one number, seen everywhere."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.float32)
    made: dict[int, torch.nn.Parameter] = {}
    for name, parameter in [*model.named_parameters(remove_duplicate=False)]:
        owner, _, own = name.rpartition(".")
        if id(parameter) not in made:
            made[id(parameter)] = torch.nn.Parameter(_nothing(parameter.shape), requires_grad=False)
        setattr(model.get_submodule(owner), own, made[id(parameter)])
    return model.eval()


def _sources(
    model: Any, found: dict[str, Stored], conversions: Conversions
) -> tuple[dict[str, Source] | None, dict[str, tuple[str, ...]]]:
    """Where each weight of a model lies, None where one cannot be found so; and those that are one."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    shared = {name: tuple(group) for group in groups.values() if len(group) > 1 for name in group}
    parts: dict[str, list[tuple[Stored, str | None]]] = {}
    for stored, one in found.items():
        name, pattern = conversions.named(stored)
        parts.setdefault(name, []).append((one, pattern))
    sources = {}
    for name, value in model.state_dict().items():
        owner = next((one for one in (name, *shared.get(name, ())) if one in parts), None)
        if owner is None:
            return None, shared
        first, pattern = parts[owner][0]
        if pattern is None and not _fits(first.spec.shape, tuple(value.shape)):
            return None, shared
        sources[name] = Source(owner, tuple(parts[owner]))
    return sources, shared


def _fits(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a stored weight has a shape, or fewer rows of it."""
    return stored == wanted or (len(stored) == 2 and stored[1:] == wanted[1:] and stored[0] < wanted[0])


def _wrapped(base: Any) -> Iterator[tuple[str, Any]]:
    """What peft has around modules of a model, by their names."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inside: set[Any] = set()
    for name, module in base.named_modules():
        if module not in inside and isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside.update(module.modules())
            yield name, module
