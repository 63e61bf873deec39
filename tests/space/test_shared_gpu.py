"""The Space on shared GPUs (ZeroGPU): another process draws, for as long as was asked for."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest


SPACE = Path(__file__).parents[2] / "examples" / "gradio_space"


class Scheduler(BaseHTTPRequestHandler):
    """The part of Hugging Face's scheduler that `spaces` talks to: it grants everything and writes down how long for."""

    granted: list[int] = []

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/schedule":
            self.granted.append(int(parse_qs(address.query)["durationSeconds"][0]))
        answer = json.dumps({"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "", "allowToken": "granted"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_) -> None:
        """Says nothing."""


def draw_three() -> dict:
    """Draws a film, cancels another, and asks for what cannot be; what came of each. Runs in a process of its own."""
    # without PyTorch `spaces` forks and asks the scheduler as ever, but neither feigns a GPU nor opens one
    sys.modules["torch"] = None
    import spaces

    del sys.modules["torch"]
    import app
    import gradio
    from studio import Request, Sampling, Visit

    assert app.spaces is spaces
    visit, found = Visit(), {"asked": []}

    def draw(seconds: float, sampling: Sampling):
        inputs = app.studio.prepare(Request(str(app.studio.avatars["ana"]), motion="talk", seconds=seconds))
        arguments = (inputs, sampling, visit, visit.ask(), gradio.Progress())
        found["asked"].append(app.estimate(*arguments))
        yield from app.draw(*arguments)

    films = list(draw(0.3, Sampling(1, 1.0)))
    found["notes"], found["size"] = [film.note for film in films], films[-1].film.stat().st_size
    found["cancelled"] = []
    for film in draw(4.0, Sampling(2, 2.5)):
        found["cancelled"].append(film.note)
        visit.cancel()
    try:
        list(draw(0.3, Sampling(0, 1.0)))
    except gradio.Error as error:
        found["refused"] = error.message
    visit.close()
    return found


@pytest.mark.skipif(importlib.util.find_spec("spaces") is None, reason="`spaces` is not installed, as it is on Spaces")
def test_another_process_draws_for_as_long_as_was_asked_for(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scheduler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "cgroup").write_text("1:devices:/space\n")
    shared = {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(tmp_path / "cgroup"),
    }
    path = os.pathsep.join([str(SPACE), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, __file__], env=os.environ | shared | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    server.shutdown()
    server.server_close()
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["notes"][0] == "9 of 9 frames are ready." and found["notes"][1].startswith("9 frames in")
    assert found["size"] > 1000
    assert found["cancelled"][0] != "Cancelled." and found["cancelled"][1:] == ["Cancelled."]
    assert found["refused"] == "The number of steps is 0, but has to be a positive whole number."
    # what is asked for grows with the frames, the steps and the passes
    assert Scheduler.granted == found["asked"]
    assert found["asked"][1] > found["asked"][0] > 20


if __name__ == "__main__":
    print(json.dumps(draw_three()))
