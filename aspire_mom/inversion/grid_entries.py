"""The entries of moments that grids are fitted to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aspire_mom.inversion.loss import relative_information
from aspire_mom.moments import Moments

# Error of the model that is added to standard errors: this share of the RMS of the
# entries of the first moment, of the second or of the third. Where noise hides it, this
# RMS counts as so much of the noise's at least.
MODEL_ERROR, LEAST_SIGNAL = 0.1, 0.1


class Entries(NamedTuple):
    """
    Entries E a[i] a[j] conj a[k] of moments, for some rows i and n pairs of rows (j,
    k). A row is one angular order on one ring; after all of these comes a row of ones,
    in place of factors that first and second moments do not have. Entries are in units
    of the RMS of their rings.

    :param i: Rows (n_i,).
    :param j: Rows (n,).
    :param k: Rows (n,).
    :param value: The moments' entries (n, n_i), complex.
    :param counts: How many entries of the full moment each of them stands for (n, n_i);
        0 leaves one out.
    :param errors: Their standard errors (n, n_i); 0 where they are not known.
    """

    i: np.ndarray
    j: np.ndarray
    k: np.ndarray
    value: np.ndarray
    counts: np.ndarray
    errors: np.ndarray

    def rows(self) -> np.ndarray:
        """:return: Rows i, j and k of each entry, (n n_i, 3)."""
        pairs = np.repeat(np.stack((self.j, self.k), 1), len(self.i), axis=0)
        return np.column_stack((np.tile(self.i, len(self.j)), pairs))


def first_and_second_entries(
    moments: Moments, orders: np.ndarray, rings: np.ndarray, rms: np.ndarray
) -> tuple[Entries, Entries]:
    """
    :param moments: In-plane averaged polar moments.
    :param orders: Angular orders (n_rows,) of the rows.
    :param rings: Their rings (n_rows,).
    :param rms: RMS (n_rings,) of the rings.
    :return: Entries of the first moment, and of the second: each pair of rows once.
        Those on which CTFs leave no information are left out.
    """
    known = [share > 0 for share in relative_information(moments)]
    zero, one = np.flatnonzero(orders == 0), np.array([len(orders)])
    error = moments.first_error
    first = _entries(
        (one, zero, one.repeat(len(zero))),
        moments.first[rings[zero]],
        None if error is None else error[rings[zero]],
        rms[rings[zero]],
        known[0][rings[zero]],
    )
    j, k = np.nonzero(np.triu(orders[:, None] == orders))
    at, error = (orders[j], rings[j], rings[k]), moments.second_error
    # Each stands for itself, its conjugate, and those of order -m.
    count = (1 + (j != k)) * (1 + (orders[j] > 0))
    second = _entries(
        (one, j, k),
        moments.second[at],
        None if error is None else error[at],
        rms[rings[j]] * rms[rings[k]],
        count * known[1][at],
    )
    return first, second


def third_entries(
    moments: Moments, orders: np.ndarray, rings: np.ndarray, rms: np.ndarray
) -> list[Entries]:
    """
    :param moments: In-plane averaged polar moments.
    :param orders: Angular orders (n_rows,) of the rows.
    :param rings: Their rings (n_rows,).
    :param rms: RMS (n_rings,) of the rings.
    :return: Entries of the third moment, E a[m1] a[m2] conj a[m1 + m2], by m1; none
        where there are no third moments.
    """
    basis, third = moments.third_basis, moments.third
    if basis is None or basis.ring_indices is None or third is None:
        return []
    rows, places, units = [], [], []
    for m in range(min(orders.max(), basis.max_order) + 1):
        kept = basis.ring_indices[m].tolist()
        of_order = np.flatnonzero(orders == m)
        rows.append(of_order[np.isin(rings[of_order], kept)])
        on_rings = rings[rows[-1]]
        places.append([kept.index(ring) for ring in on_rings])
        units.append(basis.vectors[m][on_rings, places[-1]].real * rms[on_rings])

    def blocks(values: np.ndarray, m1: int, m2: int) -> np.ndarray:
        at = np.ix_(*(places[m] for m in (m1, m2, m1 + m2)))
        block = basis.block(values, m1, m2)[at].transpose(1, 2, 0)
        return block.reshape(-1, len(rows[m1]))

    entries = []
    for m1 in range((len(rows) - 1) // 2 + 1):
        parts = []
        for m2 in range(m1, len(rows) - m1):
            j, k = rows[m2], rows[m1 + m2]
            if not (len(rows[m1]) and len(j) and len(k)):
                continue
            scale = np.outer(np.outer(units[m2], units[m1 + m2]), units[m1])
            error, known = scale * 0, np.ones_like(scale)
            if moments.third_error is not None:
                error = blocks(moments.third_error, m1, m2)
                known = error > 0  # 0 where CTFs let nothing through
            # Signs and permutations of the three orders, see `ThirdMomentBasis`.
            count = 12 / ((1 + (m1 == m2)) * (1 + (m1 == 0))) if m2 else 1.0
            pairs = np.repeat(j, len(k)), np.tile(k, len(j))
            value = blocks(third, m1, m2)
            parts.append((*pairs, value, error, scale, count * known))
        if parts:
            j, k, *values = map(np.concatenate, zip(*parts, strict=True))
            entries.append(_entries((rows[m1], j, k), *values))
    return entries


def _entries(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    value: np.ndarray,
    error: np.ndarray | None,
    scale: np.ndarray,
    count: np.ndarray,
) -> Entries:
    """Entries of these values and standard errors, in units of `scale`, each of which
    stands for `count`."""
    errors = 0 * scale if error is None else error / scale
    shape = len(rows[1]), len(rows[0])
    arrays = (a.reshape(shape) for a in (value / scale, count, errors))
    return Entries(*rows, *arrays)


def weights(group: list[Entries]) -> tuple[np.ndarray, float]:
    """
    Weigh entries M of counts n and standard errors e by

        w = n / (e² + (0.1 s)²) / norm,  s² = Σ n (|M|² - e²) / Σ n,

    where the norm makes Σ w |M|² = 1, and s is at least a tenth of the errors' RMS.

    :param group: All entries of one moment.
    :return: w (n_entries,), float64, 0 for all where there is no power; and what the
        standard errors add to a loss Σ w |M - M̂|² of the truth, Σ w e².
    """
    counts, squares, noise = (
        np.concatenate([np.ravel(part) for part in parts])
        for parts in zip(
            *((e.counts, np.abs(e.value) ** 2, e.errors**2) for e in group), strict=True
        )
    )
    total = max(counts.sum(), 1)
    power, of_noise = (counts * squares).sum() / total, (counts * noise).sum() / total
    signal = max(power - of_noise, LEAST_SIGNAL**2 * of_noise)
    found = counts / (noise + MODEL_ERROR**2 * signal) if signal > 0 else 0 * counts
    norm = (found * squares).sum()
    found = found / norm if norm > 0 else 0 * counts
    return found, float((found * noise).sum())
