"""From a request and a row of the engine table to upstream's command line and environment."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_avatar.build import CKPT, HERE, LORA, WEIGHTS
from tests.fakes.live_avatar.rig import FOUR, MULTI, RANKS, SINGLE, Rig, write_media

SCRIPTS = [SINGLE, MULTI, FOUR]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.sweep()


def expected(rig: Rig, given: dict[str, Any]) -> list[str]:
    """What every script passes on, in order."""
    return [
        f"--save_file={rig.attempt_folder}/out/video.mp4",
        f"--prompt={given.get('prompt', 'a person speaks')}",
        f"--image={rig.image}",
        f"--audio={rig.audio}",
        "--task=s2v-14B",
        f"--size={given.get('size', '384*256')}",
        f"--num_clip={given.get('num_clip', 50)}",
        f"--sample_steps={given['sample_steps']}",
        f"--base_seed={given.get('seed', 7)}",
        "--infer_frames=48",
        "--sample_solver=euler",
        "--ckpt_dir=ckpt/Wan2.2-S2V-14B/",
        "--training_config=liveavatar/configs/s2v_causal_sft.yaml",
        "--load_lora",
        f"--lora_path_dmd={rig.home}/{LORA}",
    ]


REQUESTS: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "one GPU": (SINGLE, {"sample_steps": 4}, [], ["--offload_model=True"]),
    "one GPU, all that a request can say": (
        SINGLE,
        {"sample_steps": 2, "prompt": "rain", "size": "704*384", "num_clip": 3, "seed": 4294967295},
        ["--enable_online_decode"],
        ["--offload_model=True", "--enable_online_decode"],
    ),
    "one GPU of 48 GB": (
        SINGLE,
        {"sample_steps": 3},
        ["--fp8", "--offload_kv_cache", "--t5_cpu"],
        ["--offload_model=True", "--fp8", "--offload_kv_cache", "--t5_cpu"],
    ),
    "five GPUs": (
        MULTI,
        {"sample_steps": 4},
        [],
        ["--offload_model=False", "--num_gpus_dit=4", "--enable_vae_parallel"],
    ),
    "five GPUs of 48 GB": (
        MULTI,
        {"sample_steps": 4, "size": "688*368"},
        ["--fp8", "--t5_cpu", "--convert_model_dtype"],
        [
            "--offload_model=False", "--num_gpus_dit=4", "--enable_vae_parallel",
            "--fp8", "--t5_cpu", "--convert_model_dtype",
        ],
    ),
    "five GPUs cannot decode online": (
        MULTI,
        {"sample_steps": 4},
        ["--enable_online_decode", "--output_format=mp4"],
        ["--offload_model=False", "--num_gpus_dit=4", "--enable_vae_parallel"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_and_a_row_become_upstreams_command_line(rig: Rig, what: str) -> None:
    script, given, row, own = REQUESTS[what]
    run = rig.run(script, *row, fake="no_file", **given)
    assert run.code == 0, run.log
    calls = rig.calls()
    assert [call["argv"] for call in calls] == [expected(rig, given) + own] * RANKS[script]
    assert {(call["form"], call["cwd"]) for call in calls} == {("cli", str(rig.home))}


def test_four_gpus_go_through_the_gradio_module(rig: Rig) -> None:
    given = {"sample_steps": 3, "prompt": "snow", "size": "704*384", "num_clip": 2, "seed": 5}
    run = rig.run(FOUR, "--fp8", "--enable_online_decode", **given)
    assert run.code == 0, run.log
    own = ["--offload_model=False", "--num_gpus_dit=3", "--enable_vae_parallel", "--fp8"]
    calls = rig.calls()
    saved = f"--save_dir={rig.attempt_folder}/gradio/"
    assert [call["argv"] for call in calls] == [[saved, *expected(rig, given)[4:], *own]] * 4
    assert {(call["form"], call["cwd"]) for call in calls} == {("gradio", str(rig.home))}
    (asked,) = rig.calls("infer")
    assert asked["fields"] == ["snow", str(rig.image), str(rig.audio), 2, 3, 0.0, 48, "704*384", 5, "euler"]


PROMPTS = {
    "that begins like a flag": "--fp8",
    "of quotes": """it's "quoted" `twice` $(touch pwned) ${HOME} \\ %s !""",
    "of several lines": "first\nsecond\n\nlast\n",
    "with an equals sign": "=a=b=",
    "of other scripts": "一个人在说话 🎙️ ñandú",
    "of blanks": " \t ",
    "with a glob": "* ? [a-z] ~",
    "longer than a file name": "words / and more " * 30,
}


