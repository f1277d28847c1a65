"""Draw a portrait whose age shows: soft shapes, and one table of how faces change."""

from collections.abc import Iterator
from types import SimpleNamespace as Face

import numpy as np
from PIL import Image

from agelib.sample.canvas import Canvas, at, curve, mirrored, mix, oval, ramp

# How a face changes with age, in face units (the frame spans -1..1, y points down) or
# in shares of 1. Each face reads every row at its own pace: see `_face`.
AGES = (0, 3, 8, 14, 22, 40, 55, 70, 85, 105)
BY_AGE = {
    "width": (0.635, 0.62, 0.585, 0.56, 0.55, 0.56, 0.57, 0.57, 0.55, 0.53),
    "cheek": (0.98, 0.98, 0.96, 0.93, 0.91, 0.91, 0.92, 0.92, 0.90, 0.88),
    "jaw": (0.75, 0.75, 0.75, 0.75, 0.75, 0.76, 0.78, 0.80, 0.81, 0.80),
    "chin_y": (0.73, 0.74, 0.76, 0.79, 0.82, 0.82, 0.82, 0.82, 0.82, 0.81),
    "eye_y": (0.14, 0.10, 0.03, -0.04, -0.09, -0.09, -0.09, -0.08, -0.07, -0.06),
    "eye_x": (0.285, 0.278, 0.265, 0.255, 0.25, 0.25, 0.25, 0.25, 0.245, 0.24),
    "eye_w": (0.152, 0.150, 0.142, 0.132, 0.126, 0.123, 0.119, 0.112, 0.105, 0.100),
    "eye_h": (0.106, 0.101, 0.087, 0.074, 0.067, 0.062, 0.057, 0.049, 0.042, 0.036),
    "brow": (0.15, 0.30, 0.55, 0.80, 1.00, 1.00, 0.95, 0.85, 0.70, 0.60),
    "nose_y": (0.34, 0.32, 0.28, 0.25, 0.24, 0.25, 0.26, 0.28, 0.30, 0.31),
    "nose_w": (0.080, 0.084, 0.092, 0.102, 0.108, 0.113, 0.121, 0.131, 0.139, 0.145),
    "mouth_y": (0.51, 0.50, 0.49, 0.48, 0.48, 0.485, 0.49, 0.51, 0.52, 0.53),
    "mouth_w": (0.135, 0.155, 0.178, 0.194, 0.205, 0.208, 0.208, 0.205, 0.200, 0.195),
    "lip": (0.048, 0.050, 0.052, 0.055, 0.057, 0.052, 0.044, 0.035, 0.026, 0.021),
    "blush": (1.00, 0.90, 0.60, 0.40, 0.30, 0.22, 0.20, 0.22, 0.25, 0.25),
    "crease": (0.00, 0.00, 0.00, 0.01, 0.06, 0.34, 0.60, 0.84, 1.00, 1.10),
    "sag": (0.00, 0.00, 0.00, 0.00, 0.02, 0.20, 0.48, 0.76, 0.96, 1.10),
    "spots": (0.00, 0.00, 0.00, 0.00, 0.02, 0.08, 0.26, 0.60, 0.92, 1.10),
    "grey": (0.00, 0.00, 0.00, 0.00, 0.00, 0.14, 0.50, 0.84, 1.00, 1.05),
    "thin": (0.75, 0.30, 0.05, 0.00, 0.00, 0.12, 0.28, 0.46, 0.62, 0.72),
    "longest": (0.00, 0.45, 1.00, 1.40, 1.40, 1.40, 0.90, 0.55, 0.40, 0.35),
    "ear": (0.135, 0.140, 0.145, 0.150, 0.155, 0.165, 0.178, 0.195, 0.210, 0.220),
    "neck": (0.24, 0.25, 0.27, 0.30, 0.33, 0.35, 0.35, 0.33, 0.31, 0.29),
}
# The lines of age, on both sides: from which point of the face, with which row of the
# table they deepen, how strong and how wide they are, and their way from that point.
LINES = (
    ("eye", "crease", 0.7, 0.013, (0.15, -0.02), (0.19, -0.05), (0.22, -0.09)),
    ("eye", "crease", 0.8, 0.013, (0.15, 0.01), (0.20, 0.01), (0.24, 0.00)),
    ("eye", "crease", 0.6, 0.013, (0.14, 0.04), (0.19, 0.07), (0.22, 0.10)),
    ("eye", "sag", 0.9, 0.018, (-0.09, 0.07), (0.01, 0.105), (0.11, 0.06)),
    ("eye", "sag", 0.5, 0.070, (-0.12, 0.11), (0.00, 0.15), (0.12, 0.11)),
    ("brow", "crease", 0.7, 0.015, (0.035, 0.08), (0.04, 0.04), (0.03, -0.02)),
    ("nose", "crease", 1.0, 0.019, (0.02, -0.05), (0.10, 0.07), (0.145, 0.19)),
    ("nose", "sag", 0.5, 0.080, (0.10, 0.02), (0.18, 0.10), (0.20, 0.22)),
    ("mouth", "sag", 0.8, 0.017, (0.03, 0.03), (0.06, 0.09), (0.05, 0.16)),
    ("mouth", "sag", 0.5, 0.014, (0.15, -0.12), (0.19, -0.02), (0.17, 0.08)),
    ("mouth", "sag", 0.6, 0.090, (0.10, 0.06), (0.13, 0.14), (0.10, 0.24)),
)


