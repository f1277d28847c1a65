"""A canvas for soft shapes: smooth curves, filled and stroked, in face units."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

CATMULL_ROM = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
Point = tuple[float, float] | np.ndarray


def mix(a: np.ndarray, b: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Colour or point between `a` (share 0) and `b` (share 1)."""
    return a + (b - a) * np.clip(share, 0, 1)


def ramp(palette: np.ndarray, share: float) -> np.ndarray:
    """Colour at a share of the way through the palette."""
    steps = np.linspace(0, 1, len(palette))
    return np.array([np.interp(share, steps, channel) for channel in palette.T])


def curve(*points: Point, closed: bool = False) -> np.ndarray:
    """Smooth curve through the points (Catmull-Rom), twelve samples to the next."""
    way = np.array(points, float)
    if closed:
        way = np.vstack([way[-1:], way, way[:2]])
    else:
        way = np.vstack([2 * way[0] - way[1], way, 2 * way[-1] - way[-2]])
    t = np.arange(12)[:, None] / 12
    pull = np.hstack([t**0, t, t**2, t**3]) @ CATMULL_ROM / 2
    path = [pull @ way[i : i + 4] for i in range(len(way) - 3)]
    return np.vstack(path if closed else [*path, way[-2:-1]])


def at(x: float, y: float) -> np.ndarray:
    """A point, or a shift to it."""
    return np.array([x, y])


def oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Ellipse around (x, y)."""
    turn = np.linspace(0, 2 * np.pi, 40)
    return np.column_stack([x + rx * np.cos(turn), y + ry * np.sin(turn)])


def mirrored(*half: Point) -> np.ndarray:
    """Smooth outline through a right half, from top to bottom, and its mirror image."""
    left = [(-x, y) for x, y in half[::-1] if x]
    return curve(*half, *left, closed=True)


class Canvas:
    """Paints soft-edged shapes, given in face units, on a picture.

    Args:
        image: the picture, square.
        tilt: turn of everything painted, in radians.
        zoom: share of the picture that the face units -1..1 fill.
    """

    def __init__(self, image: Image.Image, tilt: float = 0, zoom: float = 1):
        self.image = image
        self.unit = zoom * image.width / 2
        cos, sin = np.cos(tilt), np.sin(tilt)
        self.turn = self.unit * np.array([[cos, sin], [-sin, cos]])

    def mask(self, points: np.ndarray) -> Image.Image:
        """Where the shape is, to keep other shapes inside it."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self._pixels(points).ravel().tolist(), fill=255)
        return mask

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points) @ self.turn + self.image.width / 2

    def fill(
        self,
        points: np.ndarray,
        colour: np.ndarray,
        alpha: float = 1,
        soft: float = 0,
        clip: Image.Image | None = None,
    ) -> None:
        """Paint a shape; `soft` blurs its edge, `clip` is a mask to stay inside."""
        xy, blur = self._pixels(points), soft * self.unit
        low = np.maximum(xy.min(0) - 3 * blur - 1, 0).astype(int)
        high = np.minimum(xy.max(0) + 3 * blur + 2, self.image.size).astype(int)
        if (high <= low).any() or alpha <= 0:
            return
        box = (*low.tolist(), *high.tolist())
        mask = Image.new("L", tuple((high - low).tolist()))
        shade = round(255 * min(alpha, 1))
        ImageDraw.Draw(mask).polygon((xy - low).ravel().tolist(), fill=shade)
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur))
        if clip:
            mask = ImageChops.multiply(mask, clip.crop(box))
        paint = np.clip(colour, 0, 255).round().astype(int)
        self.image.paste(tuple(paint.tolist()), box, mask)

    def stroke(
        self,
        path: np.ndarray,
        colour: np.ndarray,
        width: float,
        *how: float | Image.Image | None,
        taper: float = 1,
    ) -> None:
        """Fill a line that thins to `1 - taper` of its width at both ends."""
        along = np.gradient(path, axis=0)
        across = along[:, ::-1] * (-1, 1) / (np.hypot(*along.T)[:, None] + 1e-9)
        swell = 1 - taper + taper * np.sin(np.linspace(0, np.pi, len(path)))
        side = across * width / 2 * swell[:, None]
        self.fill(np.vstack([path + side, (path - side)[::-1]]), colour, *how)
