"""Label-noise methods that train on every sample.

All share one semi-supervised epoch; a published method defines how to divide the training set and the loss of a batch.
Before each epoch, a method divides the samples, using the networks' output on un-augmented images (methods/division.py).
The epoch goes over batches of augmented views. Two networks step together, each with its own targets and MixUp, and are
evaluated as an ensemble with averaged logits; `networks: 1` trains a single one. They start from the same pre-trained
weights with different heads.

With several processes, each draws MixUp within its own share of a batch and takes what compares samples of a batch (the
uniformity term, the contrastive loss, ProMix's 90 %) over that share, so that a step is like that of one process, not equal.
"""

import math
import time
from collections import namedtuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from dataloader.loaders import draw_view
from methods.division import (
    absorb_and_relabel,
    class_balanced_order,
    class_small_loss,
    label_divergence,
    label_guessing,
    prototype_detection,
    uniform_selection,
)
from methods.loops import check_finite, progress, run_batch, watched
from methods.losses import batch_mean, cross_entropy, one_hot, soft_cross_entropy
from methods.method import Method
from methods.sample_selection import forget_rates, require_estimate, smallest
from methods.selection import gmm_clean_probability
from model.classifier import build_classifier, head_input
from model.ensemble import Networks
from utils.config import UserError
from utils.device import torch_generator
from utils.distributed import in_order, total, world_size

Outputs = namedtuple("Outputs", "logits features")  # (M, N, K) of M networks; (N, D) of the first, or None


def sharpen(p, temperature=0.5):
    """Sharpened probabilities (…, K): p^(1/T) / sum p^(1/T)."""
    p = p ** (1 / temperature)
    return p / p.sum(-1, keepdim=True)


def mixup(images, targets, beta, rng):
    """MixUp (Zhang et al., ICLR 2018) of a batch with a permutation of itself: lambda ~ Beta(beta, beta).

    images (B, 3, H, W), targets (B, K). The sample itself gets the larger weight, max(lambda, 1 - lambda).
    """
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    return blend(images, images[partner], targets, targets[partner], rng.beta(beta, beta))


def blend(images, others, targets, their_targets, share):
    """Weighted means of images and targets with those of others; the first get the weight max(share, 1 - share)."""
    share = max(share, 1 - share)
    return share * images + (1 - share) * others, share * targets + (1 - share) * their_targets


def mixmatch_targets(p, labels, weight, labelled):
    """Targets (M, B, K) of M networks from their probabilities p (M, B, K), averaged over the weak views.

    Labelled samples (M, B) bool: co-refinement, w y + (1 - w) p with the network's own p and weight w (M, B). Others:
    co-guessing, the mean of all networks' p. Both are sharpened (DivideMix, eq. 7 and algorithm 1).
    """
    given = one_hot(labels, p.shape[-1])
    refined = weight[..., None] * given + (1 - weight[..., None]) * p
    return sharpen(torch.where(labelled[..., None], refined, p.mean(0)))


def even_prediction_penalty(logits):
    """KL(uniform || mean prediction) of logits (B, K); 0 if all classes are predicted equally often."""
    if not len(logits):
        return logits.sum()
    return -(logits.softmax(1).mean(0) * logits.shape[1]).log().mean() / world_size()


def contrastive_loss(first, second, temperature=0.05):
    """NT-Xent (SimCLR, Chen et al., ICML 2020) of the projections (B, D) of two views."""
    if not len(first):
        return first.sum()
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(2 * len(first), device=z.device).roll(len(first))
    return F.cross_entropy(similarity, other) / world_size()


def ramp(epochs, length):
    """Linear ramp from 0 at the start to 1 after `length` epochs."""
    return min(max(epochs / max(length, 1e-9), 0.0), 1.0)


