"""The interactive page, in a browser: what it says and shows against the weights, and that it runs nothing else."""

import json
import re
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax import attention_statistics, attention_weights, causal, sliding_window
from attention_jax.view.page import Page, html

WORDS = ["The", "cat", "sat", "on", "the", "mat", "and", "saw", "the", "dog"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
PLACED = re.compile(r"‘([^’]*)’ \((\d+)\) (NaN|\d\.\d+)")


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def heads(layers, N, T, causal=True, scale=2.0):
    logits = scale * np.random.default_rng(0).normal(size=(layers, N, T, T))
    return softmax(np.where(np.tri(T, dtype=bool), logits, -np.inf) if causal else logits)


def statistics(layers, N, T, k, seed=0):
    """Random numbers of the right form; the keys of a query differ, and some are missing."""
    rng = np.random.default_rng(seed)
    back = np.cumsum(rng.integers(1, 60, (layers, N, T, k)), -1) - 1
    top_keys = np.arange(T)[:, None] - back
    share = np.sort(rng.dirichlet(np.ones(k + 1), (layers, N, T)))[..., ::-1][..., :k]
    return SimpleNamespace(
        entropy=rng.gamma(2.0, size=(layers, N, T)),
        distance=back.mean(-1),
        received=rng.gamma(2.0, size=(layers, N, T)),
        top_keys=np.maximum(top_keys, -1),
        top_weights=np.where(top_keys >= 0, share, 0.0),
        previous_token=rng.random((layers, N)),
        first_token=rng.random((layers, N)),
        duplicate_token=None,
        induction=rng.random((layers, N)),
    )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: looked for chromium, chromium-browser, google-chrome")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=[f"--{name}" for name in SWITCHES.split()])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """show(page) opens it from a file; afterwards, nothing may have gone wrong or been asked of the network."""
    contexts, wrong = [], []

    def show(page, width=1440, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: wrong.append(dialog.message))
        tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        tab.set_default_timeout(8000)
        path = tmp_path / f"{len(contexts)}.html"
        tab.goto((page.save(path) if isinstance(page, Page) else path.write_text(page) and path).as_uri())
        if isinstance(page, Page):
            tab.wait_for_selector("#grid button")
        return tab

    show.wrong = wrong
    yield show
    for context in contexts:
        context.close()
    assert wrong == []


def status(tab):
    return tab.inner_text("#status")


def placed(text):
    """{position: weight} of the tokens that a part of the status line names."""
    return {int(i): float(weight) for _, i, weight in PLACED.findall(text)}


def tint(tab, selector):
    """How opaque a token's background is."""
    colour = tab.eval_on_selector(selector, "element => getComputedStyle(element).backgroundColor")
    return float(re.search(r"[/,] *([\d.]+)\)$", colour).group(1))


def assert_largest(said, weights, within):
    """That {position: weight} are the largest five, but for zeros, in order, and right."""
    count = min(5, np.count_nonzero(np.rint(weights * 254)))
    assert said == pytest.approx({i: weights[i] for i in said}, abs=within)
    assert list(said.values()) == pytest.approx(np.sort(weights)[::-1][:count], abs=within)


def chosen(tab):
    return tab.eval_on_selector_all(
        "#grid [aria-pressed=true]", "all => all.map(e => [+e.dataset.layer, +e.dataset.head])"
    )


def precision(tab):
    return float(re.search(r"weights to within ([\d.]+)", tab.inner_text("#about")).group(1))


def hover_cell(tab, t, s, shape):
    left, top, width, height = tab.evaluate("[matrix.left, matrix.top, matrix.width, matrix.height]")
    place = {"x": left + (s + 0.5) * width / shape[1], "y": top + (t + 0.5) * height / shape[0]}
    tab.hover("#matrix", position=place)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_a_token_says_and_shows_what_it_looks_at_and_what_looks_at_it(show, causal):
    weights = heads(2, 3, 10, causal)
    tab = show(html(weights, WORDS))
    tab.click("#grid [data-layer='1'][data-head='2']")
    weights, within = weights[1, 2], precision(tab)
    assert within == 0.003
    for box, i in (("#queries", 5), ("#text", 4), ("#keys", 2)):
        tab.hover(f"{box} [data-i='{i}']")
        assert status(tab).startswith(f"‘{WORDS[i]}’ ({i}) looks at: ")
        for text, truth in zip(status(tab).split("is looked at by"), (weights[i], weights[:, i]), strict=True):
            assert_largest(placed(text), truth, within)
    numbers = {int(e.get_attribute("data-i")): e.inner_text() for e in tab.query_selector_all("#queries button")}
    shown = {i: float(text.split()[-1]) for i, text in numbers.items() if re.search(r"\d\.\d", text)}
    assert_largest(dict(sorted(shown.items(), key=lambda item: -item[1])), weights[:, 2], within)

    tab.hover("#queries [data-i='6']")
    for box in ("#keys", "#text"):
        tints = [tint(tab, f"{box} [data-i='{s}']") for s in range(10)]
        np.testing.assert_allclose(tints, 0.65 * np.sqrt(np.rint(weights[6] * 254) / 254), atol=0.002)
    assert not any(tint(tab, f"#queries [data-i='{t}']") for t in range(10))
    tab.mouse.move(0, 0)
    assert "Point at a token" in status(tab) and tint(tab, "#keys [data-i='6']") == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_weight_of_the_matrix_is_what_it_says_within_the_precision_it_states(show, dtype):
    weights = jnp.asarray(heads(1, 1, 10)[0, 0], dtype)
    tab = show(html(weights, WORDS))
    for t, s in [(0, 0), (9, 0), (4, 3), (3, 4), (9, 9), (7, 2)]:
        hover_cell(tab, t, s, weights.shape)
        said = re.fullmatch(rf"‘{WORDS[t]}’ \({t}\) → ‘{WORDS[s]}’ \({s}\): ([\d.]+)", status(tab))
        assert float(said.group(1)) == pytest.approx(float(weights[t, s]), abs=precision(tab))
        assert tab.get_attribute(f"#queries [data-i='{t}']", "class").split() == ["current"]
    tab.click("#matrix")
    tab.mouse.move(0, 0)
    assert "looks at:" in status(tab)  # a click on the matrix pins the query


@pytest.mark.slow
def test_the_matrix_draws_each_weight_darker_than_the_smaller_ones(show):
    weights = np.diag([1.0, 0.6, 0.3, 0.1]).astype(np.float32)
    tab = show(html(weights, WORDS[:4]))
    pixels = tab.evaluate("Array.from(matrix.image.getContext('2d').getImageData(0, 0, 4, 4).data)")
    light = np.reshape(pixels, (4, 4, 4))[..., :3].sum(-1)
    assert np.all(np.diff(np.diag(light)) > 0) and np.all(light[~np.eye(4, dtype=bool)] > light.diagonal().max())


@pytest.mark.slow
def test_lines_are_drawn_of_one_token_or_of_all(show):
    tab = show(html(np.eye(10, dtype=np.float32), WORDS))
    inked = """() => {
        const canvas = document.getElementById("between"), { width, height } = canvas;
        const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const line = (i) => copy.getImageData(0, 20 * i + 8, width, 4).data;
        return [...Array(10).keys()].filter((i) => line(i).some((value) => value));
    }"""
    assert tab.evaluate(inked) == list(range(10))
    tab.hover("#queries [data-i='3']")
    assert tab.evaluate(inked) == [3]
    tab.hover("#keys [data-i='7']")
    assert tab.evaluate(inked) == [7]


@pytest.mark.slow
def test_a_click_or_a_key_chooses_the_head(show):
    weights = heads(3, 4, 10)
    tab = show(html(weights, WORDS))
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1).mean(-1)
    tab.click("#grid [data-layer='1'][data-head='2']")
    assert chosen(tab) == [[1, 2]] and tab.inner_text("#head") == "Layer 1, head 2"
    label = tab.get_attribute("#grid [aria-pressed=true]", "aria-label")
    assert label == f"layer 1, head 2, entropy {entropy[1, 2]:.2f} nats"
    numbers = tab.inner_text("#numbers").split("\n")
    assert float(numbers[numbers.index("previous token") + 1]) == pytest.approx(
        np.diagonal(weights[1, 2], -1).mean(), abs=0.001
    )
    assert float(numbers[numbers.index("first token") + 1]) == pytest.approx(weights[1, 2, :, 0].mean(), abs=0.001)
    for keys, expected in (
        ("ArrowRight", [1, 3]), ("ArrowRight", [1, 3]), ("ArrowDown", [2, 3]), ("ArrowLeft", [2, 2]), ("ArrowUp", [1, 2])
    ):  # fmt: skip
        tab.keyboard.press(keys)
        assert chosen(tab) == [expected]
    tab.focus("#grid [data-layer='0'][data-head='1']")
    tab.keyboard.press("Enter")
    assert chosen(tab) == [[0, 1]]
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.dataset.layer") == "1"
    tab.focus("#layers")
    tab.keyboard.press("ArrowLeft")
    assert chosen(tab) == [[1, 1]]  # keys in a select are its own


