"""The Space's page, end to end in headless Chromium."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_dreamactor.checkpoints import bundled_avatars
from diffusers_dreamactor.media import VideoReader, save_video


SPACE = Path(__file__).parents[2] / "examples" / "gradio_space"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]
# milliseconds until something is there, on a machine that has other things to do
PATIENCE = 60_000

pytest.importorskip("gradio", reason="the page needs Gradio (extra `demo`)")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright (extra `test`)")
if CHROMIUM is None:
    pytest.skip("there is no Chromium on this machine", allow_module_level=True)


@pytest.fixture(scope="module")
def app():
    """The Space, served."""
    sys.path.insert(0, str(SPACE))
    import app

    page = app.build_page()
    _, app.address, _ = app.launch(page, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield app
    page.close()
    sys.path.remove(str(SPACE))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


class Visitor:
    """A tab, and what its console said."""

    def __init__(self, browser, address: str, **context):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors = []
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open(address)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.locator("#gallery img").first.wait_for()
        # the page is served before it listens
        self.page.locator("#driver input").first.wait_for()
        self.page.wait_for_timeout(1000)

    def give(self, field: str, path: Path) -> None:
        """Uploads a file, in place of the one that is there."""
        there = self.page.locator(f"{field} button[aria-label='Clear']")
        if there.count():
            there.first.click()
        self.page.locator(f"{field} input[type=file]").first.set_input_files(str(path))

    def wait_for_note(self, text: str) -> str:
        note = self.page.locator("#note").filter(has_text=text)
        note.wait_for()
        return note.inner_text()

    def sentence(self, text: str) -> str:
        """What the page complains of, when it says this."""
        toast = self.page.locator("[data-testid=toast-body]").filter(has_text=text).first
        toast.wait_for()
        text = toast.inner_text()
        toast.locator("button").first.click()
        return text

    def film(self) -> str:
        """The address of the film, once there is one."""
        video = self.page.locator("#film video")
        video.wait_for()
        return video.get_attribute("src")


@pytest.fixture
def visitor(app, browser):
    visitor = Visitor(browser, app.address)
    yield visitor
    visitor.context.close()
    assert visitor.errors == []


def test_one_click_on_an_example_performs_it(visitor, tmp_path):
    visitor.page.locator("#gallery button img").nth(1).click()
    visitor.wait_for_note("frames in")
    (tmp_path / "film.mp4").write_bytes(visitor.page.request.get(visitor.film()).body())
    frames = np.stack(list(VideoReader(tmp_path / "film.mp4"))).astype(int)
    assert len(frames) == 48 and np.abs(np.diff(frames, axis=0)).mean() > 0.5
    assert visitor.page.locator("#side-by-side video").count() == 1


def test_an_avatar_says_a_sentence(visitor, tmp_path):
    visitor.page.locator("#gallery button img").nth(5).click()
    visitor.wait_for_note("frames in")
    (tmp_path / "film.mp4").write_bytes(visitor.page.request.get(visitor.film()).body())
    assert VideoReader(tmp_path / "film.mp4").has_audio


def test_a_picture_of_one_s_own(visitor, media):
    page = visitor.page
    visitor.give("#picture", media / "reference_scholar.jpeg")
    page.locator("#notice").filter(has_text="knows only its own avatars").wait_for()
    page.locator("#crop img").wait_for()
    page.locator("#look").click()
    visitor.sentence("Please confirm that you may use this picture")
    page.locator("#consent input").check()
    page.locator("#look").click()
    page.locator("#preview video").wait_for()
    assert "frames/s" in visitor.wait_for_note("frames/s")
    # another picture is another performance: what was looked at is gone
    visitor.give("#picture", bundled_avatars()["dan"])
    page.locator("#preview video").wait_for(state="detached")
    page.locator("#notice").filter(has_text="knows only").wait_for(state="detached")


def test_a_video_and_the_person_in_it(visitor, app, media, tmp_path):
    page = visitor.page
    frames = [Image.fromarray(frame) for frame in VideoReader(media / "carphone.mp4", num_frames=4)]
    save_video(frames, tmp_path / "driver.mp4", 12)
    visitor.give("#picture", bundled_avatars()["ana"])
    page.locator("#driver").get_by_text("Video", exact=True).click()
    visitor.give("#video", tmp_path / "driver.mp4")
    first = page.locator("#first-frame img")
    first.wait_for()
    first.click()
    page.get_by_text("is chosen").wait_for()
    page.locator("#consent input").check()
    page.locator("#animate").click()
    visitor.wait_for_note("4 frames in")
    assert page.locator("#newest img").count() == 1
    # the visit's folder goes with the tab
    (visit,) = app.visits.values()
    assert visit.folder.is_dir()
    page.reload()
    page.locator("#gallery img").first.wait_for()
    for _ in range(100):
        if not visit.folder.exists():
            break
        page.wait_for_timeout(100)
    assert not visit.folder.exists() and visit not in app.visits.values()


@pytest.mark.parametrize("field, name", [("#picture", "broken.png"), ("#video", "broken.mp4")])
def test_a_broken_file_is_said_in_a_sentence(visitor, tmp_path, field, name):
    (tmp_path / name).write_bytes(b"this is no picture and no video" * 40)
    if field == "#video":
        visitor.page.locator("#driver").get_by_text("Video", exact=True).click()
    visitor.give(field, tmp_path / name)
    said = visitor.sentence(name)
    assert "/" not in said and "`" not in said and "Traceback" not in said
    visitor.errors = [
        error for error in visitor.errors if "decode" not in error.lower() and "load" not in error.lower()
    ]


def test_cancel_and_again(visitor):
    page = visitor.page
    page.get_by_text("Settings", exact=True).first.click()
    page.get_by_label("number input for Steps").fill("50")
    page.get_by_label("number input for Steps").press("Enter")
    visitor.give("#picture", bundled_avatars()["ana"])
    page.locator("#crop img").wait_for()
    page.locator("#animate").click()
    visitor.wait_for_note("Drawing")
    page.locator("#cancel").click()
    visitor.wait_for_note("Cancelled.")
    page.wait_for_timeout(1000)
    assert page.locator("#film video").count() == 0
    # asked for twice, it is drawn once: the newest counts
    page.locator("#animate").click()
    page.wait_for_timeout(500)
    page.get_by_label("number input for Steps").fill("1")
    page.get_by_label("number input for Steps").press("Enter")
    page.locator("#animate").click()
    visitor.wait_for_note("frames in")


def test_a_link_to_the_settings(visitor, app):
    page = visitor.page
    page.get_by_text("Settings", exact=True).first.click()
    page.get_by_label("Seed").fill("77")
    page.get_by_label("Seed").press("Enter")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Link to these settings").click()
    link = page.locator("#link textarea, #link input").first
    for _ in range(100):
        if "seed=77" in link.input_value():
            break
        page.wait_for_timeout(100)
    address = link.input_value()
    assert address.startswith(app.address) and "seed=77" in address
    visitor.open(address.replace("motion=talk", "motion=dance") + "&steps=nonsense")
    page.get_by_text("Settings", exact=True).first.click()
    assert page.get_by_label("Seed").input_value() == "77"
    assert page.get_by_role("combobox", name="Bundled motion").input_value() == "dance"


def test_two_visitors_at_once(visitor, app, browser):
    other = Visitor(browser, app.address)
    visitor.page.locator("#gallery button img").nth(0).click()
    other.page.locator("#gallery button img").nth(1).click()
    notes = visitor.wait_for_note("frames in"), other.wait_for_note("frames in")
    assert notes[1].startswith("48 frames")
    assert visitor.film() != other.film()
    other.context.close()
    assert other.errors == []


def test_a_phone(app, browser):
    visitor = Visitor(browser, app.address, viewport={"width": 390, "height": 844}, is_mobile=True)
    width = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    visitor.page.locator("#gallery button img").first.click()
    visitor.wait_for_note("frames in")
    visitor.context.close()
    assert visitor.errors == []
