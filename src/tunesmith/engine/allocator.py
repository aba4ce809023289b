"""Large pages for a step's large tensors.

On a CPU a step's tensors are given back to the system and asked for again, page by page; with pages of 4 KB that costs
more than the elementwise work done in them. torch can ask Linux for pages of 2 MB, an option of its own that it reads
once, before its first allocation. It changes no number.

Keeping freed memory in the process (glibc's mallopt) was measured a few per cent quicker still, and left out: aligned
blocks that glibc before 2.38 has freed are not found again, so that memory grew by a fifth with every step.
"""

import os

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def use_large_pages() -> None:
    """Set torch's option, if it has not been set; call it before torch is imported."""
    os.environ.setdefault(LARGE_PAGES, "1")