@pytest.mark.slow
def test_tokens_by_keyboard(show):
    tab = show(html(heads(1, 1, 10), WORDS))
    for key, i in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        tab.keyboard.press(key)
        assert status(tab).startswith(f"‘{WORDS[i]}’ ({i}) looks at")
    tab.keyboard.press("Escape")
    assert "Point at a token" in status(tab)
    tab.click("#text [data-i='8']")
    tab.mouse.move(0, 0)
    assert status(tab).startswith("‘the’ (8)")
    tab.hover("#text [data-i='3']")
    assert status(tab).startswith("‘on’ (3)")
    tab.mouse.move(0, 0)
    assert status(tab).startswith("‘the’ (8)")
    tab.click("#text [data-i='8']")
    tab.mouse.move(0, 0)
    assert "Point at a token" in status(tab)
    tab.click("#keys [data-i='7']")
    for _ in range(3):  # as far as the last, and no farther
        tab.keyboard.press("j")
    assert status(tab).startswith("‘dog’ (9)")


@pytest.mark.slow
def test_every_control_is_reached_by_tab_and_shows_it(show):
    tab, reached = show(html(heads(1, 1, 10), WORDS)), []
    for _ in range(9):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate("document.activeElement.id || document.activeElement.closest('[id]')?.id || 'document'")
        )
        ring = "getComputedStyle(document.activeElement).outlineStyle"
        assert reached[-1] == "document" or tab.evaluate(ring) == "solid"
        if reached[-1] == "queries":
            assert status(tab).startswith("‘The’ (0) looks at")
    assert [name for name in reached if name != "lines"][:6] == ["layers", "heads", "theme", "grid", "queries", "keys"]


