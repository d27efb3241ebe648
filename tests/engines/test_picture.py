"""What is drawn: lips, lids and head move as told, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.preview import networks
from engines.preview.eyes import BLINK, LEVELS, blinks, both_eyes
from engines.preview.face import Face, find_face
from engines.preview.head import Head, movement
from engines.preview.meter import LIGHT, MeterScene
from engines.preview.mouth import LOWER_INNER, UPPER_INNER, Mouth
from engines.preview.portrait import Pixels, Planes, fit, open_portrait
from engines.preview.speech import Speech
from engines.preview.talking import TalkingScene
from tests.engines.conftest import PORTRAIT
from utils.plan import VideoPlan

PLAN = VideoPlan(2, 90, 704, 384)


@pytest.fixture(scope="module")
def portrait() -> Pixels:
    return fit(open_portrait(PORTRAIT), PLAN.width, PLAN.height)


@pytest.fixture(scope="module")
def face(portrait: Pixels) -> Face:
    found = find_face(portrait)
    assert found is not None
    return found


def voice(level: float) -> Speech:
    """A voice that is `level` all the time."""
    flat = np.full(PLAN.frames, level, np.float32)
    return Speech(open=flat, wide=np.zeros_like(flat), loud=flat)


def empty() -> Planes:
    return Planes.from_rgb(np.zeros((PLAN.height, PLAN.width, 3), np.uint8))


def lip_gap(points: np.ndarray) -> float:
    middle = len(UPPER_INNER) // 2
    return float(np.linalg.norm(points[LOWER_INNER[middle]] - points[UPPER_INNER[middle]]))


# --- face


def test_the_shipped_portrait_is_found_with_certainty(face: Face) -> None:
    assert face.stage == "short"
    assert face.presence > 0.99
    assert face.points.shape == (468, 2)


@pytest.mark.parametrize("degrees", [-20, 12, 25])
def test_a_tilted_head_is_found_where_it_is(portrait: Pixels, face: Face, degrees: int) -> None:
    middle = tuple(face.points.mean(axis=0).tolist())
    matrix = cv2.getRotationMatrix2D(middle, degrees, 0.9)
    tilted = cv2.warpAffine(portrait, matrix, (PLAN.width, PLAN.height), borderMode=cv2.BORDER_REPLICATE)
    found = find_face(tilted)
    assert found is not None
    wanted = face.points @ matrix[:, :2].T + matrix[:, 2]
    assert np.linalg.norm(found.points - wanted, axis=1).mean() < 3


def test_a_face_drawn_twice_as_tall_is_found_with_less_certainty(portrait: Pixels, face: Face) -> None:
    middle = float(face.points[:, 1].mean())
    matrix = np.array([[1, 0, 0], [0, 2, -middle]], np.float32)
    found = find_face(cv2.warpAffine(portrait, matrix, (PLAN.width, PLAN.height), borderMode=cv2.BORDER_REPLICATE))
    assert found is not None
    assert found.stage == "weak"


@pytest.mark.parametrize("size", [(384, 704), (384, 640), (256, 384)])
def test_no_face_is_imagined_on_a_bearded_cartoon(trial_png: Callable[[str], Path], size: tuple[int, int]) -> None:
    """Its nose alone has been taken for a face with a presence of 0.99, in some of these sizes."""
    picture = fit(open_portrait(trial_png("dwarven_blacksmith")), size[1], size[0])
    assert find_face(picture) is None


def test_no_face_is_imagined_in_noise_or_shapes() -> None:
    random = np.random.default_rng(1)
    assert find_face(random.integers(0, 255, (384, 704, 3), np.uint8)) is None
    blocks = cv2.resize(random.integers(0, 255, (12, 22, 3), np.uint8), (704, 384), interpolation=cv2.INTER_CUBIC)
    assert find_face(blocks) is None
    assert find_face(np.full((64, 64, 3), 128, np.uint8)) is None


def test_a_missing_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(networks.WrongWeights, match=r"face_landmark\.tflite cannot be read"):
        networks.load("face_landmark", tmp_path)


# --- mouth


def test_shut_lips_are_the_portraits_own(portrait: Pixels, face: Face) -> None:
    mouth = Mouth(portrait, face.points)
    assert np.abs(mouth.picture(0, 0).astype(int) - portrait[mouth.box.luma]).max() <= 2


def test_each_step_opens_the_mouth_further(portrait: Pixels, face: Face) -> None:
    mouth = Mouth(portrait, face.points)
    gaps = []
    for opened in (0, 0.5, 1):
        picture = portrait.copy()
        picture[mouth.box.luma] = mouth.picture(opened, 0)
        found = find_face(picture)
        assert found is not None
        gaps.append(lip_gap(found.points))
    assert gaps[0] + 2 < gaps[1] < gaps[2] - 2


def test_the_border_of_the_mouths_box_never_changes(portrait: Pixels, face: Face) -> None:
    """Else the box would show as a seam on the face."""
    mouth = Mouth(portrait, face.points)
    still = portrait[mouth.box.luma].astype(int)
    for opened, wide in ((1, 0), (0.7, 1), (0.7, -1)):
        change = np.abs(mouth.picture(opened, wide).astype(int) - still).max(axis=2)
        border = np.concatenate((change[0], change[-1], change[:, 0], change[:, -1]))
        assert border.max() <= 3
        assert change.max() > 60


def test_a_spread_mouth_is_wider_than_a_round_one(portrait: Pixels, face: Face) -> None:
    mouth = Mouth(portrait, face.points)
    widths = []
    for wide in (-1, 1):
        picture = portrait.copy()
        picture[mouth.box.luma] = mouth.picture(0.4, wide)
        found = find_face(picture)
        assert found is not None
        widths.append(float(np.linalg.norm(found.points[291] - found.points[61])))
    assert widths[1] > widths[0] + 2


def test_a_black_and_white_portrait_keeps_a_black_and_white_mouth(portrait: Pixels, face: Face) -> None:
    grey = np.repeat(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    picture = Mouth(grey, face.points).picture(1, 0).astype(int)
    assert np.ptp(picture, axis=2).max() <= 2


def test_bright_light_leaves_no_specks_of_colour_on_the_teeth(portrait: Pixels, face: Face) -> None:
    bright = np.minimum(portrait.astype(float) * 1.35, 255).astype(np.uint8)
    picture = Mouth(bright, face.points).picture(0.6, 0).astype(int)
    assert (picture[..., 1] - picture[..., 0]).max() < 20


# --- eyes


def test_an_open_lid_changes_nothing_and_a_shut_one_covers_the_eye(portrait: Pixels, face: Face) -> None:
    for eye in both_eyes(portrait, face.points):
        own = portrait[eye.box.luma].astype(int)
        assert np.abs(eye.picture(0).astype(int) - own).max() <= 1
        shut = eye.picture(1).astype(int)
        # The white of the eye and its light are the only bright neutral pixels there.
        white = (own.min(axis=2) > 200).sum()
        assert white > 20
        assert (shut.min(axis=2) > 200).sum() < 0.1 * white


def test_blinks_come_every_few_seconds_and_at_other_times_for_another_seed() -> None:
    levels = blinks(25 * 60, 25, 4)
    assert levels.max() == LEVELS
    starts = np.flatnonzero((levels[1:] > 0) & (levels[:-1] == 0))
    assert 12 <= len(starts) <= 34
    assert np.diff(starts).min() > len(BLINK)
    assert not np.array_equal(levels, blinks(25 * 60, 25, 5))
    assert np.array_equal(levels, blinks(25 * 60, 25, 4))


# --- head


def test_a_head_that_does_not_move_leaves_every_pixel(portrait: Pixels, face: Face) -> None:
    head = Head(face.points, PLAN.width, PLAN.height, np.zeros((1, 5), np.float32))
    picture, out = Planes.from_rgb(portrait), empty()
    head.show(picture, out)
    for shown, own in (
        (out.y[head.box.luma], picture.y[head.box.luma]),
        (out.u[head.box.chroma], picture.u[head.box.chroma]),
    ):
        assert np.array_equal(shown, own)


def test_the_head_moves_slowly_by_a_pixel_or_two(face: Face) -> None:
    way = movement(face.points, np.zeros(25 * 60, np.float32), 25, 7)
    assert 0.8 < np.abs(way).max() < 5
    assert np.abs(np.diff(way, axis=0)).max() < 0.25


# --- scenes


def test_only_the_head_moves_and_the_label_stays(portrait: Pixels, face: Face) -> None:
    scene = TalkingScene(portrait, face, voice(0.5), PLAN, 1)
    frames = []
    for index in range(60):
        out = empty()
        scene.draw(index, out)
        frames.append(out)
    spread = np.ptp(np.stack([frame.y for frame in frames]).astype(int), axis=0)
    assert spread[:, :120].max() == 0, "the wall on the left moves"
    assert spread[-60:, -120:].max() == 0, "the label or the wall behind it moves"
    assert spread[100:280, 260:440].max() > 20, "the face stands still"
    label = np.abs(frames[0].y[-30:, -70:].astype(int) - Planes.from_rgb(portrait).y[-30:, -70:])
    assert (label > 40).sum() > 100, "no label"


def test_a_drawn_frame_depends_on_nothing_but_its_past(portrait: Pixels, face: Face) -> None:
    """Frames between two movements of the head are drawn in parts; the parts must fit a frame drawn whole."""
    rng = np.random.default_rng(2)
    speech = Speech(rng.random(90, np.float32), np.zeros(90, np.float32), np.zeros(90, np.float32))
    scene, out = TalkingScene(portrait, face, speech, PLAN, 1), empty()
    for index in range(46):
        scene.draw(index, out)
    parts = out.copy()
    scene._head.show(scene._canvas, out)
    for one, other in ((parts.y, out.y), (parts.u, out.u), (parts.v, out.v)):
        assert np.array_equal(one, other)


def test_a_weak_face_does_not_blink(portrait: Pixels, face: Face) -> None:
    seed = next(seed for seed in range(50) if blinks(PLAN.frames, PLAN.fps, seed).any())
    frame = int(blinks(PLAN.frames, PLAN.fps, seed).argmax())

    def eye_at_blink(stage: str) -> Pixels:
        scene, out = TalkingScene(portrait, Face(face.points, stage, 1.0), voice(0), PLAN, seed), empty()  # type: ignore[arg-type]
        for index in range(frame + 1):
            scene.draw(index, out)
        box = both_eyes(portrait, face.points)[0].box
        return out.y[box.luma].astype(int)

    assert np.abs(eye_at_blink("short") - eye_at_blink("weak")).max() > 40


def test_the_meter_rises_with_the_voice(portrait: Pixels) -> None:
    lit = []
    for level in (0.0, 0.4, 1.0):
        out = empty()
        MeterScene(portrait, voice(level), PLAN, 1).draw(10, out)
        lit.append(int((out.y[-90:, 140:560] == LIGHT).sum()))
    assert lit[0] < lit[1] < lit[2]


def test_the_label_stays_where_no_face_was_found(portrait: Pixels) -> None:
    out = empty()
    MeterScene(portrait, voice(0.3), PLAN, 1).draw(40, out)
    label = out.y[-30:, -70:].astype(int)
    assert (label > 180).sum() > 60
