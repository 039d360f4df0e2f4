"""Real tokenizers of every kind in the zoo, trained in memory on a small multilingual corpus of our own.

It has over 400 lines because each kind of tokenizer is written out.
"""

from __future__ import annotations

import json
import math
import string
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from .table import TOKENIZERS, ModelRow, TokenizerKind

CORPUS: tuple[str, ...] = (
    "The ferry leaves the harbour at dawn and returns after the lights come on.",
    "Our neighbour repairs old radios in a workshop behind the bakery.",
    "She counted the swallows on the wire until it was too dark to see.",
    "How do I reset the password of my online account?",
    "To reset a password, open the settings page and choose the security tab.",
    "A quiet engine is not always a healthy engine, the mechanic said.",
    "The committee postponed its decision because three members were ill.",
    "Rain filled the barrels, the gutters and finally the cellar.",
    "What is the capital of Portugal, and how many people live there?",
    "Lisbon is the capital of Portugal; about half a million people live in the city.",
    "The patient was given two tablets every six hours for ten days.",
    "Sparse vectors keep a weight for each word, dense vectors do not.",
    "Search engines compare the embedding of a query with the embeddings of documents.",
    "He bought 12 apples, 7 pears and a jar of honey for $18.50.",
    "In 1998 the museum moved to a former power station near the river.",
    "Please do not feed the horses; they bite, and they are on a diet.",
    "The recipe needs flour, butter, sugar, salt and a great deal of patience.",
    "Nobody knew who had painted the bridge blue during the night.",
    "Her thesis describes the migration of eels through artificial lakes.",
    "Machine translation improved quickly once attention replaced recurrence.",
    "The quick answer is no; the long answer takes an afternoon.",
    "If the valve is closed, pressure rises and the alarm starts.",
    "Two students measured the speed of sound with a drum and a stopwatch.",
    "The train to the north was cancelled, so we walked along the canal.",
    "def mean(values): return sum(values) / len(values)  # plain Python",
    "SELECT name, price FROM fruit WHERE price < 3 ORDER BY name;",
    "Error 404: the page you asked for has moved or never existed.",
    "Visit https://example.org/docs?page=2&lang=en or write to info@example.org.",
    "It's a well-known fact that cats don't read e-mail, isn't it?",
    "Coffee keeps me awake, tea keeps me calm, and cocoa keeps me warm.",
    "The judge asked for silence, and for once the whole room obeyed.",
    "Volcanic soil is fertile, which is why villages grow on dangerous slopes.",
    "I would like to return these shoes, because they are one size too small.",
    "Wind turbines turn slowly on the ridge above the abandoned mine.",
    "The orchestra tuned for a minute and played for an hour.",
    "Green tea is picked in spring, steamed, rolled and dried.",
    "Vaccines train the immune system without causing the disease.",
    "The price of copper fell again while demand for batteries grew.",
    "Children learn a language faster than adults, but forget it faster too.",
    "A good index makes a slow database fast, a bad one makes it slower.",
    "Die Fähre verlässt den Hafen im Morgengrauen und kehrt erst spät zurück.",
    "Wie kann ich das Passwort für mein Konto zurücksetzen?",
    "Der Zug nach Süden fällt heute aus, nehmen Sie bitte den Bus.",
    "Meine Großmutter backte jeden Sonntag Brot mit Kümmel und Nüssen.",
    "Das Museum öffnet um zehn Uhr; montags bleibt es geschlossen.",
    "Über den Dächern kreisten Mauersegler, größer als ich sie in Erinnerung hatte.",
    "Die Straße war naß, und die Bäume bogen sich im Wind.",
    "Donaudampfschifffahrt ist ein langes Wort für eine langsame Reise.",
    "Le bateau quitte le port à l'aube et revient après la tombée de la nuit.",
    "Où se trouve la gare, et à quelle heure part le dernier train ?",
    "Ma sœur élève des abeilles près d'une forêt de chênes.",
    "L'été dernier, nous avons mangé des crêpes à la crème tous les soirs.",
    "¿Cómo puedo cambiar la contraseña de mi cuenta?",
    "El niño soñó con una montaña de azúcar y un río de leche.",
    "La biblioteca abre mañana a las nueve, pero el café cierra temprano.",
    "A manhã começou fria, e o pão ainda estava quente na mesa.",
    "Il treno parte fra dieci minuti dal binario più lontano.",
    "Gdzie mogę kupić świeży chleb i żółty ser?",
    "Příliš žluťoučký kůň stál u řeky a díval se na loď.",
    "İstanbul'da yağmur yağarken vapur iskeleden ayrıldı.",
    "Sáng nay trời mưa, tôi uống cà phê và đọc báo ở quán nhỏ.",
    "Паром отходит на рассвете и возвращается, когда зажигают огни.",
    "Как мне восстановить пароль от учётной записи?",
    "Мой сосед чинит старые радиоприёмники в мастерской за пекарней.",
    "Столица Португалии — Лиссабон, в городе живёт около полумиллиона человек.",
    "Дождь шёл всю ночь, и к утру подвал наполнился водой.",
    "Кошка спала на подоконнике, а собака ждала у двери.",
    "Поезд на север отменили, поэтому мы пошли пешком вдоль канала.",
    "Мій брат читає книжку про їжаків і співає в хорі.",
    "Το πλοίο φεύγει από το λιμάνι την αυγή και γυρίζει το βράδυ.",
    "Πού είναι ο σταθμός και πότε φεύγει το τελευταίο τρένο;",
    "船は夜明けに港を出て、明かりがつくころに戻ります。",
    "パスワードを忘れた場合は、設定ページを開いてください。",
    "祖母は毎週日曜日に黒いパンを焼いていました。",
    "東京から京都まで新幹線で二時間ほどかかります。",
    "猫は窓辺で眠り、犬は玄関で待っていた。",
    "図書館は明日の九時に開きますが、喫茶店は早く閉まります。",
    "渡轮黎明时离开港口,天黑以后才回来。",
    "我忘记了密码,怎样才能重新登录账户?",
    "葡萄牙的首都是里斯本,城里大约住着五十万人。",
    "昨天夜里下了一场大雨,地下室里全是水。",
    "春天采茶,然后蒸青、揉捻、烘干。",
    "图书馆明天九点开门,咖啡馆很早就关门了。",
    "배는 새벽에 항구를 떠나 불이 켜질 때 돌아온다.",
    "비밀번호를 잊어버렸는데 어떻게 다시 설정하나요?",
    "تغادر العبارة الميناء عند الفجر وتعود بعد حلول الظلام.",
    "كيف يمكنني إعادة تعيين كلمة المرور لحسابي؟",
    "عاصمة البرتغال هي لشبونة ويعيش فيها نحو نصف مليون شخص.",
    "نامت القطة على النافذة وانتظر الكلب عند الباب.",
    "המעבורת עוזבת את הנמל עם שחר וחוזרת בערב.",
    "नाव भोर में बंदरगाह छोड़ती है और रात को लौटती है।",
    "मैं अपने खाते का पासवर्ड कैसे बदल सकता हूँ?",
    "เรือออกจากท่าตอนเช้ามืดและกลับมาเมื่อไฟสว่าง",
    "Naïve café owners résumé their daily rôle; the coöperative votes on Monday.",
    "Emoji are text too: 🙂 🚀 ❤️ and the flag 🇩🇪 takes two code points.",
    "ABBREVIATIONS like NASA, UNESCO and the EU are written in capitals.",
    "Numbers such as 3.14159, 1,000,000 and -42 are split into pieces.",
)  # fmt: skip

