"""A Hugging Face Space: a picture and a driver in, the guidance to look at, then the film."""

import contextlib
import os
import urllib.parse
from pathlib import Path

import gradio as gr
from studio import DRIVERS, PARTS, Request, Sampling, Studio, Visit, VisitorError


try:
    import spaces

    gpu = spaces.GPU
except ImportError:

    def gpu(duration=None):
        """Where there is no ZeroGPU, the machine's own device does."""
        return lambda function: function


# name: avatar, motion (None: speech)
GALLERY = {
    "ana talks": ("ana", "talk"),
    "dan dances": ("dan", "dance"),
    "ben talks": ("ben", "talk"),
    "cleo chats": ("cleo", "chat"),
    "teo walks": ("teo", "walk"),
    "ana says": ("ana", None),
}
CONSENT = "I may use this picture and this driver, and I will say that the film is made by AI."
HEAD = """# DreamActor
A person from a picture performs what a video, a motion or a voice performs. **Click on an example**, or bring your own."""

# The gallery is as high as its examples; on a phone three stand in a row.
CSS = """
#gallery .grid-wrap { min-height: 0 !important; height: auto !important; max-height: none !important; }
@media (max-width: 640px) { #gallery .grid-container { grid-template-columns: repeat(3, 1fr) !important; } }
"""
# on a phone the film is far below what asks for it
SCROLL = """() => {
    const film = document.querySelector("#film"), box = film.getBoundingClientRect();
    if (box.top < 0 || box.bottom > innerHeight) film.scrollIntoView({block: "center"});
    return [];
}"""

studio = Studio(os.environ.get("DREAMACTOR_MODEL"), os.environ.get("DREAMACTOR_FAST_LORA"))
# the bundled avatars and speech may be shown
gr.set_static_paths([studio.speech.parent])
visits: dict[str, Visit] = {}


def visit_of(request: gr.Request) -> Visit:
    """The visitor's folder; it ends with the visit."""
    if request.session_hash not in visits:
        visits[request.session_hash] = Visit()
    return visits[request.session_hash]


def end_visit(request: gr.Request) -> None:
    """The tab was closed or loaded anew: what runs stops, the folder goes."""
    visit = visits.pop(request.session_hash, None)
    if visit is not None:
        visit.close()


@contextlib.contextmanager
def told():
    """What a visitor cannot have becomes a sentence on the page."""
    try:
        yield
    except VisitorError as error:
        raise gr.Error(str(error), title="This does not work", print_exception=False) from error


def show(value) -> dict:
    """A field that is there when there is something in it."""
    return gr.update(value=value, visible=value is not None)


