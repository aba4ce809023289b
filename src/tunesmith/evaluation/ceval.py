"""C-Eval: questions of 52 subjects in Chinese, with four options each (arXiv 2305.08322)."""

from typing import ClassVar

from tunesmith.evaluation._published import Layout, Published


class Ceval(Published):
    """C-Eval, read from its folder (`val/logic_val.csv`, `dev/logic_dev.csv`) or a hub's copy (`ceval/ceval-exam`).

    Its questions are those of `val`, since the answers of `test` are not published.
    """

    layout: ClassVar[Layout] = Layout(asked="val")
    opening: ClassVar[str] = "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n"
    answers: ClassVar[str] = "\n答案："
    space: ClassVar[str] = ""
