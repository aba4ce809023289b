"""`/v1/embeddings` and `/v1/score`: texts as vectors, and what a judge says of them."""

import asyncio
import base64
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tunesmith.generate import judge
from tunesmith.generate.readings import embed, hidden_size, passes
from tunesmith.serve.answering import account_of, while_there
from tunesmith.serve.problem import Problem, too_long
from tunesmith.serve.requests import Embedding, Score
from tunesmith.serve.served import Served


async def embeddings(served: Served, body: Embedding, request: HttpRequest) -> Response:
    """Texts as vectors. Raises Problem."""
    account = account_of(request)
    speaker = served.speaker(body.model)
    size = hidden_size(served.generator.model)
    if body.dimensions not in (None, size):
        raise Problem(
            f"dimensions: vectors of this model have {size} numbers, and mean nothing cut", param="dimensions"
        )
    cutting = partial(served.tokens, speaker, body.input, "input")
    inputs = await while_there(request, served.ask(cutting, account.body_bytes))
    longest = max(map(len, inputs))
    if served.context is not None and longest > served.context:
        raise too_long(longest, 0, served.context, "input")
    account.model, account.prompt_tokens = speaker.name, sum(map(len, inputs))
    vectors: dict[int, np.ndarray] = {}

    async def work() -> None:
        for numbers in passes([len(ids) for ids in inputs]):
            some = [inputs[number] for number in numbers]
            job = partial(embed, served.generator.model, some, served.options.embedding_pooling, speaker.adapter)
            found = await asyncio.wrap_future(served.worker.call(job))
            vectors.update(zip(numbers, found.numpy(), strict=True))

    await while_there(request, work())
    data = [
        {"object": "embedding", "index": number, "embedding": _written(vectors[number], body.encoding_format)}
        for number in range(len(inputs))
    ]
    counted = {"prompt_tokens": account.prompt_tokens, "total_tokens": account.prompt_tokens}
    return JSONResponse({"object": "list", "data": data, "model": speaker.name, "usage": counted})


def _written(vector: np.ndarray, how: str) -> Any:
    if how == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


async def score(served: Served, body: Score, request: HttpRequest) -> Response:
    """What a judge says of rows. Raises Problem, and DataError where they cannot be read."""
    account = account_of(request)
    served.check(body.model)
    if served.judge is None:
        raise Problem(f"{served.name} says words and judges nothing: serve a reward model or a classifier")
    account.model = served.name
    given: list[Any] = body.input if isinstance(body.input, list) else [body.input]
    rows = [(f"input[{at}]", {"text": one} if isinstance(one, str) else one) for at, one in enumerate(given)]
    judged, data = judge.scored(served.judge, iter(rows)), list[dict[str, Any]]()

    async def work() -> None:  # row by row, so that one that nobody waits for keeps no other
        while one := await asyncio.get_running_loop().run_in_executor(served.asking, next, judged, None):
            told = {key: value for key, value in one.items() if key != "where"}
            data.append({"object": "score", "index": len(data)} | told)

    await while_there(request, work())
    return JSONResponse({"object": "list", "data": data, "model": served.name})