def _palette(codes: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(code)) for code in codes.split()], float)


SKINS = _palette("fbe5d7 f5d3ba ebbb97 d9a275 ba8056 925f3e 6b442d")
HAIRS = _palette("17130f 2b1c14 4a2f1f 6d4528 94502c c08d4f dcb878")
IRISES = _palette("2d1a10 4a2c17 6b4a24 6d7442 5d8794 7398b8")
CLOTHES = _palette("7b93a8 b5766b 8ca088 d9b26f 66618a c9c2b5 4d5a66 c98f9f")
BACKDROPS = _palette("d8e2e6 ecdccd d7dfcf e6d5dc cfd3e2 f0e6d2 b9c6c9 c9b8a8")
FRAMES = _palette("2b2624 5a3a28 7d828a 3c4a63 8c3f3a")
GREY, WHITE, DARK, ROSE, GOLD = _palette("c2bcb4 fbf9f6 2a1a16 d0605e d8b25c")


def draw_face(age: float, rng: np.random.Generator, size: int = 200) -> Image.Image:
    """A drawn face of this age in years, `size` pixels wide and high, RGB.

    The age is meant to be guessed, not read: people age at their own pace.
    """
    f = _face(age, rng)
    blank = Image.new("RGB", (3 * size, 3 * size))  # drawn large, for smooth edges
    canvas = Canvas(blank, rng.normal(0, 0.05), rng.uniform(0.92, 1.0))
    _background(canvas, f, rng)
    skin = _head(canvas, f, rng)
    _age_lines(canvas, f, rng, skin)
    _nose(canvas, f, skin)
    _mouth(canvas, f, rng)
    for side in (-1, 1):
        _eye(canvas, f, side, rng)
    _hair(canvas, f, rng, skin)
    if f.glasses:
        _glasses(canvas, f, rng)
    return _photograph(canvas.image, f, rng, size)


