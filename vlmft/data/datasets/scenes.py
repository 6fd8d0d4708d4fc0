"""Counting scenes in the manner of CLEVR: a few solids on a light floor, drawn from nothing but a name.

The same name gives the same bytes on every machine. Random words come straight from the bit generator, whose stream
numpy keeps for ever (its `Generator` methods may change, NEP 19). Sprites use + - * / and sqrt alone, which IEEE 754
rounds one way (pow and exp it does not), are summed in a written order and rounded to integers. The rest is integers.

Condition A and B palettes: Johnson et al., "CLEVR", section 4.7 (CLEVR-CoGenT), https://arxiv.org/abs/1612.06890
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

Condition = Literal["A", "B"]
Floats = np.ndarray
T = TypeVar("T")

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "gray": (110, 112, 116),
    "red": (214, 40, 40),
    "blue": (48, 84, 226),
    "green": (38, 140, 48),
    "brown": (146, 88, 40),
    "purple": (146, 52, 196),
    "cyan": (40, 204, 214),
    "yellow": (250, 220, 40),
}
SHAPES = ("cube", "sphere", "cylinder")
SIZES: Mapping[str, float] = {"small": 0.072, "large": 0.115}
"""Radius as a share of the image's side, before perspective."""
_WARM, _COOL = ("gray", "blue", "brown", "yellow"), ("red", "green", "purple", "cyan")
PALETTES: Mapping[Condition, Mapping[str, tuple[str, ...]]] = {
    "A": {"cube": _WARM, "sphere": tuple(COLOURS), "cylinder": _COOL},
    "B": {"cube": _COOL, "sphere": tuple(COLOURS), "cylinder": _WARM},
}

MIN_VISIBLE_SHARE = 0.5
"""Every object shows at least this share of its own pixels ..."""
MIN_VISIBLE_IMAGE_SHARE = 0.0022
"""... and at least this share of the image's (20 pixels of 96 x 96)."""
MAX_OBJECTS = 12
"""More do not fit reliably under the rules above."""

MIN_IMAGE_SIZE = 48
"""Pixels; below, a small object is a few pixels wide."""


class Draw:
    """A stream of random choices that is a function of its name alone."""

    def __init__(self, *name: str | int) -> None:
        digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
        self._bits = np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big")))
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()
        return (self._words.pop() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high], both included."""
        return low + self.below(high - low + 1)

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]


@dataclass(frozen=True)
class Look:
    """What an object is, wherever it stands."""

    colour: str
    shape: str
    size: str
    material: str
    turn: int
    """Which of the four ways a cube is turned; spheres and cylinders look the same in all."""


@dataclass(frozen=True)
class SceneObject:
    look: Look
    x: int
    """Centre of the drawn body, pixels from the left."""
    y: int
    """Pixels from the top."""


@dataclass(frozen=True)
class Scene:
    objects: tuple[SceneObject, ...]
    """From far to near: a later one may hide part of an earlier one."""
    image_size: int
    """Side of the square image, pixels."""
    floor: tuple[int, ...]
    """Red, green, blue at the top; how much brighter the bottom and the right edge are."""


def draw_look(draw: Draw, condition: Condition) -> Look:
    """A look under the condition's palette: shape first, then a colour that it may have."""
    shape = draw.choice(SHAPES)
    colour = draw.choice(PALETTES[condition][shape])
    return Look(colour, shape, draw.choice(tuple(SIZES)), draw.choice(tuple(_MATERIALS)), draw.below(len(_TURNS)))


def make_scene(draw: Draw, condition: Condition, min_objects: int, max_objects: int, image_size: int) -> Scene:
    """A scene whose number of objects is uniform over min..max (both included)."""
    n_objects = draw.between(min_objects, max_objects)
    return place(draw, [draw_look(draw, condition) for _ in range(n_objects)], image_size)


def place(draw: Draw, looks: Sequence[Look], image_size: int) -> Scene:
    """Spreads the objects over the whole frame so that each is visible; a failed attempt moves all, changing none.

    Raises:
        ValueError: no attempt found room for all of them.
    """
    floor = tuple(draw.between(low, high) for low, high in _FLOOR)
    for _ in range(500):
        objects = _spread(draw, looks, image_size)
        if objects is None:
            continue
        scene = Scene(tuple(sorted(objects, key=lambda item: _foot(item, image_size))), image_size, floor)
        if is_visible(scene):
            return scene
    raise ValueError(f"Expected room for {len(looks)} objects in {image_size} px; ask for at most {MAX_OBJECTS}")