_VOCABULARY = 1800
_SPLIT_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_COMPATIBILITY = {
    **{chr(0xFF01 + index): chr(0x21 + index) for index in range(94)},
    "\u00a0": " ",
    "\u3000": " ",
    "…": "...",
    "ﬁ": "fi",
    "ﬂ": "fl",
    "①": "1",
    "②": "2",
    "㎏": "kg",
    "ｶ": "カ",
}


def _wordpiece(
    reserved: Iterable[str], *, lowercase: bool, last: tuple[str, ...] = (), unknown: str = "[UNK]"
) -> Tokenizer:
    """WordPiece over BERT's normalizer and pre-tokenizer; `reserved` take the first ids, `last` the highest."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    trained = Tokenizer(models.WordPiece(unk_token=unknown))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the ##x pieces in the order of a hash table; named as special tokens they come in ours.
    characters = sorted({character for text in CORPUS for character in normalizer.normalize_str(text)} - {" "})
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[f"##{character}" for character in characters],
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS, trainer)
    letters = string.digits + string.ascii_lowercase + ("" if lowercase else string.ascii_uppercase)
    alphabet = [*string.punctuation, *letters, *(f"##{letter}" for letter in letters)]
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys((*reserved, *alphabet, *pieces, *last)))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _bert_reserved() -> tuple[str, ...]:
    """BERT's first ids, so that [UNK] [CLS] [SEP] [MASK] are 100 to 103 as published."""
    return ("[PAD]", *(f"[unused{index}]" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _bert(*, lowercase: bool) -> Tokenizer:
    tokenizer = _wordpiece(_bert_reserved(), lowercase=lowercase)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 101), ("[SEP]", 102)],
    )
    return tokenizer