def _face(age: float, rng: np.random.Generator) -> Face:
    """Who this is: the anatomy at this age, and all that age does not decide."""
    pace = np.exp(rng.normal(0, 0.09))
    f = Face()
    for name, row in BY_AGE.items():
        seen_age = age * pace * np.exp(rng.normal(0, 0.08))
        setattr(f, name, np.interp(seen_age, AGES, row) * rng.normal(1, 0.03))
    sex = rng.choice(["masculine", "feminine"])
    grown = np.interp(age * pace, (11, 19), (0, 1))
    f.male, f.female = grown * (sex == "masculine"), grown * (sex == "feminine")
    f.jaw *= 1 + grown * rng.normal(0, 0.04) + 0.05 * f.male - 0.05 * f.female
    f.brow *= 1 + 0.35 * f.male - 0.25 * f.female
    f.nose_w *= 1 + 0.06 * f.male - 0.06 * f.female
    f.lip *= 1 + 0.15 * f.female - 0.10 * f.male
    f.neck *= 1 + 0.08 * f.male - 0.08 * f.female
    f.thin *= 1 - 0.5 * f.female
    w = f.width
    f.skull = [(0, -0.80), (0.5 * w, -0.735), (0.88 * w, -0.48), (w, -0.12)]
    f.chin_y += rng.normal(0, 0.015)
    f.brow_y = f.eye_y - f.eye_h - 0.085

    dark = rng.uniform()
    f.skin = ramp(SKINS, dark) + rng.normal(0, 3, 3)
    f.shade = f.skin * (0.78, 0.66, 0.62)
    f.deep = f.skin * (0.50, 0.36, 0.33)
    f.lit = mix(f.skin, np.array([255, 244, 226]), 0.5)
    f.rose = mix(f.skin * (0.95, 0.62, 0.60), ROSE, 0.35)
    f.hair = ramp(HAIRS, rng.uniform(0, np.clip(1.15 - 1.5 * dark, 0.12, 1)))
    f.iris = ramp(IRISES, rng.uniform(0, np.clip(1.2 - 1.6 * dark, 0.2, 1)))
    f.silver = mix(GREY, WHITE, 1.6 * (f.grey - 0.5))
    f.hair_now = mix(f.hair, f.silver, f.grey)
    f.curls, f.fringe, f.tied = rng.random(3) < (0.16, 0.22, 0.2 * f.female)
    f.volume = 0.04 if f.tied else rng.uniform(0.03, 0.13) + 0.06 * f.curls
    f.wave = rng.choice([0, 0.01, 0.025]) * (not f.curls)
    f.hairline, f.temple = rng.uniform((-0.64, -0.44), (-0.50, -0.36))
    f.part = rng.uniform(-0.45, 0.45)
    f.fringe = f.fringe and not f.curls
    if f.fringe:
        f.hairline, f.temple, f.part = -0.37, -0.35, 0
    length = rng.choice([0.05, 0.35, 0.66, 1.4, 1.4]) * (sex == "feminine")
    f.hair_end = min(0.05 if f.tied else max(length, 0.05), f.longest)

    f.light = rng.choice([-1, 1]) * rng.uniform(0.5, 1)
    f.turn = rng.normal(0, 0.025)
    f.smile = np.clip(rng.normal(0.65, 0.4), 0.1, 1.2)
    f.open = max(0, f.smile - 0.5) * rng.choice([0, 1]) * (age > 4)
    f.beard = f.male**3 * rng.choice([0, 0.2, 0.9], p=[0.55, 0.22, 0.23])
    f.bald = np.clip(f.thin * f.male * rng.uniform(0.4, 2.0), 0, 1)
    f.makeup = f.female * rng.choice([0.1, 0.4, 0.9])
    f.glasses = rng.random() < np.interp(age, (3, 10, 45, 70), (0, 0.1, 0.2, 0.4))
    return f


def _background(c: Canvas, f: Face, rng: np.random.Generator) -> None:
    """All that is behind the head: backdrop, long hair, neck, clothes, ears."""
    c.fill(oval(0, 0, 3, 3), rng.choice(BACKDROPS) + rng.normal(0, 8, 3))
    c.fill(oval(0.5 * f.light, -0.3, 0.9, 0.9), WHITE, 0.45, soft=0.35)
    if f.tied:
        bun = oval(0, -0.74, 0.22, 0.30) * (1 - min(f.thin, 0.9) / 2)
        c.fill(bun, f.hair_now * 0.8, soft=0.01)
    if f.hair_end > 0.3:
        c.fill(_hair_curves(f)[0], f.hair_now * 0.68, soft=0.01)
    n, chin = f.neck, f.chin_y
    neck = mirrored((0, 0.3), (n, 0.35), (0.97 * n, 0.8), (1.3 * n, 1.02), (0, 1.5))
    c.fill(neck, mix(f.skin, f.shade, 0.6), soft=0.004)
    c.fill(oval(-0.08 * f.light, chin, 1.1 * n, 0.12), f.deep, 0.5, 0.05, c.mask(neck))
    cloth = rng.choice(CLOTHES) + rng.normal(0, 8, 3)
    dip = rng.uniform(1.0, 1.15)
    top = mirrored((0, dip), (0.8 * n, 0.99), (1.25 * n, 0.92), (1.1, 1.06), (1.5, 1.6))
    c.fill(top, cloth)
    c.stroke(np.vstack([top[84:], top[:25]]), cloth * 0.8, 0.04, taper=0.4)
    for side in (-1, 1):
        x, y = side * 0.985 * f.width, f.eye_y + 0.13
        c.fill(oval(x, y, 0.5 * f.ear, f.ear), mix(f.skin, f.rose, 0.25), soft=0.005)
        c.fill(oval(x, y, 0.28 * f.ear, 0.65 * f.ear), f.shade, 0.7, soft=0.02)
        if f.makeup > 0.3:
            c.fill(oval(x, y + 1.05 * f.ear, 0.025, 0.025), GOLD)


