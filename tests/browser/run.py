"""Notebooks in a real JupyterLab: run.py SCREENSHOTS [NOTEBOOK ...] [--dark].

Starts it as `make lab` does, opens each notebook in headless Chromium, runs all its
cells, and fails if a cell did not run, an output is an error or a warning, a figure is
not drawn or wider than the page, a progress bar is not a widget, or a link opens
nothing. Uploads photos to notebook 5, and fails if one is lost, is shown under
another's name, or is found in the saved file. Saves pictures of each page in
SCREENSHOTS.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
from PIL import Image

from agelib import sample

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 8912
SECONDS, HEIGHT = 600, 1500
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"]
BROWSER += ["--disable-background-networking", "--disable-component-update"]
SETTINGS = {
    # cells out of sight would not be part of the page otherwise
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false"},
}


@contextmanager
def jupyterlab(folder: Path, dark: bool):
    """A JupyterLab on copies of the notebooks, without outputs; gives its address."""
    settings = SETTINGS | {
        "@jupyterlab/apputils-extension/themes": {
            "theme": f"JupyterLab {'Dark' if dark else 'Light'}"
        }
    }
    for name, values in settings.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    (folder / "notebooks").mkdir()
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, folder / "notebooks" / path.name)
    token = secrets.token_hex()
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "AGELIB_RUNS": str(folder / "runs"),
    }
    # a place that looks like the clone, for the paths in its command and for links:
    # beside what it opens JupyterLab leaves checkpoints, which belong into no clone
    for name in (".venv", "agelib"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "data", folder / "data")
    shutil.copy(REPOSITORY / "README.md", folder)
    make = ["make", "--dry-run", "--old-file=.venv/agelib-is-installed", "lab"]
    told = subprocess.check_output(make, cwd=REPOSITORY, text=True)
    *before, start = told.splitlines()
    options = f"--no-browser --port={PORT} --port-retries=0"
    options += f" --IdentityProvider.token={token}"
    command = "\n".join(["set -e", *before, f"exec {start} {options}"])
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            shell=True,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(server, f"http://127.0.0.1:{PORT}/api/status?token={token}", folder)
        yield f"http://127.0.0.1:{PORT}/lab/tree/notebooks/{{}}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for(server: subprocess.Popen, address: str, folder: Path) -> None:
    for _ in range(120):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{(folder / 'log').read_text()}")


def run_all(page, address: str, path: Path, pictures: Path) -> list[str]:
    """Runs one notebook; what is wrong with its page."""
    name = path.name
    page.set_viewport_size({"width": 1280, "height": HEIGHT})
    page.goto(address.format(name))
    # without a kernel JupyterLab would ask for one; a busy machine starts it slowly
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=120_000)
    started = page.locator(
        ".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"[*\d]")
    )
    # a kernel that says idle may still be connecting, and what it is told then is lost
    for _ in range(3):
        choose(page, "Run All Cells")
        page.wait_for_timeout(3000)
        if started.count():
            break
    wrong, bars = wait_for_cells(page)
    for kind, mime in {
        "errors": "application/vnd.jupyter.error",
        "warnings": "application/vnd.jupyter.stderr",
    }.items():
        found = page.locator(f'[data-mime-type="{mime}"]')
        texts = [text.strip()[:300] for text in found.all_inner_texts()]
        wrong += [f"{kind}: {text}" for text in texts if text]
    if name.startswith("02") and not bars:
        wrong.append("no progress bar was a widget")
    figures = page.locator(".jp-OutputArea img").evaluate_all(
        "all => all.map(i => [i.naturalWidth, i.getBoundingClientRect().right,"
        " i.closest('.jp-OutputArea').getBoundingClientRect().right])"
    )
    for number, (pixels, right, edge) in enumerate(figures, 1):
        if not pixels:
            wrong.append(f"figure {number} is not drawn")
        elif right > edge + 1:
            wrong.append(f"figure {number} is {right - edge:.0f} pixels too wide")
    notebook = page.locator(".jp-WindowedPanel-outer")
    height = notebook.evaluate("n => n.scrollHeight")
    for number, top in enumerate(range(0, height, HEIGHT - 200), 1):
        notebook.evaluate("(n, top) => n.scrollTop = top", top)
        page.wait_for_timeout(300)
        page.screenshot(path=f"{pictures}-{number}.png")
    if name.startswith("05"):
        wrong += photos(page, path, pictures)
    cells = page.locator(".jp-CodeCell").count()
    wrong += dead_links(page, name)
    told = f"{cells} cells, {len(figures)} figures, {len(wrong)} problems"
    print(f"{name}: {told}", flush=True)
    return wrong


def dead_links(page, name: str) -> list[str]:
    """Clicks each link to a file, which opens beside the notebook; those that don't."""
    tabs = page.locator("#jp-main-dock-panel .lm-TabBar-tabLabel")
    links = page.locator(".jp-RenderedMarkdown a[href*='/files/']")
    wrong = []
    for link in links.evaluate_all("all => all.map(a => a.getAttribute('href'))"):
        shown = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        shown.locator(f"a[href='{link}']").first.click()
        target = unquote(urlsplit(link).path).rpartition("/")[2]
        for _ in range(20):
            page.wait_for_timeout(500)
            if tabs.get_by_text(target, exact=True).count():
                break
        else:
            return [*wrong, f"the link to {target} opens nothing"]
        tabs.get_by_text(name, exact=True).click()
    if not links.count():
        wrong.append("no link leads on")
    return wrong


