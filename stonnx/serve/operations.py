"""The operations that every dialect calls: embed, sparse, score and tokenize, with the limits of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._batcher.scheduler import Answer
from stonnx._errors import InvalidArgumentError
from stonnx._model.work import SparseRow, Work
from stonnx._results.activations import sigmoid, softmax
from stonnx._results.dense import Precision, finish_embeddings
from stonnx.serve.context import Call
from stonnx.serve.errors import Kind, RequestError
from stonnx.serve.served import Choice, Served

# The words of clients for the kind of a text, and the task that each means. Cohere's last two have no counterpart.
_TASKS = {
    "query": "query",
    "document": "document",
    "passage": "document",
    "search_query": "query",
    "search_document": "document",
    "retrieval.query": "query",
    "retrieval.passage": "document",
    "classification": None,
    "clustering": None,
    "text-matching": None,
    "separation": None,
}

_FOREIGN_IDS = (
    "The input holds token ids, and this server takes only texts: ids of another tokenizer would give wrong vectors "
    "without an error. Send texts; in LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False. "
    "A server that is started with --token-ids model takes ids of its own tokenizer."
)


@dataclass(frozen=True)
class Embedded:
    """Vectors [texts, dim], and which model made them."""

    vectors: npt.NDArray[Any]
    served: Served
    answer: Answer


async def embed(
    call: Call,
    model: str | None,
    inputs: Any,
    *,
    field: str,
    prompt_name: str | None = None,
    input_type: str | None = None,
    normalize: bool = False,
    dimensions: int | None = None,
    precision: Precision = "float32",
    dimensions_field: str = "dimensions",
    truncate: bool | None = None,
) -> Embedded:
    """Dense vectors of texts, or of token ids if the server takes them.

    Args:
        call: The request.
        model: The name of the model.
        inputs: A text or a list of texts; or token ids.
        field: The field of the request that holds them.
        prompt_name: The prompt to put before each.
        input_type: The kind of the texts, in the words of any client.
        normalize: Scale vectors to length 1.
        dimensions: Cut them to this many, and then scale them to length 1.
        precision: Quantize them.
        dimensions_field: The field of the request that holds ``dimensions``.
        truncate: Cut texts that are too long.
    """
    choice = call.models.choose(model, "dense")
    call.use(choice.served)
    items = as_items(call, inputs, field)
    width = choice.served.dimension
    if dimensions is not None and (dimensions < 1 or (width is not None and dimensions > width)):
        raise RequestError(
            Kind.INVALID,
            f"{dimensions_field} must be from 1 to {width}, as the model has; got {dimensions}.",
            dimensions_field,
        )
    work = _work(choice, None, prompt_name, input_type)
    answer = await _compute(call, choice.served, work, items, field, truncate)

    def finish() -> npt.NDArray[Any]:
        model_width = getattr(choice.served.model, "truncate_dim", None) if dimensions is None else dimensions
        is_unit = normalize or dimensions is not None
        return finish_embeddings(np.stack(answer.rows), model_width, is_unit, precision)

    return Embedded(await call.off_loop(finish, len(items) * (width or 1)), choice.served, answer)


async def embed_tokens(
    call: Call,
    model: str | None,
    inputs: Any,
    *,
    field: str,
    prompt_name: str | None = None,
    input_type: str | None = None,
    truncate: bool | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Vectors of the tokens of each text, [tokens, dim]. For late interaction, only those that count."""
    choice = call.models.choose(model, "rows", "dense")
    call.use(choice.served)
    items = as_items(call, inputs, field)
    if choice.served.row.kind == "rows" and prompt_name in ("query", "document"):
        # The prompt alone does not make a query: it is filled up, and has another mask.
        input_type = input_type or prompt_name
    work = _work(choice, "token_embeddings", prompt_name, input_type)
    return (await _compute(call, choice.served, work, items, field, truncate)).rows


async def embed_sparse(
    call: Call,
    model: str | None,
    inputs: Any,
    *,
    field: str,
    prompt_name: str | None = None,
    input_type: str | None = None,
    truncate: bool | None = None,
) -> list[SparseRow]:
    """Sparse vectors of texts."""
    choice = call.models.choose(model, "sparse")
    call.use(choice.served)
    items = as_items(call, inputs, field)
    work = _work(choice, None, prompt_name, input_type)
    return (await _compute(call, choice.served, work, items, field, truncate)).rows


