"""Draws samples/portrait.png: the face of the demo. `python samples/draw_portrait.py` makes the same file again.

A woman before a window, out of ellipses and curves with soft light, nothing traced and nothing photographed. Drawn
three times as large as it is kept, so that edges are smooth.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, SCALE = 1056, 576, 3
TARGET = Path(__file__).with_name("portrait.png")
CENTRE_X, CENTRE_Y = 528.0, 268.0

Canvas = NDArray[np.float32]
Colour = tuple[int, int, int]

SKIN: Colour = (236, 188, 160)
SHADE: Colour = (203, 142, 116)
HAIR: Colour = (74, 44, 34)
HAIR_LIGHT: Colour = (132, 82, 58)
LIP: Colour = (190, 88, 88)
COAT: Colour = (42, 92, 104)


def main() -> None:
    """Draw the picture, make it smaller and store it."""
    canvas = background()
    for part in (back_hair, body, neck, face, nose, cheeks, eyes, brows, mouth, front_hair, earrings):
        part(canvas)
    small = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(TARGET), np.clip(small[..., ::-1] + 0.5, 0, 255).astype(np.uint8))
    print(f"wrote {TARGET.name}")


def background() -> Canvas:
    """A wall with light from the left, and a soft window."""
    y, x = np.mgrid[0 : HEIGHT * SCALE, 0 : WIDTH * SCALE].astype(np.float32) / SCALE
    light = np.exp(-(((x - 190) / 420) ** 2) - ((y - 160) / 380) ** 2)[..., None]
    canvas = np.array([120, 138, 146], np.float32) + light * np.array([96, 82, 60], np.float32)
    canvas -= (y / HEIGHT * 26)[..., None]
    pane = shape(rounded(70, 40, 330, 400))
    paint(canvas, blurred(pane, 6), (232, 236, 226), 0.75)
    for left, top, right, bottom in ((192, 40, 208, 400), (70, 208, 330, 222)):
        paint(canvas, blurred(shape(rounded(left, top, right, bottom)), 5), (176, 178, 170), 0.8)
    for x0, y0, size, colour in (
        (872, 452, 74, (92, 124, 92)),
        (936, 402, 66, (110, 144, 104)),
        (828, 396, 58, (84, 116, 86)),
    ):
        paint(canvas, blurred(shape(ellipse(x0, y0, size * 0.5, size)), 7), colour, 0.75)
    paint(canvas, blurred(shape(rounded(846, 500, 936, 600)), 5), (186, 120, 92), 0.9)
    return canvas


def at(x: float, y: float) -> tuple[float, float]:
    """Return a point given relative to the middle of the face."""
    return CENTRE_X + x, CENTRE_Y + y


def ellipse(x: float, y: float, wide: float, tall: float, turn: float = 0.0) -> NDArray[np.float64]:
    """Return the outline of an ellipse as points (n, 2)."""
    angle = np.linspace(0, 2 * np.pi, 120)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    along, down = wide * np.cos(angle), tall * np.sin(angle)
    return np.stack([x + along * cos - down * sin, y + along * sin + down * cos], axis=1)


def rounded(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def curve(*points: tuple[float, float], closed: bool = False) -> NDArray[np.float64]:
    """Return a smooth line (Catmull-Rom) through points relative to the middle of the face."""
    knots = np.array([at(*point) for point in points])
    ends = (knots[-1:], knots[:2]) if closed else (knots[:1], knots[-1:])
    padded = np.concatenate((ends[0], knots, ends[1]))
    step = np.linspace(0, 1, 24, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(
            0.5 * (2 * b + (c - a) * step + (2 * a - 5 * b + 4 * c - d) * step**2 + (3 * b - a - 3 * c + d) * step**3)
        )
    return np.concatenate([*pieces, padded[-2:-1]])


def shape(outline: NDArray[np.float64]) -> Canvas:
    """Return a mask 0..1 of what lies within `outline`."""
    mask = np.zeros((HEIGHT * SCALE, WIDTH * SCALE), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * SCALE).astype(np.int32)], 255, cv2.LINE_AA)
    return mask.astype(np.float32) / 255


def stroke(line: NDArray[np.float64], thick: float) -> Canvas:
    """Return a mask of a line `thick` pixels wide."""
    mask = np.zeros((HEIGHT * SCALE, WIDTH * SCALE), np.uint8)
    points = np.round(line * SCALE).astype(np.int32)
    cv2.polylines(mask, [points], False, 255, max(1, round(thick * SCALE)), cv2.LINE_AA)
    return mask.astype(np.float32) / 255


def blurred(mask: Canvas, size: float) -> Canvas:
    """Soften a mask by `size` pixels; a soft mask needs no large canvas, and blurring one is slow."""
    less = 1 if size < 3 else 4
    small = cv2.resize(mask, None, fx=1 / less, fy=1 / less, interpolation=cv2.INTER_AREA) if less > 1 else mask
    soft = cv2.GaussianBlur(small, (0, 0), size * SCALE / less)
    return cv2.resize(soft, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)


def paint(canvas: Canvas, mask: Canvas, colour: Colour, strength: float = 1.0) -> None:
    """Mix `colour` into the canvas where the mask is."""
    share = (mask * strength)[..., None]
    canvas += (np.array(colour, np.float32) - canvas) * share


FACE = (
    (0, -142), (58, -134), (96, -98), (108, -42), (106, 10), (96, 58), (74, 100), (42, 130), (0, 142),
    (-42, 130), (-74, 100), (-96, 58), (-106, 10), (-108, -42), (-96, -98), (-58, -134),
)  # fmt: skip


def back_hair(canvas: Canvas) -> None:
    outline = curve(
        (0, -196), (84, -180), (136, -112), (146, -10), (150, 90), (138, 168), (96, 190),
        (-96, 190), (-138, 168), (-150, 90), (-146, -10), (-136, -112), (-84, -180), closed=True,
    )  # fmt: skip
    paint(canvas, blurred(shape(outline), 1.2), HAIR)
    for offset in (-128, -108, 112, 130):
        paint(
            canvas,
            blurred(stroke(curve((offset * 0.8, -120), (offset, 0), (offset * 0.97, 150)), 7), 4),
            HAIR_LIGHT,
            0.35,
        )


def body(canvas: Canvas) -> None:
    outline = curve(
        (-70, 176),
        (-150, 200),
        (-226, 228),
        (-268, 262),
        (-292, 330),
        (292, 330),
        (268, 262),
        (226, 228),
        (150, 200),
        (70, 176),
    )
    paint(canvas, shape(outline), COAT)
    paint(
        canvas,
        blurred(shape(curve((-230, 240), (-120, 200), (-110, 330), (-250, 330), closed=True)), 18) * shape(outline),
        (74, 132, 142),
        0.6,
    )
    paint(
        canvas,
        blurred(shape(curve((240, 250), (130, 214), (110, 330), (300, 330), closed=True)), 20) * shape(outline),
        (22, 56, 68),
        0.6,
    )


def neck(canvas: Canvas) -> None:
    outline = curve((-50, 96), (-52, 150), (-84, 186), (-40, 232), (0, 262), (40, 232), (84, 186), (52, 150), (50, 96))
    mask = shape(outline)
    paint(canvas, mask, SKIN)
    paint(canvas, blurred(shape(ellipse(*at(4, 122), 72, 50)), 13) * mask, SHADE, 0.85)
    paint(canvas, blurred(shape(ellipse(*at(46, 180), 30, 70)), 14) * mask, SHADE, 0.5)
    for side in (-1, 1):
        collar = curve(
            (side * 54, 158), (side * 92, 180), (side * 60, 240), (side * 6, 284), (side * 30, 236), closed=True
        )
        paint(canvas, shape(collar), (242, 238, 228))
        paint(canvas, blurred(stroke(collar, 1.5), 1.5), (180, 172, 164), 0.6)


def face(canvas: Canvas) -> None:
    mask = blurred(shape(curve(*FACE, closed=True)), 0.8)
    paint(canvas, mask, SKIN)
    paint(
        canvas,
        blurred(shape(curve((112, -110), (76, -40), (84, 50), (40, 150), (130, 140), closed=True)), 20) * mask,
        SHADE,
        0.75,
    )
    paint(canvas, blurred(shape(ellipse(*at(0, 148), 64, 20)), 10) * mask, SHADE, 0.55)
    paint(canvas, blurred(shape(ellipse(*at(-34, -92), 56, 34)), 20) * mask, (252, 220, 198), 0.7)
    paint(canvas, blurred(shape(ellipse(*at(-4, 112), 22, 13)), 8) * mask, (248, 208, 184), 0.6)


def earrings(canvas: Canvas) -> None:
    for side in (-1, 1):
        paint(canvas, shape(ellipse(*at(side * 112, 46), 5, 5)), (236, 200, 120))
        paint(canvas, blurred(shape(ellipse(*at(side * 112 - 1, 44.5), 2.2, 2.2)), 0.5), (255, 244, 214))


def nose(canvas: Canvas) -> None:
    paint(canvas, blurred(shape(curve((4, -34), (16, 6), (22, 34), (8, 40), (2, 6), closed=True)), 6), SHADE, 0.5)
    paint(canvas, blurred(stroke(curve((-3, -34), (-4, 0), (-4, 26)), 7), 5), (254, 226, 206), 0.7)
    paint(
        canvas, blurred(stroke(curve((-20, 36), (-12, 43), (0, 46), (12, 43), (20, 36)), 3), 1.6), (172, 104, 84), 0.75
    )
    for side in (-1, 1):
        paint(canvas, blurred(shape(ellipse(*at(side * 10, 41), 5.2, 2.6, side * 12)), 0.9), (116, 58, 48), 0.85)
        paint(
            canvas,
            blurred(stroke(curve((side * 19, 22), (side * 23, 32), (side * 19, 39)), 2), 1.6),
            (186, 118, 96),
            0.7,
        )


def cheeks(canvas: Canvas) -> None:
    for side in (-1, 1):
        paint(canvas, blurred(shape(ellipse(*at(side * 62, 40), 26, 17)), 12), (232, 140, 124), 0.42)
        paint(canvas, blurred(stroke(curve((side * 36, 44), (side * 46, 60), (side * 50, 74)), 3), 4), SHADE, 0.4)


def eyes(canvas: Canvas) -> None:
    for side in (-1, 1):
        eye(canvas, side)


def eye(canvas: Canvas, side: int) -> None:
    def line(*points: tuple[float, float]) -> NDArray[np.float64]:
        return curve(*((side * x, y) for x, y in points))

    upper = ((21, -16), (32, -25), (47, -29), (61, -26), (73, -16))
    lower = ((73, -16), (60, -10), (47, -8), (33, -9.5), (21, -16))
    paint(canvas, blurred(shape(ellipse(*at(side * 47, -24), 32, 20)), 9), SHADE, 0.55)
    white = shape(np.concatenate((line(*upper), line(*lower))))
    paint(canvas, white, (246, 242, 238))
    middle = at(side * 46.5, -19)
    paint(canvas, shape(ellipse(*middle, 12.6, 12.6)) * white, (62, 44, 32))
    paint(canvas, blurred(shape(ellipse(*middle, 11, 11)), 0.8) * white, (112, 76, 46))
    paint(canvas, blurred(shape(ellipse(middle[0], middle[1] + 4, 8, 5)), 1.6) * white, (168, 122, 74), 0.8)
    paint(canvas, shape(ellipse(*middle, 5.6, 5.6)) * white, (18, 12, 12))
    paint(canvas, blurred(stroke(line(*upper), 8), 2.5) * white, (120, 96, 90), 0.55)
    paint(canvas, shape(ellipse(middle[0] - 4, middle[1] - 5, 3, 3)), (255, 255, 255), 0.95)
    paint(canvas, blurred(stroke(line(*upper), 2.6), 0.5), (52, 30, 26), 0.95)
    paint(canvas, blurred(stroke(line((68, -20), (76, -23)), 1.8), 0.5), (52, 30, 26), 0.8)
    paint(canvas, blurred(stroke(line(*lower), 1.3), 0.8), (150, 92, 78), 0.7)
    paint(
        canvas,
        blurred(stroke(line((23, -27), (34, -38), (48, -41), (63, -36), (73, -25)), 1.8), 1.0),
        (176, 112, 92),
        0.75,
    )


def brows(canvas: Canvas) -> None:
    for side in (-1, 1):
        outline = [(20, -52), (36, -61), (56, -63), (80, -50), (57, -56), (36, -54), (22, -46)]
        mask = shape(curve(*((side * x, y) for x, y in outline), closed=True))
        paint(canvas, blurred(mask, 1.2), (84, 52, 40), 0.9)


def mouth(canvas: Canvas) -> None:
    """Closed lips with a slight smile: what is behind them is the engine's to show."""
    line = [(-41, 75), (-25, 80), (-10, 81), (0, 82.5), (10, 81), (25, 80), (41, 75)]
    upper = [(-42, 75), (-22, 71), (-8, 68), (0, 70), (8, 68), (22, 71), (42, 75), *line[::-1][1:-1]]
    lower = [*line, (26, 91), (11, 97), (0, 98), (-11, 97), (-26, 91)]
    paint(canvas, blurred(shape(ellipse(*at(0, 104), 26, 6)), 4), SHADE, 0.6)
    paint(canvas, blurred(shape(curve(*upper, closed=True)), 0.9), (172, 72, 76))
    paint(canvas, blurred(shape(curve(*lower, closed=True)), 0.9), LIP)
    paint(canvas, blurred(shape(ellipse(*at(-4, 90), 15, 3.2)), 2.2), (228, 146, 140), 0.8)
    paint(canvas, blurred(stroke(curve(*line), 1.7), 0.7), (104, 36, 42), 0.9)
    for side in (-1, 1):
        paint(canvas, blurred(shape(ellipse(*at(side * 44, 75), 3.2, 3.6)), 2), (168, 92, 80), 0.7)


