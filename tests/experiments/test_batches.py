from dataclasses import replace

import pytest
import torch

from tenfold.experiments.augmentation import random_crop_and_flip
from tenfold.experiments.batches import epoch_seed, evaluation_batches, steps_per_epoch, training_batches
from tenfold.experiments.data import DataSet, Split


def numbered(n: int = 21) -> DataSet:
    """Images of one pixel whose brightness and label are their number."""
    numbers = torch.arange(n)
    split = Split(numbers.to(torch.uint8).view(n, 1, 1, 1), numbers)
    return DataSet("numbered", split, split, mean=(0.0,), std=(1.0,), num_classes=n)


def order(seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    return torch.cat([labels for _, labels in training_batches(numbered(), 4, generator)]).tolist()


def test_an_epoch_shows_every_image_at_most_once_and_only_full_batches():
    batches = list(training_batches(numbered(), 4, torch.Generator().manual_seed(0)))
    assert len(batches) == steps_per_epoch(numbered(), 4) == 5
    assert all(len(labels) == 4 for _, labels in batches)
    labels = torch.cat([labels for _, labels in batches])
    assert len(set(labels.tolist())) == 20
    pixels = torch.cat([images for images, _ in batches]).flatten()
    torch.testing.assert_close(255 * pixels, labels.float())  # images keep their labels


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(1, 4)]
    assert orders == [order(seed, epoch) for seed in range(3) for epoch in range(1, 4)]
    assert len({tuple(one) for one in orders}) == 9


def test_epoch_seeds_do_not_collide():
    seeds = {epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_evaluation_is_complete_and_in_order():
    labels = torch.cat([labels for _, labels in evaluation_batches(numbered(), 8)])
    assert labels.tolist() == list(range(21))


def test_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size 22 is more than the 21 training images of numbered"):
        steps_per_epoch(numbered(), 22)


def test_augmentation_is_applied_to_training_only():
    def darken(images, generator):
        return torch.zeros_like(images)

    data = replace(numbered(), augment=darken)
    assert all(not images.any() for images, _ in training_batches(data, 4, torch.Generator()))
    assert any(images.any() for images, _ in evaluation_batches(data, 4))


@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (30, 1, 5, 7)])
def test_every_augmented_image_is_a_crop_of_the_framed_one_perhaps_mirrored(shape):
    images = torch.randint(1, 256, shape, dtype=torch.uint8)
    changed = random_crop_and_flip(images, torch.Generator().manual_seed(0), padding=2)
    assert changed.dtype == images.dtype
    height, width = shape[2:]
    found = set()
    for before, after in zip(images, changed, strict=True):
        framed = torch.nn.functional.pad(before, (2, 2, 2, 2))
        crops = {
            (dy, dx, mirrored): crop.flip(2) if mirrored else crop
            for dy in range(5)
            for dx in range(5)
            for mirrored in (False, True)
            for crop in [framed[:, dy : dy + height, dx : dx + width]]
        }
        matches = [key for key, crop in crops.items() if torch.equal(crop, after)]
        assert len(matches) == 1
        found.add(matches[0])
    assert {mirrored for _, _, mirrored in found} == {False, True}
    assert {dy for dy, _, _ in found} == set(range(5))


def test_augmentation_repeats_with_its_generator():
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    one, two, three = (random_crop_and_flip(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