def _head(c: Canvas, f: Face, rng: np.random.Generator) -> Image.Image:
    """The head in its light, and the mask of its skin."""
    outline = mirrored(*f.skull, (f.cheek * f.width, 0.26),
                       (f.jaw * f.width, f.mouth_y + 0.03),
                       (0.5 * f.jaw * f.width, f.chin_y - 0.065),
                       (0, f.chin_y))  # fmt: skip
    outline[:, 0] += f.turn * np.clip(outline[:, 1], 0, 1)
    skin = c.mask(outline)
    c.fill(outline, f.shade, soft=0.004)
    toward = at(f.light, -0.4)
    c.fill(outline * 0.93 + 0.06 * toward, f.skin, 1, 0.09, skin)
    c.fill(outline * 0.55 + 0.14 * toward, f.lit, 0.35, 0.16, skin)
    for side in (-1, 1):
        x = side * f.eye_x
        c.fill(oval(x, f.eye_y - 0.03, 0.17, 0.11), f.shade, 0.4, 0.05, skin)
        cheek = oval(side * 0.6 * f.width, f.nose_y + 0.01, 0.16, 0.12)
        c.fill(cheek, f.rose, 0.12 + 0.3 * f.blush, 0.08, skin)
        c.fill(cheek * 0.5 + at(0.6 * x, 0.07), f.lit, 0.25, 0.05, skin)
    c.fill(oval(0, f.chin_y - 0.1, 0.1, 0.05), f.lit, 0.3, 0.04, skin)
    if f.beard:
        _beard(c, f, rng, skin)
    return skin


def _beard(c: Canvas, f: Face, rng: np.random.Generator, skin: Image.Image) -> None:
    w, jaw, full = f.width, f.jaw * f.width, f.beard > 0.4
    colour = f.hair_now
    shape = mirrored(
        (0, f.nose_y + 0.07), (0.7 * f.mouth_w, f.nose_y + 0.09),
        (f.mouth_w + 0.06, f.mouth_y - 0.02), (0.78 * w, 0.3), (0.95 * w, 0.0),
        (1.02 * f.cheek * w, 0.26), (1.03 * jaw, f.mouth_y + 0.05),
        (0.52 * jaw, f.chin_y - 0.04), (0, f.chin_y + 0.04 * full),
    )  # fmt: skip
    soft, clip = (0.015, None) if full else (0.05, skin)
    c.fill(shape, colour * 0.9, f.beard, soft, clip)
    for _ in range(220 * full):
        x, y = rng.choice(shape) * rng.uniform((0, 0.8), 1)
        if y > f.mouth_y + 0.06:
            hair = curve((x, y - 0.03), (1.01 * x, y), (1.03 * x, y + 0.03))
            c.stroke(hair, colour * rng.uniform(0.7, 1.3), 0.012, 0.5)


