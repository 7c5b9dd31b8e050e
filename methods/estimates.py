"""How many labels are wrong, and how many of the first n suspects: from the scores alone, or from labels a person checked.

A detector's p_clean ranks labels; it is not the probability that a label is right, which is estimated here. A mixture on
logit(p_clean) gives z, the logit of a first P(wrong). Then P(wrong) = low + (high - low) sigmoid(a + b z), where a, b, low and
high are drawn, since the error of the mixture is not known; the draws give intervals. The labels are put into groups of similar
scores, whose fractions of wrong labels follow beta distributions around these P(wrong), with the weight of WEIGHT checked
labels. Checked labels update the fraction of their own group, and choose among the draws by their likelihood. So a sample
spread over the list can say that hardly any label is wrong, which the mixture cannot: it finds two groups in any scores.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy.special import betaln, expit, logit
from scipy.stats import beta

from dataloader.dataset import Dataset
from methods.decisions import RIGHT, UNDECIDED, WRONG, differing_copies
from methods.selection import two_groups

# chosen on the digits and on CIFAR-100 (results/estimates.md)
SHIFT, SLOPE = 0.5, 0.2  # standard deviations of a, in those of z, and of b; normal, around 0 and 1
# where labels are checked, fraction of the draws with far fewer wrong ones: -a is half-normal, of the scale FAR in those of z
FEW, FAR = 0.03, 2.5
SAMPLE = 100  # labels of a sample of all (`spread`)
# means of low and of 1 - high, which are exponential: wrong labels that look surely right, right ones that look surely wrong
LOW, HIGH = 0.01, 0.02
GROUPS, WEIGHT = 12, 2  # groups of equal size
PRIOR, DRAWS = 2000, 400  # draws of the prior, and how many of them are kept
LEVELS = 2000  # labels of like score share a level; up to LEVELS labels each has its own
ADVICE = "rough, far too high where few labels are wrong and sometimes too low: review the sample of all labels"


@dataclass(frozen=True)
class Estimate:
    """Of N labels: order (N,), the worst first, and P(wrong) (N,).

    draws (DRAWS, L) are P(wrong) of each level as it may be, level (N,) that of each label. checked (N,) bool: a person has
    checked the label, so that its P(wrong) is 0 or 1. used: how many checked labels the estimate of the others rests on.
    """

    order: np.ndarray
    p_wrong: np.ndarray
    level: np.ndarray
    draws: np.ndarray
    checked: np.ndarray
    used: int

    @property
    def source(self) -> str:
        """What the estimate rests on, in words."""
        return f"from {self.used:,} checked labels and the scores" if self.used else "from the scores alone"

    def wrong(self) -> tuple[float, float, float]:
        """(expected, low, high) number of wrong labels, with a 90 % interval."""
        return self.wrong_among(len(self.order))

    def wrong_among(self, n: int) -> tuple[float, float, float]:
        """(expected, low, high) number of wrong labels among the first n suspects, with a 90 % interval."""
        first = self.order[:n]
        open_, known = first[~self.checked[first]], self.p_wrong[first[self.checked[first]]].sum()
        count = np.bincount(self.level[open_], minlength=self.draws.shape[1])
        sums, spread = self.draws @ count, np.sqrt((self.draws * (1 - self.draws)) @ count)
        sums = (sums + spread * np.random.default_rng(0).normal(size=DRAWS)).clip(0, len(open_)) + known
        expected, (low, high) = self.p_wrong[first].sum(), np.quantile(sums, [0.05, 0.95])
        return float(expected), float(min(low, expected)), float(max(high, expected))

    def suspects_for(self, precision: float) -> int:
        """The largest n such that at least this fraction of the first n suspects is expected to be wrong; 0 if there is none."""
        reached = np.cumsum(self.p_wrong[self.order]) >= precision * np.arange(1, len(self.order) + 1)
        return int(np.flatnonzero(reached)[-1]) + 1 if reached.any() else 0

    def in_words(self, n: int) -> str:
        """What to expect of the first n suspects."""
        expected, low, high = self.wrong_among(n)
        return (
            f"the first {n:,}, of which {expected:,.0f} ({100 * expected / n:.0f} %) are expected to be wrong, "
            f"90 % interval {low:,.0f} to {high:,.0f}, {self.source}"
        )


def spread(p_clean: np.ndarray, n: int = SAMPLE) -> np.ndarray:
    """Indices (n,), or all, of labels at equal distances in the list, the lowest p_clean (N,) first: those worth checking."""
    order = np.argsort(p_clean, kind="stable")
    n = min(n, len(order))
    return order[
        ((np.arange(n) + 0.5) * len(order) / n).astype(int)
    ]  # the middle of each part; the ends would count too much


def estimate(p_clean: np.ndarray, checked: dict[int, bool] | None = None) -> Estimate:
    """The Estimate of p_clean (N,), and {index: whether the label is wrong} of labels that a person checked."""
    rng, N = np.random.default_rng(0), len(p_clean)
    p_clean = np.asarray(p_clean, dtype=np.float64)
    order, level = np.argsort(p_clean, kind="stable"), np.empty(N, dtype=np.int64)
    level[order] = np.arange(N) * min(N, LEVELS) // N
    z = -logit(two_groups(logit(p_clean.clip(0.005, 0.995)), 0).clip(1e-4, 1 - 1e-4))
    size = np.bincount(level)
    a, b = rng.normal(0, SHIFT, (PRIOR, 1)), rng.normal(1, SLOPE, (PRIOR, 1))
    few = int(FEW * PRIOR) if checked else 0
    a[:few] = -np.abs(rng.normal(0, FAR, (few, 1)))
    low, gap = (rng.exponential(mean, (PRIOR, 1)).clip(max=0.5) for mean in (LOW, HIGH))
    draws = low + (1 - gap - low) * expit(a * z.std() + np.maximum(b, 0) * np.bincount(level, z) / size)  # (PRIOR, L)
    start = np.unique(np.linspace(0, len(size), GROUPS, endpoint=False).astype(int))
    group = np.searchsorted(start, np.arange(len(size)), side="right") - 1  # (L,), of G
    index = np.array(sorted(checked or {}), dtype=np.int64)
    answer: np.ndarray = np.array([checked[i] for i in index] if checked else [], dtype=bool)
    wrong, right = (np.bincount(group[level[index[which]]], minlength=len(start)) for which in (answer, ~answer))
    seen = wrong + right > 0
    mean = (np.add.reduceat(draws * size, start, axis=1) / np.add.reduceat(size, start)).clip(1e-4, 1 - 1e-4)
    prior = WEIGHT * mean, WEIGHT * (1 - mean)
    # the power is 1 for a sample of the whole list; without it, labels checked in one part would say too much of the rest
    power = seen.mean() ** 2 * min(1, SAMPLE / max(len(index), 1))
    fit = power * (betaln(prior[0] + wrong, prior[1] + right) - betaln(*prior)).sum(1)
    weight = np.exp(fit - fit.max()).cumsum()
    kept = np.searchsorted(weight / weight[-1], (np.arange(DRAWS) + rng.random()) / DRAWS)
    now = np.where(seen, rng.beta(prior[0][kept] + wrong, prior[1][kept] + right), mean[kept])  # (DRAWS, G)
    draws = _with_mean(draws[kept], mean[kept][:, group], now[:, group])
    p_wrong, is_checked = draws.mean(0)[level], np.zeros(N, dtype=bool)
    p_wrong[index], is_checked[index] = answer, True
    return Estimate(order, p_wrong, level, draws, is_checked, len(index))


def of_run(arrays: dict[str, np.ndarray], data: Dataset) -> Estimate:
    """The Estimate of a run's arrays and Dataset (report.suspects.read_run), with the labels that a person has decided about.

    Those of identical images with different labels count only where the sample (`spread`) has them: at least one label of each
    group is wrong, whatever its score, so they are no sample of the others.
    """
    decision, p_clean = arrays["decision"], arrays["p_clean"]
    counts = decision != UNDECIDED
    counts[[i for group in differing_copies(data) for i in group]] = False
    sample = spread(p_clean)
    counts[sample] = decision[sample] != UNDECIDED
    found = estimate(p_clean, {int(i): bool(decision[i] == WRONG) for i in np.flatnonzero(counts)})
    known = decision != UNDECIDED
    found.p_wrong[known], found.checked[known] = decision[known] == WRONG, True
    return found


def _with_mean(p: np.ndarray, before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Probabilities p whose mean is `before`, lowered or raised in proportion so that it is `now`."""
    return np.where(now < before, p * now / before, 1 - (1 - p) * (1 - now) / (1 - before))


