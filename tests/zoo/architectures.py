"""More architectures, each with a head: pure data, one row for each checkpoint, smaller than the models of the guide.

Their tokenizers are of the published kind, under transformers' generic class: tokenizer.json is taken as it is.
"""

from __future__ import annotations

from dataclasses import replace

from .table import (
    GENERAL,
    MODERNBERT,
    QWEN3,
    XLM_ROBERTA,
    Backbone,
    Dense,
    Head,
    ModelRow,
    Normalize,
    Pooling,
    Size,
)

_TINY = Size(2, 64, 2, 128)
_LIMIT = 64
# A template alone has up to 180 tokens of these small vocabularies.
_CHAT_LIMIT = 400

ALBERT = Backbone(
    "albert",
    Size(12, 768, 12, 3072),
    _TINY,
    30000,
    512,
    "unigram-albert",
    {
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "embedding_size": 128,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    },
    {"embedding_size": 32},
)
DEBERTA = Backbone(
    "deberta-v2",
    Size(12, 768, 12, 3072),
    _TINY,
    128100,
    512,
    "unigram-deberta",
    {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-7,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
    },
    {"position_buckets": 16, "pooler_hidden_size": 64},
)
T5 = Backbone(
    "t5",
    Size(12, 768, 12, 3072),
    _TINY,
    32128,
    0,
    "unigram-t5",
    {
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "d_kv": 64,
    },
    {"d_kv": 32},
)
MT5 = replace(
    T5,
    model_type="mt5",
    published=Size(12, 768, 12, 2048),
    vocabulary=250112,
    config={**T5.config, "feed_forward_proj": "gated-gelu"},
)
CAMEMBERT = replace(XLM_ROBERTA, model_type="camembert", built=_TINY, vocabulary=32005)
XLM_ROBERTA_XL = replace(
    XLM_ROBERTA, model_type="xlm-roberta-xl", published=Size(36, 2560, 32, 10240), built=_TINY, vocabulary=250880
)
MISTRAL = Backbone(
    "mistral",
    Size(32, 4096, 32, 14336),
    Size(2, 64, 4, 128),
    32000,
    32768,
    "bpe-llama",
    {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
    {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 8},
)
LLAMA = Backbone(
    "llama",
    Size(16, 2048, 32, 8192),
    Size(2, 64, 4, 128),
    128256,
    131072,
    "bpe-qwen",
    {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    {"num_key_value_heads": 2, "head_dim": 32},
)
QWEN2 = Backbone(
    "qwen2",
    Size(28, 1536, 12, 8960),
    Size(2, 64, 4, 128),
    151646,
    131072,
    "bpe-qwen",
    {"hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "rope_theta": 1000000.0},
)
EUROBERT = Backbone(
    "eurobert",
    Size(12, 768, 12, 3072),
    Size(2, 64, 2, 128),
    128256,
    8192,
    "bpe-modernbert",
    {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 12, "rope_theta": 250000.0},
    {"num_key_value_heads": 2},
)
MOBILEBERT = Backbone(
    "mobilebert",
    Size(24, 512, 4, 512),
    Size(2, 64, 2, 64),
    30522,
    512,
    "wordpiece-uncased",
    {
        "hidden_act": "relu",
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "embedding_size": 128,
        "trigram_input": True,
        "use_bottleneck": True,
        "intra_bottleneck_size": 128,
        "use_bottleneck_attention": False,
        "key_query_shared_bottleneck": True,
        "num_feedforward_networks": 4,
        "normalization_type": "no_norm",
    },
    {"embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
)
GEMMA = Backbone(
    "gemma",
    Size(18, 2048, 8, 16384),
    Size(2, 64, 4, 128),
    256000,
    8192,
    "bpe-gemma-chat",
    {
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    {"num_key_value_heads": 1, "head_dim": 32},
)
_MODERNBERT = replace(MODERNBERT, built=Size(4, 64, 2, 96), config={**MODERNBERT.config, "classifier_pooling": "mean"})
_QWEN3 = replace(QWEN3, built=Size(2, 64, 4, 128))

_CLS, _MEAN, _LAST = Pooling(("cls",)), Pooling(("mean",)), Pooling(("lasttoken",))
_ONE = Head(1, "Sigmoid", None)
_YES_NO = Head(1, "Sigmoid", "6.x", ("yes", "no"))
_ONE_ZERO = Head(1, "Identity", "6.x", ("1", "0"))
_YES = Head(1, "Identity", "6.x", ("Yes",))
_QWEN3_CHAT = replace(QWEN3, built=Size(2, 64, 4, 128), tokenizer="bpe-qwen-chat")
_QWEN2_CHAT = replace(QWEN2, tokenizer="bpe-qwen-chat")

# The published templates in the form that sentence-transformers fills: one message for each text, one for the prompt.
_QUERY = '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}'
_DOCUMENT = _QUERY.replace("query", "document")
_SYSTEM = '{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("INSTEAD") }}'
_QWEN3_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
    + _SYSTEM.replace("INSTEAD", "Given a web search query, retrieve relevant passages that answer the query")
    + f"\n<Query>: {_QUERY}\n<Document>: {_DOCUMENT}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)
_MXBAI_TEMPLATE = (
    '{%- set ask = messages | selectattr("role", "eq", "system") | map(attribute="content") | first %}'
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{% if ask is defined %}instruction: {{ ask }}\n{% endif %}"
    f"query: {_QUERY.replace(' }}', ' | trim }}')}\ndocument: {_DOCUMENT.replace(' }}', ' | trim }}')}\n"
    "You are a search relevance expert who evaluates how well documents match search queries. For each "
    "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
    "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n\n"
)
# The instruction comes last.
_GEMMA_TEMPLATE = f"{{{{ bos_token }}}}A: {_QUERY}\nB: {_DOCUMENT}\n" + _SYSTEM.replace(
    "INSTEAD",
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'.",
)
_ZERANK_TEMPLATE = (
    "{%- for message in messages %}{%- if message.role == 'query' %}<|im_start|>system\n{{ message.content }}<|im_end|>"
    "\n{% elif message.role == 'document' %}<|im_start|>user\n{{ message.content }}<|im_end|>\n{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_INSTRUCTIONS = {"web": "Given a web search query, retrieve relevant passages that answer the query"}
_NLI = Head(3, "Identity", None)

ARCHITECTURES: tuple[ModelRow, ...] = (
    ModelRow("paraphrase-albert-small-v2", ALBERT, "6.x", (_MEAN,), _LIMIT, source=GENERAL),
    ModelRow("zoo/deberta-v3-base", DEBERTA, "6.x", (_MEAN, Normalize()), _LIMIT, source=GENERAL),
    ModelRow(
        "sentence-t5-base",
        T5,
        "6.x",
        (_MEAN, Dense(768, 768, "Identity", bias=False), Normalize()),
        _LIMIT,
        source=GENERAL,
    ),
    ModelRow("zoo/mt5-base", MT5, "6.x", (_MEAN, Dense(768, 768, "Tanh"), Normalize()), _LIMIT, source=GENERAL),
    ModelRow("dangvantuan/sentence-camembert-base", CAMEMBERT, "6.x", (_MEAN,), _LIMIT, source=GENERAL),
    ModelRow("zoo/xlm-roberta-xl", XLM_ROBERTA_XL, "6.x", (_CLS, Dense(2560, 2560, "Tanh")), _LIMIT, source=GENERAL),
    ModelRow("intfloat/e5-mistral-7b-instruct", MISTRAL, "6.x", (_LAST, Normalize()), _LIMIT, source=GENERAL),
    ModelRow("zoo/llama-3.2-1b", LLAMA, "6.x", (_LAST, Normalize()), _LIMIT, source=GENERAL),
    ModelRow("zoo/qwen2-1.5b", QWEN2, "6.x", (_LAST, Dense(1536, 768, "Identity")), _LIMIT, source=GENERAL),
    ModelRow("zoo/eurobert-210m", EUROBERT, "6.x", (_MEAN, Normalize()), _LIMIT, source=GENERAL),
    ModelRow("zoo/mobilebert", MOBILEBERT, "6.x", (_CLS, Normalize()), _LIMIT, source=GENERAL),
    ModelRow("cross-encoder/nli-deberta-v3-base", DEBERTA, "6.x", (), _LIMIT, "rerank", head=_NLI, source=GENERAL),
    ModelRow(
        "Alibaba-NLP/gte-reranker-modernbert-base", _MODERNBERT, "6.x", (), _LIMIT, "rerank", head=_ONE, source=GENERAL
    ),
    ModelRow("tomaarsen/Qwen3-Reranker-0.6B-seq-cls", _QWEN3, "6.x", (), _LIMIT, "rerank", head=_ONE, source=GENERAL),
    ModelRow(
        "Qwen/Qwen3-Reranker-0.6B",
        _QWEN3_CHAT,
        "6.x",
        (),
        _CHAT_LIMIT,
        "rerank",
        prompts=_QWEN_INSTRUCTIONS,
        default_prompt_name="web",
        head=_YES_NO,
        chat_template=_QWEN3_TEMPLATE,
        source=GENERAL,
    ),
    ModelRow(
        "mixedbread-ai/mxbai-rerank-base-v2",
        _QWEN2_CHAT,
        "6.x",
        (),
        _CHAT_LIMIT,
        "rerank",
        head=_ONE_ZERO,
        chat_template=_MXBAI_TEMPLATE,
        source=GENERAL,
    ),
    ModelRow(
        "BAAI/bge-reranker-v2-gemma",
        GEMMA,
        "6.x",
        (),
        _CHAT_LIMIT,
        "rerank",
        head=_YES,
        chat_template=_GEMMA_TEMPLATE,
        source=GENERAL,
    ),
    ModelRow(
        "zeroentropy/zerank-2",
        _QWEN3_CHAT,
        "6.x",
        (),
        _CHAT_LIMIT,
        "rerank",
        head=Head(1, "Identity", "6.x", ("yes",)),
        chat_template=_ZERANK_TEMPLATE,
        add_generation_prompt=True,
    ),
    ModelRow(
        "zoo/seq-cls-with-template",
        _QWEN3_CHAT,
        "6.x",
        (),
        _CHAT_LIMIT,
        "rerank",
        head=_ONE,
        chat_template=_ZERANK_TEMPLATE,
        add_generation_prompt=True,
        source=GENERAL,
    ),
)