@torch.no_grad()
def network_outputs(model, loader, amp, features=False):
    """Outputs of Networks for the un-augmented images of a loader, in order, on the CPU."""
    model.eval()
    seen = []
    for images, _, index in progress(loader.eval(), "divide"):
        with amp():
            logits = torch.stack([net(images) for net in model.networks], 1).float()  # (B, M, K)
            rest = [head_input(model.networks[0], images).float()] if features else []
        seen.append((index, logits, *rest))
    logits, *rest = in_order(seen)
    return Outputs(logits.transpose(0, 1), rest[0] if rest else None)


def semi_supervised_epoch(model, batches, optimizer, step, amp, title="train"):
    """One epoch over batches (views, labels, index, samples) from Loader.views.

    step(batch, part) returns the loss of this process's share; part in [0, 1) is the fraction of the epoch completed.
    Returns `loss` (mean over the batches), `samples` and `seconds`. Raises NonFinite.
    """
    model.train()
    start, losses, samples = time.perf_counter(), [], 0
    bar = progress(batches, title)
    for number, batch in enumerate(bar):
        loss = step(batch, number / len(batches))
        amp.step(loss, optimizer)
        losses.append(loss.detach())
        samples += len(batch.samples)
        if watched(bar, number):
            bar.set_postfix(loss=f"{loss.item():.3f}")
    losses = total(torch.stack(losses)).cpu()
    check_finite(losses, title)
    return {
        "loss": losses.mean().item(),
        "samples": int(total(torch.tensor(samples))),
        "seconds": time.perf_counter() - start,
    }


class SemiSupervised(Method):
    """Base class: a warm-up on all given labels, a division before each epoch, and a loss per batch.

    pair: whether the paper trains two networks. weak, strong: number of views of each image in a batch, weak ones first.
    extra_head(width, num_classes): a second head of each network. features: whether the division uses image features.
    """

    selects, pair, weak, strong, extra_head, features = True, True, 2, 0, None, False

    def __init__(self, cfg, num_samples, num_classes):
        super().__init__(cfg, num_samples, num_classes)
        if cfg.is_coop:
            raise UserError(
                f"is_coop: {type(self).__name__} trains linear heads, which the text classifier does not have."
            )
        self.num_samples, self.num_classes = num_samples, num_classes
        self.count = cfg.networks or 1 + self.pair
        self.plan = {}  # per-sample tensors for the steps of an epoch, by name

    def build(self, cfg, data):
        built = [build_classifier(cfg, data, torch_generator(cfg.seed, m)) for m in range(self.count)]
        with torch.random.fork_rng(devices=[]):  # the same second heads whenever the run is started
            torch.manual_seed(torch_generator(cfg.seed, self.count).initial_seed())
            return Networks([net for net, _ in built], self.extra_head, self.num_classes), built[0][1]

    # --- defined by each method

    def divide(self, outputs, labels, epoch, rng):
        """Divide the samples: (mask (N,) bool of trusted labels, p_clean (N,)).

        Takes Outputs and the given labels (N,), on the CPU, and stores what the steps need in self.plan. `rng` is the numpy
        generator of this epoch.
        """
        raise NotImplementedError

    def step(self, run, batch, part, epoch, rng):
        """The loss of this process's share of a batch; `run` (a _Run) evaluates the networks."""
        raise NotImplementedError

    def order(self, labels, rng):
        """The samples visited in an epoch, in order; numpy."""
        return rng.permutation(self.num_samples)

    def is_warm(self, epoch):
        return self.stage(epoch)[0] <= self.cfg.warmup

    # --- the epoch

    def train_epoch(self, epoch, training):
        loader, rng = training.loader, np.random.default_rng([self.cfg.seed, epoch, 1])
        outputs = network_outputs(training.model, loader, training.amp, self.features)
        confidence, predicted = outputs.logits.mean(0).softmax(1).max(1)
        mask, p_clean = self.divide(outputs, loader.labels.cpu(), epoch, rng)
        self.plan = {name: value.to(loader.device) for name, value in self.plan.items()}

        warm, run = self.is_warm(epoch), _Run(training)
        take, views = (self.warm_up_step, [None]) if warm else (self.step, [None] * self.weak)
        views += [] if warm else [self.cfg.strong_view] * self.strong
        order = rng.permutation(self.num_samples) if warm else self.order(loader.labels.cpu().numpy(), rng)
        batches = loader.views(order, [draw_view(len(order), rng, policy) for policy in views])
        result = semi_supervised_epoch(
            training.parallel,
            batches,
            training.optimizer,
            lambda batch, part: take(run, batch, part, epoch, rng),
            training.amp,
            f"epoch {epoch}/{self.cfg.epochs}",
        )
        return result, {"mask": mask, "p_clean": p_clean.float(), "predicted": predicted, "confidence": confidence}

    def warm_up_step(self, run, batch, part, epoch, rng):
        """Cross-entropy with all given labels; for asymmetric noise, minus the entropy of the prediction (DivideMix, eq. 4)."""
        loss, everyone = 0, torch.ones_like(batch.labels, dtype=torch.bool)
        for logits, extra in run.train([batch.views[0]] * self.count):
            losses = cross_entropy(logits, batch.labels)
            if self.cfg.noise_mode.startswith("asym"):
                losses = losses + (logits.softmax(1) * logits.log_softmax(1)).sum(1)
            loss = loss + batch_mean(losses, everyone) + 0 * extra.sum()  # DDP needs a gradient for the extra head
        return loss


