"""The renderer against geometry computed another way, and captions against the picture."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from mtv_core.blocks import captions, shapes
from mtv_core.blocks.render import FLOOR, SKY, render
from mtv_core.blocks.scene import COLOURS, FAR, REST, SHAPES, Camera, Scene, Solid, generator, sample_scene
from mtv_core.blocks.shards import truth

FRAMES = [(96, 96), (128, 72), (64, 112)]


def scene_of(*solids: Solid, camera: Camera | None = None) -> Scene:
    grey = (0.4, 0.4, 0.4)
    camera = camera or Camera((0.0, 1.6, 0.0), 0.3, 0.0, 0.9)
    return Scene(solids, camera, (0.0, 1.0, 0.0), 0.5, "plain", (grey, grey), (grey, grey), 0.0, 7)


def solid_of(shape: str, x: float = 0.0, z: float = 3.5, yaw: float = 0.4, colour: str = "red", radius: float = 0.6) -> Solid:
    return Solid(shape, colour, "large", x, z, radius, yaw)


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    first, again, other = truth(3, 5), truth(3, 5), truth(3, 6)
    assert first.scene == again.scene
    assert first.caption == again.caption
    np.testing.assert_array_equal(first.rendered.rgb, again.rendered.rgb)
    np.testing.assert_array_equal(first.rendered.depth, again.rendered.depth)
    assert other.scene != first.scene


@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_boxes_are_the_bounds_of_the_masks(width: int, height: int) -> None:
    for index in range(12):
        rendered = truth(11, index, width, height).rendered
        assert rendered.rgb.shape == (height, width, 3)
        for solid, box in enumerate(rendered.boxes):
            rows, columns = np.nonzero(rendered.mask(solid))
            expected = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
            np.testing.assert_allclose(box, expected, atol=1e-6)
        np.testing.assert_array_equal(np.isinf(rendered.depth), rendered.instances == SKY)
        assert (rendered.visible > 0).all()
        assert (rendered.visible <= 1).all()


@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_back_projected_pixels_lie_on_the_surfaces(width: int, height: int) -> None:
    """depth, intrinsics and extrinsics agree: the floor comes out at height 0, a sphere's pixels at its radius."""
    camera = Camera((0.2, 1.7, -0.3), 0.28, 0.1, 0.85)
    ball = solid_of("sphere", x=0.3)
    rendered = render(scene_of(ball, camera=camera), width=width, height=height)
    v, u = np.mgrid[:height, :width] + 0.5
    seen = np.isfinite(rendered.depth)
    pixels = np.stack([u[seen], v[seen], np.ones(seen.sum())])
    in_camera = np.linalg.inv(rendered.intrinsics) @ pixels * rendered.depth[seen].astype(float)
    world = np.linalg.inv(rendered.extrinsics) @ np.concatenate([in_camera, np.ones((1, in_camera.shape[1]))])
    which = rendered.instances[seen]
    np.testing.assert_allclose(world[1, which == FLOOR], 0.0, atol=2e-6)
    distance = np.linalg.norm(world[:3, which == 0].T - ball.centre, axis=1)
    np.testing.assert_allclose(distance, ball.radius, atol=1e-5)
    assert (which == 0).sum() > 100
    assert rendered.depth[rendered.instances == FLOOR].max() < FAR


def test_depth_in_the_middle_of_a_sphere() -> None:
    """A camera that looks straight at a sphere's centre sees it a radius before the centre."""
    ball = solid_of("sphere", z=4.0)
    camera = Camera((0.0, float(ball.centre[1]), 0.0), 0.0, 0.0, 0.8)
    rendered = render(scene_of(ball, camera=camera), 97)  # odd: one ray goes through the middle
    assert rendered.depth[48, 48] == pytest.approx(4.0 - ball.radius, abs=1e-6)
    assert rendered.instances[48, 48] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_intersection_agrees_with_marching_along_the_ray(shape: str) -> None:
    """The first hit is where the solid, as a set of points, begins: found by small steps, no formula shared."""

    def inside(p: np.ndarray) -> np.ndarray:
        x, y, z = p[..., 0], p[..., 1], p[..., 2]
        flat, rho = np.hypot(x, z), np.hypot(x, y)
        box = [np.abs(p) <= half for half in shapes.CROSS_ARMS]
        return {
            "sphere": (p**2).sum(-1) <= 1,
            "cube": (np.abs(p) <= 0.8).all(-1),
            "cylinder": (flat <= 0.62) & (np.abs(y) <= 1),
            "cone": (flat <= 0.85 * (1 - y) / 2) & (np.abs(y) <= 1),
            "ring": (rho <= 1) & (rho >= 0.52) & (np.abs(z) <= 0.24),
            "cross": box[0].all(-1) | box[1].all(-1),
        }[shape]

    rng = np.random.default_rng(5)
    origin = rng.normal(size=(150, 3))
    origin *= 3.0 / np.linalg.norm(origin, axis=1, keepdims=True)
    direction = rng.uniform(-0.8, 0.8, (150, 3)) - origin
    t = shapes.intersect(shape, origin, direction)
    steps = np.linspace(0.0, 2.0, 8001)
    hit = inside(origin[:, None] + steps[:, None] * direction[:, None])
    marched = np.where(hit.any(1), steps[hit.argmax(1)], np.inf)
    both = np.isfinite(t) & np.isfinite(marched)
    assert both.sum() > 30
    assert (np.isfinite(t) ^ np.isfinite(marched)).sum() <= 2  # grazing rays fall between two steps
    np.testing.assert_allclose(t[both], marched[both], atol=5e-4)
    points = origin[both] + t[both][:, None] * direction[both]
    normal = shapes.normals(shape, points)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1.0, atol=1e-9)
    step = 1e-3 * normal
    assert inside(points - step).mean() > 0.97  # normals point outwards
    assert inside(points + step).mean() < 0.03


