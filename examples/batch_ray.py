"""
`dreamactor batch` on a Ray cluster: actors hold the pipeline, rows stream to whichever is free, results are written once.

    pip install "ray[data]"
    python examples/batch_ray.py manifest.jsonl --output /shared/results --workers 2 --gpus 1
    python examples/batch_ray.py manifest.jsonl --output /shared/results --workers 16 --gpus 1 --address auto --steps 8

The manifest, what it names and the folder of the results lie on storage that every node sees. Other options than those below
are options of `dreamactor batch`, for all rows. An actor that dies is started again, and its row is made by another one; a row
that is made is not made again, neither by a second run nor by `dreamactor batch` on the same folder.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import ray

from diffusers_dreamactor.batch import Batch, Row, read_manifest
from diffusers_dreamactor.cli.arguments import build_parser
from diffusers_dreamactor.cli.batch import batch_defaults, row_animator


class Animator:
    """
    An actor, which holds the pipeline and makes rows.

    Args:
        words (`list[str]`): Those of the command `dreamactor batch`.
    """

    def __init__(self, words: list[str]):
        args = build_parser().parse_args(words)
        self.output = args.output
        self.animate = row_animator(args)

    def __call__(self, item: dict[str, str]) -> dict[str, str]:
        """Makes the row (as JSON) unless it is made; waits for it where another run is making it."""
        batch = Batch([Row(**json.loads(item["row"]))], self.output)
        ((record, _),) = batch.run(self.animate)
        said = f"error: {record.error}" if record.status == "failed" else ", ".join(record.files)
        return {"said": f"line {record.row}: {said} ({record.seconds:.1f} s)"}


def main(arguments: list[str] | None = None) -> int:
    """Makes the rows of a manifest; returns 1 when some failed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--workers", type=int, default=1, help="actors, each with a pipeline of its own")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each actor")
    parser.add_argument("--cpus", type=float, default=1, help="CPU cores for each actor")
    parser.add_argument("--address", help="of a running cluster; default: one on this machine, for this run alone")
    args, options = parser.parse_known_args(arguments)
    words = ["batch", str(args.manifest.absolute()), "--output", str(args.output.absolute()), *options]
    rows = read_manifest(args.manifest, batch_defaults(build_parser().parse_args(words)))
    batch = Batch(rows, args.output)
    missing = [{"row": json.dumps(dataclasses.asdict(row))} for row in rows if not batch.is_made(row)]
    if missing:
        ray.init(address=args.address)
        # one row at a time for each actor, so that none waits behind a long one
        videos = ray.data.from_items(missing, override_num_blocks=len(missing)).map(
            Animator,
            fn_constructor_args=(words,),
            compute=ray.data.ActorPoolStrategy(size=min(args.workers, len(missing)), max_tasks_in_flight_per_actor=1),
            num_cpus=args.cpus,
            num_gpus=args.gpus,
        )
        for video in videos.iter_rows():
            print(video["said"], flush=True)
        ray.shutdown()
    report = batch.write_report()
    print(
        f"{report['made']} of {report['rows']} rows are made, {report['failed']} failed: {args.output / 'report.json'}"
    )
    return int(report["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
