"""Fixtures for the exporter's tests: a tiny checkpoint built in memory, its bundle, and a way to run a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from fixture_types import Build, Run, TracedOnce
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, BertTokenizerFast, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from stonnx._device import kernels
from stonnx_export import pipeline
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.originals import load

MAX_SEQ_LENGTH = 40
HIDDEN = 32
CORPUS = (
    "The weather is lovely today. It's so sunny outside! He drove to the stadium in the rain.",
    "A man is playing a large flute on the stage while a crowd of people listens to the music.",
    "Ein kleines Mädchen spielt im Garten, während die Großmutter liest. 12,345.67 = a_b-c/d",
    "Сегодня утром в парке было тихо. 我们昨天晚上在河边看到了很多星星。 أعيش في مدينة صغيرة قرب البحر.",
)


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_small() -> None:
    """No progress bars on the standard error that tests read, and no threads for networks this small: where several
    test processes share the cores, threads that wait for each other take most of the time."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _bundles_as_they_are() -> Iterator[None]:
    """The exporter's tests hold files, by bare onnxruntime too: no native kernel may run one of them."""
    off = kernels.Unusable("the exporter's tests run the files as they are", unexpected=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "find", lambda operators=1: off)
        yield


@pytest.fixture(scope="session")
def run() -> Run:
    """``run(model, **feeds)``: the outputs of a graph under plain onnxruntime. Feeds that it has no input for are left
    out."""

    def run(model: ir.Model | Path, **feeds: Any) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        known = {value.name for value in [*session.get_inputs(), *session.get_overridable_initializers()]}
        return session.run(None, {name: np.asarray(array) for name, array in feeds.items() if name in known})

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with 2 layers of 32 features, mean pooling, Normalize and two prompts, as sentence-transformers saves it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    network = tmp_path_factory.mktemp("network")
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64).save_pretrained(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            # Far from uniform attention, so that a mistake in it shows.
            initializer_range=0.5,
        )
        BertModel(config).save_pretrained(network)
    model = SentenceTransformer(
        modules=[Transformer(str(network), max_seq_length=MAX_SEQ_LENGTH), Pooling(HIDDEN, "mean"), Normalize()],
        device="cpu",
        prompts={"query": "find: ", "document": ""},
        similarity_fn_name="dot",
    )
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model.save_pretrained(str(directory), create_model_card=False)
    return directory


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> SentenceTransformer:
    """The tiny checkpoint in sentence-transformers."""
    return SentenceTransformer(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="session")
def tiny_original(tiny_checkpoint: Path) -> TracedOnce:
    """The tiny checkpoint as the exporter has it."""
    return TracedOnce(read_checkpoint(tiny_checkpoint))


@pytest.fixture
def traced_once(tiny_original: TracedOnce, monkeypatch: pytest.MonkeyPatch) -> TracedOnce:
    """Every export in this test takes the tiny original, and with it the graph that was traced before."""
    monkeypatch.setattr(load, "_load_original", lambda checkpoint: tiny_original)
    return tiny_original


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tiny_original: TracedOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny checkpoint, exported under the name ``acme/tiny``. Not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(load, "_load_original", lambda checkpoint: tiny_original)
        return pipeline.export(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny-fp32", name="acme/tiny")


@pytest.fixture(scope="session")
def tiny_feeds() -> Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]:
    """``feeds(lengths)``: random ids and the mask of texts of these lengths, padded on the right to the longest."""

    def feeds(lengths: tuple[int, ...]) -> Mapping[str, np.ndarray]:
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(sum(lengths)).integers(5, 50, mask.shape)
        return {"input_ids": np.where(mask > 0, ids, 0), "attention_mask": mask}

    return feeds


@pytest.fixture(scope="session")
def small_builder(tiny_checkpoint: Path) -> Callable[[Path], Build]:
    """The function ``build_small``, for checkpoints in any directory."""

    def build(
        parent: Path, model_type: str, max_length: int | None = 32, auto: Any = AutoModel, **settings: Any
    ) -> Path:
        directory = parent / "checkpoint"
        backend = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
        backend.no_truncation()
        backend.no_padding()
        tokens = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **tokens).save_pretrained(
            directory
        )
        config = AutoConfig.for_model(
            model_type,
            vocab_size=backend.get_vocab_size(),
            hidden_size=32,
            num_attention_heads=4,
            intermediate_size=64,
            **{"num_hidden_layers": 1, "max_position_embeddings": 64, "initializer_range": 0.5} | settings,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            auto.from_config(config).save_pretrained(directory)
        return directory

    return lambda parent: partial(build, parent)


@pytest.fixture
def build_small(small_builder: Callable[[Path], Build], tmp_path: Path) -> Build:
    """``build_small(model_type, max_length=32, auto=AutoModel, **settings)``: a plain transformers checkpoint with
    random weights."""
    return small_builder(tmp_path)
