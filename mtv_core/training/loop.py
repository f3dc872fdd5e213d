"""The training loop of one rank."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerBase

from mtv_core.faults import fault_point
from mtv_core.model.mtv import MTV, create_model, save_model
from mtv_core.model.start import load_start
from mtv_core.objectives.base import Batch
from mtv_core.objectives.system import ObjectiveSystem
from mtv_core.runs import write_atomic
from mtv_core.store.loader import Loader
from mtv_core.store.view import View
from mtv_core.training import alarms, checkpoint, metrics, optim
from mtv_core.training.batches import BatchMaker, experts_of
from mtv_core.training.checkpoint import TrainState
from mtv_core.training.distributed import StopRequest, World
from mtv_core.training.job import RESULT, TrainJob, TrainResult
from mtv_core.training.metrics import Window

_log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - no error: what was asked for
    """A checkpoint was written on request, before the training's end."""


def train(job: TrainJob, world: World, stop: StopRequest) -> TrainResult:
    """Train to the end, or until `stop` is asked for.

    Killed anywhere and called again, it goes on from the newest checkpoint and ends with the rows of metrics and the weights of a run that
    was left alone: bit by bit on the CPU with up to two ranks (a sum over more depends on the order DDP puts gradients in).

    Raises:
        Stopped: `stop` was asked for; the newest checkpoint is of the last step done.
        NotFiniteError: too many steps in a row had to be left out.
        ValueError: the table or a checkpoint does not fit the configuration.
    """
    config, started = job.config, time.monotonic()
    model, tokenizer = initial_model(job, world)
    system = ObjectiveSystem(model, config.objectives).to(world.device)
    optimizer = optim.adamw(system, config.optim)
    state = resume(job, world, system, optimizer)
    loader = Loader(
        View(job.table_uri, job.version, job.storage_options),
        BatchMaker(config, tokenizer, model.patch_size),
        global_batch=config.global_batch,
        seed=config.seed,
        experts=experts_of(config.objectives),
        config=config.loader,
        part=config.data,
        rank=world.rank,
        ranks=world.ranks,
    )
    if world.first and not config.data.whole:
        _log.info("training on %d rows (%s): %s", len(loader.rows), config.data, loader.selection)
    forward = distribute(system) if world.ranks > 1 else system
    parameters = [parameter for parameter in system.parameters() if parameter.requires_grad]
    guard = optim.Guard(config.optim.max_skipped, state.skipped, state.skipped_in_a_row)
    rows = deque(metrics.read(job.folder) if world.first else [], maxlen=alarms.REMEMBERED)
    window, clock = Window(state.window), Clock(state.step, config.steps, config.global_batch)

    with contextlib.closing(loader.batches(state.step, config.steps)) as batches:
        for step, batch in clock.timed(batches):
            torch.manual_seed(step_seed(config.seed, step, world.rank))
            rate = optim.learning_rate(step, config.steps, config.optim)
            optim.set_learning_rate(optimizer, rate)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                outcome = forward(batch.to(world.device, non_blocking=True), done := (step - 1) / config.steps)
            outcome["loss"].backward()
            system.release(done)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip or math.inf)
            losses = {f"loss/{name}": value for name, value in outcome["losses"].items()}
            # One message a step: what the ranks saw, and whether any of them was asked to stop.
            seen = world.means(
                {"loss": outcome["loss"].detach(), **losses, **outcome["metrics"], "grad_norm": norm, "stop": float(stop.asked)}
            )
            stopping = seen.pop("stop") > 0
            if guard.keep(step, seen["loss"], seen["grad_norm"]):
                optimizer.step()
                system.update_teacher(step)
                window.add(seen)
            optimizer.zero_grad()
            fault_point("train.step")

            if world.first and (step % config.log_every == 0 or step == config.steps) and (means := window.means()):
                row: dict[str, Any] = {
                    "step": step,
                    "samples_seen": step * config.global_batch,
                    **means,
                    "lr": rate,
                    "skipped_steps": guard.skipped,
                }
                row |= {"epoch": step * config.global_batch / len(loader.rows), **clock.row(step)}
                if found := alarms.look(row, rows, config.objectives, config.alarms):
                    row[alarms.KEY] = found
                metrics.append(job.folder, row)
                rows.append(row)
                _log.info(line(row, config.steps))
                for alarm in found:
                    _log.warning("step %d: %s", step, alarm)
            if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                state = TrainState(
                    step=step,
                    fingerprint=job.fingerprint,
                    skipped=guard.skipped,
                    skipped_in_a_row=guard.in_a_row,
                    window=window.sums,
                )
                if world.first:
                    metrics.flush(job.folder)
                    checkpoint.save(job.folder / "checkpoints", state, system, optimizer, config.keep_checkpoints)
            if stopping and step < config.steps:
                world.barrier()
                raise Stopped(f"asked to stop: step {step} of {config.steps} is saved, the next run goes on from there")

    result = TrainResult(
        steps=config.steps,
        model_folder=job.folder / "model",
        baseline_folder=job.folder / "init",
        metrics=metrics.numbers(written[-1]) if (written := metrics.read(job.folder)) else {},
        seconds=time.monotonic() - started,
        fingerprint=job.fingerprint,
    )
    if world.first:
        publish_model(model, tokenizer, result.model_folder)
        write_atomic(job.folder / RESULT, result.model_dump_json(indent=2) + "\n")
    fault_point("train.finished")
    world.barrier()
    return result


