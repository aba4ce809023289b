"""What a run ends with: the picture, the record's last words, and what the user sees. All from its folder."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunesmith import record
from tunesmith.adapters._prompts import TYPES
from tunesmith.engine.metrics import MetricsFile
from tunesmith.recipe_text import recipe_names

ASSUMED = {"0": "LABEL_0", "1": "LABEL_1"}  # which transformers leaves out of a config
VALUED = ("ForSequenceClassification", "ForTokenClassification")  # ends of the names of models that say classes


def finish(folder: Path, say: Callable[[str], None], peak_memory_bytes: int | None = None) -> dict[str, Any]:
    """Draw, sum up and record a run whose `final/` is written; a second call does the same again.

    The most memory that a process of it held is known to the one that trained.
    """
    from tunesmith.engine.confusion import confusion_picture
    from tunesmith.engine.plot import loss_picture

    lines = MetricsFile(folder / "metrics.jsonl").read()
    loss_picture(lines, folder / "loss.png")
    trained = [line for line in lines if "loss" in line]
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    last = trained[-1]
    summary: dict[str, Any] = {"folder": str(folder), "steps": last["step"]}
    summary |= {name: last[name] for name in ("loss", "tokens", "trained_tokens", "seconds")}
    if held_out:
        kept = _kept(folder, lines)
        summary |= {"eval_loss_before": held_out[0], "eval_loss_after": kept["eval_loss"], "kept_step": kept["step"]}
        summary["evaluation"] = {
            name: one for name, one in kept.items() if isinstance(one, float) and name[:5] == "eval_"
        }
    if held_out and "eval_confusion" in kept:
        confusion_picture(kept["eval_confusion"], _classes(folder), folder / "confusion.png")
    held = {} if peak_memory_bytes is None else {"peak_memory_bytes": peak_memory_bytes}
    record.write(folder, record.read(folder) | {"status": "finished", "summary": summary} | held)
    for line in closing_words(folder, summary, record.read(folder)["recipe"]["objective"]["type"]):
        say(line)
    return summary


def _kept(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation of the weights in `final/`: the last, or the lowest of training where the best are kept."""
    evaluations = [line for line in lines if "eval_loss" in line]
    best = record.read(folder)["recipe"]["eval"]["load_best_model_at_end"]
    return min(evaluations[1:] or evaluations, key=lambda line: line["eval_loss"]) if best else evaluations[-1]


def _classes(folder: Path) -> list[str]:
    """The names of the classes that a run's model says, in their order; [] where it says words."""
    file = folder / "final" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    says_values = any(kind.endswith(VALUED) for kind in config.get("architectures") or ())
    return list(config.get("id2label", ASSUMED).values()) if says_values else []


def closing_words(folder: Path, summary: Mapping[str, Any], objective: str) -> list[str]:
    """Answers and held-out loss before and after, the picture, and what to try next with the objective of that name."""
    words = []
    samples = MetricsFile(folder / "samples.jsonl").read()
    for question in dict.fromkeys(sample["prompt"] for sample in samples):
        answers = {sample["step"]: _one_line(sample["answer"]) for sample in samples if sample["prompt"] == question}
        after = answers[summary["kept_step"]]
        words += ["", f"Q      {_one_line(question)}", f"before {answers[0]}", f"after  {after}"]
    words.append("")
    if "eval_loss_before" in summary:
        words.append(f"held-out loss: {summary['eval_loss_before']:.3f} -> {summary['eval_loss_after']:.3f}")
        if summary["kept_step"] < summary["steps"]:
            words.append(
                f"kept: the weights of step {summary['kept_step']}, whose held-out loss is the lowest of training"
            )
        if summary["eval_loss_after"] > summary["eval_loss_before"]:
            words.append("the held-out loss rose: the model was better on these rows before it was trained")
    picture = folder / "confusion.png"
    run = shlex.quote(str(folder))
    words += [
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s",
        f"loss picture: {folder / 'loss.png'}",
        *([f"confusion picture: {picture}"] if picture.is_file() else []),
        "",
        "Next:",
        f"  tunesmith score {run} FILE" if _classes(folder) else f"  tunesmith chat {run}",
        f"  {_export(folder)}",
        _begin_another(objective),
    ]
    return words


def _export(folder: Path) -> str:
    """The command that makes of a run what is served: one model, or the adapter where it is in no weight of a model."""
    file = folder / "final" / "adapter_config.json"
    kind = json.loads(file.read_text(encoding="utf-8"))["peft_type"] if file.is_file() else None
    target = "adapter" if kind in TYPES else "merged"
    return f"tunesmith export {shlex.quote(str(folder))} {shlex.quote(f'{folder}-{target}')} type={target}"


def _begin_another(objective: str) -> str:
    """How to get the shipped recipe of an objective, or see all of them where it has none."""
    recipe = next((name for name in (f"{objective}-lora", objective) if name in recipe_names()), None)
    return f"  tunesmith recipes copy {recipe} my-recipe.yaml" if recipe else "  tunesmith recipes"


def _one_line(text: str) -> str:
    """A model's answer without line ends or what could steer a terminal."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))


def interrupted(folder: Path, step: int, number: int) -> dict[str, Any]:
    """Record that a signal ended the run at a step."""
    summary = {"folder": str(folder), "steps": step}
    record.write(folder, record.read(folder) | {"status": f"interrupted by signal {number}"})
    return summary
