"""Phase 1 against numbers of the official code (float32, small random CLIPs)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from methods.deft import Rules, train_detector_epoch
from methods.loops import evaluate, learning_rate
from methods.losses import cross_entropy, negative_prompt_loss, symmetric_cross_entropy
from methods.selection import clean_probability, precision_recall, select_clean
from model.classifier import Classifier
from model.clip import load_clip
from model.detector import Detector, with_prompts
from model.prompts import DualPrompts, encode_prompts
from model.tuners import add_visual_prompts
from tests import recipe
from tests.helpers import DEVICE, golden, write_clip
from utils.config import load_config
from utils.device import Amp, autocast

FORWARD = ["end", "middle", "front", "wide_end"]


def close(actual, expected, atol):
    np.testing.assert_allclose(torch.as_tensor(actual).detach().cpu().numpy(), expected, atol=atol, rtol=0)


def build_detector(random_clip, meta, arrays, prefix=""):
    clip, tokenizer = random_clip(meta)
    add_visual_prompts(clip.visual, meta["vpt_len"], range(meta["clip_config"]["vision_layers"]))
    detector = Detector(
        clip, DualPrompts(clip, tokenizer, meta["class_names"], meta["n_ctx"], meta["class_token_position"])
    )
    with torch.no_grad():
        detector.prompts.pos_ctx.copy_(torch.from_numpy(arrays[f"{prefix}pos_ctx"]))
        detector.prompts.neg_ctx.copy_(torch.from_numpy(arrays[f"{prefix}neg_ctx"]))
        for block, prompts in zip(clip.visual.transformer.resblocks, arrays[f"{prefix}vpt_prompts"], strict=True):
            block.prompts.copy_(torch.from_numpy(prompts))
    return detector.to(DEVICE)


@pytest.mark.parametrize("case", FORWARD)
def test_forward(random_clip, case):
    g, meta = golden(f"detector_forward_{case}")
    spec = meta["images"]
    clean, labels = recipe.labels(spec["seed"], spec["n"], 10, meta["labels"]["noise_ratio"])
    images = recipe.images(spec["seed"], spec["n"], spec["res"], clean)
    assert recipe.digest(images) == spec["digest"]
    np.testing.assert_array_equal(labels, g["labels"])
    images, labels, comple = (torch.from_numpy(x).to(DEVICE) for x in (images, labels, g["comple"]))
    detector = build_detector(random_clip, meta, g).eval()

    K = len(meta["class_names"])
    prompts = detector.prompts
    np.testing.assert_array_equal(prompts.eos.cpu(), g["eot_position"])
    for ctx, normalised, name in zip(
        (prompts.pos_ctx, prompts.neg_ctx),
        detector.text_features(prompts.pos_ctx, prompts.neg_ctx),
        ("text_pos", "text_neg"),
    ):
        close(encode_prompts(detector.clip, prompts(ctx), prompts.eos), g[name], 1e-5)
        close(normalised, g[f"{name}_norm"], 1e-5)
    close(detector.clip.encode_image(images), g["image_features_projected"], 1e-5)
    close(detector.image_features(images), g["image_features_norm"], 1e-5)

    logits_pos, logits_neg = detector(images)
    close(logits_pos, g["logits_pos"], 1e-4)
    close(logits_neg, g["logits_neg"], 1e-4)
    close(detector.classifier()(images), g["logits_sim"], 1e-4)
    p_yes = clean_probability(logits_pos, logits_neg)
    close(p_yes, g["p_yes"], 1e-5)
    close(1 - p_yes, g["p_no"], 1e-5)
    for agreement, name in ((False, "selection_synthetic"), (True, "selection_real")):
        selected, p_clean = select_clean(p_yes, labels, agreement)
        np.testing.assert_array_equal(selected.cpu(), g[name].astype(bool))
        close(p_clean, g["p_clean"], 1e-5)
    loss_neg = negative_prompt_loss(p_yes, comple, labels, 1.0).mean()
    for script, warmup_loss in (("synthetic", cross_entropy), ("real", symmetric_cross_entropy)):
        loss_cls = warmup_loss(logits_pos, labels).mean()
        close(loss_cls, g[f"loss_cls_{script}_warmup"][0], 1e-4)
        close(loss_neg, g[f"loss_neg_{script}_warmup"][0], 1e-4)
        close(loss_cls + loss_neg, g[f"loss_{script}_warmup"][0], 1e-4)

    classifier = Classifier(detector.clip.visual, K).to(DEVICE)  # visual prompts and a linear head on the same tower
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(g["head_weight"]))
        classifier.head.bias.copy_(torch.from_numpy(g["head_bias"]))
    close(classifier.backbone(images), g["image_features_pre"], 1e-5)
    close(classifier(images), g["logits_head"], 1e-4)


@pytest.mark.parametrize("script, saving", [("synthetic", False), ("real", False), ("synthetic", True)])
def test_training(random_clip, script, saving, monkeypatch):
    """`saving`: in micro-batches and with recomputed text activations, the same numbers."""
    g, meta = golden(f"detector_train_{script}")
    D, n, n_test, K, B = meta["data_seed"], meta["n"], meta["n_test"], 10, meta["batch_size"]
    patterns, _ = recipe.labels(D, n, K, meta["noise_ratio"])
    test_labels, _ = recipe.labels(D + 1, n_test, K)
    np.testing.assert_array_equal(patterns, g["image_pattern_labels"])
    both = recipe.images(D, n + n_test, 32, np.concatenate([patterns, test_labels]))
    assert recipe.digest(both[:n]) == meta["digests"]["images"]
    images, labels = torch.from_numpy(both).to(DEVICE), torch.from_numpy(g["labels_noisy"]).to(DEVICE)
    detector = build_detector(random_clip, meta, g, "init.")
    if saving:
        detector.micro_batch, detector.checkpoint_text = 3, True
        monkeypatch.setattr("model.detector.PROMPTS_AT_ONCE", 7)
    real = script == "real"
    optimizer = torch.optim.SGD(
        [p for p in detector.parameters() if p.requires_grad],
        lr=meta["lr"],
        momentum=meta["momentum"],
        weight_decay=meta["weight_decay"],
    )
    final_mask = np.zeros(n, dtype=bool)
    for e in range(meta["epochs"]):
        lr = learning_rate(meta["lr"], e + 1, meta["epochs"], "constant" if real else "cosine")
        assert lr == pytest.approx(g["lr"][e], rel=1e-5)
        optimizer.param_groups[0]["lr"] = lr
        hits = []
        for b, index in enumerate(torch.from_numpy(g["order"][e]).split(B)):
            result = train_detector_epoch(
                detector,
                [(images[index], labels[index], index.to(DEVICE))],
                torch.from_numpy(g["comple"][e]).to(DEVICE),
                optimizer,
                Rules(
                    warm=e + 1 <= meta["warmup"],
                    use_pseudo_labels=e + 1 >= (2 if real else meta["warmup"] + 1),
                    warmup_loss=symmetric_cross_entropy if real else cross_entropy,
                    require_agreement=real,
                ),
                Amp(DEVICE),
            )
            for key in ("loss", "loss_cls", "loss_neg"):
                assert result[key] == pytest.approx(g[key][e, b], abs=1e-4)
            here = slice(b * B, (b + 1) * B)
            close(result["p_clean"], g["p_clean"][e, here], 1e-4)
            np.testing.assert_array_equal(result["mask"], g["selected"][e, here].astype(bool))
            np.testing.assert_array_equal(result["predicted"], g["predicted"][e, here])
            final_mask[result["index"]] = result["mask"]
            hits.append((result["mask"].numpy(), g["labels_clean"][index] == g["labels_noisy"][index]))
        close(detector.prompts.pos_ctx, g["epoch.pos_ctx"][e], 1e-4)
        close(detector.prompts.neg_ctx, g["epoch.neg_ctx"][e], 1e-4)
        blocks = detector.clip.visual.transformer.resblocks
        close(torch.stack([block.prompts for block in blocks]), g["epoch.vpt_prompts"][e], 1e-4)
        detector.eval()
        with torch.no_grad():
            predict = detector.classifier()
        test_batch = [(images[n:], torch.from_numpy(test_labels).to(DEVICE), None)]
        assert evaluate(predict, test_batch, K)["acc"] == pytest.approx(g["test_accuracy"][e], abs=1e-3)
        if not real:  # the official figures are means over batches, divided by one batch too many
            means = [
                sum(precision_recall(*batch)[k] for batch in hits) / meta["official_num_iter"]
                for k in ("precision", "recall")
            ]
            np.testing.assert_allclose(
                means, g["returned"][e, 1:] / (100 if g["returned"][e, 1:].max() > 1 else 1), atol=1e-4
            )
    np.testing.assert_array_equal(final_mask, g["final_clean_mask"].astype(bool))
    close(predict(images[n:]), g["test_logits_sim"], 1e-4)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_learned_contexts_equal_real_words(random_clip, position):
    """A context set to the embeddings of real words reads as those words, in all three places of the name."""
    clip, tokenizer = random_clip(golden("detector_forward_wide_end")[1])
    words, names = ["an", "old", "blurry", "photo", "of"], ["cat", "maple tree", "kite (bird of prey)"]
    cfg = load_config(["--n_ctx", str(len(words)), "--class_token_position", position])
    detector = with_prompts(clip, tokenizer, cfg, names)
    ids = tokenizer([" ".join(words)])[0, 1 : 1 + len(words)]
    with torch.no_grad():
        detector.prompts.pos_ctx.copy_(clip.token_embedding(ids))
    text = {
        "end": "an old blurry photo of {}.",
        "middle": "an old {} blurry photo of.",
        "front": "{} an old blurry photo of.",
    }[position]
    if position != "end":  # `).` is one token behind the name, two where the name stands elsewhere
        names = names[:2]
    expected = F.normalize(clip.encode_text(tokenizer([text.format(name) for name in names])), dim=-1)
    torch.testing.assert_close(
        detector.text_features(detector.prompts.pos_ctx)[0][: len(names)], expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "seed, width, heads_text, K, n_ctx, vpt_len, csc",
    [(3, 64, 128, 3, 1, 1, False), (7, 192, 64, 17, 7, 9, False), (5, 64, 64, 4, 3, 2, True)],
)
def test_other_sizes(tmp_path, seed, width, heads_text, K, n_ctx, vpt_len, csc):
    """Other seeds, widths, class counts, context and prompt lengths; nothing selected leaves cls and its gradient 0."""
    cfg = dict(
        embed_dim=24,
        image_resolution=48,
        vision_layers=3,
        vision_width=width,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=heads_text,
        transformer_layers=1,
    )
    clip, tokenizer = load_clip(write_clip(tmp_path, recipe.clip_weights(seed, **cfg), cfg))
    generator = torch.Generator().manual_seed(seed)
    clip.visual.requires_grad_(False)
    add_visual_prompts(clip.visual, vpt_len, range(3), generator=generator)
    detector = Detector(
        clip, DualPrompts(clip, tokenizer, [f"class {i}" for i in range(K)], n_ctx, csc=csc, generator=generator)
    )
    images = torch.from_numpy(recipe.images(seed, 12, 48, np.arange(12) % K))
    with torch.no_grad():
        logits_pos, logits_neg = detector(images)
        assert logits_pos.shape == logits_neg.shape == (12, K)
        if (logits_pos > logits_neg).float().mean() > 0.5:  # most would be selected: let the contexts change places
            swap = detector.prompts.pos_ctx.clone()
            detector.prompts.pos_ctx.copy_(detector.prompts.neg_ctx)
            detector.prompts.neg_ctx.copy_(swap)
        p_yes = clean_probability(*detector(images))
    unselected = p_yes.min(1).values < 0.499
    images, labels = images[unselected], p_yes.argmin(1)[unselected]
    assert len(labels)
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    before = detector.prompts.pos_ctx.detach().clone()
    result = train_detector_epoch(
        detector,
        [(images, labels, torch.arange(len(labels)))],
        (labels + 1) % K,
        optimizer,
        Rules(warm=False, use_pseudo_labels=True),
        Amp("cpu"),
    )
    assert not result["mask"].any() and result["loss_cls"] == 0 and np.isfinite(result["loss"])
    torch.testing.assert_close(detector.prompts.pos_ctx, before * (1 - 0.1 * 0.5))  # weight decay alone
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert trained == {"prompts.pos_ctx", "prompts.neg_ctx"} | {
        f"clip.visual.transformer.resblocks.{i}.prompts" for i in range(3)
    }


def test_bf16_autocast_gives_nearly_the_same_logits(random_clip):
    g, meta = golden("detector_forward_wide_end")
    spec = meta["images"]
    images = torch.from_numpy(recipe.images(spec["seed"], spec["n"], spec["res"], recipe.labels(100 + 11, 12, 10)[0]))
    detector = build_detector(random_clip, meta, g).eval()
    with torch.no_grad(), autocast(DEVICE, "bf16"):
        logits_pos, logits_neg = detector(images.to(DEVICE))
        classifier = Classifier(detector.clip.visual, 5).to(DEVICE)
        assert classifier(images.to(DEVICE)).dtype == torch.float32  # a linear head, too
    # the encoders run in bf16, the logits do not: their differences decide
    assert logits_pos.dtype == detector.prompts.pos_ctx.dtype == torch.float32
    p_yes = clean_probability(logits_pos, logits_neg).cpu().numpy()
    assert 1e-6 < np.abs(p_yes - g["p_yes"]).max() < 0.02
