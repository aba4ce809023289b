"""A model that vLLM answers with in this process: whole answers, and log-probabilities of given tokens.

Prompts go there as tokens that our templates made, and what comes back is made text here: an answer ends, and is
counted, as one of our own engine does. Asked is vLLM's public class `LLM` (docs.vllm.ai, offline inference).
"""

import contextlib
import gc
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import extras
from tunesmith.engine import quantised, stacked
from tunesmith.engine.device import choose
from tunesmith.engine.model import load_config, load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.generate.adapters import more_than_lora
from tunesmith.generate.asked import Sampling
from tunesmith.generate.batch import Request, Stream
from tunesmith.generate.constraint import Forms
from tunesmith.generate.ends import ends_of
from tunesmith.generate.engine import Prompt, Reply, fitted, whole
from tunesmith.generate.engines import Vllm
from tunesmith.generate.load import is_adapter, locate, named_base, positions_of, stored_head
from tunesmith.generate.sampling import Token
from tunesmith.generate.text import Text
from tunesmith.recipe import Dtype, Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
QUIET = {  # what vLLM reads when it is imported: it sends no word of its use, and leaves stdout to results
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
UNREAD = ("rank_pattern", "alpha_pattern", "lora_bias")  # it takes one factor, lora_alpha/r, for every layer
ENDS = ("lm_head", "embed_tokens", "wte", "embed_out")  # a part on them is no product beside a layer
TOGETHER = 256  # sequences that are given to vLLM in one call; it makes batches of them itself
Scored = tuple[float, bool]  # the log-probability of a token, and whether it is the likeliest one there


class ByVllm:
    """A model in vLLM, with its tokenizer here."""

    def __init__(
        self,
        llm: Any,
        tokenizer: "PreTrainedTokenizerBase",
        stops: frozenset[int],
        adapter: Any = None,
        place: str = "",
    ) -> None:
        self.llm, self.tokenizer, self.stops, self.adapter, self.place = llm, tokenizer, stops, adapter, place
        self.forms = Forms(tokenizer, stops)

    @classmethod
    def open(cls, path: str, dtype: Dtype | None, how: Vllm) -> "ByVllm":
        """The model of a run, checkpoint, adapter or model folder, or hub id. An adapter stays beside its base.

        Raises:
            MissingExtra: vLLM is not installed.
            RunError, ModelError: what is named is not there, or nothing that vLLM answers with.
        """
        extras.need("engine=vllm", "vllm")
        place = locate(path)
        rank, base = rank_of(path, place), Model(path=place)
        if rank is not None:
            base = named_base(place)
            base = base.model_copy(update={"path": locate(base.path)})
        own = (Path(place) / "tokenizer_config.json").is_file()
        words = place if own else base.path
        options = {"model": base.path, "revision": base.revision, "tokenizer": words} | _stored(base, dtype)
        if rank is not None:
            options |= {"enable_lora": True, "max_lora_rank": rank, "lora_target_modules": layers_of(Path(place))}
        tokenizer = load_tokenizer(Model(path=words, tokenizer=words) if own else base)
        stops = _stops(place, base, tokenizer)
        llm, adapter = _started(path, options | started(how), place if rank is not None else None)
        return cls(llm, tokenizer, stops, adapter, path)

    @property
    def context_tokens(self) -> int:
        """The most tokens of a prompt with its answer."""
        return int(self.llm.model_config.max_model_len)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how it computes."""
        kind = str(self.llm.model_config.dtype).removeprefix("torch.")
        return (f"answered by vLLM {version()} in {kind}, {self.context_tokens:,} tokens at most",)

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], max_new_tokens: int) -> Prompt:
        """A conversation as tokens, as `Generator.prompt` makes them. Raises the same."""
        return fitted(self.tokenizer, messages, tools, max_new_tokens, self.context_tokens)

    def answers(self, prompts: Sequence[Sequence[int]], each: Sequence[Sampling]) -> Iterator[Reply]:
        """Whole answers to prompts, in their order.

        Raises:
            ModelError: a prompt has no room, or vLLM refuses what is asked.
            RecipeError: answers cannot be held to what `each` says.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        limited = [self._limited(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        asked = []
        for one in limited:
            form, drawn = self.forms.of_sampling(one), drawn_as(one, self.stops)
            held = {} if form is None else {"structured_outputs": StructuredOutputsParams(grammar=form.text)}
            asked.append(SamplingParams(**drawn, **held))
        for prompt, how, found in zip(prompts, limited, self._asked(prompts, asked), strict=True):
            yield self._reply(tuple(prompt), how, found.outputs[0])

    def scores(self, sequences: Sequence[tuple[Sequence[int], int]]) -> Iterator[list[Scored]]:
        """For each of some (tokens, n) what the model says of its n last tokens.

        The last token is asked for as the one that comes next, so that a sequence may be as long as the context. Where
        it is the only one, vLLM computes what prompts begin with in common once.

        Raises:
            ModelError: a sequence has no room.
        """
        from vllm import SamplingParams

        options: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
        asked = [
            SamplingParams(**options, logprob_token_ids=[ids[-1]], prompt_logprobs=1 if n > 1 else None)
            for ids, n in sequences
        ]
        prompts = [ids[:-1] for ids, _ in sequences]
        for (ids, n), found in zip(sequences, self._asked(prompts, asked), strict=True):
            (last,) = found.outputs
            places = range(len(ids) - n, len(ids) - 1)
            scored = [_scored(found.prompt_logprobs[at], ids[at]) for at in places]
            yield [*scored, _scored(last.logprobs[0], ids[-1])]  # beside the token that was drawn, the likeliest one

    def _limited(self, prompt: Sequence[int], sampling: Sampling) -> Sampling:
        """The same with no more tokens than there is room for behind a prompt."""
        room = self.context_tokens - len(prompt)
        if room < 1:
            raise ModelError(
                f"a prompt of {len(prompt)} tokens has no room in the {self.context_tokens} that vLLM was started "
                "with: shorten it, or say vllm.max_model_len"
            )
        return sampling.model_copy(update={"max_new_tokens": min(room, sampling.max_new_tokens)})

    def _asked(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> Iterator[Any]:
        """What vLLM gives for prompts. Raises ModelError where it refuses."""
        for at in range(0, len(prompts), TOGETHER):
            some = [{"prompt_token_ids": list(prompt)} for prompt in prompts[at : at + TOGETHER]]
            how = list(params[at : at + TOGETHER])
            with _refused(self.place):
                found = self.llm.generate(some, how, use_tqdm=False, lora_request=self.adapter)
            yield from found

    def _reply(self, prompt: tuple[int, ...], sampling: Sampling, found: Any) -> Reply:
        """An answer's tokens as our own engine would have ended and written them."""
        text = Text(self.tokenizer, sampling.stop)
        stream = Stream(Request(prompt, sampling), text, self.stops, lambda: None)
        for at, token in enumerate(found.token_ids):
            if stream.finish is None:
                stream.take(Token(token, None if found.logprobs is None else found.logprobs[at][token].logprob))
        if stream.finish is None:
            stream.end("length" if found.finish_reason == "length" else "stop")
        return whole(stream)


def _scored(told: Mapping[int, Any], token: int) -> Scored:
    """A token among those that vLLM tells of a place, the likeliest one with them; where two are, each is."""
    own = told[token].logprob
    return own, own >= max(one.logprob for one in told.values())


def drawn_as(sampling: Sampling, stops: frozenset[int]) -> dict[str, Any]:
    """How an answer is drawn, by the names of vLLM's SamplingParams."""
    same = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return {name: getattr(sampling, name) for name in (*same, "seed")} | {
        "max_tokens": sampling.max_new_tokens,
        "stop": list(sampling.stop),
        "stop_token_ids": sorted(stops),
        "logit_bias": dict(sampling.logit_bias) or None,
        "logprobs": None if sampling.logprobs is None else 0,  # each token's own is what an answer keeps
    }


def started(how: Vllm) -> dict[str, Any]:
    """How vLLM is started, by the names of its class `LLM`, apart from the model."""
    return how.model_dump() | {
        "generation_config": "vllm",  # nothing is drawn by what a model's folder says
        "structured_outputs_config": {"backend": "guidance"},  # it reads the grammars that we write
        "seed": secrets.randbits(31),  # of draws for which none is said; else each start would draw the same
    }


def rank_of(path: str, place: str) -> int | None:
    """The rank to start vLLM with for an adapter; None for a model.

    Raises:
        ModelError: vLLM answers with no such model or adapter as it is.
    """
    if place.endswith(".gguf"):
        raise _refusal(path, "is a .gguf file")
    if not is_adapter(place):
        if Path(place).is_dir() and stored_head(place) is not None:
            raise ModelError(f"{path} says rewards or classes, and no words: see tunesmith score")
        return None
    folder = Path(place)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    more = more_than_lora(folder)
    if more is None and (folder / quantised.CONFIG).is_file():
        more = "was trained with its base held in few bits"
    if more is None and positions_of(folder, named_base(place)) is not None:
        more = "was trained at stretched rotary positions"
    rank = int(config.get("r") or 0)
    if more is None and (odd := [name for name in UNREAD if config.get(name)]):
        more = f"has {odd[0]}, which vLLM does not read"
    if more is None and (odd := [one for one in layers_of(folder) if one in ENDS]):
        more = f"has a part on {odd[0]}"
    if more is None and rank > RANKS[-1]:
        more = f"has rank {rank}, and vLLM takes {RANKS[-1]} at most"
    if more is not None:
        raise _refusal(path, more)
    return next(one for one in RANKS if one >= rank)


def layers_of(adapter: Path) -> list[str]:
    """The names of the layers that an adapter has a part on: of all others, vLLM would keep one for each as well.

    Among them the head, beside which vLLM 0.32 tells no log-probabilities of a prompt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / stacked.WEIGHTS, framework="pt") as file:
            names = [key.partition(".lora_")[0] for key in file.keys() if ".lora_" in key]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{adapter} has no whole {stacked.WEIGHTS}: {str(error).splitlines()[0]}") from error
    return sorted({name.rpartition(".")[2] for name in names})


def version() -> str:
    """The installed version of vLLM, whichever build of it."""
    import vllm

    return str(vllm.__version__)


def _refusal(path: str, what: str) -> ModelError:
    return ModelError(
        f"{path} {what}, and vLLM answers with whole models and plain LoRA: name what tunesmith export {path} OUT "
        "type=merged writes, or leave engine=vllm out"
    )


def _stored(base: Model, dtype: Dtype | None) -> dict[str, Any]:
    """The precision of the weights, as `load` takes it: vLLM itself would round stored float32. Raises ModelError."""
    config = load_config(base)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{base.path} has an encoder and a decoder, and vLLM reads models of one: leave engine=vllm out"
        )
    said = dtype or ("auto" if choose("auto").has_bf16 else "float32")
    stored = config.get_text_config().dtype
    return {"dtype": stored or "auto" if said == "auto" else said}


def _started(path: str, options: Mapping[str, Any], adapter: str | None) -> tuple[Any, Any]:
    """A started vLLM, and an adapter that it has read. Raises ModelError."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    gc.collect()  # one that was asked before gives its memory back when it is forgotten
    with _refused(path):
        llm = LLM(**options)
        request = None if adapter is None else LoRARequest(Path(path).name, 1, adapter)
        if request is not None:
            llm.llm_engine.add_lora(request)
    return llm, request


@contextlib.contextmanager
def _refused(path: str) -> Iterator[None]:
    """A block in which vLLM is asked. Raises ModelError where it raises."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # it passes on what its own processes raised
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(
            f"vLLM cannot answer with {path}: {type(error).__name__}: {line}. See vllm.*, or leave engine=vllm out"
        ) from error


def _stops(place: str, base: Model, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The tokens that end an answer: those that the folder, or else the base, says, and the tokenizer's end."""
    from transformers import GenerationConfig

    for one in dict.fromkeys((place, base.path)):
        with contextlib.suppress(OSError):  # it has none
            found = GenerationConfig.from_pretrained(one, revision=(one == base.path and base.revision) or "main")
            return ends_of(found, tokenizer.eos_token_id)
    return ends_of(load_config(base), tokenizer.eos_token_id)
