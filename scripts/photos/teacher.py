"""The teacher of the embedded CLIP of photographs: a small ResNet that learns the classes of every set."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from scripts.photos import processes
from scripts.photos.images import own_set_loss
from scripts.photos.processes import Progress, autocast, average_gradients


def convolution(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x):
        return x + self.layers(x)


class Teacher(nn.Module):
    """A small ResNet; a convolutional network learns small photographs many times faster than a ViT."""

    def __init__(self, num_classes, widths=(48, 128, 256)):
        super().__init__()
        a, b, c = widths
        self.to_map = nn.Sequential(
            convolution(3, a // 2),
            nn.MaxPool2d(2),
            convolution(a // 2, a),
            Residual(a),
            nn.MaxPool2d(2),
            convolution(a, b),
            Residual(b),
        )
        self.to_features = nn.Sequential(
            nn.MaxPool2d(2), convolution(b, c), Residual(c), nn.AdaptiveMaxPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(c, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        """Images (B, 3, 32, 32) -> feature map (B, 128, 8, 8) and logits (B, C)."""
        local = self.to_map(x.contiguous(memory_format=torch.channels_last))
        return local, self.head(self.to_features(local)).float()


def train_teacher(photos, args):
    """The trained teacher in eval mode, from teacher.pt as far as that goes."""
    path = Path(args.work) / "teacher.pt"
    torch.manual_seed(0)
    model = Teacher(len(photos.classes))
    steps = args.teacher_epochs * (len(photos.train) // args.teacher_batch_size)
    matrices, rest = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    optimizer = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": rest}], lr=0.2, momentum=0.9, nesterov=True
    )
    first = 0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    progress = Progress("teacher", first, steps, args.teacher_batch_size)
    for step in range(first, steps):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * min(done / 0.2, (1 - done) / 0.8) + 1e-4
        x, labels = photos.batch(step, args.teacher_batch_size)
        with autocast():
            loss = own_set_loss(model(x)[1], labels, photos.sizes)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model.parameters())
        optimizer.step()
        if (step + 1) % args.save_every == 0 or step + 1 == steps:
            processes.save_state(path, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
            progress.show(step + 1, loss.item())
    model.load_state_dict(torch.load(path, weights_only=True)["model"])  # one process's running statistics for all
    model.eval().requires_grad_(False)
    if first < steps:
        with autocast():
            progress.show(steps, 0.0, photos.held_back_accuracy(lambda x: model(x)[1]))
    return model


def prototypes(teacher, sizes, dim):
    """Where the captions of each class shall lie, (C, dim), of unit length: the teacher's weight vectors of the classes
    less the mean of their set, which no choice within the set depends on, in their principal directions."""
    weight = torch.cat([part - part.mean(0) for part in teacher.head.weight.split(sizes)])
    directions = torch.linalg.svd(weight, full_matrices=False)[2][:dim]
    return F.normalize(F.pad(weight @ directions.T, (0, dim - len(directions))), dim=-1)
