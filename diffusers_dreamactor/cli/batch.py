"""`dreamactor batch`: the rows of a manifest, by the options of `animate`."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from diffusers_dreamactor.cli.animate import animate, load_pipeline
from diffusers_dreamactor.cli.arguments import add_animate_arguments, add_generation_arguments
from diffusers_dreamactor.cli.checks import check_device
from diffusers_dreamactor.cli.messages import name_options


class _RowParser(argparse.ArgumentParser):
    """The arguments of `animate`, with errors that are raised instead of ending the command."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def row_animator(args: argparse.Namespace) -> Callable[[list[str], Path], dict[str, Any]]:
    """
    What `Batch` makes its rows with: one pipeline at a time is held, and options that a row does not name are those of
    `args`, of `dreamactor batch`.
    """
    parser = _RowParser(prog="row", add_help=False, allow_abbrev=False)
    add_animate_arguments(parser)
    held: dict[tuple, Any] = {}
    decisive = ["model", "device", "memory", "offload", "dtype", "quantize", "transformer", "lora", "fast", "relight"]

    def load(row: argparse.Namespace, shaped_as: tuple[int, int] | None = None):
        area = None if row.size is None else row.size[0] * row.size[1]
        choice = (*(str(getattr(row, name, False)) for name in decisive), area)
        if choice not in held:
            held.clear()
            pipe = load_pipeline(row, shaped_as)
            pipe.set_progress_bar_config(disable=True)
            held[choice] = (pipe, row.few_steps)
        pipe, row.few_steps = held[choice]
        return pipe

    # of what is chosen for all rows, an error is not that of one row
    load(args)

    def animate_row(words: list[str], output: Path) -> dict[str, Any]:
        defaults = {name: value for name, value in vars(args).items() if name not in ("command", "manifest", "output")}
        row = parser.parse_args([*words, f"--output={output}"], argparse.Namespace(**defaults))
        return animate(row, load, say=lambda words: None)

    return animate_row


def batch_defaults(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `dreamactor batch` that decide what its rows become."""
    parser = argparse.ArgumentParser()
    add_generation_arguments(parser)
    usual = vars(parser.parse_args([]))
    return {name: vars(args)[name] for name in usual if vars(args)[name] != usual[name] and name != "device"}


def run_batch(args: argparse.Namespace) -> None:
    """`dreamactor batch`."""
    from tqdm.auto import tqdm

    from diffusers_dreamactor.batch import Batch, read_manifest

    rows = read_manifest(args.manifest, batch_defaults(args))
    batch = Batch(rows, args.output)
    # as `accelerate launch` and `torchrun` say it
    process, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.device is None and num_processes > 1 and check_device(None) == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    done = sum(batch.is_made(row) for row in rows)
    failed = 0
    with tqdm(total=len(rows), initial=done, unit="video", disable=None if process == 0 else True) as bar:
        if done < len(rows):
            for record, here in batch.run(row_animator(args), process, num_processes):
                failed += record.status == "failed"
                if here:
                    what = ", ".join(record.files) or f"error: {name_options(record.error)}"
                    tqdm.write(f"dreamactor: line {record.row}: {what} ({record.seconds:.1f} s)")
                    bar.update()
    report = batch.write_report()
    if process == 0:
        print(
            f"dreamactor: {report['made']} of {report['rows']} rows are made, {report['failed']} failed, "
            f"{report['repeated']} repeat others: {batch.output / 'report.json'}"
        )
    if failed:
        raise ValueError(f"{failed} of {len(rows)} rows failed: {batch.output / 'report.json'} says why.")
