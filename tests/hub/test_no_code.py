"""No code of a model is run."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bad_conditions import rehash
from onnx import TensorProto, helper, numpy_helper

from stonnx import BundleError, SentenceTransformer, StonnxError


class Payload:
    """What runs as soon as it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_nothing_in_a_bundle_is_code(bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickled = pickle.dumps(Payload(trace))
    pickle.loads(pickled)
    assert trace.exists()
    trace.unlink()
    for name in ("pytorch_model.bin", "probe.npz"):
        (bundle / name).write_bytes(pickled)
    (bundle / "modeling_x.py").write_text(f"open({str(trace)!r}, 'w')")
    data = json.loads((bundle / "stonnx.json").read_text(encoding="utf-8"))
    data["probe"] = {"file": "probe.npz", "cosine_min": 0.9}
    (bundle / "stonnx.json").write_text(json.dumps(data), encoding="utf-8")
    rehash(bundle, "probe.npz", "pytorch_model.bin", "modeling_x.py")
    with pytest.raises(BundleError, match="not a probe that can be read"):
        SentenceTransformer(bundle, trust_remote_code=True)
    np.savez(bundle / "probe.npz", texts=np.array([Payload(trace)], dtype=object), **{"route.default": np.zeros(1)})
    rehash(bundle)
    with pytest.raises(BundleError, match="allow_pickle=False"):
        SentenceTransformer(bundle, trust_remote_code=True)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("place", "source", "message"),
    [
        ("weights of a module", "torch", "Weights only load failed"),
        ("weights of a module", "onnx", "Weights only load failed"),
        ("weights", "torch", "Weights only load failed"),
        ("weights", "onnx", None),  # the network's are in the ONNX file
        ("code of a module", "torch", "--trust-remote-code"),
        ("code of a module", "onnx", "--trust-remote-code"),
        ("code", "torch", "the network is code of the model repository"),
        ("code", "onnx", None),  # as with the weights
        ("activation", "torch", r"The activation 'modeling_x\.X' cannot be exported"),
        ("activation", "onnx", r"The activation 'modeling_x\.X' cannot be exported"),
    ],
)
def test_nothing_in_a_checkpoint_is_run(
    tmp_path: Path, minilm_checkpoint: Path, place: str, source: Any, message: str | None
) -> None:
    from safetensors.numpy import save_file

    from stonnx_export import export

    checkpoint = Path(shutil.copytree(minilm_checkpoint, tmp_path / "checkpoint"))
    trace = tmp_path / "trace"
    (checkpoint / "modeling_x.py").write_text(f"open({str(trace)!r}, 'w')\nclass X: pass\n")
    modules = json.loads((checkpoint / "modules.json").read_text(encoding="utf-8"))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    dense = checkpoint / "2_Dense"
    dense.mkdir()
    settings = {"in_features": 384, "out_features": 4, "bias": False, "activation_function": "torch.nn.Identity"}
    pickled = pickle.dumps(Payload(trace), protocol=2)  # what torch.load expects
    if place == "weights of a module":
        (dense / "pytorch_model.bin").write_bytes(pickled)
    else:
        save_file({"linear.weight": np.ones((4, 384), dtype=np.float32)}, dense / "model.safetensors")
    if place == "weights":
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "pytorch_model.bin").write_bytes(pickled)
    elif place == "code of a module":
        modules[1]["type"] = "modeling_x.X"
    elif place == "code":
        classes = ("AutoConfig", "AutoModel", "AutoTokenizer")
        config |= {"model_type": "x", "auto_map": dict.fromkeys(classes, "modeling_x.X")}
    elif place == "activation":
        settings["activation_function"] = "modeling_x.X"
    modules.append({"idx": 3, "name": "3", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    for path, value in [("modules.json", modules), ("config.json", config), ("2_Dense/config.json", settings)]:
        (checkpoint / path).write_text(json.dumps(value), encoding="utf-8")
    _onnx_network(checkpoint / "onnx")
    with pytest.raises(StonnxError, match=message) if message else contextlib.nullcontext():
        export(checkpoint, tmp_path / "bundle", source=source)
    assert not trace.exists()


def _onnx_network(folder: Path) -> None:
    """An ONNX file with token embeddings, so that an export goes on to what is behind it."""
    folder.mkdir()
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "row"], ["last_hidden_state"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", 384])
    values = {"last": np.array([2]), "row": np.full((1, 384), 1e-3, dtype=np.float32)}
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "network", inputs, [output], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
