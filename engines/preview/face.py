"""Finds the face of a portrait: 468 points of its surface, or nothing.

The networks and what their numbers mean are MediaPipe's (mediapipe/modules/face_detection and face_landmark of
0.10.21): BlazeFace gives boxes with six keypoints, the box's square, turned to the eye line and 1.5 times as large, is
what the mesh network reads, and the mesh's own square is what it reads again to settle.

A mesh's presence alone proves nothing: cut-outs that hold no face have been seen with a presence of 0.9995. A mesh of
a real face stays where it is when the cut-out is shifted, scaled and turned a little, an imagined one does not; so each
mesh is found five times and its spread, in units of the distance between the outer eye corners, decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.preview import networks
from engines.preview.portrait import Pixels

Points = NDArray[Any]
"""float32; cv2 and numpy do not say so in their types."""
Stage = Literal["short", "full", "weak"]

MESH_SIDE = 192
EYES = (33, 263)
"""Outer eye corners, left and right in the picture."""

MAX_SPREAD = 0.06
MIN_PRESENCE = 0.5
JITTER = ((0.03, -0.02, 1.0, 0.0), (-0.03, 0.02, 1.08, 0.0), (0.02, 0.03, 0.92, 0.08), (-0.02, -0.03, 1.0, -0.08))
"""Shift x, shift y (parts of the square's side), scale, turn (radians) of the four further cut-outs."""

WEAK_PRESENCE = 0.9
WEAK_SPREAD = 0.12
WEAK_AGREEING = 3
WEAK_SCORE = 0.5
"""A box that scores less must hold a mesh whose presence stays over WEAK_STAYS in changed cut-outs."""
WEAK_STAYS = 0.85


@dataclass(frozen=True, slots=True)
class Face:
    """A face: `points` (468, 2) in pixels of the picture; `stage` says which search found it."""

    points: Points
    stage: Stage
    presence: float


@dataclass(frozen=True, slots=True)
class Box:
    """A detected face: the middle and longer side of its box, the turn of its eye line (radians), its score."""

    x: float
    y: float
    side: float
    turn: float
    score: float


@dataclass(frozen=True, slots=True)
class Square:
    """What the mesh network reads: a turned square of the picture."""

    x: float
    y: float
    side: float
    turn: float

    def moved(self, dx: float, dy: float, scale: float, turn: float) -> Square:
        return Square(self.x + dx * self.side, self.y + dy * self.side, self.side * scale, self.turn + turn)


@dataclass(frozen=True, slots=True)
class Mesh:
    points: Points
    presence: float

    @property
    def eye_distance(self) -> float:
        return float(np.linalg.norm(self.points[EYES[1]] - self.points[EYES[0]]))

    def square(self) -> Square:
        """Return the square around the mesh that the network reads best."""
        (x0, y0), (x1, y1) = self.points[EYES[0]], self.points[EYES[1]]
        turn = math.atan2(y1 - y0, x1 - x0)
        cos, sin = math.cos(turn), math.sin(turn)
        upright = self.points @ np.array([[cos, -sin], [sin, cos]], np.float32)
        low, high = upright.min(axis=0), upright.max(axis=0)
        middle = (low + high) / 2
        x, y = cos * middle[0] - sin * middle[1], sin * middle[0] + cos * middle[1]
        return Square(float(x), float(y), float((high - low).max()) * 1.5, turn)


class Detector:
    """BlazeFace: `name` is a network, `side` its input, `grids` its (cells a side, anchors a cell)."""

    def __init__(self, name: str, side: int, grids: tuple[tuple[int, int], ...]) -> None:
        self._net = networks.load(name)
        self._outputs = self._net.getUnconnectedOutLayersNames()
        self._side = side
        self._anchors = np.concatenate([_cells(cells, anchors) for cells, anchors in grids])

    def find(self, rgb: Pixels, threshold: float) -> list[Box]:
        """Return the faces that score at least `threshold`, best first."""
        height, width = rgb.shape[:2]
        scale = self._side / max(height, width)
        shift = np.array([(self._side - width * scale) / 2, (self._side - height * scale) / 2])
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        # INTER_AREA first: a plain sampling of a large portrait aliases, and hides small faces.
        small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        matrix[:, :2] = np.eye(2)
        letter = cv2.warpAffine(small, matrix, (self._side, self._side))
        self._net.setInput(cv2.dnn.blobFromImage(letter, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
        scores, found = self._net.forward(self._outputs)
        chance = 1 / (1 + np.exp(-np.clip(scores.reshape(-1), -80, 80)))
        good = chance >= threshold
        points = found.reshape(-1, 8, 2)[good].astype(np.float64)
        points[:, [0, *range(2, 8)]] += self._anchors[good, None] * self._side
        points[:, [0, *range(2, 8)]] -= shift
        return _boxes(points / scale, chance[good])


def _cells(cells: int, anchors: int) -> NDArray[np.float64]:
    middles = (np.arange(cells) + 0.5) / cells
    x, y = np.meshgrid(middles, middles)
    return np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), anchors, axis=0)


def _boxes(points: NDArray[np.float64], scores: NDArray[np.float64]) -> list[Box]:
    """Merge overlapping detections, (n, 8, 2): middle, size, six keypoints, by their scores' weight."""
    boxes = []
    left = np.argsort(-scores)
    while len(left):
        overlap = _overlaps(points[left[0]], points[left])
        same = left[overlap > 0.3]
        merged = np.average(points[same], axis=0, weights=scores[same])
        turn = math.atan2(*(merged[3] - merged[2])[::-1])
        x, y = merged[0].tolist()
        boxes.append(Box(x, y, float(merged[1].max()), turn, float(scores[left[0]])))
        left = left[overlap <= 0.3]
    return boxes


def _overlaps(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union of one detection's box with each of `others`; 1 with itself."""
    low = np.maximum(one[0] - one[1] / 2, others[:, 0] - others[:, 1] / 2)
    high = np.minimum(one[0] + one[1] / 2, others[:, 0] + others[:, 1] / 2)
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(one[1]) + np.prod(others[:, 1], axis=1) - shared
    overlaps = shared / np.maximum(union, 1e-9)
    overlaps[0] = 1
    return np.asarray(overlaps)


class Mesher:
    """The mesh network."""

    def __init__(self) -> None:
        self._net = networks.load("face_landmark")
        self._outputs = self._net.getUnconnectedOutLayersNames()

    def read(self, rgb: Pixels, squares: list[Square]) -> list[Mesh]:
        """Return the mesh that the network sees in each of `squares`, whether a face is there or not."""
        matrices = [_to_picture(square) for square in squares]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        side = (MESH_SIDE, MESH_SIDE)
        cuts = [cv2.warpAffine(rgb, matrix, side, flags=flags) for matrix in matrices]
        meshes = []
        for cut, matrix in zip(cuts, matrices, strict=True):
            self._net.setInput(cv2.dnn.blobFromImage(cut, 1 / 255))
            outputs = self._net.forward(self._outputs)
            presence, flat = sorted(outputs, key=np.size)
            points = flat.reshape(468, 3)[:, :2] @ matrix[:, :2].T + matrix[:, 2]
            meshes.append(Mesh(points.astype(np.float32), 1 / (1 + math.exp(-float(presence.reshape(-1)[0])))))
        return meshes

    def settle(self, rgb: Pixels, square: Square, times: int) -> Mesh:
        """Return the mesh after reading it again from its own square, `times` over."""
        mesh = self.read(rgb, [square])[0]
        for _ in range(times):
            mesh = self.read(rgb, [mesh.square()])[0]
        return mesh


def _to_picture(square: Square) -> NDArray[np.float64]:
    """Return the (2, 3) matrix from pixels of the cut-out to pixels of the picture."""
    step = square.side / MESH_SIDE
    cos, sin = math.cos(square.turn) * step, math.sin(square.turn) * step
    half = MESH_SIDE / 2
    return np.array([[cos, -sin, square.x - half * (cos - sin)], [sin, cos, square.y - half * (sin + cos)]])


def find_face(
    rgb: Pixels, check: Callable[[], None] = lambda: None, mesh_network: Callable[[], Mesher] = Mesher
) -> Face | None:
    """Return the most certain face of the picture (height, width, 3), or None.

    `check` may raise between searches; `mesh_network` is called once, when there is a box to look into.
    """
    mesher: Mesher | None = None
    tried: list[Box] = []
    for stage, boxes in _search(rgb, tried):
        check()
        for box in boxes[:3]:
            mesher = mesher or mesh_network()
            face = _confirmed(mesher, rgb, box, stage)
            if face:
                return face
    return _weak_face(mesher or mesh_network(), rgb, tried, check) if tried else None


def _search(rgb: Pixels, tried: list[Box]) -> Iterator[tuple[Stage, list[Box]]]:
    """Yield candidate boxes, the cheapest and surest search first; add all of them to `tried`."""
    short = Detector("face_detection_short_range", 128, ((16, 2), (8, 6)))
    low = short.find(rgb, 0.3)
    tried += low
    yield "short", [box for box in low if box.score >= 0.5]
    full = Detector("face_detection_full_range", 192, ((48, 1),)).find(rgb, 0.3)
    tried += full
    yield "full", [box for box in full if box.score >= 0.6]
    yield "short", [box for box in low if box.score < 0.5]


def _confirmed(mesher: Mesher, rgb: Pixels, box: Box, stage: Stage) -> Face | None:
    """Return the face in `box` when its mesh stays where it is under small changes of the cut-out."""
    # One reading again is enough here: four more and their median follow.
    mesh = mesher.settle(rgb, Square(box.x, box.y, box.side * 1.5, box.turn), 1)
    if mesh.presence < MIN_PRESENCE:
        return None
    meshes = [mesh, *mesher.read(rgb, [mesh.square().moved(*change) for change in JITTER])]
    if min(one.presence for one in meshes) < MIN_PRESENCE or _spread(meshes) > MAX_SPREAD:
        return None
    return Face(_median(meshes), stage, mesh.presence)


def _weak_face(mesher: Mesher, rgb: Pixels, boxes: list[Box], check: Callable[[], None]) -> Face | None:
    """Search stylised faces: many cut-outs around each box, of which several must show the same mesh.

    A cartoon's nose passes that too, in a box that scores 0.30 to 0.36: from faint boxes more is asked.
    """
    for box in boxes[:4]:
        check()
        squares = [
            Square(box.x, box.y + shift * box.side, box.side * scale, box.turn)
            for scale in (1.2, 1.5, 1.9)
            for shift in (-0.12, 0, 0.12)
        ]
        sure = [mesh for mesh in mesher.read(rgb, squares) if mesh.presence > WEAK_PRESENCE]
        for mesh in sure:
            like = [other for other in sure if _spread([mesh, other]) < WEAK_SPREAD]
            if len(like) >= WEAK_AGREEING and (box.score >= WEAK_SCORE or _stays(mesher, rgb, mesh)):
                return Face(_median(like), "weak", mesh.presence)
    return None


def _stays(mesher: Mesher, rgb: Pixels, mesh: Mesh) -> bool:
    """Tell a stylised face from a nose or a knot of wood that nine cut-outs took for one.

    An imagined face of that kind agrees with itself in place, but its presence breaks down (to 0.4 or 0.8) in some of
    the changed cut-outs; a face that was drawn keeps it.
    """
    settled = mesher.settle(rgb, mesh.square(), 2)
    meshes = [settled, *mesher.read(rgb, [settled.square().moved(*change) for change in JITTER])]
    return min(one.presence for one in meshes) >= WEAK_STAYS and _spread(meshes) < WEAK_SPREAD


def _median(meshes: list[Mesh]) -> Points:
    return np.asarray(np.median([mesh.points for mesh in meshes], axis=0), np.float32)


def _spread(meshes: list[Mesh]) -> float:
    """Return the mean distance of the meshes from their median, in outer eye distances."""
    middle = _median(meshes)
    away = [np.linalg.norm(mesh.points - middle, axis=1).mean() for mesh in meshes]
    eyes = float(np.median([mesh.eye_distance for mesh in meshes]))
    return float(np.mean(away)) / max(eyes, 1e-6)