class _Run:
    """Evaluates the networks of a Training in its precision."""

    def __init__(self, training):
        self.training = training

    def train(self, images):
        """(logits (B, K), extra head's output) of each network, on its own images, for the loss."""
        with self.training.amp():
            return self.training.parallel(images)

    @torch.no_grad()
    def guess(self, views):
        """Logits (M, V, B, K) of every network for all views of a batch, without gradients."""
        with self.training.amp():
            logits = torch.stack([run_batch(net, torch.cat(views)) for net in self.training.model.networks]).float()
        return logits.unflatten(1, (len(views), len(views[0])))


class DivideMix(SemiSupervised):
    """DivideMix (Li, Socher and Hoi, ICLR 2020).

    Division, by the other network: w = P(lower mean) of a two-component mixture on the losses; labelled if w > 0.5.
    Targets from two weak views (mixmatch_targets) with T = 0.5. MixUp of all views with Beta(4, 4). Loss of a network:

        mean over labelled samples of CE + lambda_u ramp (mean over others of mean_k (p_k - t_k)^2) + KL(uniform || mean p)

    The ramp takes 16 epochs after the warm-up, as in the code, which trains for 300; a run of 10 with one of warm-up ends at
    9/16 of lambda_u. The paper's lambda_u is 25 (also 0, 50, 150, depending on noise and data set); the other constants are
    those of its code.

    Simplified: batches are drawn from the whole training set; the code pairs labelled with unlabelled batches.
    """

    lambda_u, beta, rampup, contrast = 25.0, 4.0, 16, 0.0

    def divide(self, outputs, labels, epoch, rng):
        seed = int(rng.integers(2**31))
        losses = [cross_entropy(logits, labels).numpy() for logits in outputs.logits]
        p_clean = torch.from_numpy(np.stack([gmm_clean_probability(row, seed) for row in losses])).float()
        self.plan = {"weight": p_clean.flip(0), "labelled": p_clean.flip(0) > 0.5}  # each divides for the other
        return p_clean.mean(0) > 0.5, p_clean.mean(0)

    def step(self, run, batch, part, epoch, rng):
        weight, labelled = (self.plan[name][:, batch.index] for name in ("weight", "labelled"))  # (M, B)
        p = run.guess(batch.views[: self.weak]).softmax(-1).mean(1)
        trained = batch.views[self.weak :] or batch.views
        mixed = [
            mixup(torch.cat(trained), torch.cat([target] * len(trained)), self.beta, rng)
            for target in mixmatch_targets(p, batch.labels, weight, labelled)
        ]
        plain = self.contrasted(trained, batch.samples)
        outs = run.train([torch.cat([images, *plain]) for images, _ in mixed])
        lambda_u = self.lambda_u if self.cfg.lambda_u < 0 else self.cfg.lambda_u
        lambda_u *= ramp(self.stage(epoch)[0] - 1 + part - self.cfg.warmup, self.rampup)
        loss = 0
        for (logits, extra), (images, target), known in zip(outs, mixed, labelled):
            logits, known = logits[: len(images)], known.repeat(len(trained))
            loss = loss + batch_mean(soft_cross_entropy(logits, target), known) + even_prediction_penalty(logits)
            loss = loss + lambda_u * batch_mean(((logits.softmax(1) - target) ** 2).mean(1), ~known) + 0 * extra.sum()
            if self.contrast:
                loss = loss + self.contrast * contrastive_loss(*extra[len(images) :].chunk(2))
        return loss

    def contrasted(self, views, samples):
        """The views of a batch that a contrastive loss compares, un-mixed; here none."""
        return []


