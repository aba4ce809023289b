"""lm-eval's harness with a model of ours in it: it writes prompts and counts, and asks for what a subject can say."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows

from tunesmith.errors import RecipeError, RunError, TunesmithError, near
from tunesmith.seams import TaskResult

if TYPE_CHECKING:
    from tunesmith.evaluation.lm_eval import LmEval
    from tunesmith.generate.subject import Subject

USUAL_TOKENS = 2048  # of a context, where no model says its own: as the harness's own models have it
USUAL_ANSWER = 256  # tokens of an answer, where a task says no number: the same
BOOTSTRAPS = 1000  # of numbers that are no means, whose errors have no formula
RIGHT = ("acc", "exact_match")  # numbers of one question that say whether it is answered right
NORMAL_95 = 1.96
AS_IS = "none"  # the harness's name of a filter that does nothing


class Asked(TemplateLM):
    """A subject as the harness asks models."""

    def __init__(self, subject: "Subject", tasks: Mapping[str, Any], greedy: bool) -> None:
        super().__init__()
        self.subject, self.tasks, self.greedy = subject, tasks, greedy
        self.tokenizer = subject.tokenizer
        # the last token of a sequence is only asked for
        most = subject.most_tokens
        self.max_length = USUAL_TOKENS if most is None else most - 1

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """What tells its prompts from others'."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text as tokens: as a text of its own, unless it begins with what begins texts, or as is said."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode([self.prefix_token_id])))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the likeliest one where that is read."""
        found = super().loglikelihood(requests, disable_tqdm=True)
        return [
            (logps.double().sum().item(), self._reads_likeliest(one.task_name) and self._is_likeliest(logps, *asked))
            for one, (logps, asked) in zip(requests, found, strict=True)
        ]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[Any]:
        asked = [((*before, *after)[-self.max_length - 1 :], len(after)) for _, before, after in requests]
        return list(zip(self.subject.logps(asked), asked, strict=True))

    def _reads_likeliest(self, name: str) -> bool:
        """Whether a task reads if an answer is the likeliest one, which multiple choice does not."""
        task = self.tasks.get(name)
        plain = task is not None and task.get_config("process_results") is None
        return not (plain and task is not None and task.OUTPUT_TYPE == "multiple_choice")

    def _is_likeliest(self, logps: Any, tokens: Sequence[int], number: int) -> bool:
        if logps.min().item() > math.log(0.5):  # no other token can be as likely
            return True
        return all(self.subject.likeliest(tokens, number))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """The log-probability of each text, in windows where it is long."""
        windows = [list(self._windows(one.args[0])) for one in requests]
        found = iter(self.subject.logps([window for some in windows for window in some]))
        return [math.fsum(next(found).double().sum().item() for _ in some) for some in windows]

    def _windows(self, text: str) -> Iterator[tuple[Sequence[int], int]]:
        ids, begin = self.tok_encode(text), self.prefix_token_id
        for before, asked in get_rolling_token_windows(ids, begin, self.max_length, context_len=1):
            yield (*before, asked[-1]), len(asked)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The answer to each prompt. Raises RecipeError where it is to be drawn."""
        plans = [self._plan(one) for one in requests]
        found: dict[int, str] = {}
        for most, stop in dict.fromkeys(how for _, how in plans):
            places = [at for at, (_, how) in enumerate(plans) if how == (most, stop)]
            replies = self.subject.replies([plans[at][0] for at in places], most, stop)
            found |= {at: reply.text for at, reply in zip(places, replies, strict=True)}
        return [found[at] for at in range(len(plans))]

    def _plan(self, request: Any) -> tuple[list[int], tuple[int, tuple[str, ...]]]:
        """A prompt as tokens, and the longest answer with what ends it."""
        text, said = request.args
        if said.get("do_sample") and not self.greedy:
            raise RecipeError(
                f"{request.task_name} draws its answers ({json.dumps(said)}), and an evaluation takes the likeliest "
                "tokens: say lm_eval.greedy=true to have it so"
            )
        most = next((int(said[name]) for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if said.get(name)), 0)
        most = most or USUAL_ANSWER
        until = said.get("until") or ()
        stop = tuple(one for one in ((until,) if isinstance(until, str) else until) if one)
        if most >= self.max_length:
            raise RunError(f"{request.task_name} asks for {most} tokens, and the model's context has {self.max_length}")
        return self.tok_encode(text)[-(self.max_length - most) :], (most, stop)


def run(how: "LmEval", subject: "Subject") -> TaskResult:
    """What the harness finds. Raises RecipeError, RunError: see `LmEval.run`."""
    try:
        with redirect_stdout(sys.stderr):  # it prints of what it does, and stdout is for results
            loaded = _loaded(how)
            found = evaluate(
                lm=Asked(subject, loaded["tasks"], how.greedy),
                task_dict=loaded,
                limit=how.num_samples,
                apply_chat_template=how.chat,
                fewshot_as_multiturn=how.chat,
                bootstrap_iters=BOOTSTRAPS,
            )
    except TunesmithError:
        raise
    except (OSError, LookupError, ImportError, ValueError) as error:  # no data, or what the task alone needs
        raise RunError(f"lm-eval cannot run {how.task}: {type(error).__name__}: {error}") from error
    return told(found)


def _loaded(how: "LmEval") -> Any:
    """The tasks that are meant, with as many examples as are asked for. Raises RecipeError where there are none."""
    is_file = Path(how.task).is_file()
    tasks = TaskManager(include_path=how.include_path, include_defaults=False)
    if not is_file and how.task not in tasks.task_index:  # to look through all of its own takes seconds
        tasks = TaskManager(include_path=how.include_path)
        if how.task not in tasks.task_index:
            known = near(how.task, tasks.all_tasks)
            raise RecipeError(f"lm-eval has no task {how.task!r}, and no file is there. {known}")
    loaded = tasks.load([how.task])
    for task in loaded["tasks"].values():
        said = task.get_config("num_fewshot")
        if said != 0 and (how.num_shots is not None or said is None):  # 0 of a task means that it has no examples
            task.set_config(key="num_fewshot", value=how.num_shots or 0)
        task.set_fewshot_seed(seed=how.seed)
    return loaded


def told(found: Mapping[str, Any]) -> TaskResult:
    """What the harness found, as every task tells it."""
    numbers = {name: list(_numbers(one)) for name, one in found["results"].items()}
    groups = [name for name in found.get("groups") or {} if name in numbers]
    whole = groups[:1] or list(numbers)
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in whole:
        for metric, value, error in numbers[name]:
            called = metric if len(whole) == 1 else f"{name} {metric}"
            metrics[called] = value
            if error is not None:
                intervals[called] = (value - NORMAL_95 * error, value + NORMAL_95 * error)
    columns = dict.fromkeys(metric for some in numbers.values() for metric, *_ in some)
    table = [
        {"task": name, **dict.fromkeys(columns, ""), **{m: v for m, v, _ in some}} for name, some in numbers.items()
    ]
    first = next(iter(metrics), "").split(" ")
    better = found.get("higher_is_better", {}).get(whole[0], {}).get(first[-1])
    items = tuple(_item(name, one) for name, some in (found.get("samples") or {}).items() for one in some)
    return TaskResult(
        metrics,
        tuple(table) if len(table) > 1 else (),
        items,
        intervals=intervals,
        lower_is_better=None if better is None else not better,
    )


def _numbers(result: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """The numbers of a task: each with its name and its standard error, where there is one."""
    for key, value in result.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = result.get(f"{metric}_stderr,{filtered}")
        known = isinstance(error, int | float) and math.isfinite(error)
        yield metric if filtered == AS_IS else f"{metric}({filtered})", float(value), error if known else None


def _item(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """One question, and what was answered."""
    values = {name: sample[name] for name in sample["metrics"]}
    right = next((bool(values[name]) for name in RIGHT if isinstance(values.get(name), int | float)), None)
    item = {
        "task": task,
        "number": sample["doc_id"] + 1,
        "filter": sample["filter"],
        "expected": sample["target"],
        "answers": sample["filtered_resps"],
        **values,
        **({} if right is None else {"right": right}),
    }
    return json.loads(json.dumps(item, default=str, ensure_ascii=False))
