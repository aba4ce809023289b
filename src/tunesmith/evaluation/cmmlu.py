"""CMMLU: questions of 67 subjects in Chinese, with four options each (arXiv 2306.09212)."""

from typing import ClassVar

from tunesmith.evaluation._published import Layout, Published


class Cmmlu(Published):
    """CMMLU, read from its folder (`test/anatomy.csv`, `dev/anatomy.csv`) or a hub's copy (`haonan-li/cmmlu`)."""

    layout: ClassVar[Layout] = Layout(asked="test", file="{subject}.csv")
    opening: ClassVar[str] = "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n"
    asks: ClassVar[str] = "题目：{question}"
    answers: ClassVar[str] = "\n答案是："
    space: ClassVar[str] = ""
