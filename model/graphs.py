"""CUDA graphs: the passes of a Detector's encoders, started at once instead of kernel by kernel.

A training step of phase 1 has well over a thousand kernels. At the published batch size, Python takes longer to start them than a
fast GPU to run them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from dataloader.loaders import Loader
from model.detector import Detector
from utils.device import Amp
from utils.distributed import world_size


@contextmanager
def recorded_encoders(model: Detector, cfg: SimpleNamespace, train: Loader, amp: Amp) -> Iterator[None]:
    """Inside, training passes of full batches replay what is recorded on entry, with the same results.

    Batches of other sizes and passes without gradients run as outside. Graphs keep the memory of a step. Nothing is recorded
    on the CPU, in several processes, for image encoders other than open_clip's ViTs, and with `compile`, `micro_batch` or
    `checkpoint_text`. A copy of the model that is made inside would replay the weights of the original.
    """
    visual, contexts, device = model.clip.visual, (model.prompts.pos_ctx, model.prompts.neg_ctx), amp.device
    of_process = torch.cuda.graph.default_capture_stream  # where PyTorch records, on the GPU of the first recording
    if (
        device.type != "cuda"
        or world_size() > 1
        or len(train) < cfg.batch_size
        or not isinstance(visual, VisionTransformer)
        or cfg.compile
        or cfg.micro_batch
        or cfg.checkpoint_text
        or (of_process is not None and of_process.device != device)
    ):
        yield
        return
    images = (torch.zeros(cfg.batch_size, 3, train.resolution, train.resolution, device=device),)
    text, image = model.text_features, visual.forward
    # autograd adds up the gradients of the prompts on the stream of the recording, and warns of it; the GPU waits for it
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with torch.cuda.device(device), amp(cache_enabled=False):
        # one by one: graphs that are recorded together share memory, and must also run in the order of the recording
        replay_text: Any = torch.cuda.make_graphed_callables(text, contexts)
        torch.cuda.make_graphed_callables(visual, images)
    model.text_features = _replayed(replay_text, text, contexts)  # type: ignore[method-assign]
    visual.forward = _replayed(visual.forward, image, images)
    try:
        yield
    finally:
        del model.text_features, visual.forward  # the class's own again, and the memory is free
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(True)


def _replayed(replay: Callable[..., Any], eager: Callable[..., Any], sample: Sequence[Tensor]) -> Callable[..., Any]:
    """A function that replays for arguments in the shapes of `sample` while gradients are recorded."""
    shapes = [x.shape for x in sample]

    def run(*x: Tensor) -> Any:
        return (replay if torch.is_grad_enabled() and [one.shape for one in x] == shapes else eager)(*x)

    return run
