"""Many answers in one pass: each as it is alone, whoever joins and leaves; memory by need and within its bound."""

import contextlib

import pytest
import torch

import fixtures_models
from tunesmith.errors import ModelError
from tunesmith.generate import choose
from tunesmith.generate.alone import Alone
from tunesmith.generate.asked import Sampling
from tunesmith.generate.batch import Batch, Request
from tunesmith.generate.choose import decoder_for
from tunesmith.generate.engine import Generator
from tunesmith.generate.pages import PAGE, Pages
from tunesmith.generate.together import Together

SIZES = (70, 3, 33, 16, 1, 48)  # tokens of prompts, one beyond gemma2's window of 64
ANSWERS = (9, 30, 4, 22, 40, 1)
ALL = {"": None}  # layers that see everything


def prompts(sizes=SIZES, seed=1):
    random = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, 400, (size,), generator=random).tolist()) for size in sizes]


def theirs(model, prompt, many):
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    made = model.generate(
        ids, attention_mask=mask, max_new_tokens=many, min_new_tokens=many, do_sample=False, pad_token_id=0
    )
    return made[0, len(prompt) :].tolist()


def batch_of(decoder, stops=()):
    return Batch(decoder, fixtures_models.tiny_tokenizer(), frozenset(stops))


def ask(batch, prompt, many, **options):
    return batch.add(Request(prompt, Sampling(max_new_tokens=many), **options))


def finish(batch):
    while batch.waiting or batch.running:
        batch.step()


@pytest.fixture
def model():
    return fixtures_models.tiny_model()


@pytest.fixture
def passes(model):
    """The tokens of each pass through the model, those of no answer left out."""
    found = []

    def note(module, args, kwargs):
        rows = kwargs["position_ids"].tolist()
        found.append(sorted(_run(row) for row in rows))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return found


def _run(positions):
    """How many positions at the end of a row follow one another."""
    size = 1
    while size < len(positions) and positions[-size] == positions[-size - 1] + 1:
        size += 1
    return size


@pytest.mark.parametrize("arch", fixtures_models.ARCHITECTURES)
def test_greedy_tokens_are_those_of_transformers_whoever_joins_and_leaves(arch):
    model = fixtures_models.tiny_model(arch=arch, eos_token_id=None)
    decoder = decoder_for(model, most=4, chunk_tokens=32)
    assert isinstance(decoder, Together)
    batch = batch_of(decoder)
    asked = list(zip(prompts(), ANSWERS, strict=True))
    streams = [ask(batch, *one) for one in asked[:3]]
    for one in asked[3:]:  # the others come while these are on their way
        batch.step()
        batch.step()
        streams.append(ask(batch, *one))
    finish(batch)
    for stream, (prompt, many) in zip(streams, asked, strict=True):
        assert stream.ids == theirs(model, prompt, many) and stream.finish == "length"


def test_windows_of_a_few_tokens_are_kept():
    model = fixtures_models.tiny_model(arch="mistral", sliding_window=8, eos_token_id=None)
    decoder = decoder_for(model)
    assert decoder.windows == {"": 8}
    batch = batch_of(decoder)
    streams = [ask(batch, prompt, 20) for prompt in prompts((40, 5))]
    finish(batch)
    assert [stream.ids for stream in streams] == [theirs(model, prompt, 20) for prompt in prompts((40, 5))]


def test_pages_of_equal_beginnings_are_read_once(model, passes):
    begin, *_ = prompts((40,))
    batch = batch_of(Together(model, ALL))
    first = ask(batch, begin + (7, 8), 2)
    finish(batch)
    passes.clear()
    others = [ask(batch, begin + (9, number), 2) for number in range(5, 8)]
    finish(batch)
    assert passes[0] == [10, 10, 10]  # of 42 tokens, two pages of 16 are there
    fresh = batch_of(Together(model, ALL))
    for stream in (first, *others):
        again = ask(fresh, stream.request.prompt, 2)
        finish(fresh)
        assert again.ids == stream.ids


