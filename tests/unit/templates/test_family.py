"""Chat formats by name: found by it, refused where a token is missing, and saved so that others write the same."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import fixtures_chats as chats
import fixtures_models
from tunesmith import train
from tunesmith.component import pick, spell
from tunesmith.data.prepare import cache_key
from tunesmith.errors import RecipeError, TemplateError
from tunesmith.explain import choose
from tunesmith.formats.messages import Messages
from tunesmith.formats.text import Text
from tunesmith.generate.engine import Generator
from tunesmith.recipe import Recipe
from tunesmith.schema import options
from tunesmith.seams import Template
from tunesmith.templates.family import FOLDER, Family, facts, names
from tunesmith.types import Message

TALK = chats.chat("Why?", "Because.", "How?", "So.")


def base_tokenizer(*more, bos=None):
    """That of a base model: no template, documents end with <|endoftext|>; ChatML's tokens and `more` are there."""
    tokenizer = fixtures_models.tiny_tokenizer(None)
    tokenizer.add_tokens([*more, *([bos] if bos else [])], special_tokens=True)
    tokenizer.eos_token = tokenizer.init_kwargs["eos_token"] = "<|endoftext|>"
    if bos:
        tokenizer.bos_token = bos
        place = tokenizer.convert_tokens_to_ids(bos)
        behind = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, place)])
        tokenizer.backend_tokenizer.post_processor = behind  # as Llama's: a plain call writes BOS
    return tokenizer


def written(name, row, tokenizer):
    template = Family(name=name)
    prepared = template.prepare(tokenizer)
    sample = Messages().read(row)
    return template.write(sample.branches[0], sample.tools, prepared)


def test_a_name_is_a_template():
    assert pick(Template, "chatml") == pick(Template, {"type": "family", "name": "chatml"}) == Family(name="chatml")
    assert pick(Template, spell(Family(name="llama3"))) == Family(name="llama3")
    assert set(names()) == set(Template.aliases()) and len(names()) > 20


def test_the_names_are_among_the_options():
    (option,) = (one for one in options(Recipe) if one.path == "data.template")
    assert set(names()) < set(option.type.split(" | "))
    choices = Recipe.model_json_schema()["$defs"]["Data"]["properties"]["template"]["anyOf"]
    assert "chatml" in choices[0]["enum"]


@pytest.mark.parametrize(("wrong", "hint"), [("chatlm", "'chatml'"), ("qwen25", "'qwen2_5'"), ("lama3", "'llama3'")])
def test_a_typo_gets_near_names(wrong, hint):
    with pytest.raises(RecipeError, match=f"there is no template '{wrong}'. Did you mean .*{hint}"):
        choose(Template, wrong)
    with pytest.raises(RecipeError, match=f"name: is no family of templates. Did you mean .*{hint}"):
        choose(Template, {"type": "family", "name": wrong})


@pytest.mark.parametrize("name", names())
def test_the_file_of_a_family_says_what_it_should(name):
    found = facts(name)
    assert found.stop and found.tokens and found.about.endswith(".")
    ends = {"eos_token"} & {*found.tokens} or {found.special_tokens["eos_token"]}
    assert ends == {found.stop[0]}  # an answer is trained to end with it, and the tokenizer's EOS is it
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120


def test_the_tokenizer_passed_in_is_not_changed():
    tokenizer = base_tokenizer()
    before = (tokenizer.eos_token, tokenizer.chat_template, tokenizer.backend_tokenizer.to_str())
    prepared = Family(name="chatml").prepare(tokenizer)
    assert (tokenizer.eos_token, tokenizer.chat_template, tokenizer.backend_tokenizer.to_str()) == before
    assert (prepared.eos_token, len(prepared)) == ("<|im_end|>", len(tokenizer))
    assert Family(name="zephyr").prepare(tokenizer).eos_token == "<|endoftext|>"


def test_a_missing_token_is_named_with_what_would_do():
    with pytest.raises(TemplateError) as caught:
        Family(name="llama3").prepare(base_tokenizer("<|eot_id|>"))
    message = str(caught.value)
    assert "writes <|begin_of_text|> <|start_header_id|> <|end_header_id|>, and" in message and "\n" not in message
    assert "no such token. model.new_special_tokens adds such, and the model has to learn them. It has" in message
    fitting = message.rpartition("It has the tokens of ")[2].split(", ")
    assert {"chatml", "alpaca", "vicuna", "zephyr"} <= set(fitting) and not {"llama2", "gemma"} & set(fitting)
    for name in fitting:
        Family(name=name).prepare(base_tokenizer("<|eot_id|>"))


def test_a_missing_token_that_cannot_be_added_by_its_text_is_not_said_to_be():
    with pytest.raises(TemplateError, match=r"writes bos_token .* no such token\. It has the tokens of"):
        Family(name="mistral_v3").prepare(base_tokenizer())


def test_a_token_that_is_a_piece_of_the_vocabulary_is_made_one():
    whole = json.loads(fixtures_models.tiny_tokenizer(None).backend_tokenizer.to_str())
    size = len(whole["model"]["vocab"])
    whole["model"]["vocab"] |= {"<reserved_106>": size, "<reserved_107>": size + 1}  # no merge ever makes them
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)), eos_token="<|endoftext|>"
    )
    text = "<reserved_106>Why?<reserved_107>"
    assert size not in tokenizer(text)["input_ids"]
    prepared = Family(name="baichuan2").prepare(tokenizer)
    ids = prepared(text)["input_ids"]
    assert (ids[0], ids[-1], len(prepared)) == (size, size + 1, len(tokenizer))


