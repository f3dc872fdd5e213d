"""All objectives in one forward: against each on its own, masked labels, the teacher, and two ranks against one."""

from __future__ import annotations

import copy
import itertools
import socket
from pathlib import Path
from typing import Any

import objectives_cases as cases
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from mtv_core.objectives.base import Views
from mtv_core.objectives.config import ContrastiveConfig, GramConfig, ObjectivesConfig, TeacherConfig
from mtv_core.objectives.system import ObjectiveSystem

NAMES = ("contrastive", "distillation", "masked", "grounding", "depth")


def system(config: ObjectivesConfig | None = None) -> ObjectiveSystem:
    made = ObjectiveSystem(cases.model(), config or cases.config())
    torch.manual_seed(5)
    with torch.no_grad():  # so that the teacher is not the student
        for parameter in made.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made.double()


def gradients(made: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def test_the_shared_forward_is_that_of_each_view_alone() -> None:
    made, batch = system(), cases.batch()
    views = made._look(batch)
    model, token = made.model, made.objectives["masked"].mask_token
    same = {
        "image": (views.image, model.encode_image(batch.pixels)),
        "patches": (views.patches, model.patch_features(batch.pixels)),
        "layer": (views.layers[0], model.patch_features(batch.pixels, [0])[0]),
        "text": (views.text, model.encode_text(batch.text_ids)),
        "phrases": (views.phrases, model.encode_text(batch.phrase_ids)),
        "local": (views.local_pooled[1], model.encode_image(batch.local_crops[1])),
        "masked": (views.global_patches[1], model.tokens(batch.global_crops[1], (batch.masks[1], token))),
    }
    for name, (found, expected) in same.items():
        assert torch.allclose(found, expected, atol=1e-10), name
    blind = model.tokens(batch.global_crops[0] * 0, (torch.ones_like(batch.masks[0]), token))
    assert torch.allclose(blind, model.tokens(batch.global_crops[0], (torch.ones_like(batch.masks[0]), token))), "a hidden patch is seen"


def test_global_crops_may_have_a_size_of_their_own() -> None:
    made, batch = system(), cases.batch()
    batch.global_crops, batch.masks = batch.global_crops[..., :16, :16], batch.masks[..., :4]
    views = made._look(batch)
    token = made.objectives["masked"].mask_token
    assert torch.allclose(views.layers[0], made.model.patch_features(batch.pixels, [0])[0], atol=1e-10)
    assert torch.allclose(views.patches, made.model.patch_features(batch.pixels), atol=1e-10)
    assert torch.allclose(views.global_patches[1], made.model.tokens(batch.global_crops[1], (batch.masks[1], token)), atol=1e-10)
    made(batch)["loss"].backward()
    assert [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_loss_is_the_weighted_sum() -> None:
    out = system()(cases.batch())
    assert tuple(out["losses"]) == NAMES
    weights = {"contrastive": 1.0, "distillation": 0.5, "masked": 0.7, "grounding": 0.9, "depth": 0.3}
    assert out["loss"].item() == pytest.approx(sum(weights[name] * value.item() for name, value in out["losses"].items()))


@pytest.mark.parametrize("on", [c for n in (1, 2, 5) for c in itertools.combinations(NAMES, n)], ids="-".join)
def test_every_trained_parameter_gets_a_gradient(on: tuple[str, ...]) -> None:
    """What DDP needs; also without a single label."""
    made = system(cases.config().model_copy(update={name: None for name in NAMES if name not in on}))
    batch = cases.batch()
    batch.box_valid[:], batch.depth_valid[:], batch.masks[:] = False, False, False
    made(batch)["loss"].backward()
    assert [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(grad.isfinite().all() for grad in gradients(made).values())


def test_labels_that_are_not_valid_change_nothing() -> None:
    made, batch = system(), cases.batch()
    losses, before = made(batch), copy.deepcopy(made)
    losses["loss"].backward()
    other = copy.deepcopy(batch)
    other.boxes[~batch.box_valid] = 0.5
    other.phrase_index[~batch.box_valid] = 0
    other.depth[~batch.depth_valid] = 1e6
    again = before(other)
    again["loss"].backward()
    assert {k: v.item() for k, v in again["losses"].items()} == pytest.approx({k: v.item() for k, v in losses["losses"].items()})
    for name, grad in gradients(before).items():
        assert torch.allclose(grad, gradients(made)[name], atol=1e-10), name
    assert losses["metrics"]["grounding/coverage"] == batch.box_valid.any(1).float().mean()
    assert losses["metrics"]["depth/coverage"] == 0.75


def test_the_same_caption_is_no_negative() -> None:
    made, batch = system(), cases.batch()
    batch.text_ids[1] = batch.text_ids[0]
    views = made._look(batch)
    apart = made.objectives["contrastive"](views, batch, {}).value
    scores = torch.nn.functional.normalize(views.image) @ torch.nn.functional.normalize(views.text).T * views.log_scale.exp() + views.bias
    signs = torch.eye(4) * 2 - 1
    signs[0, 1] = signs[1, 0] = 0
    expected = -(torch.nn.functional.logsigmoid(signs * scores) * signs.abs()).sum(1).mean()
    assert apart.item() == pytest.approx(expected.item())


def test_grounding_is_the_sum_over_regions_and_phrases() -> None:
    made, batch = system(), cases.batch()
    batch.phrase_ids[1] = batch.phrase_ids[0]
    grounding, views = made.objectives["grounding"], made._look(batch)
    regions = torch.nn.functional.normalize(grounding.prompter(views.patches, batch.boxes), dim=-1)
    phrases = torch.nn.functional.normalize(views.phrases, dim=-1)
    valid = batch.box_valid.nonzero().tolist()
    words = [set(row.tolist()) for row in batch.phrase_ids]
    total = torch.zeros(())
    for b, k in valid:
        own = batch.phrase_index[b, k]
        for c, j in valid:
            other = batch.phrase_index[c, j]
            close = words[own] <= words[other] or words[own] >= words[other] or (phrases[own] @ phrases[other]).item() > 0.9
            if (b, k) != (c, j) and close:
                continue
            logit = grounding.log_scale.exp() * (regions[b, k] @ phrases[other]) + grounding.bias
            total = total - torch.nn.functional.logsigmoid(logit if (b, k) == (c, j) else -logit)
    assert grounding(views, batch, {}).value.item() == pytest.approx((total / len(valid)).item())


def test_distillation_leaves_out_a_crop_against_itself() -> None:
    made, batch = system(), cases.batch()
    objective, views = made.objectives["distillation"], made._look(batch)
    config, heads = objective.config, made.teacher["distillation"]
    from mtv_core.objectives.distillation import cross_entropy, koleo, sinkhorn

    target = sinkhorn(heads["head"](views.teacher_pooled).flatten(0, 1), config.teacher_temperature, 3).unflatten(0, (2, -1))
    students = [views.global_pooled[0], views.global_pooled[1], views.local_pooled[0], views.local_pooled[1]]
    terms = [
        cross_entropy(objective.head(x), target[t], config.student_temperature).mean()
        for s, x in enumerate(students)
        for t in (0, 1)
        if s != t
    ]
    expected = sum(terms) / 6 + 0.1 * (koleo(students[0]) + koleo(students[1])) / 2
    assert objective(views, batch, heads).value.item() == pytest.approx(expected.item())


def test_one_global_crop_and_no_local_one_is_refused() -> None:
    batch = cases.batch()
    batch.global_crops, batch.local_crops, batch.masks = batch.global_crops[:1], batch.local_crops[:0], batch.masks[:1]
    with pytest.raises(ValueError, match="at least two global crops, or local crops"):
        system()(batch)


def test_the_teacher_is_the_moving_average() -> None:
    made = system()
    before = {name: p.clone() for name, p in made.teacher.named_parameters()}
    made.update_teacher()
    student = {f"backbone.{n}": p for n, p in made.model.backbone.named_parameters()}
    student |= {f"{o}.head.{n}": p for o in ("distillation", "masked") for n, p in made.objectives[o].head.named_parameters()}
    assert set(before) == set(student)
    for name, parameter in made.teacher.named_parameters():
        assert torch.allclose(parameter, 0.9 * before[name] + 0.1 * student[name]), name
    assert not any(p.requires_grad for p in made.teacher.parameters())
    assert not made.train().teacher.training


def test_a_teacher_is_made_only_for_who_needs_it() -> None:
    made = system(cases.config().model_copy(update={"distillation": None, "masked": None}))
    assert list(made.teacher.parameters()) == []
    made.update_teacher()
    assert made._look(cases.batch()).teacher_pooled is None


def test_losses_fall_when_one_batch_is_learnt() -> None:
    made, batch = system(), cases.batch()
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    first = made(batch)["losses"]
    for _ in range(40):
        optimiser.zero_grad()
        made(batch)["loss"].backward()
        optimiser.step()
        made.update_teacher()
    for name, value in made(batch)["losses"].items():
        assert value < 0.95 * first[name], name


def test_what_has_not_begun_costs_nothing_and_is_not_moved() -> None:
    made = system(late())
    out = made(cases.batch(), done=0.4)
    assert list(out["losses"]) == ["contrastive", "grounding", "depth"]
    views = made._look(cases.batch(), out["losses"])
    assert views.global_pooled is None
    assert views.teacher_pooled is None
    out["loss"].backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)  # as DDP wants it
    made.release(0.4)
    assert {p.grad is None for name in ("distillation", "masked") for p in made.objectives[name].parameters()} == {True}
    assert all(p.grad is not None for name in ("grounding", "depth") for p in made.objectives[name].parameters())
    half, late_weight = made(cases.batch(), done=0.6), 0.5
    expected = {"contrastive": 1.0, "distillation": 0.5 * late_weight, "masked": 0.7 * late_weight, "grounding": 0.9, "depth": 0.3}
    assert half["loss"].item() == pytest.approx(sum(weight * half["losses"][name].item() for name, weight in expected.items()))


def test_a_teacher_of_heads_alone_looks_with_the_students_backbone() -> None:
    made = system(cases.config().model_copy(update={"teacher": TeacherConfig(momentum=0.9, average="heads")}))
    batch = cases.batch()
    views = made._look(batch)
    assert "backbone" not in made.teacher
    assert torch.allclose(views.teacher_patches[0], made.model.tokens(batch.global_crops[0]))
    assert not views.teacher_patches.requires_grad
    before = {name: p.clone() for name, p in made.teacher.named_parameters()}
    made.update_teacher()
    for name, parameter in made.teacher.named_parameters():
        objective, _, rest = name.partition(".head.")
        assert torch.allclose(parameter, 0.9 * before[name] + 0.1 * made.objectives[objective].head.get_parameter(rest)), name


def test_visible_patches_are_predicted_too_if_asked_for() -> None:
    batch = cases.batch()
    losses, asked = {}, {}
    for weight in (0.0, 0.5, 1.0):
        masked = cases.config().masked.model_copy(update={"visible": weight})
        made = system(cases.config().model_copy(update={"masked": masked}))
        views, seen = made._look(batch), []
        made.objectives["masked"].head.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(output)))
        losses[weight] = made.objectives["masked"](views, batch, made.teacher["masked"]).value.item()
        asked[weight] = seen[0]
    assert asked == {0.0: int(batch.masks.sum()), 0.5: 9 * 7, 1.0: 9 * 7}  # one of eight crops has no mask
    assert losses[1.0] > losses[0.5]


def test_gram_holds_patches_to_an_earlier_teacher() -> None:
    alone = {name: None for name in NAMES if name != "contrastive"}
    made = system(cases.config().model_copy(update={**alone, "gram": GramConfig(every=3)}))
    anchor = copy.deepcopy(made.teacher["anchor"])
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert made(cases.batch())["losses"]["gram"] > 0
    for step in (1, 2):
        made.update_teacher(step)
    assert all(torch.equal(a, b) for a, b in zip(anchor.parameters(), made.teacher["anchor"].parameters(), strict=True))
    made.update_teacher(3)
    assert all(torch.equal(a, b) for a, b in zip(made.teacher["backbone"].parameters(), made.teacher["anchor"].parameters(), strict=True))


def test_views_hold_only_what_is_asked_for() -> None:
    made = system(cases.config().model_copy(update={name: None for name in NAMES if name != "depth"}))
    views: Views = made._look(cases.batch())
    assert views.image is None
    assert views.text is None
    assert len(views.layers) == 2


# By number of ranks: of the contrast, and which share of all steps is done, when half of the objectives begin at a half.
VARIANTS: dict[int, list[tuple[dict[str, Any], float]]] = {
    2: [({}, 1.0), ({"exchange": "ring"}, 0.1)],
    4: [({"exchange": "ring", "chunk": 1}, 1.0), ({"chunk": 3}, 1.0)],
}


def late(**contrastive: Any) -> ObjectivesConfig:
    """Self-supervision begins at a half of all steps."""
    whole = cases.config()
    begins = {name: getattr(whole, name).model_copy(update={"start": 0.5, "warmup": 0.2}) for name in ("distillation", "masked")}
    return whole.model_copy(update={**begins, "contrastive": ContrastiveConfig.model_validate(contrastive)})


def one_rank_of(rank: int, ranks: int, port: int, folder: str) -> None:
    """Under DDP, on this rank's slice: losses and metrics averaged over ranks, gradients as DDP leaves them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    for number, (fields, done) in enumerate(VARIANTS[ranks]):
        made = system(late(**fields))
        wrapped = DistributedDataParallel(made)  # kept: its hooks live as long as it does
        out = wrapped(cases.part(cases.batch(), rank, ranks), done)
        out["loss"].backward()
        made.release(done)
        values = {**out["losses"], **out["metrics"], "loss": out["loss"].detach()}
        for value in values.values():
            dist.all_reduce(value)
            value /= ranks
        if rank == 0:
            torch.save({"values": values, "gradients": gradients(made)}, f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_are_one_rank(ranks: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_rank_of, args=(ranks, port, str(tmp_path)), nprocs=ranks)
    for number, (fields, done) in enumerate(VARIANTS[ranks]):
        made = system(late())
        out = made(cases.batch(), done)
        out["loss"].backward()
        made.release(done)
        single = gradients(made)
        # How evenly a batch spreads is not a mean over samples: each rank says it of its own.
        expected = {**out["losses"], **{k: v for k, v in out["metrics"].items() if "spread" not in k}, "loss": out["loss"].detach()}
        together = torch.load(tmp_path / f"{number}.pt")
        for name, value in expected.items():
            assert together["values"][name].item() == pytest.approx(value.item(), rel=1e-6), (name, fields)
        assert set(single) == set(together["gradients"])
        for name, grad in single.items():
            assert torch.allclose(together["gradients"][name], grad, rtol=1e-6, atol=1e-9), (name, fields)
