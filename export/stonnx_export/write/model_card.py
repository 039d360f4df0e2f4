"""The README.md of a bundle: how it was made, how close it is, how to use it with and without stonnx."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from stonnx._bundle.manifest import Fidelity, Manifest, TokenizerSpec
from stonnx._tasks import TASKS, Task
from stonnx._text.chat import Chat
from stonnx._text.tokens import Text

NAME = "README.md"


@dataclass(frozen=True)
class _Usage:
    """The words of a task on the card: the Hub's tag, what the model gives, and how it is called."""

    pipeline_tag: str
    gives: str
    code: str


USAGES: dict[Task, _Usage] = {
    "embedding": _Usage(
        "sentence-similarity",
        "Text embeddings",
        """from stonnx import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
embeddings = model.encode(["The weather is lovely today.", "It's so sunny outside!"])
print(model.similarity(embeddings, embeddings))""",
    ),
    "sparse": _Usage(
        "feature-extraction",
        "Sparse text embeddings",
        """from stonnx import SparseEncoder

model = SparseEncoder("path/to/this/directory")
embeddings = model.encode_document(["The weather is lovely today.", "It's so sunny outside!"])
print(model.decode(embeddings, top_k=5))""",
    ),
    "rerank": _Usage(
        "text-ranking",
        "Scores for pairs of texts",
        """from stonnx import CrossEncoder

model = CrossEncoder("path/to/this/directory")
print(model.predict([("How is the weather?", "It's so sunny outside!"), ("How is the weather?", "He drove home.")]))""",
    ),
    "multivector": _Usage(
        "feature-extraction",
        "A vector for each token (late interaction, ColBERT)",
        """from stonnx import MultiVectorEncoder

model = MultiVectorEncoder("path/to/this/directory")
queries = model.encode_query(["How is the weather?"])
documents = model.encode_document(["The weather is lovely today.", "He drove home."])
print(model.similarity(queries, documents))""",
    ),
}


_FIGURES = {
    "cosine_mean": "cosine, mean",
    "cosine_p1": "cosine, 1st percentile",
    "cosine_min": "cosine, lowest",
    "neighbours_overlap": "ten nearest neighbours that stay the same",
    "active_overlap": "active dimensions that stay the same",
    "rank_correlation": "rank correlation of the scores",
    "spearman_drop": "drop of Spearman's correlation x 100 with scores of people",
    "max_abs_difference": "largest difference",
    "batch_invariance": "alone, batched or padded: largest difference",
    "invariance_cosine": "alone, batched or padded: lowest cosine",
}


def render(manifest: Manifest) -> str:
    """The text of the card."""
    usage = USAGES[manifest.task]
    fidelity = manifest.fidelity
    assert fidelity is not None
    chain = " → ".join(module.type for module in manifest.modules)
    fired = ", ".join(f"{name} {count}x" for name, count in manifest.rewrites.items() if count)
    versions = ", ".join(f"{name} {version}" for name, version in manifest.exporter.items())
    unit = "pairs of texts" if TASKS[manifest.task].reads_pairs else "texts"
    return f"""---
library_name: stonnx
pipeline_tag: {usage.pipeline_tag}
tags: [stonnx, onnx, sentence-transformers]
---

# {manifest.source.name} as a {manifest.precision} ONNX bundle

{usage.gives} without PyTorch. The network and everything after it are one graph: {chain}.

| | |
|---|---|
{_facts(manifest)}

## How close it is to the original

Compared with {fidelity.compared_with}, on {fidelity.texts} {unit} in
many scripts and of all lengths up to beyond the limit, each one alone and in a batch, some with padding:

| | measured | tolerated |
|---|---|---|
{_figures(fidelity)}
{_sixteen_bits(fidelity)}{_kept(manifest)}
## Use it

With stonnx (`pip install "stonnx[cpu]"`):

```python
{usage.code}
```

Without stonnx, from this directory:

```python
{_bare_code(manifest)}
```

{_interface(manifest)}
Padding must be on the right, as the tokenizer file pads.

## How it was made

`stonnx export {manifest.source.name} --dtype {manifest.recipe}` with {versions}. Rewrites of
the graph: {fired}. SHA-256 of the original weights:
`{manifest.source.weights_sha256}`.
{_adapted(manifest)}{_loading(manifest)}`stonnx.json` has every detail. The licence is that of the original model.
"""


_AT_MOST = ("max_abs_difference", "batch_invariance", "spearman_drop")


def _figures(fidelity: Fidelity) -> str:
    rows = []
    for name, label in _FIGURES.items():
        value, limit = getattr(fidelity, name), fidelity.tolerance.get(name)
        if value is None:
            continue
        small = name in _AT_MOST and name != "spearman_drop"
        if limit is None:
            bound = ""
        elif name in _AT_MOST:
            bound = f"at most {limit:.0e}" if small else f"at most {limit}"
        else:
            bound = f"at least {limit}"
        rows.append(f"| {label} | {value:{'.1e' if small else '.7f'}} | {bound} |")
    return "\n".join(rows)


# The card has this many names. More names would not help more than their number.
_MOST_NAMES = 8