def test_many_answers_of_one_prompt_read_it_once(model, passes):
    (prompt,) = prompts((50,))
    batch = batch_of(Together(model, ALL))
    for _ in range(4):
        ask(batch, prompt, 3)
    finish(batch)
    assert passes[0] == [50] and passes[1] == [1] and passes[2] == [2, 2, 2]


def test_what_was_said_is_not_read_again_in_the_next_turn(model, passes):
    (prompt,) = prompts((20,))
    batch = batch_of(Together(model, ALL))
    stream = ask(batch, prompt, 30)
    finish(batch)
    passes.clear()
    ask(batch, prompt + tuple(stream.ids) + (5, 6), 1)
    finish(batch)
    assert passes == [[20 + 30 + 2 - 3 * PAGE]]


def test_adapters_do_not_share_pages(model):
    decoder = Together(model, ALL)
    prompt = prompts((40,))[0]
    for adapter, shared in ((None, 0), ("a", 0), (None, 32), ("a", 32)):
        place = decoder.begin(prompt, adapter)
        assert place.read == shared
        while place.read < len(prompt):
            decoder.read([place])
        decoder.free(place)


def test_a_long_prompt_does_not_hold_up_the_others(model, passes):
    decoder = Together(model, ALL, chunk_tokens=32)
    batch = batch_of(decoder)
    long, short, other = prompts((200, 4, 6))
    running = ask(batch, short, 50)
    batch.step()
    late = ask(batch, long, 5)
    batch.step()
    new = ask(batch, other, 5)
    told = []
    while not late.num_tokens:
        batch.step()
        told.append((running.num_tokens, new.num_tokens))
    assert len(told) >= 200 // 32 and [one for one, _ in told] == list(range(told[0][0], told[0][0] + len(told)))
    assert new.num_tokens > 1 and told[0][1] > 0  # it did not wait for the long one either
    assert all(sum(sizes) <= 32 for sizes in passes)


def test_masks_grow_with_the_part_that_is_read_and_not_with_the_square(model):
    largest = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: largest.append(kwargs["attention_mask"].numel()), with_kwargs=True
    )
    batch = batch_of(Together(model, ALL, chunk_tokens=16))
    ask(batch, prompts((240,))[0], 2)
    finish(batch)
    assert max(largest) <= 16 * 256


def test_a_bound_makes_answers_wait_and_changes_none(model):
    free = batch_of(Together(model, ALL))
    tight = batch_of(Together(model, ALL, cache_tokens=10 * PAGE))
    found = []
    for batch in (free, tight):
        streams = [ask(batch, prompt, 60) for prompt in prompts((70, 3, 33, 16, 1, 48))]
        most, given_up = 0, 0
        while batch.waiting or batch.running:
            before = set(batch.running)
            batch.step()
            most = max(most, len(batch.running))
            given_up += len(before & set(batch.waiting))
        found.append([stream.ids for stream in streams])
        assert batch.decoder.pages.total <= batch.decoder.pages.most
        assert all(stream.finish == "length" for stream in streams)
        assert (most == 6 and not given_up) if batch is free else (1 < most < 6 and given_up)
    assert found[0] == found[1] and all(len(ids) == 60 for ids in found[0])


def test_an_answer_that_fills_the_cache_alone_ends_and_a_prompt_beyond_it_is_refused(model):
    batch = batch_of(Together(model, ALL, cache_tokens=3 * PAGE))
    stream = ask(batch, prompts((40,))[0], 100)
    finish(batch)
    assert stream.finish == "length" and stream.num_tokens == 3 * PAGE - 40 + 1
    with pytest.raises(ModelError, match="a prompt of 49 tokens has no room in a cache of 48"):
        ask(batch, prompts((49,))[0], 1)
    assert batch.decoder.pages.room == 3


def test_memory_grows_by_need_and_is_used_again(model):
    decoder = Together(model, ALL, cache_tokens=10_000 * PAGE)
    batch = batch_of(decoder)
    for seed in range(12):
        for prompt in prompts((40, 90, 10), seed):
            ask(batch, prompt, 4)
        finish(batch)
    assert decoder.pages.total <= 64  # pages: 12 times 11 were taken
    assert decoder.pool._paged[0].keys.shape[0] == decoder.pages.total