def _eye(c: Canvas, f: Face, side: int, rng: np.random.Generator) -> None:
    droop, squint = 0.25 * f.sag, 0.15 * f.smile
    inner, outer = (-1, 0.3), (1, droop - 0.1)
    upper = curve(inner, (-0.45, -0.72), (0.3, droop - 0.9), outer)
    lower = curve(outer, (0.4, 0.75 - squint), (-0.4, 0.8 - squint), inner)
    place = at(side * f.eye_x + f.turn, f.eye_y)
    upper, lower = (p * (side * f.eye_w, f.eye_h) + place for p in (upper, lower))
    lids = np.vstack([upper, lower])
    eye, r = c.mask(lids), 0.52 * f.eye_w
    x, y = place + at(0.6 * f.turn, -0.08 * f.eye_h)
    c.fill(lids, mix(WHITE, f.skin, 0.16))
    c.fill(oval(x, y, r, r), f.iris * 0.5, clip=eye)
    c.fill(oval(x, y, 0.85 * r, 0.85 * r), f.iris, 1, 0.008, eye)
    glow = mix(f.iris, WHITE, 0.5)
    c.fill(oval(x, y + 0.45 * r, 0.5 * r, 0.3 * r), glow, 0.6, 0.012, eye)
    c.fill(oval(x, y, 0.45 * r, 0.45 * r), DARK * 0.5, clip=eye)
    c.stroke(upper + at(0, 0.012), DARK, 0.05, 0.45, 0.012, eye)
    gleam = x + 0.35 * r * np.sign(f.light), y - 0.35 * r
    c.fill(oval(*gleam, 0.22 * r, 0.22 * r), WHITE, 0.95, clip=eye)
    lash = mix(f.deep * 0.7, DARK, 0.3 + 0.7 * f.makeup)
    c.stroke(upper, lash, 0.018 + 0.014 * f.makeup, 0.95, taper=0.7)
    c.stroke(lower, f.deep, 0.010, 0.5)
    fold = upper - at(0, 0.042 - 0.012 * f.sag)
    c.stroke(fold, f.deep, 0.012, 0.35 + 0.2 * f.crease, 0.004)
    for t in np.linspace(0.55, 0.95, 6) if f.makeup > 0.3 else ():
        root = upper[int(t * len(upper))]
        tip = root + at(side * 0.04 * t, -0.03)
        c.stroke(curve(root, (root + tip) / 2 + at(0, 0.006), tip), lash, 0.014, 0.8)
    tail = (1.35, 0.02 + 0.1 * droop)
    arch = curve((-1.05, 0.02), (-0.3, -0.014), (0.5, -0.026), tail)
    arch = arch * (side * f.eye_w, 1) + at(place[0], f.brow_y)
    brows = mix(f.hair, f.silver, 0.8 * f.grey)
    c.stroke(arch, brows, 0.015 + 0.028 * f.brow, 0.2 + 0.3 * f.brow, 0.008, taper=0.6)
    for t in np.linspace(0, 0.97, 26):
        root = arch[int(t * len(arch))] + at(0, 0.012 * f.brow)
        tip = root + at(side * (0.015 + 0.03 * t), 0.03 * t - 0.034) * f.brow
        hair = curve(root, (root + tip) / 2, tip)
        c.stroke(hair, brows * rng.uniform(0.75, 1), 0.013, 0.7 * f.brow**2)


def _nose(c: Canvas, f: Face, skin: Image.Image) -> None:
    x, y, w, away = 1.6 * f.turn, f.nose_y, f.nose_w, -np.sign(f.light)
    ridge = curve((x + away * 0.06, f.brow_y + 0.05), (x + away * 0.04, f.eye_y + 0.1),
                  (x + away * 0.8 * w, y - 0.04))  # fmt: skip
    c.stroke(ridge, f.shade, 0.07, 0.45, 0.025, skin)
    c.stroke(curve((x, f.eye_y - 0.04), (x, y - 0.05)), f.lit, 0.06, 0.45, 0.022)
    under = mirrored((0, -0.025), (0.9 * w, -0.03), (0.6 * w, 0.02), (0, 0.035))
    c.fill(under + at(x, y), f.shade, 0.65, 0.016)
    c.fill(oval(x, y - 0.05, 0.5 * w, 0.04), f.lit, 0.45, 0.02)
    for side in (-1, 1):
        nostril = oval(x + side * 0.45 * w, y + 0.002, 0.24 * w, 0.014)
        c.fill(nostril, f.deep * 0.6, 0.75, 0.005)
        wing = curve((0.80, -0.085), (1.05, -0.04), (0.78, 0.008))
        c.stroke(wing * (side * w, 1) + at(x, y), f.deep, 0.016, 0.5, 0.004)


