"""Built-in sentences on which averages and nearest neighbours are compared."""

from __future__ import annotations

_SUBJECTS = (
    "A man in a red jacket", "The old train", "My sister", "The company", "A brown dog", "The new phone",
    "Our teacher", "The city council", "A young woman", "The football team", "The small boat", "A group of children",
    "The doctor", "An orchestra", "The river", "The software update",
)  # fmt: skip

_PREDICATES = (
    "is waiting in the rain.", "was sold to a rival last year for two billion dollars.", "plays in the park every day.",
    "crossed the mountains before sunrise.", "has not answered a single question yet.", "fixed three bugs overnight.",
    "will be replaced next month because it is too slow.", "sang for an hour in front of a large crowd.",
    "lost its way in the forest.", "is cheaper than last year, and people like it.", "won by two points in the end.",
    "carries vegetables to the market.", "needs more money for the hospital.", "flooded the cellar of the museum.",
    "explained how vaccines work.", "ran away when the lights went out.",
)  # fmt: skip


def sentences() -> list[str]:
    """128 sentences, each of which shares its first or second half with others."""
    count = len(_PREDICATES)
    return [
        f"{subject} {_PREDICATES[(3 * number + 5 * step) % count]}"
        for number, subject in enumerate(_SUBJECTS)
        for step in range(count // 2)
    ]


# Vectors are compared up to this length: the original takes minutes for longer texts on a laptop. Ids are always
# compared at the model's true limit.
LONGEST = 1024

TEXTS = (
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "UPPER CASE, MiXeD cAsE and lower case",
    "naïve café – “quoted” — ½ … №1",
    "Ein kleines Mädchen spielt im Garten, während die Großmutter liest.",
    "Сегодня утром в парке было тихо, и только дети кормили уток.",
    "今日は天気がいいので、公園まで歩いて行きました。",
    "我们昨天晚上在河边看到了很多星星。",
    "أعيش في مدينة صغيرة قرب البحر.",
    "आज शाम को हम बाज़ार जाएँगे।",
    "오늘은 도서관에서 책을 읽었습니다.",
    "emoji 👩‍👩‍👧 🇩🇪 and e\u0301 combining",
    "https://example.org/a?b=c&d=%20 user@example.org #tag 12,345.67 C++ a_b-c/d",
    "tabs\tand\nnew\r\nlines\u00a0and\u2003spaces",
    "line with NUL \0 and control \x07 characters",
    "antidisestablishmentarianism" * 8,
    "SELECT name, count(*) FROM users WHERE age >= 21 GROUP BY name;",
    "A man is playing a large flute on the stage while a crowd of people listens to the music in the evening.",
)

# Texts that are compared once more in each way of calling the model, with the prompt and the route that belong to it.
CALLED_TEXTS = (TEXTS[0], TEXTS[4], TEXTS[7], " ".join(["a"] * 100))


def verification_texts(max_seq_length: int, special_tokens: int) -> list[str]:
    """Built-in texts: empty, one token, many scripts, and lengths up to, at and beyond the limit."""
    limit = min(max_seq_length, LONGEST) - special_tokens
    counts = sorted({1, 2, 3, 5, 8, 16, 31, 32, 33, 64, 100, 128, 200, limit - 1, limit, limit + 1, limit + 40})
    return [*TEXTS, *(" ".join(["a"] * count) for count in counts if 0 < count <= limit + 40)]
