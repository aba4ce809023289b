"""Classification of whole texts or conversations: one class of several (cross-entropy), or any number of them (BCE)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.errors import RecipeError
from tunesmith.objectives import _confusion
from tunesmith.seams import Objective
from tunesmith.types import Batch, Head, Label, LossSum, Scores

if TYPE_CHECKING:
    import torch


class Classify(Objective):
    """Say the class of a text: a new head gives each class a logit."""

    labels: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("values", "label")

    num_labels: Annotated[int, Field(gt=1, le=100_000)] | None = None
    """How many classes there are. None: as many as the data's format names."""
    multi_label: bool = False
    """Whether several classes, or none, can hold at once; the label of a row is then a list."""
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """How much each class counts, in their order. Empty: all the same."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""

    def head(self, classes: tuple[str, ...]) -> Head:
        """A logit for each class, by name or as LABEL_0 and so on. Raises RecipeError when it is not clear how many."""
        numbers = {"num_labels": self.num_labels, "class_weights": len(self.class_weights) or None}
        number = self.num_labels or len(classes) or None
        if number is None:
            raise RecipeError(
                f"objective.num_labels is {self.num_labels}, and the data name no classes: say how many there are, or "
                "name them (format: {type: classes, classes: [NAME, ...]})"
            )
        for option, said in numbers.items():
            if said is not None and said != (len(classes) or number):
                raise RecipeError(
                    f"objective.{option} is for {said} classes, and there are {len(classes) or number}: change one"
                )
        names = classes or tuple(f"LABEL_{place}" for place in range(number))
        return Head(names, f"{'multi' if self.multi_label else 'single'}_label_classification")

    def problem(self, label: Label | None) -> str | None:
        """Why a label is none of the classes."""
        if isinstance(label, tuple) and not self.multi_label:
            return "the label is a list of classes, and one is learned: say objective.multi_label=true"
        if not isinstance(label, tuple) and self.multi_label:
            return "the label is one class, and objective.multi_label=true learns lists: leave it out, or write [CLASS]"
        if self.num_labels is None or isinstance(label, tuple) or label is None or label < self.num_labels:
            return None
        return (
            f"the label is class {label:g}, and objective.num_labels={self.num_labels} has the classes 0 to "
            f"{self.num_labels - 1}: raise it, or mend the row"
        )

    def count(self, batch: Batch) -> "torch.Tensor":
        """The summed weight of the labels: their number, where all classes count the same."""
        weights = batch.weight.new_tensor(self.class_weights or (1.0,))
        if self.multi_label:
            return weights.mean() * batch.label.numel()
        return weights[batch.label.long()].sum() if self.class_weights else weights.sum() * len(batch.label)

    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """-sum over classes of target * log p, p by softmax or, for each class alone, by sigmoid."""
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        assert scores.values is not None, "this objective needs them"
        values = scores.values  # [S, classes]
        weights = values.new_tensor(self.class_weights) if self.class_weights else None
        if self.multi_label:
            label = batch.label.view(values.shape)
            target = label * (1 - self.label_smoothing) + self.label_smoothing / 2
            total = binary_cross_entropy_with_logits(values, target, weights, reduction="sum")
            right = ((values > 0) == label.bool()).all(1)
            counts = _confusion.by_class(values > 0, label.bool())
        else:
            label = batch.label.long()
            total = cross_entropy(values, label, weights, label_smoothing=self.label_smoothing, reduction="sum")
            found = values.argmax(1)
            right = found == label
            counts = _confusion.matrix(found, label, values.shape[1])
        return LossSum(total, {"accuracy": (right.sum(), len(right))}, {"confusion": counts})

    def measures(self, counts: "Mapping[str, torch.Tensor]") -> dict[str, Any]:
        """Precision, recall and F1 over all classes, each class the same (macro) or by its samples (weighted)."""
        return _confusion.measures(counts["confusion"])
