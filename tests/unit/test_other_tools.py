"""Words of other tools are answered with ours, which exist; the guide has the same list."""

import re
from pathlib import Path

import pytest

from tunesmith import other_tools, schema
from tunesmith.cli.main import main
from tunesmith.component import name_of, pick
from tunesmith.errors import RecipeError
from tunesmith.launching import Launcher, split
from tunesmith.recipe import Recipe
from tunesmith.recipe_text import read_words
from tunesmith.seams import Adapter, Export

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
LEAST = ["model=builtin:tiny", "data.train=rows.json"]


def recipe(*words):
    return Recipe(**read_words({}, [*LEAST, *words]))


def page_rows(name):
    """The first two cells of each row of a page's tables, without the heads."""
    cells = re.findall(r"^\| `([^|]+)` \| `([^|]+)` \|", (GUIDE / name).read_text(encoding="utf-8"), re.MULTILINE)
    return dict(cells)


def page_reasons(name):
    """Names and reasons of the table whose second cells are sentences."""
    return dict(re.findall(r"^\| `([^|]+)` \| ([^`|]+) \|$", (GUIDE / name).read_text(encoding="utf-8"), re.MULTILINE))


def tables():
    named = {f"{seam}={name}": ours for seam, known in other_tools.NAMES.items() for name, ours in known.items()}
    chosen = {f"{option}={name}": ours for option, known in other_tools.VALUES.items() for name, ours in known.items()}
    exports = {name.replace("export=", "type="): ours for name, ours in named.items()}
    return other_tools.OPTIONS | exports | chosen


def test_the_guide_has_every_word():
    assert page_rows("from-other-tools.md") == tables()
    assert page_reasons("from-other-tools.md") == other_tools.NEEDLESS


def test_what_is_suggested_is_there():
    known = {one.word for one in schema.options(Recipe, launcher=Launcher, export=Export)}
    known |= {"type", "launcher", *(word.rpartition(".")[0] for word in known)}
    for words in tables().values():
        for word in words.split(" ") if "{" not in words else [words]:
            assert word.partition("=")[0].replace(".0.", ".") in known, word
    for ours in [*other_tools.NAMES["adapter"].values(), *other_tools.NAMES["optimizer"].values()]:
        recipe(*ours.split())
    for known_values in other_tools.VALUES.values():
        for ours in known_values.values():
            try:
                recipe(*(ours.split(" ") if "{" not in ours else [ours]))
            except RecipeError as error:  # what several processes need besides
                assert "parallel" in ours, error


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data.cutoff_len=512", "data.cutoff_len: no such option. Did you mean 'data.max_tokens'?"),
        ("train.batch_size=4", "train.batch_size: no such option. Did you mean 'train.per_device_train_batch_size'?"),
        ("optimizer.lr=1e-4", "optimizer.lr: no such option. Did you mean 'optimizer.learning_rate'?"),
        ("model.load_in_4bit=true", "model.load_in_4bit: no such option. Did you mean 'model.quantization=bnb_4bit'?"),
        (
            "optimizer=paged_adamw_8bit",
            "optimizer: there is no optimizer 'paged_adamw_8bit'. "
            "Did you mean 'optimizer=adamw8bit optimizer.paged=true'?",
        ),
        (
            "adapter=qlora",
            "adapter: there is no adapter 'qlora'. Did you mean 'adapter=lora model.quantization=bnb_4bit'?",
        ),
    ],
)
def test_a_word_of_another_tool_is_answered(word, line):
    with pytest.raises(RecipeError) as caught:
        recipe(word)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("adapter=boft", r"It is not here: .*, it is oft with other numbers\. Did you mean 'adapter=oft'\?"),
        ("train.lr_scheduler_type=wsd", r"'train.lr_scheduler_type=warmup_stable_decay'\?"),
        ("train.lr_scheduler_type=reduce_lr_on_plateau", r"It is left out: it waits for a metric, so that"),
        ("parallel.strategy=zero3", r"Did you mean 'parallel.strategy=deepspeed parallel.zero_stage=3'\?"),
        ("model.rope_scaling=yarn", r"must be a mapping .*'model.rope_scaling=\{rope_type: yarn, factor: 4\}'\?"),
    ],
)
def test_a_value_of_another_tool_is_answered(word, said):
    with pytest.raises(RecipeError, match=said):
        recipe(word)


