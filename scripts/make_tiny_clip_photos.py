"""Pre-train the embedded tiny CLIP (model/tiny-clip-photos) on photographs of 32x32 pixels with captions.

    python scripts/prepare_photos.py …                               # once: images to arrays, see there
    python scripts/make_tiny_clip_photos.py --work photos             # train; the same command again goes on
    python scripts/make_tiny_clip_photos.py --evaluate FILE.npz …     # zero-shot accuracies of the weights there are

Three stages. A small ResNet, the teacher, learns the classes of every set. The text tower learns to bring captions, drawn
from classes.txt in the model's folder, to the teacher's weight vectors of the classes they describe. Then the image tower
learns to match images and captions, with the text tower locked, from the labels, from the teacher's view of each image,
and, patch by patch, from the teacher's 8x8 feature map. It sees a random half of the patches and, in the last part, all
of them. Its learning rate is constant and falls to zero in that last part, so that --epochs may be raised before; the state
at its beginning stays in before_decay.pt, from which a longer training can go on. Every 40th image is held back from
all stages and shows the progress.
"""

import argparse
import json
import math
import socket
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from prepare_photos import unpack_jpegs
from tiny_clip import TOKEN_SEED, contrastive_loss, save_compact

from dataloader.transforms import normalise, random_crop, random_flip, resize
from model import blocks
from model.clip import load_clip, token_table
from model.prompts import DualPrompts, encode_prompts, zero_shot_features
from utils.config import parse_flags
from utils.errors import UserError
from utils.files import write_text, write_whole
from utils.memory import keep_freed_memory
from utils.start import run_main

MODEL = Path(__file__).resolve().parents[1] / "model" / "tiny-clip-photos"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HELD_BACK = 40  # one of so many training images is never trained on
DECAY = 0.3  # share of the image tower's training in which the learning rate falls and all patches are seen
TEXT_STEPS = 100  # updates of the text tower
CAPTIONS_EVERY = 8  # steps of the image tower after which other captions are drawn
BROAD = 32  # of them of a broader term alone, "a photo of an animal."
MUON_LR, ADAM_LR = 0.02, 3e-3
MATCHED_BLOCK = 3  # its patch tokens learn the teacher's feature map
MEASURED = "<!-- written by scripts/make_tiny_clip_photos.py -->", "<!-- end of what it wrote -->"
TEMPLATES = (
    "{}.",
    "a {}.",
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "this is a {}.",
    "an image of a {}.",
    "a small photo of a {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a close-up photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a cropped photo of the {}.",
    "a good photo of a {}.",
    "one of many photos of a {}.",
    "there is a {} in the picture.",
    "a photo of my {}.",
    "a tiny picture of a {}, seen from the side.",
    "the {} in the middle of the picture.",
    "a {} outdoors.",
)


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


# ---- two processes of one thread each are faster on a CPU than one of two, and do not mind other work beside them