def _mpnet() -> Tokenizer:
    tokenizer = _wordpiece(("<s>", "<pad>", "</s>", "<unk>", *_bert_reserved()), lowercase=True, last=("<mask>",))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return tokenizer


def _model2vec() -> Tokenizer:
    """A model2vec vocabulary: BERT's without the unused ids, and no special tokens added to a text."""
    return _wordpiece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), lowercase=True)


def _byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer, *, first: tuple[str, ...] = (), last: tuple[str, ...] = ()
) -> Tokenizer:
    """Byte-level BPE whose special tokens stand before (RoBERTa) or after (ModernBERT, Qwen) the learned ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY,
            special_tokens=list(first),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(list(last))
    return tokenizer


def _roberta() -> Tokenizer:
    tokenizer = _byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), first=("<s>", "<pad>", "</s>", "<unk>"), last=("<mask>",)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return tokenizer


def _modernbert() -> Tokenizer:
    tokenizer = _byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), last=("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    )
    tokenizer.normalizer = normalizers.NFC()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    return tokenizer


def _qwen() -> Tokenizer:
    """The text ends in <|endoftext|>, which is the padding token too: only the mask tells them apart."""
    words = pre_tokenizers.Split(Regex(_SPLIT_WORDS), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = _byte_level(
        pre_tokenizers.Sequence([words, level]), last=("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )
    tokenizer.normalizer = normalizers.NFC()
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A <|endoftext|> $B <|endoftext|>", special_tokens=[end]
    )
    return tokenizer


def _qwen_chat() -> Tokenizer:
    """A chat model's texts end as its template says."""
    tokenizer = _qwen()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken(token, single_word=token == "yes") for token in ("<think>", "</think>", "yes")])
    return tokenizer


def _gemma_chat() -> Tokenizer:
    tokenizer = _gemma()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    tokenizer.add_tokens([AddedToken("Yes", single_word=True)])
    return tokenizer


