"""The page in a real browser: each panel is used, nothing leaves the server's address, the console stays empty."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from served import serve
from toy_bundles import dense_bundle, pair_graph, sparse_graph, toy_table, write_bundle

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")

PANELS = ("compare", "search", "sparse", "tokens", "now", "use")
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("served")
    pairs = pair_graph(toy_table(1, 7), np.ones(1, np.float32), "Sigmoid")
    named = {
        "first": dense_bundle(directory / "first", width=16),
        "second": dense_bundle(directory / "second", width=16),
        # Rows of a sparse model are words, so it has one for each.
        "words": write_bundle(
            directory / "words",
            {"default": sparse_graph(toy_table(50, 5, active=0.05))},
            task="sparse",
            embedding_dimension=50,
        ),
        "pairs": write_bundle(
            directory / "pairs", {"default": pairs}, task="rerank", num_labels=1, activation="sigmoid"
        ),
    }
    return [f"{name}={bundle}" for name, bundle in named.items()]


@pytest.fixture(scope="module")
def address(bundles: list[str]) -> Iterator[str]:
    with serve(*bundles) as address:
        yield address


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(shared_browser: Browser) -> Browser:
    shared_browser.requests.clear()
    shared_browser.complaints.clear()
    return shared_browser


def show(browser: Browser, panel: str, sign: str) -> None:
    """Change to a panel, and wait for an expression that is true when it is filled."""
    browser.evaluate(f"location.hash = '#{panel}'")
    browser.wait(sign)


def fill(browser: Browser, selector: str, value: str) -> None:
    """Give a field a value, as a user's typing does."""
    browser.evaluate(
        f"""(() => {{
            const field = document.querySelector({json.dumps(selector)});
            field.value = {json.dumps(value)};
            field.dispatchEvent(new Event('input', {{bubbles: true}}));
            field.dispatchEvent(new Event('change', {{bubbles: true}}));
        }})()"""
    )


