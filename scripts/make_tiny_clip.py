"""Pre-train the embedded tiny CLIP (model/tiny-clip-digits) on pictures of digits with captions.

    python -m scripts.make_tiny_clip --mnist mnist.npz --fonts /usr/share/fonts

The digits of every font found and MNIST's training images are size-normalised, thresholded at 32x32 and averaged to
8x8 with 17 grey levels, the way the UCI digits were made, then enlarged like the data set `digits`. The loss is CLIP's,
with every pair of the same digit counted as a match. The recipe was chosen on MNIST's test images and by the look of
the digits, but for the 500 steps of both towers: with 3,500 the CLIP reads 97 % of the scikit-learn digits, and little
is left to detect or to learn. These digits are never trained on; the last line reads them zero-shot. Four minutes on
one core, OMP_NUM_THREADS=1.

The fonts of the embedded weights are those of Debian's packages fonts-{breip, cantarell, comic-neue, croscore,
crosextra-caladea, crosextra-carlito, dancingscript, dejavu, ebgaramond, ecolier-court, ecolier-lignes-court,
freefont-ttf, hack, humor-sans, inconsolata, junction, lato, league-spartan, liberation, linuxlibertine, noto-core,
open-sans, quicksand, roboto-unhinted, sawarabi-gothic, urw-base35}.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from dataloader.digits import enlarge_digits, load_digits_8x8
from dataloader.transforms import normalise
from model.blocks import speed_up
from model.clip import load_clip, token_table
from model.prompts import encode_prompts
from scripts.tiny_clip import TOKEN_SEED, contrastive_loss, save_compact
from utils.config import parse_flags
from utils.files import EMBEDDED
from utils.start import run_main

NAMES = "zero one two three four five six seven eight nine".split()
SOURCES = ("handwritten", "printed")  # MNIST, fonts
TEMPLATES = (
    "{n}.",
    "a {n}.",
    "a photo of a {n}.",
    "a photo of the digit {n}.",
    "the number {n}.",
    "the digit {n}",
    "a picture of the number {n}.",
    "a {s} {n}.",
    "a {s} digit {n}.",
    "a photo of a {s} {n}.",
    "an image of the {s} digit {n}.",
    "a small black and white picture of the {s} number {n}.",
    "this is a {n}.",
    "this is a {s} {n}.",
    "a blurry photo of a {n}.",
    "a scan of the {s} digit {n}.",
    "a tiny picture of a {n} that someone has written.",
    "one of many pictures of the digit {n}.",
    "the {s} figure {n}, seen from the front, in the middle of the picture.",
    "{d}.",
    "the digit {d}.",
    "a photo of the number {d}.",
    "a {s} {d}.",
)
PRINTED = 1 / 3  # share of printed digits
TEXT_BATCHES = 120  # of 256 pictures, drawn once for the text tower's training
CANVAS = 64  # pixels; glyphs are kept at this size, cropped to their ink


def crop_to_ink(grey):
    """Grey picture (H, W) in [0, 1] -> uint8 (CANVAS, CANVAS): the ink's box stretched as NIST's forms software does.

    That is, to 20 by 32 of 32 by 32 pixels, centred; thin figures keep their own width.
    """
    ys, xs = np.where(grey > 0.35)
    box = Image.fromarray((255 * grey[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]).astype(np.uint8))
    thin = box.width < 0.4 * box.height
    width = max(4, round(CANVAS * box.width / box.height)) if thin else CANVAS * 20 // 32
    out = Image.new("L", (CANVAS, CANVAS))
    out.paste(box.resize((width, CANVAS), Image.BICUBIC), ((CANVAS - width) // 2, 0))
    return np.asarray(out)


def european(grey, digit, rng):
    """A 1 with a flag or a 7 with a bar, as they are written where the UCI digits come from (Istanbul); MNIST has few."""
    page = Image.fromarray((255 * grey).astype(np.uint8))
    pen = ImageDraw.Draw(page)
    rows, cols = np.where(grey > 0.5)
    if digit == 1:
        x, y, length = cols[rows == rows.min()].mean(), rows.min(), rng.uniform(4, 9)
        pen.line([x, y, x - length, y + length * rng.uniform(0.4, 1.1)], fill=255, width=int(rng.integers(2, 4)))
    else:
        y = rows.min() + (rows.max() - rows.min()) * rng.uniform(0.45, 0.6)
        x = cols[np.abs(rows - y) < 1].mean()
        pen.line([x - rng.uniform(3, 6), y, x + rng.uniform(3, 6), y], fill=255, width=int(rng.integers(2, 4)))
    return np.asarray(page) / 255


def handwritten(images, labels):
    """uint8 (N, CANVAS, CANVAS) of MNIST pictures (N, 28, 28); half of the ones and sevens in European writing."""
    rng, out = np.random.default_rng(0), []
    for image, digit in zip(images / 255, labels):
        if digit in (1, 7) and rng.random() < 0.5:
            image = european(image, digit, rng)
        out.append(crop_to_ink(deslant(image)))
    return np.stack(out)


def deslant(grey):
    """Shear a handwritten digit upright: its slant is the covariance of x and y over the variance of y."""
    if not grey.any():
        raise ValueError("no ink")
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    weight = grey / grey.sum()
    y0, x0 = (weight * y).sum(), (weight * x).sum()
    slant = (weight * (x - x0) * (y - y0)).sum() / max((weight * (y - y0) ** 2).sum(), 1e-3)
    page = Image.fromarray((255 * grey).astype(np.uint8))
    return np.asarray(page.transform(page.size, Image.AFFINE, (1, slant, -slant * y0, 0, 1, 0), Image.BICUBIC)) / 255


def font_digits(folder):
    """uint8 pictures (F * 10, CANVAS, CANVAS) and labels of every font file whose digits look like most fonts' digits.

    Symbol and display fonts are left out: those whose ten glyphs correlate below 0.6 with the fonts' mean glyphs.
    """
    fonts = []
    for path in sorted(Path(folder).rglob("*.[to]tf")):
        try:
            font = ImageFont.truetype(str(path), 96)
            glyphs = []
            for digit in "0123456789":
                page = Image.new("L", (256, 256))
                ImageDraw.Draw(page).text((80, 60), digit, fill=255, font=font)
                glyphs.append(crop_to_ink(deslant(np.asarray(page) / 255)))
        except (OSError, ValueError):  # not a scalable font, or a glyph without ink
            continue
        fonts.append(np.stack(glyphs))
    fonts = np.stack(fonts)  # (F, 10, CANVAS, CANVAS)

    def centred(x):
        x = x.reshape(*x.shape[:-2], -1).astype(np.float32)
        x = x - x.mean(-1, keepdims=True)
        return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-6)

    alike = (centred(fonts) * centred(np.median(fonts, axis=0))).sum(-1).mean(1)  # (F,)
    kept = fonts[alike > 0.6]
    return kept.reshape(-1, CANVAS, CANVAS), np.tile(np.arange(10), len(kept))


def draw(pictures, generator=None):
    """uint8 (B, CANVAS, CANVAS) -> 8x8 grey levels 0..16 (B, 8, 8).

    With a generator, each picture is turned, sheared, stretched and shifted a little, and its strokes are made thinner
    or thicker.
    """
    x = torch.from_numpy(pictures).float()[:, None] / 255  # (B, 1, C, C)
    u = torch.zeros(len(x), 7) if generator is None else torch.rand(len(x), 7, generator=generator) * 2 - 1
    angle, shear, sx, sy = 0.12 * u[:, 0], 0.2 * u[:, 1], 1.0 + 0.12 * u[:, 2], 1.0 + 0.06 * u[:, 3]
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [torch.stack([sx * cos, shear - sin, 0.12 * u[:, 4]], 1), torch.stack([sin, sy * cos, 0.04 * u[:, 5]], 1)], 1
    )  # (B, 2, 3)
    x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
    x = F.avg_pool2d(x, 5, 1, 2)  # the blur lets the threshold set the width of the stroke
    threshold = 0.25 + 0.15 * u[:, 6, None, None, None]
    ink = (F.avg_pool2d(x, CANVAS // 32) > threshold).float()  # (B, 1, 32, 32) bitmaps
    return (16 * F.avg_pool2d(ink, 4))[:, 0].round().to(torch.uint8).numpy()


def pixels(levels, clip):
    images = torch.from_numpy(enlarge_digits(levels)).permute(0, 3, 1, 2)
    return normalise(images, clip.visual.image_mean, clip.visual.image_std)


@torch.no_grad()
def zero_shot_accuracy(clip, tokenizer, levels, labels):
    text = F.normalize(clip.encode_text(tokenizer([f"a photo of a {n}." for n in NAMES])), dim=-1)
    features = torch.cat([clip.encode_image(pixels(part, clip)) for part in np.array_split(levels, 10)])
    return (F.normalize(features, dim=-1) @ text.T).argmax(1).eq(torch.as_tensor(labels)).float().mean().item()


class Captions:
    """All captions as tokens, with the digit and the source that each names, and the token rows they use."""

    def __init__(self, tokenizer):
        texts = [t.format(n=n, d=d, s=s) for t in TEMPLATES for s in SOURCES for d, n in enumerate(NAMES)]
        tokens = tokenizer(texts)
        self.eos = tokens.argmax(1)
        self.used_ids, compact = tokens.unique(return_inverse=True)
        self.tokens = compact[:, : int(self.eos.max()) + 1]  # (C, L) rows of the compact table
        self.digit = torch.arange(len(texts)) % 10
        self.source = torch.arange(len(texts)) // 10 % 2
        self.says_source = torch.tensor(["{s}" in t for t in TEMPLATES for _ in range(20)])

    def two_templates(self, generator):
        """Indices (40,) of the captions of two random templates, both sources, all digits."""
        template = torch.randint(len(TEMPLATES), (2,), generator=generator)
        return (template[:, None] * 20 + torch.arange(20)).flatten()


def encode(clip, embeddings, eos):
    return F.normalize(encode_prompts(clip, embeddings, eos), dim=-1)


def matches(captions, rows, labels, source):
    """(B, C): the caption names the picture's digit, and its source if it names one."""
    right_source = ~captions.says_source[rows] | (source[:, None] == captions.source[rows])
    return (labels[:, None] == captions.digit[rows]) & right_source


