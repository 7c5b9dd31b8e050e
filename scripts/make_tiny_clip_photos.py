"""Pre-train the embedded tiny CLIP (model/tiny-clip-photos) on photographs of 32x32 pixels with captions.

    python -m scripts.prepare_photos …                               # once: images to arrays, see there
    python -m scripts.make_tiny_clip_photos --work photos             # train; the same command again goes on
    python -m scripts.make_tiny_clip_photos --evaluate FILE.npz …     # zero-shot accuracies of the weights there are

Three stages. A small ResNet, the teacher, learns the classes of every set. The text tower learns to bring captions, drawn
from classes.txt in the model's folder, to the teacher's weight vectors of the classes they describe. Then the image tower
learns to match images and captions, with the text tower locked, from the labels, from the teacher's view of each image,
and, patch by patch, from the teacher's 8x8 feature map. It sees a random half of the patches and, in the last part, all
of them. Its learning rate is constant and falls to zero in that last part, so that --epochs may be raised before; the state
at its beginning stays in before_decay.pt, from which a longer training can go on. Every 40th image is held back from
all stages and shows the progress.
"""

import argparse
import socket
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F

from dataloader.transforms import normalise, resize
from model import blocks
from model.clip import load_clip
from model.prompts import DualPrompts, encode_prompts, zero_shot_features
from scripts.photos.captions import Captions, read_classes
from scripts.photos.images import MEAN, STD, Photos
from scripts.photos.student import attention, train_clip, zero_shot_accuracy
from scripts.photos.teacher import train_teacher
from scripts.prepare_photos import unpack_jpegs
from scripts.tiny_clip import save_compact
from utils.config import parse_flags
from utils.errors import UserError
from utils.files import EMBEDDED, write_text
from utils.memory import keep_freed_memory
from utils.start import run_main

MODEL = EMBEDDED["tiny-clip-photos"]
MEASURED = "<!-- written by scripts/make_tiny_clip_photos.py -->", "<!-- end of what it wrote -->"


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
        accuracies = zero_shot_accuracy(student, student.trained(), photos, captions)
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
