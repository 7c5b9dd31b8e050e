"""Detectors on the nearest neighbours of image features (N, D), unit length, float32. Functions on arrays."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from tqdm import tqdm

from utils.errors import UserError

EXACT_UP_TO = 100_000  # images; beyond that an index finds most, not all, of the nearest
VOTERS, CANDIDATES = 2000, 50_000  # of sampled_vote
BLOCK = 2**26  # cosines held at once, 256 MB
SIMIFEAT = 9  # neighbours of SimiFeat, besides the image itself
THIRD_ORDER_UP_TO = 150  # classes of which label triples are counted: K^3 numbers


@dataclass
class Neighbours:
    """The k nearest other images of each image: cosine (N, k), in descending order, and index (N, k).

    same, other (N,): cosine of the nearest other image with the same, and with another label; -1 where there is none.
    """

    cosine: np.ndarray
    index: np.ndarray
    same: np.ndarray
    other: np.ndarray


def find_neighbours(features: np.ndarray, labels: np.ndarray, k: int) -> Neighbours:
    """Neighbours of each image, itself left out. Exact up to EXACT_UP_TO images, in blocks, with less than 2 GB.

    k is cut to the number of other images. Beyond EXACT_UP_TO, faiss finds most of them (Malkov and Yashunin's HNSW graph);
    `same` and `other` are then looked up among the neighbours. Where there is none with the same label, `same` is found
    exactly within the class; where there is none with another, `other` is the cosine of the last neighbour, a bound.
    """
    k = min(k, len(features) - 1)
    if k < 1:
        raise UserError("detector: neighbours need two images or more.")
    return _exact(features, labels, k) if len(features) <= EXACT_UP_TO else _indexed(features, labels, k)


def _exact(features: np.ndarray, labels: np.ndarray, k: int) -> Neighbours:
    N, order = len(features), np.argsort(labels, kind="stable")  # images of one class lie side by side
    sorted_features, ends = features[order], np.searchsorted(labels[order], np.arange(labels.max() + 2))
    rows = max(1, min(N, BLOCK // N))
    buffer = np.empty((rows, N), dtype=np.float32)
    found = Neighbours(np.empty((N, k), np.float32), np.empty((N, k), np.int64), *np.full((2, N), -1, np.float32))
    for start in tqdm(range(0, N, rows), "neighbours", leave=False, disable=None):
        block = np.arange(start, min(start + rows, N))
        cosine = np.matmul(sorted_features[block], sorted_features.T, out=buffer[: len(block)])
        cosine[block - start, block] = -2  # not its own neighbour, and identical images still are
        for label in np.unique(labels[order[block]]):
            own, (first, last) = labels[order[block]] == label, ends[label : label + 2]
            parts = {"same": [cosine[own, first:last]], "other": [cosine[own, :first], cosine[own, last:]]}
            for name, columns in parts.items():
                nearest = np.max([c.max(1) for c in columns if c.shape[1]] or [np.full(own.sum(), -1)], axis=0)
                getattr(found, name)[order[block[own]]] = np.maximum(nearest, -1)
        values, index = torch.from_numpy(cosine).topk(k, dim=1)
        found.cosine[order[block]], found.index[order[block]] = values.numpy(), order[index.numpy()]
    return found


def _indexed(features: np.ndarray, labels: np.ndarray, k: int) -> Neighbours:
    try:
        import faiss
    except ImportError:
        raise UserError(
            f"detector: neighbours among more than {EXACT_UP_TO:,} images need faiss; pip install faiss-cpu."
        ) from None
    print(f"neighbours: {len(features):,} images, found by an HNSW index of faiss {faiss.__version__}; most, not all")
    index = faiss.IndexHNSWFlat(features.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = max(64, 2 * k)
    for part in tqdm(np.array_split(features, 100), "index", leave=False, disable=None):
        index.add(np.ascontiguousarray(part))
    cosine, found = index.search(np.ascontiguousarray(features), k + 1)
    short = np.flatnonzero((found < 0).any(1))  # the graph may have no way to them past many identical images
    if len(short):
        cosine[short], found[short] = faiss.knn(features[short], features, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    itself = found == np.arange(len(features))[:, None]
    itself[:, -1] |= ~itself.any(1)  # identical images may crowd it out: then the last one goes
    cosine, found = (x[~itself].reshape(len(features), k) for x in (cosine, found))
    agree = labels[found] == labels[:, None]
    same = np.where(agree, cosine, -2).max(1)
    for label in np.unique(labels[~agree.any(1)]):
        own = np.flatnonzero(labels == label)
        lonely = np.flatnonzero(~agree[own].any(1))  # positions within the class
        for rows in np.array_split(lonely, 1 + len(lonely) * len(own) // BLOCK):
            among = features[own[rows]] @ features[own].T
            among[np.arange(len(rows)), rows] = -1
            same[own[rows]] = among.max(1)
    other = np.where(agree.all(1), cosine[:, -1], np.where(~agree, cosine, -2).max(1))
    return Neighbours(cosine, found, same, other)


def label_shares(weights: np.ndarray, neighbour_labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Share (N, K) of each class among the neighbours, by their weights (N, k); uniform where all weights are 0."""
    N, k = neighbour_labels.shape
    shares = np.zeros((N, num_classes), dtype=np.float32)
    np.add.at(shares, (np.arange(N)[:, None], neighbour_labels), np.maximum(weights, 0))
    total = shares.sum(1)
    shares[total == 0] = 1
    shares /= np.where(total > 0, total, num_classes)[:, None]
    return shares


def weighted_knn(
    neighbours: Neighbours,
    labels: np.ndarray,
    num_classes: int,
    trusted: np.ndarray | None = None,
    temperature: float = 0.07,
) -> np.ndarray:
    """Shares (N, K) with weights exp(cos / temperature), as in the kNN classifier of Wu et al. (CVPR 2018).

    With `trusted` (N,) bool only those neighbours count.
    """
    weights = np.exp((neighbours.cosine - neighbours.cosine[:, :1]) / temperature)
    weights = weights if trusted is None else weights * trusted[neighbours.index]
    return label_shares(weights, labels[neighbours.index], num_classes)


def sampled_vote(
    features: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (M,) of VOTERS images at most, and what the k nearest of up to CANDIDATES others vote for, (M,)."""
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(len(labels))
    rows, others = order[:VOTERS], order[:CANDIDATES]
    k = min(k, len(others) - 1)
    if k < 1:
        return rows, labels[rows]
    votes = []
    for start in range(0, len(rows), 200):
        block = np.arange(start, min(start + 200, len(rows)))
        cosine = features[rows[block]] @ features[others].T
        cosine[block - start, block] = -2  # not itself
        values, index = torch.from_numpy(cosine).topk(k, dim=1)
        near = Neighbours(values.numpy(), others[index.numpy()], np.empty(0), np.empty(0))
        votes.append(weighted_knn(near, labels, num_classes).argmax(1))
    return rows, np.concatenate(votes)


def simifeat_shares(neighbours: Neighbours, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """SimiFeat's soft labels (N, K): cosine-weighted shares among the SIMIFEAT nearest neighbours and the image itself.

    The image's own weight continues the first two: 2 cos_1 - cos_2, as in the published code (Zhu et al., ICML 2022). The published
    commands detect 21 times and take the majority; here it is done once, on the un-augmented images.
    """
    first, second = neighbours.cosine[:, 0], neighbours.cosine[:, min(1, neighbours.cosine.shape[1] - 1)]
    weights = np.column_stack([2 * first - second, neighbours.cosine[:, :SIMIFEAT]])
    return label_shares(weights, np.column_stack([labels, labels[neighbours.index[:, :SIMIFEAT]]]), num_classes)


def simifeat_rank(shares: np.ndarray, labels: np.ndarray, keep_rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SimiFeat, ranked: score (N,), cosine between soft label and one-hot label, and mask (N,).

    In class k, the fraction keep_rates[k] with the highest scores is trusted. A rate of 0 or less counts as 0.05, one of 1 or more
    as 0.95, as in the published code.
    """
    score = shares[np.arange(len(labels)), labels] / np.linalg.norm(shares, axis=1)
    mask = np.zeros(len(labels), dtype=bool)
    for k in np.unique(labels):
        own = np.flatnonzero(labels == k)
        rate = 0.05 if keep_rates[k] <= 0 else 0.95 if keep_rates[k] >= 1 else keep_rates[k]
        kept = int(np.ceil(len(own) * rate))
        mask[own[np.argsort(-score[own], kind="stable")[:kept]]] = True
    return score, mask


def right_given_label(neighbours: Neighbours, labels: np.ndarray, num_classes: int, steps: int = 200) -> np.ndarray:
    """P(true label = k | given label = k), (K,), from the labels of each image and its two nearest.

    HOC (Zhu et al., ICML 2021): the three are taken to have one true label, so their given labels have the probabilities
    sum_k p_k T_ki T_kj T_kl; prior p and transition matrix T are fitted to the counts of labels, pairs and triples by
    Adam. Of more than THIRD_ORDER_UP_TO classes, only labels and pairs are counted.
    """
    K, N = num_classes, len(labels)
    near = labels[neighbours.index[:, [0, min(1, neighbours.index.shape[1] - 1)]]]
    orders = 3 if K <= THIRD_ORDER_UP_TO else 2
    codes = [labels, labels * K + near[:, 0], (labels * K + near[:, 0]) * K + near[:, 1]][:orders]
    counts = [torch.from_numpy(np.bincount(c, minlength=K**n) / N).float() for n, c in enumerate(codes, 1)]
    T_logits = (6 * torch.eye(K) - 1).requires_grad_()
    p_logits = torch.zeros(K, requires_grad=True)
    optimizer = torch.optim.Adam([T_logits, p_logits], lr=0.1)
    for _ in tqdm(range(steps), "label transitions", leave=False, disable=None):
        T, p = T_logits.softmax(1), p_logits.softmax(0)
        expected = [p @ T, ((p[:, None] * T).T @ T).flatten()]
        if orders == 3:
            pairs = (T[:, :, None] * T[:, None, :]).flatten(1)  # (K, K^2)
            expected.append(((p[:, None] * T).T @ pairs).flatten())
        loss = sum((a - b).norm() for a, b in zip(expected, counts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        T, p = T_logits.softmax(1), p_logits.softmax(0)
        return (T.diagonal() * p / counts[0].clamp(min=1 / N)).numpy()


def intra_extra_ratio(neighbours: Neighbours) -> np.ndarray:
    """SelfClean's score (N,) in [0, 1] (Groeger et al., 2024): d_other^2 / (d_same^2 + d_other^2), d = 1 - cos.

    Low where the nearest image of another label is closer than the nearest of its own. 0.5 where both distances are 0.
    """
    same, other = (np.maximum(1 - c.astype(np.float64), 0) ** 2 for c in (neighbours.same, neighbours.other))
    return np.where(same + other > 1e-12, other / np.maximum(same + other, 1e-12), 0.5)


def eigenvector_alignment(
    features: np.ndarray, labels: np.ndarray, num_classes: int, trusted: np.ndarray | None = None
) -> np.ndarray:
    """Squared cosine (N, K) with the first eigenvector of each class's Gram matrix (FINE, Kim et al., NeurIPS 2021).

    With `trusted` (N,) bool the matrix is of those images alone. 0 for a class without images.
    """
    counted = labels if trusted is None else np.where(trusted, labels, -1)
    D = features.shape[1]
    vectors = np.zeros((num_classes, D), dtype=np.float32)
    for k in tqdm(np.unique(counted[counted >= 0]), "eigenvectors", leave=False, disable=None):
        own = features[counted == k].astype(np.float64)
        vectors[k] = eigh(own.T @ own, subset_by_index=[D - 1, D - 1])[1][:, 0]
    cosine = features @ vectors.T
    return np.square(cosine, out=cosine)


def lemon_score(
    neighbours: Neighbours,
    features: np.ndarray,
    labels: np.ndarray,
    text_features: np.ndarray,
    beta: float = 5.0,
    gamma: float = 5.0,
    tau_1: float = 0.1,
    tau_2: float = 5.0,
) -> np.ndarray:
    """LEMoN's distance (N,), high where the label looks wrong (Zhang et al., ICML 2025): d_mm + beta s_n + gamma s_m.

    d = 1 - cos. d_mm is that of image and text of the label. s_n is the mean over the neighbours of
    d(their text, own text) exp(-tau_1 d(images)) exp(-tau_2 d_mm of the neighbour); s_m the mean over the images of the
    nearest texts of d(images) exp(-tau_1 d(texts)) exp(-tau_2 d_mm). Texts of one label are equal, so all other images
    of that label are nearest, and the mean is taken over all of them. The paper fits the four numbers to checked labels;
    the defaults, with 30 neighbours, are those of its variant without any (released code, notebooks/hparam_drop.ipynb).
    """
    own_text = text_features[labels]
    d_mm = 1 - (features * own_text).sum(1)  # (N,)
    trust = np.exp(-tau_2 * d_mm)
    text_distance = 1 - text_features @ text_features.T  # (K, K)
    weights = np.exp(-tau_1 * (1 - neighbours.cosine)) * trust[neighbours.index]
    s_n = (weights * text_distance[labels[:, None], labels[neighbours.index]]).mean(1)
    # sum over m of trust_m (1 - x.x_m) = sum of trust - x . (sum of trust_m x_m), of the image itself taken off
    count, sums = np.bincount(labels, minlength=len(text_features)), np.zeros((len(text_features), features.shape[1]))
    np.add.at(sums, labels, features * trust[:, None])
    totals = np.bincount(labels, trust, len(text_features))
    others = totals[labels] - trust - ((features * sums[labels]).sum(1) - trust)
    s_m = others / np.maximum(count[labels] - 1, 1)
    return d_mm + beta * s_n + gamma * s_m
