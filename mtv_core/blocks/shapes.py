"""The solids' geometry in their local frames: ray intersection, normals, key points. Unit half height, y up, a ring's hole along z."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CUBE_HALF = 0.8
CYLINDER_RADIUS = 0.62
CONE_RADIUS = 0.85
RING_HOLE, RING_HALF = 0.52, 0.24
CROSS_ARMS = (np.array([0.32, 1.0, 0.28]), np.array([1.0, 0.32, 0.28]))
# Radius of a sphere about the local origin that holds the solid.
REACH: dict[str, float] = {"sphere": 1.0, "cube": 1.39, "cylinder": 1.18, "cone": 1.32, "ring": 1.03, "cross": 1.10}
_EPS = 1e-6


def _roots(a: FloatArray, b: FloatArray, c: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both roots of a t² + 2 b t + c, the smaller first; NaN where there is none."""
    a = np.where(np.abs(a) < 1e-12, 1e-12, a)
    disc = b * b - a * c
    root = np.sqrt(np.where(disc >= 0.0, disc, np.nan))
    first, second = (-b - root) / a, (-b + root) / a
    return np.fmin(first, second), np.fmax(first, second)


def _nearest(*candidates: tuple[FloatArray, NDArray[np.bool_]]) -> FloatArray:
    """Smallest positive t of those whose point lies on the surface; inf for a miss."""
    best = np.full(candidates[0][0].shape, np.inf)
    for t, on_surface in candidates:
        best = np.where(on_surface & (t > _EPS) & (t < best), t, best)
    return best


def _slab(o: FloatArray, d: FloatArray, half: FloatArray) -> FloatArray:
    safe = np.where(np.abs(d) < 1e-12, 1e-12, d)
    first, second = (-half - o) / safe, (half - o) / safe
    enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
    return np.where((enter <= leave) & (enter > _EPS), enter, np.inf)


def _plane(o: FloatArray, d: FloatArray, axis: int, half: float) -> FloatArray:
    """Where the ray enters the slab |axis| ≤ half."""
    safe = np.where(np.abs(d[..., axis]) < 1e-12, 1e-12, d[..., axis])
    return (-np.sign(safe) * half - o[..., axis]) / safe