class LongReMix(DivideMix):
    """LongReMix (Cordeiro et al., Pattern Recognition 2023): DivideMix in two stages of half the epochs each.

    In stage 1, samples are labelled if they were clean in each of the last 5 divisions, including those of the warm-up. The
    largest such set of the first network in the second half of the stage is the set of high-confidence samples. They keep
    w = 1 in stage 2, which starts again from the pre-trained networks and otherwise divides as DivideMix. The paper uses 5
    divisions and stages of 300 epochs. As published, an epoch of stage 2 has as many batches as the whole training set.
    """

    consecutive = 5

    def __init__(self, cfg, num_samples, num_classes):
        super().__init__(cfg, num_samples, num_classes)
        self.register_buffer("history", torch.ones(self.consecutive, self.count, num_samples, dtype=torch.bool))
        self.register_buffer("core", torch.zeros(num_samples, dtype=torch.bool))

    def build(self, cfg, data):
        model, pixels = super().build(cfg, data)
        self.start = {name: value.clone() for name, value in model.state_dict().items()}
        return model, pixels

    def stage(self, epoch):
        half = math.ceil(self.cfg.epochs / 2)
        return (epoch, half) if epoch <= half else (epoch - half, self.cfg.epochs - half)

    def train_epoch(self, epoch, training):
        if epoch > 1 and self.stage(epoch)[0] == 1:
            training.start_again(self.start)
        return super().train_epoch(epoch, training)

    def divide(self, outputs, labels, epoch, rng):
        super().divide(outputs, labels, epoch, rng)
        weight = self.plan["weight"].flip(0)  # as each network divides
        in_stage, length = self.stage(epoch)
        if in_stage == epoch:
            self.history.copy_(torch.cat([self.history[1:].cpu(), (weight > 0.5)[None]]))
            labelled = self.history.all(0).cpu()
            if 2 * epoch > length and labelled[0].sum() >= self.core.sum():
                self.core.copy_(labelled[0])
        else:
            weight[:, self.core.cpu()] = 1.0
            labelled = weight > 0.5
        self.plan = {"weight": weight.flip(0), "labelled": labelled.flip(0)}
        return labelled.float().mean(0) > 0.5, weight.mean(0)


class UNICON(DivideMix):
    """UNICON (Karim et al., CVPR 2022): uniform selection and a contrastive loss.

    Division by the mean prediction of the networks: the lowest Jensen-Shannon divergences d from the given label, equally
    many per class (methods.division.uniform_selection, d_mu 0.7, tau 5); w = 1 if d < 0.5, else 1 - d. Targets come from two
    weak views, as in DivideMix. DivideMix's loss with lambda_u 30 is applied to two mixed strong views (`strong_view`), plus
    0.025 NT-Xent (temperature 0.05) between the un-mixed strong views of unlabelled samples, after a projection head
    (width, width, 128). Constants: defaults of the released code.

    The divergence uses base 2, so that it reaches 1; the released code uses base e, with which no mean reaches d_mu.
    Simplified as DivideMix; the code also repeats the division between the epochs of the two networks.
    """

    strong, lambda_u, contrast = 2, 30.0, 0.025

    @staticmethod
    def extra_head(width, num_classes):
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))

    def divide(self, outputs, labels, epoch, rng):
        d = label_divergence(outputs.logits.softmax(-1).mean(0), labels)
        self.mask = uniform_selection(d.numpy(), labels.numpy(), self.num_classes)
        mask = torch.from_numpy(self.mask)
        rows = {"weight": torch.where(d < 0.5, 1.0, 1 - d), "labelled": mask}
        self.plan = {name: row.expand(self.count, -1) for name, row in rows.items()}
        return mask, 1 - d

    def contrasted(self, views, samples):
        unlabelled = torch.from_numpy(np.flatnonzero(~self.mask[samples])).to(views[0].device)
        return [view[unlabelled] for view in views]