def average_gradients(parameters):
    """Average the gradients over all processes."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for g, mean in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(mean.view_as(g))


def save_state(path, **state):
    if dist.get_rank() == 0:
        with write_whole(path) as file:
            torch.save(state, file)


class Progress:
    """Prints where a stage is: steps, loss, images a second, and the time it will take at this speed."""

    def __init__(self, stage, first, steps, batch_size):
        self.stage, self.first, self.steps, self.batch_size, self.began = stage, first, steps, batch_size, time.time()

    def show(self, step, loss, accuracy=()):
        if dist.get_rank() == 0:
            a_step = (time.time() - self.began) / max(step - self.first, 1)
            held = " ".join(f"{100 * a:.1f}" for a in accuracy)
            print(
                f"{self.stage} {step}/{self.steps}: loss {loss:.3f}, {self.batch_size / a_step:.0f} images/s, "
                f"{a_step * (self.steps - step) / 60:.0f} min left{held and ', held back % ' + held}",
                flush=True,
            )


# ---- the teacher


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


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def own_set_loss(logits, labels, sizes):
    """Mean cross-entropy (scalar) of each image among the classes of its own set; logits (B, C)."""
    first = torch.tensor([0, *sizes]).cumsum(0)
    set_of = torch.bucketize(labels, first[1:], right=True)  # (B,)
    number = torch.arange(logits.shape[1])
    own = (number >= first[set_of, None]) & (number < first[set_of + 1, None])
    return F.cross_entropy(logits.masked_fill(~own, -1e4), labels)


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
            save_state(path, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
            progress.show(step + 1, loss.item())
    model.load_state_dict(torch.load(path, weights_only=True)["model"])  # one process's running statistics for all
    model.eval().requires_grad_(False)
    if first < steps:
        with autocast():
            progress.show(steps, 0.0, photos.held_back_accuracy(lambda x: model(x)[1]))
    return model


# ---- captions


def read_classes(path):
    """{"set/folder": (names, broader terms)} of a classes.txt."""
    table = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, names, broader = (part.strip() for part in line.split("|"))
            table[key] = names.split(", "), broader.split(", ")
    return table


class Captions:
    """Draws captions, as rows of a compact token table, and knows which images each of them describes.

    used_ids: the ids of the tokens that any caption can use. For each term (a name or a broader term): `match` (C, T)
    the classes it describes; `ignore` (C, T) the classes of which it may describe some: "poodle" and the class dog.
    """

    CONTEXT = -1  # stands in a caption where a random context vector goes

    def __init__(self, classes, table, tokenizer):
        self.names, self.broader = zip(*(table[c] for c in classes))
        self.terms = sorted({t for c in classes for part in table[c] for t in part})
        self.broad = sorted({t for part in self.broader for t in part})
        number = {t: i for i, t in enumerate(self.terms)}
        self.match, self.ignore = (torch.zeros(len(classes), len(self.terms), dtype=torch.bool) for _ in range(2))
        for c in range(len(classes)):
            self.match[c, [number[t] for t in (*self.names[c], *self.broader[c])]] = True
            kinds = [k for k in range(len(classes)) if set(self.names[c]) & set(self.broader[k])]
            self.ignore[c, [number[t] for k in kinds for t in self.names[k]]] = True
        self.number = number

        def ids(text):
            tokens = tokenizer([text])[0]
            return tokens[1 : int(tokens.argmax())].tolist()

        words = {t: ids(t) for t in self.terms}
        templates = [tuple(ids(part) for part in t.split("{}")) for t in TEMPLATES]
        kind_of = [ids(", a kind of"), ids(", a")]
        ends = [int(tokenizer([""])[0, 0]), int(tokenizer([""]).max())]
        every = [i for part in (*words.values(), *(p for t in templates for p in t), *kind_of, ends) for i in part]
        self.used_ids = torch.tensor(sorted(set(every)))
        row = {int(i): n for n, i in enumerate(self.used_ids)}

        def short(tokens):
            return [row[i] for i in tokens]

        self.words = {t: short(w) for t, w in words.items()}
        self.templates = [(short(a), short(b)) for a, b in templates]
        self.kind_of, (self.sos, self.eos) = [short(k) for k in kind_of], short(ends)
        self.stop = short(ids("."))

    def draw(self, seed):
        """Captions: one of each class, then BROAD of a broader term alone.

        Returns rows (T, L) of the compact table, CONTEXT where the random context goes, the places of their
        end-of-text tokens (T,), and the terms' numbers (T,). Two of five class captions have the random context.
        """
        rng = np.random.default_rng(seed)
        n_ctx = int(rng.integers(1, 17))
        captions, terms = [], []
        for names, broader in zip(self.names, self.broader):
            name = names[0] if rng.random() < 0.6 else names[rng.integers(len(names))]
            words = self.words[name]
            if rng.random() < 0.4:
                captions.append([self.CONTEXT] * n_ctx + words + self.stop)
            else:
                before, after = self.templates[3 if rng.random() < 0.25 else rng.integers(len(self.templates))]
                if rng.random() < 0.2:
                    words = words + self.kind_of[rng.integers(2)] + self.words[broader[rng.integers(len(broader))]]
                captions.append(before + words + after)
            terms.append(self.number[name])
        for name in rng.choice(self.broad, BROAD):
            before, after = self.templates[rng.integers(len(self.templates))]
            captions.append(before + self.words[name] + after)
            terms.append(self.number[name])
        eos = torch.tensor([len(c) + 1 for c in captions])
        rows = torch.full((len(captions), int(eos.max()) + 1), self.eos)
        for i, caption in enumerate(captions):
            rows[i, : len(caption) + 1] = torch.tensor([self.sos, *caption])
        return rows, eos, torch.tensor(terms)

    def embed(self, used_rows, rows, seed):
        """Token embeddings (T, L, width). The context vectors, the same ones for all captions as a learned context's
        are, have a standard deviation of 0.01 to 0.3."""
        generator = torch.Generator().manual_seed(seed)
        std = 0.01 * 30 ** float(torch.rand(1, generator=generator))
        context = std * torch.randn(rows.shape[1], used_rows.shape[1], generator=generator)
        return torch.where((rows == self.CONTEXT)[..., None], context, used_rows[rows.clamp(min=0)])


# ---- the CLIP


def attention(q, k, v, mask=None, causal=False):
    """blocks.attention written out: three times as fast in the backward pass for such short sequences on a CPU."""
    if mask is not None or causal:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        q, k, v_ = q.float(), k.float(), v.float()
        return (((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v_).to(v.dtype)


@torch.no_grad()
def initialise(clip, used_ids):
    """A start from which a ViT learns fast, in place.

    Sine positions and attention that begins at neighbours alike in position: q k^T and v-out near the identity and minus
    the identity (mimetic initialisation, Trockman and Kolter, ICML 2023). Text positions of a standard deviation of
    0.06, so that a small context vector does not rule the first LayerNorm.
    """
    visual, width = clip.visual, clip.visual.conv1.out_channels
    side = visual.grid_size[0]
    y, x = (g.flatten()[:, None] for g in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    angle = 10000 ** -(torch.arange(width // 4) / (width // 4))
    visual.positional_embedding[1:] = 0.5 * torch.cat(
        [(x * angle).sin(), (x * angle).cos(), (y * angle).sin(), (y * angle).cos()], 1
    )
    for block in visual.transformer.resblocks:
        q, k, v = block.attn.in_proj_weight.view(3, width, width)
        head = width // block.attn.num_heads
        for part in range(0, width, head):
            u, s, vt = torch.linalg.svd(0.7 * torch.randn(width, width) / head**0.5 + 0.7 * torch.eye(width))
            q[part : part + head], k[part : part + head] = (u * s.sqrt()).T[:head], (vt.T * s.sqrt()).T[:head]
        u, s, vt = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width))
        v.copy_(s.sqrt()[:, None] * vt)
        block.attn.out_proj.weight.copy_(u * s.sqrt())
    clip.positional_embedding.mul_(6)
    clip.token_embedding.weight.copy_(token_table(TOKEN_SEED, *clip.token_embedding.weight.shape))
    return clip.token_embedding.weight[used_ids].clone()


def look(visual, x, patches, generator):
    """Image features (B, D), not normalised, of a random number `patches` of the patches of each image; the patch
    tokens (B, patches, width) behind block MATCHED_BLOCK, and which patches they are (B, patches)."""
    h = visual.conv1(x).flatten(2).mT + visual.positional_embedding[1:]  # (B, 64, width)
    kept = torch.rand(h.shape[:2], generator=generator).argsort(1)[:, :patches]
    h = h.gather(1, kept[..., None].expand(-1, -1, h.shape[2]))
    start = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    h = visual.ln_pre(torch.cat([start, h.to(start.dtype)], 1))
    for number, block in enumerate(visual.transformer.resblocks):
        h = block(h)
        if number == MATCHED_BLOCK:
            tokens = h[:, 1:]
    return visual.ln_post(h[:, 0]) @ visual.proj, tokens, kept


def map_loss(tokens, kept, feature_map):
    """Mean squared distance of tokens (B, P, c) from the teacher's map (B, c, 8, 8) at the same patches, whose channels
    are brought to mean 0 and variance 1 at every place."""
    target = feature_map.float().flatten(2).mT  # (B, 64, c)
    target = F.layer_norm(target, target.shape[2:]).gather(1, kept[..., None].expand(-1, -1, target.shape[2]))
    return F.mse_loss(tokens.float(), target)


def teacher_loss(logits, labels, teacher_logits, sizes):
    """Cross-entropy with the teacher's distribution in each set; in the image's own set, half of it with its label."""
    loss = own_set_loss(logits, labels, sizes) / 2
    first = np.cumsum([0, *sizes])
    for mine, its, start, n in zip(logits.split(sizes, 1), teacher_logits.split(sizes, 1), first, sizes):
        weight = torch.where((labels >= start) & (labels < start + n), 0.5, 0.2)
        loss = loss - ((F.log_softmax(mine, 1) * its.softmax(1)).sum(1) * weight).mean()
    return loss


class Student(nn.Module):
    """The CLIP with what is trained beside it: the used rows of its token table and the projection to the teacher's map."""

    def __init__(self, captions, map_width, folder):
        super().__init__()
        torch.manual_seed(0)
        self.clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        self.used_rows = nn.Parameter(initialise(self.clip, captions.used_ids))
        self.clip.token_embedding.requires_grad_(False)
        self.to_map = nn.Linear(self.clip.visual.conv1.out_channels, map_width)
        blocks.speed_up(self.clip.transformer)
        blocks.speed_up(self.clip.visual.transformer, class_token=True)

    def read(self, captions, seed):
        """Text features (T, D) of drawn captions and their terms (T,)."""
        rows, eos, terms = captions.draw(seed)
        with autocast():
            features = encode_prompts(self.clip, captions.embed(self.used_rows, rows, seed), eos)
        return F.normalize(features.float(), dim=-1), terms

    def image_parameters(self):
        return [*self.clip.visual.parameters(), *self.to_map.parameters(), self.clip.logit_scale]

    def text_parameters(self):
        clip = self.clip
        return [*clip.transformer.parameters(), *clip.ln_final.parameters(), clip.text_projection,
                clip.positional_embedding, self.used_rows]  # fmt: skip

    def trained(self):
        return {k: v for k, v in self.state_dict().items() if k != "clip.token_embedding.weight"}