def _names(every: Sequence[str]) -> str:
    more = len(every) - _MOST_NAMES
    return ", ".join(f"`{name}`" for name in every[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _kept(manifest: Manifest) -> str:
    """The layers in a higher precision than the rest, and the limits of the figures of half precision."""
    names = _names(manifest.kept)
    if manifest.precision != "float16":
        what = "weights" if manifest.precision == "bfloat16" else "matrix products"
        text = f"\nIn float32 for accuracy: the {what} {names}.\n" if names else ""
        if manifest.halved:
            text += f"""
In bfloat16 for accuracy, because they lost most in 8 bits: the matrix products and tables {_names(manifest.halved)}.
Native kernels that multiply bfloat16 run such products in bfloat16; elsewhere they run in float32.
"""
        return text
    text = """
The figures were measured on the CPU, where onnxruntime computes half precision in float32: a GPU, which rounds every
result, is a little further away. The probe in the bundle checks it there.
"""
    if names:
        text += f"\nIn float32, because half precision has no room for values this large: the operators {names}.\n"
    return text


def _sixteen_bits(fidelity: Fidelity) -> str:
    """How far the bundle is from the original's default, if that computes in 16 bits."""
    found = fidelity.as_loaded
    if found is None:
        return ""
    return f"""
The checkpoint's weights have 16 bits. sentence-transformers computes with them in {found.dtype} unless told otherwise;
these figures are of the same weights in float32. Beside {found.dtype}, on {found.texts} of the texts: cosine mean
{found.cosine_mean:.6f}, lowest {found.cosine_min:.6f}, largest difference {found.max_abs_difference:.1e}.
"""


def _adapted(manifest: Manifest) -> str:
    """What an adapter was merged into."""
    base = manifest.source.base
    if base is None:
        return ""
    at = f" at {base.revision}" if base.revision else ""
    return f"It is an adapter, merged into `{base.name}`{at}; the hash covers both.\n"


def _loading(manifest: Manifest) -> str:
    """Special observations from loading the original."""
    text = ""
    if manifest.remote_code:
        names = ", ".join(f"`{name}`" for name in manifest.remote_code)
        text += f"""The exporter ran code of the model repository, because it was told to trust it: {names}.
This bundle needs none of that code, and runs none.
"""
    if manifest.unused_weights:
        names = _names(manifest.unused_weights)
        text += f"The network has no place for these weights of the checkpoint: {names}.\n"
    return text


def _facts(manifest: Manifest) -> str:
    facts = []
    row = TASKS[manifest.task]
    if row.gives_labels:
        facts.append(("labels", ", ".join(manifest.labels)))
        facts.append(("activation of the scores", str(manifest.activation)))
    else:
        facts.append(("dimensions", str(manifest.embedding_dimension)))
        facts.append(("similarity", str(manifest.similarity_fn_name or row.similarity)))
    if manifest.task == "embedding":
        facts.append(("vectors of length 1", "yes" if manifest.normalized else "no"))
    for name, route in manifest.routes.items():
        limit = route.tokenizer.max_seq_length
        which = "" if len(manifest.routes) == 1 else f" ({name})"
        facts.append((f"longest {row.unit}{which}", f"{limit} tokens; longer ones are cut" if limit else "any"))
        facts += _of_tasks(route.tokenizer)
    facts += [(f"prompt `{name}`", f"`{prompt!r}`") for name, prompt in manifest.prompts.items() if prompt]
    facts.append(("precision", f"{manifest.precision} (recipe `{manifest.recipe}`)"))
    return "\n".join(f"| {name} | {value} |" for name, value in facts)


def _of_tasks(tokenizer: TokenizerSpec) -> list[tuple[str, str]]:
    """What is different for queries and documents."""
    facts = []
    for name, limit in (("query", tokenizer.query_length), ("document", tokenizer.document_length)):
        if limit is not None:
            facts.append((f"longest {name}", f"{limit} tokens; longer ones are cut"))
    if tokenizer.expansion is not None:
        facts.append(("shortest query", f"filled up to {tokenizer.expansion.length} tokens"))
    return facts


def _bare_code(manifest: Manifest) -> str:
    route = manifest.routes[manifest.default_route]
    output, pair = TASKS[manifest.task].result, TASKS[manifest.task].reads_pairs
    sample: Text = ("How is the weather?", "It's so sunny outside!") if pair else "The weather is lovely today."
    chat = route.tokenizer.chat
    if chat is not None:
        # The text as the chat template has it. If it has to be cut, its end must stay.
        sample, pair = str(Chat(chat).render(sample)), False
    types = any(spec.name == "token_type_ids" for spec in route.inputs) and pair
    types_line = '\n    "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),' if types else ""
    special = "" if route.tokenizer.add_special_tokens else ", add_special_tokens=False"
    return f"""import numpy as np
import onnxruntime
import tokenizers

tokenizer = tokenizers.Tokenizer.from_file("{route.tokenizer.file}")
session = onnxruntime.InferenceSession("{route.graph}")
encodings = tokenizer.encode_batch([{_literal(sample)}]{special})
feeds = {{
    "input_ids": np.array([encoding.ids for encoding in encodings]),
    "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),{types_line}
}}
({output},) = session.run(["{output}"], feeds)"""


def _literal(sample: Text) -> str:
    """A text or pair as Python code, with double quotes: a JSON string is a Python one."""
    if isinstance(sample, str):
        return json.dumps(sample, ensure_ascii=False)
    return f"({', '.join(map(_literal, sample))})"


def _interface(manifest: Manifest) -> str:
    lines = []
    for route in manifest.routes.values():
        inputs = ", ".join(f"`{spec.name}`{' (optional)' if spec.optional else ''}" for spec in route.inputs)
        outputs = ", ".join(f"`{spec.name}` [{', '.join(map(str, spec.shape))}]" for spec in route.outputs)
        lines.append(f"`{route.graph}` has the inputs {inputs}, and the outputs {outputs}.")
    if manifest.image is not None:
        shape = ", ".join(map(str, manifest.image.inputs[0].shape))
        lines.append(
            f"`{manifest.image.graph}` reads images, in {manifest.image.precision}: it has the input `pixel_values` "
            f"[{shape}] and gives `{manifest.image.outputs[0].name}`. `stonnx.json` says how an image becomes "
            "`pixel_values`."
        )
    return "\n".join(lines)