def text_of(browser: Browser, selector: str) -> str:
    return str(browser.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_every_panel_at_every_width_asks_this_server_only(
    browser: Browser, address: str, width: int, dark: bool, tmp_path: Path
) -> None:
    browser.open(address, width=width, dark=dark)
    signs = (
        "document.querySelectorAll('.heat td').length === 128",
        "document.querySelectorAll('.hits li').length > 10",
        "document.querySelectorAll('#sparse mark').length > 1",
        "document.querySelectorAll('.spans span').length > 10",
        "document.querySelectorAll('.tiles svg').length === 6",
        "document.querySelector('#use code').textContent.includes('curl')",
    )
    for panel, sign in zip(PANELS, signs, strict=True):
        show(browser, panel, sign)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, panel
        browser.screenshot(tmp_path / f"{panel}.png")
    assert not browser.complaints
    assert {request for request in browser.requests if not request.startswith((address, "about:", "data:"))} == set()


def test_compare_shows_vectors_of_fewer_dimensions_and_both_models(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait("document.querySelectorAll('.heat td').length === 128")
    assert text_of(browser, "#compare .say").startswith("8 texts")
    whole = text_of(browser, ".picked .value")
    fill(browser, "#compare [name=dim]", "8")
    assert text_of(browser, "#compare label b") == "8 of 16"
    assert text_of(browser, ".picked .value") != whole
    assert "by 8 dimensions" in text_of(browser, ".nearest h2")
    # Both models have the same weights here.
    assert "differ by 0.0000 at most" in text_of(browser, ".nearest .say")
    browser.evaluate("document.querySelector('#compare [name=order]').click()")
    rows = browser.evaluate("[...document.querySelectorAll('.heat tbody tr th b')].slice(0, 8).map(b => b.textContent)")
    assert sorted(rows) == [str(number) for number in range(1, 9)]
    assert rows != sorted(rows)
    fill(
        browser, "#compare [name=texts]", "\n".join(f"the sun shines {letter}" for letter in "abcdefghijklmnopqrst" * 3)
    )
    browser.evaluate("document.querySelector('#compare form').requestSubmit()")
    browser.wait("!!document.querySelector('.map canvas')")
    assert text_of(browser, "#compare .say").startswith("60 texts")
    assert not browser.complaints


def test_the_map_and_the_panels_work_by_keyboard(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait("document.querySelectorAll('.heat td').length === 128")
    browser.evaluate("document.querySelector('.heat td.on').focus()")
    assert text_of(browser, ".picked h2") == "Texts 1 and 2"
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    # A key press reaches the page some time after the call: wait for what it does.
    browser.wait("document.querySelector('.picked h2').innerText === 'Texts 2 and 3'")
    browser.wait("document.activeElement.classList.contains('on')")
    for key, panel in enumerate(PANELS, 1):
        browser.press(str(key))
        browser.wait(f"location.hash === '#{panel}'")
        browser.wait(f"document.querySelector('nav [aria-current]').hash === '#{panel}'")
    # In a field, a digit is text.
    browser.press("2")
    browser.wait("location.hash === '#search'")
    browser.evaluate("document.querySelector('#query').focus()")
    browser.press("4")
    browser.wait("document.querySelector('#query').value.endsWith('4')")
    assert browser.evaluate("location.hash") == "#search"
    browser.evaluate("location.hash = '#compare'")
    fill(browser, "#compare [name=texts]", "the sun\nthe river\nthe city")
    browser.evaluate("document.querySelector('#compare textarea').focus()")
    browser.press("Enter", control=True)
    browser.wait("document.querySelectorAll('.heat td').length === 18")


def test_search_finds_the_passage_and_reranks(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#search")
    browser.wait("document.querySelectorAll('.hits li').length > 10")
    fill(browser, "#search [name=texts]", "the river flows\nbread rises\nthe sun shines\nwhat is the city")
    browser.evaluate("document.querySelector('#search form').requestSubmit()")
    browser.wait("document.querySelector('#search form .say').innerText.startsWith('4 passages in')")
    fill(browser, "#query", "bread rises")
    browser.wait("document.querySelector('.hits li')?.innerText.includes('bread rises')")
    assert text_of(browser, ".hits li .num") == "1.000"
    browser.evaluate("document.querySelector('.rerank button').click()")
    browser.wait("document.querySelector('.found').innerText.includes('reranked')")
    assert browser.evaluate("document.querySelectorAll('.hits li').length") == 4
    show(browser, "use", "document.querySelector('#use code').textContent.includes('/v2/rerank')")
    assert not browser.complaints


DROP = """(async () => {
    const files = [new File([%s], %s)], event = new Event('drop', {cancelable: true});
    event.dataTransfer = {files};
    document.querySelector('#search form').dispatchEvent(event);
})()"""


def test_a_file_that_is_dropped_is_embedded(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#search")
    browser.wait("document.querySelectorAll('.hits li').length > 10")
    rows = '{"text": "the river\\nflows"}\n{"id": 1, "title": "bread rises"}\n"the sun shines"\n'
    browser.evaluate(DROP % (json.dumps(rows), json.dumps("rows.jsonl")))
    browser.wait("document.querySelector('#search form .say').innerText.startsWith('3 passages in')")
    texts = browser.evaluate("document.querySelector('#search [name=texts]').value.split('\\n')")
    assert texts == ["the river flows", "bread rises", "the sun shines"]
    browser.evaluate(DROP % (json.dumps('{"text": '), json.dumps("torn.jsonl")))
    browser.wait("document.querySelector('#search form .say').innerText.startsWith('torn.jsonl cannot be read')")
    assert not browser.complaints


def test_sparse_joins_shared_words_and_their_products_add_up(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#sparse")
    browser.wait("document.querySelectorAll('#sparse mark').length > 1")
    fill(browser, "#sparse [name=query]", "the city")
    fill(browser, "#sparse [name=document]", "the river of the city")
    browser.evaluate("document.querySelector('#sparse form').requestSubmit()")
    browser.wait("document.querySelector('#sparse .q .shaded').innerText === 'the city'")
    products = browser.evaluate("[...document.querySelectorAll('.terms td:last-child')].map(td => +td.innerText)")
    score = float(text_of(browser, ".shared .value").split()[0])
    assert score == pytest.approx(sum(products), abs=0.005 * (len(products) + 1))
    assert not browser.complaints


def test_tokens_are_spans_of_the_text_and_what_is_cut_is_grey(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#tokens")
    browser.wait("document.querySelectorAll('.spans span').length > 10")
    # Offsets count characters, of which the wave is one and two in a browser's strings.
    text = "the 🌊 of the sun shines " + "and bread " * 12
    fill(browser, "#tokens [name=text]", text)
    browser.wait("document.querySelector('#tokens .facts dd').innerText === '32'")
    spans = browser.evaluate(
        "[...document.querySelectorAll('.spans .t0, .spans .t1, .spans .t2')].map(s => s.innerText)"
    )
    assert spans[:5] == ["the", "🌊", "of", "the", "sun"]
    # The toy model reads 16 tokens: two are special.
    assert len(spans) == 14
    assert browser.evaluate("document.querySelectorAll('.spans .cut').length") == 16
    assert "limit of 16 tokens" in text_of(browser, ".spans .limit")
    fill(browser, "#tokens [name=limit]", "8")
    assert browser.evaluate("document.querySelectorAll('.spans .cut').length") == 24
    assert not browser.complaints


def test_now_counts_the_requests_that_it_sends(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#now")
    browser.wait("document.querySelectorAll('.tiles svg').length === 6")
    browser.evaluate("document.querySelector('#now button').click()")
    browser.wait("document.querySelector('#now .say').innerText.startsWith('200 requests')")
    browser.wait("parseFloat(document.querySelector('.tiles .card p').innerText) > 0")
    assert not browser.complaints


@pytest.mark.parametrize("language", ["Python", "openai", "cohere", "LangChain", "LlamaIndex"])
def test_the_code_of_the_page_is_python(browser: Browser, address: str, language: str) -> None:
    browser.open(address)
    browser.wait("document.querySelectorAll('.heat td').length === 128")
    show(browser, "use", "document.querySelectorAll('.tabs button').length === 6")
    browser.evaluate(f"[...document.querySelectorAll('.tabs button')].find(b => b.innerText === '{language}').click()")
    code = text_of(browser, "#use code")
    compile(code, language, "exec")
    assert address in code
    assert "5 more texts are left out" in code


def test_the_key_is_asked_for_once(browser: Browser, bundles: list[str]) -> None:
    with serve(*bundles, "--api-key", KEY) as address:
        browser.open(address)
        browser.wait("document.querySelector('#key').open")
        browser.evaluate(f"document.querySelector('#key input').value = '{KEY}'")
        browser.evaluate("document.querySelector('#key [value=yes]').click()")
        browser.wait("document.querySelectorAll('.heat td').length === 128")
        show(browser, "search", "document.querySelectorAll('.hits li').length > 10")
        assert not browser.evaluate("document.querySelector('#key').open")
        # It is in no place that outlives the tab, and not in the code that is shown.
        assert browser.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        show(browser, "use", "document.querySelector('#use code').textContent.includes('STONNX_API_KEY')")
        assert KEY not in text_of(browser, "#use code")


def test_no_card_is_empty_before_the_first_answer(browser: Browser, bundles: list[str]) -> None:
    """A key is missing, so nothing is ever answered."""
    shown = "[...document.querySelectorAll('.card')].filter(card => card.checkVisibility() && !card.innerText.trim())"
    with serve(*bundles, STONNX_API_KEYS=KEY) as address:
        for panel in PANELS:
            browser.open(f"{address}/#{panel}")
            browser.wait(f"!document.querySelector('#{panel}').hidden")
            assert browser.evaluate(f"{shown}.length") == 0, panel


def test_panels_say_which_model_is_missing(browser: Browser, bundles: list[str]) -> None:
    with serve(bundles[0]) as address:
        browser.open(f"{address}/#sparse")
        browser.wait("document.querySelector('#sparse .none')?.innerText.includes('stonnx serve')")
        show(browser, "search", "document.querySelectorAll('.hits li').length > 10")
        assert "reranker" in text_of(browser, ".rerank")
        show(browser, "compare", "document.querySelectorAll('.heat td').length === 64")
        assert not browser.complaints


def test_the_page_is_one_file_that_names_no_other_address() -> None:
    text = resources.files("stonnx.serve").joinpath("page.html").read_text(encoding="utf-8")
    for part in ("src=", "@import", "url(", "style=", "onclick=", "innerHTML", "eval("):
        assert part not in text
    allowed = ("http://www.w3.org/2000/svg",)
    found = [word for word in text.replace("'", " ").replace('"', " ").split() if word.startswith(("http:", "https:"))]
    assert set(found) <= set(allowed)
