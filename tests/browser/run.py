"""Notebooks in a real JupyterLab: run.py SCREENSHOTS [NOTEBOOK ...] [--dark].

Opens each notebook in headless Chromium, runs all its cells, and fails if a cell did
not run, an output is an error or a warning, a figure is not drawn or wider than the
page, or a progress bar is not a widget. Saves pictures of each page in SCREENSHOTS.
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

import nbformat

from agelib import sample

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 8912
SECONDS, HEIGHT = 600, 1500
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
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"),
        *(f"--port={PORT}", "--port-retries=0", f"--IdentityProvider.token={token}"),
        f"--notebook-dir={folder / 'notebooks'}",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(server, f"http://127.0.0.1:{PORT}/api/status?token={token}", folder)
        yield f"http://127.0.0.1:{PORT}/lab/tree/{{}}?token={token}&reset"
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


def run_all(page, address: str, name: str, pictures: Path) -> list[str]:
    """Runs one notebook; what is wrong with its page."""
    page.set_viewport_size({"width": 1280, "height": HEIGHT})
    page.goto(address.format(name))
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
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
        wrong += upload(page, pictures.with_name("photo.png"))
    cells = page.locator(".jp-CodeCell").count()
    told = f"{cells} cells, {len(figures)} figures, {len(wrong)} problems"
    print(f"{name}: {told}", flush=True)
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
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        waiting = [p for p in prompts if not p.strip("[]: ").isdigit()]
        if not waiting:
            return [], bars
        # cells behind one that failed never run
        if not any("*" in p for p in waiting):
            break
    return [f"{len(waiting)} code cells did not run"], bars


def upload(page, photo: Path) -> list[str]:
    """Uploads a photo of two drawn people; what is wrong with what becomes of it."""
    sample.draw_wall(ages=(9, 70)).save(photo)
    button = page.locator(".jp-OutputArea .widget-upload")
    with page.expect_file_chooser() as dialog:
        button.click()
    dialog.value.set_files(photo)
    page.get_by_text("Your photo (1)").wait_for()
    page.locator(".jp-CodeCell", has_text="faces.uploaded(").click()
    choose(page, "Run Selected Cell and All Below")
    page.wait_for_timeout(1000)
    wrong, _ = wait_for_cells(page)
    table = page.locator(".jp-CodeCell", has_text="faces.find(").locator("tbody tr")
    if table.count() != 2:
        wrong.append(f"{table.count()} faces found in a photo of two")
    return wrong


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
        playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        ) as browser,
    ):
        every = sorted(p.stem for p in (REPOSITORY / "notebooks").glob("*.ipynb"))
        for name in asked.notebooks or every:
            name = f"{name.removesuffix('.ipynb')}.ipynb"
            theme = "dark" if asked.dark else "light"
            # twice as many pixels as points, as on most laptops
            page = browser.new_page(device_scale_factor=2)
            page.set_default_timeout(40_000)
            pictures = asked.screenshots / f"{name.removesuffix('.ipynb')}-{theme}"
            found = run_all(page, address, name, pictures)
            page.close()
            wrong += [f"{name}: {problem}" for problem in found]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
