"""How far the starts of an inversion agree, and what to think of the model."""

from dataclasses import dataclass

from aspire.volume import Volume

from aspire_mom.evaluation.comparison import compare
from aspire_mom.moments import Moments
from aspire_mom.moments.report import FEW, informative_rings

# Other starts that the best one is compared with; each takes a few seconds at 63³.
MAX_OTHERS = 3
# Compact volumes without relation agree to about 3 shells once registered, by their
# overall shape, and refinement of images does not go on from models of 3 shells.
FAILED_BELOW = 4.0
# Agreement this close to the outermost ring in use could not be much better.
NEAR_RING = 1.0


@dataclass(frozen=True)
class Agreement:
    """
    Up to which shell the best start and the most similar of the next ones agree.

    :param shells: Shell at FSC 0.5, None if there is one start only.
    :param angstrom: The same in Ångström, None without a pixel size.
    :param verdict: How far to trust the model, and what limits it, in words.
    :param failed: Whether there is nothing to trust; None if nothing tells.
    """

    shells: float | None
    angstrom: float | None
    verdict: str
    failed: bool | None = None


def starts_agreement(
    volumes: Volume | None, n_rings: int, moments: Moments
) -> Agreement:
    """
    Compare the best start with the next three, whatever their hand. The closest one
    counts: a single start that finds the same shape confirms it, and starts that went
    astray say nothing. Starts that are wrong in the same way agree, too; and the best
    grid, which comes of averages of several starts, shares some of their errors.

    :param volumes: Stack of the volumes of the starts, best first, if they are known.
    :param n_rings: Number of rings in use; agreement beyond them does not count.
    :param moments: The moments the starts were fitted to.
    :return: The agreement.
    """
    size = moments.pixel_size
    if volumes is None or len(volumes.asnumpy()) < 2:
        text = "There is one start only, so nothing tells how far to trust the model."
        return Agreement(None, None, text)
    voxels = volumes.asnumpy()[: 1 + MAX_OTHERS]
    best, *others = (Volume(v, pixel_size=size) for v in voxels)
    shells = max(compare(other, best).resolution_shells(0.5) for other in others)
    shells = min(shells, float(n_rings))
    angstrom = size and moments.basis.L * size / shells
    failed = shells < FAILED_BELOW or 0 < moments.n_images < FEW
    verdict = _verdict(shells, angstrom, n_rings, moments)
    return Agreement(shells, angstrom, verdict, failed)


def _verdict(
    shells: float, angstrom: float | None, n_rings: int, moments: Moments
) -> str:
    last, signal = n_rings - 1, informative_rings(moments) - 1
    where = f"{shells:.1f} shells" + (f" ({angstrom:.0f} Å)" if angstrom else "")
    if 0 < moments.n_images < FEW:
        return (
            f"The best starts agree to {where}, but {moments.n_images} images are too"
            f" few for a model (at least {FEW} are needed): do not trust it."
        )
    if shells < FAILED_BELOW:
        return (
            f"The starts agree to {where} only: the search failed, or the moments do"
            " not single out a model. Do not trust it; take more images or starts."
        )
    head = f"The best starts agree to {where}."
    if shells < last - NEAR_RING:
        return (
            f"{head} The rings in use reach {last}, so the search or noise limits the"
            " model: more starts or more images may help."
        )
    if last < signal:
        return (
            f"{head} The rings in use limit the model: they end at {last}, and the"
            f" data have signal up to about {signal}."
        )
    if n_rings == moments.basis.n_rings:
        return f"{head} The basis limits the model: it ends at ring {last}."
    return f"{head} The moments limit it: they have no signal beyond ring {last}."
