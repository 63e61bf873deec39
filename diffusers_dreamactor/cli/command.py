"""The entry of the `dreamactor` command."""

import argparse
import importlib
import os
import signal
import sys

from diffusers_dreamactor.cli.animate import run_animate, run_demo
from diffusers_dreamactor.cli.arguments import CONVERSIONS, build_parser
from diffusers_dreamactor.cli.batch import run_batch
from diffusers_dreamactor.cli.capture import run_capture
from diffusers_dreamactor.cli.checks import check_output
from diffusers_dreamactor.cli.doctor import run_doctor
from diffusers_dreamactor.cli.messages import name_options


def run_speak(args: argparse.Namespace) -> None:
    """`dreamactor speak`."""
    from diffusers_dreamactor.media import VIDEO_SUFFIXES, VideoWriter
    from diffusers_dreamactor.talking_face import speak

    check_output(args.output, VIDEO_SUFFIXES, [args.sound])
    frames = speak(args.sound, args.fps, args.size, args.frames, idle=not args.no_idle, seed=args.seed)
    with VideoWriter(args.output, fps=args.fps, audio=args.sound) as writer:
        for frame in frames:
            writer.write(frame)
    print(f"dreamactor: wrote {args.output} ({writer.num_frames} frames at {args.fps:g} frames/s)")


def run_convert(args: argparse.Namespace) -> None:
    """`dreamactor convert`."""
    conversion = importlib.import_module(f"diffusers_dreamactor.conversion.{CONVERSIONS[args.kind]}")
    conversion.main(args.options)


class _Terminated(BaseException):
    """Asked to stop by SIGTERM: what is half written is removed on the way out, as for an interrupt."""


def _terminate(signal_number: int, frame) -> None:
    raise _Terminated


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 1, an interrupt in one line and 130."""
    args = build_parser().parse_args(arguments)
    run = {
        "animate": run_animate,
        "batch": run_batch,
        "capture": run_capture,
        "convert": run_convert,
        "demo": run_demo,
        "doctor": run_doctor,
        "speak": run_speak,
    }[args.command]
    former = signal.signal(signal.SIGTERM, _terminate)
    try:
        if args.command != "convert":
            from diffusers_dreamactor.library_messages import quiet_libraries

            quiet_libraries()
        run(args)
    except BrokenPipeError:
        # who reads what is printed has heard enough
        sys.stdout = open(os.devnull, "w")
    except (ValueError, OSError, ImportError) as error:
        print(f"dreamactor: error: {name_options(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dreamactor: interrupted", file=sys.stderr)
        return 130
    except _Terminated:
        print("dreamactor: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, former)
    return 0