def is_visible(scene: Scene) -> bool:
    """Whether every object keeps the visibility rule."""
    shown = np.bincount(id_mask(scene).ravel(), minlength=len(scene.objects) + 1)[1:]
    own = [int(_body(item, scene.image_size).solid.sum()) for item in scene.objects]
    least = MIN_VISIBLE_IMAGE_SHARE * scene.image_size**2
    return all(pixels >= max(MIN_VISIBLE_SHARE * area, least) for pixels, area in zip(shown.tolist(), own, strict=True))


def id_mask(scene: Scene) -> np.ndarray:
    """(image_size, image_size) uint8: which object a pixel shows, counted from 1 in the scene's order; 0 is floor."""
    mask = np.zeros((scene.image_size, scene.image_size), np.uint8)
    for number, item in enumerate(scene.objects, start=1):
        solid = _body(item, scene.image_size).solid
        window, inside = _windows(item.x, item.y, solid.shape[0] // 2, scene.image_size)
        mask[window][solid[inside]] = number
    return mask


@cache
def drawing_code() -> str:
    """Hash of the code that makes scenes and draws them."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def render(scene: Scene) -> PIL.Image.Image:
    """The scene as an RGB picture."""
    import PIL.Image

    canvas = _floor(scene.floor, scene.image_size)
    for item in scene.objects:  # all shadows lie on the floor, below every object
        radius = _radius(item.look.size, item.y, scene.image_size)
        keep = _shadow(radius)
        x, y = item.x + round(0.3 * radius), round(_foot(item, scene.image_size))
        window, inside = _windows(x, y, keep.shape[0] // 2, scene.image_size)
        canvas[window] = (canvas[window] * keep[inside] + 128) >> 8
    for item in scene.objects:
        sprite = _sprite(item.look, _radius(item.look.size, item.y, scene.image_size))
        window, inside = _windows(item.x, item.y, sprite.keep.shape[0] // 2, scene.image_size)
        canvas[window] = (canvas[window] * sprite.keep[inside] + sprite.ink[inside]) >> 8
    return PIL.Image.fromarray(canvas.astype(np.uint8))


# ---------------------------------------------------------------------------------------------------- placing

_FLOOR = ((188, 206), (188, 206), (188, 206), (8, 36), (-14, 14))
_DEPTH_SCALES = (0.86, 0.92, 0.98, 1.04, 1.1)
"""Mild perspective: what stands higher in the picture is farther away and drawn smaller."""
_CLEARANCE = 0.66
"""Centres keep this share of the sum of the two radii; under 1 leaves room for partial occlusion."""


def _radius(size: str, y: int, image_size: int) -> float:
    return SIZES[size] * image_size * _DEPTH_SCALES[y * len(_DEPTH_SCALES) // image_size]


def _foot(item: SceneObject, image_size: int) -> float:
    """Where it meets the floor, pixels from the top."""
    return item.y + _GROUND[item.look.shape] * _radius(item.look.size, item.y, image_size)


def _drop(draw: Draw, look: Look, image_size: int) -> SceneObject:
    """Anywhere inside the frame, up to its edges: bodies are at most 1 radius wide and 1.09 high, each way."""
    above, below = (round(1.09 * _radius(look.size, y, image_size)) for y in (0, image_size - 1))
    y = draw.between(above, image_size - 1 - below)
    beside = round(_radius(look.size, y, image_size))
    return SceneObject(look, draw.between(beside, image_size - 1 - beside), y)


def _spread(draw: Draw, looks: Sequence[Look], image_size: int) -> list[SceneObject] | None:
    placed: list[tuple[SceneObject, float]] = []
    for look in looks:
        for _ in range(30):
            item = _drop(draw, look, image_size)
            radius = _CLEARANCE * _radius(look.size, item.y, image_size)
            if all(
                (item.x - other.x) ** 2 + (item.y - other.y) ** 2 >= (radius + theirs) * (radius + theirs)
                for other, theirs in placed
            ):
                placed.append((item, radius))
                break
        else:
            return None
    return [item for item, _ in placed]


def _windows(x: int, y: int, half: int, image_size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a (2 half + 1)-pixel square round (x, y) lies in the image, and which part of the square that is."""
    left, top = max(0, x - half), max(0, y - half)
    right, bottom = min(image_size, x + half + 1), min(image_size, y + half + 1)
    inside = (slice(top - y + half, bottom - y + half), slice(left - x + half, right - x + half))
    return (slice(top, bottom), slice(left, right)), inside


# ---------------------------------------------------------------------------------------------------- drawing

_SUPERSAMPLE = 4
_LOOK_ALONG, _LOOK_DOWN = 0.8, 0.6
"""The camera looks along (0, 0.8, -0.6): x to the right, y away from it, z up."""
_LIGHT = (-0.48, -0.36, 0.8)
_GLINTS = ((-0.26, -0.63, 0.73), (-0.48, -0.86, 0.17))
"""Normals that glint: half way between light and camera, and a low one for upright faces. Unit length to two digits."""
_TURNS = ((0.8, 0.6), (0.8, -0.6), (0.96, 0.28), (0.96, -0.28))
"""Cosine and sine of a cube's turn about the vertical."""
_MATERIALS: Mapping[str, tuple[float, float, float, int]] = {
    "rubber": (0.5, 0.52, 0.07, 2),
    "metal": (0.3, 0.7, 0.9, 5),
}
"""Ambient light, diffuse light, strength of the highlight, and how often it is squared to make it small."""
_ROUND, _HALF_HEIGHT, _HALF_SIDE = 0.82, 0.74, 0.66
"""Cylinder's radius and half its height, half a cube's side; a sphere's radius is 1."""
_GROUND: Mapping[str, float] = {
    "cube": _HALF_SIDE * _LOOK_ALONG,
    "sphere": _LOOK_ALONG,
    "cylinder": _HALF_HEIGHT * _LOOK_ALONG,
}
"""How far below an object's centre it meets the floor, in radii."""
_OUTLINE = 0.3
"""Opacity of the dark pixel round a body: without it, neighbours of one colour melt into each other."""


@dataclass(frozen=True)
class _Body:
    """An uncoloured solid, (n, n) each, n odd; light and gloss are multiplied by coverage."""

    coverage: Floats
    light: Floats
    gloss: Mapping[str, Floats]
    solid: np.ndarray
    """bool: at least half covered."""


@dataclass(frozen=True)
class _Sprite:
    """How to draw it in integers: canvas = (canvas * keep + ink) >> 8."""

    keep: np.ndarray
    """(n, n, 1) uint16 in 0..256: how much of what was there shows through."""
    ink: np.ndarray
    """(n, n, 3) uint16."""


def _body(item: SceneObject, image_size: int) -> _Body:
    turn = item.look.turn if item.look.shape == "cube" else 0
    return _traced_body(item.look.shape, turn, _radius(item.look.size, item.y, image_size))


@cache
def _traced_body(shape: str, turn: int, radius: float) -> _Body:
    half = int(1.2 * radius) + 2
    n = (2 * half + 1) * _SUPERSAMPLE
    steps = ((np.arange(n) + 0.5) / _SUPERSAMPLE - half - 0.5) / radius
    u, v = steps[None, :] + np.zeros((n, 1)), -steps[:, None] + np.zeros((1, n))
    hit, point, normal = _TRACERS[shape](u, v, turn)
    # A normal that leans outwards towards the rim stands for rounded edges: flat faces get a gradient and a highlight.
    bent = tuple(a + 0.3 * b for a, b in zip(normal, point, strict=True))
    length = np.sqrt(_dot(bent, bent)) + 1e-9
    light = hit * np.maximum(_dot(bent, _LIGHT) / length, 0.0)
    facing = np.maximum(0.0, np.maximum(_dot(bent, _GLINTS[0]), _dot(bent, _GLINTS[1]))) / length
    gloss = {name: _gloss(facing, row[3]) for name, row in _MATERIALS.items()}
    coverage = _shrink(hit * 1.0)
    return _Body(coverage, _shrink(light), {k: _shrink(hit * g) for k, g in gloss.items()}, coverage >= 0.5)


@cache
def _sprite(look: Look, radius: float) -> _Sprite:
    body = _traced_body(look.shape, look.turn if look.shape == "cube" else 0, radius)
    ambient, diffuse, specular, _ = _MATERIALS[look.material]
    shade = (ambient * body.coverage + diffuse * body.light)[..., None] * np.array(COLOURS[look.colour], np.float64)
    paint = np.minimum(shade + (255 * specular * body.gloss[look.material])[..., None], 255 * body.coverage[..., None])
    padded = np.pad(body.coverage, 1)
    near = np.maximum.reduce([padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]])
    opacity = body.coverage + (1 - body.coverage) * _OUTLINE * near
    keep = 256 - np.rint(256 * opacity).astype(np.uint16)
    # ink + 255 * keep stays below 256 * 256, so uint16 never overflows
    ink = np.minimum(np.rint(256 * paint).astype(np.uint16), 255 * (256 - keep[..., None])) + 128
    return _Sprite(keep[..., None], ink)


