"""The page in a browser: what it says, sorts, filters, opens and compares; on any screen, offline."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unseen.report.comparison import compare
from unseen.report.page import classes, write_page
from unseen.report.page.content import page_content
from unseen.report.page.run_files import MOST_POINTS, MOST_SHEETS, read_curves
from unseen.report.runs import Runs, command, load_runs
from unseen.tracking.record import RunRecord
from unseen.tracking.sheet import RetrievalSheet, SheetRow

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
EVIL = "</script><b>Gr​eek Ω & 'λ'"
"""A class name that a page must show and not run."""
EFFECT = {"baseline": 0.0, "gdfl": 0.021, "cann": 0.001, "full": 0.034}

MakeRecord = Callable[..., RunRecord]


def write_runs(
    root: Path,
    make_record: MakeRecord,
    *,
    data: Sequence[str] = ("cub", "cars"),
    losses: Sequence[str] = ("triplet", "proxy_anchor"),
    seeds: int = 3,
    classes: int = 30,
    sheets: bool = True,
    full: bool = True,
) -> None:
    """Folders of runs whose methods differ by `EFFECT`; the last one failed, and another is missing.

    Args:
        root: gets a folder for each.
        make_record: of the room's fixtures.
        data: data sets.
        losses: likewise.
        seeds: of each.
        classes: unseen classes of each data set.
        sheets: whether they left retrieval sheets and curves.
        full: whether nothing failed and nothing is missing.
    """
    generator = np.random.default_rng(0)
    for set_number, name in enumerate(data):
        names = [EVIL, *(f"{name} class {i:02}" for i in range(1, classes))]
        easy = generator.beta(5, 4, classes)
        turns = {method: generator.normal(0, 0.04, classes) for method in EFFECT}
        for loss_number, loss in enumerate(losses):
            for seed in range(seeds):
                luck = generator.normal(0, 0.006)
                for method, effect in EFFECT.items():
                    if not full and (method, loss_number, seed) == ("cann", 0, 1):
                        continue
                    value = 0.32 + 0.08 * set_number + 0.03 * loss_number + effect + luck
                    value += generator.normal(0, 0.003)
                    each = np.clip(easy - easy.mean() + value + turns[method] * (method != "baseline"), 0, 1)
                    record = _record(make_record, method, seed, value, name, loss, names, each)
                    if not full and (method, loss_number, seed) == ("full", 1, 2):
                        error = "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.2 GiB."
                        record = dataclasses.replace(
                            record, status="failed", error=error, metrics={}, intervals={}, per_class={}
                        )
                    folder = root / f"{name}_{loss}_{method}_seed{seed}_{set_number}{loss_number}{seed}a9"
                    record.save(folder / "record.json")
                    if sheets and record.status == "success":
                        _curves(folder / "metrics.csv", value, method, seed)
                        _sheet(record, set_number, names, each).save(folder / "retrieval_sheet.json")


def _record(
    make_record: MakeRecord,
    method: str,
    seed: int,
    value: float,
    data: str,
    loss: str,
    names: list[str],
    each: np.ndarray,
) -> RunRecord:
    recall = min(0.95, value + 0.22)
    return make_record(
        method,
        seed,
        value,
        data=data,
        loss=loss,
        split=f"{sum(map(ord, data)):x}" * 20,
        manifest=f"{sum(map(ord, data)) + 1:x}" * 20,
        metrics={
            "unseen": {"map_at_r": value, "recall_at_1": recall, "recall_at_2": min(1.0, recall + 0.07)},
            "seen": {"map_at_r": value + 0.21, "recall_at_1": recall + 0.05, "recall_at_2": math.nan},
            "gap": {"map_at_r": 0.21 - value / 8, "recall_at_1": 0.05, "recall_at_2": math.nan},
            "untrained": {"map_at_r": 0.18, "recall_at_1": 0.35, "recall_at_2": 0.45},
            "validation": {"map_at_r": value + 0.05, "recall_at_1": recall + 0.04, "recall_at_2": 0.7},
        },
        intervals={"unseen": {"map_at_r": (value - 0.02, value + 0.02)}},
        per_class={
            "map_at_r": dict(zip(names, each.tolist(), strict=True)),
            "recall_at_1": dict(zip(names, np.sqrt(each).tolist(), strict=True)),
        },
        images_per_second=312.0 - 20 * ("full" in method) + seed,
        seconds={"train": 1320.0 + 60 * seed, "train_total": 1320.0 + 60 * seed},
        parameters=25_600_000,
        steps=3000,
        chosen_epoch=18 + seed,
        adversary_strength=0.1 if method in ("cann", "full") else None,
        overrides=[f"data={data}", f"loss={loss}", f"ablation={method}", f"seed={seed}"],
    )


def _curves(path: Path, value: float, method: str, seed: int, epochs: int = 20) -> None:
    generator = np.random.default_rng(seed)
    names = ["epoch", "step", "train/loss", "validation/map_at_r", "validation/recall_at_1", "lr-AdamW/head"]
    if method in ("cann", "full"):
        names += ["train/adversary_strength", "train/adversary_accuracy", "train/gradient_norm_metric"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for epoch in range(epochs):
            writer.writerow({"step": epoch * 50, "lr-AdamW/head": 1e-3 * (1 - epoch / epochs)})
            done = 1 - math.exp(-epoch / 5)
            row = {
                "epoch": epoch,
                "step": epoch * 50 + 49,
                "train/loss": 2.5 * math.exp(-epoch / 6) + 0.3 + generator.normal(0, 0.02),
                "validation/map_at_r": 0.2 + (value - 0.15) * done + generator.normal(0, 0.005),
                "validation/recall_at_1": 0.35 + (value - 0.1) * done + generator.normal(0, 0.005),
            }
            if method in ("cann", "full"):
                row |= {
                    "train/adversary_strength": 0.1 * (2 / (1 + math.exp(-10 * epoch / epochs)) - 1),
                    "train/adversary_accuracy": 0.6 * done + generator.normal(0, 0.01),
                    "train/gradient_norm_metric": 0.5 + 0.1 * generator.random(),
                }
            writer.writerow(row)
        writer.writerow({"step": epochs * 50, "epoch": epochs})


def _sheet(record: RunRecord, set_number: int, names: list[str], each: np.ndarray) -> RetrievalSheet:
    """Twelve queries, of which those of hard classes find other classes."""
    generator = np.random.default_rng(sum(map(ord, record.choices["ablation"])) + record.seed)
    rows, shown = [], {}
    for query in range(12):
        label = query * len(names) // 12
        found = [
            label if generator.random() < each[label] + 0.25 else int(generator.integers(len(names)))
            for _ in range(8)
        ]
        images = [100 * one + 1 + int(generator.integers(6)) for one in found]
        similarities = np.sort(generator.uniform(0.4, 0.98, 8))[::-1].round(4).tolist()
        rows.append(SheetRow(100 * label, images, similarities, [one == label for one in found]))
        shown |= {100 * label: label, **dict(zip(images, found, strict=True))}
    pictures = {image: _picture(image, label, set_number) for image, label in shown.items()}
    return RetrievalSheet(
        record.split, record.manifest, rows, {image: names[label] for image, label in shown.items()}, pictures
    )


def _picture(image: int, label: int, set_number: int) -> str:
    """Stripes whose colour and direction are the class's."""
    generator = np.random.default_rng(label + 1000 * set_number)
    colours, angle = generator.integers(30, 230, (2, 3)), generator.uniform(0, math.pi)
    y, x = np.mgrid[:56, :56] / 9
    share = (np.sin(x * math.cos(angle) + y * math.sin(angle) + image) > 0)[..., None]
    pixels = np.where(share, colours[0], colours[1])
    noisy = pixels + np.random.default_rng(image).normal(0, 12, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=70)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(record: MakeRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and their page."""
    root = tmp_path_factory.mktemp("page")
    write_runs(root / "runs", record, full=False)
    runs = load_runs(root / "runs")
    write_page(root / "page.html", compare(runs), runs)
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:
    """`open_page(**options of the context)`: the page, drawn; it must not complain or ask a network."""
    complaints: list[str] = []
    contexts = []

    def opened(path: Path | None = None, **options: Any) -> Any:
        context = browser.new_context(
            offline=True, **({"viewport": {"width": 1280, "height": 900}} | options)
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:")) or complaints.append(request.url)
            ),
        )
        page.goto((path or folder / "page.html").as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def column(page: Any, table: str, field: str) -> list[str]:
    """Texts of the cells of a column that are drawn, in their order."""
    return page.locator(f"#{table} .tabulator-row [tabulator-field={field}]").all_inner_texts()


def test_the_first_screen_says_whether_by_how_much_and_how_sure(
    open_page: Callable[..., Any], folder: Path
) -> None:
    comparison = compare(load_runs(folder / "runs"))
    page = open_page()
    assert page.locator("#verdict").inner_text().endswith(".")
    rows = page.locator("#verdicts .verdict")
    overall = [one for one in comparison.overall if one.metric == "map_at_r"]
    assert rows.count() == len(overall) == 3
    for one, row in zip(overall, rows.all(), strict=True):
        assert row.locator("b").inner_text() == one.method
        assert one.verdict.value in row.locator(".chip").inner_text()
        assert row.locator(".much").inner_text() == f"{100 * one.mean:+.1f} points".replace("-", "−")
        assert one.interval is not None
        low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in one.interval)
        assert f"{low} to {high}" in row.inner_text().replace("+0.0", "0.0") or "0.0" in (low[1:], high[1:])
        assert row.bounding_box()["y"] + row.bounding_box()["height"] < 900
    # The other metric is one key away.
    page.get_by_role("radio", name="Recall@1").check(force=True)
    recall = next(one for one in comparison.overall if (one.method, one.metric) == ("full", "recall_at_1"))
    full = page.locator("#verdicts .verdict", has_text="full")
    assert full.locator(".much").inner_text() == f"{100 * recall.mean:+.1f} points"
    assert "Recall@1" in page.locator("#methods-table .tabulator-header").inner_text()


def test_tables_sort_and_filter(open_page: Callable[..., Any], folder: Path) -> None:
    runs = load_runs(folder / "runs")
    values = [f"{100 * run.record.metrics['unseen']['map_at_r']:.1f}" for run in runs.finished]
    page = open_page()
    head = page.locator("#runs-table .tabulator-col[tabulator-field=metric0]")
    head.click()
    shown = column(page, "runs-table", "metric0")
    assert len(shown) > 10
    assert shown == sorted(values, key=float)[: len(shown)]
    head.click()
    shown = column(page, "runs-table", "metric0")
    assert shown == sorted(values, key=float, reverse=True)[: len(shown)]

    page.get_by_role("combobox", name="loss", exact=True).select_option("triplet")
    page.locator("#runs-filters select").first.select_option("full")
    expected = [
        run for run in runs.finished if run.value("loss") == "triplet" and run.value("ablation") == "full"
    ]
    count = page.locator("#runs-count")
    assert count.inner_text().startswith(f"{len(expected)} of ")
    assert {text.strip() for text in column(page, "runs-table", "method")} == {"full"}
    page.get_by_role("searchbox", name="Search").fill("cars seed1")
    assert count.inner_text().startswith("1 of ")
    page.get_by_role("searchbox", name="Search").fill("nothing of the kind")
    assert "Nothing fits" in page.locator("#runs-table").inner_text()

    page.locator("#methods-filters select").nth(1).select_option("gdfl")
    assert {text.strip() for text in column(page, "methods-table", "method")} == {"gdfl"}


def test_a_run_opens_with_its_command_and_gives_the_focus_back(
    open_page: Callable[..., Any], folder: Path
) -> None:
    page = open_page()
    name = "cars_proxy_anchor_cann_seed0_110a9"
    page.get_by_role("button", name=f"Open {name}").first.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text() == name
    [run] = [one for one in load_runs(folder / "runs").finished if one.name == name]
    assert command(run) == "unseen train data=cars loss=proxy_anchor ablation=cann seed=0"
    assert dialog.locator(".code code").first.inner_text() == command(run)
    dialog.locator(".vega svg").nth(3).wait_for()
    assert f"{100 * run.record.metrics['validation']['map_at_r']:.1f}" in dialog.inner_text()
    dialog.get_by_role("button", name="Copy the command").first.click()
    dialog.get_by_text("Copied").wait_for()
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Open {name}"


def test_two_runs_lie_side_by_side_on_the_same_queries(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_role("searchbox", name="Search").fill("cars_triplet seed0")
    for method in ("gdfl", "full"):
        page.locator("#runs-table .tabulator-row", has_text=method).get_by_role("checkbox").check()
    pair = page.locator("#pair-content")
    assert "gdfl · cars · triplet · seed 0" in pair.inner_text()
    assert "full · cars · triplet · seed 0" in pair.inner_text()
    settings = dict(row.split("\t", 1) for row in pair.locator(".settings tbody tr").all_inner_texts())
    assert settings["adversary"].split("\t") == ["none", "grl"]
    assert "fusion" not in settings
    queries = pair.locator(".sheet li:not(.heads)")
    assert queries.count() == 12
    for query in queries.all():
        assert query.locator(".query img").count() == 1
        assert [row.locator("img").count() for row in query.locator(".row").all()] == [8, 8]
    assert queries.first.locator("figcaption").inner_text() == EVIL
    assert page.locator("b", has_text="eek").count() == 0
    widths = page.evaluate("[...document.querySelectorAll('.sheet img')].map((one) => one.naturalWidth)")
    assert set(widths) == {56}
    wrong = queries.locator(".neighbour.wrong")
    assert wrong.first.locator("img").get_attribute("alt").startswith("wrong: ")
    page.get_by_label("Only queries").check()
    differing = [query for query in queries.all() if query.is_visible()]
    assert 0 < len(differing) < 12
    for query in differing:
        marks = [row.locator("i").all_inner_texts() for row in query.locator(".row").all()]
        assert marks[0] != marks[1]


def test_classes_say_who_gains(open_page: Callable[..., Any], folder: Path) -> None:
    page = open_page()
    page.locator("#classes-controls select").nth(0).select_option("cub · triplet")
    page.locator("#classes-controls select").nth(1).select_option("gdfl")

    def mean(method: str, name: str) -> float:
        return float(
            np.mean(
                [
                    run.record.per_class["map_at_r"][name]
                    for run in load_runs(folder / "runs").finished
                    if (run.value("data"), run.value("loss"), run.value("ablation"))
                    == ("cub", "triplet", method)
                ]
            )
        )

    names = [EVIL, *(f"cub class {i:02}" for i in range(1, 30))]
    differences = {name: round(mean("gdfl", name), 4) - round(mean("baseline", name), 4) for name in names}
    gain, lose = (sum(sign * one > 1e-9 for one in differences.values()) for sign in (1, -1))
    assert f"{gain} gain, {lose} lose" in page.locator("#classes-about").inner_text()
    best = max(differences, key=lambda name: differences[name])
    labels = page.locator("#classes-chart .role-axis-label text").all_text_contents()
    assert best in labels


def test_what_is_missing_and_what_failed_is_said(open_page: Callable[..., Any]) -> None:
    page = open_page()
    grid = page.locator("#grid")
    assert grid.get_by_text("lacks seed 1").count() == 2
    assert "OutOfMemoryError: CUDA out of memory." in grid.locator("pre.error").first.inner_text()
    assert "ablation=full seed=2" in grid.locator(".code code").first.inner_text()
    assert "failed or interrupted" in page.locator("#cautions").inner_text()


def luminance(page: Any) -> float:
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_dark_mode_follows_the_system_and_the_button(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="dark")
    assert luminance(page) < 40
    ink = page.locator("#differences-chart .role-axis-label text", has_text="cub").first
    ink.wait_for()
    assert ink.evaluate("(text) => getComputedStyle(text).fill") == "rgb(236, 235, 230)"
    page.get_by_role("button", name="Colours").click()
    assert luminance(page) > 240
    page.get_by_role("button", name="Colours").click()
    assert luminance(page) < 40
    page.emulate_media(media="print")
    assert luminance(page) > 240
    assert not page.locator(".top").is_visible()


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_in_one_direction(open_page: Callable[..., Any], width: int) -> None:
    page = open_page(viewport={"width": width, "height": 780}, has_touch=True, is_mobile=True)
    page.locator("#classes-chart svg").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#runs-table .tabulator-row button").first.click()
    dialog = page.get_by_role("dialog")
    dialog.locator(".vega svg").first.wait_for()
    assert dialog.evaluate("(one) => one.scrollWidth <= one.clientWidth")
    assert dialog.bounding_box()["width"] <= width


def test_the_keyboard_reaches_and_sorts_the_table(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.locator("#methods-filters button").focus()
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.getAttribute('tabulator-field') ?? ''"))
        if seen[-1] == "mean":
            break
    assert seen[-1] == "mean", seen
    page.keyboard.press("Enter")
    values = [float(text.split()[0]) for text in column(page, "methods-table", "mean")]
    assert values == sorted(values)
    assert page.locator("#methods-table .tabulator-col[aria-sort=ascending]").count() == 1
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('link')"):
            break
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()


def test_every_control_has_a_name(open_page: Callable[..., Any]) -> None:
    page = open_page()
    for role in ("combobox", "searchbox", "button", "checkbox", "radio", "img", "link"):
        found = page.get_by_role(role)  # type: ignore[arg-type]
        assert found.count() == page.get_by_role(role, name=re.compile(r"\S")).count() > 0, role  # type: ignore[arg-type]


@pytest.mark.parametrize(("seeds", "losses"), [(1, ["triplet"]), (2, ["triplet"])])
def test_few_runs_are_a_page_too(
    open_page: Callable[..., Any], record: MakeRecord, tmp_path: Path, seeds: int, losses: list[str]
) -> None:
    write_runs(tmp_path / "runs", record, data=["cub"], losses=losses, seeds=seeds, sheets=False)
    runs = load_runs(tmp_path / "runs")
    write_page(tmp_path / "page.html", compare(runs), runs)
    page = open_page(tmp_path / "page.html")
    text = page.locator("#summary").inner_text()
    assert f"over {seeds} paired seed" in text
    assert ("no interval" in text) == (seeds == 1)
    assert "left no retrieval sheet" in page.locator("#pair").inner_text()


def test_thousands_of_runs_stay_in_bounds(
    open_page: Callable[..., Any], record: MakeRecord, tmp_path: Path
) -> None:
    losses = [f"loss{i}" for i in range(12)]
    write_runs(tmp_path / "runs", record, data=["cub"], losses=losses, seeds=5, classes=4)
    runs = load_runs(tmp_path / "runs")
    assert len(runs.finished) == 240
    comparison = compare(runs)
    content = page_content(comparison, runs, tmp_path)
    assert len(content["sheets"]) == MOST_SHEETS
    assert len(content["curves"]) == 200
    write_page(tmp_path / "page.html", comparison, runs)
    page = open_page(tmp_path / "page.html")
    assert page.locator("#runs-count").inner_text() == "240 of 240 runs"
    assert page.locator("#runs-table .tabulator-row").count() < 100
    assert "Of 200 runs of 240" in page.locator("#curves-about").inner_text()


def test_curves_are_read_by_epoch_and_thinned(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    lines = ["epoch,step,train/loss,lr-AdamW/head,unseen/map_at_r"]
    for epoch in range(500):
        lines += [f",{10 * epoch},,0.5,", f"{epoch},{10 * epoch + 9},{epoch / 10},,"]
    # The results of the chosen epoch come last, without an epoch.
    table.write_text("\n".join([*lines, "500,5000,,,0.7", ",5001,77,,0.7"]) + "\n")
    found = read_curves(table, skip={"unseen"})
    assert set(found) == {"train/loss", "lr-AdamW/head"}
    epochs, values = found["train/loss"]
    assert len(epochs) == MOST_POINTS
    assert (epochs[0], epochs[-1]) == (1, 500)
    assert values == [pytest.approx((epoch - 1) / 10, rel=1e-3) for epoch in epochs]
    assert found["lr-AdamW/head"][0][:3] == epochs[:3]
    table.write_text("step,epoch,train/loss\n0,0,1.0\n1,0,2.0,3.0\n")
    assert read_curves(table, skip=set()) == {"train/loss": ([1], [2.0])}, "more cells than the header"
    assert read_curves(tmp_path / "none.csv", skip=set()) == {}
    table.write_text("not,a\ntable\n")
    assert read_curves(table, skip=set()) == {}


def test_the_data_are_strict_json_in_one_element(folder: Path) -> None:
    page = (folder / "page.html").read_text(encoding="utf-8")
    [content] = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    assert "<" not in content
    json.loads(content, parse_constant=pytest.fail)
    assert EVIL in json.loads(content)["classes"][0]["classes"]
    assert "sourceMappingURL=" not in page


def test_a_run_from_python_has_no_command(record: MakeRecord, folder: Path) -> None:
    [run, *_] = load_runs(folder / "runs").finished
    typed = dataclasses.replace(run.record, overrides=["run_folder=x", "data.root=/a b"], seed=4)
    assert command(dataclasses.replace(run, record=typed)) == "unseen train 'data.root=/a b' seed=4"
    python = dataclasses.replace(typed, choices=typed.choices | {"data": "collection"})
    assert command(dataclasses.replace(run, record=python)) is None


def test_names_that_are_no_utf8_are_on_the_page(record: MakeRecord, tmp_path: Path) -> None:
    for method in ("baseline", "full"):
        for seed in range(2):
            values = {"map_at_r": {"one\udcff": 0.1, "two": 0.2 + (method == "full") / 9}}
            record(method, seed=seed, per_class=values).save(tmp_path / f"{method}{seed}" / "record.json")
    runs = load_runs(tmp_path)
    write_page(tmp_path / "page.html", compare(runs), runs)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    [content] = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    assert json.loads(content)["classes"][0]["classes"] == ["one\udcff", "two"]


def test_a_cell_that_does_not_fit_keeps_no_smaller_one_out(
    record: MakeRecord, runs_of: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "MOST_VALUES", 10)
    sizes = {"many": 6, "some": 3, "few": 2}
    runs = runs_of(
        *(
            record(method, data=data, per_class={"map_at_r": {f"{i}": 0.1 for i in range(size)}})
            for method in ("baseline", "full")
            for data, size in sizes.items()
        )
    )
    content = page_content(compare(runs), runs, Path())
    assert {one["cell"].partition(" ")[0]: len(one["classes"]) for one in content["classes"]} == {
        "some": 3,
        "few": 2,
    }
