"""
Commands and code in README.md, CONTRIBUTING.rst and docs/ work.

Blocks run as they stand, but for smaller sizes (SMALLER) and a short search: those of
Python in the order of their document, commands of `aspire-mom` each block in a folder
that holds small particles under the names that documents use. What takes long by nature
(LONG), several processes or a GPU is only parsed, by the command's own parser, as are
the commands of benchmarks/ and all commands in running text and in `--help`. Set-up and
tests (ELSEWHERE) are what `.ci/run` executes.
"""

import argparse
import re
import runpy
import shlex
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from torch.distributed.run import get_args_parser

import aspire_mom.cli.mra
from aspire_mom import Moments, SearchOptions, mra
from aspire_mom.cli.main import main
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.relion import ParticleSource, read_particles
from tests.cli.conftest import succeed
from tests.relion.files import write_stack
from tests.relion.test_cryosparc import ALIGNED, BLOB, CTF, save

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.rst"]
DOCUMENTS += [ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.rst"))]
L = 16
SMALLER = {"--images": "120", "--downsample": str(L), "--steps": "2"}
SMALLER_CODE = {"64": str(L), "100_000": "2000", "n_steps=300": "n_steps=10"}
LONG = {"demo", "train"}
ELSEWHERE = {"pip", "pytest", "ruff", "lint-imports", "pydoclint", "mypy"}
ELSEWHERE |= {"python3", "sphinx-build", "export", "eval"}

BLOCK = re.compile(
    r"^```(sh|python)\n([\s\S]*?)^```"
    r"|^\.\. code-block:: (sh|python)\n\n((?: {3}.*\n|\n)+)",
    re.MULTILINE,
)
INLINE = re.compile(r"`((?:aspire-mom |torchrun |python benchmarks/)[^`]+)`")


def blocks(document: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    found = BLOCK.findall(document.read_text())
    return [(a or c, b or re.sub("^   ", "", d, flags=re.M)) for a, b, c, d in found]


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in line.split("&&"))
    words = (shlex.split(part, comments=True) for part in parts)
    return [line for line in words if line]


def parse(words: list[str]) -> None:
    """Parse a command of `aspire-mom`, without looking for its files."""
    command, context = main, click.Context(main)
    while isinstance(command, click.Group) and words and words[0][0] != "-":
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, f"no command {name}"
        context = click.Context(command, context, name)
    values, _, _ = command.make_parser(context).parse_args(args=[*words])
    for parameter in command.params:
        if parameter.name in values and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, values[parameter.name])


class Parsed(Exception):
    """Raised in place of what follows the parser."""


def parse_script(words: list[str], monkeypatch) -> None:
    """Parse a script's command up to where it would begin its work."""
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def stop(self, *args, **options):
        _, unknown = parse_known_args(self, *args, **options)
        raise Parsed(unknown)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr("sys.argv", words)
        patch.syspath_prepend((ROOT / words[0]).parent)
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert parsed.value.args == ([],)


