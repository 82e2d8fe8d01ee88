"""How commands behave: what they read, where they log, how they fail."""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aspire_mom.inversion import MomentInversion, Reconstruction


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


INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = click.Path(path_type=Path)
pixel_size_option = click.option(
    "--pixel-size",
    type=Positive(),
    help="Ångström per pixel, where the file does not say; must agree with it if it"
    " does.",
)
device_option = click.option(
    "--device", default="cpu", show_default=True, help="torch device: cpu, cuda, …"
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace results that exist."
)


class Command(click.Command):
    """
    A command with ASPIRE's log lines on stderr, since stdout is for results. Errors,
    save for bugs, become one sentence in terms of its options.
    """

    def invoke(self, ctx: click.Context):
        try:
            return self._run(ctx)
        except OSError as error:
            # Python's own have the reason and the file apart.
            reason = (error.strerror, error.filename) if error.filename else error.args
            message = ": ".join(str(part) for part in reason)
        except (ValueError, FloatingPointError) as error:
            message = str(error)
        raise click.ClickException(self._in_options(message))

    def _in_options(self, message: str) -> str:
        """A message of the library with options in place of its arguments."""
        for option in self.params:
            if isinstance(option, click.Option):
                flag, name = max(option.opts, key=len), option.name
                message = re.sub(rf"^{name}(?= is )", flag, message)
                message = re.sub(
                    rf"\b(pass (a \w+ )?){name}(=True)?\b", rf"\1{flag}", message
                )
        return message

    def _run(self, ctx: click.Context):
        _import_aspire()
        consoles = [
            handler
            for handler in logging.getLogger().handlers
            if type(handler) is logging.StreamHandler
        ]
        streams = [handler.setStream(sys.stderr) for handler in consoles]
        # ASPIRE tells of every source and file, for which a command has its own words.
        aspire = logging.getLogger("aspire")
        level = aspire.level
        aspire.setLevel(logging.WARNING)
        sources = logging.getLogger("aspire.source.image")
        sources.addFilter(_tells_something)
        try:
            # Not all programs write the marks in MRC headers that mrcfile warns about;
            # what makes a file unusable is an error here.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="mrcfile")
                return super().invoke(ctx)
        finally:
            sources.removeFilter(_tells_something)
            aspire.setLevel(level)
            for handler, stream in zip(consoles, streams, strict=True):
                handler.setStream(stream or sys.stderr)


def _tells_something(record: logging.LogRecord) -> bool:
    """False for ASPIRE's zeros in optics tables of images that have no CTF."""
    return not record.getMessage().startswith("Optics field")


class Group(click.Group):
    """Commands whose errors are one sentence and exit status 2."""

    command_class = Command

    def main(self, *args, standalone_mode: bool = True, **extra):
        try:
            return super().main(*args, standalone_mode=False, **extra)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self.name
            message = f"{error.format_message()} (see {command} --help)"
        except click.ClickException as error:
            message = error.format_message()
        except click.Abort:
            message = "interrupted"
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(2)


class LazyGroup(Group):
    """
    A group whose commands are imported when they are asked for.

    :param name: Name of the group, in its module too.
    :param module: Module that defines it.
    :param help: What `--help` says.
    """

    def __init__(self, name: str, module: str, help: str):
        super().__init__(name, help=help)
        self.module = module

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._group().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._group().get_command(ctx, cmd_name)

    def _group(self) -> click.Group:
        return getattr(import_module(self.module), self.name)


class LazyCommand(Command):
    """
    A command that is imported when it is asked for.

    :param name: Name of the command, in its module too.
    :param module: Module that defines it.
    :param help: What the `--help` of its group says.
    """

    def __init__(self, name: str, module: str, help: str):
        super().__init__(name, help=help)
        self.module = module

    def make_context(self, *args, **extra) -> click.Context:
        # The module may import ASPIRE, which must be told first where its logs go.
        _import_aspire()
        command = getattr(import_module(self.module), self.name)
        return command.make_context(*args, **extra)


def _import_aspire() -> None:
    """
    Import ASPIRE so that it leaves nothing in the working directory: by default it
    makes ./logs, and its `sys.excepthook` writes ./aspire.err.log. It reads another
    configuration folder instead of the user's, with the user's settings and, where
    those say nothing, logs in a temporary folder, Python's own excepthook, and progress
    bars on terminals only.
    """
    if "aspire" in sys.modules:
        return
    import confuse

    folder = Path(tempfile.mkdtemp(prefix="aspire-mom-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = confuse.Configuration("ASPIRE", read=False)
    config.read(defaults=False)
    config.add(
        {
            "logging": {
                "log_dir": str(folder),
                "log_exceptions": 0,
                "tqdm_disable": not sys.stderr.isatty(),
            }
        }
    )
    (folder / "config.yaml").write_text(config.dump())
    os.environ["ASPIREDIR"] = str(folder)
    import aspire  # noqa: F401


def check_device(name: str) -> str:
    """
    :param name: Name of a torch device.
    :return: The name.
    :raises ValueError: no such device here, or one that computes no values.
    """
    from aspire_mom.checks import checked_device

    checked_device(name)
    return name


def figures(report: dict) -> str:
    """
    :param report: A comparison's summary with the seconds it took.
    :return: What people look at first, one figure a line.
    """
    lines = [
        f"resolution at FSC {cutoff}: {report[f'resolution_{cutoff}_angstrom']:.2f} Å"
        f" ({report[f'resolution_{cutoff}_shells']:.1f} shells)"
        for cutoff in (0.5, 0.143)
    ]
    lines.append(f"correlation: {report['correlation']:.4f}")
    if "density_correlation" in report:
        lines.append(f"correlation of views: {report['density_correlation']:.3f}")
    lines.append(f"hand: {'mirrored' if report['mirrored'] else 'as it is'}")
    lines.append(f"time: {report['seconds']:.1f} s")
    return "\n".join(lines)


def estimated(inversion: MomentInversion, overwrite: bool) -> Reconstruction:
    """
    :param inversion: An inversion that keeps a checkpoint.
    :param overwrite: Start anew where the checkpoint is of something else.
    :return: Its result.
    :raises ValueError: The checkpoint is of something else, and is not to be replaced.
    :raises click.ClickException: It was interrupted.
    """
    from aspire_mom import processes
    from aspire_mom.files import ForeignCheckpoint

    try:
        try:
            return inversion.estimate()
        except ForeignCheckpoint as error:
            if not overwrite:
                raise ValueError(f"{error}, or pass --overwrite") from error
        processes.wait()  # all have read it
        Path(inversion.checkpoint).unlink(missing_ok=True)
        processes.wait()  # and none shall read it again
        return inversion.estimate()
    except KeyboardInterrupt as error:
        raise click.ClickException(
            f"interrupted; the same command goes on from {inversion.checkpoint}"
        ) from error