class Pictures:
    """Draws labelled pictures in the look of the UCI digits."""

    def __init__(self, mnist, fonts):
        self.hand, self.hand_labels = handwritten(mnist["train_images"], mnist["train_labels"]), mnist["train_labels"]
        self.font, self.font_labels = font_digits(fonts)
        print(f"{len(self.hand)} handwritten and {len(self.font)} printed digits ({len(self.font) // 10} fonts)")

    def sample(self, n, generator):
        """8x8 grey levels, labels and source (0 MNIST, 1 font) of n pictures."""
        printed = int(n * PRINTED)
        h = torch.randint(len(self.hand), (n - printed,), generator=generator).numpy()
        f = torch.randint(len(self.font), (printed,), generator=generator).numpy()
        levels = draw(np.concatenate([self.hand[h], self.font[f]]), generator)
        labels = np.concatenate([self.hand_labels[h].astype(np.int64), self.font_labels[f]])
        return levels, torch.from_numpy(labels), torch.tensor([0] * len(h) + [1] * len(f))


def set_rate(optimizer, lr, step, steps, warmup):
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / steps))


def train_both_towers(clip, captions, pictures, args, evaluate):
    """Stage 1: contrastive pre-training. Of the token table only the rows that captions use are trained."""
    generator = torch.Generator().manual_seed(0)
    table = token_table(TOKEN_SEED, *clip.token_embedding.weight.shape)
    clip.token_embedding.requires_grad_(False).weight.copy_(table)
    used_rows = torch.nn.Parameter(table[captions.used_ids])
    trained = [p for p in clip.parameters() if p.requires_grad] + [used_rows]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98))
    for step in range(args.steps):
        set_rate(optimizer, args.lr, step, args.steps, 100)
        levels, labels, source = pictures.sample(args.batch_size, generator)
        rows = captions.two_templates(generator)
        image_features = F.normalize(clip.encode_image(pixels(levels, clip)), dim=-1)
        text_features = encode(clip, used_rows[captions.tokens[rows]], captions.eos[rows])
        match = matches(captions, rows, labels, source)
        loss = contrastive_loss(clip.logit_scale.exp(), image_features, text_features, match)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip.logit_scale.data.clamp_(max=np.log(100))
        if step % 100 == 99 or step == args.steps - 1:
            clip.token_embedding.weight[captions.used_ids] = used_rows.detach()
            print(f"step {step + 1}: loss {loss.item():.3f}, MNIST test zero-shot {100 * evaluate():.2f} %", flush=True)