def test_filters_thin_the_grid(show):
    tab = show(html(heads(3, 4, 10), WORDS))
    count = "document.querySelectorAll('#grid button').length"
    assert tab.evaluate(count) == 12
    tab.select_option("#layers", "2")
    assert tab.evaluate(count) == 4 and chosen(tab) == [[2, 0]]
    tab.select_option("#heads", "3")
    assert tab.evaluate(count) == 1 and chosen(tab) == [[2, 3]]
    tab.select_option("#layers", "")
    assert tab.evaluate(count) == 3 and chosen(tab) == [[2, 3]]


def test_tokens_and_title_are_text_whatever_they_hold(show):
    attack = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"
    tokens = [attack, "<!--", "&lt;b&gt;", "\u2028", "\ud800", "{{DATA}}", "a b", "\n", "\t", "", "\u202eevil", "'\""]
    page = html(heads(1, 1, 12), tokens, title=attack)
    tab = show(page)
    assert tab.inner_text("h1") == attack and tab.title() == attack
    assert page.count("<script") == 2 and attack not in page
    assert tab.evaluate("document.images.length") == 0
    shown = tab.eval_on_selector_all("#text span", "all => all.map(e => e.textContent)")
    assert shown == ["</script><img␣s…", "<!--", "&lt;b&gt;", "\\u2028", "\\ud800", "{{DATA}}", "a␣b", "↵", "⇥", "∅",
                     "\\u202eevil", "'\""]  # fmt: skip
    assert tab.get_attribute("#text [data-i='0']", "title") == attack
    tab.hover("#queries [data-i='11']")
    assert "‘'\"’ (11)" in status(tab)


