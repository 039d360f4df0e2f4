"""The README.md of a bundle: how it was made, how close it is, how to use it with and without stonnx."""

from __future__ import annotations

from collections.abc import Sequence

from stonnx._bundle import Manifest
from stonnx_export.passes import PassResult

NAME = "README.md"


def render(manifest: Manifest, results: Sequence[PassResult]) -> str:
    """The text of the card."""
    route = next(iter(manifest.routes.values()))
    fidelity = manifest.fidelity
    assert fidelity is not None
    chain = " → ".join(module.type for module in manifest.modules)
    inputs = ", ".join(f"`{spec.name}`{' (optional)' if spec.optional else ''}" for spec in route.inputs)
    outputs = ", ".join(f"`{spec.name}` [{', '.join(map(str, spec.shape))}]" for spec in route.outputs)
    fired = ", ".join(f"{result.name} {result.fired}x" for result in results)
    versions = ", ".join(f"{name} {version}" for name, version in manifest.exporter.items())
    similarity = manifest.similarity_fn_name or "cosine"
    return f"""---
library_name: stonnx
pipeline_tag: sentence-similarity
tags: [stonnx, onnx, sentence-transformers, feature-extraction]
---

# {manifest.source.name} as a {manifest.precision} ONNX bundle

Text embeddings without PyTorch. The network, the pooling and everything behind it are one graph: {chain}.

| | |
|---|---|
| dimensions | {manifest.embedding_dimension} |
| longest text | {route.tokenizer.max_seq_length} tokens; longer texts are cut |
| vectors of length 1 | {"yes" if manifest.normalized else "no"} |
| similarity | {similarity} |
| precision | {manifest.precision} (recipe `{manifest.recipe}`) |

## How close it is to the original

Compared with {fidelity.compared_with}, on {fidelity.texts} texts in
many scripts and of all lengths up to beyond the limit, each one alone and in a batch:

| | measured | tolerated |
|---|---|---|
| cosine, mean | {fidelity.cosine_mean:.7f} | |
| cosine, lowest | {fidelity.cosine_min:.7f} | at least {fidelity.tolerance["cosine_min"]} |
| largest difference | {fidelity.max_abs_difference:.1e} | at most {fidelity.tolerance["max_abs_difference"]:.0e} |
| alone against batched | {fidelity.batch_invariance:.1e} | at most {fidelity.tolerance["batch_invariance"]:.0e} |

## Use it

With stonnx (`pip install "stonnx[cpu]"`):

```python
from stonnx import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
embeddings = model.encode(["The weather is lovely today.", "It's so sunny outside!"])
print(model.similarity(embeddings, embeddings))
```

Without stonnx, from this directory:

```python
import numpy as np
import onnxruntime
import tokenizers

tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx")
encodings = tokenizer.encode_batch(["The weather is lovely today.", "It's so sunny outside!"])
feeds = {{
    "input_ids": np.array([encoding.ids for encoding in encodings]),
    "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
}}
(embeddings,) = session.run(["sentence_embedding"], feeds)
```

Inputs: {inputs}. Outputs: {outputs}. Padding must be on the right, as `tokenizer.json` pads.

## How it was made

`stonnx export {manifest.source.name} --dtype {manifest.recipe}` with {versions}. Rewrites of
the graph: {fired}. SHA-256 of the original weights:
`{manifest.source.weights_sha256}`.
`stonnx.json` has every detail. The licence is that of the original model.
"""
