"""The page in a real browser: Debian's chromium (or another one), driven by playwright. `make test-app` runs these."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    # Of gradio's own libraries, in a server that runs in this process.
    pytest.mark.filterwarnings("ignore"),
]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WAIT = 120_000
"""Milliseconds: a machine under test may be busy with more."""
SCREENS = os.environ.get("POSTHOC_INN_SCREENSHOTS")
"""Directory that pictures of every part are written to, for looking at them."""
PARTS = ("Look", "Concepts", "Attack", "Compare", "Video", "Numbers")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as found:
        running = found.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(opened, collected):
    """The page, served in a thread of this process."""
    pytest.importorskip("gradio", reason="pip install posthoc-inn[app]")
    import uvicorn

    from posthoc_inn.app.serving import application, open_socket

    with open_socket("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(application(opened), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(timeout=20)


class Visit:
    """A page that is open, and what it asked of the network and complained of."""

    def __init__(self, browser, address, width=1280, height=900):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.outside, self.errors = [], []
        self.page.route(re.compile(".*"), self._pass_or_refuse)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.pictures("#look-out", 10)

    def _pass_or_refuse(self, route):
        if re.match(r"(http://127\.0\.0\.1[:/]|data:|blob:)", route.request.url):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def pictures(self, where, count):
        """Wait until so many pictures are at a place, and return it."""
        self.page.wait_for_function(
            "([where, count]) => document.querySelectorAll(where + ' figure img').length === count", arg=[where, count]
        )
        return self.page.locator(where)

    def sources(self, where):
        return self.page.eval_on_selector_all(f"{where} figure img", "all => all.map(one => one.src)")

    def changed(self, where, before):
        """Wait until the pictures at a place are others, and return them."""
        self.page.wait_for_function(
            "([where, before]) => { const all = [...document.querySelectorAll(where + ' figure img')].map(i => i.src);"
            "return all.length && JSON.stringify(all) !== before }",
            arg=[where, self.page.evaluate("all => JSON.stringify(all)", before)],
        )
        return self.sources(where)

    def open(self, part):
        self.page.get_by_role("tab", name=part, exact=True).click()

    def slide(self, key, to):
        """Set a slider as its number field does."""
        field = self.page.locator(f"#{key} input[type=number]")
        field.fill(str(to))
        field.press("Enter")

    def send(self, key, name, data, kind="image/png"):
        with self.page.expect_file_chooser() as chooser:
            self.page.locator(f"#{key}").click()
        chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})

    def is_as_wide_as_its_window(self):
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def close(self):
        self.context.close()


@pytest.fixture
def visit(browser, address):
    open_ones = []

    def go(**size):
        open_ones.append(Visit(browser, address, **size))
        return open_ones[-1]

    yield go
    for one in open_ones:
        one.close()


def test_look_draws_and_redraws_and_asks_nothing_of_the_network(visit):
    here = visit()
    first = here.sources("#look-out")
    here.slide("look-seed", 7)
    second = here.changed("#look-out", first)
    assert first[:2] == second[:2], "the picture and its reconstruction do not depend on the seed"
    here.slide("look-count", 3)
    here.pictures("#look-out", 5)
    here.pictures("#mix-out", 6)
    here.slide("layer", 2)
    here.changed("#look-out", second[:5])
    assert here.outside == []
    assert here.errors == []


def test_another_picture_is_chosen_with_the_keyboard_alone(visit):
    here = visit()
    before = here.sources("#look-out")
    here.page.locator("#picture-gallery button[aria-label^='Thumbnail']").nth(3).focus()
    here.page.keyboard.press("Enter")
    here.changed("#look-out", before)
    assert "picture 3" in here.page.locator("#picture-chosen").inner_text()
    here.page.get_by_role("tab", name="Look", exact=True).focus()
    assert here.page.evaluate("document.activeElement.role") == "tab"
    here.page.keyboard.press("Tab")
    here.page.keyboard.press("Enter")
    here.pictures("#concepts-out", 3)
    slider = here.page.locator("#knob-0 input[type=range]")
    slider.focus()
    before = here.sources("#concepts-out")
    for _ in range(8):
        here.page.keyboard.press("ArrowRight")
    after = here.changed("#concepts-out", before)
    assert before[:2] == after[:2]
    assert before[2] != after[2]


def test_concepts_change_while_sliders_move_and_are_taken_from_the_other(visit):
    here = visit()
    here.open("Concepts")
    here.pictures("#concepts-out", 3)
    taken = here.pictures("#taken-out", 3)
    assert "background of the other" in taken.inner_text()
    own = here.sources("#concepts-out")
    here.slide("knob-0", 2.5)
    moved = here.changed("#concepts-out", own)
    here.slide("amount", 1)
    here.changed("#concepts-out", moved)
    here.page.get_by_role("button", name="Back to the picture").click()
    here.page.wait_for_function(
        "own => document.querySelectorAll('#concepts-out figure img')[2].src === own", arg=own[2]
    )
    here.page.get_by_label("background", exact=True).check()
    here.page.wait_for_function("document.querySelector('#knob-0').innerText.includes('background')")
    assert here.errors == []


def test_attack_shows_every_layer_of_the_model(visit):
    pytest.importorskip("captum", reason="pip install posthoc-inn[attack]")
    here = visit()
    here.open("Attack")
    out = here.pictures("#attack-out", 6)
    assert "The attack" in out.inner_text()
    before = here.sources("#attack-out")
    here.slide("attack-levels", 40)
    before = here.changed("#attack-out", before)
    here.page.get_by_label("PGD: ten steps").check()
    here.changed("#attack-out", before)


def test_compare_sets_two_layers_side_by_side(visit):
    here = visit()
    here.open("Compare")
    out = here.pictures("#compare-out", 16)
    assert "another model" in out.inner_text()
    here.page.locator("#compare-right input").click()
    here.page.get_by_role("option", name="early").click()
    here.pictures("#compare-out", 8)
    assert "Both are the same" in out.inner_text()


def test_a_clip_is_seen_frame_by_frame_and_downloaded(visit, tmp_path):
    here = visit()
    here.open("Video")
    here.page.locator("#video-turn").click()
    here.pictures("#video-out", 2)
    before = here.sources("#video-out")
    here.slide("video-frame", 13)
    here.changed("#video-out", before)
    with here.page.expect_download() as download:
        here.page.locator("#video-download").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    with Image.open(path) as animation:
        assert animation.format == "WEBP"
        assert animation.n_frames == 24
    clip = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), (60 * k, 0, 0)) for k in range(4)]
    frames[0].save(clip, "GIF", save_all=True, append_images=frames[1:])
    here.send("video-upload", "clip.gif", clip.getvalue(), "image/gif")
    here.page.wait_for_function("document.querySelector('#video-out').innerText.includes('of 4')")


def test_numbers_are_told_in_words(visit):
    here = visit()
    here.open("Numbers")
    here.page.wait_for_selector("#numbers-out table")
    assert here.page.locator("#numbers-out tr").count() > 5
    here.page.get_by_role("button", name="Guide: What the figures mean").click()
    here.page.wait_for_selector("text=faithfulness.agreement >> visible=true")
    assert here.outside == []


def test_a_broken_picture_is_told_and_the_page_goes_on(visit):
    here = visit()
    here.send("picture-upload", "broken.png", b"\x89PNG\r\n\x1a\nbroken")
    here.page.wait_for_selector("#picture-chosen [role=alert]")
    assert "broken.png" in here.page.locator("#picture-chosen").inner_text()
    before = here.sources("#look-out")
    good = io.BytesIO()
    Image.new("RGB", (64, 48), "green").save(good, "PNG")
    here.send("picture-upload", "green.png", good.getvalue())
    here.changed("#look-out", before)
    assert "green.png" in here.page.locator("#picture-chosen").inner_text()


def test_a_file_that_is_too_large_is_refused(visit):
    here = visit()
    before = here.sources("#look-out")
    here.send("picture-upload", "large.png", b"\0" * 11_000_000)
    here.page.wait_for_selector("text=/exceeds|too large|maximum/i")
    assert here.sources("#look-out") == before


def test_two_visitors_at_once_see_their_own_pictures(visit):
    here, there = visit(), visit()
    mine = here.sources("#look-out")
    there.page.locator("#picture-gallery button[aria-label^='Thumbnail']").nth(4).click()
    there.slide("look-count", 4)
    there.pictures("#look-out", 6)
    here.slide("look-count", 2)
    here.pictures("#look-out", 4)
    assert here.sources("#look-out") == mine[:4]
    assert "picture 4" in there.page.locator("#picture-chosen").inner_text()
    assert "picture 0" in here.page.locator("#picture-chosen").inner_text()


@pytest.mark.parametrize("width", [1280, 400])
def test_every_part_fits_its_window(visit, width):
    here = visit(width=width, height=900)
    for part in PARTS:
        if width == 400 and not here.page.get_by_role("tab", name=part, exact=True).is_visible():
            here.page.get_by_role("button", name="More tabs").or_(
                here.page.locator(".overflow-menu button")
            ).first.click()
            here.page.locator(".overflow-dropdown button", has_text=part).click()
        else:
            here.open(part)
        if part == "Video":
            here.page.locator("#video-turn").click()
        here.page.wait_for_selector(
            f"#{part.lower()}-out figure img, #{part.lower()}-out table", state="visible", timeout=WAIT
        )
        here.page.wait_for_timeout(300)
        assert here.is_as_wide_as_its_window(), f"{part} is wider than {width} pixels"
        if SCREENS:
            here.page.screenshot(path=f"{SCREENS}/{part.lower()}-{width}.png", full_page=True)
    assert here.errors == []


# ---- the command itself


def children(pid):
    """Return the processes below one, as the system tells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def started(tmp_path, opened):
    """Start the command on a bundle of its own, and return the process and the page's address."""
    running = []

    def start(*more):
        bundle = tmp_path / "bundle"
        if not bundle.exists():
            opened.layers[1].interpreter.save(bundle, store_model=True)
        (tmp_path / "own.py").write_text("from small_parts import network as build\n")
        command = [sys.executable, "-m", "posthoc_inn.cli.main", "app", "--bundle", str(bundle)]
        command += ["--model", "own:build", "--data", "color-digits", "--port", "0", "--no-browser", *more]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        told = []
        for line in process.stdout:
            told.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                return process, found[0]
        raise AssertionError("".join(told))

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_closing_the_last_page_leaves_no_process(started, browser):
    process, address = started()
    here = Visit(browser, address)
    below = children(process.pid)
    here.close()
    assert process.wait(timeout=120) == 0
    assert "The last page was closed: stopped." in process.stdout.read()
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is another signal there")
def test_ctrl_c_stops_it_and_leaves_nothing(started, tmp_path):
    process, _ = started("--keep")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert "Stopped." in process.stdout.read()
