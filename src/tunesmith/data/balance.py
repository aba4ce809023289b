"""Which of the processes that train together takes which micro-batch of a step, so that none waits long for another.

The micro-batches of a step stay those of the step. In its order of work (attention grows with the square of a
sequence's tokens, everything else with their number), as many as there are processes are taken at a time, since these
wait for one another where weights lie in parts; of them the process with the least work so far gets the most.
"""

import numpy as np

from tunesmith.data.pack import Plan


def work(plan: Plan) -> np.ndarray:
    """The work of each row, in no unit: the tokens and the squared tokens of its sequences, float64 [rows]."""
    tokens = (plan.pieces[:, 2] - plan.pieces[:, 1]).astype(np.float64)
    summed = np.concatenate([[0.0], np.cumsum(tokens * tokens + tokens)])
    return np.diff(summed[plan.row_offsets])


def order(work: np.ndarray, ranks: int, batch: int, accumulation: int) -> np.ndarray:
    """The rows in an order in which micro-batches are taken in turn: of process r, those at r, r + ranks, ...: [rows].

    `work` is that of each row, and their number one of whole rounds of micro-batches of `batch` rows; of the last step
    there may be fewer rounds than `accumulation`.
    """
    rows = np.arange(len(work)).reshape(-1, batch)  # of each micro-batch
    each = work[rows].sum(axis=1)
    found = []
    for start in range(0, len(each), ranks * accumulation):
        step = np.arange(start, min(start + ranks * accumulation, len(each)))
        done = np.zeros(ranks)
        for few in step[np.argsort(-each[step], kind="stable")].reshape(-1, ranks):
            taker = np.argsort(done, kind="stable")  # of the most first
            taken = np.empty(ranks, np.int64)
            taken[taker] = few
            done += each[taken]
            found.append(taken)
    return rows[np.concatenate(found)].reshape(-1) if found else np.arange(0)