def front_hair(canvas: Canvas) -> None:
    left = curve(
        (14, -152), (-28, -120), (-78, -86), (-100, -36), (-112, 30), (-124, 110), (-146, 60), (-146, -60),
        (-118, -150), (-60, -190), (0, -196), closed=True,
    )  # fmt: skip
    right = curve(
        (14, -154), (58, -122), (92, -84), (104, -30), (114, 30), (124, 110), (146, 60), (146, -60), (118, -150),
        (60, -190), (0, -196), closed=True,
    )  # fmt: skip
    for side, outline in ((-1, left), (1, right)):
        mask = shape(outline)
        shadow = np.roll(blurred(mask, 5), 5 * SCALE, axis=0)
        paint(canvas, shadow * shape(curve(*FACE, closed=True)), SHADE, 0.5)
        paint(canvas, blurred(mask, 0.8), HAIR)
        for part in (0.25, 0.45, 0.65, 0.85):
            strand = curve(
                (12 + side * 10, -168 - 14 * part), (side * (50 + 34 * part), -138 - 24 * part),
                (side * (98 + 28 * part), -70 - 20 * part), (side * (112 + 22 * part), 20),
                (side * (124 + 10 * part), 96),
            )  # fmt: skip
            light = 0.5 if side < 0 else 0.25
            paint(canvas, blurred(stroke(strand, 5), 3) * mask, HAIR_LIGHT, light)


if __name__ == "__main__":
    main()