@told()
def show_picture(picture, point):
    """The picture as it is cut, and a notice."""
    if picture is None:
        return None, show(None), ""
    reference, notice = studio.reference(picture, point)
    shown = reference.image
    small = max(1, 256 // shown.height)
    return (picture, point, reference), show(shown.resize((shown.width * small, shown.height * small))), notice


@told()
def show_first_frame(video):
    """The driver's first frame, to choose in."""
    return show(studio.first_frame(video)), None, ""


def choose(event: gr.SelectData):
    """A click in a picture."""
    x, y = event.index
    return (float(x), float(y)), f"The person at {x:.0f}, {y:.0f} is chosen."


def prepare(wanted: Request, known):
    """What is performed; the reference is known when it is of this picture."""
    if known is not None and known[:2] == (wanted.picture, wanted.reference_person):
        return studio.prepare(wanted, known[2])
    return studio.prepare(wanted)


@told()
def look(visitor: gr.Request, progress=gr.Progress(), known=None, *fields):  # noqa: B008
    """Prepares and shows the guidance."""
    # a visit that ends while this captures gets no new folder
    wanted, visit = Request(*fields), visit_of(visitor)
    progress(0.1, desc="Capturing")
    inputs = prepare(wanted, known)
    progress(0.6, desc="Drawing")
    preview = studio.look(inputs, visit)
    note = f"{len(inputs)} frames at {inputs.fps:g} frames/s, {inputs.width}x{inputs.height}."
    return (wanted, inputs), show(str(preview)), note


def estimate(inputs, sampling: Sampling, *_) -> int:
    """How many seconds of a GPU an animation is given."""
    return studio.seconds_needed(len(inputs), sampling)


@gpu(duration=estimate)
def draw(inputs, sampling: Sampling, visit: Visit, ticket: Path, progress: gr.Progress):
    """
    Generates segment by segment. On shared GPUs another process does it, which is given copies of the arguments, and from
    which only Gradio's own errors come back.
    """
    with told():
        yield from studio.animate(
            inputs, sampling, visit, ticket, lambda share, sentence: progress(share, desc=sentence)
        )


def ask(visitor: gr.Request):
    """Waits in the line, in place of what this visitor asked for before."""
    visit = visit_of(visitor)
    visit.cancel()
    return visit.ask(), "Waiting."


def perform(visitor: gr.Request, progress=gr.Progress(), ticket=None, prepared=None, known=None, *fields):  # noqa: B008
    """Prepares what was not looked at, and generates; yields the newest segment, the films and a note."""
    sampling, wanted, visit = Sampling(*fields[:5]), Request(*fields[5:]), visit_of(visitor)
    with told():
        if not ticket.exists():
            yield prepared, show(None), None, show(None), "Cancelled."
            return
        if prepared is None or prepared[0] != wanted:
            progress(0.0, desc="Capturing")
            prepared = (wanted, prepare(wanted, known))
        yield prepared, show(None), None, show(None), "Drawing."
        for made in draw(prepared[1], sampling, visit, ticket, progress):
            newest, film, beside = (path and str(path) for path in (made.newest, made.film, made.side_by_side))
            # the whole is shown in place of its parts
            yield prepared, show(None if film else newest), film, show(beside), made.note


def take_example(event: gr.SelectData):
    """The fields of an example of the gallery."""
    avatar, motion = list(GALLERY.values())[event.index]
    return str(studio.avatars[avatar]), DRIVERS[0] if motion else "Speech", motion or "talk", str(studio.speech)


def cancel(request: gr.Request) -> str:
    """Stops what waits or runs for this visitor, after its step."""
    visit_of(request).cancel()
    return "Cancelled."


def link_to(names: list[str], values: list) -> str:
    """The settings as the query of an address."""
    return "?" + urllib.parse.urlencode(
        {name: ",".join(value) if isinstance(value, list) else value for name, value in zip(names, values)}
    )


def read_link(settings: dict, visitor: gr.Request) -> list:
    """The settings that an address names; what it does not name, or names wrongly, stays."""
    given, updates = dict(visitor.query_params), []
    for name, component in settings.items():
        value = given.get(name)
        try:
            if value is None:
                updates.append(gr.skip())
                continue
            if name == "parts":
                value = [part for part in value.split(",") if part in PARTS]
            elif name in ("driver", "motion"):
                if value not in [choice[0] for choice in component.choices]:
                    raise ValueError(value)
            else:
                value = float(value)
                if not component.minimum <= value <= component.maximum:
                    raise ValueError(value)
                value = int(value) if name in ("steps", "seed") else value
            updates.append(gr.update(value=value))
        except ValueError:
            updates.append(gr.skip())
    return updates


def build_page() -> gr.Blocks:
    """The Space's page."""
    with gr.Blocks(title="DreamActor", delete_cache=(3600, 3600)) as page:
        inputs, reference, point, person, ticket = (gr.State() for _ in range(5))
        gr.Markdown(HEAD)
        if studio.is_bundled:
            gr.Markdown(
                "*Without a GPU this Space draws its own avatars with a small model, 64 pixels wide; "
                "real people need a GPU and public weights.*"
            )
        gallery = gr.Gallery(
            [
                (os.path.join(os.path.dirname(__file__), "gallery", f"{name.replace(' ', '-')}.webp"), name)
                for name in GALLERY
            ],
            label="Examples",
            show_label=False,
            columns=len(GALLERY),
            height="auto",
            allow_preview=False,
            buttons=[],
            elem_id="gallery",
        )
        with gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(
                    label="Picture (click on the person, if there are several)",
                    type="filepath",
                    sources=["upload", "webcam", "clipboard"],
                    height=300,
                    elem_id="picture",
                )
                chosen = gr.Markdown()
                crop = gr.Image(
                    label="What is animated", interactive=False, height=200, elem_id="crop", buttons=[], visible=False
                )
                notice = gr.Markdown(elem_id="notice")
            with gr.Column(min_width=300):
                driver = gr.Radio(list(DRIVERS), value=DRIVERS[0], label="Driver", elem_id="driver")
                motion = gr.Dropdown(list(studio.motions), value="talk", label="Bundled motion")
                with gr.Column(visible=False) as video_fields:
                    video = gr.Video(
                        label="Driving video",
                        sources=["upload", "webcam"],
                        include_audio=True,
                        height=300,
                        elem_id="video",
                    )
                    first_frame = gr.Image(
                        label="Its first frame (click on the person who drives)",
                        interactive=False,
                        height=200,
                        elem_id="first-frame",
                        buttons=[],
                        visible=False,
                    )
                    chosen_driver = gr.Markdown()
                    replace = gr.Checkbox(
                        label="Put the person into this video, in place of its own", visible=studio.can_replace
                    )
                speech = gr.Audio(
                    value=str(studio.speech),
                    label="Speech",
                    type="filepath",
                    sources=["upload", "microphone"],
                    visible=False,
                    elem_id="speech",
                    buttons=[],
                )
                consent = gr.Checkbox(label=CONSENT, elem_id="consent")
                with gr.Accordion("Settings", open=False):
                    seconds = gr.Slider(
                        0.5,
                        studio.most_seconds,
                        value=min(4.0, studio.most_seconds),
                        step=0.5,
                        label="Seconds at most",
                    )
                    parts = gr.CheckboxGroup(list(PARTS), value=list(PARTS), label="Driven parts")
                    face_video = gr.Video(
                        label="Another video for the face",
                        sources=["upload", "webcam"],
                        include_audio=False,
                        height=300,
                        elem_id="face-video",
                    )
                    face_scale = gr.Slider(0.0, 2.0, value=1.0, step=0.1, label="Strength of the face")
                    pose_scale = gr.Slider(0.0, 2.0, value=1.0, step=0.1, label="Strength of the pose")
                    config = studio.pipe.config
                    steps = gr.Slider(
                        1, 50, value=config.num_inference_steps, step=1, label="Steps", visible=not studio.recipe
                    )
                    scale = gr.Slider(
                        1.0,
                        6.0,
                        value=config.guidance_scale,
                        step=0.1,
                        label="Guidance scale",
                        visible=not studio.recipe,
                    )
                    seed = gr.Number(0, precision=0, label="Seed", minimum=0, maximum=2**32 - 1)
                    share = gr.Button("Link to these settings", size="sm")
                    link = gr.Textbox(label="Address", buttons=["copy"], elem_id="link")
            with gr.Column(min_width=300):
                with gr.Row():
                    look_button = gr.Button("Preview", min_width=80, elem_id="look")
                    animate_button = gr.Button("Animate", variant="primary", min_width=80, elem_id="animate")
                    cancel_button = gr.Button("Cancel", variant="stop", min_width=80, elem_id="cancel")
                note = gr.Markdown(elem_id="note")
                preview = gr.Video(
                    label="Guidance: driver, skeleton, head, face",
                    interactive=False,
                    autoplay=True,
                    loop=True,
                    height=240,
                    elem_id="preview",
                    buttons=["download"],
                    visible=False,
                )
                newest = gr.Image(
                    label="Newest segment",
                    interactive=False,
                    height=256,
                    elem_id="newest",
                    buttons=[],
                    visible=False,
                )
                shown = {"interactive": False, "autoplay": True, "loop": True, "buttons": ["download"]}
                film = gr.Video(label="Film", height=360, elem_id="film", **shown)
                side_by_side = gr.Video(
                    label="Beside its driver", height=260, elem_id="side-by-side", visible=False, **shown
                )

        # any file comes through as it is: the library reads more formats, needs no `ffmpeg`, and says what is wrong with one
        for given in (picture, video, face_video, speech):
            given.preprocess = lambda payload: None if payload is None else payload.path
        request = [picture, driver, motion, video, speech, face_video, point, person, parts, seconds, consent, replace]
        settings = {
            "driver": driver,
            "motion": motion,
            "parts": parts,
            "seconds": seconds,
            "face": face_scale,
            "pose": pose_scale,
            "steps": steps,
            "scale": scale,
            "seed": seed,
        }
        results = [inputs, newest, film, side_by_side, note]
        sampling = [steps, scale, face_scale, pose_scale, seed]
        capturing = {"concurrency_id": "capture", "concurrency_limit": 2}
        # what is cancelled may still be at its last step when the next is asked for
        drawing = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "multiple"}
        at_once = {"queue": False, "show_progress": "hidden"}
        # What was looked at is of the inputs as they were.
        for changed in request:
            # on the page itself: the server's answer could come after the next note, and wipe that out
            changed.change(None, None, note, js="() => ''", **at_once)
            changed.change(lambda: show(None), None, preview, **at_once)
        picture.change(lambda: (None, ""), None, [point, chosen], **at_once)
        for changed in (picture, point):
            changed.change(show_picture, [picture, point], [reference, crop, notice], **capturing)
        picture.select(choose, None, [point, chosen], **at_once)
        video.change(show_first_frame, video, [first_frame, person, chosen_driver], **capturing)
        first_frame.select(choose, None, [person, chosen_driver], **at_once)
        driver.change(
            lambda kind: [gr.update(visible=kind == name) for name in DRIVERS],
            driver,
            [motion, video_fields, speech],
            **at_once,
        )
        looking = look_button.click(look, [reference, *request], [inputs, preview, note], **capturing)
        everything = [ticket, inputs, reference, *sampling, *request]
        drawing |= {"show_progress_on": film}
        asked = animate_button.click(ask, None, [ticket, note], js=SCROLL, **at_once)
        taken = gallery.select(take_example, None, [picture, driver, motion, speech], **at_once)
        for waiting in (asked, taken.then(ask, None, [ticket, note], js=SCROLL, **at_once)):
            performed = waiting.then(perform, everything, results, **drawing)
            # what was complained of is not waited for
            performed.failure(lambda: "", None, note, **at_once)
            # what came above it meanwhile has moved it
            performed.success(None, js=SCROLL)
        cancel_button.click(cancel, None, note, queue=False, cancels=[looking])
        share.click(
            lambda *values: link_to(list(settings), list(values)), list(settings.values()), link, **at_once
        ).then(None, link, link, js="(query) => location.origin + location.pathname + query")

        def open_link(visitor: gr.Request) -> list:
            return read_link(settings, visitor)

        page.load(open_link, None, list(settings.values()), **at_once)
        page.unload(end_visit)
    return page


def launch(page: gr.Blocks, **settings) -> tuple:
    """Serves the page; settings are those of Gradio's `launch`."""
    limits = {"max_file_size": f"{studio.most_megabytes}mb", "css": CSS, "footer_links": [], "show_error": True}
    return page.queue(max_size=24).launch(**limits | settings)


if __name__ == "__main__":
    launch(build_page())
