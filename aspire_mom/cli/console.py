"""Options that commands share, and how commands are loaded, log and fail."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from aspire_mom.cli.terminal import open_standard_streams, stopped_by_signals
from aspire_mom.configuration import configure_aspire


class Positive(click.ParamType):
    """A finite number above zero."""

    name = "number"

    def convert(self, value, param, ctx) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{value} is not a positive number", param, ctx)
        return number


class OutputFile(click.Path):
    """A file to write, whose name has one of the suffixes."""

    def __init__(self, *suffixes: str):
        super().__init__(path_type=Path)
        self.suffixes = suffixes

    def convert(self, value, param, ctx) -> Path:
        path = Path(value)
        if path.suffix not in self.suffixes:
            endings = " or ".join(self.suffixes)
            self.fail(f"{path}: the name must end in {endings}", param, ctx)
        return path


INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)


def out_option(help: str, *suffixes: str):
    """Return the option `--out`: a file with one of the suffixes, or else a folder."""
    kind = OutputFile(*suffixes) if suffixes else click.Path(path_type=Path)
    return click.option("-o", "--out", type=kind, required=True, help=help)


pixel_size_option = click.option(
    "--pixel-size",
    type=Positive(),
    help="Ångström per pixel; must agree with the file if that has a pixel size.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**31), default=0, help="Random seed."
)
device_option = click.option(
    "--device", default="cpu", help="torch device: cpu, cuda, …"
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace results that exist."
)


def run_options(command):
    """Add the options of long computations: `--seed`, `--device` and `--overwrite`."""
    return seed_option(device_option(overwrite_option(command)))


def learning_rate_option(default: float):
    """Return the option `--learning-rate` of trainings."""
    help = "Peak learning rate of Adam (warm-up and cosine decay)."
    return click.option("--learning-rate", type=Positive(), default=default, help=help)


def report_options(command):
    """Add the options of a report: `--json`, `--plot` and `--overwrite`."""
    json_option = click.option(
        "--json", "as_json", is_flag=True, help="Print all results as JSON."
    )
    plot_option = click.option(
        "--plot",
        type=OutputFile(".png", ".pdf", ".svg"),
        help="Picture to write (.png, .pdf or .svg).",
    )
    return json_option(plot_option(overwrite_option(command)))


def check_outputs(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise OSError if a file cannot be written, or exists and may not be replaced."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; a file is to be written")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; pass --overwrite to replace it")
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; a folder is needed there")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder}: no permission to write there")


def format_metrics(report: dict) -> str:
    """Format the main metrics of a comparison's summary, with the `seconds` it took."""
    lines = [
        f"resolution at FSC {cutoff}: {report[f'resolution_{cutoff}_angstrom']:.2f} Å"
        f" ({report[f'resolution_{cutoff}_shells']:.1f} shells)"
        for cutoff in (0.5, 0.143)
    ]
    lines.append(f"correlation: {report['correlation']:.4f}")
    hand = "mirrored" if report["mirrored"] else "same as the reference"
    hand += " (images do not determine it)"
    return "\n".join((*lines, f"hand: {hand}", f"time: {report['seconds']:.1f} s"))


class Command(click.Command):
    """Command that reports errors of input as a one-line message, not a traceback."""

    def invoke(self, ctx: click.Context):
        try:
            import aspire  # noqa: F401, its log must exist before it is moved

            with _logs_on_stderr(), warnings.catch_warnings():
                # mrcfile warns of unusual MRC headers, which do no harm. Files that
                # cannot be used raise errors.
                warnings.filterwarnings("ignore", module="mrcfile")
                return super().invoke(ctx)
        except (ValueError, FloatingPointError) as error:
            message = str(error)
        except Exception as error:
            message = _of_the_machine(error) or ""
            if not message:
                raise
            if _is_short_of_memory(error):
                message += _what_needs_less(ctx.params)
        raise click.ClickException(self._with_option_names(message))

    def _with_option_names(self, message: str) -> str:
        """Replace library arguments in an error message by names of options."""
        for option in self.params:
            if isinstance(option, click.Option):
                name = option.name
                in_message = (
                    rf"^{name}(?= is )|(?<=pass ){name}(=True)?\b"
                    rf"|(?<=pass a smaller ){name}\b"
                )
                message = re.sub(in_message, max(option.opts, key=len), message)
        return message


