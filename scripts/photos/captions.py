"""Captions of the classes in classes.txt, drawn at random, for the embedded CLIP of photographs."""

import numpy as np
import torch

BROAD = 32  # captions of a broader term alone, "a photo of an animal."
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
