"""
Processes of their own for tests, forked from one that has imported the libraries and does nothing else: each saves the ten
seconds that the imports take. What shows only from a process's first import to its last breath wants `subprocess` instead.
"""

import multiprocessing
import os
import tempfile
from pathlib import Path


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["diffusers_dreamactor", "accelerate", "peft"])

# What a process does before it is the script.
_START = """
import os, runpy, signal, sys
# what is started in the background is born deaf to it, and so are its children
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.clear()
os.environ.update(environment)
written = os.open(output, os.O_WRONLY)
os.dup2(written, 1)
os.dup2(written, 2)
sys.argv = words
sys.path.insert(0, os.path.dirname(words[0]))
runpy.run_path(words[0], run_name="__main__")
"""


class ScriptProcess:
    """
    Runs a Python script as `python SCRIPT WORDS...` would.

    Args:
        script (`Path`), words: what runs, and its arguments.
        environment (`dict[str, str]`, *optional*): variables besides those of this process.
    """

    def __init__(self, script: Path, *words, environment: dict[str, str] | None = None):
        number, self._output = tempfile.mkstemp(prefix="output-", suffix=".txt")
        os.close(number)
        known = {
            "words": [str(script), *map(str, words)],
            "environment": os.environ | (environment or {}),
            "output": self._output,
        }
        self._process = _context.Process(target=exec, args=(_START, known | {"__name__": "start"}))
        self._process.start()

    @property
    def runs(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def finish(self, code: int = 0, timeout: float = 300.0) -> str:
        """Waits for the end, which has to be with this exit code; what was written to both streams."""
        self._process.join(timeout)
        ended_with = self._process.exitcode
        self.kill()
        output = Path(self._output).read_text()
        Path(self._output).unlink()
        assert ended_with == code, f"ended with {ended_with}\n{output}"
        return output


def finish_together(processes: list[ScriptProcess]) -> list[str]:
    """What each of processes that wait for each other wrote; where one fails the others end, too."""
    try:
        return [process.finish() for process in processes]
    finally:
        for process in processes:
            process.kill()
