"""The one trainer. It knows nothing of any method: an objective sums, and the trainer divides.

transformers' Trainer has the loop, devices, mixed precision and distribution. What is overridden here, and why:

- `create_optimizer`: the recipe's optimizer component builds it.
- `_get_grad_norm`: of gradients that are dropped in the backward pass.
- `_defer_fsdp_gradient_reduction`: gradients of shared weights are shared out after every micro-batch, since whole ones
  would be kept between two.
- `_get_num_items_in_batch`: units (tokens, pairs) of the whole optimizer step, over micro-batches and ranks; and what
  each micro-batch has of a loss that compares samples.
- `compute_loss`: the objective's sum over those units.
- `evaluate`: a sum divided once, so that it does not depend on the batch size; and numbers made of counts.
- `log`: the loss over all units since the last line, token counts, and a stop when it is not finite.
- `_save_checkpoint`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler`, `_load_rng_state`, `_load_scaler`:
  checkpoints that are atomic, verified and free of pickle.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import transformers

from tunesmith.data.batch import PackedRows, join
from tunesmith.data.stream import StreamedRows, place_in
from tunesmith.engine import checkpoint as checkpoints
from tunesmith.engine import companions, context, joint, ranks, shared_out, shares, tensor
from tunesmith.engine.averaged import Averaged
from tunesmith.engine.callbacks import StopOnSignal, spent
from tunesmith.engine.device import peak_memory_bytes
from tunesmith.engine.joint import Share
from tunesmith.engine.metrics import MetricsFile
from tunesmith.engine.reference import Reference
from tunesmith.engine.release import ReleasedGradients
from tunesmith.engine.router import Routed, balanced
from tunesmith.engine.saving import Saving, Writer
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe import Recipe
from tunesmith.seams import Companion
from tunesmith.types import Batch, LossSum, Scores

Pairs = dict[str, tuple[Any, Any]]  # a sum and a count by name
Metric = Callable[[Scores, Batch], tuple[Any, Any]]  # what a user's own metric gives: a sum and a count

SMALLEST = 1e-9  # units of a step, where what is weighed with 0 is all that it has
TRAINED = ("loss", "learning_rate", "grad_norm")  # of transformers' own logs
RESERVED = {*TRAINED, "step", "epoch", "tokens", "trained_tokens", "seconds"}


class Trainer(transformers.Trainer):
    """Trains a model on packed rows with an objective.

    `metrics` are the user's own, as (sum, count) of a batch by name; they are reported beside the objective's.
    """

    loss_is_scaled_for_ga = True  # the sum is divided by the count of the whole step

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        scorer: Callable[..., Scores],
        args: transformers.TrainingArguments,
        rows: PackedRows | StreamedRows,
        held_out: PackedRows | None,
        reference: Reference | None,
        callbacks: Sequence[transformers.TrainerCallback],
        metrics: Mapping[str, Metric],
        tokenizer: transformers.PreTrainedTokenizerBase,
    ) -> None:
        taken = sorted(metrics.keys() & RESERVED)
        if taken:
            raise RecipeError(f"metrics: {', '.join(taken)} is a name of the run's own lines: choose another")
        self.companions: tuple[Companion, ...] = ()  # made with the optimizer
        self.recipe, self.metrics, self.tokenizer = recipe, metrics, tokenizer
        self.scorer = scorer
        self.each = context.size(recipe)  # processes one after the other that have the same rows
        self.router = recipe.train.router_aux_loss_coef
        if self.router is not None:
            self.scorer = Routed.of(scorer, model, self.router)
        self.reference = reference
        self.compares = recipe.objective.compares_samples()
        self.likelihood, self.reads = recipe.objective.is_likelihood(), recipe.objective.reads()
        self.shares: list[Share] = []  # of the step in hand, where its loss compares samples
        self.sums: dict[str, list[float]] = {}  # since the last line of metrics: name to sum and count
        self.tokens = self.trained_tokens = self.in_hand_tokens = 0
        self.seconds_before = 0.0  # of the runs that this one continues
        self.started = time.monotonic()
        self.saving = Saving()
        self.metrics_file = MetricsFile(Path(str(args.output_dir)) / "metrics.jsonl")
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=held_out,
            data_collator=join,
            callbacks=list(callbacks),
        )
        self.is_distributed_loading_by_transformers = shared_out.is_shared(model)  # wrapped no more
        self.remove_callback(transformers.PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's optimizer."""
        trained: Any = self.model if model is None else model
        shared_out.rest(trained)
        adapter = self.recipe.adapter
        self.optimizer = self.recipe.optimizer.build(trained, adapter.factors(trained))
        tensor.step_apart(self.optimizer)
        self.released = ReleasedGradients(self.optimizer) if self.recipe.train.release_gradients else None
        self.accompany(self.optimizer)
        return self.optimizer

    def accompany(self, optimizer: torch.optim.Optimizer) -> None:
        """Make what goes with the steps of an optimizer."""
        trained, num_steps, decay = self.model, int(self.args.max_steps), self.recipe.train.ema_decay
        average = None if decay is None else Averaged(trained, decay)  # of all that is trained, whoever's turn it is
        found = (
            self.recipe.adapter.companion(trained, num_steps),
            self.recipe.optimizer.companion(optimizer, trained, num_steps),
            average,
        )
        self.companions = tuple(one for one in found if one is not None)
        if self.companions:
            self.add_callback(companions.Accompanied(self.companions))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.released.take_norm() if self.released else super()._get_grad_norm(model, grad_norm)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        return nullcontext()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        objective = self.recipe.objective
        self.shares = []
        if self.compares and (len(batch_samples) > 1 or self.accelerator.num_processes > 1):
            with torch.no_grad(), joint.same_chance(device):
                self.shares = self._shares_of([Batch(**one) for one in batch_samples], self.model_wrapped)
        batches = (Batch(**one) for one in batch_samples)
        counts = [torch.as_tensor(0 if one.blank else objective.count(one), dtype=torch.float32) for one in batches]
        return self.accelerator.reduce(torch.stack(counts).sum().to(device), "sum")

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The summed loss of a micro-batch over the units of the step; times the ranks, which average gradients."""
        batch = Batch(**inputs)
        summed, pairs, scores = self.measured(model, batch, self.shares.pop(0) if self.shares else None)
        if not batch.blank:
            learned = batch.weight[0] != 0
            if self.recipe.objective.mismatched and batch.branch is not None:
                learned = learned & (batch.branch[batch.seq[0]] == 0)
            pairs |= {"tokens": (batch.input_ids.numel(), 1), "trained_tokens": (learned.sum(), 1)}
        for name, (total, count) in pairs.items():
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = [before[0] + total, before[1] + count]
        units = num_items_in_batch.clamp(min=SMALLEST) / self.accelerator.num_processes
        loss = summed.total * 0 if batch.blank else summed.total / units
        return (loss, scores) if return_outputs else loss

    def measured(self, model: Any, batch: Batch, share: Share | None = None) -> tuple[LossSum, Pairs, Scores]:
        """The objective's sum on a batch, or its share in that of its step; the loss and metrics; and the scores."""
        objective = self.recipe.objective
        self.in_hand_tokens = batch.input_ids.numel()
        with self.accelerator.autocast():
            scores = self.scorer(model, batch, likelihood=self.likelihood, reads=self.reads)
            if share is None and self.reference is not None:
                batch = self._referred(model, batch)
            summed = objective.loss(scores, batch) if share is None else share.loss(scores)
        if batch.blank:
            return LossSum(summed.total), {"loss": (0.0, 0.0)}, scores
        if self.router is not None:
            summed = balanced(summed, scores, objective.count(batch), self.router)
        pairs: Pairs = {"loss": (summed.total, objective.count(batch)), **summed.metrics}
        pairs |= {name: metric(scores, batch) for name, metric in self.metrics.items()}
        tensors = {name: map(torch.as_tensor, pair) for name, pair in pairs.items()}
        return summed, {name: (total.detach(), count.detach()) for name, (total, count) in tensors.items()}, scores

    def _referred(self, model: Any, batch: Batch) -> Batch:
        """A batch with the reference's log-probabilities, where they are made in every step."""
        if self.reference is None:
            return batch
        return replace(batch, reference=self.reference.logps(model, batch, self.accelerator.unwrap_model(model)))

    def _shares_of(self, batches: Sequence[Batch], model: Any) -> list[Share]:
        """What each of some batches has of the loss of all of them."""
        with self.accelerator.autocast():
            logps = [self.scorer(model, batch).logps for batch in batches]
            batches = [self._referred(model, batch) for batch in batches]
        return joint.shares(self.recipe.objective, batches, logps, self.accelerator, self.each)

    def _measured_each(self, model: Any, batches: Iterable[Batch]) -> Iterator[tuple[LossSum, Pairs]]:
        """The sum and the metrics of each of some batches; where the loss compares samples, its share in all."""
        if self.compares:
            batches = list(batches)
            shares: Iterable[Share | None] = self._shares_of(batches, model)
        else:
            shares = repeat(None)
        for batch, share in zip(batches, shares, strict=False):
            yield self.measured(model, batch, share)[:2]

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss and the metrics over the whole held-out set."""
        sums: dict[str, list[Any]] = {}
        counts: dict[str, torch.Tensor] = {}
        model: Any = self.model
        model.eval()
        loader = self.get_eval_dataloader(eval_dataset)
        prepared: Iterator[dict[str, Any]] = map(self._prepare_inputs, loader)
        with companions.settled(self.companions):
            for summed, pairs in self._measured_each(model, (Batch(**one) for one in prepared)):
                for name, pair in pairs.items():
                    old = sums.setdefault(name, [0.0, 0.0])
                    for place in (0, 1):
                        one_sum = torch.as_tensor(pair[place], dtype=torch.float64, device=self.args.device)
                        old[place] = old[place] + one_sum
                for name, one in summed.counts.items():
                    counts[name] = counts.get(name, 0) + one.cpu()
        model.train()
        shared_out.rest(model)
        found: dict[str, Any] = _ratios(ranks.added(sums, self.each))
        found |= self.recipe.objective.measures(ranks.counted(counts, self.each))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        with companions.settled(self.companions):  # questions are answered with the same weights
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            ranks.wait()  # for the one that answers
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of metrics, and hand it to the callbacks.

        Raises:
            RunError: the loss is not finite.
        """
        if "train_runtime" in logs:  # transformers' closing summary: run.py writes its own
            return
        step = self.state.global_step
        if "loss" in logs:
            logs = {name: value for name, value in logs.items() if name in TRAINED} | self._drained()
            self._refuse_infinite("loss", logs["loss"])
            if self.accelerator.scaler is None:  # which passes over steps whose gradients are too large for float16
                self._refuse_infinite("grad_norm", logs.get("grad_norm", 0.0))
            logs |= {
                "tokens": self.tokens,
                "trained_tokens": self.trained_tokens,
                "seconds": round(self.seconds(), 3),
            }
        if "eval_loss" in logs:
            self._refuse_infinite("eval_loss", logs["eval_loss"])
        if self.is_world_process_zero():
            self.metrics_file.append({"step": step, **logs})
        logs = {name: value for name, value in logs.items() if not isinstance(value, list)}  # a table is for the file
        if "loss" in logs:
            logs |= {"memory_gb": peak_memory_bytes(self.args.device.type) / 1e9}
        super().log(logs, start_time)

    def _refuse_infinite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"the {name} is {value} at step {self.state.global_step}: lower optimizer.learning_rate, or compute in "
                "float32 (model.dtype). Checkpoints from before are kept"
            )

    def log_the_rest(self) -> None:
        """Write the line of the steps since the last one, where training ended between two."""
        if any(ranks.everyones("loss" in self.sums)):  # behind a checkpoint rank 0 has those of all
            self.log({"loss": 0.0})  # the sums have the number

    def was_over(self, checkpoint: Path) -> bool:
        """Whether training had ended at a checkpoint (all steps, an early stop); if so, take it up as it is."""
        state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        patience = self.recipe.eval.early_stopping_patience
        over = checkpoints.read_state(checkpoint)["counters"]["over"] or spent(state, patience)
        if over:
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
            self.create_optimizer_and_scheduler(int(self.args.max_steps))
            self._load_optimizer_and_scheduler(str(checkpoint))
        return over

    def _drained(self) -> dict[str, float]:
        """The means since the last line; the token counts join the totals."""
        sums, self.sums = ranks.added(self.sums, self.each), {}
        for name in ("tokens", "trained_tokens"):
            total, _ = sums.pop(name)
            setattr(self, name, getattr(self, name) + int(total))
        return _ratios(sums)

    def interrupted(self) -> bool:
        """Whether a signal asked for the end."""
        watchers = [one for one in self.callback_handler.callbacks if isinstance(one, StopOnSignal)]
        return any(one.received is not None for one in watchers)

    def place(self) -> str:
        """Where the run is: the step that is being made, and the tokens it works on."""
        evaluating = "" if self.model is None or self.model.training else " (evaluation)"
        return f"at step {self.state.global_step + 1}{evaluating} in a pass of {self.in_hand_tokens:,} tokens"

    def seconds(self) -> float:
        """Time spent training, the runs that this one continues included."""
        return self.seconds_before + time.monotonic() - self.started

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        sums, random = ranks.added(self.sums, self.each), ranks.everyones(checkpoints.random_state())
        self._refuse_infinite("loss", sums["loss"][0] if "loss" in sums else 0.0)
        run, train = Path(str(self.args.output_dir)), self.recipe.train
        trained = self.state.global_step * train.per_device_train_batch_size * train.gradient_accumulation_steps
        counters = {
            "over": self.control.should_training_stop and not self.interrupted(),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "seconds": self.seconds(),
            "sums": sums,
            "stream": place_in(self.train_dataset, run, trained),
        }
        final = checkpoints.place(run, self.state.global_step)

        def beside(folder: Path) -> None:
            self.write_weights(self.accelerator.unwrap_model(model), folder)
            self.tokenizer.save_pretrained(folder)
            companions.save(self.companions, folder)
            scaler = self.accelerator.scaler
            checkpoints.save_state(folder, self.state_of_optimizer(), self.lr_scheduler, scaler, counters, random)
            self.state.save_to_json(str(folder / "trainer_state.json"))

        prune = partial(checkpoints.prune, run, train.save_total_limit, self.state.best_global_step)
        if self.each_saves(model):
            self.saving.begin(final, partial(self.staged, model), beside, prune)
            return
        if self.args.should_save:
            with checkpoints.atomic_folder(final) as folder:
                beside(folder)
            prune()
        ranks.wait()  # here, where it may take long: a step's messages wait ten minutes

    def each_saves(self, model: Any) -> bool:
        """Whether every process has something to write into a checkpoint."""
        return shared_out.is_shared(model)

    def staged(self, model: Any) -> Writer:
        """What this process has parts of, copied to the host's memory, by what writes it into a folder."""
        assert self.optimizer is not None, "made before the first step"
        return partial(shares.write, shares.staged(model, self.optimizer))

    def write_weights(self, model: Any, folder: Path) -> None:
        """Write weights that lie whole; of those that all processes write parts of, what model they are of."""
        write = shares.describe if shares.are_in(model) else checkpoints.save_weights
        write(model, folder)

    def state_of_optimizer(self) -> dict[str, Any]:
        """What of the optimizer lies whole on this process."""
        assert self.optimizer is not None, "made before the first step"
        return self.optimizer.state_dict()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoints.load_weights(self.model if model is None else model, folder)
        counters = checkpoints.read_state(folder)["counters"]
        self.tokens, self.trained_tokens = counters["tokens"], counters["trained_tokens"]
        self.seconds_before, self.started = counters["seconds"], time.monotonic()
        self.sums = counters["sums"] if ranks.own() == 0 else {}  # of all ranks

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None, "made before a state is loaded"
            checkpoints.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            companions.load(self.companions, Path(checkpoint))

    def take_up_companions(self, checkpoint: Path) -> None:
        """Bring what goes with the steps to where it was at a checkpoint whose weights are taken up."""
        if self.companions:
            self._load_optimizer_and_scheduler(str(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random(Path(checkpoint), ranks.own())

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoints.read_state(Path(checkpoint))["scaler"])


def _ratios(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Sums over counts. A metric of nothing has none; a loss of nothing is 0."""
    return {name: total / count if count else 0.0 for name, (total, count) in sums.items() if count or name == "loss"}