def check(words: list[str], monkeypatch, execute: bool = True) -> None:
    """Execute a command, or parse it."""
    program, *words = words
    program = Path(program).name
    if program == "torchrun":
        launched = get_args_parser().parse_args(words)
        words = [launched.training_script, *launched.training_script_args]
        check(words, monkeypatch, execute=False)
    elif program == "aspire-mom":
        parse(words)
        if execute and not LONG & {*words} and "paper" not in words:
            options = zip(["", *words], words, strict=False)
            words = [SMALLER.get(option, word) for option, word in options]
            succeed(*words, *(["--overwrite"] if "-o" in words else []))
    elif program == "python":
        if "parse_args" in (ROOT / words[0]).read_text():
            parse_script(words, monkeypatch)
    else:
        assert program in ELSEWHERE


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with all files that the documents' commands begin with."""
    folder = tmp_path_factory.mktemp("inputs")
    job = folder / "Extract/job012"
    job.mkdir(parents=True)
    gaussian_phantom(L, seed=1, pixel_size=2).save(str(folder / "truth.mrc"))
    options = ("--images", 120, "--snr", 1, "-o", folder / "particles.star")
    succeed("simulate", folder / "truth.mrc", *options)
    shutil.copy(folder / "particles.star", folder / "run_data.star")
    shutil.copy(folder / "particles.star", job)
    shutil.copy(folder / "particles_0_119.mrcs", job)
    succeed("moments", folder / "particles.star", "-o", folder / "moments.npz")
    save(folder / "J12/cryosparc_P1_J12_particles.cs", ALIGNED)
    save(folder / "J12/P1_J12_passthrough_particles.cs", BLOB, CTF)
    write_stack(folder / "J12/extract/a.mrc")
    write_stack(folder / "J12/imported/b.mrc", n=3)
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Short searches without pages of pictures, for commands and code."""
    monkeypatch.setattr("aspire_mom.report.write_report", lambda *_: None)
    inversion, paper = aspire_mom.MomentInversion, aspire_mom.paper_inversion
    search = SearchOptions(n_starts=1, n_steps=5, max_gaussians=4)

    def quick(*args, **options):
        return inversion(*args, **options | {"search": search})

    monkeypatch.setattr("aspire_mom.MomentInversion", quick)
    monkeypatch.setattr("aspire_mom.paper_inversion", partial(paper, n_epochs=1))
    refinement = partial(aspire_mom.Refinement, n_iterations=2)
    monkeypatch.setattr("aspire_mom.Refinement", refinement)
    monkeypatch.setattr("aspire_mom.inversion.search.STEPS_PER_LEVEL", 5)
    monkeypatch.setattr("aspire_mom.refinement.refinement.MAX_RINGS", 5)


def test_examples_in_help(monkeypatch):
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in main.list_commands(context)]
    for command in [main, *commands, *aspire_mom.cli.mra.mra.commands.values()]:
        text = command.help.replace("\\\n", " ")
        examples = re.findall("^ +((?:aspire-mom|torchrun) .+)$", text, re.MULTILINE)
        assert examples or isinstance(command, click.Group)
        for example in examples:
            check(shlex.split(example), monkeypatch, execute=False)


NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]


@pytest.mark.parametrize("name", NAMES)
def test_commands(name, inputs, tmp_path, monkeypatch):
    text = (ROOT / name).read_text()
    for words in map(shlex.split, INLINE.findall(text)):
        check([w for w in words if w != "…"], monkeypatch, execute=False)
    for i, (language, block) in enumerate(blocks(ROOT / name)):
        if language == "sh":
            folder = shutil.copytree(inputs, tmp_path / str(i))
            monkeypatch.chdir(folder)
            for words in commands(block):
                check(words, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_code(name, inputs, tmp_path, monkeypatch):
    folder = shutil.copytree(inputs, tmp_path / "code")
    monkeypatch.chdir(folder)
    names = {"source": ParticleSource(read_particles("particles.star"))}
    names["moments"] = Moments.load("moments.npz")
    if name == "docs/mra_networks.rst":
        rng = np.random.default_rng(0)
        observed = mra.observe(
            *(x[0] for x in mra.GaussianFamily(2).draw(1, rng)), 1000, 1.0, rng
        )
        names["moments"] = mra.estimate_moments(observed, sigma=1.0)
    for language, block in blocks(ROOT / name):
        if language == "python":
            for size, smaller in SMALLER_CODE.items():
                block = block.replace(size, smaller)
            exec(compile(block, name, "exec"), names)


def test_reference_lists_every_public_name():
    """Sphinx takes the names of a module from its `__all__`."""
    text = (ROOT / "docs/api.rst").read_text()
    rooms = {path.parent.name for path in (ROOT / "aspire_mom").glob("*/__init__.py")}
    for room in rooms - {"cli"}:
        assert f".. automodule:: aspire_mom.{room}\n   :members:\n" in text
        assert import_module(f"aspire_mom.{room}").__all__
    assert set(re.findall(r"``(\w+)``", text)) >= set(aspire_mom.__all__)


def test_completion(monkeypatch):
    monkeypatch.setenv("_ASPIRE_MOM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "aspire-mom recon")
    monkeypatch.setenv("COMP_CWORD", "1")
    result = CliRunner().invoke(main, prog_name="aspire-mom")
    assert result.output == "plain,reconstruct\n"


def test_one_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {aspire_mom.__version__}\n" in text
    assert aspire_mom.__version__ in succeed("--version").output
