"""A reranker with a chat template behind the server: pairs in the template, instructions by the name of a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import helper
from toy_bundles import pair_graph, toy_table, write_bundle

from stonnx import CrossEncoder
from stonnx._bundle.manifest import ChatTemplate, read_manifest, write_manifest

from .conftest import Process

QUERY, DOCUMENTS = "what rises", ["the sun", "bread", "the river flows"]
TEMPLATE = ChatTemplate(
    pair=("the question : ", "query", " document : ", "document", " ?"),
    pair_with_prompt=("", "prompt", " : ", "query", " document : ", "document", " ?"),
)


def chat_bundle(directory: Path) -> Path:
    graph = pair_graph(toy_table(1, 4), np.array([0.3], dtype=np.float32), "Sigmoid")
    # A template makes one text of a pair: every token has the type 0.
    (types,) = [value for value in graph.graph.input if value.name == "token_type_ids"]
    graph.graph.input.remove(types)
    graph.graph.node.insert(0, helper.make_node("Sub", ["input_ids", "input_ids"], ["token_type_ids"]))
    fields = {"num_labels": 1, "labels": ("LABEL_0",), "activation": "sigmoid", "prompts": {"city": "what city is"}}
    write_bundle(directory, {"default": graph}, task="rerank", **fields)
    manifest = read_manifest(directory)
    route = manifest.routes["default"]
    tokenizer = dataclasses.replace(route.tokenizer, chat=TEMPLATE, add_special_tokens=False)
    routes = {"default": dataclasses.replace(route, tokenizer=tokenizer)}
    write_manifest(directory, dataclasses.replace(manifest, routes=routes))
    return directory


def test_scores_are_those_of_the_model(start: Callable[..., Process], tmp_path: Path) -> None:
    bundle = chat_bundle(tmp_path / "asked")
    model = CrossEncoder(bundle)
    server = start(bundle)
    for name, options in (("asked", {}), ("asked:city", {"prompt_name": "city"})):
        body = {"query": QUERY, "documents": DOCUMENTS, "model": name}
        results = server.client.post("/v2/rerank", json=body).raise_for_status().json()["results"]
        wanted = model.rank(QUERY, DOCUMENTS, **options)
        assert [row["index"] for row in results] == [row["corpus_id"] for row in wanted]
        np.testing.assert_allclose([row["relevance_score"] for row in results], [row["score"] for row in wanted], 1e-6)
    plain, prompted = (model.predict([(QUERY, text) for text in DOCUMENTS], prompt=p) for p in (None, "what city is"))
    assert np.abs(plain - prompted).max() > 1e-3
