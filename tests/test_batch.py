import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest

from diffusers_dreamactor.batch import Batch, read_manifest, row_words
from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_motions
from diffusers_dreamactor.cli import main


QUICK = {"frames": 5, "steps": 1, "size": [64, 64], "guidance_scale": 1}


def write_manifest(path: Path, rows: list) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def performances(count: int) -> list[dict]:
    """So many rows of bundled avatars and motions, all different."""
    avatars, motions = list(bundled_avatars().values()), list(bundled_motions().values())
    rows = []
    for seed in range(count):
        avatar = avatars[seed % len(avatars)]
        pose = str(avatar.with_suffix(".safetensors"))
        driver = str(motions[seed % len(motions)])
        rows.append({"picture": str(avatar), "reference_motion": pose, "driver": driver, "seed": seed, **QUICK})
    return rows


def results(folder: Path) -> dict[str, tuple[int, int]]:
    """Which results are there, and which files they are: one that was made again is another."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.mp4")}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".part", ".whole") or ".part." in path.name]


def test_rows_are_named_by_what_they_say(tmp_path):
    row = {"picture": "in/ana.png", "driver": "/far/wild dance.mp4", "seed": 3}
    manifest = write_manifest(tmp_path / "m.jsonl", [row, {**row, "seed": 4}, {**row, "name": "take"}, "", row])
    first, other, named, again = read_manifest(manifest)
    assert first.name.startswith("ana-wild_dance-") and other.name.startswith("ana-wild_dance-")
    assert first.name != other.name and named.name == "take"
    assert (again.number, again.repeats) == (5, 1)
    assert first.options["picture"] == str(tmp_path / "in/ana.png") and first.options["driver"] == row["driver"]
    # what holds for all rows decides, too; where the row stands does not
    assert read_manifest(manifest, {"steps": 4})[0].name != first.name
    write_manifest(manifest, [{**row, "seed": 9}, row])
    assert read_manifest(manifest)[1].name == first.name


@pytest.mark.parametrize(
    "line, error",
    [
        ("{", "is no JSON"),
        ("[1]", "is a list, but has to be an object"),
        ('{"driver": "a.mp4"}', "has no `picture`"),
        ('{"picture": []}', "has no `picture`"),
        ('{"picture": "a.png", "name": "../a"}', "has the `name` '../a'"),
        ('{"picture": "a.png", "name": ""}', "has the `name` ''"),
        ('{"picture": "a.png", "output": "a.mp4"}', "has an `output`"),
        ('{"picture": "a.png", "name": "TWICE"}', "has the `name` 'TWICE' of line 1"),
    ],
)
def test_a_row_that_cannot_be_made_says_why(tmp_path, line, error):
    good = {"picture": "a.png", "name": "twice", "seed": 1}
    rows = read_manifest(write_manifest(tmp_path / "m.jsonl", [good, line]))
    assert rows[0].error is None and error in rows[1].error


def test_a_manifest_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="has no rows"):
        read_manifest(write_manifest(tmp_path / "m.jsonl", ["", " "]))
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_row_says_what_the_command_says():
    row = {
        "picture": ["a.png", "b.png"],
        "driver": "d.mp4",
        "size": [832, 480],
        "drive": ["head", "face"],
        "person": -1,
    }
    row |= {
        "bone_scale": {"arm": 1.2, "leg": 1},
        "no_retarget": True,
        "preview": False,
        "fps": None,
        "face-scale": 0.5,
    }
    assert row_words(row) == [
        *("a.png", "b.png", "--size=832x480", "--drive=head,face", "--person=-1", "--bone-scale=arm=1.2,leg=1"),
        *("--no-retarget", "--face-scale=0.5", "--driving=d.mp4"),
    ]
    with pytest.raises(ValueError, match="`--size` is"):
        row_words({"picture": "a.png", "size": [[832, 480]]})


def test_bad_rows_do_not_stop_the_rest_and_what_is_made_stays(tmp_path, capsys):
    good = performances(2)
    bad = ["nonsense", {**good[0], "driver": "missing.mp4"}, {**good[0], "step": 1}, {**good[0], "size": "63x64"}]
    manifest = write_manifest(tmp_path / "m.jsonl", [*bad, good[0], {**good[1], "name": "take", "preview": True}])
    command = ["batch", str(manifest), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "dreamactor: 2 of 6 rows are made, 4 failed" in printed.out
    assert printed.err.splitlines()[-1].startswith("dreamactor: error: 4 of 6 rows failed")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [result["status"] for result in report["results"]] == ["failed"] * 4 + ["made"] * 2
    said = [result["error"] for result in report["results"][:4]]
    for error, part in zip(said, ("no JSON", "missing.mp4", "--step=1", "63")):
        assert part in error
    assert not [result for result in report["results"] if "trace" in result]
    assert report["results"][5]["files"] == ["take.mp4", "take.preview.mp4"]
    assert report["results"][5]["figures"] == {"frames": 5, "fps": 12.0, "width": 64, "height": 64, "seed": 1}
    with av.open(str(tmp_path / "out/take.mp4")) as container:
        assert len(list(container.decode(video=0))) == 5
    before = results(tmp_path / "out")
    assert len(before) == 3 and not leftovers(tmp_path / "out")

    # what was wrong is put right; one result was deleted
    write_manifest(manifest, [good[0], {**good[1], "name": "take", "preview": True}])
    (tmp_path / "out/take.mp4").unlink()
    assert main(command) == 0
    after = results(tmp_path / "out")
    kept = [name for name in before if name.startswith("al")]
    assert kept and all(after[name] == before[name] for name in kept)
    assert after["take.mp4"] != before["take.mp4"]
    assert "dreamactor: line 1" not in capsys.readouterr().out


def test_options_of_the_command_hold_for_rows_that_say_nothing_else(tmp_path):
    rows = [{k: v for k, v in row.items() if k not in ("frames", "seed")} for row in performances(1)]
    manifest = write_manifest(tmp_path / "m.jsonl", [{**rows[0], "seed": 5}, {**rows[0], "frames": 3}])
    assert main(["batch", str(manifest), "--output", str(tmp_path / "out"), "--frames", "9", "--seed", "7"]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    figures = [(result["figures"]["frames"], result["figures"]["seed"]) for result in report["results"]]
    assert figures == [(9, 5), (3, 7)]


def test_a_model_that_is_not_there_ends_the_command(tmp_path, capsys):
    manifest = write_manifest(tmp_path / "m.jsonl", performances(2))
    assert main(["batch", str(manifest), "--output", str(tmp_path / "out"), "--model", "no/such/model"]) == 1
    assert "no/such/model" in capsys.readouterr().err and not results(tmp_path / "out")


def test_killed_three_times_each_row_is_made_once(tmp_path):
    """SIGKILL at random moments: nothing is lost, made twice or left half written."""
    count, chance = 20, random.Random(0)
    manifest = write_manifest(tmp_path / "m.jsonl", performances(count))
    output = tmp_path / "out"
    command = ["batch", str(manifest), "--output", str(output)]
    made: dict[str, tuple[int, int]] = {}
    # forked: a process of its own would take seconds to import everything again
    fork = multiprocessing.get_context("fork")
    for kill in range(3):
        process = fork.Process(target=main, args=(command,))
        process.start()
        while len(results(output)) < 3 * kill + 1:
            process.join(timeout=0.01)
            assert process.is_alive()
        process.join(timeout=chance.uniform(0, 0.5))
        assert process.is_alive()
        process.kill()
        process.join()
        there = results(output)
        assert made.items() <= there.items()
        made = there
        assert not (output / "report.json").exists()
    assert 3 <= len(made) < count
    assert main(command) == 0
    there = results(output)
    assert made.items() <= there.items() and len(there) == count
    assert not leftovers(output)
    report = json.loads((output / "report.json").read_text())
    assert (report["rows"], report["made"]) == (count, count)
    for name in there:
        with av.open(str(output / name)) as container:
            assert len(list(container.decode(video=0))) == 5


@pytest.fixture
def rows(tmp_path):
    return read_manifest(write_manifest(tmp_path / "m.jsonl", [{"picture": f"{i}.png"} for i in range(4)]))


def writes(log: Path):
    """Makes a row by writing its first word, and a line into a log that every process shares."""

    def make(words: list[str], output: Path) -> dict:
        with log.open("a") as file:
            file.write(f"{Path(words[0]).name}\n")
        output.write_text(words[0])
        return {"words": len(words)}

    return make


@pytest.mark.parametrize("moved", [False, True])
def test_what_was_finished_and_not_yet_put_in_its_place_is_not_made_again(tmp_path, rows, moved):
    batch, log = Batch(rows, tmp_path / "out"), tmp_path / "log"
    record, here = batch.make(rows[0], writes(log))
    assert here and record.files == [f"{rows[0].name}.mp4"]
    # as a process leaves it that is killed while it publishes
    whole = batch.state / f"{rows[0].name}.whole"
    whole.mkdir()
    (batch.state / f"{rows[0].name}.json").rename(whole / "record.json")
    if not moved:
        (batch.output / record.files[0]).rename(whole / record.files[0])
    again, here = batch.make(rows[0], writes(log))
    assert here and again == record and log.read_text() == "0.png\n"
    assert (batch.output / record.files[0]).is_file() and not leftovers(batch.output)
    assert batch.make(rows[0], writes(log)) == (record, False)


def test_a_row_that_changed_its_mind_is_made_again(tmp_path):
    log = tmp_path / "log"
    for picture in ("a.png", "b.png", "b.png"):
        rows = read_manifest(write_manifest(tmp_path / "m.jsonl", [{"picture": picture, "name": "take"}]))
        batch = Batch(rows, tmp_path / "out")
        batch.make(rows[0], writes(log))
        assert (batch.output / "take.mp4").read_text() == str(tmp_path / picture)
    assert log.read_text() == "a.png\nb.png\n"


def test_a_fault_of_the_program_is_told_with_its_place(tmp_path, rows):
    batch = Batch(rows, tmp_path / "out")

    def faulty(words, output):
        output.write_text("half")
        raise ZeroDivisionError("by zero")

    record, _ = batch.make(rows[0], faulty)
    assert (record.status, record.error, record.files) == ("failed", "by zero", []) and "faulty" in record.trace
    assert not list(batch.output.glob("*.mp4")) and not leftovers(batch.output)
    # the same run does not try it again, the next one does
    assert batch.make(rows[0], faulty, since=record.ended)[1] is False
    assert batch.make(rows[0], writes(tmp_path / "log"))[0].status == "made"


def test_processes_share_the_rows(tmp_path, rows):
    log, fork = tmp_path / "log", multiprocessing.get_context("fork")

    def work(process: int) -> None:
        seen = [record.status for record, _ in Batch(rows, tmp_path / "out").run(writes(log), process, 3)]
        os._exit(0 if seen == ["made"] * 4 else 1)

    workers = [fork.Process(target=work, args=(process,)) for process in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(log.read_text().split()) == ["0.png", "1.png", "2.png", "3.png"]
    assert Batch(rows, tmp_path / "out").write_report()["made"] == 4


def test_a_row_whose_process_died_is_taken_over(tmp_path, rows):
    """A process that waits for a row of another one makes it when that one is killed."""
    fork = multiprocessing.get_context("fork")
    held, may_go = fork.Event(), fork.Event()

    def hang(words, output):
        held.set()
        may_go.wait()

    def hold() -> None:
        Batch(rows, tmp_path / "out").make(rows[0], hang)

    holder = fork.Process(target=hold)
    holder.start()
    assert held.wait(timeout=60)
    batch = Batch(rows, tmp_path / "out")
    assert batch.make(rows[0], writes(tmp_path / "log")) == (None, False)
    run = batch.run(writes(tmp_path / "log"))
    assert [next(run)[0].row for _ in range(3)] == [2, 3, 4]
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert [(record.row, here) for record, here in run] == [(1, True)]


def test_accelerate_launch_splits_the_rows(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", performances(4))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = ["-m", "diffusers_dreamactor.cli", "batch", str(manifest), "--output", str(tmp_path / "out")]
    result = subprocess.run([*launch, *command, "--device", "cpu"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("dreamactor: line")]
    assert len(lines) == 4 and len(set(lines)) == 4
    assert "dreamactor: 4 of 4 rows are made" in result.stdout
    assert len(results(tmp_path / "out")) == 4 and not leftovers(tmp_path / "out")
