"""Draw the chest X-ray of a synthetic person: outlines, bones, vessels, disease, exposure.

All drawing happens in a chest frame, in px at 299: `x` across (positive: image right), `y` along the axis from landmark 0 to
landmark 1, `t` = y / axis length. Lung apices lie at t = 0, costophrenic angles at t = 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, gaussian_filter1d

Array = NDArray[Any]  # float32 [S, S] unless stated otherwise
Points = NDArray[np.float64]

BASE_PX = 299  # all lengths below are px in an image of this size
LEVELS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])  # fraction of the axis
INNER_T = np.array([0.12, 0.22, 0.35, 0.48, 0.65, 0.82, 1.0])
TABLE_T = np.linspace(-1.5, 3.5, 2048)  # lookup positions of every outline
TABLE_STEPS = 2047 / 5.0  # per unit of t


class Frame(NamedTuple):
    """Every pixel in the chest frame: x, y in px, t in axis lengths, q = |x| / rib cage half-width, all [S, S]."""

    x: Array
    y: Array
    t: Array
    beside: Array  # |x|
    q: Array
    cage: Array  # half-width of the rib cage, px
    inner: Array  # mediastinal border, px
    dome: Array  # level of the diaphragm, in t


@dataclass(frozen=True)
class Person:
    """One anatomy and its usual pose; px at 299."""

    category: str
    top_px: Points  # [2] landmark 0 (x, y)
    length_px: float
    angle: float  # radians, of the axis to the vertical
    offsets_px: Points  # [2, 5] image left, image right
    inner_px: Points  # [2, 7] mediastinal border at INNER_T
    dome_t: Points  # [2] highest point of the diaphragm
    ribs: int  # per axis length
    arms_up: bool
    build: tuple[float, ...]  # 12 uniform numbers in [0, 1) for minor traits
    texture: int  # seed of lung and soft-tissue texture


def ramp(depth: Array, soft: float) -> Array:
    """0 outside, 1 inside, linear over `soft` (unit of depth)."""
    return np.clip(depth * (1 / soft) + 0.5, 0, 1)


def bump(z: Array) -> Array:
    """About exp(-z^2), but exactly 0 beyond |z| = 1.8 and five times faster."""
    hill: Array = np.maximum(1 - 0.3 * z * z, 0)
    return hill * hill


def exact(function: Callable[..., Any], *values: Array) -> Array:
    """A function in double precision, float32: in single precision its last digit differs between processors and reaches the
    stored pixels."""
    return np.asarray(function(*(value.astype(np.float64) for value in values)), np.float32)


def lookup(table: NDArray[np.floating], position: Array) -> Array:
    """Values of `table` at the integer part of `position`, clipped to its ends, float32."""
    return np.take(table.astype(np.float32), position.astype(np.intp, copy=False), mode="clip")


def segment(f: Frame, start: tuple[float, float], end: tuple[float, float], bow: float = 0.0) -> Array:
    """Distance [S, S] in px from (|x|, y) to a segment on either side of the chest, bent into an S by `bow` px."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    rx, ry = f.beside - start[0], f.y - start[1]
    s = np.clip(rx * (dx / (dx * dx + dy * dy)) + ry * (dy / (dx * dx + dy * dy)), 0, 1)
    rx, ry = rx - s * dx, ry - s * dy
    if bow:
        ry += s * (1 - s) * (s - 0.5) * (10 * bow)
    return np.sqrt(rx * rx + ry * ry)


@cache
def interpolator(size: int, cells: int) -> Array:
    """Smooth upsampling matrix [size, cells], float64 for the reason of `exact`; field = M @ grid @ M.T."""
    position = np.linspace(0, cells - 1, size)[:, None] - np.arange(cells)
    weight: Array = np.exp(-((position / 0.6) ** 2)) * (np.abs(position) < 2)  # without tails: denormal numbers are slow
    weight /= weight.sum(1, keepdims=True)
    return weight


def clouds(rng: Generator, size: int, cells: int) -> Array:
    """Smooth random field [S, S] of about unit variance, with `cells` grains per side."""
    matrix = interpolator(size, cells)
    field = matrix @ rng.standard_normal((cells, cells), dtype=np.float32) @ matrix.T
    return field.astype(np.float32) * np.float32(1.6)