def choose(page, command: str) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{command}$")).click()


def wait_for_cells(page) -> tuple[list[str], int]:
    """Waits until all cells have run; what is wrong, and the most bars seen at once."""
    bars, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        page.wait_for_timeout(500)
        bars = max(bars, page.locator(".jp-OutputArea .widget-hprogress").count())
        # a folded cell has none
        prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()
        waiting = [p for p in prompts if not p.strip("[]: ").isdigit()]
        if not waiting:
            return [], bars
        # cells behind one that failed never run
        if not any("*" in p for p in waiting):
            break
    return [f"{len(waiting)} code cells did not run"], bars


def photos(page, saved: Path, pictures: Path) -> list[str]:
    """Uploads to notebook 5, after the example; what is wrong with what it shows."""
    wrong = named(page, "The example, 1240 x 620 pixels", "the example")
    # more than 18 MB, where a server takes 10 by default
    wall = sample.draw_wall(ages=(9, 70))
    pixels = np.asarray(wall.resize((13 * wall.width, 13 * wall.height)), "int16")
    noise = np.random.default_rng(0).integers(-25, 26, pixels.shape, "int16")
    photo = pictures.with_name("two people $x$.jpg")
    two = Image.fromarray((pixels + noise).clip(0, 255).astype("uint8"))
    two.save(photo, quality=95)
    if photo.stat().st_size < 18e6:
        wrong.append(f"the photo has {photo.stat().st_size} bytes only")
    title = f"{photo.name}, {two.width} x {two.height} pixels"
    wrong += upload(page, photo) + named(page, title, "an upload")
    table = page.locator(".jp-CodeCell", has_text="photo.find(").locator("tbody tr")
    if table.count() != 2:
        wrong.append(f"{table.count()} faces found in a photo of two")
    choose(page, "Run All Cells")
    page.wait_for_timeout(1000)
    wrong += wait_for_cells(page)[0] + named(page, title, "Run All after an upload")
    for number, cell in enumerate(page.locator(".jp-CodeCell").all()[3:6]):
        cell.screenshot(path=f"{pictures}-upload-{number}.png")

    before = saved.stat().st_mtime_ns
    page.locator(".jp-CodeCell").first.click()
    page.keyboard.press("Control+s")
    page.wait_for_timeout(3000)
    if saved.stat().st_mtime_ns == before:
        wrong.append("the notebook was not saved")
    if not named_results(page):
        wrong.append("saving took the results from the page")
    notebook = nbformat.read(saved, as_version=4)
    if "widgets" in notebook.metadata or any(c.get("outputs") for c in notebook.cells):
        wrong.append("the saved file holds outputs")

    # after a photo, files that are none: theirs is a sentence and nothing else
    reading = page.locator(".jp-CodeCell", has_text="photo.uploaded(")
    for content, fault in ((b"no photo", "text"), (b"", "zero bytes")):
        broken = pictures.with_name(f"{fault}.jpg")
        broken.write_bytes(content)
        wrong += upload(page, broken, fails=True)
        if results := named_results(page):
            wrong.append(f"results below a file that is none: {results}")
        told = reading.locator(".jp-OutputArea").inner_text()
        if not re.search(rf"{fault}\.jpg can't be read: .*{fault}", told):
            wrong.append(f"a file that is none says {told!r}")
        reading.screenshot(path=f"{pictures}-{fault.replace(' ', '-')}.png")
    return wrong


def upload(page, file: Path, fails: bool = False) -> list[str]:
    """Chooses a file and runs the cells below the button; what did not run of them."""
    with page.expect_file_chooser() as dialog:
        page.locator(".jp-OutputArea .widget-upload").click()
    dialog.value.set_files(file)
    # once it has arrived the button bears its name
    page.locator(".widget-upload", has_text=file.name).wait_for()
    page.locator(".jp-CodeCell", has_text="photo.uploaded(").click()
    choose(page, "Run Selected Cell and All Below")
    page.wait_for_timeout(1000)
    wrong, _ = wait_for_cells(page)
    return [] if fails else wrong


def named_results(page) -> list[str]:
    """What the results that name their photo say."""
    cells = page.locator(".jp-CodeCell", has_text="print(title)")
    outputs = cells.locator('[data-mime-type="application/vnd.jupyter.stdout"]')
    return [text.strip() for text in outputs.all_inner_texts()]


def named(page, title: str, when: str) -> list[str]:
    results = named_results(page)
    return [] if results == [title] * 5 else [f"{when}: the results are of {results}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screenshots", type=Path)
    parser.add_argument("notebooks", nargs="*", help="all of them by default")
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Not run: there is no Chromium here (Debian: apt install chromium).")
        return
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("Not run: pip install playwright first.")
        return
    asked.screenshots.mkdir(parents=True, exist_ok=True)
    wrong = []
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyterlab(Path(folder), asked.dark) as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=BROWSER) as browser,
    ):
        every = sorted(p.stem for p in (REPOSITORY / "notebooks").glob("*.ipynb"))
        for name in asked.notebooks or every:
            name = f"{name.removesuffix('.ipynb')}.ipynb"
            theme = "dark" if asked.dark else "light"
            # twice as many pixels as points, as on most laptops
            page = browser.new_page(device_scale_factor=2)
            page.set_default_timeout(40_000)
            pictures = asked.screenshots / f"{name.removesuffix('.ipynb')}-{theme}"
            found = run_all(page, address, Path(folder, "notebooks", name), pictures)
            page.close()
            wrong += [f"{name}: {problem}" for problem in found]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