# Options, and what to do with them, where memory is short.
NEEDS_LESS = {
    "basis": "--basis polar",
    "downsample": "a smaller --downsample",
    "batch_size": "a smaller --batch-size",
    "rings": "a smaller number of --rings",
    "images": "a smaller number of --images",
    "observations": "a smaller number of --observations",
}
# What PyTorch, C++, the linker and Python say.
SHORT_OF_MEMORY = re.compile(
    "(allocate|out of|not enough) memory|malloc|bad_alloc|failed to map segment"
    "|start new thread",
    re.IGNORECASE,
)


def _is_short_of_memory(error: Exception) -> bool:
    if isinstance(error, RuntimeError | ImportError):
        return SHORT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM


def _what_needs_less(options: dict[str, Any]) -> str:
    """Name options of a command that make its computation smaller."""
    there = [text for name, text in NEEDS_LESS.items() if name in options]
    there = [text for text in there if text != f"--basis {options.get('basis')}"]
    return f"; {' or '.join(there)} needs less" if there else ""


def _of_the_machine(error: Exception) -> str | None:
    """A sentence about an error of the operating system; None if it is another's."""
    if isinstance(error, OSError):
        # Errors of the operating system hold the reason and the file separately.
        reason = (error.strerror, error.filename) if error.filename else error.args
        return ": ".join(str(part) for part in reason)
    if _is_short_of_memory(error):
        return f"there is not enough memory: {error}".removesuffix(": ")
    return None


@contextmanager
def resumable(checkpoint: Path | None) -> Iterator[None]:
    """
    Say of an interrupted command whether it can go on.

    :param checkpoint: The checkpoint of what the context computes, None for none.
    :yield: Nothing.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        what = "--resume would keep sums"
        if checkpoint is not None:
            # That of several processes is in as many files.
            files = checkpoint.parent.glob(f"{escape(checkpoint.name)}*")
            kept = any(file.suffix != ".part" for file in files)
            what = f"the same command goes on from {checkpoint}"
            if not kept:
                what = "there was no checkpoint yet, and nothing of this step is kept"
        raise click.ClickException(f"interrupted; {what}") from error


class Group(click.Group):
    """Commands whose errors are one sentence on stderr, with exit status 2."""

    command_class = Command

    def main(self, *args, **extra):
        open_standard_streams()
        try:
            with stopped_by_signals():
                return super().main(*args, **{**extra, "standalone_mode": False})
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self.name
            message = f"{error.format_message()} (see {command} --help)"
        except click.ClickException as error:
            message = error.format_message()
        except (click.Abort, KeyboardInterrupt):
            message = "interrupted"
        except Exception as error:
            message = _of_the_machine(error) or ""
            if not message:
                raise
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(2)


class LazyGroup(Group):
    """
    A group that imports the module of a command when the command is asked for.

    `modules` maps the name of each command to the module in `aspire_mom.cli` that
    defines it, and to its line in the help of the group.
    """

    def __init__(self, *, modules: dict[str, tuple[str, str]], **options: object):
        super().__init__(**options)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        # Python's own excepthook, and progress bars on terminals only.
        hidden = not sys.stderr.isatty()
        configure_aspire(log_exceptions=0, tqdm_disable=hidden)
        module = import_module(f"aspire_mom.cli.{self.modules[cmd_name][0]}")
        return getattr(module, cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(k, help) for k, (_, help) in self.modules.items()])


@contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """Move the log that ASPIRE prints to stderr, since stdout is for results."""
    handlers = logging.getLogger().handlers
    consoles = [h for h in handlers if type(h) is logging.StreamHandler]
    streams = [console.setStream(sys.stderr) for console in consoles]
    for console in consoles:
        console.addFilter(_is_relevant)
    try:
        yield
    finally:
        for console, stream in zip(consoles, streams, strict=True):
            console.removeFilter(_is_relevant)
            console.setStream(stream or sys.stderr)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Filter out ASPIRE's info messages, and messages on optics fields, which ASPIRE
    fills with zeros for images without CTF."""
    optics = record.getMessage().startswith("Optics field")
    trusted = not record.name.startswith("aspire.") or record.levelno > logging.INFO
    return trusted and not optics
