"""Answers of tiny random models: greedy tokens as transformers' own, whole characters, nothing disturbed."""

import json
import logging

import pytest
import torch

import fixtures_models
from tunesmith.errors import ModelError, RecipeError, RunError, TemplateError
from tunesmith.generate.engine import Generator, greedy_ids
from tunesmith.generate.load import locate

HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello, how are you today?"}]


@pytest.fixture
def generator():
    return Generator(fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer())


def without_stops(generator):
    """The same generator that never stops by itself, so that an answer has the length that was asked."""
    generator.model.generation_config.eos_token_id = None
    generator.tokenizer.eos_token = None
    return generator


@pytest.mark.parametrize("arch", fixtures_models.ARCHITECTURES)
def test_greedy_tokens_are_those_of_transformers(arch):
    model, tokenizer = fixtures_models.tiny_model(arch=arch), fixtures_models.tiny_tokenizer()
    generator = without_stops(Generator(model, tokenizer))
    long = [{"role": "user", "content": "The river runs from the mountain to the sea. " * 4}]
    prompt = generator.prompt(long, max_new_tokens=80).ids
    assert len(prompt) > 64  # longer than gemma2's window
    ids = torch.tensor([prompt])
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False, pad_token_id=0
    )
    assert generator.complete_ids(long, max_new_tokens=80) == theirs[0, len(prompt) :].tolist()


def test_peft_model_answers_as_transformers_does_with_it():
    model = fixtures_models.tiny_lora(fixtures_models.tiny_model()).eval()
    generator = Generator(model, fixtures_models.tiny_tokenizer())
    ids = torch.tensor([generator.prompt(HELLO, 40).ids])
    theirs = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    plain = Generator(fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer())
    ours = generator.complete_ids(HELLO, max_new_tokens=40)
    assert ours == [token for token in theirs[0, ids.shape[1] :].tolist() if token != 2]
    assert ours != plain.complete_ids(HELLO, max_new_tokens=40)


def test_prompt_is_the_templates_own_with_tools(generator):
    tools = [{"type": "function", "function": {"name": "add"}}]
    written = generator.tokenizer.apply_chat_template(HELLO, tools=tools, add_generation_prompt=True, tokenize=False)
    assert '"name": "add"' in written and written.endswith("<|im_start|>assistant\n")
    assert generator.tokenizer.decode(generator.prompt(HELLO, 8, tools).ids) == written


def test_without_template_the_last_user_message_is_the_prompt():
    tokenizer = fixtures_models.tiny_tokenizer(chat_template=None)
    generator = Generator(fixtures_models.tiny_model(), tokenizer)
    turns = [{"role": "user", "content": "not this"}, {"role": "assistant", "content": "no"}, HELLO[1]]
    assert tokenizer.decode(generator.prompt(turns, 8).ids) == HELLO[1]["content"]
    with pytest.raises(ModelError, match="nothing to answer"):
        generator.prompt([{"role": "user", "content": ""}], 8)


@pytest.mark.parametrize("text", ["你好，世界 🙂🚀 naïve", " leading space", "a\n\nb\t c", "\x00\x7f é", "🙂"])
def test_pieces_are_whole_characters_and_make_the_text(generator, monkeypatch, text):
    ids = generator.tokenizer(text)["input_ids"]
    fixtures_models.scripted(monkeypatch, ids)
    pieces = list(generator.stream(HELLO, max_new_tokens=200))
    assert "".join(pieces) == text
    assert all(pieces) and not any("\ufffd" in piece for piece in pieces)
    if text == "🙂":
        assert len(ids) > 1  # the case is one character in several tokens


def test_pieces_come_early_and_a_torn_character_at_the_end_is_shown(generator, monkeypatch):
    ids = generator.tokenizer("one two 🙂")["input_ids"]
    fixtures_models.scripted(monkeypatch, ids[:-1])
    pieces = list(generator.stream(HELLO, max_new_tokens=200))
    assert pieces[-1] == "\ufffd" and "".join(pieces[:-1]) == "one two "
    assert len(pieces) > 2


def test_sentencepiece_like_tokenizers_keep_their_spaces(monkeypatch):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "▁one", "▁two", "three", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    inner = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", chat_template="x")
    generator = Generator(fixtures_models.tiny_model(), tokenizer)
    fixtures_models.scripted(monkeypatch, [3, 4, 3, 5, 6, 7, 8, 9, 4])
    assert generator.complete(HELLO, max_new_tokens=20) == "one two onethree🙂 two"


