"""Classification of single words, as named entities and parts of speech are: one class of several for each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.errors import RecipeError
from tunesmith.objectives import _classes, _confusion, _entities
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
    names: tuple[str, ...] = ()
    """Names of the classes, by which whole entities (B-PLACE, I-PLACE) are counted. Empty: as the data's format names
    them."""

    def head(self, classes: tuple[str, ...]) -> Head:
        """A logit for each class, by name or as LABEL_0 and so on. Raises RecipeError when it is not clear how many."""
        own = tuple(self.names)
        if own and classes and own != classes:
            raise RecipeError(
                f"objective.names are {', '.join(own)}, and the data name {', '.join(classes)}: change one"
            )
        return Head(_classes.names(own or classes, self.num_labels, self.class_weights, "tagged"), tokens=True)

    def problem(self, label: Label | None) -> str | None:
        """Why the label of a word is none of the classes."""
        return (
            None if isinstance(label, tuple) or label is None else _classes.beyond(label, self.num_labels, self.names)
        )

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the words' classes: their number, where all classes count the same."""
        label, _ = _words(batch)
        if not self.class_weights:
            return batch.weight.new_tensor(len(label))
        return batch.weight.new_tensor(self.class_weights)[label].sum()

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-sum over words of weight * log p of their class."""
        from torch.nn.functional import cross_entropy

        assert scores.values is not None, "this objective needs them"
        values, (label, sequence) = scores.values, _words(batch)  # [N, classes], [N], [N]
        weights = values.new_tensor(self.class_weights) if self.class_weights else None
        found = values.argmax(1)
        counts = {"confusion": _confusion.matrix(found, label, values.shape[1])}
        if _entities.kinds(self.names):
            counts["entities"] = _entities.counts(found, label, sequence, self.names)
        total = cross_entropy(values, label, weights, reduction="sum")
        return LossSum(total, {"accuracy": ((found == label).sum(), len(label))}, counts)

    def measures(self, counts: "Mapping[str, torch.Tensor]") -> dict[str, Any]:
        """Precision, recall and F1 over all classes, each class the same (macro) or by its words (weighted).

        Where classes are tags of entities, those of whole entities too.
        """
        found = _confusion.measures(counts["confusion"])
        return found | (_entities.measures(counts["entities"]) if "entities" in counts else {})


def _words(batch: Batch) -> "tuple[torch.Tensor, torch.Tensor]":
    """The class of each asked word and the sequence that it stands in, in the order of the row: [N], [N]."""
    assert batch.token_label is not None, "rows of words with classes have it"
    asked = batch.token_label >= 0
    return batch.token_label[asked].long(), batch.seq[asked]
