"""The page in the browser says what Python says, and tells nobody."""

import base64
import http.server
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from agelib import env, model, photo, predict, sample
from agelib.browser import __main__ as browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
missing = [
    name
    for name, there in {
        "npm": shutil.which("npm"),
        "Chromium": CHROMIUM,
        "the package playwright": find_spec("playwright"),
    }.items()
    if not there
]
in_a_browser = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


class Files(http.server.SimpleHTTPRequestHandler):
    """A plain server of files, that says nothing."""

    def guess_type(self, path: str) -> str:
        # some systems know no such ending
        return "text/javascript" if ".mjs" in str(path) else super().guess_type(path)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    try:
        return browser.build(
            tmp_path_factory.mktemp("page") / "page", env.shipped_model()
        )
    except ConnectionError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def address(folder):
    handler = partial(Files, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page(chromium, address):
    """The page, loaded; its requests and complaints are its `asked` and `faults`."""
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda told: page.faults.append(told.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    page.get_by_role("status").filter(has_text="Ready").wait_for()
    yield page
    page.close()


def choose(page, file: Path) -> None:
    page.get_by_label("Choose photos").set_input_files(file)


def brought(page, *files: Path):
    """What a mouse brings that drags files from elsewhere."""
    return page.evaluate_handle(
        """(files) => {
            const brought = new DataTransfer();
            for (const [name, base64] of files) {
                const content = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
                brought.items.add(new File([content], name));
            }
            return brought;
        }""",
        [[f.name, base64.b64encode(f.read_bytes()).decode()] for f in files],
    )


def drop(page, file: Path) -> None:
    dragged = {"dataTransfer": brought(page, file)}
    place = page.locator("#drop")
    place.dispatch_event("dragenter", dragged)
    assert "over" in place.get_attribute("class")
    place.dispatch_event("dragleave", dragged)
    assert "over" not in place.get_attribute("class")
    # beside its place, where the browser would open it in place of the page
    page.get_by_role("heading", level=1).dispatch_event("drop", dragged)


def show(page, file: Path, by: Callable = choose) -> np.ndarray:
    """What the page tells of a photo: ages and intervals (faces, 3)."""
    by(page, file)
    told = re.compile(rf"^{re.escape(file.name)}: ")
    page.get_by_role("status").filter(has_text=told).wait_for(timeout=120_000)
    cards = page.locator("section").first.locator("article").all()
    names = ("data-age", "data-low", "data-high")
    return np.array([[float(c.get_attribute(n)) for n in names] for c in cards])


def by_python(file: Path, folder: Path) -> np.ndarray:
    picture = photo.read(file)
    people = photo.crop(picture, photo.find(picture), folder)
    told = predict.predict(model.load(env.shipped_model()), people)
    return told[["pred_age", "low", "high"]].to_numpy()


def turned(wall: Image.Image, file: Path) -> None:
    """As a phone held upright saves it: the pixels lie, and the EXIF data say so."""
    about = Image.Exif()
    about[ExifTags.Base.Orientation] = 6
    wall.transpose(Image.Transpose.ROTATE_90).save(file, exif=about, quality=95)


def glassy(wall: Image.Image, file: Path) -> None:
    """Half transparent from top to bottom."""
    wall = wall.convert("RGBA")
    wall.putalpha(
        Image.linear_gradient("L").resize(wall.size).point(lambda a: 128 + a // 2)
    )
    wall.save(file)


def larger(times: int) -> Callable:
    """By 2 larger than faces are sought in; by 6 blocks of pixels are averaged."""

    def save(wall: Image.Image, file: Path) -> None:
        wall.resize((wall.width * times, wall.height * times)).save(file)

    return save


@in_a_browser
@pytest.mark.parametrize(
    ("save", "name"),
    [
        (larger(1), "the wall.png"),
        (larger(2), "the_wall_of_which_the_name_is_longer_than_a_phone_is_wide.png"),
        (larger(6), "large.png"),
        (turned, "turned.jpg"),
        (glassy, "glassy.png"),
    ],
)
def test_a_photo_has_the_ages_that_python_tells(page, address, tmp_path, save, name):
    file = tmp_path / name
    save(sample.draw_wall(), file)
    told, ages = show(page, file), by_python(file, tmp_path / "faces")
    assert told.shape == (8, 3)
    np.testing.assert_allclose(told[:, 0], ages[:, 0], atol=0.3)
    np.testing.assert_allclose(told[:, 1:], ages[:, 1:], atol=1)
    assert page.faults == []
    assert all(url.startswith((address, "blob:")) for url in page.asked)
    # nothing is wider than a phone
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@in_a_browser
def test_a_photo_that_is_dropped_is_told_like_one_that_is_chosen(page, tmp_path):
    file = tmp_path / "two.png"
    sample.draw_wall(ages=(20, 60)).save(file)
    dropped = show(page, file, drop)
    assert dropped.shape == (2, 3)
    page.get_by_role("button", name="Forget all photos").click()
    np.testing.assert_array_equal(show(page, file), dropped)


@in_a_browser
def test_photos_that_wait_are_forgotten_with_those_that_are_shown(page, tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for file in files:
        sample.draw_wall(ages=(20, 60)).save(file)
    page.evaluate(
        """(dataTransfer) => {
            window.dispatchEvent(new DragEvent("drop", { dataTransfer }));
            document.querySelector("#forget").click();
        }""",
        brought(page, *files),
    )
    assert len(show(page, files[2])) == 2
    # photos are shown one after another: nothing that waited came before this one
    assert page.locator("section h2").all_inner_texts() == ["2.png"]


@in_a_browser
def test_only_an_earlier_page_is_replaced(folder, tmp_path):
    page, mine, site = (tmp_path / name for name in ("page", "mine", "site"))
    shutil.copytree(folder, page)
    (page / "index.html").write_text("of an earlier version")
    mine.mkdir()
    (mine / "index.html").write_text("the work of years")
    (mine / "diary.txt").write_text("and more of it")
    # a page of one's own may have files of the same names
    site.mkdir()
    for name in ("index.html", "style.css"):
        (site / name).write_text("the work of years, too")
    for out in (page, mine, site):
        browser.build(out, env.shipped_model(), views=1)
        assert {path.name for path in out.iterdir()} == browser.PAGE
        assert "How old" in (out / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "mine.old-1" / "diary.txt").is_file()
    kept = tmp_path / "site.old-1" / "index.html"
    assert kept.read_text() == "the work of years, too"
    assert not (tmp_path / "page.old-1").exists()


@in_a_browser
def test_a_photo_of_nobody_and_a_file_that_is_none_are_named(page, tmp_path):
    sea, text = tmp_path / "sea.png", tmp_path / "notes.txt"
    Image.new("RGB", (300, 200), "teal").save(sea)
    text.write_text("no photo")
    assert len(show(page, sea)) == 0
    assert "no face found" in page.get_by_role("status").inner_text()
    assert len(show(page, text)) == 0
    assert "can't read it" in page.get_by_role("status").inner_text()
    assert page.locator("section.failed").count() == 2
    page.get_by_role("button", name="Forget all photos").press("Enter")
    assert page.locator("section").count() == 0


@in_a_browser
def test_the_page_is_worked_by_keyboard_and_told_to_a_screen_reader(page, tmp_path):
    file = tmp_path / "two.png"
    sample.draw_wall(ages=(20, 60)).save(file)
    assert len(show(page, file)) == 2
    page.locator("body").press("Tab")
    assert page.evaluate("document.activeElement.id") == "photos"
    for name in ("Face 1", "Face 2", re.compile("with a frame around each face")):
        assert page.get_by_role("img", name=name, exact=True).count() == 1
    curves = page.get_by_role("img", name=re.compile("most between"))
    assert curves.count() == 2
    assert page.get_by_role("heading", name=re.compile(r"Face 1: \d+ years")).count()


def test_the_page_allows_itself_alone():
    text = (browser.HERE / "index.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy"\s+content="([^"]+)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    sources = {source for rule in rules.values() for source in rule.split()}
    assert sources == {"'self'", "'none'", "'wasm-unsafe-eval'"}
    named = [p for p in browser.HERE.iterdir() if p.suffix in {".js", ".css", ".html"}]
    addresses = [re.findall(r"https?://[^\"'\s]+", p.read_text()) for p in named]
    assert {a for found in addresses for a in found} == {"http://www.w3.org/2000/svg"}


def test_without_npm_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"There is no npm.*install Node"):
        browser._fetch_runtime(tmp_path)


def test_an_npm_that_fetches_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: sys.executable)
    failed = subprocess.CompletedProcess([], 1, "", "network unreachable")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(ConnectionError, match=r"onnxruntime-web.*network unreachable"):
        browser._fetch_runtime(tmp_path)
