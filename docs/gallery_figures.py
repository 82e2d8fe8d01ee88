"""Pictures for sphinx-gallery: the package's figures are made without pyplot."""

from weakref import WeakSet

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

shown = WeakSet()


def scrape(block, block_vars, gallery_conf):
    """Save the figures that a block has bound to names."""
    paths = []
    for value in block_vars["example_globals"].values():
        if isinstance(value, Figure) and value not in shown:
            shown.add(value)
            paths.append(next(block_vars["image_path_iterator"]))
            value.savefig(paths[-1], dpi=100)
    plt.close("all")
    return figure_rst(paths, gallery_conf["src_dir"])