def test_stops_and_special_tokens_stay_out_of_the_text(generator, monkeypatch):
    end, start, pad = (
        generator.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
    )
    hello = generator.tokenizer("Hello")["input_ids"]
    fixtures_models.scripted(monkeypatch, [start, *hello, end, *hello])
    answer = generator.stream(HELLO, max_new_tokens=50)
    assert "".join(answer) == "Hello"
    assert answer.ids == [start, *hello] and answer.finish == "stop"
    generator.model.generation_config.eos_token_id = [pad]  # stops are the union: the tokenizer's end is still one
    assert generator.stops == {pad, end}
    fixtures_models.scripted(monkeypatch, [*hello, pad, *hello])
    assert generator.complete(HELLO, max_new_tokens=50) == "Hello"
    fixtures_models.scripted(monkeypatch, hello * 9)
    answer = generator.stream(HELLO, max_new_tokens=len(hello))
    assert "".join(answer) == "Hello" and answer.finish == "length"


def test_seed_decides_and_greedy_needs_none(generator):
    without_stops(generator)

    def drawn(seed):
        return generator.complete_ids(HELLO, max_new_tokens=30, temperature=1.0, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


def test_training_model_and_random_numbers_are_left_as_they_were(generator):
    expected = generator.complete(HELLO, max_new_tokens=12)
    model = generator.model
    model.train()
    model.model.layers[0].eval()  # a part that was frozen stays so
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert generator.complete(HELLO, max_new_tokens=12) == expected
    generator.complete(HELLO, max_new_tokens=12, temperature=1.0, seed=3)
    generator.complete(HELLO, max_new_tokens=12, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model(torch.tensor([[1, 2, 3]])).logits.requires_grad  # no_grad did not leak


def test_a_reader_that_stops_ends_the_work(generator):
    without_stops(generator).model.train()
    assert generator.decoder.most > 1  # chosen by a trial, which also leaves the model as it was
    assert generator.model.training
    steps = []
    generator.model.register_forward_hook(lambda *_: steps.append(torch.is_grad_enabled()))
    answer = generator.stream(HELLO, max_new_tokens=100)
    assert steps == []
    next(answer)
    assert generator.model.training and torch.is_grad_enabled()
    done = len(steps)
    answer.close()
    assert list(answer) == [] and len(steps) == done < 10 and not any(steps)
    assert generator.model.training and answer.finish is None


def test_long_conversation_drops_its_oldest_exchanges_and_says_so(generator, caplog):
    turns = [HELLO[0]]
    for number in range(30):
        turns += [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "yes"}]
    turns.append({"role": "user", "content": "the last question"})
    prompt = generator.prompt(turns, max_new_tokens=20)
    text = generator.tokenizer.decode(prompt.ids)
    assert 0 < prompt.dropped_turns < 60 and prompt.dropped_turns % 2 == 0
    kept = [HELLO[0], *turns[1 + prompt.dropped_turns :]]
    assert kept[1]["role"] == "user"
    assert text == generator.tokenizer.apply_chat_template(kept, add_generation_prompt=True, tokenize=False)
    assert len(prompt.ids) <= fixtures_models.CONTEXT - 20
    one_more = [HELLO[0], *turns[prompt.dropped_turns - 1 :]]  # not more was dropped than needed
    ids = generator.tokenizer.apply_chat_template(one_more, add_generation_prompt=True, return_dict=False)
    assert len(ids) > fixtures_models.CONTEXT - 20
    with caplog.at_level(logging.WARNING):
        generator.complete(turns, max_new_tokens=2)
    assert "oldest" in caplog.text and "were left out" in caplog.text


def test_answer_ends_where_the_context_does_and_too_long_a_turn_is_refused(generator):
    without_stops(generator)
    prompt = generator.prompt(HELLO, 10_000)
    answer = generator.complete_ids(HELLO, max_new_tokens=10_000)
    assert len(prompt.ids) + len(answer) == fixtures_models.CONTEXT
    with pytest.raises(ModelError, match=r"prompt of \d+ tokens.* 256 has room for 128"):
        generator.prompt([HELLO[0], {"role": "user", "content": "water " * 200}], 10_000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 4, "temperature": -1}, "temperature"),
        ({"max_new_tokens": 4, "top_p": 0}, "top_p"),
        ({"max_new_tokens": 4, "top_p": 1.1}, r"top_p: .*1\.1"),
    ],
)
def test_bad_options_are_refused(generator, options, words):
    with pytest.raises(RecipeError, match=words):
        generator.stream(HELLO, **options)


def test_template_that_refuses_is_one_line():
    template = "{{ raise_exception('roles must alternate') }}"
    generator = Generator(fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer(template))
    with pytest.raises(TemplateError, match="roles must alternate"):
        generator.stream(HELLO, max_new_tokens=4)


