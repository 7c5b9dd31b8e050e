"""CUDA graphs: the passes of a Detector's encoders, started at once instead of kernel by kernel.

A training step of phase 1 has thousands of kernels. At the published batch size, Python takes longer to start them than a fast
GPU to run them.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from model.detector import Detector
from utils.device import Amp
from utils.distributed import world_size


def record_encoders(model: Detector, cfg: SimpleNamespace, resolution: int, amp: Amp) -> None:
    """From here on, training passes of full batches replay what is recorded now, with the same results.

    Batches of other sizes and passes without gradients run as before. On the CPU, in several processes, with `compile` and
    with the settings that save memory, all do: graphs keep the memory of a step.
    """
    if amp.device.type != "cuda" or world_size() > 1 or cfg.compile or cfg.micro_batch or cfg.checkpoint_text:
        return
    visual, contexts = model.clip.visual, (model.prompts.pos_ctx, model.prompts.neg_ctx)
    images = (torch.zeros(cfg.batch_size, 3, resolution, resolution, device=amp.device),)
    text, image = model.text_features, visual.forward
    # autograd adds up the gradients of the prompts on the stream of the recording, and the GPU waits for it
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with amp(cache_enabled=False):
        # one by one: graphs that are recorded together share memory, and must also run in the order of the recording
        replay_text: Any = torch.cuda.make_graphed_callables(text, contexts)
        torch.cuda.make_graphed_callables(visual, images)
    model.text_features = _replayed(replay_text, text, contexts)  # type: ignore[method-assign]
    visual.forward = _replayed(visual.forward, image, images)


def _replayed(replay: Callable[..., Any], eager: Callable[..., Any], sample: Sequence[Tensor]) -> Callable[..., Any]:
    """A function that replays for arguments in the shapes of `sample` while gradients are recorded."""
    shapes = [x.shape for x in sample]

    def run(*x: Tensor) -> Any:
        return (replay if torch.is_grad_enabled() and [one.shape for one in x] == shapes else eager)(*x)

    return run
