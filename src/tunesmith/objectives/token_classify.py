"""Classification of single words, as named entities and parts of speech are: one class of several for each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.objectives import _classes, _confusion
from tunesmith.seams import Objective
from tunesmith.types import Batch, Head, Label, LossSum, Scores

if TYPE_CHECKING:
    import torch


class TokenClassify(Objective):
    """Say the class of each word of a text: a new head gives each class a logit at the word's first token."""

    of_words: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("values",)

    num_labels: Annotated[int, Field(gt=1, le=100_000)] | None = None
    """How many classes there are. None: as many as the data's format names."""
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """How much each class counts, in their order. Empty: all the same."""

    def head(self, classes: tuple[str, ...]) -> Head:
        """A logit for each class, by name or as LABEL_0 and so on. Raises RecipeError when it is not clear how many."""
        return Head(_classes.names(classes, self.num_labels, self.class_weights, "tagged"), tokens=True)

    def problem(self, label: Label | None) -> str | None:
        """Why the label of a word is none of the classes."""
        return None if isinstance(label, tuple) or label is None else _classes.beyond(label, self.num_labels)

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the words' classes: their number, where all classes count the same."""
        label = _labels(batch)
        if not self.class_weights:
            return batch.weight.new_tensor(len(label))
        return batch.weight.new_tensor(self.class_weights)[label].sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-sum over words of weight * log p of their class."""
        from torch.nn.functional import cross_entropy

        assert scores.values is not None, "this objective needs them"
        values, label = scores.values, _labels(batch)  # [N, classes], [N]
        weights = values.new_tensor(self.class_weights) if self.class_weights else None
        found = values.argmax(1)
        counts = _confusion.matrix(found, label, values.shape[1])
        total = cross_entropy(values, label, weights, reduction="sum")
        return LossSum(total, {"accuracy": ((found == label).sum(), len(label))}, {"confusion": counts})

    def measures(self, counts: "Mapping[str, torch.Tensor]") -> dict[str, Any]:
        """Precision, recall and F1 over all classes, each class the same (macro) or by its words (weighted)."""
        return _confusion.measures(counts["confusion"])


def _labels(batch: Batch) -> "torch.Tensor":
    """The class of each asked word, in the order of the row: [N]."""
    assert batch.token_label is not None, "rows of words with classes have it"
    return batch.token_label[batch.token_label >= 0].long()