@pytest.fixture
def run(tmp_path):
    """A run folder as a finished LoRA run leaves it, and its base beside it."""
    base = fixtures_models.save_model(tmp_path / "base")
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"model: {{path: {base}}}\n", encoding="utf-8")
    model = fixtures_models.tiny_model()
    model.name_or_path = str(base)
    adapted = fixtures_models.tiny_lora(model)
    for place in ("final", "checkpoints/step-9", "checkpoints/step-10"):
        adapted.save_pretrained(folder / place)
        fixtures_models.tiny_tokenizer().save_pretrained(folder / place)
    return folder


def test_opens_runs_checkpoints_adapters_and_models(run, tmp_path):
    tokenizer = fixtures_models.tiny_tokenizer()
    tuned = Generator(fixtures_models.tiny_lora(fixtures_models.tiny_model()), tokenizer)
    untuned = Generator(fixtures_models.tiny_model(), tokenizer)
    expected = tuned.complete(HELLO, max_new_tokens=16)
    assert expected != untuned.complete(HELLO, max_new_tokens=16)
    for path in (run, run / "final", run / "checkpoints" / "step-10"):
        assert Generator.open(str(path)).complete(HELLO, max_new_tokens=16) == expected
    opened = Generator.open(str(tmp_path / "base"))
    assert opened.complete(HELLO, max_new_tokens=16) == untuned.complete(HELLO, max_new_tokens=16)
    assert not opened.model.training


def test_adapter_without_tokenizer_takes_its_bases(run):
    for file in run.glob("final/*token*"):
        file.unlink()
    (run / "final" / "chat_template.jinja").unlink()
    assert Generator.open(str(run)).tokenizer.chat_template == fixtures_models.CHATML


def test_adapters_own_generation_config_counts(run):
    from transformers import GenerationConfig

    GenerationConfig(eos_token_id=[0, 7]).save_pretrained(run / "final")
    assert Generator.open(str(run)).stops == {0, 7, 2}


def test_unfinished_run_says_how_to_go_on(run):
    import shutil

    shutil.rmtree(run / "final")
    with pytest.raises(RunError) as caught:
        Generator.open(str(run))
    assert f"tunesmith train {run}" in str(caught.value)
    assert str(run / "checkpoints" / "step-10") in str(caught.value)  # the newest by number, not by letter
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="has no final/ yet") as caught:
        Generator.open(str(run))
    assert "checkpoint" not in str(caught.value)


def test_a_checkpoint_in_parts_says_what_it_is_and_is_not_offered(run):
    """Processes that share weights write `shares/` in place of a model, and only the run itself goes on from that."""
    import shutil

    shutil.rmtree(run / "final")
    parts = run / "checkpoints" / "step-11"
    (parts / "shares" / "weights").mkdir(parents=True)
    with pytest.raises(RunError, match=f"has no final/ yet.*tunesmith train {run}, or .*step-10$"):
        Generator.open(str(run))
    said = f"of {parts} lie in parts.*tunesmith export {parts} OUT type=merged, or go on with: tunesmith train {run}$"
    with pytest.raises(ModelError, match=said):
        Generator.open(str(parts))


def test_missing_places_are_named(run, tmp_path):
    with pytest.raises(RunError, match="there is no run .*frist.* Did you mean 'first'"):
        Generator.open(str(run.parent / "frist"))
    with pytest.raises(ModelError, match="nothing-here"):
        Generator.open(str(tmp_path / "nothing-here"))
    with pytest.raises(ModelError, match="neither recipe.yaml nor adapter_config.json nor config.json"):
        Generator.open(str(run.parent))
    with pytest.raises(ModelError, match="builtin:tinny"):
        locate("builtin:tinny")


def test_adapter_without_its_base_names_it(run, tmp_path):
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=f"adapter .*final needs its base model '{tmp_path / 'base'}'"):
        Generator.open(str(run))
    config = run / "final" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="base_model_name_or_path"):
        Generator.open(str(run))


def test_adapter_that_does_not_fit_or_is_torn_is_refused(run, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = run / "final" / "adapter_model.safetensors"
    whole = load_file(weights)
    save_file({name: whole[name] for name in list(whole)[1:]}, weights)
    with pytest.raises(ModelError, match="missing adapter keys"):
        Generator.open(str(run))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be put on"):
        Generator.open(str(run))
    other = fixtures_models.tiny_model(intermediate_size=48)
    fixtures_models.save_model(tmp_path / "base", other)
    with pytest.raises(ModelError, match="cannot be put on"):
        Generator.open(str(run / "checkpoints" / "step-9"))


def test_continue_ids_goes_past_stops():
    model = fixtures_models.tiny_model()
    assert len(list(greedy_ids(model, [1, 5, 6], 40))) == 40
