"""The Space's page, end to end in headless Chromium."""

import base64
import importlib.util
import re
import shutil
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_speech
from diffusers_dreamactor.media import VideoReader, save_video
from diffusers_dreamactor.sound import Sound


SPACE = Path(__file__).parents[2] / "examples" / "gradio_space"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]
OPTIONS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
# milliseconds until something is there, on a machine that has other things to do
PATIENCE = 60_000

# looked for, and imported only by who runs these tests: it takes seconds
if importlib.util.find_spec("gradio") is None:
    pytest.skip("the page needs Gradio (extra `demo`)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright (extra `test`)")
if CHROMIUM is None:
    pytest.skip("there is no Chromium on this machine", allow_module_level=True)


@pytest.fixture(scope="module")
def app():
    """The Space, served."""
    sys.path.insert(0, str(SPACE))
    import app

    page = app.page = app.build_page()
    _, app.address, _ = app.launch(page, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield app
    page.close()
    sys.path.remove(str(SPACE))


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """What a camera sees, once it is written, and a microphone hears: the bundled speech."""
    devices = tmp_path_factory.mktemp("devices")
    samples = np.concatenate(list(Sound(bundled_speech(), 48_000, 0.0).chunks()), axis=1)[0]
    wavfile.write(devices / "microphone.wav", 48_000, (samples * 32767).astype(np.int16))
    return devices


@pytest.fixture(scope="module")
def browser(devices):
    shown = [f"--use-file-for-fake-video-capture={devices / 'camera.y4m'}"]
    heard = [f"--use-file-for-fake-audio-capture={devices / 'microphone.wav'}"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS + shown + heard)
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
        # the page is served before it listens; then it reads the settings in its address
        with self.page.expect_response("**/gradio_api/run/predict*"):
            self.page.goto(address)
        self.page.locator("#gallery img").first.wait_for()

    def forgive(self, *words: str) -> None:
        """What the browser itself says of a request that was refused or broken off is no error of the page."""
        self.errors = [error for error in self.errors if not any(word in error.lower() for word in words)]

    def give(self, field: str, path: Path) -> None:
        """Uploads a file, in place of the one that is there."""
        there = self.page.locator(f"{field} button[aria-label='Clear']")
        if there.count():
            there.first.click()
        self.page.locator(f"{field} input[type=file]").first.set_input_files(str(path))

    def wait_for_note(self, text: str) -> str:
        """The note, once it says this; it may be gone a moment later."""
        note = "text => (note => note?.includes(text) && note)(document.querySelector('#note')?.innerText)"
        return self.page.wait_for_function(note, arg=text).json_value()

    def sentence(self, text: str) -> str:
        """What the page complains of, when it says this."""
        toast = self.page.locator("[data-testid=toast-body]").filter(has_text=text).first
        toast.wait_for()
        text = toast.inner_text()
        toast.locator("button").first.click()
        return text

    def film(self, field: str = "#film") -> str:
        """The address of the film, once there is one."""
        video = self.page.locator(f"{field} video")
        video.wait_for()
        return video.get_attribute("src")

    def fetch(self, path: Path, field: str = "#film") -> np.ndarray:
        """The film as a file and as frames."""
        path.write_bytes(self.page.request.get(self.film(field)).body())
        return np.stack(list(VideoReader(path))).astype(int)

    def animate(self, path: Path) -> np.ndarray:
        """Another film, as a file and as frames."""
        films = self.page.locator("#film video")
        last = films.get_attribute("src") if films.count() else None
        self.page.locator("#animate").click()
        self.page.wait_for_function(
            "last => ![null, undefined, '', last].includes(document.querySelector('#film video')?.getAttribute('src'))",
            arg=last,
        )
        return self.fetch(path)

    def set(self, label: str, value: float) -> None:
        """Types a number."""
        field = self.page.get_by_label(label)
        field.fill(str(value))
        field.press("Enter")
        field.blur()

    def drive(self, kind: str) -> None:
        """Chooses the kind of driver."""
        self.page.locator("#driver").get_by_text(kind, exact=True).click()

    def open_settings(self) -> None:
        self.page.get_by_text("Settings", exact=True).first.click()
        self.page.get_by_label("Seed").wait_for()
        # a frame after they are there the fields are given their first values once more
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture
def visitor(app, browser):
    visitor = Visitor(browser, app.address)
    yield visitor
    visitor.context.close()
    assert visitor.errors == []


def test_one_click_on_an_example_performs_it(visitor, tmp_path):
    visitor.page.locator("#gallery button img").nth(1).click()
    # its segments are shown as they are made, and the whole in their place
    visitor.page.locator("#newest img").wait_for()
    visitor.wait_for_note("frames in")
    assert visitor.page.locator("#newest img").count() == 0
    frames = visitor.fetch(tmp_path / "film.mp4")
    assert len(frames) == 48 and np.abs(np.diff(frames, axis=0)).mean() > 0.5


def test_an_avatar_says_a_sentence(visitor, tmp_path):
    page = visitor.page
    visitor.open_settings()
    visitor.set("number input for Seconds at most", 1)
    page.locator("#gallery button img").nth(5).click()
    visitor.wait_for_note("frames in")
    frames = visitor.fetch(tmp_path / "film.mp4")
    beside = visitor.fetch(tmp_path / "beside.mp4", "#side-by-side")
    assert VideoReader(tmp_path / "beside.mp4").has_audio
    assert len(beside) == len(frames) and beside.shape[2] > 1.5 * beside.shape[1]
    with page.expect_download() as downloading:
        page.locator("#film").get_by_role("button", name="Download").click()
    downloading.value.save_as(tmp_path / "mine.mp4")
    assert (tmp_path / "mine.mp4").read_bytes() == (tmp_path / "film.mp4").read_bytes()
    with av.open(tmp_path / "mine.mp4") as film:
        assert film.streams.audio and "AI-generated" in str(film.metadata)


def test_a_picture_of_one_s_own(visitor, media, tmp_path):
    page = visitor.page
    visitor.give("#picture", media / "reference_scholar.jpeg")
    page.locator("#notice").filter(has_text="knows only its own avatars").wait_for()
    page.locator("#crop img").wait_for()
    # the person, by a click; where nobody is, that is said
    picture = page.locator("#picture img")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    page.get_by_text("is chosen").wait_for()
    page.locator("#look").click()
    visitor.sentence("Please confirm that you may use this picture")
    page.locator("#consent input").check()
    page.get_by_role("combobox", name="Bundled motion").click()
    page.get_by_role("option", name="wave").click()
    visitor.open_settings()
    visitor.set("number input for Seconds at most", 0.5)
    page.locator("#look").click()
    looked_at = page.locator("#preview video")
    looked_at.wait_for()
    note = visitor.wait_for_note("frames/s")
    frames = visitor.animate(tmp_path / "film.mp4")
    assert note.startswith(f"{len(frames)} frames at") and looked_at.count() == 1
    # another picture, pasted, is another performance: what was looked at is gone
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (png) => navigator.clipboard.write([
            new ClipboardItem({"image/png": (await fetch("data:image/png;base64," + png)).blob()})
        ])""",
        base64.b64encode(bundled_avatars()["dan"].read_bytes()).decode(),
    )
    page.locator("#picture button[aria-label='Paste from clipboard']").click()
    looked_at.wait_for(state="detached")
    page.locator("#notice").filter(has_text="knows only").wait_for(state="detached")


def test_the_settings_change_the_film(visitor, media, tmp_path):
    page = visitor.page
    visitor.give("#picture", bundled_avatars()["ana"])
    page.locator("#crop img").wait_for()
    visitor.open_settings()
    visitor.set("number input for Seconds at most", 0.5)
    first = last = visitor.animate(tmp_path / "0.mp4")
    assert len(first) == 15
    save_video(
        [Image.fromarray(frame) for frame in VideoReader(media / "carphone.mp4", num_frames=15)],
        tmp_path / "face.mp4",
        30,
    )
    changes = {
        "the same seed": lambda: visitor.set("Seed", 0),
        "another seed": lambda: visitor.set("Seed", 7),
        "steps": lambda: visitor.set("number input for Steps", 3),
        "guidance": lambda: visitor.set("number input for Guidance scale", 2.5),
        "strength of the pose": lambda: visitor.set("number input for Strength of the pose", 0.3),
        "another face": lambda: visitor.give("#face-video", tmp_path / "face.mp4"),
        "strength of the face": lambda: visitor.set("number input for Strength of the face", 0.2),
        "no body": lambda: page.get_by_label("body", exact=True).uncheck(),
    }
    for change, do in changes.items():
        do()
        page.wait_for_timeout(600)
        film = visitor.animate(tmp_path / "film.mp4")
        difference = np.abs(film - last).mean()
        assert (difference == 0) == (change == "the same seed"), change
        last = film


def test_a_webcam_and_a_microphone(app, browser, devices, media, tmp_path):
    with open(devices / "camera.y4m", "wb") as camera:
        camera.write(b"YUV4MPEG2 W640 H480 F12:1 Ip A1:1 C420jpeg\n")
        for frame in VideoReader(media / "carphone.mp4", num_frames=24):
            frame = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(640, 480, "yuv420p")
            camera.write(b"FRAME\n" + frame.to_ndarray().tobytes())
    visitor = Visitor(browser, app.address, permissions=["camera", "microphone"])
    page = visitor.page

    def open_camera(field: str) -> None:
        page.locator(f"{field} button[aria-label='Capture from camera']").click()
        page.locator(field).get_by_text("Click to Access Webcam").click()
        page.wait_for_function(f"document.querySelector('{field} video')?.currentTime > 0.3")

    # a picture
    open_camera("#picture")
    page.locator("#picture button[aria-label='capture photo']").click()
    page.locator("#crop img").wait_for()
    page.locator("#consent input").check()
    visitor.open_settings()
    visitor.set("number input for Seconds at most", 0.5)

    # a driver, with its sound
    visitor.drive("Video")
    open_camera("#video")
    record = page.locator("#video button[aria-label='start recording']")
    record.click()
    page.wait_for_timeout(1500)
    record.click()
    page.locator("#first-frame img").wait_for()
    page.locator("#look").click()
    page.locator("#preview video").wait_for()
    frames = visitor.animate(tmp_path / "driven.mp4")
    assert len(frames) and VideoReader(tmp_path / "driven.mp4").has_audio

    # speech
    visitor.drive("Speech")
    page.locator("#speech button[aria-label='Clear']").click()
    page.locator("#speech button[aria-label='Record audio']").click()
    page.locator("#speech").get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1500)
    with page.expect_response(lambda response: "/gradio_api/upload" in response.url):
        page.locator("#speech").get_by_role("button", name="Stop", exact=True).first.click()
    page.locator("#speech button[aria-label='Play']").wait_for()
    page.wait_for_timeout(500)
    visitor.animate(tmp_path / "spoken.mp4")
    heard = np.concatenate(list(Sound(tmp_path / "spoken.mp4", 48_000, 0.0).chunks()), axis=1)
    assert 0.4 < heard.shape[1] / 48_000 < 0.7 and np.abs(heard).max() > 0.05
    visitor.context.close()
    assert visitor.errors == []


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


def test_a_tab_that_is_loaded_anew_in_the_middle(visitor, app):
    """What it asked for ends, its folder goes, and nobody waits for it."""
    page = visitor.page
    visitor.open_settings()
    visitor.set("number input for Steps", 50)
    visitor.give("#picture", bundled_avatars()["dan"])
    page.locator("#crop img").wait_for()
    page.locator("#animate").click()
    visitor.wait_for_note("Drawing")
    # the newest: one that another test left may not have ended yet
    left = list(app.visits.values())[-1]
    assert list(left.folder.glob("*/ticket"))
    visitor.open(app.address)
    for _ in range(100):
        if not left.folder.exists():
            break
        page.wait_for_timeout(100)
    assert not left.folder.exists() and left not in app.visits.values()
    visitor.forgive("abort", "connection errored out")
    visitor.open_settings()
    visitor.set("number input for Seconds at most", 0.5)
    page.locator("#gallery button img").first.click()
    visitor.wait_for_note("frames in")


def test_limits_are_said_in_a_sentence(visitor, app, tmp_path, monkeypatch):
    page = visitor.page
    with open(tmp_path / "large.mp4", "wb") as file:
        file.truncate(201 * 2**20)
    visitor.drive("Video")
    visitor.give("#video", tmp_path / "large.mp4")
    assert "maximum allowed size of 200.0 Mb" in visitor.sentence("size")
    visitor.drive("Bundled motion")
    visitor.give("#picture", bundled_avatars()["ana"])
    page.locator("#crop img").wait_for()
    visitor.open_settings()
    visitor.set("number input for Seconds at most", 1000)
    assert page.get_by_label("number input for Seconds at most").input_value() == "10"
    monkeypatch.setattr(app.page._queue, "max_size", 0)
    page.locator("#animate").click()
    visitor.sentence("currently busy")
    page.locator("#note").filter(has_text="Waiting").wait_for(state="detached")
    visitor.forgive("404", "response", "503")


def test_a_broken_file_is_said_in_a_sentence(visitor, tmp_path):
    for field, name in (("#picture", "broken.png"), ("#video", "broken.mp4")):
        (tmp_path / name).write_bytes(b"this is no picture and no video" * 40)
        if field == "#video":
            visitor.drive("Video")
        visitor.give(field, tmp_path / name)
        said = visitor.sentence(name)
        assert "/" not in said and "`" not in said and "Traceback" not in said
    visitor.forgive("decode", "load")


def test_cancel_and_again(visitor):
    page = visitor.page
    visitor.open_settings()
    visitor.set("number input for Steps", 50)
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
    visitor.wait_for_note("Drawing")
    visitor.set("number input for Steps", 1)
    visitor.set("number input for Seconds at most", 0.5)
    page.locator("#animate").click()
    assert visitor.wait_for_note("frames in").startswith("15 frames")


def test_a_link_to_the_settings(visitor, app):
    page = visitor.page
    visitor.open_settings()
    visitor.set("Seed", 77)
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Link to these settings").click()
    link = page.locator("#link textarea, #link input").first
    playwright.expect(link).to_have_value(re.compile("seed=77"), timeout=PATIENCE)
    address = link.input_value()
    assert address.startswith(app.address) and "seed=77" in address
    visitor.open(address.replace("motion=talk", "motion=dance") + "&steps=nonsense")
    page.get_by_text("Settings", exact=True).first.click()
    playwright.expect(page.get_by_label("Seed")).to_have_value("77", timeout=PATIENCE)
    playwright.expect(page.get_by_role("combobox", name="Bundled motion")).to_have_value("dance", timeout=PATIENCE)


def test_two_visitors_at_once(visitor, app, browser, monkeypatch):
    go_on, animate = threading.Event(), app.studio.animate

    def long(*arguments):
        # the second click comes while the first film is drawn, however fast that is
        assert go_on.wait(PATIENCE / 1000)
        yield from animate(*arguments)

    monkeypatch.setattr(app.studio, "animate", long)
    other = Visitor(browser, app.address)
    for each in (visitor, other):
        each.open_settings()
        each.set("number input for Seconds at most", 1)
    visitor.page.locator("#gallery button img").nth(1).click()
    visitor.wait_for_note("Drawing")
    # one waits for the other
    other.page.locator("#gallery button img").nth(3).click()
    other.wait_for_note("Waiting")
    other.page.locator("#film").filter(has_text="queue").wait_for()
    # what the example changed was looked after before
    other.page.wait_for_timeout(500)
    assert other.page.locator("#note").inner_text() == "Waiting."
    go_on.set()
    notes = visitor.wait_for_note("frames in"), other.wait_for_note("frames in")
    assert notes[0].startswith("12 frames") and notes[1].startswith("12 frames")
    assert visitor.film() != other.film()
    other.context.close()
    assert other.errors == []


def test_a_phone(app, browser):
    visitor = Visitor(browser, app.address, viewport={"width": 390, "height": 844}, is_mobile=True)
    width = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    visitor.page.locator("#gallery button img").nth(1).click()
    visitor.wait_for_note("frames in")
    # what was made is in view, though it was asked for far above
    visitor.page.wait_for_function(
        "(box => box.top >= 0 && box.bottom <= 844)(document.querySelector('#film').getBoundingClientRect())"
    )
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.context.close()
    assert visitor.errors == []
