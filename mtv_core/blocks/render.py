"""Ray casting in NumPy: a scene in, a picture and its exact ground truth out.

Rays keep a z-component of 1 in the camera frame, so the ray parameter *is* the z-depth. A solid is tried only against the pixels of the
rectangle its bounding sphere projects into, which is what makes a 96 px scene a matter of milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtv_core.blocks import shapes
from mtv_core.blocks.scene import FAR, Scene, Solid

FloatArray = NDArray[np.float64]
SKY, FLOOR = -2, -1  # values of `instances` that are no solid
# Linear light (4096 steps) → byte. Softer than sRGB's 2.2, so that colours stay saturated.
_GAMMA = (((np.arange(4096) + 0.5) / 4096.0) ** (1.0 / 1.6) * 255.0 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Rendered:
    """A picture and its ground truth. N solids, in the scene's order."""

    rgb: NDArray[np.uint8]
    """[H, W, 3] sRGB."""
    depth: NDArray[np.float32]
    """[H, W] z-depth in metres; inf is sky."""
    instances: NDArray[np.int16]
    """[H, W] index of the solid; `FLOOR` or `SKY` elsewhere."""
    boxes: NDArray[np.float32]
    """[N, 4] normalised xyxy, the bounds of the visible pixels; zeros where none is."""
    visible: NDArray[np.float32]
    """[N] visible pixels over the pixels the solid alone would have in the frame."""
    keypoints: list[NDArray[np.float32]]
    """Per solid [K, 3]: u and v in pixels, and 1 where the point is seen, else 0. K depends on the shape."""
    intrinsics: FloatArray
    """[3, 3], pixels."""
    extrinsics: FloatArray
    """[4, 4] world → camera, metres."""

    def mask(self, solid: int) -> NDArray[np.bool_]:
        """[H, W] visible pixels of one solid."""
        return self.instances == solid