def optimizers(transformer, parameters):
    """Muon for the matrices of the transformer's blocks, AdamW for the other parameters."""
    matrices = [p for p in transformer.resblocks.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in ids]
    return [torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.02),
            torch.optim.AdamW(rest, lr=ADAM_LR, weight_decay=0.0, betas=(0.9, 0.98))]  # fmt: skip


def update(made, parameters, loss, rate):
    """One step of the optimizers `made` at `rate` times their highest learning rate."""
    for p in parameters:
        p.grad = None
    loss.backward()
    average_gradients(parameters)
    for optimizer, highest in zip(made, (MUON_LR, ADAM_LR)):
        optimizer.param_groups[0]["lr"] = rate * highest
        optimizer.step()


def seed_of(step):
    """A number for this step and this process."""
    return step * dist.get_world_size() + dist.get_rank()


def prototypes(teacher, sizes, dim):
    """Where the captions of each class shall lie, (C, dim), of unit length: the teacher's weight vectors of the classes
    less the mean of their set, which no choice within the set depends on, in their principal directions."""
    weight = torch.cat([part - part.mean(0) for part in teacher.head.weight.split(sizes)])
    directions = torch.linalg.svd(weight, full_matrices=False)[2][:dim]
    return F.normalize(F.pad(weight @ directions.T, (0, dim - len(directions))), dim=-1)


