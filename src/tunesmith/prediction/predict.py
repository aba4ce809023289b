"""A data set through a model: a line for each row, as it is answered, so that a killed program goes on."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import atomic, record
from tunesmith.component import spell
from tunesmith.errors import RunError
from tunesmith.generate.asked import Sampling
from tunesmith.generate.endpoint import is_address
from tunesmith.generate.engines import BESIDE, versions
from tunesmith.generate.files import files_of
from tunesmith.generate.load import locate, other_of
from tunesmith.journal import Journal
from tunesmith.prediction import answering, measures, report
from tunesmith.prediction import rows as read
from tunesmith.prediction.answering import Answering
from tunesmith.prediction.options import Prediction
from tunesmith.prediction.rows import Asked, Rows
from tunesmith.recipe_data import Source

SETTINGS, OURS, THEIRS = "settings.json", "predictions.jsonl", "against.jsonl"
CONTENT = "content of the rows"
MODELS = ("model", "against")
TOGETHER = 64  # rows that are in work at a time; more of them wait in the file
GO_ON = "Make room, then run the same command again: it goes on"


def predict(
    path: str, file: str | None, out: Path, how: Prediction, against: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Answer the rows of a file, or those that a run held out, and measure the answers. Returns what results.json has.

    In `out`, `predictions.jsonl` has a line for each row (`where`, `prompt`, `prediction`, `label`, `finish`, `tokens`,
    `measures`, and `logprobs` of its tokens where they are asked for), `against.jsonl` the same of the model that is
    compared with, and `results.json` and `results.md` the measures of all. The same command goes on where it was
    stopped.

    Raises:
        RunError: `out` holds something else, or what was begun with another model, file or options.
        RunError, ModelError, DataError, TemplateError: as the model's loading and the file's reading.
        RecipeError, MissingExtra: vLLM is asked for, and the model is a server's, or it is not installed.
    """
    if file is None and is_address(path):
        raise RunError(
            f"{path} is a server's model, and no run held rows out for it: say FILE, the rows to be answered"
        )
    if file is None and not (Path(path).expanduser() / record.FILE).is_file():
        raise RunError(f"{path} is no run, which held rows out: say FILE, the rows to be answered")
    others = None if against is None else other_of(path, against)
    told = _spelled(how) | versions(how.engine, path, *filter(None, [others]))
    with atomic.room(out, RunError, GO_ON):
        models = {"model": _identity(path, how), "against": others and _identity(others, how)}
        _begin(out, models | {"file": file} | told | {CONTENT: _content(path, file, how)})
        ours = _answered(path, file, out / OURS, how, say, of_run=path)
        theirs = None if others is None else _answered(others, file, out / THEIRS, how, say, of_run=path)
        results = report.results(ours, theirs, say)
        atomic.write(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False).encode())
        atomic.write(out / "results.md", report.markdown(results).encode())
    return results


def _spelled(how: Prediction) -> dict[str, Any]:
    return how.model_dump(mode="json", exclude={"server": True, "vllm": BESIDE}) | {"format": spell(how.format)}


def _content(path: str, file: str | None, how: Prediction) -> str:
    """What tells the rows that are answered from others of the same name."""
    return read.content_held_out(Path(path)) if file is None else read.content(_source(file, how))


def _source(file: str, how: Prediction) -> Source:
    return Source(path=file, format=how.format, num_samples=how.num_samples)


def _identity(path: str, how: Prediction) -> dict[str, Any]:
    """A model by its place and what its files hold, which is unknown of a server's, and of a hub's until it is here."""
    if is_address(path):
        return {"place": path} | how.server.model_dump(include={"tokenizer", "only_openai"})
    files = files_of(path)
    digest = None if files is None else hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    return {"place": locate(path), "digest": digest}