def test_numbers_of_an_answer_that_left_cannot_spoil_another(model):
    decoder = Together(model, ALL)
    batch = batch_of(decoder)
    first = ask(batch, prompts((5,))[0], 8)
    finish(batch)
    for layer in decoder.pool._paged:
        layer.keys[2:], layer.values[2:] = torch.nan, torch.nan
    second = ask(batch, prompts((5,))[0], 8)
    finish(batch)
    assert second.ids == first.ids


def test_answers_of_very_different_lengths_go_through_passes_of_their_own(model, passes):
    model = fixtures_models.tiny_model(max_position_embeddings=4096)
    decoder = Together(model, ALL)
    alone, together = [], batch_of(decoder)
    asked = prompts((1200, 4, 9))
    streams = [ask(together, prompt, 5) for prompt in asked]
    rows = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    finish(together)
    for prompt in asked:
        batch = batch_of(Together(model, ALL))
        alone.append(ask(batch, prompt, 5))
        finish(batch)
    assert [stream.ids for stream in streams] == [stream.ids for stream in alone]
    assert {1, 2} <= set(rows)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fixtures_models.tiny_seq2seq, "has an encoder"),
        (lambda: fixtures_models.tiny_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
         "dynamic positions"),
        (lambda: fixtures_models.tiny_model(arch="stablelm"), "mask"),
        (lambda: prompted(fixtures_models.tiny_model()), "virtual tokens"),
    ],
)  # fmt: skip
def test_models_that_cannot_answer_alone_and_say_why(make, reason):
    decoder = decoder_for(make())
    assert isinstance(decoder, Alone)
    assert decoder.note.startswith("answers are made one after the other: ") and reason in decoder.note


def prompted(model):
    from peft import PromptTuningConfig, get_peft_model

    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def test_a_model_whose_numbers_differ_answers_alone(model, monkeypatch):
    monkeypatch.setattr(Together, "_masks", lambda self, positions, columns: torch.ones(1, 1, 1, columns).bool())
    decoder = decoder_for(model)
    assert isinstance(decoder, Alone) and "says something else" in decoder.note


def test_a_model_is_tried_once(model, monkeypatch):
    tried = []
    monkeypatch.setattr(choose, "_try", lambda one: tried.append(one) or "it may not")
    one, other = fixtures_models.tiny_model(), fixtures_models.tiny_model()
    assert decoder_for(one).note == decoder_for(one).note == "answers are made one after the other: it may not"
    decoder_for(other)
    assert tried == [one, other]


def test_whole_answers_come_in_order_and_by_their_own_seeds(model):
    generator = Generator(model, fixtures_models.tiny_tokenizer())
    turns = [[{"role": "user", "content": f"Number {number}"}] for number in range(9)]
    options = [{"max_new_tokens": 3 + number, "temperature": 1.0, "seed": number} for number in range(9)]
    requests = [
        generator.request(generator.prompt(one, 12), Sampling(**how)) for one, how in zip(turns, options, strict=True)
    ]
    found = list(generator.answers(requests))
    assert [one.text for one in found] == [
        generator.complete(one, **how) for one, how in zip(turns, options, strict=True)
    ]
    assert [one.num_tokens for one in found if one.finish == "length"] == [
        3 + number for number, one in enumerate(found) if one.finish == "length"
    ]
    entered = []

    @contextlib.contextmanager
    def within():
        entered.append(True)
        yield
        entered.append(False)

    for _ in generator.answers(requests[:2], within):
        assert not entered[-1]
    assert entered == [True, False] * 3


def test_pages_are_counted_by_their_users():
    pages = Pages()
    pages.most = 2 + 4
    one, two = pages.take(), pages.take()
    assert pages.room == 2
    key = (("", None), (1,) * PAGE)
    serial = pages.fill(one, key)
    assert pages.fill(two, key) == serial and pages.find(key) == (one, serial)
    pages.leave([one])
    assert pages.room == 2
    pages.leave([one, two])
    assert pages.room == 4 and pages.find(key) == (one, serial)
    pages.leave([one])
    taken = [pages.take() for _ in range(4)]  # the page that is remembered goes last
    assert taken[-1] == one and pages.find(key) is None and pages.room == 0
