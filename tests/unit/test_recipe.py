"""What a recipe may say, and the one line for each thing that it may not."""

import re
from pathlib import Path

import pytest

from tunesmith import explain
from tunesmith.component import name_of
from tunesmith.defaults import Device, resolve
from tunesmith.errors import RecipeError
from tunesmith.recipe import Model, Recipe
from tunesmith.recipe_data import Data, Source
from tunesmith.recipe_text import parse_value, recipe_names
from tunesmith.seams import Adapter, Export

LEAST = {"model": "builtin:tiny", "data": {"train": "rows.json"}}
CPU = Device("cpu", "a processor", has_bf16=False)
GPU = Device("cuda", "a GPU", has_bf16=True)


def problems(**options):
    """The lines that a recipe with these options is refused with."""
    with pytest.raises(RecipeError) as caught:
        Recipe(**(LEAST | options))
    return str(caught.value).split("\n")


def data(**options):
    return {"train": "rows.json", **options}


def write(folder, text, name="recipe.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


YAML = "model: builtin:tiny\ndata:\n  train: rows.json\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        # unknown keys: a near name, the section where the name stands, or what transformers calls it
        ({"objektive": "sft"}, "objektive: no such option. Did you mean 'objective'?"),
        (
            {"train": {"learning_rate": 1}},
            "train.learning_rate: no such option. Did you mean 'optimizer.learning_rate'?",
        ),
        ({"lora_alpha": 8}, "lora_alpha: no such option. Did you mean 'adapter.lora_alpha'?"),
        (
            {"train": {"gradient_checkpointing": True}},
            "train.gradient_checkpointing: no such option. Did you mean 'train.activation_checkpointing'?",
        ),
        (
            {"train": {"dataloader_num_workers": 5}},
            "train.dataloader_num_workers: .* Did you mean 'train.transformers.dataloader_num_workers'.",
        ),
        (
            {"train": {"ignore_data_skip": True}},
            "train.ignore_data_skip: no such option. It cannot be set: a resumed run sees .*",
        ),
        (
            {"train": {"learning-rate": 1}},
            r"train.learning-rate: no such option. Known: .* others. tunesmith options train has all",
        ),
        (
            {"data": data(eval=[{"pth": "x", "path": "y"}])},
            "data.eval.0.pth: no such option. Did you mean 'path'?",
        ),
        (
            {"adapter": {"type": "full", "r": 8}},
            r"adapter.r: no such option. It is an option of adapter\[lora\].r or adapter\[hira\].r or "
            r"adapter\[loha\].r: say adapter.type=lora or hira or loha",
        ),
        (
            {"data": data(train=[{"path": "x", "format": {"only": "good"}}])},
            r"data.train.0.format.only: no such option. .*: say data.train.0.format.type=labelled or pairs or ranked",
        ),
        ({"objective": {"type": "dft", "zeta": 1}}, "objective.zeta: no such option. DFT has no options"),
        # bad values: the bound and the value
        ({"train": {"max_steps": 0}}, r"train.max_steps: must be greater than 0 \(it was 0\)"),
        (
            {"objective": {"type": "dpo", "loss_type": {"sigmoid": -1}}},
            r"objective.loss_type: must be greater than 0 \(it was -1\)",
        ),
        ({"objective": {"type": "dpo", "loss_type": {}}}, "objective.loss_type: must have at least 1 item"),
        ({"model": {"path": "m", "dtype": {"a": 1}}}, "model.dtype: must be 'auto', 'float32', .*"),
        ({"adapter": {"r": -1}}, r"adapter.r: must be greater than 0 \(it was -1\)"),
        ({"optimizer": {"betas": [0.9, 2]}}, r"optimizer.betas.1: must be less than 1 \(it was 2\)"),
        ({"data": data(eval=1.5)}, r"data.eval: must be a fraction below 1, .* \(it was 1.5\)"),
        ({"name": "a b"}, r"name: must be letters, digits, and any of _ \. - \(it was 'a b'\)"),
        (
            {"train": {"lr_scheduler_type": "cosin"}},
            r"train.lr_scheduler_type: must be 'linear', .* \(it was 'cosin'\). Did you mean 'cosine'\?",
        ),
        ({"train": {"num_train_epochs": float("nan")}}, r".*epochs: must be a finite number \(it was nan\)"),
        # wrong kinds, in plain words
        ({"train": {"max_steps": 2.5}}, r"train.max_steps: must be an integer \(it was 2.5\)"),
        (
            {"train": {"max_steps": "None"}},
            r".*must be an integer \(it was 'None'\). YAML's word for none is null",
        ),
        (
            {"optimizer": {"learning_rate": "fast"}},
            r"optimizer.learning_rate: must be a number \(it was 'fast'\)",
        ),
        ({"data": data(shuffle="maybe")}, r"data.shuffle: must be true or false \(it was 'maybe'\)"),
        ({"name": 3}, r"name: must be text \(it was 3\)"),
        ({"optimizer": {"betas": 0.9}}, r"optimizer.betas: must be a list \(it was 0.9\)"),
        ({"ob\njective": "sft"}, r"'ob\\njective': no such option. .*"),
        ({"train": [1]}, r"train: must be a mapping \(it was \[1\]\)"),
        ({"train": None}, r"train: must be a mapping \(it was null\). Leave it out, or give it a value"),
        ({"model": {"path": {"x": 1}}}, r"model.path: must be text \(it was a mapping\)"),
        ({"adapter": {"target_modules": 3}}, r"adapter.target_modules: must be text or a list \(it was 3\)"),
        ({"name": "x " * 99}, r"name: .{,150}\.\.\.\)"),
        # a value that may be of several kinds: only what is wrong with the kind that was meant
        ({"data": data(eval=-1)}, r"data.eval: must be greater than or equal to 0 \(it was -1\)"),
        ({"data": data(eval=True)}, r"data.eval: must be a fraction below 1, a whole count .* \(it was True\)"),
        ({"data": data(eval=[])}, r"data.eval: must be .*; 0 holds nothing out \(it was \[\]\)"),
        ({"data": data(eval=[{"path": 3}])}, r"data.eval.0.path: must be text \(it was 3\)"),
        ({"data": {"train": []}}, r"data.train: must have at least 1 item \(it was \[\]\)"),
        (
            {"data": {"train": [{"path": "x", "columns": {"my column": 3}}]}},
            r"data.train.0.columns.my column: must be text \(it was 3\)",
        ),
        # pairs that cannot go together
        ({"train": {"bf16": True, "fp16": True}}, "train: bf16 and fp16 cannot both be true: .*"),
        ({"eval": {"eval_steps": 3}}, "recipe: eval.eval_steps is set but data.eval is 0: .*"),
        ({"eval": {"prompts": ["Who?"]}}, "recipe: eval.prompts are answered at evaluations but data.eval is 0: .*"),
        ({"eval": {"early_stopping_patience": 2}}, r"eval: early_stopping_patience needs eval.eval_steps"),
        # options that do not go together: no value, and what to set as it is typed
        (
            {"optimizer": "adamw8bit", "train": {"release_gradients": True}},
            r"train: release_gradients updates .* are known: set train.max_grad_norm=0",
        ),
        (
            {"train": {"activation_offload": True}},
            r"train: activation_offload .*: set train.activation_checkpointing=true, or a number n",
        ),
        # an option of several kinds: all of them in one line
        (
            {"train": {"activation_checkpointing": "selectiv"}},
            r"train.activation_checkpointing: must be true, false, selective or an integer above 1 "
            r"\(it was 'selectiv'\)\. Did you mean 'selective'\?",
        ),
        (
            {"train": {"row_tokens": 0}},
            r"train.row_tokens: must be auto or an integer above 1 up to 100000000 \(it was 0\)",
        ),
        (
            {"adapter": {"init_lora_weights": "pisa"}},
            r"adapter.init_lora_weights: must be true, false, gaussian, pissa, olora, orthogonal or pissa_niter_N "
            r"\(it was 'pisa'\)\. Did you mean 'pissa'\?",
        ),
        (
            {"data": {"train": {"path": "a.json", "share": "10%"}}},
            r"data.train.0.share: must be FIRST-LAST/PARTS, as 1-2/10 for the first two tenths \(it was '10%'\)",
        ),
        # an objective, as it is typed
        (
            {"objective": "token_classify", "teacher": {"model": "b"}},
            "recipe: the objective token_classify has no teacher: .*",
        ),
        # components
        ({"objective": "sfft"}, r"objective: there is no objective 'sfft'. Did you mean 'sft'\?"),
        ({"adapter": 3}, r"adapter: say a name, or a mapping with `type`. Known: .* \(it was 3\)"),
        (
            {"adapter": {"type": "freeze", "train_matching": "["}},
            r"adapter: train_matching='\[' is not a regular .*",
        ),
        ({"objective": "./nowhere.py"}, "objective: there is no file .*nowhere.py"),
        ({"objective": "no.such.module"}, "objective: module 'no.such.module' cannot be imported: .*"),
        (
            {"data": {"train": {"path": "x", "format": "alpca"}}},
            r"data.train.0.format: there is no format 'alpca'. .*",
        ),
        ({"train": {"transformers": {"seed": 3}}}, "train.transformers: seed is .* train.seed .*"),
    ],
)
def test_what_is_wrong_is_one_clear_line(options, line):
    found = problems(**options)
    assert len(found) == 1, found
    assert re.fullmatch(line, found[0]) or found[0] == line