def chest_frame(person: Person, size: int) -> Frame:
    """Pixel grids in the chest frame, with the outlines looked up at each pixel."""
    pixel = np.arange(size, dtype=np.float32) * (BASE_PX / size)
    px, py = pixel[None] - float(person.top_px[0]), pixel[:, None] - float(person.top_px[1])
    sin, cos = float(np.sin(person.angle)), float(np.cos(person.angle))
    x, y = px * cos - py * sin, px * sin + py * cos
    t, beside, right = y * (1 / person.length_px), np.abs(x), x > 0
    root, at = np.sqrt(np.clip(TABLE_T, 0, 1)), np.sqrt([0.0, *INNER_T])  # interpolating in sqrt(t) rounds the apices
    cages = PchipInterpolator(np.sqrt(LEVELS), person.offsets_px, axis=1)(root)
    inners = PchipInterpolator(at, np.hstack([person.offsets_px[:, :1], person.inner_px]), axis=1)(root)
    level = np.clip((t - TABLE_T.item(0)) * TABLE_STEPS, 0, TABLE_T.size - 1) + right * np.float32(TABLE_T.size)
    level = level.astype(np.intp)
    cage, inner = lookup(cages.ravel(), level), lookup(inners.ravel(), level)
    q = beside / cage
    top = float(person.dome_t[0]) + right * np.float32(person.dome_t[1] - person.dome_t[0])
    lateral, medial = np.clip(q * 1.7 - 0.7, 0, 1), np.clip(1 - q * 2.4, 0, 1)
    lateral *= lateral
    dome = top + (1 - top) * lateral * (0.5 + 0.5 * lateral * lateral) + 0.12 * medial * medial
    return Frame(x, y, t, beside, q, cage, inner, dome)


def draw_body(f: Frame, person: Person) -> Array:
    """Soft-tissue thickness [S, S], 0..1: neck, shoulders, trunk, arms, breasts."""
    b, wall = person.build, float(person.offsets_px.max())
    neck, width, span = 34 + 16 * b[1], wall + 8 + 34 * b[0], wall + (30 if person.arms_up else 44 + 20 * b[2])
    shoulder_t = [-1.5, -0.36, -0.2, -0.12, -0.06, 0.06, 0.25, 0.45, 3.5]
    half = np.interp(TABLE_T, shoulder_t, [neck, neck, neck + 14, 0.6 * span, 0.82 * span, span, span - 6, width, width - 4])
    depth = lookup(half, (f.t - TABLE_T.item(0)) * TABLE_STEPS) - f.beside
    trunk = 0.62 * ramp(depth, 6) + 0.38 * np.sqrt(np.clip(depth * (1 / 80), 0, 1))
    hand = (span + 35, -120.0) if person.arms_up else (span + 2 + 50 * b[2] * b[2], person.length_px * 1.4)
    arm = segment(f, (span - 18, 0.13 * person.length_px), hand)
    arms = (0.85 * ramp(22 - arm, 6) + 0.16 * ramp(7 - arm, 4)) * np.sqrt(np.clip(1 - arm * (1 / 34), 0, 1))
    body = np.maximum(trunk, arms)
    if b[10] > 0.6 and not person.arms_up:
        breast = ramp(1.25 - bump((f.q - 0.6) / 0.55) * 0.6 - f.t, 0.06) * bump((f.q - 0.62) / 0.4) * bump((f.t - 0.85) / 0.25)
        body += (b[10] - 0.5) * 0.36 * breast
    return body


def draw_lungs(f: Frame, person: Person) -> tuple[Array, Array]:
    """Air [S, S], 0..1, and the same with a sharp edge, which masks the lung texture."""
    lateral, base = f.cage - f.beside, (f.dome - f.t) * person.length_px
    depth = np.minimum(np.minimum(np.minimum(lateral, base), f.beside - f.inner), f.y)
    sharp = ramp(depth, 4)
    behind = ramp(np.minimum(lateral, base), 4) * ramp(f.t - 0.1, 0.1) * 0.1  # lung behind the heart
    return np.maximum(sharp * (0.5 + 0.5 * np.sqrt(np.clip(depth * (1 / 28), 0, 1))), behind), sharp


def rib(phase: Array, half_width: float) -> Array:
    """A rib in each unit interval of `phase`, with a brighter cortex."""
    away = np.abs(phase - np.floor(phase) - 0.5)
    return ramp(half_width - away, 0.12) * (0.65 + 3.2 * np.clip(away - (half_width - 0.12), 0, 0.12))


