"""Phase 2 against numbers of the official code."""

import numpy as np
import pytest
import torch

from methods.baselines import METHODS
from methods.loops import learning_rate
from methods.method import train_classifier_epoch
from model.classifier import Classifier
from model.tuners import tune
from tests import recipe
from tests.helpers import DEVICE, golden
from utils.config import load_config
from utils.device import Amp


@pytest.mark.parametrize("full_batch, micro_batch", [(False, 0), (True, 0), (False, 3)])
@pytest.mark.parametrize("prefix", ["", "empty."])
def test_finetune(random_clip, prefix, full_batch, micro_batch):
    """Only the selected samples, or all with the others masked, or in pieces: the same steps. `empty.`: one has none."""
    g, meta = golden("finetune")
    D, n, n_test, K, B = meta["data_seed"], meta["n"], meta["n_test"], 10, meta["batch_size"]
    clean, noisy = recipe.labels(D, n, K, 0.35)
    test_labels, _ = recipe.labels(D + 1, n_test, K)
    both = recipe.images(D, n + n_test, 32, np.concatenate([clean, test_labels]))
    assert recipe.digest(both[:n]) == meta["digests"]["images"]
    images, labels = torch.from_numpy(both).to(DEVICE), torch.from_numpy(noisy).to(DEVICE)
    mask = torch.from_numpy(g[f"{prefix}clean_mask"] > 0)

    clip, _ = random_clip(meta)
    tune(clip.visual, load_config(["--finetune", "true"]))
    model = Classifier(clip.visual, K, micro_batch=micro_batch).to(DEVICE)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(g["init.head_weight"]))
        model.head.bias.copy_(torch.from_numpy(g["init.head_bias"]))
    start = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=meta["lr"],
        momentum=meta["momentum"],
        weight_decay=meta["weight_decay"],
    )
    step = 0
    for e in range(meta["epochs"]):
        optimizer.param_groups[0]["lr"] = learning_rate(meta["lr"], e + 1, meta["epochs"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(g["lr"][e], rel=1e-5)
        for b, index in enumerate(torch.from_numpy(g["order"][e]).split(B)):
            kept = index if full_batch else index[mask[index]]
            result = train_classifier_epoch(
                model,
                [(images[kept], labels[kept], kept.to(DEVICE))],
                optimizer,
                METHODS["CE"](load_config([]), n, K),
                Amp(DEVICE),
                clean_mask=mask.to(DEVICE) if full_batch else None,
            )
            expected = np.nan_to_num(g[f"{prefix}loss"][e, b])  # the official loss of an empty batch is NaN, ours 0
            assert result["loss"] == pytest.approx(expected, abs=1e-5)
            np.testing.assert_allclose(
                model.head.weight.detach().cpu(), g[f"{prefix}head_weight_after_step"][step], atol=1e-5
            )
            here = g["loss_per_sample"][e, b * B : (b + 1) * B]
            if not prefix:
                np.testing.assert_allclose(result["losses"], here if full_batch else here[mask[index]], atol=1e-4)
            step += 1
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(model(images[n:]).cpu(), g[f"{prefix}test_logits"], atol=1e-4)
    if not prefix:
        final = {name.replace("backbone.", "visual."): p.detach().cpu() for name, p in model.named_parameters()}
        moved = {k for k, p in final.items() if not torch.equal(p, start[k.replace("visual.", "backbone.")])}
        assert moved == {k for k in final if "transformer.resblocks" in k or k.startswith("head")}
        last = max(int(k.split(".")[3]) for k in final if "resblocks" in k)
        blocks = "visual.transformer.resblocks"
        bias = final[f"{blocks}.{last}.attn.in_proj_bias"]
        np.testing.assert_allclose(bias, g["final.last_block_in_proj_bias"], atol=1e-5)
        np.testing.assert_allclose(final[f"{blocks}.0.ln_1.weight"], g["final.first_block_ln_1_weight"], atol=1e-5)
        for i, name in enumerate(meta["tuned_names"]):
            key = name if name in final else name.removeprefix("tuner.")
            delta = (final[key].double() - start[key.replace("visual.", "backbone.")].double()).norm().item()
            assert delta == pytest.approx(g["tuned_delta_l2"][i], abs=1e-5), name
            assert final[key].double().sum().item() == pytest.approx(g["tuned_sum"][i], abs=1e-4), name
            assert final[key].double().abs().sum().item() == pytest.approx(g["tuned_abs_sum"][i], abs=1e-4), name
