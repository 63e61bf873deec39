"""Many videos from one manifest: each made once, whatever happens to the processes that make them."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffusers_dreamactor.files import errors_naming


__all__ = ["Batch", "Record", "Row", "read_manifest", "row_words"]

# Options whose values are files, which a row names from the manifest's folder.
_FILES = ("picture", "driver", "driving", "audio", "face_video", "background", "mask", "reference_motion", "sound")
# Those whose values may be files, or else ids.
_FILES_OR_IDS = ("model", "transformer", "lora")
_LONGEST_STEM = 40


@dataclass(frozen=True)
class Row:
    """
    One line of a manifest.

    Args:
        number (`int`): The line, from 1.
        name (`str`): The stem of the files that it becomes.
        options (`dict`): What it says, with paths from the manifest's folder made whole.
        key (`str`): SHA-256 of all that decides the result but the content of the files.
        error (`str`, *optional*): Why it cannot be made, where the line itself is at fault.
        repeats (`int`, *optional*): The line that says the same already.
    """

    number: int
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    error: str | None = None
    repeats: int | None = None


@dataclass
class Record:
    """
    What became of a row.

    Args:
        row (`int`): Its line in the manifest.
        name (`str`): Its name.
        key (`str`): Its key.
        status (`str`): `"made"`, `"failed"`, in a report also `"repeated"` or `"missing"`.
        files (`list[str]`): What was written, names in the output folder.
        figures (`dict`): What the maker says of it, e.g. frames and rate.
        seconds (`float`), ended (`float`): How long it took, and when it ended (seconds since 1970).
        error (`str`, *optional*): Why it failed, in a sentence.
        trace (`str`, *optional*): Where it failed, when that is no fault of what was asked for.
    """

    row: int
    name: str
    key: str
    status: str
    files: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    ended: float = 0.0
    error: str | None = None
    trace: str | None = None


def _whole(value: Any, folder: Path) -> Any:
    """A path, or a list of them, from the manifest's folder."""
    if isinstance(value, list):
        return [_whole(part, folder) for part in value]
    return str((folder / value).absolute()) if isinstance(value, str) else value


def _read_row(line: str, number: int, folder: Path, defaults: dict[str, Any]) -> Row:
    broken = f"line-{number:05d}"
    try:
        options = json.loads(line)
    except ValueError as error:
        return Row(number, broken, key=hashlib.sha256(line.encode()).hexdigest(), error=f"is no JSON: {error}")
    key = hashlib.sha256(json.dumps([defaults, options], sort_keys=True).encode()).hexdigest()
    if not isinstance(options, dict):
        return Row(number, broken, key=key, error=f"is a {type(options).__name__}, but has to be an object, {{...}}.")
    name = options.pop("name", None)
    picture = options.get("picture")
    if not isinstance(picture, str) and not (isinstance(picture, list) and picture):
        return Row(number, broken, options, key, "has no `picture`, a path or a list of paths.")
    if name is not None and (not isinstance(name, str) or not re.fullmatch(r"[^/\\\0.][^/\\\0]{0,150}", name)):
        return Row(number, broken, options, key, f"has the `name` {name!r}, but it has to be that of a file.")
    if "output" in options:
        return Row(number, broken, options, key, "has an `output`, but it is its `name` that names the result.")
    if name is None:
        paths = [picture if isinstance(picture, str) else picture[0]]
        paths += [options[option] for option in ("driver", "driving", "audio") if options.get(option)][:1]
        stems = [re.sub(r"[^\w.-]+", "_", Path(str(path)).stem)[:_LONGEST_STEM].lstrip(".") for path in paths]
        name = "-".join([*stems, key[:8]])
    for option, value in options.items():
        if option.replace("-", "_") in _FILES:
            options[option] = _whole(value, folder)
        elif option in _FILES_OR_IDS:
            parts = value if isinstance(value, list) else [value]
            is_there = [isinstance(part, str) and (folder / part.partition("@")[0]).exists() for part in parts]
            parts = [_whole(part, folder) if there else part for part, there in zip(parts, is_there)]
            options[option] = parts if isinstance(value, list) else parts[0]
    return Row(number, name, options, key)


