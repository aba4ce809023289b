"""Any task of EleutherAI's lm-eval, by its own harness, of the model as it is loaded here."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.seams import Task, TaskResult

if TYPE_CHECKING:
    from tunesmith.generate.subject import Subject


class LmEval(Task):
    """A task, group or tag of lm-eval: `--task lm-eval:NAME` is short for it.

    Prompts, data and numbers are the harness's own; what a model says of them is asked as every other task asks it.
    """

    task: str
    """Its name, or the file of a task of yours in the harness's own form (YAML)."""
    num_shots: Annotated[int, Field(ge=0)] | None = None
    """Examples shown before each question. None: as the task says."""
    num_samples: Annotated[int, Field(gt=0)] | None = None
    """Questions of each of its tasks, the first ones. None: all."""
    chat: bool = False
    """Whether the tokenizer's chat template is used, the examples being earlier turns; published numbers have none."""
    greedy: bool = False
    """Whether the likeliest tokens are taken where the task draws its answers."""
    include_path: str | None = None
    """Folder of tasks of yours, which are known by their names beside the harness's."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1234
    """Decides which examples are shown, where the task draws them."""

    def run(self, subject: "Subject") -> TaskResult:
        """Ask all questions.

        Raises:
            MissingExtra: lm-eval is not installed.
            RecipeError: it has no such task, or the task draws its answers.
            RunError: its data cannot be had, or the harness refuses it.
        """
        from tunesmith.errors import MissingExtra

        try:
            from tunesmith.evaluation import _harness
        except ImportError as error:
            if (error.name or "").partition(".")[0] == "tunesmith":
                raise
            raise MissingExtra(
                f"{self.task} of lm-eval needs {error.name}: pip install 'tunesmith[lm-eval]'"
            ) from error
        return _harness.run(self, subject)