class ProMix(SemiSupervised):
    """ProMix (Wang et al., IJCAI 2023), with one weak and one strong view.

    Selected are the ceil(rho N / K) smallest losses of each class (class-wise small loss, before the epoch) and samples with
    p_y > tau in their batch (matched high confidence). In the last 250 / 600 of the epochs, samples on which the networks
    agree with a confidence above tau are added with their guessed label, until 90 % of the batch is selected. The loss of
    selected samples, with logits + delta log pi, is

        CE(weak) + w (CE(strong) + CE(MixUp of the weak, Beta(4, 4)))

    where w ramps up over the first 1/12 of the epochs. A second linear head has the same loss and, in the first 1/6 of the
    epochs with a weight that ramps up to 0.1, learns sharpened debiased guesses (T = 0.5) for unselected samples; it shapes
    the features and is discarded. pi is the moving average (0.9999) of the mean prediction, separately for selected and
    other samples; guesses are softmax(logits - delta log pi). rho 0.5, tau 0.99 and delta (`debias`) 0.8 are the code's
    values for CIFAR-10; it uses tau 0.95 and delta 0.5 for CIFAR-100, and rho 0.7 for a noise of 0.2. Fractions of the
    epochs refer to its 600.

    Simplified: MixUp only, no FMix.
    """

    weak, strong, beta, share = 1, 1, 4.0, 0.9

    def __init__(self, cfg, num_samples, num_classes):
        super().__init__(cfg, num_samples, num_classes)
        self.register_buffer("bias", torch.full((2, self.count, num_classes), 1 / num_classes))  # others, selected

    @staticmethod
    def extra_head(width, num_classes):
        return nn.Linear(width, num_classes)

    def divide(self, outputs, labels, epoch, rng):
        losses = [cross_entropy(logits, labels).numpy() for logits in outputs.logits]
        chosen = [class_small_loss(row, labels.numpy(), self.num_classes, self.cfg.rho) for row in losses]
        self.plan = {"small": torch.from_numpy(np.stack(chosen))}
        p_clean = outputs.logits.softmax(-1)[:, torch.arange(len(labels)), labels]
        return (self.plan["small"] | (p_clean > self.cfg.tau)).all(0), p_clean.mean(0)

    def step(self, run, batch, part, epoch, rng):
        cfg, (weak, strong), done = self.cfg, batch.views, epoch - 1 + part
        logits = run.guess([weak])[:, 0]  # (M, B, K)
        p, log_bias = logits.softmax(-1), self.bias.log()
        given = one_hot(batch.labels, self.num_classes)
        selected = self.plan["small"][:, batch.index] | ((p * given).sum(-1) > cfg.tau)  # (M, B)
        guesses = one_hot((logits - cfg.debias * log_bias[1, :, None]).argmax(-1), self.num_classes)
        targets = torch.where(selected[..., None], given, guesses)
        soft = sharpen((logits - cfg.debias * log_bias[0, :, None]).softmax(-1))
        if epoch > cfg.epochs * (1 - 250 / 600):
            confidence, predicted = p.max(-1)
            agreed = (predicted == predicted[0]).all(0)
            selected = torch.stack(
                [s | label_guessing(s, confidence.amin(0), agreed, cfg.tau, self.share) for s in selected]
            )
        mixed = [self.mix_selected(weak, t, s, rng) for t, s in zip(targets, selected)]
        outs = run.train([torch.cat([weak, strong, images]) for images, _ in mixed])
        w, unselected_weight = ramp(done, cfg.epochs / 12), 0.1 * ramp(done, cfg.epochs / 6)
        if done >= cfg.epochs / 6:
            unselected_weight = 0.0
        loss = 0
        for m, heads in enumerate(outs):
            for head in heads:
                on_weak, on_strong, on_mixed = (head + cfg.debias * log_bias[1, m]).chunk(3)
                losses = soft_cross_entropy(on_weak, targets[m]) + w * soft_cross_entropy(on_strong, targets[m])
                losses = losses + w * soft_cross_entropy(on_mixed, mixed[m][1])
                loss = loss + batch_mean(losses, selected[m])
            on_weak, on_strong, _ = (heads[1] + cfg.debias * log_bias[0, m]).chunk(3)
            losses = soft_cross_entropy(on_weak, soft[m]) + w * soft_cross_entropy(on_strong, soft[m])
            loss = loss + unselected_weight * batch_mean(losses, ~selected[m])
        self.follow_bias(p, selected)
        return loss

    def mix_selected(self, images, targets, selected, rng):
        """MixUp in which every sample's partner is one of the selected (B,) bool, if there are any."""
        keys = torch.from_numpy(rng.random(len(images), dtype=np.float32)).to(images.device)
        order = torch.where(selected, keys, 2.0).argsort()  # the selected first, in random order
        turn = torch.arange(len(images), device=images.device) % selected.sum().clamp(min=1)
        return blend(images, images[order[turn]], targets, targets[order[turn]], rng.beta(self.beta, self.beta))

    def follow_bias(self, p, selected, momentum=0.9999):
        """Move the biases towards the mean predictions p (M, B, K) over the selected (M, B) bool and over the others."""
        parts = torch.stack([~selected, selected]).float()  # (2, M, B)
        sums, counts = total(torch.einsum("smb,mbk->smk", parts, p)), total(parts.sum(-1))[..., None]
        mean = torch.where(counts > 0, sums / counts.clamp(min=1), self.bias)
        self.bias.mul_(momentum).add_(mean, alpha=1 - momentum)


