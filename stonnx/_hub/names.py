"""The organization of a name without one, as in sentence-transformers."""

from __future__ import annotations

from stonnx._tasks import TASKS, Task

# Models from before the Hub had organizations, known by these names alone: sentence-transformers' own list.
WITHOUT_ORGANIZATION = frozenset(
    {
        "albert-base-v1",
        "albert-base-v2",
        "albert-large-v1",
        "albert-large-v2",
        "albert-xlarge-v1",
        "albert-xlarge-v2",
        "albert-xxlarge-v1",
        "albert-xxlarge-v2",
        "bert-base-cased",
        "bert-base-cased-finetuned-mrpc",
        "bert-base-chinese",
        "bert-base-german-cased",
        "bert-base-german-dbmdz-cased",
        "bert-base-german-dbmdz-uncased",
        "bert-base-multilingual-cased",
        "bert-base-multilingual-uncased",
        "bert-base-uncased",
        "bert-large-cased",
        "bert-large-cased-whole-word-masking",
        "bert-large-cased-whole-word-masking-finetuned-squad",
        "bert-large-uncased",
        "bert-large-uncased-whole-word-masking",
        "bert-large-uncased-whole-word-masking-finetuned-squad",
        "camembert-base",
        "ctrl",
        "distilbert-base-cased",
        "distilbert-base-cased-distilled-squad",
        "distilbert-base-german-cased",
        "distilbert-base-multilingual-cased",
        "distilbert-base-uncased",
        "distilbert-base-uncased-distilled-squad",
        "distilbert-base-uncased-finetuned-sst-2-english",
        "distilgpt2",
        "distilroberta-base",
        "gpt2",
        "gpt2-large",
        "gpt2-medium",
        "gpt2-xl",
        "openai-gpt",
        "roberta-base",
        "roberta-base-openai-detector",
        "roberta-large",
        "roberta-large-mnli",
        "roberta-large-openai-detector",
        "t5-11b",
        "t5-3b",
        "t5-base",
        "t5-large",
        "t5-small",
        "transfo-xl-wt103",
        "xlm-clm-ende-1024",
        "xlm-clm-enfr-1024",
        "xlm-mlm-100-1280",
        "xlm-mlm-17-1280",
        "xlm-mlm-en-2048",
        "xlm-mlm-ende-1024",
        "xlm-mlm-enfr-1024",
        "xlm-mlm-enro-1024",
        "xlm-mlm-tlm-xnli15-1024",
        "xlm-mlm-xnli15-1024",
        "xlm-roberta-base",
        "xlm-roberta-large",
        "xlm-roberta-large-finetuned-conll02-dutch",
        "xlm-roberta-large-finetuned-conll02-spanish",
        "xlm-roberta-large-finetuned-conll03-english",
        "xlm-roberta-large-finetuned-conll03-german",
        "xlnet-base-cased",
        "xlnet-large-cased",
    }
)


def full_name(name: str, task: Task) -> str:
    """The id of the Hub repository that the name of a model means.

    Example:
        >>> full_name("all-MiniLM-L6-v2", "embedding"), full_name("bert-base-uncased", "embedding")
        ('sentence-transformers/all-MiniLM-L6-v2', 'bert-base-uncased')
    """
    organization = TASKS[task].organization
    if organization is None or "/" in name or name.lower() in WITHOUT_ORGANIZATION:
        return name
    return f"{organization}/{name}"
