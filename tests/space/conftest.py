import pytest


@pytest.fixture(scope="session", autouse=True)
def own_uploads(tmp_path_factory):
    """
    A folder for what this process's app is given. Gradio deletes it all when an app ends, and files of the same content are one
    file: that of another test process, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield
