"""How good the committed experts are on held-out scenes: `python -m mtv_core.blocks.evaluate_experts [--samples N]`.

Everything goes through the real processors and post-processing, from pictures to boxes in pixels. Detections are thinned by non-maximum
suppression within a phrase (IoU 0.5), which OWLv2's post-processing leaves to its user.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import batched_nms, box_iou
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, AutoModelForZeroShotObjectDetection, AutoProcessor

from mtv_core.blocks.expert_data import NAMES, SIDE, TEST_SEED, Truth, make_truth

WEIGHTS = Path(__file__).parent / "weights"
MIN_VISIBLE = 0.3  # a solid less visible is neither wanted nor wrong
FloatArray = NDArray[np.float64]


def pictures(truth: Truth) -> list[Image.Image]:
    """The frames, without the padding."""
    return [Image.fromarray(rgb[:height, :width]) for rgb, (width, height) in zip(truth.rgb, truth.frames, strict=True)]


def average_precision(hits: FloatArray, scores: FloatArray, wanted: int) -> float:
    """Area under the precision envelope over all recalls (the all-points AP of Pascal VOC 2010 and later)."""
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(hits[order])
    precision = true / np.arange(1, len(true) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], true / wanted])
    return float((np.diff(recall) * envelope).sum())


def detection_ap50(folder: Path, truth: Truth, *, batch: int = 64, threshold: float = 0.02) -> tuple[float, float]:
    """Mean AP at IoU 0.5 over all colour-shape phrases that occur, every phrase a query of every picture; and seconds a picture."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    images = pictures(truth)
    found: list[list[tuple[float, float]]] = [[] for _ in NAMES]  # (score, hit) by class; hits that do not count are left out
    wanted = np.zeros(len(NAMES), dtype=int)
    began = time.perf_counter()
    results = []
    for first in range(0, len(images), batch):
        part = images[first : first + batch]
        inputs = processor(text=[list(NAMES)] * len(part), images=part, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        sizes = [(image.height, image.width) for image in part]
        results += processor.post_process_grounded_object_detection(outputs, threshold=threshold, target_sizes=sizes)
    seconds = (time.perf_counter() - began) / len(images)
    for index, result in enumerate(results):
        keep = batched_nms(result["boxes"], result["scores"], result["labels"], 0.5)
        boxes, scores, labels = result["boxes"][keep], result["scores"][keep], result["labels"][keep]
        taken: set[int] = set()
        seen = np.flatnonzero(truth.classes[index] >= 0).tolist()
        for solid in seen:
            wanted[truth.classes[index, solid]] += truth.visible[index, solid] >= MIN_VISIBLE
        for box, score, label in zip(boxes, scores.tolist(), labels.tolist(), strict=True):
            match = [s for s in seen if truth.classes[index, s] == label and s not in taken]
            overlap = [float(box_iou(box[None], torch.from_numpy(truth.boxes[index, s][None] * SIDE))) for s in match]
            if overlap and max(overlap) >= 0.5:
                solid = match[int(np.argmax(overlap))]
                taken.add(solid)
                if truth.visible[index, solid] >= MIN_VISIBLE:
                    found[label].append((score, 1.0))
            else:
                found[label].append((score, 0.0))
    precisions = []
    for label in np.flatnonzero(wanted):
        table = np.array(found[label]).reshape(-1, 2)
        precisions.append(average_precision(table[:, 1], table[:, 0], int(wanted[label])))
    return float(np.mean(precisions)), seconds


def align(predicted: FloatArray, target: FloatArray) -> FloatArray:
    """Scale and shift of `predicted` that fit `target` best in the least-squares sense, applied. Both [N]."""
    design = np.stack([predicted, np.ones_like(predicted)], axis=1)
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    return design @ solution


def depth_abs_rel(folder: Path, truth: Truth, *, batch: int = 64) -> tuple[float, float]:
    """Mean over pictures of |d − d*| / d*, sky left out, after aligning the predicted disparity to 1/d* (Marigold's protocol for disparity
    models; aligned depths are clipped to the range of blocks, 0.5–12.5 m); and seconds a picture.
    """
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    images = pictures(truth)
    errors, seconds = [], 0.0
    shapes = sorted({image.size for image in images})
    for size in shapes:  # the processor keeps the aspect, so a batch holds one size
        rows = [i for i, image in enumerate(images) if image.size == size]
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            began = time.perf_counter()
            inputs = processor(images=[images[i] for i in part], return_tensors="pt")
            with torch.inference_mode():
                outputs = model(**inputs)
            maps = processor.post_process_depth_estimation(outputs, target_sizes=[size[::-1]] * len(part))
            seconds += time.perf_counter() - began
            for i, predicted in zip(part, maps, strict=True):
                depth = truth.depth[i, : size[1], : size[0]].astype(np.float64)
                valid = np.isfinite(depth)
                disparity = align(predicted["predicted_depth"].double().numpy()[valid], 1.0 / depth[valid])
                errors.append(np.mean(np.abs(1.0 / np.clip(disparity, 1 / 12.5, 2.0) - depth[valid]) / depth[valid]))
    return float(np.mean(errors)), seconds / len(images)


def main() -> None:
    """Print one row an expert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=480, help="held-out scenes")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the experts' folders")
    arguments = parser.parse_args()
    truth = make_truth(TEST_SEED, arguments.samples)
    for name, measure, label in (("depth", depth_abs_rel, "AbsRel"), ("detection", detection_ap50, "AP50")):
        for revision in ("r1", "r2"):
            folder = arguments.weights / f"{name}-{revision}"
            value, seconds = measure(folder, truth)
            print(f"{folder.name:14} {label} {value:.4f}   {1000 * seconds:.1f} ms a picture")


if __name__ == "__main__":
    main()