class CoTeaching(SemiSupervised):
    """Co-teaching (Han et al., NeurIPS 2018): in every batch, each network trains on the other's smallest losses.

    These are int((1 - rate) B) samples, with the rate as for small-loss: from 0 to noise_ratio over the warm-up. The recorded
    mask applies the same rule to the mean of the networks' losses over the whole training set. The accuracy is that of the
    ensemble; the paper reports the mean accuracy of the two networks. UserError where labels may be wrong, but noise_ratio
    is 0.
    """

    weak = 1

    def build(self, cfg, data):
        require_estimate(cfg, data)
        return super().build(cfg, data)

    def rate(self, epoch):
        cfg = self.cfg
        return forget_rates(cfg.noise_mode, cfg.noise_ratio, cfg.epochs, cfg.warmup)[epoch - 1]

    def is_warm(self, epoch):
        return False

    def divide(self, outputs, labels, epoch, rng):
        losses = torch.stack([cross_entropy(logits, labels) for logits in outputs.logits]).mean(0)
        order = losses.argsort(stable=True)[: int((1 - self.rate(epoch)) * len(losses))]
        return torch.zeros_like(losses, dtype=torch.bool).index_fill_(0, order, True), (-losses).exp()

    def step(self, run, batch, part, epoch, rng):
        losses = [cross_entropy(logits, batch.labels) for logits, _ in run.train(batch.views * self.count)]
        small = [smallest(row, self.rate(epoch)) for row in losses]
        return sum(batch_mean(row, other) for row, other in zip(losses, small[::-1]))


