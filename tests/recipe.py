"""The random weights, images and labels that the numbers in tests/golden were computed from, bit for bit.

Every array is drawn by itself: PCG64 seeded with (seed, crc32 of the array's name), 53-bit uniforms, float64 arithmetic.
"""

import hashlib
import zlib

import numpy as np

SQRT12 = 12**0.5  # turns a uniform variable of width 1 into one of standard deviation 1


def uniform(seed, name, shape):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))).random(shape)


def centred(seed, name, shape, std, mean=0.0):
    """float32 uniforms around `mean`, rounded to what float16 holds."""
    return (mean + std * SQRT12 * (uniform(seed, name, shape) - 0.5)).astype("f4").astype("f2").astype("f4")


def clip_weights(
    seed,
    *,
    embed_dim,
    image_resolution,
    vision_layers,
    vision_width,
    vision_patch_size,
    context_length,
    vocab_size,
    transformer_width,
    transformer_layers,
):
    """A state dict in OpenAI's names."""
    weights = {"logit_scale": np.array(np.log(1 / 0.07), dtype="f4")}

    def put(name, shape, std, mean=0.0):
        weights[name] = centred(seed, name, shape, std, mean)

    def norm(name, width):
        put(f"{name}.weight", (width,), 0.05, 1.0)
        put(f"{name}.bias", (width,), 0.05)

    def blocks(prefix, w, layers):
        residual = w**-0.5 * (2 * layers) ** -0.5
        for i in range(layers):
            block = f"{prefix}transformer.resblocks.{i}"
            norm(f"{block}.ln_1", w)
            norm(f"{block}.ln_2", w)
            for name, shape, std in (
                ("attn.in_proj_", (3 * w, w), 1.5 * w**-0.5),
                ("attn.out_proj.", (w, w), 1.5 * residual),
                ("mlp.c_fc.", (4 * w, w), (2 * w) ** -0.5),
                ("mlp.c_proj.", (w, 4 * w), residual),
            ):
                put(f"{block}.{name}weight", shape, std)
                put(f"{block}.{name}bias", shape[:1], 0.05)

    v, t, p = vision_width, transformer_width, vision_patch_size
    put("visual.conv1.weight", (v, 3, p, p), (3 * p * p) ** -0.5)
    put("visual.class_embedding", (v,), v**-0.5)
    put("visual.positional_embedding", ((image_resolution // p) ** 2 + 1, v), v**-0.5)
    put("visual.proj", (v, embed_dim), v**-0.5)
    norm("visual.ln_pre", v)
    norm("visual.ln_post", v)
    blocks("visual.", v, vision_layers)
    put("token_embedding.weight", (vocab_size, t), 0.1)
    put("positional_embedding", (context_length, t), 0.05)
    put("text_projection", (t, embed_dim), t**-0.5)
    norm("ln_final", t)
    blocks("", t, transformer_layers)
    return weights


def images(seed, n, size, labels):
    """float32 (n, 3, size, size): fine noise, coarse 4x4 blocks, and the coarse pattern of each image's label, if any."""

    def blocks(name):
        return np.kron(uniform(seed, name, (3, 4, 4)) - 0.5, np.ones((size // 4, size // 4))) * SQRT12

    def one(i):
        x = 0.5 * ((uniform(seed, f"image.{i}", (3, size, size)) - 0.5) * SQRT12) + 0.7 * blocks(f"coarse.{i}")
        return (x if labels is None else x + blocks(f"pattern.{labels[i]}")).astype("f4")

    return np.stack([one(i) for i in range(n)])


def labels(seed, n, num_classes, noise_ratio=0.0):
    """(clean, noisy) int64: clean is balanced and shuffled, a noisy label is never the clean one."""
    clean = np.empty(n, dtype=np.int64)
    clean[np.argsort(uniform(seed, "labels.order", n), kind="stable")] = np.arange(n) % num_classes
    flip = uniform(seed, "labels.flip", n) < noise_ratio
    shift = 1 + (uniform(seed, "labels.shift", n) * (num_classes - 1)).astype(np.int64)
    return clean, np.where(flip, (clean + shift) % num_classes, clean)


def digest(arrays):
    """sha256 over names, shapes and little-endian bytes, in the order of the names."""
    arrays = arrays if isinstance(arrays, dict) else {"": arrays}
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        sha.update(name.encode() + str(array.shape).encode())
        sha.update(array.astype("<f4" if array.dtype.kind == "f" else "<i8").tobytes())
    return sha.hexdigest()