def _bytes_for_unknown(special: tuple[str, ...]) -> Tokenizer:
    """SentencePiece-like BPE: spaces become ▁, characters outside the vocabulary become bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(
        [text for text in CORPUS if text.isascii()],
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY,
            special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
            initial_alphabet=[*string.printable.strip(), "▁", *"äöüßéèñбвгджзиклмнопрстуя東京的人"],
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            model["vocab"],
            [tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _llama() -> Tokenizer:
    """A text ends in </s>, which is the padding token too."""
    tokenizer = _bytes_for_unknown(("<unk>", "<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def _gemma() -> Tokenizer:
    tokenizer = _bytes_for_unknown(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer


def _unigram(
    special: tuple[str, ...], unknown: str, *, lowercase: bool = False, last: tuple[str, ...] = ()
) -> Tokenizer:
    """Unigram with SentencePiece's character map and Metaspace; `special` take the first ids, `last` the highest.

    The pieces are learned by BPE and scored by their frequency: the Unigram trainer differs from run to run.
    """
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = words
    trained.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY, initial_alphabet=sorted(string.printable.strip()), show_progress=False
        ),
    )
    text = "".join(f"▁{word}" for line in CORPUS for word in line.split())
    scores = {piece: round(math.log((text.count(piece) + 1) / len(text)), 4) for piece in trained.get_vocab()}
    pieces = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    vocabulary = [*((token, 0.0) for token in special), *pieces, *((token, 0.0) for token in last)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=special.index(unknown)))
    character_map = normalizers.Precompiled(_character_map(_COMPATIBILITY))
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Lowercase(), character_map]) if lowercase else character_map
    )
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def _xlm_roberta() -> Tokenizer:
    tokenizer = _unigram(("<s>", "<pad>", "</s>", "<unk>"), "<unk>", last=("<mask>",))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _albert() -> Tokenizer:
    return _with_bert_ends(_unigram(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), "<unk>", lowercase=True))


def _deberta() -> Tokenizer:
    return _with_bert_ends(_unigram(("[PAD]", "[CLS]", "[SEP]", "[UNK]"), "[UNK]", last=("[MASK]",)))


def _with_bert_ends(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _t5() -> Tokenizer:
    tokenizer = _unigram(("<pad>", "</s>", "<unk>"), "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def _character_map(replacements: Mapping[str, str]) -> bytes:
    """SentencePiece's precompiled_charsmap: the trie's size, a double-array trie, and the replacements.

    Each inner node owns a block of 256 units, which wastes space and needs no search for free slots.
    """
    units: list[int] = [0]
    values = bytearray()

    def insert(position: int, suffixes: dict[bytes, int]) -> None:
        base = -(-len(units) // 256) * 256
        units.extend([0] * (base + 256 - len(units)))
        ends = suffixes.pop(b"", None)
        units[position] |= (position ^ base) << 10 | (ends is not None) << 8
        if ends is not None:
            units[base] = ends | 1 << 31
        for label in sorted({suffix[0] for suffix in suffixes}):
            units[base ^ label] = label
            insert(base ^ label, {key[1:]: value for key, value in suffixes.items() if key[0] == label})

    offsets: dict[bytes, int] = {}
    for character, replacement in replacements.items():
        offsets[character.encode()] = len(values)
        values += replacement.encode() + b"\0"
    insert(0, offsets)
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + bytes(values)


_BUILDERS: Mapping[TokenizerKind, Callable[[], Tokenizer]] = {
    "wordpiece-uncased": lambda: _bert(lowercase=True),
    "wordpiece-cased": lambda: _bert(lowercase=False),
    "wordpiece-mpnet": _mpnet,
    "wordpiece-model2vec": _model2vec,
    "bpe-roberta": _roberta,
    "bpe-modernbert": _modernbert,
    "bpe-qwen": _qwen,
    "bpe-gemma": _gemma,
    "unigram-xlmr": _xlm_roberta,
    "unigram-albert": _albert,
    "unigram-deberta": _deberta,
    "unigram-t5": _t5,
    "bpe-llama": _llama,
    "bpe-qwen-chat": _qwen_chat,
    "bpe-gemma-chat": _gemma_chat,
}


@cache
def _serialized(kind: TokenizerKind) -> str:
    tokenizer = _BUILDERS[kind]()
    special = dict.fromkeys(TOKENIZERS[kind].special_tokens.values())
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", special=True) for token in special])
    return tokenizer.to_str()


def build_tokenizer(kind: TokenizerKind) -> Tokenizer:
    """A tokenizer of the kind: the same in every process, trained once in each."""
    return Tokenizer.from_str(_serialized(kind))


def save_tokenizer(row: ModelRow, directory: Path) -> None:
    """Write the row's tokenizer the way its repository holds it."""
    facts = TOKENIZERS[row.backbone.tokenizer]
    tokenizer = build_tokenizer(row.backbone.tokenizer)
    if row.tokenizer_json_padding is not None:
        pad = facts.special_tokens["pad_token"]
        tokenizer.enable_truncation(row.tokenizer_json_padding)
        tokenizer.enable_padding(length=row.tokenizer_json_padding, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        **facts.special_tokens,
        **facts.settings,
        "clean_up_tokenization_spaces": False,
        "model_max_length": row.model_max_length,
        "padding_side": facts.padding_side,
        "tokenizer_class": row.backbone.tokenizer_class or facts.tokenizer_class,
        **({"chat_template": row.chat_template} if row.chat_template else {}),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (directory / "special_tokens_map.json").write_text(json.dumps(dict(facts.special_tokens), indent=2))