class RoLT(SemiSupervised):
    """RoLT, robust long-tailed learning under label noise (Wei et al., 2021, arXiv 2108.11569): one network.

    Labels are divided by the distance of their features to class centroids (methods.division.prototype_detection). After
    the warm-up, trusted samples are trained with their label, the others with the soft label

        0.4 y_net + 0.2 y_proto + 0.2 y + 0.2 / K

    where y_net and y_proto are the predictions of the network and of the prototypes, from logits averaged over the epochs
    (0.6 old average + 0.4 new, bias-corrected). Constants: the released code. The published warm-up is 80 of 200 epochs.
    """

    pair, weak, features, keep = False, 1, True, 0.6

    def __init__(self, cfg, num_samples, num_classes):
        super().__init__(cfg, num_samples, num_classes)
        self.register_buffer("averages", torch.zeros(2, num_samples, num_classes))  # logits of network and prototypes

    def divide(self, outputs, labels, epoch, rng):
        p_clean, prototypes = prototype_detection(outputs.features, labels, self.num_classes)
        now = torch.stack([outputs.logits.mean(0), prototypes.clamp(min=-1e4)]).to(self.averages.device)
        self.averages.mul_(self.keep).add_(now, alpha=1 - self.keep)  # bias correction would not change the argmax
        mask = torch.from_numpy(p_clean > 0.5)
        self.plan = {"targets": soft_labels(labels, mask, *self.averages.cpu().argmax(-1), self.num_classes)}
        return mask, torch.from_numpy(p_clean)

    def step(self, run, batch, part, epoch, rng):
        everyone, targets = torch.ones_like(batch.labels, dtype=torch.bool), self.plan["targets"][batch.index]
        outs = run.train(batch.views * self.count)
        return sum(batch_mean(soft_cross_entropy(logits, targets), everyone) for logits, _ in outs)


def soft_labels(labels, mask, network, prototypes, num_classes):
    """RoLT's targets (N, K): the label if `mask` (N,) bool is true, else a mixture of the label, the predictions of the
    network and of the prototypes, (N,) each, and the uniform distribution."""
    given, network, prototypes = (one_hot(x, num_classes) for x in (labels, network, prototypes))
    return torch.where(mask[:, None], given, 0.4 * network + 0.2 * prototypes + 0.2 * given + 0.2 / num_classes)


class MixFix(SemiSupervised):
    """MixFix, CLIPCleaner's training (Feng et al., ACM MM 2024): the network's predictions extend a clean mask.

    The first epoch trains on the samples of `mask`, later epochs also on those that absorb_and_relabel adds (theta_r,
    theta_r2). Classes are sampled evenly, with floor(N / batch_size) batches per epoch; one strong view (`strong_view`),
    MixUp with Beta(b, b), b = `mixup_beta`; cross-entropy; no warm-up.
    """

    pair, weak, strong, takes_mask = False, 0, 1, True

    def is_warm(self, epoch):
        return False

    def train_epoch(self, epoch, training):
        self.initial = torch.from_numpy(training.mask)
        return super().train_epoch(epoch, training)

    def divide(self, outputs, labels, epoch, rng):
        p = outputs.logits.softmax(-1).mean(0)
        thetas = (self.cfg.theta_r, self.cfg.theta_r2) if epoch > 1 else (torch.inf, torch.inf)
        fixed, self.selected = absorb_and_relabel(p, labels, self.initial, *thetas)
        self.plan, self.fixed = {"labels": fixed}, fixed.numpy()
        return self.selected & (fixed == labels), p.gather(1, labels[:, None])[:, 0]

    def order(self, labels, rng):
        batches = max(self.num_samples // self.cfg.batch_size, 1)
        length = min(batches * self.cfg.batch_size, self.num_samples)
        return class_balanced_order(self.fixed, self.selected.numpy(), length, rng)

    def step(self, run, batch, part, epoch, rng):
        targets = one_hot(self.plan["labels"][batch.index], self.num_classes)
        mixed = [mixup(batch.views[0], targets, self.cfg.mixup_beta, rng) for _ in range(self.count)]
        outs, everyone = run.train([images for images, _ in mixed]), torch.ones_like(batch.labels, dtype=torch.bool)
        return sum(
            batch_mean(soft_cross_entropy(logits, target), everyone) for (logits, _), (_, target) in zip(outs, mixed)
        )