def test_every_problem_has_its_line():
    with pytest.raises(RecipeError) as caught:
        Recipe(data={"train": [{"pth": "x"}]}, train={"max_steps": 0}, adapter={"r": 0, "rank": 3})
    assert str(caught.value).split("\n") == [
        "model: is required and missing",
        "data.train.0.path: is required and missing",
        "data.train.0.pth: no such option. Did you mean 'path'?",
        "adapter.r: must be greater than 0 (it was 0)",
        "adapter.rank: no such option. Did you mean 'adapter.r'?",
        "train.max_steps: must be greater than 0 (it was 0)",
    ]


def test_every_pattern_of_an_option_is_told_in_words():
    package = Path(explain.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    patterns = {pattern for text in texts for pattern in re.findall(r'Field\(pattern=r"([^"]+)"', text)}
    assert patterns and patterns == set(explain.PATTERNS)


def test_short_forms_are_the_long_ones():
    short = Recipe(model="m", data={"train": "a.json", "eval": "b.json"}, adapter="full")
    long = Recipe(
        model=Model(path="m"),
        data=Data(train=(Source(path="a.json"),), eval=[{"path": "b.json"}]),
        adapter={"type": "full"},
    )
    assert short == long
    assert Recipe(**LEAST, adapter={"r": 4}).adapter.model_dump()["r"] == 4  # options alone mean the default adapter
    assert Recipe(model="m", data={"train": "a", "eval": "0.25"}).data.eval == 0.25


def test_a_recipe_says_itself_again():
    recipe = Recipe(**LEAST, adapter={"type": "freeze", "num_layers": 1}, train={"report_to": "wandb"})
    assert Recipe(**recipe.model_dump(mode="json")) == recipe


def test_words_are_set_in_order(tmp_path):
    path = write(tmp_path, YAML + "objective: sft\nadapter: lora\n")
    words = ["train.max_steps=7", "train.max_steps=9", "adapter.r=4", "optimizer.learning_rate=1e-4"]
    recipe = Recipe.load(path, [*words, "data.train.0.num_samples=5", "eval.prompts=['Hello?', 'a: b']", "data.eval=9"])
    assert recipe.train.max_steps == 9
    assert recipe.adapter.model_dump()["r"] == 4
    assert recipe.optimizer.model_dump()["learning_rate"] == 1e-4
    assert recipe.eval.prompts == ("Hello?", "a: b")
    assert recipe.data.train[0].path == "rows.json" and recipe.data.train[0].num_samples == 5
    one = Recipe.load(write(tmp_path, "model: m\ndata: {train: {path: a}}\n"), ["data.train.0.split=test"])
    assert one.data.train[0].path == "a" and one.data.train[0].split == "test"
    assert Recipe.load(path, ["train.max_steps=5", "train.max_steps=null"]).train.max_steps is None


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("train.max_steps", "'train.max_steps' is not `section.option=value`"),
        ("=3", "'=3' is not `section.option=value`"),
        ("train.max_stps=3", "train.max_stps: no such option. Did you mean 'max_steps'.*"),
        ("train.max_steps.x=3", r"train.max_steps.x: train.max_steps is 5 and has no options"),
        ("data.train.1.path=x", "data.train.1.path: data.train has no item 1"),
    ],
)
def test_a_wrong_word_is_one_line(tmp_path, word, line):
    path = write(tmp_path, "model: m\ndata: {train: [rows.json]}\ntrain: {max_steps: 5}\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, [word])
    assert re.fullmatch(line, str(caught.value))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: m\ndata: {train: [a}\n", "PATH:2 is not valid YAML: expected ',' or '\\]', but got '}'"),
        ("model: m\n\tdata: 3\n", "PATH:2 is not valid YAML: found character .*"),
        ("model: \x00\n", "PATH is not valid YAML: unacceptable character .*"),
        (
            "model: !!python/name:os.system\n",
            "PATH:1 is not valid YAML: could not determine a constructor .*",
        ),
        ("", "PATH must be a mapping with `model` and `data`, and is empty"),
        ("- model\n", "PATH must be a mapping with `model` and `data`, and is a list"),
        (YAML + "model: other\n", "PATH:4: 'model' is said twice"),
        (YAML + "train: {seed: 1, max_steps: 3, seed: 2}\n", "PATH:4: 'seed' is said twice"),
        (YAML + "on: true\n", "PATH:4: the name 'on' is not text to YAML: write it in quotes"),
    ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path, text, line):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert re.fullmatch(line.replace("PATH", re.escape(path)), str(caught.value))


def test_a_file_that_is_no_recipe_is_one_line(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    for path, line in {
        tmp_path / "binary.yaml": "is not text in UTF-8: invalid start byte at byte 0",
        tmp_path: "is a folder, and neither a recipe nor a run",
        tmp_path / "none.yaml": "there is no file or shipped recipe",
    }.items():
        with pytest.raises(RecipeError, match=re.escape(line)) as caught:
            Recipe.load(str(path))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_is_named_by_its_file_unless_it_says_its_name(tmp_path):
    assert Recipe.load(write(tmp_path, YAML, "my first try.yaml")).name == "my-first-try"
    assert Recipe.load(write(tmp_path, YAML + "name: mine\n")).name == "mine"
    assert resolve(Recipe(**LEAST), CPU).recipe.name == "builtin-tiny-sft"


COMPONENT = '''
from tunesmith.seams import Adapter

class Mine(Adapter):
    """Mine."""
    learning_rate = 0.125
    beside = False

    strength: int = 1
    """How much."""

    def apply(self, model):
        return model
'''


def test_a_component_of_a_file_works_like_a_shipped_one(tmp_path):
    path = write(tmp_path, COMPONENT, "mine.py")
    recipe = Recipe(**LEAST, adapter={"type": path, "strength": 3})
    assert recipe.adapter.model_dump() == {"strength": 3}
    assert name_of(recipe.adapter) == path
    assert Recipe(**recipe.model_dump(mode="json")).adapter == recipe.adapter
    assert resolve(recipe, CPU).derived["optimizer.learning_rate"] == 0.125
    assert problems(adapter={"type": path, "strenght": 3}) == [
        "adapter.strenght: no such option. Did you mean 'strength'?"
    ]


def test_a_file_that_defines_no_component_is_said(tmp_path):
    empty, broken = write(tmp_path, "x = 1\n", "empty.py"), write(tmp_path, "1 / 0\n", "broken.py")
    assert problems(adapter=empty) == [f"adapter: {empty} must define exactly one Adapter, and it defines 0"]
    assert problems(adapter=broken) == [f"adapter: {broken} cannot be imported: ZeroDivisionError: division by zero"]


def test_defaults_follow_from_what_was_said_and_the_device():
    lora, full = Recipe(**LEAST, adapter="lora"), Recipe(**LEAST, adapter="full")
    # frozen weights may stand in bfloat16 where the device computes in it; trained ones stay in float32
    assert resolve(lora, GPU).derived["model.dtype"] == "bfloat16"
    assert resolve(lora, CPU).derived["model.dtype"] == "float32"
    assert resolve(full, GPU).derived["model.dtype"] == "float32"
    assert resolve(full, GPU).derived["train.bf16"] is True
    assert resolve(full, CPU).derived["train.bf16"] is False
    assert resolve(lora, CPU).derived["optimizer.learning_rate"] == type(lora.adapter).learning_rate
    for objective, rate in (("dpo", 1e-5), ("kto", 1e-5), ("orpo", 5e-5), ("reward", 2e-4)):
        preferring = Recipe(**LEAST, adapter="lora", objective=objective)
        assert resolve(preferring, CPU).derived["optimizer.learning_rate"] == pytest.approx(rate)
    said = Recipe(**LEAST, optimizer={"learning_rate": 0.5}, train={"row_tokens": 99, "device": "cpu"}, name="n")
    assert set(resolve(said, CPU).derived) == {"model.dtype", "train.bf16", "train.lr_scheduler_type"}
    assert resolve(Recipe(model="m", data=data(max_tokens=77)), CPU).recipe.train.row_tokens == 77


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float16_needs_trained_weights_in_float32(dtype):
    def said(adapter, dtype):
        return Recipe(model=Model(path="m", dtype=dtype), data=data(), adapter=adapter, train={"fp16": True})

    with pytest.raises(RecipeError, match=rf"train.fp16 .* model.dtype is {dtype}: set model.dtype=float32"):
        resolve(said("full", dtype), GPU)
    assert resolve(said("lora", dtype), GPU).recipe.model.dtype == dtype
    assert resolve(said("full", "auto"), GPU).recipe.model.dtype == "float32"


def test_choose_explains_a_component_outside_a_recipe():
    with pytest.raises(RecipeError, match=re.escape("export: there is no export 'mergd'. Did you mean 'merged'?")):
        explain.choose(Export, "mergd")
    with pytest.raises(RecipeError, match=re.escape("r: must be greater than 0 (it was 0)")):
        explain.choose(Adapter, {"type": "lora", "r": 0})
    assert explain.choose(Adapter, {"r": 3}).model_dump()["r"] == 3


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name):
    assert Recipe.load(name).name == name


@pytest.mark.parametrize(
    ("text", "value"),
    [("#### (.*)", "#### (.*)"), ("a #b", "a #b"), ("'a #b'", "a #b"), ("", None), ("null", None), ("[1, 2]", [1, 2])],
)
def test_a_hash_in_a_word_is_no_comment(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize(("said", "is_"), [("12:00:00", "12:00:00"), ("1:30", "1:30"), ("90", 90), ("1.5", 1.5)])
def test_a_time_of_day_is_a_text_and_no_number_of_base_60(said, is_):
    from tunesmith.recipe_text import parse, read_words

    assert read_words({}, [f"launcher.time={said}"]) == {"launcher": {"time": is_}}
    assert parse(f"time: {said}", "here") == {"time": is_}