def _mouth(c: Canvas, f: Face, rng: np.random.Generator) -> None:
    w, lip, gap = f.mouth_w * (1 + 0.12 * f.smile), f.lip, 0.085 * f.open
    corner = at(w, -0.006 - 0.06 * f.smile)

    def across(side: float, middle: float, out: float = 0.5) -> np.ndarray:
        """Curve from corner to corner of the mouth."""
        points = (-out * w, side), (0, middle), (out * w, side)
        path = curve(corner * (-1, 1), *points, corner)
        return path + at(1.2 * f.turn, f.mouth_y)

    bow, seam = across(-0.8 * lip, -0.55 * lip, 0.27), across(0.003, 0.012)
    edge = across(0.003 + 0.8 * gap, 0.012 + gap)
    base = across(gap + 0.78 * lip, gap + 1.15 * lip)
    colour = mix(f.rose, f.shade, 0.4 * f.male)
    colour = mix(colour, ROSE * rng.uniform(0.7, 1.1), 0.55 * f.makeup)
    c.stroke(base + at(0, 0.02), f.shade, 0.05, 0.6, 0.016)
    c.fill(np.vstack([seam, edge[::-1]]), WHITE * 0.96)
    c.fill(np.vstack([bow, seam[::-1]]), colour * 0.88, 1, 0.004)
    c.fill(np.vstack([edge, base[::-1]]), colour, 1, 0.004)
    c.stroke((edge + base)[15:-15] / 2, f.lit, 0.5 * lip, 0.45, 0.01)
    c.stroke(seam, f.deep * 0.7, 0.014, 0.85, taper=0.6)
    for x, y in corner * ((-1, 1), (1, 1)):
        c.fill(oval(x + 1.2 * f.turn, y + f.mouth_y, 0.02, 0.016), f.deep, 0.4, 0.01)


def _age_lines(c: Canvas, f: Face, rng: np.random.Generator, skin: Image.Image) -> None:
    """Wrinkles, hollows, spots and mottled skin, each as deep as the table says."""

    def line(path: np.ndarray, depth: float, width: float) -> None:
        soft = 0.003 + 0.4 * max(0, width - 0.02)
        c.stroke(path + at(0, 0.8 * width), f.lit, width, 0.35 * depth, soft, skin)
        colour = f.deep if width < 0.03 else f.shade
        c.stroke(path, colour, width * (0.6 + 0.5 * depth), 0.6 * depth, soft, skin)

    w, brow_y = f.width, f.brow_y
    start = {"eye": (f.eye_x, f.eye_y), "brow": (0, brow_y),
             "nose": (f.nose_w, f.nose_y), "mouth": (f.mouth_w, f.mouth_y)}  # fmt: skip
    for point, row, strength, width, *way in LINES:
        for side in (-1, 1):
            path = curve(*way) + start[point] + rng.normal(0, 0.005, 2)
            depth = strength * getattr(f, row) * rng.uniform(0.7, 1.1)
            line(path * (side, 1), depth, width)
    for y in brow_y - np.array([0.08, 0.15, 0.22]):
        reach, (a, b) = rng.uniform(0.45, 0.65) * w, y + rng.normal(0, 0.008, 2)
        middle = (-0.3 * reach, a - 0.015), (0.3 * reach, b - 0.015)
        path = curve((-reach, a + 0.01), *middle, (reach, b + 0.01))
        line(path, f.crease * rng.uniform(0.5, 1.1), 0.016)
    for _ in range(rng.poisson(14 * f.spots)):
        x, y, r = *rng.uniform((-w, -0.7), (w, 0.5)), rng.uniform(0.01, 0.03)
        c.fill(oval(x, y, r, 0.8 * r), f.deep * (1.15, 1, 0.8), 0.3, 0.008, skin)
    for _ in range(30):
        patch = oval(*rng.uniform((-w, -0.7), (w, 0.8)), 0.06, 0.05)
        tint = (f.rose, f.lit, f.shade)[rng.integers(3)]
        c.fill(patch, tint, 0.04 + 0.2 * f.spots, 0.03, skin)


def _hair_curves(f: Face) -> tuple[np.ndarray, np.ndarray]:
    """Outline and hairline from ear to ear, sample by sample side by side."""
    w, end = f.width, f.hair_end
    volume, mid = f.volume * (1 - min(f.thin, 0.9)), (end - 0.12) / 2
    skull = np.array(f.skull)
    outer = skull * (1 + volume / np.hypot(*skull.T)[:, None])
    wide = w + 1.3 * volume * (end > 0.3)
    outer = np.vstack([outer, at(wide, mid), at(max(wide - 0.01, w), end)])
    slope = mix(f.hairline, f.temple, 1 / 3)
    inner = np.array([(0, f.hairline), (0.36 * w, slope), (0.74 * w, f.temple),
                      (0.93 * w, -0.16), (0.95 * w, mid), (0.96 * w, end)])  # fmt: skip
    part = f.part * w * np.outer((1, 0.5, 0, 0, 0, 0), (1, 0))
    bare = f.bald * np.array([0.85, 0.9, 1, 0.3, 0, 0])[:, None]
    left, right = (
        mix(inner * (side, 1) + part, outer * (side, 1), bare) for side in (-1, 1)
    )
    outer, inner = curve(*outer[:0:-1] * (-1, 1), *outer), curve(*left[:0:-1], *right)
    ripple = f.wave * np.sin(np.linspace(0, 40, len(outer)))[:, None]
    return outer * (1 + ripple), inner