def train_text(student, captions, teacher, photos):
    """The text tower learns to bring captions to the prototypes of their classes: a minute of work."""
    target = prototypes(teacher, photos.sizes, student.clip.text_projection.shape[1])
    parameters = student.text_parameters()
    made = optimizers(student.clip.transformer, parameters)
    progress = Progress("text", 0, TEXT_STEPS, len(target) + BROAD)
    for step in range(TEXT_STEPS):
        text, terms = student.read(captions, seed_of(step))
        loss = contrastive_loss(20.0, target, text, captions.match[:, terms], captions.ignore[:, terms])
        update(made, parameters, loss, min(1, (TEXT_STEPS - step) / (TEXT_STEPS / 2)))
    progress.show(TEXT_STEPS, loss.item())


def image_loss(student, captions, said, teacher, photos, step, patches, args):
    """Loss of this process's share of a batch, of which a random number `patches` of the patches is seen.

    said: features (T, D) of captions, those of all classes first, and their terms (T,).
    """
    x, labels = photos.batch(step, args.batch_size)
    with autocast():
        with torch.no_grad():
            feature_map, teacher_logits = teacher(x)
        generator = torch.Generator().manual_seed(seed_of(step))
        features, tokens, kept = look(student.clip.visual, x, patches, generator)
        tokens = student.to_map(tokens)
    features, scale, (text, terms) = F.normalize(features.float(), dim=-1), student.clip.logit_scale.exp(), said
    match, ignore = (part[labels][:, terms] for part in (captions.match, captions.ignore))
    loss = teacher_loss(scale * features @ text[: len(photos.classes)].T, labels, teacher_logits, photos.sizes)
    loss = loss + contrastive_loss(scale, features, text, match, ignore) / 2
    return loss + map_loss(tokens, kept, feature_map)


