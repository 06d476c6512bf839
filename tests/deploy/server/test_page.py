"""The page in a browser: real clicks, keys, drops and pastes, on any screen."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import encoded, noise

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DROP = """
([element, bytes, name, kind]) => {
  const transfer = new DataTransfer();
  const content = Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0));
  transfer.items.add(new File([content], name, { type: "image/png" }));
  const target = document.querySelector(element);
  if (kind === "paste") {
    target.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
    return;
  }
  for (const type of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def single(make_app: Callable[..., Any], listen: Callable[[Any], str]) -> str:
    return listen(make_app(k=12))


@pytest.fixture(scope="module")
def double(make_app: Callable[..., Any], listen: Callable[[Any], str]) -> str:
    return listen(make_app(2, k=12))


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(address)`: the page, ready; it must not complain, or ask anyone but its server."""
    complaints: list[str] = []
    contexts = []

    def opened(address: str, allowed: str = r"^$", **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda one: re.search(allowed, one.text) or complaints.append(one.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:")) or complaints.append(request.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def send(page: Any, content: bytes, name: str = "mine.png", kind: str = "drop") -> None:
    page.evaluate(DROP, ["body", base64.b64encode(content).decode(), name, kind])


def labels(page: Any, side: int = 0) -> list[str]:
    return page.locator(".grid").nth(side).locator(".name").all_inner_texts()


def is_drawn(page: Any, selector: str) -> bool:
    return page.evaluate(
        "(selector) => Promise.all([...document.querySelectorAll(selector)]"
        ".map((one) => one.decode().then(() => one.naturalWidth > 0))).then((all) => all.every(Boolean))",
        selector,
    )


def test_one_click_on_an_example_shows_its_neighbours(
    open_page: Callable[..., Any], single: str, coloured_tree: Path
) -> None:
    page = open_page(single)
    assert "64 images of 8 classes" in page.locator("#facts").inner_text()
    assert "Recall@1 50.0 %" in page.locator("#facts").inner_text()
    assert not page.locator("#found").is_visible()
    examples = page.locator(".example")
    assert examples.count() == 24
    wanted = examples.nth(2).get_attribute("title")
    examples.nth(2).click()
    page.locator(".card").first.wait_for()
    assert page.locator("h1").inner_text() == f"Images like this {wanted}"
    assert page.locator(".card").count() == 12
    assert is_drawn(page, ".card img, #query")
    same = [label == wanted for label in labels(page)]
    marks = page.locator(".card .mark").all_inner_texts()
    assert marks == ["✓" if one else "✗" for one in same]
    assert page.locator(".verdict").inner_text() == f"{sum(same)} of 12 are of its class, {wanted}."
    values = [float(text) for text in page.locator(".similarity").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    # Others are others.
    before = [one.get_attribute("title") for one in examples.all()]
    page.get_by_role("button", name="Others").click()
    page.wait_for_function(
        "(before) => [...document.querySelectorAll('.example')].some((one, i) => one.title !== before[i])",
        arg=before,
    )


@pytest.mark.parametrize("way", ["drop", "paste", "file"])
def test_an_image_of_ones_own(
    open_page: Callable[..., Any], single: str, coloured_tree: Path, way: str
) -> None:
    page = open_page(single)
    path = coloured_tree / "class 4" / "6.png"
    if way == "file":
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Choose a file").click()
        chooser.value.set_files(path)
    else:
        send(page, path.read_bytes(), kind=way)
    page.locator(".card").first.wait_for()
    assert labels(page)[0] == "class 4"
    assert page.locator(".similarity").first.inner_text() == "1.00"
    assert page.locator(".mark").count() == 0
    assert is_drawn(page, "#query")
    assert not page.locator("#over").is_visible()


def test_what_is_no_image_is_said_and_the_former_result_stays(
    open_page: Callable[..., Any], single: str
) -> None:
    page = open_page(single, allowed="status of 4")
    page.locator(".example").first.click()
    page.locator(".card").first.wait_for()
    title = page.locator("h1").inner_text()
    send(page, b"<b>no image</b>", "evil.png")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "JPEG, PNG, WebP, BMP, GIF" in alert.inner_text()
    assert (page.locator("h1").inner_text(), page.locator(".card").count()) == (title, 12)
    send(page, encoded(noise())[:200], "broken.png")
    page.get_by_text("The image is broken").wait_for()
    send(page, b"x" * 20_000_001, "<b>big</b>.png")
    page.get_by_text("'<b>big</b>.png' has 20.0 MB; at most 20 MB are taken.").wait_for()
    page.locator(".example").nth(1).click()
    alert.wait_for(state="hidden")


def test_keys_move_search_filter_and_show_attention(open_page: Callable[..., Any], single: str) -> None:
    page = open_page(single)
    page.locator(".example").first.click()
    page.locator(".card").first.wait_for()
    focused = "[...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == 2
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == 10
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == 0
    page.keyboard.press("ArrowRight")
    chosen = page.evaluate("document.activeElement.title")
    wanted = labels(page)[1]
    first = page.locator("#query").get_attribute("src")
    page.keyboard.press("Enter")
    page.wait_for_function("(src) => document.querySelector('#query').getAttribute('src') !== src", arg=first)
    assert page.locator("h1").inner_text() == f"Images like this {wanted}"
    assert chosen.endswith(".png")
    assert page.evaluate(focused) == 0
    # Back is the query before.
    page.go_back()
    page.wait_for_function("(src) => document.querySelector('#query').getAttribute('src') === src", arg=first)

    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.keyboard.type("LASS 6")
    assert page.locator("#options li").all_inner_texts() == ["class 6\n8"]
    page.keyboard.press("Enter")
    page.get_by_text("The most similar of class class 6.").wait_for()
    assert set(labels(page)) == {"class 6"}
    page.keyboard.press("/")
    page.locator("#filter").fill("")
    page.get_by_text("of its class").wait_for()
    page.locator("#filter").blur()

    page.keyboard.press("a")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.card img, #query')]"
        ".every((one) => one.src.startsWith('data:'))"
    )
    assert is_drawn(page, ".card img, #query")
    assert page.locator(".peak").first.inner_text().startswith("peak ")
    first_tap = page.locator(".card img").first.get_attribute("src")
    page.locator("#taps label").nth(2).click()
    page.wait_for_function("(src) => document.querySelector('.card img').src !== src", arg=first_tap)
    page.get_by_role("radio", name="Off").check(force=True)
    assert "data:" not in page.locator(".card img").first.get_attribute("src")


def test_what_is_similar_enough_is_marked_and_said(
    open_page: Callable[..., Any], single: str, coloured_tree: Path
) -> None:
    page = open_page(single)
    send(page, (coloured_tree / "class 4" / "6.png").read_bytes())
    page.locator(".card").first.wait_for()
    similar = page.evaluate(
        "[...document.querySelectorAll('.card')].filter((card) => card.neighbour.similarity >= 0.99).length"
    )
    assert similar >= 1
    assert page.locator(".similarity:not(.below)").count() == similar
    assert page.locator(".threshold").count() == 12
    words = page.locator(".judgement").inner_text()
    assert words.startswith(f"Known · {similar} of 12 count")
    assert "The nearest image, at 1.00, reaches 0.99; of images of unknown classes 1 % do" in words
    assert "of known ones 60 % with the right class nearest." in words
    assert "from 0.99 on; 0.9 % of pairs of different classes reach that, 25 % of" in words
    name = page.locator(".card").first.get_attribute("aria-label")
    assert "counts as the same class" in name
    send(page, encoded(noise(seed=5)))
    page.get_by_text("does not reach 0.99").wait_for()
    assert page.locator(".judgement b.unknown").inner_text() == "Unknown"


def test_a_page_that_is_open_shows_what_was_added(
    open_page: Callable[..., Any],
    listen: Callable[[Any], str],
    make_app: Callable[..., Any],
    growing: Any,
) -> None:
    page = open_page(listen(make_app(sides=[growing.side])))
    assert "64 images of 8 classes" in page.locator("#facts").inner_text()
    content = growing.add("a new class")
    growing.wait(page.url, 65)
    send(page, content)
    page.locator(".card").first.wait_for()
    assert "65 images of 9 classes" in page.locator("#facts").inner_text()
    assert labels(page)[0] == "a new class"
    page.locator("#filter").click()
    assert page.locator("#options li").count() == 9


def test_the_number_of_neighbours_is_chosen(open_page: Callable[..., Any], single: str) -> None:
    page = open_page(single)
    page.locator(".example").first.click()
    page.locator(".card").first.wait_for()
    page.get_by_role("combobox", name="Neighbours").select_option("48")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 48")


def test_two_bundles_answer_side_by_side(open_page: Callable[..., Any], double: str) -> None:
    page = open_page(double)
    page.locator(".example").nth(4).click()
    page.locator(".card").first.wait_for()
    sides = page.locator(".side")
    assert [one.locator("h3").inner_text().split("\n")[0] for one in sides.all()] == ["first", "second"]
    files = [
        page.evaluate(
            "(side) => [...document.querySelectorAll('.grid')[side].querySelectorAll('.card')]"
            ".map((card) => card.neighbour.file)",
            side,
        )
        for side in (0, 1)
    ]
    common = set(files[0]) & set(files[1])
    assert f"{len(common)} {'is' if len(common) == 1 else 'are'} on both sides" in sides.first.inner_text()
    for place, card in enumerate(sides.first.locator(".card").all()):
        file = files[0][place]
        shown = card.locator(".elsewhere").all_inner_texts()
        assert shown == ([f"⇄ {files[1].index(file) + 1}"] if file in common else [])
    boxes = [one.bounding_box() for one in sides.all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    # A neighbour of the second one is a query to both.
    wanted = labels(page, 1)[3]
    sides.nth(1).locator(".card").nth(3).click()
    page.wait_for_function("(title) => document.querySelector('h1').textContent === title",
                           arg=f"Images like this {wanted}")  # fmt: skip
    # The first has attention, the second none.
    page.locator("#taps label").nth(1).click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.side0 .card img')].every((one) => one.src.startsWith('data:'))"
    )
    assert "data:" not in sides.nth(1).locator(".card img").first.get_attribute("src")


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_in_one_direction(
    open_page: Callable[..., Any], single: str, double: str, width: int
) -> None:
    for address in (single, double):
        page = open_page(address, viewport={"width": width, "height": 780}, has_touch=True, is_mobile=True)
        page.locator(".example").first.tap()
        page.locator(".card").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        top = page.locator(".card").first.bounding_box()["y"]
        assert top < 780
        page.locator(".card").nth(2).tap()
        page.locator("#filter").tap()
        page.locator("#options li").nth(3).tap()
        page.get_by_text("The most similar of class class 3.").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_mode_follows_the_system(open_page: Callable[..., Any], single: str) -> None:
    for scheme, is_dark in (("dark", True), ("light", False)):
        page = open_page(single, color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", colour)[0]) < 60) == is_dark


def test_every_control_has_a_name(open_page: Callable[..., Any], single: str) -> None:
    page = open_page(single)
    page.locator(".example").first.click()
    page.locator(".card").first.wait_for()
    page.locator("#filter").click()
    for role in ("combobox", "button", "radio", "img", "link", "option", "listbox", "list"):
        found = page.get_by_role(role)
        assert found.count() == page.get_by_role(role, name=re.compile(r"\S")).count() > 0, role


def test_a_token_opens_the_page_once_and_for_all(
    browser: Any, make_app: Callable[..., Any], listen: Callable[[Any], str]
) -> None:
    address = listen(make_app(token="nobody knows it"))
    context = browser.new_context()
    page = context.new_page()
    assert page.goto(address).status == 401
    page.goto(f"{address}/?token=nobody knows it")
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.url == f"{address}/"
    page.locator(".example").first.click()
    page.locator(".card").first.wait_for()
    assert is_drawn(page, ".card img")
    context.close()