def of_sample(arrays: dict[str, np.ndarray]) -> tuple[int, int, float, float] | None:
    """(wrong, checked, low, high) of the labels at equal distances in the list (`spread`) that a person has decided about.

    low and high bound the share of wrong labels among all, with 90 % confidence (Clopper and Pearson, Biometrika 1934), whatever
    the scores are: those without a decision may all be right, or all wrong. None unless nine of ten have one.
    """
    decision = arrays["decision"][spread(arrays["p_clean"])]
    n, wrong, right = len(decision), int(np.sum(decision == WRONG)), int(np.sum(decision == RIGHT))
    if wrong + right < 0.9 * n:
        return None
    low = beta.ppf(0.05, wrong, n - wrong + 1) if wrong else 0.0
    high = beta.ppf(0.95, n - right + 1, right) if right else 1.0
    return wrong, wrong + right, float(low), float(high)


def limit_suspects(selection: dict[str, np.ndarray], cfg: SimpleNamespace) -> dict[str, np.ndarray]:
    """The selection with other suspects: the first `review_budget`, or as many as keep the expected precision at `target_precision`.

    Suspects are taken in the order of p_clean, the lowest first; if both settings are 0, they are the detector's own. Prints
    how many there are and what to expect of them.
    """
    review_budget, target_precision = cfg.review_budget, cfg.target_precision
    if not (review_budget or target_precision):
        return selection
    found = estimate(selection["p_clean"])
    n = found.suspects_for(target_precision) if target_precision else len(found.order)
    n = min(n, review_budget or n)
    print(f"suspects: {found.in_words(n)}" if n else f"suspects: none; {found.in_words(min(100, len(found.order)))}")
    mask = np.ones(len(found.order), dtype=bool)
    mask[found.order[:n]] = False
    return selection | {"mask": mask}


def calibration(
    p_wrong: np.ndarray, is_wrong: np.ndarray, bins: int = 10
) -> tuple[list[tuple[float, float, int]], float]:
    """[(mean P(wrong), part that is wrong, number)] of bins of equal width, and the expected calibration error.

    The error is the mean over all labels of |mean P(wrong) - part that is wrong| of their bin (Guo et al., ICML 2017).
    """
    of_label = np.minimum((p_wrong * bins).astype(int), bins - 1)
    rows = [
        (float(p_wrong[own].mean()), float(is_wrong[own].mean()), int(own.sum()))
        for own in (of_label == i for i in range(bins))
        if own.any()
    ]
    return rows, sum(n * abs(p - part) for p, part, n in rows) / len(p_wrong)