def _locks(
    f: Face, rng: np.random.Generator, outer: np.ndarray, inner: np.ndarray
) -> Iterator[tuple[np.ndarray, float]]:
    """Single locks and their width: along the head, in curls, over the forehead."""
    middle = len(outer) // 2
    for _ in range(350 if f.curls else 140):
        flow = mix(outer, inner, rng.uniform())
        if f.curls:
            first = rng.integers(0, 18)
            ring = oval(*rng.choice(flow), *rng.uniform(0.025, 0.05, 2))
            yield ring[first : first + 20], 0.035
        else:
            flow = flow[:: rng.choice([-1, 1])]
            first = rng.integers(0, middle - 10)
            last = min(middle + 4, first + rng.integers(14, 45))
            yield flow[first:last], rng.uniform(0.008, 0.028)
    for i in middle + rng.integers(-24, 25, 150 * f.fringe):
        tip = inner[i] + rng.normal(0, 0.012, 2)
        root = (0.6 * outer[i] + 0.4 * inner[i]) * (0.8, 1) + rng.normal(0, 0.02, 2)
        yield curve(root, 0.45 * root + 0.55 * tip - at(0, 0.012), tip), 0.045


def _hair(c: Canvas, f: Face, rng: np.random.Generator, skin: Image.Image) -> None:
    outer, inner = _hair_curves(f)
    density = np.clip(1.1 - f.thin, 0.3, 1)
    cap = np.vstack([outer, inner[::-1]])
    c.fill(cap + at(0, 0.035), f.shade, 0.6 * density, 0.03, skin)
    c.fill(cap, f.hair_now * 0.8, density, 0.008)
    for path, width in _locks(f, rng, outer, inner):
        # Single hairs turn grey, not the whole head at once.
        tint = mix(f.hair, f.silver, 1.5 * f.grey - rng.uniform(0, 0.5))
        tint = tint * rng.uniform(0.75, 1.05) + 40 * rng.random() ** 3
        c.stroke(path, tint, width, 0.7 * density)
    lit = len(outer) // 2 + int(17 * np.sign(f.light))
    shine = (0.6 * outer + 0.4 * inner)[lit - 12 : lit + 12]
    c.stroke(shine, mix(f.hair_now, WHITE, 0.5), 0.08, 0.35 * density, 0.03)


def _glasses(c: Canvas, f: Face, rng: np.random.Generator) -> None:
    frame, (rx, ry) = rng.choice(FRAMES), rng.uniform((0.17, 0.12), (0.20, 0.17))
    y, ring = f.eye_y + 0.02, oval(0, 0, 1, 1)
    ring = np.sign(ring) * np.abs(ring) ** rng.uniform(0.6, 1) * (rx, ry)
    for side in (-1, 1):
        x = side * max(f.eye_x, rx + 0.04) + f.turn
        c.fill(ring + at(x, y), WHITE, 0.10)
        c.stroke(ring + at(x, y), frame, 0.022, taper=0)
        arm = curve((x + side * rx, y - 0.03), (side * f.width, y - 0.04))
        c.stroke(arm, frame, 0.025, taper=0)
    bridge = curve((-0.06, y - 0.02), (0, y - 0.04), (0.06, y - 0.02))
    c.stroke(bridge + at(f.turn, 0), frame, 0.022, taper=0)


def _photograph(
    image: Image.Image, f: Face, rng: np.random.Generator, size: int
) -> Image.Image:
    """Light from one side, and a little grain as a camera leaves."""
    pixels = np.asarray(image.resize((size, size), Image.LANCZOS), float)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    light = 1 + 0.10 * (f.light * x - 0.6 * y) - 0.05 * (x**2 + y**2)
    pixels = pixels * light[..., None] + rng.normal(0, 1.5, (size, size, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