def train_text_tower(clip, captions, tokenizer, pictures, args):
    """Stage 2, with the image tower frozen: names must be read behind any context, as learned prompts put them.

    Half of the text of each step are captions, half a name behind 1 to 16 random vectors of standard deviation 0.01 to
    0.3. Positions are made six times as large first, so that a small context vector does not rule the first LayerNorm.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = [pictures.sample(256, generator) for _ in range(TEXT_BATCHES)]
        features = torch.cat([F.normalize(clip.encode_image(pixels(levels, clip)), dim=-1) for levels, _, _ in drawn])
        labels, source = (torch.cat([d[i] for d in drawn]) for i in (1, 2))
    names = tokenizer([f"{n}." for n in NAMES] + [f"{d}." for d in range(10)])
    names_eos = names.argmax(1)
    names = torch.searchsorted(captions.used_ids, names[:, : int(names_eos.max()) + 1].contiguous())
    clip.positional_embedding.data.mul_(6)
    used_rows = torch.nn.Parameter(clip.token_embedding.weight[captions.used_ids].clone())
    trained = [
        *clip.transformer.parameters(),
        *clip.ln_final.parameters(),
        clip.text_projection,
        clip.positional_embedding,
    ]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([*trained, used_rows], lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(0)
    for step in range(args.text_steps):
        set_rate(optimizer, 1e-3, step, args.text_steps, 50)
        i = torch.randint(len(features), (256,), generator=generator)
        rows = captions.two_templates(generator)
        said = encode(clip, used_rows[captions.tokens[rows]], captions.eos[rows])
        n_ctx = int(torch.randint(1, 17, (1,), generator=generator))
        std = 0.01 * 30 ** float(torch.rand(1, generator=generator))
        which = int(torch.randint(2, (1,), generator=generator)) * 10 + torch.arange(10)  # words or numerals
        name, ctx = used_rows[names[which]], (std * torch.randn(n_ctx, used_rows.shape[1])).expand(10, -1, -1)
        behind = encode(clip, torch.cat([name[:, :1], ctx, name[:, 1:]], 1), names_eos[which] + n_ctx)
        match = torch.cat([matches(captions, rows, labels[i], source[i]), labels[i][:, None] == torch.arange(10)], 1)
        loss = contrastive_loss(clip.logit_scale.exp(), features[i], torch.cat([said, behind]), match)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clip.token_embedding.weight[captions.used_ids] = used_rows.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", required=True, help="npz with train_images, train_labels, test_images, test_labels")
    parser.add_argument("--fonts", default="/usr/share/fonts", help="folder searched for .ttf and .otf files")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--text_steps", type=int, default=900)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--out", default=str(EMBEDDED["tiny-clip-digits"]), help="folder with open_clip_config.json")
    args = parse_flags(parser)
    torch.manual_seed(0)
    mnist = np.load(args.mnist, allow_pickle=False)
    test_levels = draw(handwritten(mnist["test_images"], mnist["test_labels"]))
    test_labels = mnist["test_labels"].astype(np.int64)
    pictures = Pictures(mnist, args.fonts)
    clip = open_clip.create_model(f"local-dir:{args.out}", load_weights=False).eval()
    speed_up(clip.transformer)  # encode_prompts needs these blocks
    speed_up(clip.visual.transformer, class_token=True)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.out}")
    captions = Captions(tokenizer)

    train_both_towers(
        clip, captions, pictures, args, lambda: zero_shot_accuracy(clip, tokenizer, test_levels, test_labels)
    )
    save_compact(clip, args.out, captions.used_ids)
    clip, tokenizer = load_clip(args.out)  # stage 2 starts from the weights as they are stored
    train_text_tower(clip, captions, tokenizer, pictures, args)
    save_compact(clip, args.out, captions.used_ids)

    clip, tokenizer = load_clip(args.out)
    print(
        json.dumps(
            {
                "mnist_test_zero_shot": round(zero_shot_accuracy(clip, tokenizer, test_levels, test_labels), 4),
                "sklearn_digits_zero_shot": round(zero_shot_accuracy(clip, tokenizer, *load_digits_8x8()), 4),
            }
        )
    )


if __name__ == "__main__":
    run_main(main)