@cache
def _shadow(radius: float) -> np.ndarray:
    """(n, n, 1) uint16 in 0..256: how much of the floor's light is left."""
    half = int(1.3 * radius) + 1
    steps = np.arange(-half, half + 1) / radius
    across, down = steps[None, :] / 1.25, steps[:, None] / 0.8
    core = np.clip(1.3 * (1 - across * across - down * down), 0, 1)
    keep = 256 - np.rint(256 * 0.42 * core).astype(np.uint16)
    return keep[..., np.newaxis]


def _floor(floor: tuple[int, ...], image_size: int) -> np.ndarray:
    """(image_size, image_size, 3) uint16."""
    ramp = np.arange(image_size)
    slope = (ramp * floor[3] // image_size)[:, None] + (ramp * floor[4] // image_size)[None, :]
    light: np.ndarray = np.clip(slope[..., None] + np.array(floor[:3]), 0, 255)
    return light.astype(np.uint16)


def _shrink(fine: Floats) -> Floats:
    """Mean of each block, added in a written order: numpy's own sums group by the machine's vector width."""
    total = np.zeros_like(fine[::_SUPERSAMPLE, ::_SUPERSAMPLE])
    for row in range(_SUPERSAMPLE):
        for column in range(_SUPERSAMPLE):
            total = total + fine[row::_SUPERSAMPLE, column::_SUPERSAMPLE]
    return total / _SUPERSAMPLE**2


def _dot(a: Sequence[Floats | float], b: Sequence[Floats | float]) -> Floats:
    return np.asarray(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def _gloss(cosine: Floats, squarings: int) -> Floats:
    for _ in range(squarings):
        cosine = cosine * cosine
    return cosine


# Tracers: image plane (u right, v up, in radii) -> hit, the point of the surface, its normal. Rays are parallel:
# (u, v * down, v * along) + t * (0, along, -down).

_Traced = tuple[np.ndarray, tuple[Floats, Floats, Floats], tuple[Floats, Floats, Floats]]


def _along_ray(u: Floats, v: Floats, t: Floats) -> tuple[Floats, Floats, Floats]:
    return u, v * _LOOK_DOWN + t * _LOOK_ALONG, v * _LOOK_ALONG - t * _LOOK_DOWN


def _trace_sphere(u: Floats, v: Floats, turn: int) -> _Traced:
    rest = 1 - u * u - v * v
    point = _along_ray(u, v, -np.sqrt(np.maximum(rest, 0)))
    return rest >= 0, point, point


def _trace_cylinder(u: Floats, v: Floats, turn: int) -> _Traced:
    rest = _ROUND * _ROUND - u * u
    side = _along_ray(u, v, (-np.sqrt(np.maximum(rest, 0)) - v * _LOOK_DOWN) / _LOOK_ALONG)
    top = _along_ray(u, v, (v * _LOOK_ALONG - _HALF_HEIGHT) / _LOOK_DOWN)
    on_top = top[0] * top[0] + top[1] * top[1] <= _ROUND * _ROUND
    on_side = (rest >= 0) & (np.abs(side[2]) <= _HALF_HEIGHT)
    point = tuple(np.where(on_top, a, b) for a, b in zip(top, side, strict=True))
    normal = (np.where(on_top, 0, side[0] / _ROUND), np.where(on_top, 0, side[1] / _ROUND), on_top * 1.0)
    return on_top | on_side, (point[0], point[1], point[2]), normal


def _trace_cube(u: Floats, v: Floats, turn: int) -> _Traced:
    cos, sin = _TURNS[turn]
    start = (cos * u + sin * v * _LOOK_DOWN, cos * v * _LOOK_DOWN - sin * u, v * _LOOK_ALONG)
    way = (sin * _LOOK_ALONG, cos * _LOOK_ALONG, -_LOOK_DOWN)
    signs = [1.0 if w > 0 else -1.0 for w in way]
    enter = [(-s * _HALF_SIDE - p) / w for p, w, s in zip(start, way, signs, strict=True)]
    leave = [(s * _HALF_SIDE - p) / w for p, w, s in zip(start, way, signs, strict=True)]
    t = np.maximum.reduce(enter)
    face = [-s * (e == t) for e, s in zip(enter, signs, strict=True)]
    normal = (cos * face[0] - sin * face[1], sin * face[0] + cos * face[1], face[2])
    return t <= np.minimum.reduce(leave), _along_ray(u, v, t), normal


_TRACERS = {"cube": _trace_cube, "sphere": _trace_sphere, "cylinder": _trace_cylinder}