def test_documents_end_as_those_of_the_base_model_and_answers_as_the_family_says():
    tokenizer = base_tokenizer()
    (document,) = chats.render([{"text": "The river."}], Text(), tokenizer, template="chatml")
    (talk,) = chats.render([TALK], Messages(), tokenizer, template="chatml")
    last = [int(tokens.ids[tokens.weight.nonzero()[0][-1]]) for one in (document, talk) for tokens in one.branches]
    assert tokenizer.convert_ids_to_tokens(last) == ["<|endoftext|>", "<|im_end|>"]


@pytest.mark.parametrize("name", ["llama2", "mistral_v1", "vicuna", "deepseek_v2"])
def test_there_is_one_bos(name):
    tokenizer = base_tokenizer(bos="<s>")
    (talk,) = chats.render([TALK], Messages(), tokenizer, template=name)
    ids = talk.branches[0].ids.tolist()
    prepared = Family(name=name).prepare(tokenizer)
    assert ids == prepared.apply_chat_template(TALK["messages"], tokenize=True, return_dict=False)
    assert ids[0] == prepared.bos_token_id
    assert ids.count(prepared.bos_token_id) == (2 if name == "llama2" else 1)  # Llama 2 writes one a question


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("gemma", chats.chat("Why?", "So.", system="Brief."), "gemma has no system message"),
        ("llama2", {"messages": [*TALK["messages"][:1], *TALK["messages"]]}, "user and assistant in turn"),
        ("chatml", TALK | {"tools": [chats.TOOL]}, "the conversation has tools, and the chat template does not write"),
        ("phi3", {"messages": [*TALK["messages"], {"role": "critic", "content": "?"}]}, "the role critic"),
    ],
)
def test_what_a_family_cannot_write_is_refused_in_one_sentence(name, row, said):
    tokens = [token for token in facts(name).tokens if not token.endswith("_token")]
    with pytest.raises(TemplateError) as caught:
        template = Family(name=name)
        prepared = template.prepare(base_tokenizer(*tokens, bos="<s>"))
        turns = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
        template.write(turns, tuple(row.get("tools", ())), prepared)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_no_family_adds_a_system_message_but_those_whose_own_template_does():
    adding = set()
    for name in names():
        tokens = [token for token in facts(name).tokens if not token.endswith("_token")]
        text = written(name, chats.chat("Q", "A"), base_tokenizer(*tokens, bos="<s>")).text
        if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", text):
            adding.add(name)
    assert adding == {"alpaca", "llama3_1", "qwen2", "qwen2_5", "vicuna"}


def test_reasoning_models_are_trained_one_answer_at_a_time():
    row = {"messages": [dict(turn) for turn in TALK["messages"]]}
    row["messages"][1]["reasoning_content"] = "Hm."
    template = Family(name="qwen3")
    first, second = template.divide(Messages().read(row).branches[0])
    prepared = template.prepare(base_tokenizer())
    text = template.write(first, (), prepared).text
    assert text.endswith("<|im_start|>assistant\n<think>\nHm.\n</think>\n\nBecause.<|im_end|>\n")
    text = template.write(second, (), prepared).text
    assert "Hm." not in text and text.endswith("<think>\n\n</think>\n\nSo.<|im_end|>\n")
    assert Family(name="chatml").divide(second) == (second,)


def test_the_key_of_the_cache_knows_the_family():
    prepared = Family(name="zephyr").prepare(base_tokenizer())
    keys = {cache_key(chats.recipe("x", template=name), (), prepared) for name in ("jinja", "zephyr", "vicuna")}
    assert len(keys) == 3


def test_a_run_saves_the_template_and_the_end_of_turns(tmp_path):
    model = fixtures_models.save_model(tmp_path / "base", tokenizer=base_tokenizer())
    settings = json.loads((model / "generation_config.json").read_text())
    (end,) = base_tokenizer().convert_tokens_to_ids(["<|endoftext|>"])
    (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": end}))
    rows = chats.write_rows(tmp_path / "rows.jsonl", [TALK] * 4)
    recipe = Recipe(
        model=str(model),
        data={"train": rows, "template": "chatml", "cache_dir": str(tmp_path / "cache"), "max_tokens": 64},
        adapter={"type": "lora", "r": 2},
        train={"output_dir": str(tmp_path / "run"), "max_steps": 1, "row_tokens": 64},
    )
    final = train(recipe).folder / "final"
    saved = AutoTokenizer.from_pretrained(final)
    assert saved.eos_token == "<|im_end|>"
    asked = [{"role": "user", "content": "Why?"}]
    text = saved.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ends = set(saved.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    assert set(json.loads((final / "generation_config.json").read_text())["eos_token_id"]) == ends
    generator = Generator.open(str(final), device="cpu")
    assert generator.stops == ends
    assert list(generator.prompt(asked, 4).ids) == saved(text, add_special_tokens=False)["input_ids"]


def test_the_guide_lists_every_family_as_it_is():
    page = (Path(__file__).parents[3] / "docs" / "guide" / "templates.md").read_text(encoding="utf-8")
    told = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(told) == names()
    for name, line in told.items():
        found = facts(name)
        tools, reasoning = ("no" if how.startswith("not written") else "yes" for how in (found.tools, found.reasoning))
        assert found.about.rstrip(".") in line and line.endswith(f" | {tools} | {reasoning} |")


def test_a_name_of_a_family_is_not_given_another_one():
    with pytest.raises(RecipeError, match="chatml says name itself: leave name out"):
        chats.recipe(template={"type": "chatml", "name": "llama2"})
