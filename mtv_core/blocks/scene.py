"""What a blocks scene is made of: coloured solids on a floor, one light, one camera. All of it follows from a numpy Generator.

World axes: x right, y up, z forward, metres; the floor is y = 0. Camera axes are OpenCV's: x right, y down, z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Hues far enough apart to be told from each other in the shade; linear RGB albedo in 0–1.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.07, 0.08),
    "orange": (0.97, 0.47, 0.03),
    "yellow": (0.93, 0.86, 0.08),
    "green": (0.08, 0.58, 0.14),
    "cyan": (0.10, 0.78, 0.82),
    "blue": (0.08, 0.18, 0.86),
    "purple": (0.55, 0.12, 0.70),
    "white": (0.97, 0.97, 0.97),
}
# Shapes whose outlines differ: disc, hexagon, can, triangle, hole, plus sign.
SHAPES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone", "ring", "cross")
SIZES: dict[str, float] = {"small": 0.46, "large": 0.68}  # half height in metres, ± 6 %
TEXTURES: tuple[str, ...] = ("plain", "stripes", "checker", "speckle")
FLOORS: tuple[str, ...] = ("plain", "checker", "planks", "speckle")
RESERVED_SEEDS = 1_000_000  # seeds from here on are the experts' and the benchmark's own, so that no user's shard holds their scenes
FAR = 12.0  # z-depth in metres at which the floor ends, so that no pixel of it is arbitrarily far

# How high a solid's centre lies above the floor, in half heights.
REST: dict[str, float] = {"sphere": 1.0, "cube": 0.8, "cylinder": 1.0, "cone": 1.0, "ring": 1.0, "cross": 1.0}


@dataclass(frozen=True)
class Solid:
    """One object. `radius` is the half height in metres, `yaw` the turn about the vertical in radians."""

    shape: str
    colour: str
    size: str
    x: float
    z: float
    radius: float
    yaw: float
    texture: str = "plain"
    albedo: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def name(self) -> str:
        """The class of the object: 'red sphere'."""
        return f"{self.colour} {self.shape}"

    @property
    def centre(self) -> FloatArray:
        """World position [3] of the centre of the local frame, metres."""
        return np.array([self.x, REST[self.shape] * self.radius, self.z])

    @property
    def rotation(self) -> FloatArray:
        """Local → world rotation [3, 3]."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `fov` is the full angle over the shorter side, so that objects keep their size in wide frames. Radians, metres."""

    position: tuple[float, float, float]
    pitch: float
    yaw: float
    fov: float

    @property
    def rotation(self) -> FloatArray:
        """World → camera rotation [3, 3]; rows are the camera's right, down and forward axes in the world."""
        cp, sp, cy, sy = np.cos(self.pitch), np.sin(self.pitch), np.cos(self.yaw), np.sin(self.yaw)
        forward = np.array([sy * cp, -sp, cy * cp])
        right = np.array([cy, 0.0, -sy])
        down = np.array([-sy * sp, -cp, -cy * sp])
        return np.stack([right, down, forward])

    def intrinsics(self, width: int, height: int) -> FloatArray:
        """K [3, 3] in pixels, for pixel centres at half-integers."""
        focal = 0.5 * min(width, height) / np.tan(0.5 * self.fov)
        return np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])

    def extrinsics(self) -> FloatArray:
        """World → camera [4, 4]."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = -self.rotation @ np.asarray(self.position)
        return matrix

    def project(self, points: FloatArray, width: int, height: int) -> FloatArray:
        """World points [N, 3] → [N, 3] of (u, v) in pixels and z-depth in metres; points behind the camera have z ≤ 0."""
        camera = (points - np.asarray(self.position)) @ self.rotation.T
        focal = self.intrinsics(width, height)[0, 0]
        z = camera[:, 2]
        safe = np.where(np.abs(z) < 1e-9, 1e-9, z)
        return np.stack([focal * camera[:, 0] / safe + 0.5 * width, focal * camera[:, 1] / safe + 0.5 * height, z], axis=1)


@dataclass(frozen=True)
class Scene:
    """Everything `render` needs. `noise_seed` makes texture speckles and sensor noise the same at every rendering."""

    solids: tuple[Solid, ...]
    camera: Camera
    light: tuple[float, float, float]  # unit vector towards the light
    ambient: float
    floor: str
    floor_colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    sky: tuple[tuple[float, float, float], tuple[float, float, float]]  # at the horizon, at the top
    noise: float  # standard deviation of the sensor noise, in 0–1 units
    noise_seed: int


def generator(seed: int, index: int) -> np.random.Generator:
    """The one source of randomness of scene `index` of the set `seed`: independent of every other scene, and of the order of making."""
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative (got seed={seed}, index={index})")
    return np.random.default_rng([seed, index])


def _camera(rng: np.random.Generator, aim_z: float) -> Camera:
    height = rng.uniform(1.3, 2.3)
    # Looking at a point a little above the floor, so that the objects are near the middle of the frame.
    pitch = np.arctan2(height - rng.uniform(0.35, 0.65), aim_z) + rng.normal(0.0, 0.02)
    return Camera((0.0, float(height), 0.0), float(pitch), float(rng.normal(0.0, 0.04)), float(np.radians(rng.uniform(44.0, 56.0))))


def _mute(rng: np.random.Generator, low: float, high: float, tint: float) -> tuple[float, float, float]:
    r, g, b = np.clip(rng.uniform(low, high) + rng.normal(0.0, tint, 3), 0.02, 1.0)
    return float(r), float(g), float(b)


def _solid(rng: np.random.Generator, colour: str, shape: str, size: str, x: float, z: float, radius: float) -> Solid:
    # A ring seen from its edge is a bar and a cross a pole: both face the camera within 50°. The others turn freely.
    yaw = rng.uniform(-0.87, 0.87) if shape in ("ring", "cross") else rng.uniform(-np.pi, np.pi)
    albedo = np.clip(np.asarray(COLOURS[colour]) * rng.uniform(0.88, 1.0) + rng.normal(0.0, 0.015, 3), 0.0, 1.0)
    red, green, blue = (float(channel) for channel in albedo)
    texture = TEXTURES[max(0, int(rng.integers(7)) - 3)]  # plain four times in seven
    return Solid(shape, colour, size, x, z, radius, float(yaw), texture, (red, green, blue))


class _Frame:
    """Where discs around the solids fall in a frame whose shorter side is 1: the cheap stand-in for rendering while placing."""

    def __init__(self, camera: Camera, aspect: float) -> None:
        self.width, self.height = (aspect, 1.0) if aspect >= 1.0 else (1.0, 1.0 / aspect)
        self.focal = float(camera.intrinsics(1, 1)[0, 0])
        self.rotation, self.position = camera.rotation, np.asarray(camera.position)
        self.placed: list[tuple[float, float, float, float, float, float]] = []  # x, z, radius in metres; u, v, reach in the frame

    def place(self, shape: str, x: float, z: float, radius: float) -> bool:
        """Take the place if the solid lies inside the frame and hides, or is hidden by, only a part of another."""
        cx, cy, cz = self.rotation @ (np.array([x, REST[shape] * radius, z]) - self.position)
        u, v, reach = self.focal * cx / cz + 0.5 * self.width, self.focal * cy / cz + 0.5 * self.height, self.focal * radius / cz
        margin = 0.85 * reach
        if not (margin < u < self.width - margin and margin < v < self.height - margin):
            return False
        for other_x, other_z, other_radius, other_u, other_v, other_reach in self.placed:
            if math.hypot(x - other_x, z - other_z) < 1.05 * (radius + other_radius):
                return False
            if math.hypot(u - other_u, v - other_v) < 0.62 * (reach + other_reach):
                return False
        self.placed.append((x, z, radius, u, v, reach))
        return True


def sample_scene(
    rng: np.random.Generator,
    *,
    names: list[tuple[str, str]] | None = None,
    max_solids: int = 4,
    aspect: float = 1.0,
) -> Scene:
    """Draw a scene of 1–`max_solids` solids, no two of one colour and shape.

    Args:
        rng: from `generator(seed, index)`.
        names: (colour, shape) of the solids, in order, instead of random ones; the first always fits, a later one is left out when
            no place is found for it.
        max_solids: at most so many, 1–4.
        aspect: width / height of the frame the scene is meant for, so that the objects are inside it.
    """
    single = len(names) == 1 if names is not None else max_solids == 1
    count = len(names) if names is not None else 1 + int(rng.choice(4, p=[0.30, 0.35, 0.23, 0.12]))
    count = min(count, max_solids) if names is None else count
    single = single or count == 1
    near, far = (2.1, 3.2) if single else (2.5, 4.4)
    camera = _camera(rng, aim_z=0.5 * (near + far))
    if names is None:
        classes = rng.choice(len(COLOURS) * len(SHAPES), size=count, replace=False)
        colours = list(COLOURS)
        names = [(colours[c // len(SHAPES)], SHAPES[c % len(SHAPES)]) for c in classes]
    placed: list[Solid] = []
    frame = _Frame(camera, aspect)
    for colour, shape in names:
        size = "small" if rng.random() < (0.5 if count <= 2 else 0.75) else "large"  # a crowd of large ones finds no room
        radius = SIZES[size] * float(rng.uniform(0.94, 1.06))
        for _ in range(40):
            z = float(rng.uniform(near, far))
            x = z * float(rng.uniform(-0.42, 0.42)) * max(aspect, 1.0)
            if frame.place(shape, x, z, radius):
                placed.append(_solid(rng, colour, shape, size, x, z, radius))
                break
        else:
            if not placed:  # the middle of the frame always has room for one
                placed.append(_solid(rng, colour, shape, "small", 0.0, 0.5 * (near + far), SIZES["small"]))
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.75, 1.25)
    light = (float(np.cos(elevation) * np.sin(azimuth)), float(np.sin(elevation)), float(-np.cos(elevation) * abs(np.cos(azimuth))))
    horizon = _mute(rng, 0.60, 0.80, 0.03)
    return Scene(
        solids=tuple(placed),
        camera=camera,
        light=light,
        ambient=float(rng.uniform(0.42, 0.58)),
        floor=FLOORS[int(rng.integers(len(FLOORS)))],
        floor_colours=(_mute(rng, 0.26, 0.55, 0.025), _mute(rng, 0.22, 0.48, 0.025)),
        sky=(horizon, _mute(rng, 0.45, 0.75, 0.04)),
        noise=float(rng.uniform(0.003, 0.015)),
        noise_seed=int(rng.integers(2**31)),
    )
