"""The training images of the embedded CLIP of photographs, in batches; classes are compared within an image's own set."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from dataloader.transforms import normalise, random_crop, random_flip

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HELD_BACK = 40  # one of so many training images is never trained on


class Photos:
    """The prepared `sets` as one.

    images (N, 32, 32, 3) uint8; labels (N,) number the classes of all sets one after the other, `sizes` of each set;
    classes: "set/folder" of each. `train` and `held_back` are row numbers.
    """

    def __init__(self, folder, sets):
        images, labels, self.sets, self.classes, self.sizes = [], [], sets, [], []
        for name in sets:
            names = json.loads((Path(folder) / f"{name}_classes.json").read_text())
            images.append(np.load(Path(folder) / f"{name}_images.npy"))
            labels.append(np.load(Path(folder) / f"{name}_labels.npy") + len(self.classes))
            self.classes += [f"{name}/{n}" for n in names]
            self.sizes.append(len(names))
        self.images, self.labels = torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        self.held_back, self.train = order.split([len(order) // HELD_BACK, len(order) - len(order) // HELD_BACK])
        self.epoch = None

    def batch(self, step, size):
        """This process's share of batch number `step`: augmented images (B, 3, 32, 32), normalised, and labels (B,)."""
        epoch, i = divmod(step, len(self.train) // size)
        if self.epoch != epoch:
            self.epoch, shuffle = epoch, torch.randperm(len(self.train), generator=torch.Generator().manual_seed(epoch))
            self.order = self.train[shuffle]
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        rows = self.order[i * size : (i + 1) * size][mine]
        u = torch.rand(size, 5, generator=torch.Generator().manual_seed(step))[mine]
        x = random_flip(random_crop(self.images[rows].permute(0, 3, 1, 2), 32, 4, u[:, :2]), u[:, 2])
        contrast, brightness = 0.8 + 0.4 * u[:, 3], 0.6 * u[:, 4] - 0.3
        x = normalise(x, MEAN, STD) * contrast[:, None, None, None] + brightness[:, None, None, None]
        return x, self.labels[rows]

    @torch.no_grad()
    def held_back_accuracy(self, logits_of):
        """Share of held-back images, for each set, whose logits (B, C) are highest at their class among the set's own."""
        logits = torch.cat(
            [
                logits_of(normalise(self.images[rows].permute(0, 3, 1, 2), MEAN, STD))
                for rows in self.held_back.split(250)
            ]
        )
        return [right.float().mean().item() for right in own_set(logits, self.labels[self.held_back], self.sizes)]


def own_set(logits, labels, sizes):
    """For each set, whether each of its images (n,) has its highest logit, among the set's classes, at its label."""
    for part, first, n in zip(logits.split(sizes, 1), np.cumsum([0, *sizes]), sizes):
        of_set = (labels >= first) & (labels < first + n)
        yield part[of_set].argmax(1) == labels[of_set] - first


def own_set_loss(logits, labels, sizes):
    """Mean cross-entropy (scalar) of each image among the classes of its own set; logits (B, C)."""
    first = torch.tensor([0, *sizes]).cumsum(0)
    set_of = torch.bucketize(labels, first[1:], right=True)  # (B,)
    number = torch.arange(logits.shape[1])
    own = (number >= first[set_of, None]) & (number < first[set_of + 1, None])
    return F.cross_entropy(logits.masked_fill(~own, -1e4), labels)