def draw_bones(f: Frame, person: Person) -> Array:
    """Ribs, clavicles, spine and scapulae [S, S], about 0..1."""
    b, length, ribs = person.build, person.length_px, person.ribs
    inside = ramp(1.07 - f.q, 0.05) * ramp(f.t + 0.02, 0.1) * (0.15 + 0.85 * ramp(1.0 - f.t, 0.4))
    square = np.minimum(f.q, 1.1) ** 2
    back = rib((f.t - 0.30 * square * f.q + 0.12 * f.q + 0.1 * b[3] - 0.05 * f.t * f.t) * ribs, 0.2) * ramp(1.5 - f.q, 1.0)
    front = rib((f.t + 0.26 * square + 0.1 * b[4]) * (ribs - 1.5), 0.24) * ramp(f.q - 0.65, 0.4)
    cage = inside * (back * 0.5 + 0.24 * front + bump((f.q - 1.03) * 28) * (0.3 + 0.2 * back))
    out = float(person.offsets_px.mean()) * 1.5
    low, high = (0.10 + 0.06 * b[5]) * length, (-0.24 if person.arms_up else -0.04 + 0.08 * b[6]) * length
    clavicle = segment(f, (17, low), (out, high), bow=5 + 6 * b[7])
    collar = ramp(5 - clavicle, 3) * (0.6 + 0.07 * np.minimum(clavicle, 6))
    blade = segment(f, (out - 18, high + 14), (float(person.offsets_px[:, 2].mean()) + 8, 0.5 * length))
    head = segment(f, (out + 16, high + 18), (out + 18, high + 20))
    vertebra = 0.5 + 0.5 * exact(np.cos, f.t * (2 * np.pi * (ribs + 1)) + 6 * b[8])
    spine = ramp(14 - f.beside, 5) * (0.5 + 0.5 * np.sqrt(vertebra)) + 0.3 * bump((f.beside - 14) * 0.5)
    spine += 0.35 * bump(f.x * 0.25) * vertebra * vertebra
    shoulder = 0.22 * ramp(7 - blade, 9) + 0.3 * ramp(14 - head, 4) + 0.15 * ramp(11 - head, 3)
    return cage + 0.6 * collar + shoulder + (0.2 + 0.4 * b[9]) * spine


def draw_middle(f: Frame, person: Person) -> Array:
    """Mediastinum with heart and trachea, abdomen with stomach gas [S, S]."""

    def blob(x: float, t: float, wide_px: float, high_t: float) -> Array:
        across, along = (f.x - x) * (1 / wide_px), (f.t - t) * (1 / high_t)
        return across * across + along * along

    middle = ramp(f.inner - f.beside, 18) * ramp(f.t + 0.1, 0.3)
    heart = np.clip(1.2 - blob(18, 0.78, float(person.inner_px[1, 5]), 0.36), 0, 1)
    trachea = ramp(7.5 - np.abs(f.x + 1), 5) * ramp(0.33 - f.t, 0.15)
    below = ramp((f.t - f.dome) * person.length_px, 14) * (0.5 + 0.5 * np.clip((f.t - f.dome) * 4, 0, 1))
    gas = np.clip(1.3 - blob(40 + 25 * person.build[10], float(person.dome_t[1]) + 0.17, 26, 0.1), 0, 0.7)
    belly: Array = below * (0.16 - 0.35 * max(person.build[11] - 0.4, 0) * gas)
    return 0.10 * middle + 0.12 * heart - 0.11 * trachea + belly


def in_bands(draw: Callable[[Frame, Person], Array], f: Frame, person: Person) -> Array:
    """`draw(f, person)`, band by band of 96 rows: smaller arrays stay in the CPU cache, which saves a third of the time."""
    bands = (Frame(*(grid[row : row + 96] for grid in f)) for row in range(0, len(f.x), 96))
    return np.concatenate([draw(band, person) for band in bands])


def draw_vessels(f: Frame, person: Person, rng: Generator) -> Array:
    """Branches that radiate from the hila, plus the hila themselves [S, S]."""
    side, down = f.beside - 24, f.y - 0.44 * person.length_px
    radius = np.sqrt(side * side + down * down)
    noise = gaussian_filter1d(rng.standard_normal((2, 512)), 2.5, mode="wrap")
    table = np.clip(1 - np.abs(noise / noise.std() - 0.7) * 1.8, 0, 1)
    turn = exact(np.arctan2, down, side) * (256 / np.pi) + (f.x > 0) * np.float32(512)
    lines = lookup(table.ravel(), turn + 256 + clouds(rng, len(f.x), 14) * 13)
    hilum: Array = bump(side * (1 / 13)) * bump(down * (1 / 26))
    return (0.9 + 0.3 * lines) * hilum + lines * bump(radius * (1 / 60)) * (0.5 + 0.6 * rng.random())