@pytest.mark.slow
def test_an_injected_script_would_not_run(show):
    page = html(heads(1, 1, 10), WORDS)
    tab = show(page.replace("</body>", "<script>document.title = 'ran'</script></body>"))
    tab.wait_for_selector("#grid button")
    assert tab.title() == "Attention"
    assert "default-src 'none'" in page and "unsafe" not in page
    assert len(show.wrong) == 1 and "violates the following Content Security Policy" in show.wrong.pop()


@pytest.mark.slow
def test_the_theme_follows_the_system_and_then_the_button(show):
    theme = "document.documentElement.dataset.theme"
    for system, other in (("dark", "light"), ("light", "dark")):
        tab = show(html(heads(1, 2, 10), WORDS), color_scheme=system)
        background = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(theme) == system
        before = tab.evaluate(background)
        tab.get_by_role("button", name=f"{other.title()} theme").click()
        assert tab.evaluate(theme) == other and tab.evaluate(background) != before


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 390])
def test_no_page_scrolls_sideways(show, width):
    for page in (
        html(heads(1, 16, 10), WORDS),
        html(heads(2, 2, 40), [f"token{i}" * 3 for i in range(40)], title="x" * 300),
    ):
        tab = show(page, width=width)
        tab.click("#text [data-i='7']")  # does not move under the pointer as the status line fills
        assert "(7) looks at" in status(tab)
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_twelve_layers_of_random_weights_stay_below_a_million_bytes(causal):
    tokens = [f" token{i}" for i in range(128)]
    assert len(html(heads(12, 12, 128, causal, scale=1.0), tokens).encode()) < 1_000_000


@pytest.mark.slow
def test_statistics_of_five_thousand_tokens(show):
    T, numbers = 5000, statistics(2, 2, 5000, 3)
    tab = show(html(numbers, [f"w{i}" for i in range(T)]))
    assert tab.evaluate("document.querySelectorAll('#queries button').length") < 200
    tab.click("#grid [data-layer='1'][data-head='0']")
    assert f"induction\n{numbers.induction[1, 0]:.3f}" in tab.inner_text("#numbers")
    assert "duplicate" not in tab.inner_text("#numbers")
    tab.locator("#text [data-i='4000']").click()
    tab.mouse.move(0, 0)
    out, into = status(tab).split("; is looked at by")
    keys, weights = numbers.top_keys[1, 0], numbers.top_weights[1, 0]
    assert placed(out) == pytest.approx(dict(zip(keys[4000], weights[4000], strict=True)), abs=precision(tab))
    column = np.where(keys == 4000, weights, 0).sum(-1)
    assert_largest(placed(into), column, precision(tab))
    assert f"entropy {numbers.entropy[1, 0, 4000]:.2f} nats" in into
    assert f"receives {numbers.received[1, 0, 4000]:.2f} in all" in into
    for key in keys[4000]:  # those far away are in the list too
        assert tint(tab, f"#keys [data-i='{key}']") > 0
    hover_cell(tab, 300, 299, (600, 600))
    assert re.match(r"strongest of \d+ × \d+: ‘w\d+’ \(\d+\) → ‘w\d+’ \(\d+\): ", status(tab))
    tab.hover("#queries [data-i='3990']")
    assert status(tab).startswith("‘w3990’ (3990) looks at")


@pytest.mark.slow
def test_cross_attention_and_nan(show):
    weights = heads(1, 2, 10)[..., :6]
    weights[0, 0, 3] = np.nan
    keys = [f"key{s}" for s in range(6)]
    tab = show(html(weights, WORDS, key_tokens=keys))
    assert "NaN" in tab.inner_text("#numbers") and tab.is_visible("#nan")
    tab.hover("#queries [data-i='3']")
    assert "‘key0’ (0) NaN" in status(tab) and "looked at by" not in status(tab)
    hover_cell(tab, 3, 5, (10, 6))
    assert status(tab) == "‘on’ (3) → ‘key5’ (5): NaN"
    hover_cell(tab, 9, 2, (10, 6))
    assert float(status(tab).split()[-1]) == pytest.approx(weights[0, 0, 9, 2], abs=precision(tab))
    tab.hover("#keytext [data-i='4']")
    assert re.match(r"‘key4’ \(4\) is looked at by: ‘on’ \(3\) NaN, ", status(tab))
    assert tint(tab, "#queries [data-i='3']") > 0
    tab.keyboard.press("j")
    assert status(tab).startswith("‘key5’ (5) is looked at by")


