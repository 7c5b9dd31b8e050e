"""The embedded CLIP of photographs in training: the text tower for a minute, then the image tower."""

import math
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import nn

from model import blocks
from model.clip import token_table
from model.prompts import encode_prompts
from scripts.photos import processes
from scripts.photos.captions import BROAD, TEMPLATES
from scripts.photos.images import own_set_loss
from scripts.photos.processes import Progress, autocast, average_gradients, seed_of
from scripts.photos.teacher import prototypes
from scripts.tiny_clip import TOKEN_SEED, contrastive_loss

DECAY = 0.3  # share of the image tower's training in which the learning rate falls and all patches are seen
TEXT_STEPS = 100  # updates of the text tower
CAPTIONS_EVERY = 8  # steps of the image tower after which other captions are drawn
MUON_LR, ADAM_LR = 0.02, 3e-3
MATCHED_BLOCK = 3  # its patch tokens learn the teacher's feature map


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
                processes.save_state(path.with_name(name), student=now, average=average, step=step + 1,
                           optimizers=[optimizer.state_dict() for optimizer in made])  # fmt: skip
            look_at_it = (step + 1) % (5 * args.save_every) == 0 or step + 1 == steps
            progress.show(
                step + 1, loss.item(), zero_shot_accuracy(student, average, photos, captions) if look_at_it else ()
            )
    student.load_state_dict(average, strict=False)
    return student, steps


@torch.no_grad()
def zero_shot_accuracy(student, average, photos, captions):
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
