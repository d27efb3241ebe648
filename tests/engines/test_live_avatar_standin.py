"""The stand-in checkout and torchrun do what the real ones do (Alibaba-Quark/LiveAvatar at 9c2c38d, torch 2)."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fakes.live_avatar.build import CKPT, HERE, TORCHRUN, WEIGHTS
from tests.fakes.live_avatar.rig import COMMAND_LINE, MULTI, SINGLE, Rig, finished_bars, write_media
from utils.plan import SIZES, clips_in_audio, fit_size
from utils.video import inspect_video

SIZE_NAMES = [
    "720*1280", "1280*720", "480*832", "832*480", "704*1280", "1280*704",
    "1024*704", "704*1024", "720*400", "704*384", "688*368", "384*256",
]  # fmt: skip
FLAG = object()
"""A switch: present or not."""

COMMAND_LINE_FLAGS: dict[str, tuple[Any, Any, list[str] | None]] = {
    "--task": (str, "t2v-A14B", ["t2v-A14B", "s2v-14B"]),
    "--size": (str, "1280*720", SIZE_NAMES),
    "--ckpt_dir": (str, None, None),
    "--image": (str, None, None),
    "--audio": (str, None, None),
    "--prompt": (str, None, None),
    "--num_clip": (int, None, None),
    "--infer_frames": (int, 80, None),
    "--sample_steps": (int, None, None),
    "--sample_solver": (str, "euler", ["euler", "unipc", "dpm++"]),
    "--sample_guide_scale": (float, None, None),
    "--sample_shift": (float, None, None),
    "--start_from_ref": (FLAG, False, None),
    "--drop_motion_noisy": (FLAG, False, None),
    "--frame_num": (int, None, None),
    "--use_dataset": (FLAG, False, None),
    "--lora_path": (str, None, None),
    "--using_merged_ckpt": (FLAG, False, None),
    "--base_seed": (int, -1, None),
    "--training_config": (str, None, None),
    "--load_lora": (FLAG, False, None),
    "--lora_path_dmd": (str, None, None),
    "--fp8": (FLAG, False, None),
    "--offload_model": (bool, None, None),
    "--convert_model_dtype": (FLAG, False, None),
    "--t5_cpu": (FLAG, False, None),
    "--offload_kv_cache": (FLAG, False, None),
    "--enable_online_decode": (FLAG, False, None),
    "--num_gpus_dit": (int, 4, None),
    "--enable_vae_parallel": (FLAG, False, None),
    "--single_gpu": (FLAG, False, None),
    "--ulysses_size": (int, 1, None),
    "--save_file": (str, None, None),
    "--save_dir": (str, None, None),
    "--enable_tts": (FLAG, False, None),
    "--tts_prompt_audio": (str, None, None),
    "--tts_prompt_text": (str, None, None),
    "--tts_text": (str, None, None),
    "--pose_video": (str, None, None),
    "--use_prompt_extend": (FLAG, False, None),
    "--t5_fsdp": (FLAG, False, None),
    "--dit_fsdp": (FLAG, False, None),
}
"""Flag: type, default, choices."""

GRADIO_DEFAULTS = {
    "--infer_frames": 48, "--sample_steps": 4, "--sample_guide_scale": 0, "--num_clip": 10,
    "--save_dir": "./output/gradio/", "--ckpt_dir": "ckpt/Wan2.2-S2V-14B/", "--task": "s2v-14B", "--size": None,
    "--training_config": "liveavatar/configs/s2v_causal_sft.yaml", "--base_seed": 420,
}  # fmt: skip


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.sweep()


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, ModuleType]]:
    """Both programs of the stand-in, imported as its environment would."""
    folders, before = [str(HERE / "site"), str(HERE / "checkout")], set(sys.modules)
    sys.path[:0] = folders
    sys.modules["gradio"] = ModuleType("gradio")
    loaded = {}
    for name in ("s2v_streaming_interact", "gradio_app"):
        spec = importlib.util.spec_from_file_location(name, HERE / "checkout" / "minimal_inference" / f"{name}.py")
        assert spec and spec.loader
        loaded[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    yield loaded
    sys.path[:] = [entry for entry in sys.path if entry not in folders and not entry.startswith(str(HERE))]
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("torch", "tqdm", "standin", "standin_media", "liveavatar", "gradio"):
            del sys.modules[name]


def action(parser: argparse.ArgumentParser, flag: str) -> argparse.Action:
    return parser._option_string_actions[flag]


@pytest.mark.parametrize("flag", COMMAND_LINE_FLAGS)
def test_a_flag_has_upstreams_type_default_and_choices(programs: dict[str, ModuleType], flag: str) -> None:
    kind, default, choices = COMMAND_LINE_FLAGS[flag]
    found = action(programs["s2v_streaming_interact"].make_parser(), flag)
    assert found.default == default
    assert found.choices == choices
    assert (found.nargs == 0) == (kind is FLAG)
    if kind is bool:
        assert found.type is not None
        read = found.type
        assert callable(read)
        assert [read(word) for word in ("True", "no", "1")] == [True, False, True]
    elif kind is not FLAG:
        assert found.type is kind


def test_the_command_line_has_no_other_flag(programs: dict[str, ModuleType]) -> None:
    assert set(programs["s2v_streaming_interact"].FLAGS) == set(COMMAND_LINE_FLAGS)


def test_the_gradio_module_differs_as_upstreams_does(programs: dict[str, ModuleType]) -> None:
    flags = programs["gradio_app"].FLAGS
    assert {name: flags[name].get("default") for name in GRADIO_DEFAULTS} == GRADIO_DEFAULTS
    assert not {"--save_file", "--image", "--audio", "--prompt", "--enable_online_decode"} & set(flags)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_clips_are_those_of_the_plan(programs: dict[str, ModuleType], size: str) -> None:
    standin = sys.modules["standin"]
    for height, width in ((576, 1056), (1056, 576), (100, 100), (772, 828), (2000, 300), (64, 64)):
        assert standin.output_size(SIZES[size], height, width) == fit_size(SIZES[size], height, width)
    for seconds in (0.2, 1.92, 3.83, 3.84, 11.6, 60.0, 3600.0):
        assert standin.clips_of(seconds, 48, None) == clips_in_audio(seconds)


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "the default task": ({"task": "t2v-A14B"}, (), "AssertionError: Unsupport task: t2v-A14B"),
    "no weights": ({"ckpt_dir": None}, (), "AssertionError: Please specify the checkpoint directory."),
    "five steps": ({"sample_steps": 5}, (), "KeyError: '5'"),
    "another solver": ({"sample_solver": "unipc"}, (), "NotImplementedError"),
    "no clip": ({"num_clip": 0}, (), "ValueError: torch.cat(): expected a non-empty list"),
    "sequence parallel": ({"ulysses_size": 2}, (), "AssertionError"),
    "several speakers that are not there": ({"audio": "a+b.wav"}, (), "No such file or directory: 'a'"),
    "no recording": ({"audio": "none.wav"}, (), "FileNotFoundError"),
    "no image": ({"image": "ckpt/LiveAvatar/liveavatar.safetensors"}, (), "PIL.UnidentifiedImageError"),
    "a name without a LoRA": ({"save_file": None}, (), "AttributeError: 'NoneType' object has no attribute 'endswith'"),
    "a folder that is not there": ({"save_file": "/nowhere/a.mp4"}, (), "FileNotFoundError: video file /nowhere/a.mp4"),
    "a LoRA by name": ({"lora_path_dmd": "Quark-Vision/Live-Avatar"}, ("--load_lora",), "ConnectionError"),
    "a LoRA's folder": ({"lora_path_dmd": "ckpt/LiveAvatar"}, ("--load_lora",), "IsADirectoryError"),
    "a LoRA that is none": (
        {"lora_path_dmd": f"{CKPT}/config.json"}, ("--load_lora",), "safetensors_rust.SafetensorError: Error while",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_upstream_refuses(rig: Rig, what: str) -> None:
    flags, more, cause = REFUSED[what]
    run = rig.upstream(*more, **flags)
    assert run.code == 1
    assert cause in run.log
    assert "ChildFailedError" in run.log[run.log.index(cause) :]
    assert run.files == []


def test_an_unknown_flag_ends_the_program_with_2_and_torchrun_with_1(rig: Rig) -> None:
    run = rig.upstream("--enable_fp8")
    assert run.code == 1
    assert "unrecognized arguments: --enable_fp8" in run.log
    assert "exitcode  : 2 " in run.log


def test_a_size_above_the_cache_is_refused_and_a_small_image_saves_it(rig: Rig) -> None:
    assert rig.upstream(size="832*480").code == 0
    rig.image, _ = write_media(rig.folder, width=1056, height=576)
    run = rig.upstream(size="832*480")
    assert (run.code, run.cause.partition(":")[0]) == (1, "RuntimeError")
    assert "The expanded size of the tensor (2800) must match the existing size (3640)" in run.cause


@pytest.mark.parametrize("ranks", [2, 4])
def test_two_to_four_ranks_are_refused(rig: Rig, ranks: int) -> None:
    run = rig.upstream(ranks=ranks)
    assert run.code == 1
    assert run.cause == "AssertionError: At least 5 GPUs are supported for distributed inference."


def test_more_steps_than_denoising_ranks_find_no_cache(rig: Rig) -> None:
    run = rig.upstream(ranks=5, sample_steps=5)
    assert run.code == 1
    assert "[rank4]: TypeError: 'NoneType' object is not subscriptable" in run.log


def test_fewer_steps_than_denoising_ranks_wait_for_ever(rig: Rig) -> None:
    for patience in (3.0, 15.0, 60.0):  # on a busy machine not all of them have begun when the first is over
        rig.calls_file.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.fakes.live_avatar.rig.DEADLINE", patience)
            with pytest.raises(subprocess.TimeoutExpired):
                rig.upstream(ranks=5, sample_steps=3)
        if len(rig.calls("init_process_group")) == 5:
            break
        assert rig.sweep()
    assert len(rig.left()) == 5, "torchrun was killed, so its ranks are orphans"
    assert rig.sweep()
    assert rig.left() == []


def test_what_is_not_given_is_taken_from_the_examples(rig: Rig) -> None:
    run = rig.upstream(image=None, audio=None, prompt=None)
    facts = inspect_video(run.video)
    assert (facts.width, facts.height, facts.frames) == (128, 192, 27)


def test_the_default_of_80_frames_makes_77(rig: Rig) -> None:
    rig.image, rig.audio = write_media(rig.folder, 3.1)
    assert inspect_video(rig.upstream(infer_frames=None).video).frames == 77


def test_a_folder_without_its_slash_is_glued_to_the_name(rig: Rig) -> None:
    lora = "ckpt/LiveAvatar/liveavatar.safetensors"
    rig.upstream(save_file=None, save_dir=rig.folder / "saved", lora_path_dmd=lora, prompt="a b/c")
    (made,) = rig.folder.glob("saved*")
    assert re.fullmatch(r"saved\d{8}_\d{6}_4step_a_b_c\.mp4", made.name)


MISSED = {
    "config.json": ("OSError: Error no file named config.json", "OSError: It looks like the config file at"),
    "models_t5_umt5-xxl-enc-bf16.pth": (
        f"FileNotFoundError: [Errno 2] No such file or directory: '{CKPT}/models_t5",
        "EOFError",
    ),
    "Wan2.1_VAE.pth": (f"FileNotFoundError: [Errno 2] No such file or directory: '{CKPT}/Wan2.1_VAE.pth'", "EOFError"),
    "google/umt5-xxl/tokenizer.json": ("OSError: Can't load tokenizer for",) * 2,
    "wav2vec2-large-xlsr-53-english/config.json": ("OSError: Can't load feature extractor for",) * 2,
}


def test_every_weight_of_the_stand_in_is_missed_in_a_test() -> None:
    assert {f"{CKPT}/{name}" for name in MISSED} == set(WEIGHTS)


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("name", MISSED)
def test_weights_are_missed_while_loading(rig: Rig, name: str, empty: bool) -> None:
    path = rig.home / CKPT / name
    path.write_text("") if empty else path.unlink()
    run = rig.upstream()
    assert run.code == 1
    assert run.cause.startswith(MISSED[name][empty])


def test_lines_come_on_upstreams_streams(rig: Rig) -> None:
    rig.start(MULTI).wait()
    folder = rig.attempt_folder / "ranks"
    said = {
        (rank, stream): next(folder.glob(f"*/attempt_0/{rank}/{stream}.log")).read_bytes().decode()
        for rank in (0, 4)
        for stream in ("stdout", "stderr")
    }
    everywhere = ["world_size: 5", "Using TPP distributed inference", "COMPILE: False", "LoRA merged successfully."]
    for rank in (0, 4):
        for line in (*everywhere, "complete prepare conditional inputs", "denoising video done", f"rank: {rank}"):
            assert re.search(f"^{re.escape(line)}", said[rank, "stdout"], re.M), line
        assert "\rLoading checkpoint shards: 100%|" in said[rank, "stderr"]
        assert finished_bars(said[rank, "stderr"]) == 4
    first = said[0, "stdout"]
    assert re.search(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] INFO: Generating video \.\.\.$", first, re.M)
    assert "INFO: Finished." in first
    assert "INFO" not in said[4, "stdout"] + said[4, "stderr"]
    assert "WARNING: VAE serves as a bottleneck!" in said[4, "stdout"]


def test_sigkill_to_torchrun_leaves_its_ranks_behind(rig: Rig) -> None:
    job = rig.start(MULTI, fake="hang_block")
    job.wait_for("%|")
    assert job.kill().code == -signal.SIGKILL
    assert len(rig.left()) == 5
    assert rig.sweep()
    assert rig.left() == []


def test_a_fixed_port_that_is_taken_ends_torchrun(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = rig.upstream(torchrun=(f"--master_port={taken.getsockname()[1]}",))
    assert run.code == 1
    assert "EADDRINUSE" in run.log
    assert rig.calls() == []


def test_redirected_ranks_say_nothing_on_the_pipes(rig: Rig) -> None:
    run = rig.upstream(ranks=5, torchrun=("--standalone", "--redirects", "3", "--log-dir", str(rig.folder / "ranks")))
    assert (run.code, run.log) == (0, "")
    files = sorted(path.relative_to(rig.folder / "ranks") for path in rig.folder.glob("ranks/*/attempt_0/*/std*.log"))
    assert [(path.parts[2], path.name) for path in files] == [
        (str(rank), f"{stream}.log") for rank in range(5) for stream in ("stderr", "stdout")
    ]
    unnamed = rig.upstream(torchrun=("--redirects", "3", "--master_port", "0", "--log-dir", str(rig.folder / "one")))
    assert unnamed.code == 0
    assert [path.name.partition("_")[0] for path in (rig.folder / "one").iterdir()] == ["none"]


def test_every_rank_is_a_session_of_its_own_and_knows_its_place(rig: Rig) -> None:
    rig.upstream(ranks=5)
    for rank, call in enumerate(rig.calls()):
        seen = call["environ"]
        assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == (str(rank), str(rank), "5")
        assert {"MASTER_ADDR", "MASTER_PORT"} <= set(seen)
    job = rig.start(SINGLE, fake="hang_load")
    job.wait_for("Creating WanModel")
    assert sorted(os.getsid(pid) == pid for pid in rig.left()) == [True, True]
    job.terminate()


def test_torchrun_refuses_a_flag_that_it_does_not_know() -> None:
    done = subprocess.run([TORCHRUN, "--nonsense", COMMAND_LINE], capture_output=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