def intersect(shape: str, o: FloatArray, d: FloatArray) -> FloatArray:
    """First hit of rays o + t d (from outside the solid), t > 0, with a solid; inf for a miss.

    o and d [..., 3] broadcast against each other, the result is [...].
    """
    o = np.broadcast_to(o, d.shape)
    with np.errstate(invalid="ignore"):
        if shape == "sphere":
            near, _ = _roots((d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1.0)
            return _nearest((near, np.isfinite(near)))
        if shape == "cube":
            return _slab(o, d, np.full(3, CUBE_HALF))
        if shape == "cross":
            return np.minimum(_slab(o, d, CROSS_ARMS[0]), _slab(o, d, CROSS_ARMS[1]))
        ox, oy, oz, dx, dy, dz = o[..., 0], o[..., 1], o[..., 2], d[..., 0], d[..., 1], d[..., 2]
        if shape == "cylinder":
            near, _ = _roots(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - CYLINDER_RADIUS**2)
            cap = _plane(o, d, 1, 1.0)
            on_cap = (ox + cap * dx) ** 2 + (oz + cap * dz) ** 2 <= CYLINDER_RADIUS**2
            return _nearest((near, np.abs(oy + near * dy) <= 1.0), (cap, on_cap))
        if shape == "cone":
            k, apex = (CONE_RADIUS / 2.0) ** 2, 1.0 - oy
            near, far = _roots(dx * dx + dz * dz - k * dy * dy, ox * dx + oz * dz + k * apex * dy, ox * ox + oz * oz - k * apex * apex)
            base = (-1.0 - oy) / np.where(np.abs(dy) < 1e-12, 1e-12, dy)
            on_base = (ox + base * dx) ** 2 + (oz + base * dz) ** 2 <= CONE_RADIUS**2
            return _nearest((near, np.abs(oy + near * dy) <= 1.0), (far, np.abs(oy + far * dy) <= 1.0), (base, on_base))
        if shape == "ring":
            a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy
            outer, _ = _roots(a, b, c - 1.0)
            _, inner = _roots(a, b, c - RING_HOLE**2)
            cap = _plane(o, d, 2, RING_HALF)
            rho = (ox + cap * dx) ** 2 + (oy + cap * dy) ** 2
            on_cap = (rho <= 1.0) & (rho >= RING_HOLE**2)
            return _nearest((outer, np.abs(oz + outer * dz) <= RING_HALF), (inner, np.abs(oz + inner * dz) <= RING_HALF), (cap, on_cap))
    raise ValueError(f"unknown shape {shape!r}; known shapes: {', '.join(REACH)}")


def _box_normal(p: FloatArray, half: FloatArray) -> FloatArray:
    ratio = p / half
    axis = np.abs(ratio).argmax(-1)
    normal = np.zeros_like(p)
    rows = np.arange(len(p))
    normal[rows, axis] = np.sign(ratio[rows, axis])
    return normal


def normals(shape: str, p: FloatArray) -> FloatArray:
    """Outward unit normals [N, 3] at surface points p [N, 3]."""
    if shape == "sphere":
        normal = p.copy()
    elif shape == "cube":
        normal = _box_normal(p, np.full(3, CUBE_HALF))
    elif shape == "cross":
        off = [np.abs(np.abs(p / half).max(-1) - 1.0) for half in CROSS_ARMS]
        normal = np.where((off[0] <= off[1])[:, None], _box_normal(p, CROSS_ARMS[0]), _box_normal(p, CROSS_ARMS[1]))
    elif shape == "cylinder":
        cap = np.abs(p[:, 1]) > 1.0 - 1e-4
        normal = np.where(cap[:, None], p * [0.0, 1.0, 0.0], p * [1.0, 0.0, 1.0])
    elif shape == "cone":
        slope = CONE_RADIUS / 2.0
        rho = np.hypot(p[:, 0], p[:, 2])
        side = np.stack([p[:, 0], rho * slope, p[:, 2]], axis=1)
        normal = np.where((p[:, 1] < -1.0 + 1e-4)[:, None], np.array([0.0, -1.0, 0.0]), side)
    elif shape == "ring":
        rho = np.hypot(p[:, 0], p[:, 1])
        radial = p * [1.0, 1.0, 0.0] * np.where(rho > 0.5 * (1.0 + RING_HOLE), 1.0, -1.0)[:, None]
        normal = np.where((np.abs(p[:, 2]) > RING_HALF - 1e-4)[:, None], p * [0.0, 0.0, 1.0], radial)
    else:
        raise ValueError(f"unknown shape {shape!r}; known shapes: {', '.join(REACH)}")
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def _circle(radius: float, y: float, plane: str = "xz", other: float = 0.0) -> list[tuple[float, float, float]]:
    points = [(radius, 0.0), (0.0, radius), (-radius, 0.0), (0.0, -radius)]
    return [(a, y, b) for a, b in points] if plane == "xz" else [(a, b, other) for a, b in points]


# Named points on each surface, the same for every instance of a shape: ground truth of semantic correspondence. [K, 3], local frame.
KEYPOINTS: dict[str, FloatArray] = {
    "sphere": np.array([(0.0, 1.0, 0.0), *_circle(1.0, 0.0)]),
    "cube": CUBE_HALF * np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]),
    "cylinder": np.array([(0.0, 1.0, 0.0), *_circle(CYLINDER_RADIUS, 1.0), *_circle(CYLINDER_RADIUS, -1.0)]),
    "cone": np.array([(0.0, 1.0, 0.0), *_circle(CONE_RADIUS, -1.0)]),
    "ring": np.array([*_circle(1.0, 0.0, "xy", -RING_HALF), *_circle(RING_HOLE, 0.0, "xy", -RING_HALF)]),
    "cross": np.array([(x, y, -0.28) for x, y in ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.0, 0.0))]),
}
