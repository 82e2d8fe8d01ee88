"""A small pass over images, with sums that are quick to check."""

import threading

import numpy as np

from aspire_mom.moments.streaming import accumulate
from tests.moments.sources import noise_images

N, BATCH = 103, 10
IMAGES = noise_images(N, 6)


class Killed(Exception):
    """Stands for a SIGKILL."""


def image_slice(start, stop):
    return IMAGES[start:stop]


def sums_of(images, start):
    pixels = images.reshape(len(images), -1)
    return {
        "gram": pixels.T @ pixels,
        "transform": np.fft.fft2(images).sum(0).astype(np.complex64),
        "count": np.array(len(images)),
    }


def average(path=None, *, kill_before=None, images=IMAGES, read=None, **options):
    """
    :return: Sums, and the starts of the batches that were read.
    """
    starts = []

    def read_images(start, stop):
        starts.append(start)
        return images[start:stop]

    def computed(batch, start):
        if start == kill_before:
            raise Killed
        return sums_of(batch, start)

    options = {"every": 0, "checkpoint": path} | options
    batch_size = options.pop("batch_size", BATCH)
    sums = accumulate(len(images), batch_size, read or read_images, computed, **options)
    return sums, starts


def assert_same(sums, expected):
    assert len(sums) == len(expected)
    for group, of_expected in zip(sums, expected, strict=True):
        assert group.keys() == of_expected.keys()
        for name, value in group.items():
            assert value.dtype == of_expected[name].dtype
            np.testing.assert_array_equal(value, of_expected[name])


def no_thread_is_left():
    names = "read-images", "sum-images"
    return not any(t.name.startswith(names) for t in threading.enumerate())