async def score(
    call: Call,
    model: str | None,
    pairs: Sequence[tuple[str, str]],
    *,
    field: str,
    raw: bool = False,
    as_probabilities: bool = False,
    truncate: bool | None = None,
    one_label: bool = True,
) -> tuple[npt.NDArray[np.float32], Served]:
    """Scores of pairs, [pairs, labels]: those of ``predict``, or logits, or what TEI makes of them.

    Args:
        call: The request.
        model: The name of the model.
        pairs: Pairs of texts.
        field: The field of the request that holds them.
        raw: Return logits, without the model's activation.
        as_probabilities: Return the sigmoid of a single logit, or the softmax of several, whatever the model's own
            activation is.
        truncate: Cut pairs that are too long.
        one_label: The scores are for an order of documents. Late interaction gives such scores too; a model with
            several labels does not, and is refused.
    """
    choice = choose_ranker(call, model) if one_label else call.models.choose(model, "scores")
    served = choice.served
    call.use(served)
    if served.row.kind == "rows":
        return await _maxsim(call, served, pairs, field, truncate), served
    labels = len(served.labels)
    if one_label and labels != 1:
        raise RequestError(
            Kind.WRONG_TASK,
            f"The model {served.name!r} has {labels} labels, which give no order of documents. Use /predict.",
            "model",
        )
    _check_count(call, len(pairs), field)
    for index, pair in enumerate(pairs):
        _check_length(call, max(map(len, pair)), f"{field}[{index}]")
    work = served.work("logits" if raw or as_probabilities else None, choice.prompt_name)
    answer = await _compute(call, served, work, list(pairs), field, truncate)
    scores = np.stack(answer.rows)
    if as_probabilities and not raw:
        scores = sigmoid(scores) if labels == 1 else softmax(scores, dim=1)
    return scores, served


def choose_ranker(call: Call, model: str | None) -> Choice:
    """The model of a request that ranks documents: a reranker with one label, or else late interaction."""
    return call.models.choose(model, "scores", "rows", ranks=True)


async def cut(call: Call, served: Served, texts: list[str], most: int | None, param: str) -> list[str]:
    """Texts without what follows their first so many tokens, special tokens not counted.

    Args:
        call: The request.
        served: The model that reads them.
        texts: The texts.
        most: The number of tokens. None: as many as the model reads.
        param: The field of the request that says it.
    """
    if most is None:
        return texts
    if most < 1:
        raise RequestError(Kind.INVALID, f"{param} must be at least 1, got {most}.", param)

    def work() -> list[str]:
        tokens = served.model.tokens(texts, add_special_tokens=False)
        return [
            text if len(one) <= most else text[: max((token.stop or 0 for token in one[:most]), default=0)]
            for text, one in zip(texts, tokens, strict=True)
        ]

    return await call.off_loop(work, sum(map(len, texts)))


async def _maxsim(
    call: Call, served: Served, pairs: Sequence[tuple[str, str]], field: str, truncate: bool | None
) -> npt.NDArray[np.float32]:
    """Scores [pairs, 1] of late interaction. Each different query is encoded once."""
    _check_count(call, len(pairs), field)
    queries = list(dict.fromkeys(query for query, _ in pairs))
    sides = {"query": queries, "document": [document for _, document in pairs]}
    rows = {}
    for task, texts in sides.items():
        for index, text in enumerate(texts):
            _check_length(call, len(text), f"{field}[{index}]")
        work = served.work(None, None, task)
        rows[task] = (await _compute(call, served, work, list(texts), field, truncate)).rows
    of_query = dict(zip(queries, rows["query"], strict=True))
    model: Any = served.model

    def compare() -> npt.NDArray[np.float32]:
        scores = model.similarity_pairwise([of_query[query] for query, _ in pairs], rows["document"])
        return np.asarray(scores)[:, np.newaxis]

    return await call.off_loop(compare, sum(each.size for each in rows["document"]))