def read_manifest(path: str | os.PathLike, defaults: dict[str, Any] | None = None) -> list[Row]:
    """
    Reads a manifest: JSON objects, one a line, with `picture`, `driver` and any option of `dreamactor animate` by its name
    (`"steps": 8`, `"size": "832x480"` or `[832, 480]`, `"bone_scale": {"arm": 1.2}`, `"no_retarget": true`), and, if you
    like, a `name` for the result. Relative paths are those from the manifest's folder.

    Args:
        path (`str` or `os.PathLike`): The manifest (JSON lines, UTF-8).
        defaults (`dict`, *optional*): Options that hold for every row; with others, rows are other rows.

    Returns:
        `list[Row]`: One for each line that is not empty; a line that cannot be understood has an `error`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no text, or has no line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`manifest` is no UTF-8 text: {path}") from error
    rows: list[Row] = []
    by_name: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _read_row(line, number, path.absolute().parent, defaults or {})
        # file systems may not tell upper from lower case
        earlier = by_name.setdefault(row.name.lower(), row)
        if earlier is not row and earlier.key == row.key:
            row = Row(number, row.name, row.options, row.key, repeats=earlier.number)
        elif earlier is not row:
            reason = f"has the `name` {row.name!r} of line {earlier.number}."
            row = Row(number, f"line-{number:05d}", row.options, row.key, reason)
        rows.append(row)
    if not rows:
        raise ValueError(f"`manifest` has no rows: {path}")
    return rows


def row_words(options: dict[str, Any]) -> list[str]:
    """
    A row's options as the words of the command `dreamactor animate`.

    Raises:
        ValueError: A value of a type that no option has.
    """
    options = dict(options)
    picture = options.pop("picture")
    words = [str(path) for path in (picture if isinstance(picture, list) else [picture])]
    if "driver" in options:
        options["driving"] = options.pop("driver")
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(option)
        elif name == "lora" and isinstance(value, list):
            words += [f"{option}={part}" for part in value]
        elif isinstance(value, (str, int, float)):
            words.append(f"{option}={value}")
        elif isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
            words.append(f"{option}={('x' if name == 'size' else ',').join(map(str, value))}")
        elif isinstance(value, dict):
            words.append(f"{option}={','.join(f'{part}={scale}' for part, scale in value.items())}")
        else:
            raise ValueError(f"`{option}` is {json.dumps(value)}, but has to be text, a number, a list or an object.")
    return words


class Batch:
    """
    The rows of a manifest and the folder of their results.

    Any number of processes, on one machine or on several that share the folder, may work on it at the same time and may be
    killed at any moment. A row is made by whoever holds its lock, which ends with the process; its files are written into
    a folder of their own and moved into the output folder when all of them are whole; its record tells every later run
    that there is nothing left to do. Delete a result to have it made again.

    Args:
        rows (`list[Row]`): As `read_manifest` gives them.
        output (`str` or `os.PathLike`): The folder of the results; it is made when it is missing.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, rows: list[Row], output: str | os.PathLike):
        self.rows = rows
        self.output = Path(output)
        self.state = self.output / ".batch"
        self.state.mkdir(parents=True, exist_ok=True)

    def record(self, row: Row) -> Record | None:
        """What became of a row so far; `None` when it has yet to be made (again)."""
        path = self.state / f"{row.name}.json"
        try:
            record = Record(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        if record.key != row.key:
            return None
        if record.status == "made" and not all((self.output / name).exists() for name in record.files):
            return None
        # rows may have moved in the manifest since
        record.row = row.number
        return record

    def is_made(self, row: Row) -> bool:
        """Whether a row's results are there."""
        record = self.record(row)
        return row.repeats is not None or (record is not None and record.status == "made")

    def make(
        self, row: Row, animate: Callable[[list[str], Path], dict[str, Any]], since: float = float("inf")
    ) -> tuple[Record | None, bool]:
        """
        Makes a row, unless it is made already.

        Args:
            row (`Row`): The row.
            animate (`Callable`): Takes the words of `dreamactor animate` without `--output`, and the MP4 to write; files
                beside it belong to the result, too. It returns figures for the report. What it raises fails the row.
            since (`float`): A row that failed at this time (seconds since 1970) or later is not tried again.

        Returns:
            `(Record, bool)`: What became of it, and whether that was done here; `(None, False)` while another process
            is at it.
        """
        lock = FileLock(self.state / f"{row.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None, False
        try:
            return self._make(row, animate, since)
        finally:
            lock.release()

    def _make(self, row: Row, animate: Callable, since: float) -> tuple[Record, bool]:
        part, whole = self.state / f"{row.name}.part", self.state / f"{row.name}.whole"
        record = self.record(row)
        if record is not None and (record.status == "made" or record.ended >= since):
            return record, False
        if whole.exists():
            # a process died between finishing it and putting it in its place
            record = Record(**json.loads((whole / "record.json").read_text(encoding="utf-8")))
            if record.key == row.key:
                return self._publish(whole, record), True
            shutil.rmtree(whole)
        if part.exists():
            shutil.rmtree(part)

        record = Record(row.number, row.name, row.key, "made")
        started = time.monotonic()
        part.mkdir()
        try:
            if row.error is not None:
                raise ValueError(f"The row {row.error}")
            record.figures = animate(row_words(row.options), part / f"{row.name}.mp4")
            record.files = sorted(path.name for path in part.iterdir())
            record.seconds, record.ended = round(time.monotonic() - started, 3), time.time()
            self._write(part / "record.json", vars(record))
            part.rename(whole)
        except Exception as error:
            record.status, record.error = "failed", str(error) or type(error).__name__
            if not isinstance(error, (ValueError, OSError, ImportError)):
                record.trace = traceback.format_exc()
            record.files, record.figures = [], {}
            record.seconds, record.ended = round(time.monotonic() - started, 3), time.time()
            self._write(self.state / f"{row.name}.json", vars(record))
            return record, True
        finally:
            # also of an interrupt
            shutil.rmtree(part, ignore_errors=True)
        return self._publish(whole, record), True

    def _publish(self, whole: Path, record: Record) -> Record:
        for name in record.files:
            with contextlib.suppress(FileNotFoundError):
                os.replace(whole / name, self.output / name)
        os.replace(whole / "record.json", self.state / f"{record.name}.json")
        whole.rmdir()
        return record

    def run(
        self, animate: Callable[[list[str], Path], dict[str, Any]], process: int = 0, num_processes: int = 1
    ) -> Iterator[tuple[Record, bool]]:
        """
        Makes all rows that are not made yet, together with other processes that run this, and ends when all are done.

        Args:
            animate (`Callable`): As `make` takes it.
            process (`int`), num_processes (`int`): Which rows this process takes first: every `num_processes`-th from
                `process` on. Then it takes what others have not begun.

        Yields:
            `(Record, bool)`: What became of each row, as `make` returns it.
        """
        since = time.time()
        rows = [row for row in self.rows if row.repeats is None]
        waiting = sorted(rows, key=lambda row: (row.number - 1) % num_processes != process)
        while waiting:
            busy = []
            for row in waiting:
                record, here = self.make(row, animate, since)
                if record is None:
                    busy.append(row)
                else:
                    yield record, here
            if len(busy) == len(waiting):
                # ends with the row, or with the process that makes it
                lock = FileLock(self.state / f"{busy[0].name}.lock")
                lock.acquire(poll_interval=0.2)
                lock.release()
            waiting = busy

    def write_report(self) -> dict[str, Any]:
        """
        Writes `report.json` into the output folder: how many rows were made, failed, repeated or are missing, and the record
        of each. Returns it.
        """
        with FileLock(self.state / "report.lock"):
            made = {row.number: self.record(row) for row in self.rows}
            results = []
            for row in self.rows:
                if row.repeats is not None:
                    twin = made[row.repeats]
                    files = [] if twin is None else twin.files
                    result = Record(row.number, row.name, row.key, "repeated", files, {"repeats": row.repeats})
                else:
                    result = made[row.number] or Record(row.number, row.name, row.key, "missing")
                results.append({name: value for name, value in vars(result).items() if value is not None})
            counts = {
                status: sum(result["status"] == status for result in results)
                for status in ("made", "failed", "repeated", "missing")
            }
            report = {"rows": len(results), **counts, "results": results}
            self._write(self.output / "report.json", report)
        return report

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        # whoever writes it holds its lock, so that what a killed process left here is simply written over
        aside = self.state / f"{path.name}.part"
        with errors_naming(path):
            aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(aside, path)
