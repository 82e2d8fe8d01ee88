"""Sphinx configuration: `sphinx-build -W docs docs/_build`."""

import logging
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import aspire  # noqa: F401

# Importing aspire disables the loggers there are, and with them Sphinx's warnings.
for logger in logging.root.manager.loggerDict.values():
    logger.disabled = False

sys.path.insert(0, str(Path(__file__).parent))

project = "aspire-mom"
author = "the aspire-mom developers"
version = release = installed_version("aspire-mom")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_gallery/*.ipynb"]
default_role = "code"
html_theme = "alabaster"
html_theme_options = {
    "description": "Ab initio cryo-EM volumes from image moments",
    "fixed_sidebar": True,
}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

sphinx_gallery_conf = {
    "examples_dirs": "../gallery",
    "gallery_dirs": "auto_gallery",
    "image_scrapers": ("gallery_figures.scrape",),
    "capture_repr": (),
    "abort_on_example_error": True,
}


def escape_mathematics(app, what, name, obj, options, lines):
    """Docstrings write |k| and f f*, which reST reads as marks of its own."""
    lines[:] = [re.sub(r"([|*])", r"\\\1", line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape_mathematics)