def draw_disease(f: Frame, person: Person, rng: Generator) -> Array:
    """Opacity inside the lung [S, S]: peripheral ground glass (COVID) or diffuse perihilar streaks (viral pneumonia)."""
    size, amount = len(f.x), 0.3 + 0.7 * rng.random()
    fine = clouds(rng, size, 60)
    if person.category == "COVID":
        region = ramp(f.q - 0.55, 0.6) * ramp(f.t - 0.4, 0.8)
        return region * (amount * (0.06 + np.clip(clouds(rng, size, 7) + 0.5, 0, 1.5) * (0.15 + 0.02 * fine)))
    if person.category == "Viral Pneumonia":
        near = bump((f.q - 0.4) * 2) * bump((f.t - 0.5) * 1.8)
        return amount * near * (0.09 + 0.08 * np.clip(1 - 1.5 * np.abs(clouds(rng, size, 40)), 0, 1) + 0.02 * fine)
    return 0.008 * fine


def expose(person: Person, shot: Generator, size: int) -> NDArray[np.uint8]:
    """Render the person: attenuation, tone curve, quantum noise, blur, collimation and marker; uint8 [S, S]."""
    texture = default_rng(person.texture)
    f = chest_frame(person, size)
    body, bones, middle = (in_bands(draw, f, person) for draw in (draw_body, draw_bones, draw_middle))
    air, lung = draw_lungs(f, person)
    inside = draw_disease(f, person, texture) + 0.10 * draw_vessels(f, person, texture)
    bone, aerated, flatness = texture.uniform(0.06, 0.2), texture.uniform(0.24, 0.45), texture.uniform(0, 0.8)
    value = body * (0.55 + middle + bone * bones)
    haze = texture.uniform(0.4 if person.category == "COVID" else 0.65, 1, 2).astype(np.float32)  # of each lung
    air *= haze[0] + (f.x > 0) * (haze[1] - haze[0])
    value += (0.012 * clouds(texture, size, 18) + 0.12 * clouds(texture, size, 4)) * body - aerated * air + lung * inside
    blurred = interpolator(size, 7).T / (size / 7)  # evens out local contrast, as detectors do
    value -= flatness * (interpolator(size, 7) @ (blurred @ (value - 0.5) @ blurred.T) @ interpolator(size, 7).T) * body
    low, high, gamma = shot.uniform(-0.15, 0.18), shot.uniform(0.74, 1.2), shot.uniform(0.6, 1.7)
    level = np.clip((np.linspace(-0.5, 1.5, 2000) - low) / (high - low), 0, None)
    tone = np.where(level > 0.75, 1 - 0.25 * np.exp(-(level - 0.75) / 0.25), level) ** gamma  # compresses highlights like film
    value = lookup(tone, value * 1000 + 500)
    grain, blur_px = shot.uniform(0.005, 0.04), shot.uniform(0.45, 1.0)
    value += np.sqrt(value + 0.01) * (shot.standard_normal((size, size), dtype=np.float32) * grain)
    value = gaussian_filter(value, blur_px * size / BASE_PX, truncate=2.5)
    return decorated(np.clip(value * 245, 0, 255).astype(np.uint8), shot)


def decorated(image: NDArray[np.uint8], shot: Generator) -> NDArray[np.uint8]:
    """Add a collimation border and a side marker to some images, [S, S]."""
    size, edges, chance = len(image), shot.uniform(0, 0.04, 4), shot.random(3)
    if chance[0] < 0.25:
        top, bottom, left, right = (edges * size).astype(int)
        image[:top], image[size - bottom :], image[:, :left], image[:, size - right :] = 4, 4, 3, 3
    if chance[1] < 0.5:
        canvas = Image.fromarray(image)
        position = (0.02 * size, (0.03 + 0.3 * chance[2]) * size)
        ImageDraw.Draw(canvas).text(position, "R", fill=245, font_size=0.06 * size)
        image = np.array(canvas)
    return image
