"""The models of the zoo in their published configuration: pure data, one row for each checkpoint.

It has over 400 lines because the table is read as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Task = Literal["embedding", "sparse", "rerank"]
Layout = Literal["legacy", "6.x"]
TokenizerKind = Literal[
    "wordpiece-uncased",
    "wordpiece-cased",
    "wordpiece-mpnet",
    "bpe-roberta",
    "bpe-modernbert",
    "bpe-qwen",
    "bpe-gemma",
    "unigram-xlmr",
    "wordpiece-model2vec",
    "unigram-albert",
    "unigram-deberta",
    "unigram-t5",
    "bpe-llama",
    "bpe-qwen-chat",
    "bpe-gemma-chat",
]

FACTS = "the published configuration of the model"
LIBRARY = "the tests and documentation of sentence-transformers 6.2"
GENERAL = "general knowledge"


@dataclass(frozen=True)
class TokenizerFacts:
    """What a published tokenizer_config.json says; `pad_id` is the published one."""

    tokenizer_class: str
    special_tokens: Mapping[str, str] = field(hash=False)
    pad_id: int
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    padding_side: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Size:
    """The dimensions of an encoder: what the zoo makes smaller, and nothing else."""

    layers: int
    hidden: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class Backbone:
    """An architecture: `config` holds published structure, `built_config` what building it small and fast forces."""

    model_type: str
    published: Size
    built: Size
    vocabulary: int
    positions: int
    tokenizer: TokenizerKind
    config: Mapping[str, object] = field(default_factory=dict, hash=False)
    built_config: Mapping[str, object] = field(default_factory=dict, hash=False)
    tokenizer_class: str | None = None


@dataclass(frozen=True)
class Pooling:
    """One mode, or several whose results are concatenated."""

    modes: tuple[str, ...]
    include_prompt: bool = True


@dataclass(frozen=True)
class Dense:
    """A linear layer with an activation from `torch.nn`, published dimensions."""

    in_features: int
    out_features: int
    activation: str
    bias: bool = True


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm over the sentence embedding."""


@dataclass(frozen=True)
class Normalize:
    """L2 normalization of the sentence embedding."""


@dataclass(frozen=True)
class SpladePooling:
    """log1p(relu(logits)) pooled over tokens."""

    strategy: Literal["max", "sum"]
    activation: Literal["relu", "log1p_relu"] = "relu"


@dataclass(frozen=True)
class SparseAutoEncoder:
    """Top-k latents of a dense embedding (CSR), published dimensions."""

    input_dim: int
    hidden_dim: int
    k: int
    k_aux: int


Module = Pooling | Dense | LayerNorm | Normalize | SpladePooling | SparseAutoEncoder


@dataclass(frozen=True)
class Requirement:
    """The first version of a package that has the model, and what earlier ones lack."""

    package: str
    version: str
    reason: str


@dataclass(frozen=True)
class Head:
    """A reranker's head, and the place where its checkpoint records the activation (None: the default applies)."""

    labels: int
    activation: Literal["Identity", "Sigmoid"]
    recorded_in: Literal["sentence_transformers", "sbert_ce_default_activation_function", "6.x"] | None
    # The answers of a causal language model, the second of which may be missing. Other networks have a classifier.
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelRow:
    """One published model; with `max_seq_length` None the checkpoint leaves the length to its tokenizer and config."""

    name: str
    backbone: Backbone
    layout: Layout
    chain: tuple[Module, ...] = ()
    max_seq_length: int | None = None
    task: Task = "embedding"
    do_lower_case: bool = False
    model_max_length: int = 512
    tokenizer_json_padding: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_prompt_name: str | None = None
    similarity: Literal["cosine", "dot"] = "cosine"
    inference_free_query: bool = False
    head: Head | None = None
    # The chat template of a reranker, and whether its checkpoint asks for the beginning of an answer.
    chat_template: str | None = None
    add_generation_prompt: bool = False
    source: str = FACTS
    needs: Requirement | None = None

    @property
    def slug(self) -> str:
        """The name as one folder name."""
        return self.name.replace("/", "__")


_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ALBERT_TOKENS = {**_BERT_TOKENS, "unk_token": "<unk>", "pad_token": "<pad>"}
_UNCASED = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}

