"""Labelling: images/s of the experts at work, beside transformers' pipelines and beside what their models alone allow.

    python -m benchmarks.label [--quick]

The same pictures, JPEG bytes in a table or in memory, are labelled in turn by

    mtv        `mtv_core.labelling_worker.label_fragment`: read from the table, decoded, prepared, forward, encoded, written, staged.
               Blocks on two cores: two processes, a fragment each, as `compute.workers` has it; the others have torch's threads
    pipeline   transformers' `pipeline("depth-estimation")` and `pipeline("zero-shot-object-detection")`: decoded with Pillow, results left
               in memory; at the best of its batch sizes, which a round before finds; same weights, dtype and device
    forward    the model alone on tensors that are ready (of OWLv2 the image side; its phrases are embedded), at the best of its batch sizes
    plain      OWLv2 only: processor, one forward with all phrases of a picture, post-processing. The pipeline takes a forward for every
               phrase, so this is the stronger peer

and medians over rounds are compared. Two kinds of models:

    blocks     the embedded experts on pictures of 96 px, CPU, processes that may use one core and two. Their forward takes milliseconds, so
               the bound counts everything that has to be done: cores ÷ the CPU time of decode + forward + encode on one thread (depth: the
               codec; boxes: Arrow). Preparing, choosing boxes, reading and writing are ours to lose.
    real       architectures with random weights, as labels are no matter here: Depth Anything V2 Small at 518 and OWLv2 base at 960 in
               float32 on a CPU; on CUDA these and Depth Anything V2 Large at 518 and OWLv2 large at 1008, bfloat16, with TFLOP/s of the
               labelling and their share of what the card does in a large matrix product measured here. Pictures of 512 × 384 like
               photographs, 20 phrases each.

JSON keys of the last line, with the targets:

    vs_pipeline    blocks, two cores: mtv ÷ pipeline, of the expert that does worse                     ≥ 2
    vs_forward     blocks: mtv ÷ bound, of the expert and number of cores that does worst               ≥ 0.9
    real           by architecture: vs_pipeline  CPU ≥ 0.95 (OWLv2 ≥ 1.3), GPU ≥ 1.3; vs_forward        ≥ 0.9; on a GPU tflops, share
    blocks         by expert and cores: all rates, images/s
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.common import ROOT, finish, machine, photo, table
from benchmarks.refresh import rows, scenes
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

if TYPE_CHECKING:
    from torch import Tensor

Pictures = list[tuple[bytes, str]]  # JPEG, caption
Work = Callable[[], int]  # does some pictures and says how many

NOUNS = (
    "dog", "cat", "tree", "house", "car", "boat", "lamp", "chair", "table", "bottle", "cup", "book", "clock", "shoe", "bicycle", "horse",
    "window", "bench", "flower", "bridge",
)  # fmt: skip
# (hidden, layers, heads, stages read, channels of the neck, of the fusion)
DEPTH_ANYTHING = {
    "depth-anything-v2-small": (384, 12, 6, (3, 6, 9, 12), (48, 96, 192, 384), 64),
    "depth-anything-v2-large": (1024, 24, 16, (5, 12, 18, 24), (256, 512, 1024, 1024), 256),
}
# (hidden, layers, heads, px, patch), and of the text tower hidden, heads
OWLV2 = {
    "owlv2-base-960": (768, 12, 12, 960, 16, 512, 8),
    "owlv2-large-1008": (1024, 24, 16, 1008, 14, 768, 12),
}


# Models with random weights


def make_depth_anything(name: str, folder: Path) -> None:
    """A folder as `save_pretrained` writes it."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    hidden, layers, heads, stages, neck, fusion = DEPTH_ANYTHING[name]
    backbone = Dinov2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, image_size=518, patch_size=14, apply_layernorm=True,
        reshape_hidden_states=False, out_indices=list(stages),
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=hidden, neck_hidden_sizes=list(neck), fusion_hidden_size=fusion, patch_size=14
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip


