import hashlib
import io
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffusers_dreamactor.motion.capture.download import (
    CAPTURE_MODELS,
    check_capture_model,
    default_capture_folder,
    download_capture_models,
)


def bundle(members, content=b"model " * 20_000) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for member in members:
            file.writestr(member, content)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    """A server on loopback with three small bundles, pinned, at MediaPipe's paths; `files` may be changed."""
    digest = hashlib.sha256(b"model " * 20_000).hexdigest()
    for name, (path, members) in CAPTURE_MODELS.items():
        monkeypatch.setitem(CAPTURE_MODELS, name, (path, dict.fromkeys(members, digest)))
    files = {f"/{path}/{name}": bundle(members) for name, (path, members) in CAPTURE_MODELS.items()}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            if self.path not in files:
                self.send_error(404)
                return
            body = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", files, asked
    http.shutdown()
    http.server_close()
    thread.join()


def url_path(name):
    return f"/{CAPTURE_MODELS[name][0]}/{name}"


def test_fetches_the_three_bundles_with_a_progress_bar_on_a_terminal(server, tmp_path, capsys, monkeypatch):
    base_url, files, asked = server
    download_capture_models(tmp_path / "quiet", base_url=base_url)
    assert capsys.readouterr().err == ""
    asked.clear()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    folder = download_capture_models(tmp_path / "models", base_url=base_url)
    assert sorted(path.name for path in folder.iterdir()) == sorted(CAPTURE_MODELS)
    shown = capsys.readouterr().err
    for name in CAPTURE_MODELS:
        assert (folder / name).read_bytes() == files[url_path(name)]
        assert f"{name}: 100%" in shown
    assert len(asked) == 3


def test_keeps_what_is_there(server, tmp_path):
    base_url, _, asked = server
    download_capture_models(tmp_path, base_url=base_url, progress=False)
    (tmp_path / "hand_landmarker.task").unlink()
    asked.clear()
    download_capture_models(tmp_path, base_url=base_url, progress=False)
    assert asked == [url_path("hand_landmarker.task")]


@pytest.mark.parametrize("damage", ["a page", "cut short", "another bundle", "flipped bits"])
def test_a_file_that_is_not_the_bundle_is_not_kept(server, tmp_path, damage):
    base_url, files, _ = server
    name = "face_landmarker.task"
    whole = files[url_path(name)]
    middle = len(whole) // 3
    files[url_path(name)] = {
        "a page": b"<html>sign in</html>",
        "cut short": whole[:-2000],
        "another bundle": bundle(CAPTURE_MODELS["hand_landmarker.task"][1]),
        "flipped bits": whole[:middle]
        + bytes(255 - value for value in whole[middle : middle + 9])
        + whole[middle + 9 :],
    }[damage]
    with pytest.raises(OSError, match="bundle face_landmarker.task"):
        download_capture_models(tmp_path, base_url=base_url, progress=False)
    assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".*"))


def test_a_whole_bundle_of_another_version_is_not_kept(server, tmp_path):
    base_url, files, _ = server
    name = "pose_landmarker_full.task"
    files[url_path(name)] = bundle(CAPTURE_MODELS[name][1], b"another model " * 20_000)
    with pytest.raises(OSError, match=f"is not the version of {name} that was tested: pose_detector.tflite has"):
        download_capture_models(tmp_path, base_url=base_url, progress=False)
    assert not list(tmp_path.iterdir())


def test_versions_are_pinned_and_a_mirror_can_be_named(server, tmp_path, monkeypatch):
    base_url, _, asked = server
    assert all("latest" not in path for path, _ in CAPTURE_MODELS.values())
    monkeypatch.setenv("DREAMACTOR_CAPTURE_MIRROR", base_url)
    download_capture_models(tmp_path, progress=False)
    assert len(asked) == 3


def test_the_pinned_digests_are_those_of_the_models(capture_models):
    for name, (_, members) in CAPTURE_MODELS.items():
        with zipfile.ZipFile(capture_models / name) as file:
            assert {member: hashlib.sha256(file.read(member)).hexdigest() for member in members} == members


def test_says_what_cannot_be_fetched_and_from_where(server, tmp_path):
    base_url, files, _ = server
    del files[url_path("pose_landmarker_full.task")]
    with pytest.raises(OSError, match=r"pose_landmarker_full.task cannot be fetched from http://127.0.0.1.*404"):
        download_capture_models(tmp_path, base_url=base_url, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_checked_by_its_members(tmp_path):
    path = tmp_path / "hand_landmarker.task"
    path.write_bytes(bundle(["hand_detector.tflite"]))
    with pytest.raises(OSError, match="it lacks hand_landmarks_detector.tflite"):
        check_capture_model(path)


def test_the_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DREAMACTOR_CAPTURE_MODELS", str(tmp_path))
    assert default_capture_folder() == tmp_path
    monkeypatch.delenv("DREAMACTOR_CAPTURE_MODELS")
    assert default_capture_folder().parts[-3:] == (".cache", "diffusers_dreamactor", "capture")