def initial_model(job: TrainJob, world: World) -> tuple[MTV, PreTrainedTokenizerBase]:
    """The model before its first step, also in `init/`: what evaluation measures a gain against."""
    config = job.config
    torch.manual_seed(config.seed)
    model, tokenizer = create_model(config.model) if config.init is None else load_start(config.init, config.model)
    if world.first and not (job.folder / "init" / "model.safetensors").is_file():
        publish_model(model, tokenizer, job.folder / "init")
    return model, tokenizer


def resume(job: TrainJob, world: World, system: ObjectiveSystem, optimizer: torch.optim.Optimizer) -> TrainState:
    """Where to start. Resume order: own checkpoint, then `resume_from`, then `config.init`, then scratch (both by `initial_model`)."""
    state = checkpoint.load(job.folder / "checkpoints", system, optimizer, job.fingerprint)
    source = None
    if state is None and job.resume_from is not None:
        source = Path(job.resume_from)
        state = checkpoint.load(source, system, optimizer, job.fingerprint)
        if state is None:
            raise ValueError(
                f"train.resume_from: there is no checkpoint in {source}; give the checkpoints/ folder of a run, or leave it out"
            )
        source = next(folder for folder in (source, *source.parents) if folder.name == "checkpoints").parent
    state = state or TrainState()
    world.barrier()  # nobody changes files that another rank still looks at
    if world.first:
        metrics.keep_until(job.folder, state.step, source)
        if state.step:
            _log.info("going on from step %d of %d", state.step, job.config.steps)
    return state


def distribute(system: ObjectiveSystem) -> DistributedDataParallel:
    """Average gradients over ranks. Nothing in the system keeps running statistics, so no buffers are sent around."""
    known = inspect.signature(DistributedDataParallel).parameters
    # Renamed in torch 2.15.
    no_buffers: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(system, gradient_as_bucket_view=True, **no_buffers)


def publish_model(model: MTV, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model folder beside its place and rename it into it; one that was there is replaced."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(model, tokenizer, partial)
    for path in [*partial.rglob("*"), partial]:
        checkpoint.flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    checkpoint.flush(folder.parent)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of torch's generator in one step on one rank: resuming needs no random state."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Clock:
    """Speed and time left, of this attempt."""

    def __init__(self, done: int, steps: int, global_batch: int) -> None:
        self.first = self.last = done
        self.steps, self.global_batch = steps, global_batch
        self.begun = self.marked = time.monotonic()
        self.waited = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[tuple[int, Batch]]:
        """Number the steps, and measure how long the loop waits for its input."""
        for step in range(self.first + 1, self.steps + 1):
            waiting = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - waiting
            yield step, batch

    def row(self, step: int) -> dict[str, float]:
        """Since the last row; the time left is reckoned with the mean speed of the attempt."""
        now = time.monotonic()
        seconds, self.marked, waited, self.waited = now - self.marked, now, self.waited, 0.0
        done, self.last = step - self.last, step
        return {
            "samples_per_second": done * self.global_batch / seconds,
            "loader_wait": waited / seconds,
            "eta_seconds": (now - self.begun) / (step - self.first) * (self.steps - step),
        }


def line(row: dict[str, Any], steps: int) -> str:
    """One row for people."""
    losses = " ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in row.items() if name.startswith("loss/"))
    minutes, seconds = divmod(round(row["eta_seconds"]), 60)
    return (
        f"step {row['step']}/{steps} · loss {row['loss']:.3f} ({losses}) · lr {row['lr']:.2e} · grad {row['grad_norm']:.2f}"
        f" · {row['samples_per_second']:.0f} samples/s, {row['loader_wait']:.0%} waiting · {minutes}:{seconds:02d} left"
    )