@pytest.mark.parametrize("what", PROMPTS)
def test_a_prompt_arrives_byte_for_byte(rig: Rig, what: str) -> None:
    prompt = PROMPTS[what]
    assert rig.run(SINGLE, prompt=prompt, fake="no_file").code == 0
    assert f"--prompt={prompt}" in rig.calls()[0]["argv"]
    assert not list(rig.folder.rglob("pwned"))


@pytest.mark.parametrize("what", ["that begins like a flag", "of several lines", "longer than a file name"])
def test_a_prompt_arrives_byte_for_byte_through_the_gradio_module(rig: Rig, what: str) -> None:
    run = rig.run(FOUR, prompt=PROMPTS[what])
    assert (run.code, run.files) == (0, ["video.mp4"])
    assert rig.calls("infer")[0]["fields"][0] == PROMPTS[what]


def test_an_empty_prompt_does_not_hang_four_gpus(rig: Rig) -> None:
    run = rig.run(FOUR, prompt="")
    assert (run.code, run.files) == (0, ["video.mp4"])
    assert rig.calls("infer")[0]["fields"][0] == " "


@pytest.mark.parametrize("script", SCRIPTS)
def test_upstream_gets_its_own_environment_and_not_the_services(rig: Rig, script: str) -> None:
    secrets = {
        "PYTHONPATH": "/service",
        "PYTHONHOME": sys.prefix,
        "VIRTUAL_ENV": "/service/.venv",
        "PYTHONSAFEPATH": "1",
    }
    rig.variables |= {name: value for name, value in secrets.items() if name != "PYTHONHOME"}
    rig.variables |= {"NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}
    rig.run(script, fake="no_file")
    assert len(rig.calls()) == RANKS[script]
    for call in rig.calls():
        seen = call["environ"]
        assert seen["HF_HUB_OFFLINE"] == seen["TRANSFORMERS_OFFLINE"] == seen["PYTHONUNBUFFERED"] == "1"
        assert seen["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
        assert seen["PYTHONPATH"].startswith(f"{HERE}/site:"), "the stand-in torchrun's own"
        assert not {"VIRTUAL_ENV", "PYTHONSAFEPATH"} & set(seen)
        assert (seen["NCCL_DEBUG"], seen["CUDA_VISIBLE_DEVICES"]) == ("WARN", "GPU-1,GPU-2")
        assert seen["AVATAR_TASK_ID"] == rig.task
        assert seen["PATH"] == f"{HERE}:/usr/bin:/bin"


COMPILE: dict[str, tuple[float, int, dict[str, str], str]] = {
    "not a short video": (60.0, 9999, {}, "false"),
    "a long one": (115.2, 9999, {}, "true"),
    "not a long recording of which little is asked": (115.2, 59, {}, "false"),
    "from a number that is set": (3.0, 9999, {"LIVE_AVATAR_COMPILE_CLIPS": "2"}, "true"),
    "where it is set": (1.0, 1, {"LIVE_AVATAR_COMPILE": "true"}, "true"),
    "nothing where it is set": (115.2, 9999, {"LIVE_AVATAR_COMPILE": "false"}, "false"),
}


@pytest.mark.parametrize("what", COMPILE)
def test_upstream_compiles(rig: Rig, what: str) -> None:
    seconds, clips, setting, wanted = COMPILE[what]
    write_media(rig.folder, seconds)
    rig.variables |= setting
    rig.start(SINGLE, num_clip=clips, fake="oom_load").wait()
    assert rig.calls()[0]["environ"]["ENABLE_COMPILE"] == wanted


@pytest.mark.parametrize("setting", ["", "LIVE_AVATAR_CACHE", "unwritable", "no home"])
def test_compiled_kernels_are_kept_where_they_can_be(rig: Rig, setting: str) -> None:
    cache = rig.folder / "user" / ".cache" / "live-avatar"
    if setting == "LIVE_AVATAR_CACHE":
        cache = rig.folder / "kept"
        rig.variables[setting] = str(cache)
    elif setting:
        cache = rig.folder / "attempts" / "1" / "cache"
        rig.variables["HOME"] = "/dev/null" if setting == "unwritable" else ""
    rig.start(SINGLE, fake="oom_load").wait()
    seen = rig.calls()[0]["environ"]
    assert (seen["TORCHINDUCTOR_CACHE_DIR"], seen["TRITON_CACHE_DIR"]) == (f"{cache}/inductor", f"{cache}/triton")
    assert (cache / "inductor").is_dir()


REFUSED: dict[str, tuple[str, dict[str, Any], list[str], str]] = {
    "an unknown argument": (SINGLE, {}, ["--pose_video=/etc/passwd"], "unknown argument --pose_video"),
    "another LoRA": (SINGLE, {}, ["--lora_path_dmd=x"], "unknown argument --lora_path_dmd"),
    "webm": (MULTI, {}, ["--output_format=webm"], "unknown argument --output_format"),
    "no prompt": (SINGLE, {"prompt": None}, [], "missing: PROMPT"),
    "a size of words": (SINGLE, {"size": "large"}, [], "--size"),
    "no clips": (SINGLE, {"num_clip": 0}, [], "--num_clip"),
    "a seed below nought": (SINGLE, {"seed": -1}, [], "--seed"),
    "five steps on one GPU": (SINGLE, {"sample_steps": 5}, [], "--sample_steps=5"),
    "three steps on five": (MULTI, {"sample_steps": 3}, [], "--sample_steps=3"),
    "four steps on four": (FOUR, {"sample_steps": 4}, [], "--sample_steps=4"),
    "several speakers": (SINGLE, {"audio": "/a+b.wav"}, [], "+"),
    "an image that is not there": (SINGLE, {"image": "/nowhere.png"}, [], "the image is not there"),
    "a recording that is not there": (SINGLE, {"audio": "/nowhere.wav"}, [], "the recording is not there"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_arguments_are_refused_in_one_line_before_anything_starts(rig: Rig, what: str) -> None:
    script, changes, more, line = REFUSED[what]
    run = rig.run(script, *more, **changes)
    assert run.code == 64
    assert re.fullmatch(r"live avatar: [^\n]+\n", run.log)
    assert line in run.log
    assert rig.calls() == []


def remove(rig: Rig, name: str) -> None:
    path = rig.home / name
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def empty(rig: Rig, name: str) -> None:
    (rig.home / name).write_text("")


BROKEN: dict[str, Callable[[Rig], None]] = {
    "LIVE_AVATAR_HOME is not set": lambda rig: rig.variables.update(LIVE_AVATAR_HOME=""),
    "LIVE_AVATAR_HOME is not a folder": lambda rig: rig.variables.update(LIVE_AVATAR_HOME="/nowhere"),
    "LIVE_AVATAR_HOME is not a checkout": lambda rig: remove(rig, "minimal_inference"),
    "torchrun is not there": lambda rig: rig.variables.update(LIVE_AVATAR_TORCHRUN=""),
    "torchrun is not there: LIVE_AVATAR_TORCHRUN": lambda rig: rig.variables.update(LIVE_AVATAR_TORCHRUN="/usr/bin"),
    "neither auto nor true nor false": lambda rig: rig.variables.update(LIVE_AVATAR_COMPILE="yes"),
    "the LoRA's file": lambda rig: remove(rig, LORA),
    f"{CKPT}/google/umt5-xxl/": lambda rig: remove(rig, f"{CKPT}/google"),
    "missing weights: ckpt/Wan2.2-S2V-14B/config.json": lambda rig: empty(rig, WEIGHTS[0]),
    "missing weights: ckpt/Wan2.2-S2V-14B/models_t5_umt5-xxl-enc-bf16.pth": lambda rig: empty(rig, WEIGHTS[1]),
    "missing weights: ckpt/Wan2.2-S2V-14B/Wan2.1_VAE.pth": lambda rig: empty(rig, WEIGHTS[2]),
    "missing weights: ckpt/Wan2.2-S2V-14B/google/umt5-xxl/ is": lambda rig: empty(rig, WEIGHTS[3]),
    "missing weights: ckpt/Wan2.2-S2V-14B/wav2vec2-large-xlsr-53-english/": lambda rig: empty(rig, WEIGHTS[4]),
}


@pytest.mark.parametrize("line", BROKEN)
def test_an_installation_that_cannot_work_is_refused_in_one_line(rig: Rig, line: str) -> None:
    BROKEN[line](rig)
    run = rig.run(SCRIPTS[len(line) % 3])
    assert run.code == 78
    assert re.fullmatch(r"live avatar: [^\n]+\n", run.log)
    assert line in run.log
    assert rig.calls() == []


def test_the_services_own_torchrun_is_refused(rig: Rig) -> None:
    venv = rig.folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    shutil.copy(HERE / "torchrun", venv / "bin" / "torchrun")
    (venv / "bin" / "python").symlink_to(sys.executable)
    rig.variables |= {
        "AVATAR_PYTHON": str(venv / "bin" / "python"),
        "LIVE_AVATAR_TORCHRUN": str(venv / "bin" / "torchrun"),
    }
    run = rig.run(SINGLE)
    assert (run.code, "torchrun is the service's own" in run.log) == (78, True)


def test_torchrun_is_looked_for_on_the_path(rig: Rig) -> None:
    rig.variables |= {"LIVE_AVATAR_TORCHRUN": "", "PATH": f"{HERE}:/usr/bin:/bin"}
    assert rig.run(SINGLE, fake="no_file").code == 0