def test_occlusion_and_visible_fraction() -> None:
    """The nearer of two solids on one line of sight wins; the fraction is that of the pixels the hidden one has when it is alone."""
    near, far = solid_of("cube", z=2.6, radius=0.4), solid_of("sphere", z=4.4, radius=0.6, colour="blue")
    both, alone = render(scene_of(near, far)), render(scene_of(far))
    assert both.visible[0] == 1.0
    assert 0.1 < both.visible[1] < 0.95
    assert both.visible[1] == pytest.approx(both.mask(1).sum() / alone.mask(0).sum())
    overlap = both.mask(0) & alone.mask(0)
    assert overlap.any()
    assert (both.depth[overlap] < alone.depth[overlap]).all()


def test_key_points_project_onto_the_solid_and_hide_behind_it() -> None:
    cube = solid_of("cube", yaw=0.6)
    scene = scene_of(cube)
    rendered = render(scene, 192)
    u, v, seen = rendered.keypoints[0].T
    expected = scene.camera.project(shapes.KEYPOINTS["cube"] * cube.radius @ cube.rotation.T + cube.centre, 192, 192)
    np.testing.assert_allclose(np.stack([u, v], 1), expected[:, :2], atol=1e-3)
    assert 5 <= seen.sum() <= 7  # of a cube's eight corners one is hidden, and its neighbours on the floor nearly
    rows, columns = np.nonzero(rendered.mask(0))
    for x, y in zip(u[seen > 0], v[seen > 0], strict=True):
        assert np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() < 2.5


def test_a_solid_keeps_its_look_when_the_camera_moves() -> None:
    scene = sample_scene(generator(4, 4))
    other = replace(scene, camera=replace(scene.camera, position=(0.4, scene.camera.position[1], 0.1)))
    assert other.solids == scene.solids
    assert not np.array_equal(render(scene).rgb, render(other).rgb)


def test_named_solids_come_first_and_every_class_fits() -> None:
    for index, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        scene = sample_scene(generator(8, index), names=[(colour, shape)])
        assert [solid.name for solid in scene.solids] == [f"{colour} {shape}"]
        assert scene.solids[0].centre[1] == pytest.approx(REST[shape] * scene.solids[0].radius)
        assert render(scene, 64).mask(0).sum() > 100


def parse(text: str) -> tuple[list[tuple[str, str, str]], list[tuple[str, str | None]]]:
    """Read a caption as a person would: (subject, relation, object) and (name, size) of everything it mentions."""
    noun = rf"an? (?:(small|large) )?((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
    mentions = [(name, size or None) for size, name in re.findall(noun, text)]
    relation = "|".join(captions.RELATIONS)
    found = re.findall(rf"{noun} ({relation}) {noun}", text)
    return [(subject, how, other) for _, subject, how, _, other in found], mentions


def test_captions_are_true() -> None:
    related: set[str] = set()
    for index in range(150):
        sample = truth(21, index)
        solids = {solid.name: i for i, solid in enumerate(sample.scene.solids)}
        relations, mentions = parse(sample.caption.text)
        assert {name for name, _ in mentions} == {sample.scene.solids[i].name for i in sample.caption.mentions}
        assert len(relations) == len(sample.caption.relations)
        for name, size in mentions:
            assert size in (None, sample.scene.solids[solids[name]].size)
        for subject, how, other in relations:
            related.add(how)
            a, b = sample.rendered.mask(solids[subject]), sample.rendered.mask(solids[other])
            if how in ("left of", "right of"):
                shift = np.nonzero(a)[1].mean() - np.nonzero(b)[1].mean()
                assert (shift < 0) == (how == "left of"), sample.caption.text
            else:
                step = np.median(sample.rendered.depth[a]) - np.median(sample.rendered.depth[b])
                assert (step < 0) == (how == "in front of"), sample.caption.text
    assert related == set(captions.RELATIONS)


def test_wrong_arguments_say_what_to_do() -> None:
    scene = scene_of(solid_of("cube"))
    with pytest.raises(ValueError, match="both width and height"):
        render(scene, width=40)
    with pytest.raises(ValueError, match="at least 8 px"):
        render(scene, 4)
    with pytest.raises(ValueError, match="must not be negative"):
        generator(-1, 0)