def make_owlv2(name: str, folder: Path) -> None:
    """A folder as `save_pretrained` writes it. The tokenizer is that of blocks: how a phrase is cut changes no time."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    from mtv_core.blocks.tokenizers import query_tokenizer

    hidden, layers, heads, pixels, patch, text_hidden, text_heads = OWLV2[name]
    tokenizer = query_tokenizer()
    text = {
        "hidden_size": text_hidden, "intermediate_size": 4 * text_hidden, "num_attention_heads": text_heads,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": pixels, "patch_size": patch,
    }  # fmt: skip
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=text_hidden))
    for head in (model.class_head, model.box_head):  # initialised with deviation 1, which gives boxes everywhere
        for parameter in head.parameters():
            parameter.data.mul_(0.02)
    model.save_pretrained(folder)
    processor: Any = Owlv2Processor(Owlv2ImageProcessor(size={"height": pixels, "width": pixels}), tokenizer)
    processor.save_pretrained(folder)


def photos(number: int) -> Pictures:
    """Pictures of 512 × 384 whose captions name 20 things."""
    found = []
    for seed in range(number):
        buffer = io.BytesIO()
        photo(seed, 512, 384).save(buffer, "JPEG", quality=90)
        found.append((buffer.getvalue(), ", ".join(f"a {noun}" for noun in NOUNS)))
    return found


# The work


def opened(data: bytes) -> Image.Image:
    """As a user of a pipeline decodes."""
    return Image.open(io.BytesIO(data)).convert("RGB")


class Subject:
    """One expert, its peers, and the pictures."""

    def __init__(self, expert: str, settings: dict[str, Any], pictures: Pictures, folder: Path, batch_size: int, cores: int) -> None:
        from mtv_core import experts, labelling_worker
        from mtv_core.labelling_worker import FragmentJob

        self.pictures, self.cores = pictures, cores
        config = LabelConfig.model_validate({expert: settings, "depth" if expert == "detection" else "detection": None}).experts()[expert]
        written = Table(str(folder))
        processes = cores if settings.get("model", "").startswith("blocks:") else 1
        share = len(pictures) // processes
        for first in range(0, len(pictures), share):
            written.append(rows(first, share, pictures[first : first + share]), share)
        written.ensure_columns(expert)
        revision = experts.revision(expert, config)
        self.expert: Any = labelling_worker.loaded(expert, config, revision)
        self.job, *self.others = [
            FragmentJob(
                table_uri=written.uri, storage_options={}, version=written.version, fragment_id=fragment.fragment_id, expert=expert,
                config=config, revision=revision, batch_size=batch_size, threads=cores // processes,
            )
            for fragment in written.dataset().get_fragments()
        ]  # fmt: skip
        assert len(self.others) == processes - 1
        self.processes = ProcessPoolExecutor(len(self.others), get_context("spawn")) if self.others else None
        self.phrases = [self.expert.phrases_of(caption) for _, caption in pictures] if expert == "detection" else []
        self.model: Any = self.expert.detector.model if expert == "detection" else self.expert.model
        self.cuda = self.expert.device.type == "cuda"
        self._pipeline: Any = None

    def mtv(self) -> int:
        """Ours."""
        from mtv_core.labelling_worker import label_fragment

        elsewhere = [self.processes.submit(label_fragment, job) for job in self.others] if self.processes else []
        reports = [label_fragment(self.job).report, *(one.result().report for one in elsewhere)]
        assert sum(report.rows_out for report in reports) == len(self.pictures), reports
        return len(self.pictures)

    def pipeline(self, batch_size: int, limit: int | None = None) -> int:
        """transformers'."""
        if self._pipeline is None:
            from transformers import pipeline

            task = "zero-shot-object-detection" if self.phrases else "depth-estimation"
            options: Any = {"model": self.job.config.model, "device": self.expert.device, "dtype": self.model.dtype}
            if options["model"].startswith("blocks:"):
                options["model"] = str(ROOT / "mtv_core" / "blocks" / "weights" / options["model"].removeprefix("blocks:"))
            self._pipeline = pipeline(task, **options)
        pictures = self.pictures[:limit]
        if self.phrases:
            asked: Any = ({"image": opened(data), "candidate_labels": self.phrases[i]} for i, (data, _) in enumerate(pictures))
        else:
            asked = (opened(data) for data, _ in pictures)
        assert sum(1 for _ in self._pipeline(asked, batch_size=batch_size)) == len(pictures)
        return len(pictures)

    def tensors(self, batch_size: int) -> list[tuple[Tensor, ...]]:
        """What the model is asked, ready on the device: pixels, and of a detector embedded phrases and which they are."""
        images = [opened(data) for data, _ in self.pictures]
        found: list[tuple[Tensor, ...]] = []
        for first in range(0, len(images), batch_size):
            some = images[first : first + batch_size]
            if self.phrases:
                queries = self.expert.detector._queries(self.phrases[first : first + batch_size])
                found.append((self.expert.detector._squaring(some, self.expert.device).to(self.model.dtype), *queries))
            else:
                pixels = self.expert._resizing(some, self.expert._input_size(some[0]), self.expert.device)
                found.append((pixels.to(self.model.dtype),))
        return found

    def forward(self, batches: Sequence[tuple[Tensor, ...]]) -> int:
        """The model alone."""
        for pixels, *queries in batches:
            if queries:
                features, _ = self.model.image_embedder(pixels)
                tokens = features.flatten(1, 2)
                self.model.class_predictor(tokens, *queries)
                self.model.box_predictor(tokens, features)
            else:
                self.model(pixel_values=pixels)
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        return len(self.pictures)

    def plain(self, batch_size: int) -> int:
        """OWLv2 as its documentation shows it, the phrases of a picture together."""
        processor = self.expert.detector.processor
        for first in range(0, len(self.pictures), batch_size):
            some = self.pictures[first : first + batch_size]
            images = [opened(data) for data, _ in some]
            texts = [[f"a photo of a {phrase}" for phrase in wanted] for wanted in self.phrases[first : first + batch_size]]
            inputs = processor(text=texts, images=images, return_tensors="pt", padding="max_length", max_length=16, truncation=True)
            inputs = inputs.to(self.expert.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            sizes = [(image.height, image.width) for image in images]
            processor.post_process_grounded_object_detection(self.model(**inputs), threshold=0.1, target_sizes=sizes)
        return len(self.pictures)

    def parts(self) -> dict[str, float]:
        """CPU seconds a picture of what has to be done: decode, forward on ready tensors, encode; on one thread, the least of three."""
        from mtv_core.data.depth import encode

        batches = self.tensors(self.job.batch_size)
        images = [opened(data) for data, _ in self.pictures[: self.job.batch_size]]
        if self.phrases:
            from mtv_core.experts.detection import _batch

            found: Any = self.expert.predict(images, self.phrases[: len(images)])
            encoded: Callable[[], object] = lambda: _batch(found)  # noqa: E731
        else:
            found = self.expert.predict(images)
            encoded = lambda: [encode(one) for one in found]  # noqa: E731
        return {
            "decode": cpu_seconds(lambda: [opened(data) for data, _ in self.pictures]) / len(self.pictures),
            "forward": cpu_seconds(lambda: self.forward(batches)) / len(self.pictures),
            "encode": cpu_seconds(encoded) / len(images),
        }


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least of three, on a thread that computes alone."""
    import torch

    def measured() -> float:
        torch.set_num_threads(1)
        taken = []
        with torch.inference_mode():
            for _ in range(3):
                began = time.thread_time()
                work()
                taken.append(time.thread_time() - began)
        return min(taken)

    with ThreadPoolExecutor(1) as alone:
        return alone.submit(measured).result()


def seconds(work: Work) -> float:
    """A picture."""
    import torch

    with torch.inference_mode():
        began = time.perf_counter()
        number = work()
        return (time.perf_counter() - began) / number


def best(choices: dict[int, Work]) -> Work:
    """The work whose batch size is fastest, each warmed up and tried once."""
    taken = {}
    for size, work in choices.items():
        if len(choices) > 1:
            seconds(work)
            taken[size] = seconds(work)
    return choices[min(taken, key=lambda size: taken[size])] if taken else next(iter(choices.values()))


def interleaved(work: dict[str, Work], rounds: int, bound: Callable[[], float] | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """Images/s by median, and the median of mtv ÷ each other, round by round."""
    taken: dict[str, list[float]] = defaultdict(list)
    for one in work.values():
        seconds(one)
    for turn in range(rounds):
        names = list(work)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(seconds(work[name]))
        if bound is not None:
            taken["bound"].append(bound())
        gc.collect()
    ratios = {
        name: median(other / ours for other, ours in zip(found, taken["mtv"], strict=True))
        for name, found in taken.items()
        if name != "mtv"
    }
    return {name: round(1 / median(found), 3) for name, found in taken.items()}, ratios


# What a child process measures, on the cores it is given


def blocks(expert: str, folder: Path, cores: int, quick: bool) -> dict[str, Any]:
    """One of the embedded experts."""
    found = scenes()
    number = 128 if quick else 512
    pictures = [found[i % len(found)] for i in range(number)]
    subject = Subject(expert, {"model": f"blocks:{expert}-r2", "device": "cpu"}, pictures, folder, 16, cores)
    subject.expert(*zip(*[(opened(data), caption) for data, caption in found], strict=True))  # every phrase is embedded
    some = 64 if quick else 256

    def bound() -> float:
        return sum(subject.parts().values()) / cores

    batches = subject.tensors(16)
    work: dict[str, Work] = {
        "mtv": subject.mtv,
        "pipeline": best({size: (lambda size=size: subject.pipeline(size, some)) for size in (1, 4, 8, 16)}),
        "forward": lambda: subject.forward(batches),
    }
    rates, ratios = interleaved(work, 2 if quick else 7, bound)
    parts = {name: round(1000 * value, 3) for name, value in subject.parts().items()}
    return {
        "rates": rates, "vs_pipeline": round(ratios["pipeline"], 3), "vs_forward": round(ratios["bound"], 3),
        "vs_forward_alone": round(ratios["forward"], 3), "cpu_ms": parts,
    }  # fmt: skip


def real(name: str, folder: Path, cores: int, quick: bool, device: str) -> dict[str, Any]:
    """An architecture at its size, with random weights."""
    import torch

    torch.manual_seed(0)
    weights, cuda = folder / "weights", device == "cuda"
    depth = name in DEPTH_ANYTHING
    (make_depth_anything if depth else make_owlv2)(name, weights)
    number = (256 if not quick else 64) if cuda else (4 if not quick else 2)
    batch_size = 32 if cuda else 2 * cores if depth else cores
    settings = {"model": str(weights), "device": device, "dtype": "bfloat16" if cuda else "float32"}
    if not depth:
        settings["prompt"] = "a photo of a {}"
    subject = Subject("depth" if depth else "detection", settings, photos(number), folder / "table", batch_size, cores)
    assert depth or {len(wanted) for wanted in subject.phrases} == {len(NOUNS)}
    # A forward for every phrase takes minutes a picture on a CPU, and is as fast for one picture as for many.
    limit = None if depth else number // 8 if cuda else 1
    sizes = ((1,) if quick else (1, 2)) if not cuda else (8, 32)
    if not depth and not cuda:
        sizes = (1,)
    pipelines: dict[int, Work] = {size: (lambda size=size: subject.pipeline(size, limit)) for size in sizes}
    ready = {size: subject.tensors(size) for size in ((8, 32) if cuda else (1,) if quick else (1, 2))}
    work: dict[str, Work] = {
        "mtv": subject.mtv,
        "pipeline": best(pipelines),
        "forward": best({size: (lambda batches=batches: subject.forward(batches)) for size, batches in ready.items()}),
    }
    if not depth:
        work["plain"] = lambda: subject.plain(8 if cuda else 1)
    rates, ratios = interleaved(work, 1 if quick else 3 if not cuda else 5)
    figures = {"rates": rates, **{f"vs_{other}": round(ratio, 3) for other, ratio in ratios.items()}}
    if cuda:
        figures |= arithmetic(subject, rates["mtv"])
    return figures


def arithmetic(subject: Subject, rate: float) -> dict[str, float]:
    """TFLOP/s of the labelling, and the share of what the card does in a matrix product of 8192² by 8192² in the same dtype."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    pixels, *queries = subject.tensors(1)[0]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        subject.pictures, kept = subject.pictures[:1], subject.pictures
        subject.forward([(pixels, *queries)])
        subject.pictures = kept
    matrix = torch.randn(8192, 8192, dtype=subject.model.dtype, device="cuda")
    for _ in range(5):
        matrix @ matrix
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    torch.cuda.synchronize()
    peak = 20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12
    achieved = counter.get_total_flops() * rate / 1e12
    return {
        "gflop_per_image": round(counter.get_total_flops() / 1e9, 1), "tflops": round(achieved, 1), "matmul_tflops": round(peak, 1),
        "share": round(achieved / peak, 3),
    }  # fmt: skip


def child(name: str, cores: int, quick: bool, device: str) -> None:
    """Measure one subject, and print its figures."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import torch
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    if device == "cpu":
        torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory(prefix="mtv-label-") as scratch:
        folder = Path(scratch)
        figures = blocks(name, folder, cores, quick) if name in ("depth", "detection") else real(name, folder, cores, quick, device)
    print(json.dumps(figures))


def measured(name: str, cores: int, quick: bool, device: str) -> dict[str, Any]:
    """A subject in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.label", "--child", name, "--cores", str(cores), "--device", device]
    began = time.perf_counter()
    done = subprocess.run([*command, *(["--quick"] if quick else [])], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    print(f"{name}, {cores} cores, {device}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


# The tables


def lines(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row a subject."""
    for name, figures in found.items():
        rates = figures["rates"]
        bound = rates.get("bound", rates["forward"])
        yield (
            name, f"{rates['mtv']:.4g}", f"{rates['pipeline']:.4g}", f"{bound:.4g}", f"{figures['vs_pipeline']:.2f}",
            f"{figures['vs_forward']:.2f}", f"{figures['share']:.2f}" if "share" in figures else "",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer pictures and rounds")
    parser.add_argument("--only", choices=("blocks", "real"), help="one kind of models")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.cores, options.quick, options.device)
        return
    import torch

    cores = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    small: dict[str, dict[str, Any]] = {}
    if options.only != "real":
        for count in range(1, cores + 1):
            for name in ("depth", "detection"):
                small[f"{name}, {count} core{'s' * (count > 1)}"] = measured(name, count, options.quick, "cpu")
    large: dict[str, dict[str, Any]] = {}
    if options.only != "blocks":
        for name in ("depth-anything-v2-small", "owlv2-base-960"):
            large[f"{name}, cpu"] = measured(name, cores, options.quick, "cpu")
        if torch.cuda.is_available():
            for name in (*DEPTH_ANYTHING, *OWLV2):
                large[f"{name}, cuda"] = measured(name, cores, options.quick, "cuda")
    heading = ("images/s", "mtv", "pipeline", "bound", "÷ pipeline", "÷ bound", "share of matmul")
    print("\n" + table([heading, *lines(small | large)]) + "\n")
    whole = [figures for name, figures in small.items() if f", {cores} core" in name]
    finish(
        {
            "vs_pipeline": min((figures["vs_pipeline"] for figures in whole), default=None),
            "vs_forward": min((figures["vs_forward"] for figures in small.values()), default=None),
            "real": large,
            "blocks": small,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
