"""What sequences begin with in common is laid in a row once, and the model says the same of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fixtures_chats as chats
from fixtures_models import tiny_model, tiny_tokenizer
from tunesmith.data import shared
from tunesmith.data.batch import join, lay
from tunesmith.data.blocks import Buffer
from tunesmith.data.ledger import Ledger
from tunesmith.data.preview import branches
from tunesmith.engine import kernels
from tunesmith.types import Batch, Tokens

ROW = chats.chat(
    "One?", "<think>a a a</think>First.", "Two?", "<think>b</think>Second.", "Three?", "Third.", system="Be brief."
)


def tokens(ids, learned):
    return Tokens(np.asarray(ids, np.int32), np.asarray([i in learned for i in range(len(ids))], np.float32))


def rendered(**data):
    return chats.render([ROW], tokenizer=tiny_tokenizer(chats.THINKING), template="per_turn", **data)


def batch_of(found):
    buffer = Buffer.of(found)
    pieces = np.asarray([(sample, 0, length) for sample, length in enumerate(buffer.lengths())])
    return Batch(**join([lay(buffer, pieces)]))


@pytest.mark.parametrize(
    ("before", "after", "learned", "wanted"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 9, 9], {3, 4}, 2),  # token 2 is asked for 9, and the other's for 4
        ([1, 2, 3, 4, 5], [1, 2, 3, 9, 9], {4}, 3),  # where they part nothing is learned
        ([1, 2, 3], [1, 2, 3], {2}, 1),
        ([1, 2, 3], [1, 2, 3, 4, 5, 6], {5}, 3),
        ([7, 2, 3], [1, 2, 3, 4], {3}, 0),
        ([1, 2, 3], [1, 2, 3, 4], {0, 1}, 0),  # the first token is asked of nothing
    ],
)
def test_a_sequence_shares_what_is_equal_up_to_the_token_that_is_asked_for_its_own(before, after, learned, wanted):
    assert shared.behind(tokens(before, {1}), tokens(after, learned)).shared == wanted


def test_a_row_holds_a_shared_beginning_once_and_positions_go_on_from_it():
    first, second = tokens([1, 2, 3, 4], {3}), tokens([1, 2, 3, 9, 8], {3, 4})
    sample = shared.branches((first, second))
    assert shared.own_tokens(sample) == 4 + 3
    alone = tokens([5, 6], {1})
    one = lay(Buffer([(alone,), sample], np.zeros(2, np.float32)), np.asarray([(0, 0, 2), (1, 0, 7)]))
    batch = Batch(**join([one, one]))
    assert batch.input_ids.tolist() == [[5, 6, 1, 2, 3, 4, 3, 9, 8] * 2]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 2, 3, 4] * 2]
    assert batch.target.tolist() == [[6, 0, 2, 3, 4, 0, 9, 8, 0] * 2]
    assert batch.weight.tolist() == [[1, 0, 0, 0, 1, 0, 1, 1, 0] * 2]
    assert batch.prefix.tolist() == [[0, 0], [0, 0], [1, 2], [3, 0], [3, 0], [4, 2]]
    assert Batch(**join([lay(Buffer([(alone,)], np.zeros(1, np.float32)), np.asarray([(0, 0, 2)]))])).prefix is None


def test_the_conversations_of_a_row_are_one_sample_that_says_what_they_say_apart():
    together, apart = rendered(), rendered(shared_prefix=False)
    assert [len(one.branches) for one in together] == [3] and [len(one.branches) for one in apart] == [1, 1, 1]
    for one, alone in zip(together[0].branches, apart, strict=True):
        assert one.ids.tolist() == alone.branches[0].ids.tolist()
        assert one.weight.tolist() == alone.branches[0].weight.tolist()
    assert [one.shared > 0 for one in together[0].branches] == [False, True, True]
    model = tiny_model()
    scorer = kernels.choose(model).scorer
    shared_batch, full = batch_of(together), batch_of(apart)
    assert shared_batch.input_ids.numel() == full.input_ids.numel() - sum(one.shared for one in together[0].branches)
    found, expected = scorer(model, shared_batch).logps, scorer(model, full).logps
    torch.testing.assert_close(found[shared_batch.weight != 0], expected[full.weight != 0], rtol=1e-5, atol=1e-5)
    alone = replace(shared_batch, prefix=None)
    wrong = scorer(model, alone).logps[alone.weight != 0]
    assert (wrong - expected[full.weight != 0]).abs().max() > 1e-3


def test_conversations_that_do_not_fit_together_are_samples_of_their_own_and_repeat():
    whole = rendered()[0]
    limit = shared.own_tokens(whole.branches) - 1
    found = rendered(max_tokens=limit)
    assert [len(one.branches) for one in found] == [2, 1] and [one.part for one in found] == [0, 1]
    assert found[1].repeated_tokens > 0 and found[1].branches[0].shared == 0
    ledger = Ledger()
    for one in found:
        ledger.add(one)
    counts = ledger.as_dict()
    assert (counts["rows_read"], counts["samples"], counts["rows_split"]) == (1, 2, 0)
    assert counts["shared_tokens"] == found[0].branches[1].shared
    assert counts["repeated_tokens"] == found[1].repeated_tokens


def test_the_preview_names_each_conversation_and_what_stands_above_it():
    (one,) = rendered()
    titles = [title for title, _ in branches(one, ("answer",))]
    assert titles[0] == f"conversation 1 of 3: {len(one.branches[0])} tokens"
    assert titles[2].endswith(f"tokens, of which the first {one.branches[2].shared} stand above")