TOKENIZERS: Mapping[TokenizerKind, TokenizerFacts] = {
    "wordpiece-uncased": TokenizerFacts("BertTokenizer", _BERT_TOKENS, 0, _UNCASED),
    "wordpiece-cased": TokenizerFacts("BertTokenizer", _BERT_TOKENS, 0, {**_UNCASED, "do_lower_case": False}),
    "wordpiece-mpnet": TokenizerFacts("MPNetTokenizer", {**_ROBERTA_TOKENS, "unk_token": "[UNK]"}, 1, _UNCASED),
    "bpe-roberta": TokenizerFacts(
        "RobertaTokenizer", _ROBERTA_TOKENS, 1, {"add_prefix_space": False, "trim_offsets": True, "errors": "replace"}
    ),
    "bpe-modernbert": TokenizerFacts(
        "PreTrainedTokenizerFast", _BERT_TOKENS, 50283, {"model_input_names": ["input_ids", "attention_mask"]}
    ),
    "bpe-qwen": TokenizerFacts(
        "Qwen2Tokenizer",
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        151643,
        {"add_prefix_space": False, "add_bos_token": False, "split_special_tokens": False},
        padding_side="left",
    ),
    "bpe-gemma": TokenizerFacts(
        "GemmaTokenizer",
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        0,
        {"add_bos_token": True, "add_eos_token": True},
    ),
    "unigram-xlmr": TokenizerFacts("XLMRobertaTokenizer", _ROBERTA_TOKENS, 1),
    "wordpiece-model2vec": TokenizerFacts("PreTrainedTokenizerFast", _BERT_TOKENS, 0),
    "unigram-albert": TokenizerFacts("PreTrainedTokenizerFast", _ALBERT_TOKENS, 0),
    "unigram-deberta": TokenizerFacts("PreTrainedTokenizerFast", _BERT_TOKENS, 0),
    "unigram-t5": TokenizerFacts(
        "PreTrainedTokenizerFast",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        0,
        {"model_input_names": ["input_ids", "attention_mask"]},
    ),
    "bpe-llama": TokenizerFacts(
        "PreTrainedTokenizerFast",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        2,
        {"model_input_names": ["input_ids", "attention_mask"]},
        padding_side="left",
    ),
}

TOKENIZERS = {
    **TOKENIZERS,
    "bpe-qwen-chat": TOKENIZERS["bpe-qwen"],
    "bpe-gemma-chat": replace(TOKENIZERS["bpe-gemma"], settings={"add_bos_token": True}, padding_side="left"),
}

_BASE = Size(12, 768, 12, 3072)
_SMALL_64 = Size(2, 128, 2, 256)
_SMALL_32 = Size(2, 96, 3, 192)
_BERT_CONFIG = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
_ROBERTA_CONFIG = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1}
_MPNET_CONFIG = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "relative_attention_num_buckets": 32}