def as_items(call: Call, inputs: Any, field: str) -> list[Any]:
    """The texts of a request as a list; ids as lists of ids.

    Raises:
        RequestError: There are no texts or too many, one is too long, or they are ids and the server does not take ids.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    _check_count(call, len(inputs), field)
    if all(isinstance(item, str) for item in inputs):
        for index, item in enumerate(inputs):
            _check_length(call, len(item), f"{field}[{index}]")
        return list(inputs)
    if all(isinstance(item, int) for item in inputs):
        inputs = [inputs]
    for index, item in enumerate(inputs):
        if not isinstance(item, list) or not all(isinstance(number, int) for number in item):
            raise RequestError(
                Kind.INVALID,
                f"{field} must be a text or a list of texts; a mixture with other types is not allowed.",
                f"{field}[{index}]",
            )
    if call.settings.token_ids == "refuse":
        raise RequestError(Kind.INVALID, _FOREIGN_IDS, field)
    return list(inputs)


def _check_count(call: Call, count: int, field: str) -> None:
    limit = call.settings.max_texts
    if not count:
        raise RequestError(
            Kind.EMPTY, f"{field} is an empty list. Send at least one text; an empty text is one.", field
        )
    if count > limit:
        raise RequestError(
            Kind.TOO_LARGE, f"{field} has {count:,} texts, and at most {limit:,} are allowed (--max-texts).", field
        )


def _check_length(call: Call, characters: int, param: str) -> None:
    limit = call.settings.max_text_characters
    if characters > limit:
        raise RequestError(
            Kind.TOO_LARGE,
            f"{param} has {characters:,} characters, and at most {limit:,} are allowed (--max-text-characters).",
            param,
        )


def _work(choice: Choice, output: str | None, prompt_name: str | None, input_type: str | None) -> Work:
    """The work of a request, with the prompt that the request, or the model's name in it, asks for."""
    if input_type is not None and input_type not in _TASKS and input_type not in choice.served.prompts:
        raise RequestError(
            Kind.INVALID,
            f"input_type {input_type[:100]!r} is not known. Allowed: {', '.join(dict.fromkeys(_TASKS))}, and the "
            f"prompts of the model: {', '.join(choice.served.prompts)}.",
            "input_type",
        )
    task = choice.task
    if input_type in _TASKS:
        task = _TASKS[input_type] or task
    elif input_type is not None:
        prompt_name = prompt_name or input_type
    check_prompt_name(choice.served, prompt_name)
    if choice.served.model.manifest.needs_task and task is None:
        raise RequestError(
            Kind.INVALID,
            f"The model {choice.served.name!r} reads queries and documents in different ways, so it must know which "
            f"these are. Send input_type query or document, or the model {choice.served.name}:query or "
            f"{choice.served.name}:document.",
            "input_type",
        )
    return choice.served.work(output, prompt_name or choice.prompt_name, task)


def check_prompt_name(served: Served, prompt_name: str | None) -> None:
    """Refuse a prompt that the model does not have.

    Raises:
        RequestError: The model does not have it.
    """
    if prompt_name is not None and prompt_name not in served.prompts:
        raise RequestError(
            Kind.INVALID,
            f"prompt_name {prompt_name[:100]!r} is not a prompt of the model {served.name!r}. Its prompts: "
            f"{', '.join(served.prompts) or 'none'}.",
            "prompt_name",
        )


async def _compute(
    call: Call, served: Served, work: Work, items: list[Any], field: str, truncate: bool | None
) -> Answer:
    texts: list[Any]
    if isinstance(items[0], list):
        texts = [_from_ids(work, item, f"{field}[{index}]") for index, item in enumerate(items)]
    else:
        texts = work.texts(items)
    call.texts += len(items)
    answer = await served.scheduler.compute(
        work, texts, bulk=call.bulk, deadline=call.deadline(len(texts)), truncate=truncate is not False
    )
    call.count(answer)
    return answer


def _from_ids(work: Work, ids: list[int], param: str) -> Any:
    try:
        return work.from_ids(ids)
    except InvalidArgumentError as error:
        raise RequestError(Kind.INVALID, str(error), param) from error