def _other(name: str, before: Any, now: Any) -> str:
    """What is said of a setting with which a folder was begun, and which is another one now."""
    if name == CONTENT:
        return "with rows that are others now"
    if name not in MODELS:
        return f"with {name} {before!r}"
    if before is None:
        return "without --against"
    if now is not None and before["place"] == now["place"]:
        return f"when {before['place']} held other files"
    return f"with {'model' if name == 'model' else '--against'} {before['place']}"


def _same(name: str, before: Any, now: Any) -> bool:
    """Whether a setting is the one with which a folder was begun; files that were not fetched then are those."""
    if name in MODELS and before and now and None in (before.get("digest", ""), now.get("digest", "")):
        return bool(before | {"digest": None} == now | {"digest": None})
    return bool(before == now)


def _begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or find it as the same command left it. Raises RunError."""
    file = out / SETTINGS
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        past = json.loads(file.read_text(encoding="utf-8"))
        other = next((name for name in settings if not _same(name, past.get(name), settings[name])), None)
        if other is not None:
            raise RunError(
                f"{out} was begun {_other(other, past.get(other), settings[other])}: say the same again, or choose "
                "another folder"
            )
        atomic.write(file, json.dumps(settings, indent=2, ensure_ascii=False).encode())
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is {'not empty' if out.is_dir() else 'a file'}: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    atomic.write(file, json.dumps(settings, indent=2, ensure_ascii=False).encode())


def _answered(
    path: str, file: str | None, out: Path, how: Prediction, say: Callable[[str], None], of_run: str
) -> report.Answers:
    """The rows answered by one model, in their order."""
    vllm = how.vllm if how.engine == "vllm" else None
    model = answering.find(path, how.device, how.dtype, how.server, vllm)
    for line in model.notes:
        say(line)
    found = _rows(of_run, file, model, how, say)
    for line in found.lines():
        say(line)
    if how.token_accuracy and model.tokenizer is None:
        say("token_accuracy is not measured: say server.tokenizer=PATH, where the tokenizer of the server's model is")
    journal = Journal(out, "where")
    done = {entry["where"] for entry in journal.entries}
    left = [one for one in found.asked if one.where not in done]
    if done:
        say(f"{len(done):,} are answered already in {out}")
    for start in range(0, len(left), TOGETHER):
        for entry in _some(model, left[start : start + TOGETHER], how):
            journal.append(entry)
        say(f"{path}: {len(journal.entries):,} of {len(found.asked):,} answered")
    by_place = {entry["where"]: entry for entry in journal.entries}
    return report.Answers(path, model.name, [by_place[one.where] for one in found.asked])


def _rows(path: str, file: str | None, model: Answering, how: Prediction, say: Callable[[str], None]) -> Rows:
    if file is not None:
        return read.of_file(_source(file, how), model.tokenizer)
    found = read.held_out(Path(path), model.tokenizer, say)
    return Rows(found.asked[: how.num_samples], found.dropped)


def _some(model: Answering, asked: Sequence[Asked], how: Prediction) -> Iterator[dict[str, Any]]:
    """Some rows answered together. A row's draws are by its own seed, so that they do not depend on the others."""
    answers = model.some([(one, _sampling(how, one)) for one in asked], how.token_accuracy)
    for one, answered in zip(asked, answers, strict=True):
        reply = answered.reply
        prediction = reply.text.strip()
        of_row = measures.of_row(prediction, one.label)
        if answered.token_accuracy is not None:
            of_row["token_accuracy"] = answered.token_accuracy
        entry = {
            "where": one.where,
            "prompt": answered.prompt,
            "prediction": prediction,
            "label": one.label,
            "finish": reply.finish,
            "tokens": reply.num_tokens,
            "dropped_turns": answered.dropped_turns,
            "measures": of_row,
        }
        yield entry | ({} if how.logprobs is None else {"logprobs": list(reply.logprobs)})


def _sampling(how: Prediction, one: Asked) -> Sampling:
    sampling = how.sampling()
    if how.seed is None:
        return sampling
    place = int.from_bytes(hashlib.sha256(one.where.encode()).digest()[:4])
    return sampling.model_copy(update={"seed": how.seed + place})