@pytest.mark.slow
def test_it_works_inside_a_notebook(show):
    page = html(heads(2, 2, 10), WORDS, title="Inside & out")
    tab = show(f"<!DOCTYPE html><title>outer</title>{page._repr_html_()}")
    assert len(tab.frames) == 2
    frame = tab.frame_locator("iframe")
    frame.locator("#queries [data-i='2']").hover()
    assert frame.locator("#status").inner_text().startswith("‘sat’ (2) looks at")
    assert frame.locator("h1").inner_text() == "Inside & out"
    frame.locator("#grid [data-layer='1'][data-head='1']").click()
    assert frame.locator("#head").inner_text() == "Layer 1, head 1"
    assert tab.get_attribute("iframe", "sandbox") == "allow-scripts"


@pytest.mark.slow
def test_weights_and_statistics_of_a_window_give_the_same_numbers():
    query = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2, 4)), jnp.float32)
    mask = causal() & sliding_window(2, 0)
    weights, whole = attention_weights(query, query, mask=mask), attention_statistics(query, query, mask=mask)
    stored = [
        json.loads(re.search(r'json">(.*?)</script>', html(each, WORDS[:9]))[1])["numbers"] for each in (weights, whole)
    ]
    for name in ("entropy", "first_token", "previous_token"):
        np.testing.assert_allclose(stored[0][name], stored[1][name], atol=2e-4)
    assert repr(html(weights, WORDS[:9])).startswith("<Page of ")


def test_save_makes_directories_and_writes_the_page(tmp_path):
    page = html(heads(1, 1, 10), WORDS)
    path = page.save(tmp_path / "a" / "b" / "page.html")
    assert path == tmp_path / "a" / "b" / "page.html" and path.read_bytes().decode() == page


def without(name, value):
    return SimpleNamespace(**{**vars(statistics(1, 2, 10, 3)), name: value})


@pytest.mark.parametrize(
    "weights, options, error, words",
    [
        (np.ones((10, 10), int), {}, TypeError, "weights as a floating array, got int64"),
        (np.ones(10), {}, ValueError, r"weights \[layers, N, T, S\].*got \(10,\)"),
        (np.ones((0, 2, 10, 10)), {}, ValueError, r"got \(0, 2, 10, 10\)"),
        (3 * np.eye(10), {}, ValueError, "weights from 0 to 1, got 0 to 3"),
        (np.log(np.eye(10) + 0.5), {}, ValueError, "weights from 0 to 1"),
        (np.eye(9), {}, ValueError, "tokens to be T = 9 strings.*got 10"),
        (np.eye(10)[:, :8], {}, ValueError, "key_tokens, S = 8 of them"),
        (np.eye(10)[:, :8], {"key_tokens": ["a"] * 9}, ValueError, "key_tokens to be S = 8 strings.*got 9"),
        (np.eye(10), {"tokens": "0123456789"}, TypeError, "tokens must be a list of strings, got str"),
        (np.eye(10), {"tokens": 10}, TypeError, "tokens must be a list of strings, got int"),
        (np.eye(10), {"tokens": list(range(10))}, TypeError, "tokens must be a list of strings, got one with 0, int"),
        (np.eye(10), {"title": None}, TypeError, "title as a string, got NoneType"),
        (np.broadcast_to(np.float32(0), (99, 99, 50, 50)), {}, ValueError, "fewer layers.*attention_statistics"),
        (without("top_keys", np.full((1, 2, 10, 3), 10)), {}, ValueError, "top_keys from -1 to S - 1 = 9, got 10"),
        (without("top_keys", np.zeros((1, 2, 10, 3))), {}, TypeError, "top_keys as integers, got float64"),
        (without("top_keys", np.zeros((1, 2, 10, 0), int)), {}, ValueError, r"top_keys \[layers, N, T, k\]"),
        (without("entropy", np.zeros((1, 2, 9))), {}, ValueError, r"weights.entropy \(1, 2, 10\).*got \(1, 2, 9\)"),
        (without("top_weights", np.full((1, 2, 10, 3), 2.0)), {}, ValueError, "top_weights from 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(weights, options, error, words):
    with pytest.raises(error, match=words):
        html(weights, options.pop("tokens", WORDS), **options)