def test_every_word_of_the_shown_llama_factory_file_is_answered():
    page = (GUIDE / "from-other-tools.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"LLaMA-Factory:\n\n```text\n(.*?)```", page, re.DOTALL)
    names = dict(line.split(": ") for line in shown.splitlines())
    assert len(names) == 15
    for name, value in names.items():
        with pytest.raises(RecipeError, match=f"{name}: no such option. Did you mean '[a-z_.]+(=.*)?'"):
            recipe(f"{name}={value}")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("quantization_bit=8", "'model.quantization=bnb_8bit'?"),
        ("quantization_bit=4", "'model.quantization=bnb_4bit'?"),
        ("dataset=answers", "'data.train'?"),
        ("max_samples=100", "'data.train.0.num_samples'?"),
        ("rope_scaling=linear", "'model.rope_scaling'?"),
        ("stage=rm", "'objective=reward'?"),
        ("parallel.stage=3", "'parallel.strategy=deepspeed parallel.zero_stage=3'?"),
        ("objective=pt", "'objective=pretrain'?"),
        ("train.packing=true", "It is not here: samples are packed into rows in any case"),
        ("model.trust_remote_code=true", "It is not here: models are those that transformers has"),
        ("lora_target=all", "'adapter.target_modules=all-linear'?"),
        ("adapter.target_modules=all", "adapter.target_modules: all is the name of no layer (it was 'all'). Did you"),
    ],
)
def test_what_a_tool_says_by_name_and_value_is_answered(word, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        recipe(word)


def test_launchers_are_answered():
    with pytest.raises(RecipeError, match="Did you mean 'launcher=torchrun'"):
        split(["launcher=accelerate"])
    with pytest.raises(RecipeError, match="launcher.nproc: .*Did you mean 'launcher.nproc_per_node'"):
        split(["launcher=torchrun", "launcher.nproc=2"])


def test_reasons_are_those_of_the_guide():
    pages = {
        name: re.sub(r"\s+", " ", (GUIDE / name).read_text(encoding="utf-8")).replace("`", "")
        for name in ("adapters.md", "optimizers.md")
    }
    assert f"boft is not here: {other_tools.REASONS['boft']}." in pages["adapters.md"]
    assert f"they {other_tools.REASONS['greedy'].replace('it waits', 'wait')}." in pages["optimizers.md"]


def test_a_component_is_found_in_any_case():
    assert name_of(pick(Adapter, "LoRA")) == "lora"


def test_an_export_without_its_option_is_answered(capsys):
    assert main(["export", "run", "out", "merged"]) == 1
    assert "Did you mean 'type=merged'?" in capsys.readouterr().err


def test_dashes_before_a_word_are_answered(capsys):
    assert main(["predict", "run", "--out", "out", "--num-samples", "2"]) == 2
    assert "there is no option --num-samples. Did you mean 'num_samples=2'?" in capsys.readouterr().err
    assert main(["chat", "run", "--top-p", "0.9"]) == 2
    assert "there is no option --top-p. Did you mean 'top_p=0.9'?" in capsys.readouterr().err
    assert main(["evaluate", "run", "--task", "gsm8k", "--num-samples=2"]) == 2
    assert "Did you mean 'gsm8k.num_samples=2'?" in capsys.readouterr().err


def test_serve_names_options_as_they_are_typed(capsys):
    assert main(["serve", "run", "--embedding-pooling", "max", "--adapter", "runs/first"]) == 1
    told = capsys.readouterr().err
    assert "error: --embedding-pooling: must be" in told
    assert "error: --adapter: must be NAME=FOLDER, with a name that has no blank in it (it was 'runs/first')" in told
    assert main(["serve", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--api-key-file FILE" in told and "None:" not in told and " X" not in told


def test_reasons_that_differ_by_a_name_are_one():
    (help_text,) = (group.help for group in schema.groups(Recipe) if group.path == "model.quantization[bnb_4bit]")
    assert "Not with adapter=bitfit, adapter=freeze, adapter=full, adapter=llama_pro: model.quantization: " in help_text
    assert "adapter=bitfit, freeze, full or llama_pro trains" in help_text
