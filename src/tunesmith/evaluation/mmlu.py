"""MMLU: questions of 57 subjects in English, with four options each (arXiv 2009.03300)."""

from typing import ClassVar

from tunesmith.evaluation._published import Layout, Published


class Mmlu(Published):
    """MMLU, read from its folder (`test/anatomy_test.csv`, `dev/anatomy_dev.csv`) or a hub's copy (`cais/mmlu`)."""

    layout: ClassVar[Layout] = Layout(asked="test", header=False)
    opening: ClassVar[str] = "The following are multiple choice questions (with answers) about {subject}.\n\n"