def _rectangle(scene: Scene, solid: Solid, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns that hold the projection of the solid's bounding cube; everything, when the camera is inside it."""
    reach = shapes.REACH[solid.shape] * solid.radius
    corners = solid.centre + reach * np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    u, v, z = scene.camera.project(corners, width, height).T
    if z.min() <= 0.05:
        return slice(0, height), slice(0, width)
    low_u, high_u = np.clip([np.floor(u.min()), np.ceil(u.max())], 0, width).astype(int)
    low_v, high_v = np.clip([np.floor(v.min()), np.ceil(v.max())], 0, height).astype(int)
    return slice(int(low_v), int(high_v)), slice(int(low_u), int(high_u))


def _pattern(kind: str, a: FloatArray, b: FloatArray, scale: float, rng: np.random.Generator) -> FloatArray:
    """0–1 mix factor of a texture over two surface coordinates."""
    if kind == "plain":
        return np.zeros(a.shape)
    if kind in ("stripes", "planks"):
        return np.floor(b * scale) % 2
    if kind == "checker":
        return (np.floor(a * scale) + np.floor(b * scale)) % 2
    # Speckles belong to the surface, not to the picture: a hash of the cell, so that they stay where they are when the camera moves.
    salt = float(rng.uniform(0.0, 100.0))
    cell = np.sin(np.floor(a * 3 * scale) * 12.9898 + np.floor(b * 3 * scale) * 78.233 + salt) * 43758.5453
    return cell - np.floor(cell)


def _shadow(scene: Scene, points: FloatArray, skip: int | None = None) -> NDArray[np.bool_]:
    """[N] whether another solid stands between a point [N, 3] and the light."""
    light = np.asarray(scene.light)
    dark = np.zeros(len(points), dtype=bool)
    for index, solid in enumerate(scene.solids):
        if index == skip:
            continue
        to_centre = solid.centre - points
        along = to_centre @ light
        reach = shapes.REACH[solid.shape] * solid.radius
        near = ((to_centre * to_centre).sum(-1) - along * along < reach * reach) & (along > 0.0) & ~dark
        if near.any():
            o = (points[near] - solid.centre) @ solid.rotation / solid.radius
            d = np.broadcast_to(light @ solid.rotation / solid.radius, o.shape)
            dark[near] = np.isfinite(shapes.intersect(solid.shape, o, d))
    return dark


def _shade_solid(scene: Scene, index: int, local: FloatArray, view: FloatArray) -> FloatArray:
    """Linear RGB [N, 3] at surface points in the local frame, seen along `view` (world, from the camera)."""
    solid = scene.solids[index]
    light = np.asarray(scene.light)
    normal = shapes.normals(solid.shape, local) @ solid.rotation.T
    world = local * solid.radius @ solid.rotation.T + solid.centre
    lambert = np.clip(normal @ light, 0.0, 1.0)
    lambert = np.where(_shadow(scene, world, skip=index), 0.0, lambert)
    rng = np.random.default_rng([scene.noise_seed, index])
    angle = np.arctan2(local[:, 2], local[:, 0]) / np.pi if solid.shape in ("sphere", "cylinder", "cone") else local[:, 0] + local[:, 2]
    tone = 1.0 - 0.30 * _pattern(solid.texture, angle, local[:, 1], 2.5, rng)
    half = light - view / np.linalg.norm(view, axis=1, keepdims=True)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    gloss = 0.18 * np.clip((normal * half).sum(-1), 0.0, 1.0) ** 24 * (lambert > 0.0)
    sky_fill = 0.12 * (normal[:, 1] - 1.0)  # sides and undersides see less of the sky
    intensity = scene.ambient * (1.0 + sky_fill) + (1.08 - scene.ambient) * lambert
    return np.asarray(solid.albedo) * (tone * intensity)[:, None] + gloss[:, None]


def _shade_floor(scene: Scene, points: FloatArray) -> FloatArray:
    rng = np.random.default_rng([scene.noise_seed, 1_000_000])
    mix = _pattern(scene.floor, points[:, 0], points[:, 2], 1.3, rng)[:, None]
    first, second = (np.asarray(colour) for colour in scene.floor_colours)
    lit = np.where(_shadow(scene, points), 0.0, scene.light[1])
    return (first * (1.0 - mix) + second * mix) * (scene.ambient + (1.05 - scene.ambient) * lit)[:, None]


def _keypoints(scene: Scene, depth: FloatArray, width: int, height: int) -> list[NDArray[np.float32]]:
    """A key point is seen when it lies in the frame and no surface is nearer than it, by more than a tenth of the solid."""
    seen = []
    for solid in scene.solids:
        world = shapes.KEYPOINTS[solid.shape] * solid.radius @ solid.rotation.T + solid.centre
        u, v, z = scene.camera.project(world, width, height).T
        inside = (z > 0.05) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        column, row = np.clip(u.astype(int), 0, width - 1), np.clip(v.astype(int), 0, height - 1)
        front = z <= depth[row, column] + 0.1 * solid.radius
        seen.append(np.stack([u, v, inside & front], axis=1).astype(np.float32))
    return seen


def render(scene: Scene, size: int = 96, *, width: int | None = None, height: int | None = None) -> Rendered:
    """Render a scene at size × size, or at width × height (then both must be given). One ray a pixel, through its centre."""
    if (width is None) != (height is None):
        raise ValueError("give both width and height, or neither and size")
    w, h = (width, height) if width is not None and height is not None else (size, size)
    if min(w, h) < 8:
        raise ValueError(f"a picture of {w} × {h} px shows nothing; use at least 8 px a side")
    camera = scene.camera
    k = camera.intrinsics(w, h)
    x = (np.arange(w) + 0.5 - k[0, 2]) / k[0, 0]
    y = (np.arange(h) + 0.5 - k[1, 2]) / k[1, 1]
    rotation, origin = camera.rotation, np.asarray(camera.position)
    rays = (x[None, :, None] * rotation[0]) + (y[:, None, None] * rotation[1]) + rotation[2]  # [H, W, 3], world

    depth = np.full((h, w), np.inf)
    instances = np.full((h, w), SKY, dtype=np.int16)
    down = rays[..., 1] < -1e-9
    floor_t = np.where(down, -origin[1] / np.where(down, rays[..., 1], -1.0), np.inf)
    on_floor = floor_t < FAR
    depth[on_floor], instances[on_floor] = floor_t[on_floor], FLOOR
    alone = np.zeros(len(scene.solids), dtype=np.int64)
    for index, solid in enumerate(scene.solids):
        rows, columns = _rectangle(scene, solid, w, h)
        o = (origin - solid.centre) @ solid.rotation / solid.radius
        t = shapes.intersect(solid.shape, o, rays[rows, columns] @ solid.rotation / solid.radius)
        alone[index] = np.isfinite(t).sum()
        nearer = t < depth[rows, columns]
        depth[rows, columns] = np.where(nearer, t, depth[rows, columns])
        instances[rows, columns] = np.where(nearer, index, instances[rows, columns])

    horizon, top = (np.asarray(colour) for colour in scene.sky)
    colour = np.broadcast_to(horizon + (top - horizon) * np.linspace(1.0, 0.0, h)[:, None, None], (h, w, 3)).copy()
    floor = instances == FLOOR
    colour[floor] = _shade_floor(scene, origin + rays[floor] * depth[floor][:, None])
    boxes = np.zeros((len(scene.solids), 4), dtype=np.float32)
    visible = np.zeros(len(scene.solids), dtype=np.float32)
    for index, solid in enumerate(scene.solids):
        mask = instances == index
        if not mask.any():
            continue
        view = rays[mask]
        local = (origin + view * depth[mask][:, None] - solid.centre) @ solid.rotation / solid.radius
        colour[mask] = _shade_solid(scene, index, local, view)
        us, vs = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        boxes[index] = us[0] / w, vs[0] / h, (us[-1] + 1) / w, (vs[-1] + 1) / h
        visible[index] = mask.sum() / alone[index]

    colour += np.random.default_rng([scene.noise_seed, 2_000_000]).normal(0.0, scene.noise, (h, w, 1))
    rgb = _GAMMA[(np.clip(colour, 0.0, 1.0) * 4095.0).astype(np.uint16)]
    return Rendered(rgb, depth.astype(np.float32), instances, boxes, visible, _keypoints(scene, depth, w, h), k, camera.extrinsics())