def train_clip(photos, captions, teacher, args):
    """The trained Student, with averaged weights, and the number of updates; goes on from clip.pt."""
    path = Path(args.work) / "clip.pt"
    student = Student(captions, teacher.to_map[-2][0].out_channels, args.out)
    parameters = student.image_parameters()
    made = optimizers(student.clip.visual.transformer, parameters)
    steps, first = int(args.epochs * (len(photos.train) // args.batch_size)), 0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        student.load_state_dict(state["student"], strict=False)
        average, first = state["average"], state["step"]
        for optimizer, its in zip(made, state["optimizers"]):
            optimizer.load_state_dict(its)
    else:
        train_text(student, captions, teacher, photos)
        average = {k: v.clone() for k, v in student.trained().items()}
    progress = Progress("images", first, steps, args.batch_size)
    decays_at = int((1 - DECAY) * steps) // args.save_every * args.save_every
    for step in range(first, steps):
        if step == first or step % CAPTIONS_EVERY == 0:
            with torch.no_grad():
                said = student.read(captions, seed_of(step // CAPTIONS_EVERY))
        patches = student.clip.visual.grid_size[0] ** 2 // (2 if step < decays_at else 1)
        loss = image_loss(student, captions, said, teacher, photos, step, patches, args)
        update(made, parameters, loss, min(1, (step + 1) / 100, (steps - step) / (steps - decays_at)))
        with torch.no_grad():
            student.clip.logit_scale.clamp_(max=math.log(100))
            now = student.trained()
            torch._foreach_lerp_([average[k] for k in now], list(now.values()), 1 - min(0.998, step / (step + 10)))
        if (step + 1) % args.save_every == 0 or step + 1 == steps:
            for name in ("before_decay.pt", path.name) if step + 1 == decays_at else (path.name,):
                save_state(path.with_name(name), student=now, average=average, step=step + 1,
                           optimizers=[optimizer.state_dict() for optimizer in made])  # fmt: skip
            look_at_it = (step + 1) % (5 * args.save_every) == 0 or step + 1 == steps
            progress.show(step + 1, loss.item(), accuracy(student, average, photos, captions) if look_at_it else ())
    student.load_state_dict(average, strict=False)
    return student, steps


@torch.no_grad()
def accuracy(student, average, photos, captions):
    """Held-back zero-shot accuracy of each set with the averaged weights and "a photo of a {}."."""
    now = {k: v.clone() for k, v in student.trained().items()}
    student.load_state_dict(average, strict=False)
    before, after = captions.templates[TEMPLATES.index("a photo of a {}.")]
    captioned = [[captions.sos, *before, *captions.words[names[0]], *after, captions.eos] for names in captions.names]
    eos = torch.tensor([len(c) - 1 for c in captioned])
    rows = nn.utils.rnn.pad_sequence([torch.tensor(c) for c in captioned], batch_first=True)
    text = F.normalize(encode_prompts(student.clip, student.used_rows[rows], eos), dim=-1)
    with autocast():
        result = photos.held_back_accuracy(lambda x: F.normalize(student.clip.encode_image(x).float(), dim=-1) @ text.T)
    student.load_state_dict(now, strict=False)
    return result


# ---- the model card


def write_card(folder, photos, updates, batch_size, accuracies):
    """Write what the training measured between the MEASURED marks of folder/README.md, the model card.

    Without a card, or marks in it, the text is put at its end. accuracies: zero-shot, of each set's held-back images.
    """
    rows = []
    for name, first, n, accuracy in zip(photos.sets, np.cumsum([0, *photos.sizes]), photos.sizes, accuracies):
        trained, held_back = (
            int(((photos.labels[part] >= first) & (photos.labels[part] < first + n)).sum())
            for part in (photos.train, photos.held_back)
        )
        rows.append(f"| {name} | {n} | {trained:,} | {held_back:,} | {100 * accuracy:.1f} % |")
    text = "\n".join([
        MEASURED[0],
        f"{updates:,} updates of the image encoder with {batch_size} images each.",
        "",
        "| set | classes | images trained on | held back | zero-shot accuracy on those |",
        "|---|--:|--:|--:|--:|",
        *rows,
        MEASURED[1],
    ])  # fmt: skip
    path = Path(folder) / "README.md"
    before, begin, rest = (path.read_text(encoding="utf-8") if path.is_file() else "").partition(MEASURED[0])
    after = rest.partition(MEASURED[1])[2] if begin else ""
    write_text(path, before + text + (after or "\n"))


# ---- the command


def load_npz(path):
    """Images uint8 (N, H, W, 3) or a list of those, labels (N,) and class names of a file's test, else validation images."""
    data = np.load(path, allow_pickle=False)
    part = "test" if "test_labels" in data else "val"
    if f"{part}_jpeg" in data:
        images = [np.asarray(image) for image in unpack_jpegs(data[f"{part}_jpeg"], data[f"{part}_offsets"])]
    else:
        images = data[f"{part}_images"]
    return images, data[f"{part}_labels"], [name.split(",")[0] for name in data["class_names"]]


@torch.no_grad()
def evaluate(backbone, files):
    """Print the zero-shot accuracy on each file with "a photo of a {}.", and behind 16 random context vectors instead."""
    clip, tokenizer = load_clip(str(backbone))
    for path in files:
        images, labels, names = load_npz(path)
        x = torch.cat([resize(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], 32) for image in images])
        features = torch.cat(
            [F.normalize(clip.encode_image(part), dim=-1) for part in normalise(x, MEAN, STD).split(250)]
        )
        prompts = DualPrompts(clip, tokenizer, names, generator=torch.Generator().manual_seed(0))
        behind_context = encode_prompts(clip, prompts(prompts.pos_ctx), prompts.eos)
        text = zero_shot_features(clip, tokenizer, names), F.normalize(behind_context, dim=-1)
        result = [(features @ t.T).argmax(1).eq(torch.from_numpy(labels).long()).float().mean().item() for t in text]
        print(
            f"{Path(path).name}: {len(labels)} images, {len(names)} classes, zero-shot {100 * result[0]:.1f} %, "
            f"behind a random context {100 * result[1]:.1f} %",
            flush=True,
        )


def work(rank, args, port):
    """One process of the training."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=args.processes)
    torch.set_num_threads(1)
    keep_freed_memory()
    blocks.attention = attention
    photos = Photos(args.work, args.sets)
    captions = Captions(
        photos.classes, read_classes(Path(args.out) / "classes.txt"), open_clip.get_tokenizer(f"local-dir:{args.out}")
    )
    teacher = train_teacher(photos, args)
    student, updates = train_clip(photos, captions, teacher, args)
    if rank == 0:
        accuracies = accuracy(student, student.trained(), photos, captions)
        with torch.no_grad():
            student.clip.token_embedding.weight[captions.used_ids] = student.used_rows
        save_compact(student.clip, args.out, captions.used_ids)
        write_card(args.out, photos, updates, args.batch_size, accuracies)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", help="folder of the prepared arrays; the checkpoints go there too")
    parser.add_argument("--sets", nargs="+", default=["cifar10", "cifar100", "tiny"], help="names of the prepared sets")
    parser.add_argument(
        "--out",
        default=str(MODEL),
        help="folder with open_clip_config.json and classes.txt, for the weights and the card",
    )
    parser.add_argument("--teacher_epochs", type=int, default=3, help="passes of the teacher")
    parser.add_argument("--epochs", type=float, default=6, help="passes of the CLIP over the images")
    parser.add_argument("--teacher_batch_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--save_every", type=int, default=100, help="steps from one checkpoint to the next")
    parser.add_argument("--processes", type=int, default=2, help="each takes one core")
    parser.add_argument(
        "--evaluate",
        nargs="+",
        metavar="NPZ",
        help="do not train: print zero-shot accuracies of --out on test_images (or val_jpeg), *_labels, class_names",
    )
    args = parse_flags(parser)
    if args.evaluate:
        return evaluate(args.out, args.evaluate)
    if not args.work:
        raise UserError("--work: missing; expected the folder of the prepared arrays.")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(work, (args, port), nprocs=args.processes)
    load_clip(str(args.out))  # an error here if what was saved is no model


if __name__ == "__main__":
    run_main(main)