BERT = Backbone("bert", _BASE, _SMALL_64, 30522, 512, "wordpiece-uncased", _BERT_CONFIG)
BERT_LARGE = replace(BERT, published=Size(24, 1024, 16, 4096))
LABSE = replace(BERT, vocabulary=501153, tokenizer="wordpiece-cased")
SCIBERT = replace(BERT, vocabulary=31116)
MINILM_L6 = replace(BERT, published=Size(6, 384, 12, 1536), built=_SMALL_32)
MINILM_L3 = replace(MINILM_L6, published=Size(3, 384, 12, 1536))
MINILM_L12 = replace(MINILM_L6, published=Size(12, 384, 12, 1536))
MINILM_MULTILINGUAL = replace(
    MINILM_L12,
    vocabulary=250037,
    tokenizer="unigram-xlmr",
    config={**_BERT_CONFIG, "pad_token_id": 0},
)
MPNET = Backbone("mpnet", _BASE, _SMALL_64, 30527, 514, "wordpiece-mpnet", _MPNET_CONFIG)
ROBERTA = Backbone("roberta", _BASE, _SMALL_64, 50265, 514, "bpe-roberta", _ROBERTA_CONFIG)
DISTILROBERTA = replace(ROBERTA, published=Size(6, 768, 12, 3072))
XLM_ROBERTA = Backbone("xlm-roberta", _BASE, _SMALL_64, 250002, 514, "unigram-xlmr", _ROBERTA_CONFIG)
DISTILBERT = Backbone(
    "distilbert",
    Size(6, 768, 12, 3072),
    _SMALL_64,
    30522,
    512,
    "wordpiece-uncased",
    {"activation": "gelu", "sinusoidal_pos_embds": False},
    tokenizer_class="DistilBertTokenizer",
)
DISTILBERT_CASED = replace(DISTILBERT, vocabulary=119547, tokenizer="wordpiece-cased")
ELECTRA = Backbone(
    "electra",
    _BASE,
    _SMALL_64,
    30522,
    512,
    "wordpiece-uncased",
    {**_BERT_CONFIG, "embedding_size": 768},
    {"embedding_size": 128},
    tokenizer_class="ElectraTokenizer",
)
MODERNBERT = Backbone(
    "modernbert",
    Size(22, 768, 12, 1152),
    Size(4, 128, 2, 192),
    50368,
    8192,
    "bpe-modernbert",
    {
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    },
    {"local_attention": 8, "initializer_cutoff_factor": 6.0},
)
NOMIC_BERT = Backbone(
    "nomic_bert",
    _BASE,
    _SMALL_64,
    30528,
    8192,
    "wordpiece-uncased",
    {"hidden_act": "silu", "layer_norm_eps": 1e-12, "type_vocab_size": 2},
)
QWEN3 = Backbone(
    "qwen3",
    Size(28, 1024, 16, 3072),
    Size(2, 64, 4, 128),
    151669,
    32768,
    "bpe-qwen",
    {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    {"num_key_value_heads": 2, "head_dim": 32},
)
GEMMA3 = Backbone(
    "gemma3_text",
    Size(24, 768, 3, 1152),
    Size(2, 96, 3, 160),
    262144,
    2048,
    "bpe-gemma",
    {
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "use_bidirectional_attention": True,
    },
    {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)
MODEL2VEC = Backbone("model2vec", Size(0, 256, 0, 0), Size(0, 64, 0, 0), 29528, 0, "wordpiece-model2vec")

_CLS = Pooling(("cls",))
_MEAN = Pooling(("mean",))
_CLS_N = (_CLS, Normalize())
_MEAN_N = (_MEAN, Normalize())
_DISTILUSE = (_MEAN, Dense(768, 512, "Tanh"))
_LABSE = (_CLS, Dense(768, 768, "Tanh"), Normalize())
_GEMMA = (_MEAN, Dense(768, 3072, "Identity", bias=False), Dense(3072, 768, "Identity", bias=False), Normalize())
_EVERY_MODE = Pooling(("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"), include_prompt=False)

_E5_PROMPTS = {"query": "query: ", "passage": "passage: "}
_NOMIC_PROMPTS = {"query": "search_query: ", "document": "search_document: "}
_QWEN_PROMPTS = {
    "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
    "document": "",
}
_GEMMA_PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}
_CARD = "prompts: the model card's usage, saved here as a user would"

_EMBEDDING = (
    ModelRow("all-mpnet-base-v2", MPNET, "legacy", _MEAN_N, 384),
    ModelRow(
        "all-MiniLM-L6-v2", MINILM_L6, "legacy", _MEAN_N, 256, tokenizer_json_padding=128, source=f"{FACTS}; {LIBRARY}"
    ),
    ModelRow("all-MiniLM-L12-v2", MINILM_L12, "6.x", _MEAN_N, 128),
    ModelRow("paraphrase-mpnet-base-v2", MPNET, "6.x", (_MEAN,), 512),
    ModelRow("paraphrase-MiniLM-L6-v2", MINILM_L6, "6.x", (_MEAN,), 128),
    ModelRow(
        "paraphrase-MiniLM-L3-v2",
        MINILM_L3,
        "legacy",
        (_MEAN,),
        128,
        model_max_length=64,
        source=f"{FACTS}; model_max_length 64 for 512 is the zoo's own trap",
    ),
    ModelRow("paraphrase-distilroberta-base-v2", DISTILROBERTA, "legacy", (_MEAN,), 256),
    ModelRow("multi-qa-mpnet-base-cos-v1", MPNET, "6.x", _MEAN_N, 512),
    ModelRow("multi-qa-distilbert-cos-v1", DISTILBERT, "legacy", _MEAN_N, 512),
    ModelRow("multi-qa-MiniLM-L6-cos-v1", MINILM_L6, "6.x", _MEAN_N, 512),
    ModelRow("msmarco-bert-base-dot-v5", BERT, "legacy", (_MEAN,), 512, similarity="dot"),
    ModelRow("msmarco-distilbert-dot-v5", DISTILBERT, "6.x", (_MEAN,), 512, similarity="dot"),
    ModelRow("msmarco-distilbert-cos-v5", DISTILBERT, "legacy", _MEAN_N, 512),
    ModelRow("distiluse-base-multilingual-cased-v1", DISTILBERT_CASED, "legacy", _DISTILUSE, 128),
    ModelRow("distiluse-base-multilingual-cased-v2", DISTILBERT_CASED, "6.x", _DISTILUSE, 128),
    ModelRow("paraphrase-multilingual-mpnet-base-v2", XLM_ROBERTA, "legacy", (_MEAN,), 128),
    ModelRow("LaBSE", LABSE, "legacy", _LABSE, 256),
    ModelRow("allenai-specter", SCIBERT, "6.x", (_CLS,), 512),
    ModelRow("BAAI/bge-large-en", BERT_LARGE, "legacy", _CLS_N, 512, do_lower_case=True),
    ModelRow(
        "BAAI/bge-small-en-v1.5", MINILM_L12, "6.x", _CLS_N, 512, do_lower_case=True, source=f"{LIBRARY}; {GENERAL}"
    ),
    ModelRow(
        "intfloat/e5-small-v2",
        MINILM_L12,
        "legacy",
        _MEAN_N,
        512,
        prompts=_E5_PROMPTS,
        source=f"{LIBRARY}; sizes: {GENERAL}; {_CARD}",
    ),
    ModelRow(
        "intfloat/multilingual-e5-small",
        MINILM_MULTILINGUAL,
        "6.x",
        _MEAN_N,
        512,
        prompts=_E5_PROMPTS,
        source=f"{LIBRARY}; sizes, pad ids: {GENERAL}; {_CARD}",
    ),
    ModelRow("thenlper/gte-base", BERT, "6.x", _MEAN_N, 512, source=f"{LIBRARY}; sizes: {GENERAL}"),
    ModelRow(
        "nomic-ai/modernbert-embed-base",
        MODERNBERT,
        "legacy",
        _MEAN_N,
        8192,
        model_max_length=8192,
        prompts=_NOMIC_PROMPTS,
        source=f"{LIBRARY}; structure: defaults of transformers 5.23; {_CARD}",
    ),
    ModelRow(
        "nomic-ai/nomic-embed-text-v1.5",
        NOMIC_BERT,
        "6.x",
        (_MEAN,),
        8192,
        model_max_length=8192,
        prompts=_NOMIC_PROMPTS,
        source=f"{LIBRARY}; structure: transformers 5.23's class, not the repository's own code; {_CARD}",
        needs=Requirement("transformers", "5", "the class of nomic_bert"),
    ),
    ModelRow(
        "Qwen/Qwen3-Embedding-0.6B",
        QWEN3,
        "legacy",
        (Pooling(("lasttoken",)), Normalize()),
        model_max_length=131072,
        prompts=_QWEN_PROMPTS,
        source=f"{LIBRARY}; sizes, padding side: model card; the rest: {GENERAL}",
    ),
    ModelRow(
        "google/embeddinggemma-300m",
        GEMMA3,
        "6.x",
        _GEMMA,
        2048,
        model_max_length=2048,
        prompts=_GEMMA_PROMPTS,
        source=f"{LIBRARY}; sizes, prompts, padding side: {GENERAL}",
    ),
    ModelRow("minishlab/potion-base-8M", MODEL2VEC, "legacy", (Normalize(),), source=f"{LIBRARY}; {GENERAL}"),
    ModelRow(
        "zoo/every-pooling",
        BERT,
        "legacy",
        (_EVERY_MODE, LayerNorm()),
        model_max_length=10**30,
        prompts={"query": "Represent the question for retrieval: ", "document": "Represent the passage: "},
        default_prompt_name="document",
        source="made up: every pooling mode, LayerNorm, excluded prompt, default prompt, no length anywhere",
    ),
)

_SPARSE = (
    ModelRow(
        "naver/splade-cocondenser-ensembledistil",
        BERT,
        "legacy",
        (SpladePooling("max"),),
        512,
        "sparse",
        similarity="dot",
    ),
    ModelRow(
        "naver/splade-v3-distilbert",
        DISTILBERT,
        "6.x",
        (SpladePooling("max"),),
        512,
        "sparse",
        similarity="dot",
        source=f"{LIBRARY}; sizes: {GENERAL}",
    ),
    ModelRow(
        "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill",
        DISTILBERT,
        "legacy",
        (SpladePooling("max", "log1p_relu"),),
        512,
        "sparse",
        similarity="dot",
        inference_free_query=True,
        source="docstring of sentence_transformers' Router; layout: the repository's file listing",
    ),
    ModelRow(
        "sparse-encoder/csr-mxbai-embed-large-v1",
        BERT_LARGE,
        "6.x",
        (_CLS, SparseAutoEncoder(1024, 4096, 256, 512)),
        512,
        "sparse",
        source=f"{LIBRARY}; backbone and sizes: {GENERAL}",
    ),
)

_IDENTITY = Head(1, "Identity", "sentence_transformers")
_OLD_IDENTITY = Head(1, "Identity", "sbert_ce_default_activation_function")
_NLI = Head(3, "Identity", None)
_STSB = Head(1, "Sigmoid", "6.x")
_BGE = Head(1, "Sigmoid", None)

_RERANK = (
    ModelRow("cross-encoder/ms-marco-MiniLM-L6-v2", MINILM_L6, "legacy", task="rerank", head=_IDENTITY),
    ModelRow("cross-encoder/nli-roberta-base", ROBERTA, "legacy", task="rerank", head=_NLI, source=GENERAL),
    ModelRow("cross-encoder/stsb-roberta-base", ROBERTA, "6.x", (), 512, "rerank", head=_STSB, source=GENERAL),
    ModelRow("BAAI/bge-reranker-base", XLM_ROBERTA, "legacy", task="rerank", head=_BGE, source=GENERAL),
    ModelRow(
        "cross-encoder/ms-marco-electra-base", ELECTRA, "legacy", task="rerank", head=_OLD_IDENTITY, source=GENERAL
    ),
)

PUBLISHED: tuple[ModelRow, ...] = (*_EMBEDDING, *_SPARSE, *_RERANK)


@dataclass(frozen=True)
class ImageModelRow:
    """A published model that reads texts and images: a tower for each, and a processor of images."""

    name: str
    model_type: str
    # The towers of texts and of images, and the dimensions of the vectors that both give.
    text: tuple[Size, Size]
    vision: tuple[Size, Size]
    projection: tuple[int, int]
    # Pixels of an edge: of an image and of a patch.
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    positions: int
    config: Mapping[str, object] = field(default_factory=dict, hash=False)
    processor: Mapping[str, object] = field(default_factory=dict, hash=False)
    source: str = FACTS


_CLIP_PROCESSOR: Mapping[str, object] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

# Each pair has the published size and the built one.
IMAGE_MODELS: tuple[ImageModelRow, ...] = (
    ImageModelRow(
        "clip-ViT-B-32",
        "clip",
        text=(Size(12, 512, 8, 2048), Size(2, 64, 4, 128)),
        vision=(Size(12, 768, 12, 3072), Size(2, 96, 4, 128)),
        projection=(512, 32),
        image_size=(224, 48),
        patch_size=(32, 16),
        positions=77,
        config={"hidden_act": "quick_gelu"},
        processor=_CLIP_PROCESSOR,
        source=GENERAL,
    ),
    ImageModelRow(
        "clip-ViT-B-16",
        "clip",
        text=(Size(12, 512, 8, 2048), Size(2, 128, 2, 256)),
        vision=(Size(12, 768, 12, 3072), Size(2, 192, 3, 384)),
        projection=(512, 64),
        image_size=(224, 64),
        patch_size=(16, 16),
        positions=77,
        config={"hidden_act": "quick_gelu"},
        processor=_CLIP_PROCESSOR,
        source=GENERAL,
    ),
    ImageModelRow(
        "clip-ViT-L-14",
        "clip",
        text=(Size(12, 768, 12, 3072), Size(2, 192, 3, 384)),
        vision=(Size(24, 1024, 16, 4096), Size(3, 256, 4, 512)),
        projection=(768, 96),
        image_size=(224, 42),
        patch_size=(14, 14),
        positions=77,
        config={"hidden_act": "quick_gelu"},
        processor=_CLIP_PROCESSOR,
        source=GENERAL,
    ),
)
