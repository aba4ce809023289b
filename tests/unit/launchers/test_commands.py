"""Golden commands: the words that start the processes of a run, and the script that Slurm is given."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import extras
from tunesmith.component import all_of
from tunesmith.engine import device
from tunesmith.errors import MissingExtra, RecipeError, RunError
from tunesmith.explain import choose
from tunesmith.launching import Launcher, split, start

ARGUMENTS = ["train", "my recipes/a.yaml", "train.output_dir=runs/it's", "eval={prompts: [Who are you?]}"]
STOP = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120"
APART = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
SAID = "train 'my recipes/a.yaml' 'train.output_dir=runs/it'\"'\"'s' 'eval={prompts: [Who are you?]}'"
GOLDEN = {
    "local": ({}, f"python -m tunesmith {SAID}"),
    "torchrun": (
        {"nproc_per_node": 8},
        f"env {STOP} python -m torch.distributed.run --nnodes=1 --nproc-per-node=8 --standalone -m tunesmith {SAID}",
    ),
    "torchrun on four machines": (
        {"nnodes": 4, "rdzv_endpoint": "node-0:29500", "rdzv_id": "first", "max_restarts": 3},
        f"env {STOP} {APART} python -m torch.distributed.run --nnodes=4 --nproc-per-node=gpu --rdzv-backend=c10d "
        f"--rdzv-endpoint=node-0:29500 --rdzv-id=first --max-restarts=3 -m tunesmith {SAID}",
    ),
    "torchrun elastic": (
        {"nnodes": "2:4", "nproc_per_node": 8, "rdzv_endpoint": "node-0:29500", "rdzv_id": "long"},
        f"env {STOP} {APART} python -m torch.distributed.run --nnodes=2:4 --nproc-per-node=8 --rdzv-backend=c10d "
        f"--rdzv-endpoint=node-0:29500 --rdzv-id=long -m tunesmith {SAID}",
    ),
    "deepspeed": (
        {"num_gpus": 2},
        "python -m deepspeed.launcher.runner --num_gpus=2 --master_port=29500 --no_local_rank --module tunesmith "
        f"{SAID}",
    ),
    "ray": (
        {"num_workers": 16, "resources_per_worker": {"GPU": 1, "CPU": 8}, "address": "head:6379", "max_restarts": 3},
        "env RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0 python -m tunesmith.launchers._on_ray --num-workers=16 "
        f'\'--resources={{"GPU": 1.0, "CPU": 8.0}}\' --placement=PACK --address=head:6379 --max-restarts=3 -- {SAID}',
    ),
    "slurm": ({"script": "my job.sbatch"}, "sbatch 'my job.sbatch'"),
}
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=second
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=1-12:00:00
#SBATCH --partition=gpu
#SBATCH --output=%x-%j.out
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail
module load cuda
source venv/bin/activate

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\\n'*}
srun --kill-on-bad-exit=1 env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
python -m torch.distributed.run --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint="$head:29500" \
--rdzv-id="$SLURM_JOB_ID" --max-restarts=3 \
-m tunesmith """


@pytest.fixture(autouse=True)
def python(monkeypatch):
    monkeypatch.setattr(sys, "executable", "python")


def made(name, **options):
    found = choose(Launcher, {"type": name, **options})
    assert isinstance(found, Launcher)
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_the_command_is_golden(name):
    options, command = GOLDEN[name]
    words = made(name.partition(" ")[0], **options).command(ARGUMENTS)
    assert shlex.join(words) == command


def test_every_launcher_has_a_golden_command():
    assert {name.partition(" ")[0] for name in GOLDEN} == set(all_of(Launcher))


def test_the_script_of_slurm_is_golden():
    slurm = made(
        "slurm",
        nodes=2,
        cpus_per_task=96,
        time="1-12:00:00",
        partition="gpu",
        job_name="second",
        max_restarts=3,
        requeue=True,
        setup=("module load cuda", "source venv/bin/activate"),
    )
    assert slurm.files(ARGUMENTS) == {"tunesmith.sbatch": f"{SCRIPT}{SAID}\n"}
    assert slurm.begins_again()


def test_a_shell_gives_each_machine_the_words_of_the_script(tmp_path):
    """The script, run where sbatch's programs are ones that print what they are given, of more machines than a pipe
    holds names of."""
    for name, body in (("scontrol", "printf 'n 1\\nn2\\n'; seq 100000"), ("srun", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = made("slurm", script=str(tmp_path / "job"), nodes=2)
    (tmp_path / "job").write_text(slurm.files(ARGUMENTS)[str(tmp_path / "job")])
    said = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", tmp_path / "job"], env=said, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert words[-len(ARGUMENTS) :] == ARGUMENTS
    assert "--rdzv-endpoint=n 1:29500" in words and "--rdzv-id=7" in words


def test_words_go_over_ssh_as_they_are(tmp_path):
    """pdsh has a shell on the other machine read the line; DeepSpeed puts words with spaces in double quotes."""
    (tmp_path / "hosts").write_text("worker-1 slots=8\n")
    words = made("deepspeed", hostfile=str(tmp_path / "hosts")).command(["train", "a b$c", "x='y'", "z"])
    assert f"--hostfile={tmp_path}/hosts" in words and "--force_multi" in words
    written = [f'"{word}"' if " " in word else word for word in words[-4:]]  # as its PDSHRunner does
    said = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {" ".join(written)}'], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == ["train", "a b$c", "x='y'", "z"]


def test_a_hostfile_of_the_home_folder_is_the_one_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hosts").write_text("worker-1 slots=8\n")
    assert f"--hostfile={tmp_path}/hosts" in made("deepspeed", hostfile="~/hosts").command(["train"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "torchrun",
            {"nnodes": 2},
            "nnodes: several machines meet at an address: set launcher.rdzv_endpoint=",
        ),
        (
            "torchrun",
            {"nnodes": "3:1", "rdzv_endpoint": "a:1"},
            "nnodes: the most machines are fewer than the least",
        ),
        ("torchrun", {"nnodes": "1:3", "rdzv_endpoint": "a:1"}, "nnodes: machines that come later know the run by"),
        ("deepspeed", {"hostfile": "/nope"}, "hostfile: there is no file /nope"),
        ("torchrun", {"nproc_per_node": 0}, "nproc_per_node: must be an integer above 0, gpu, cpu or auto"),
        ("torchrun", {"rdzv_endpoint": "node-0"}, "rdzv_endpoint: must be HOST:PORT"),
        ("torchrun", {"nnode": 2}, "nnode: no such option. Did you mean 'nnodes'"),
        ("deepspeed", {"include": "a:0", "num_gpus": 1}, "include: names machines and devices"),
        ("ray", {"address": "ray://head:10001"}, "address: must be auto or HOST:PORT"),
        ("ray", {"resources_per_worker": {"GPU": -1}}, "resources_per_worker.GPU: must be greater than or equal to 0"),
        ("slurm", {"partition": "a\nrm -rf /"}, "partition: must be letters, digits"),
        ("slurm", {"time": "soon"}, "time: must be minutes, or a time"),
        ("torchrum", {}, "there is no launcher 'torchrum'. Did you mean 'torchrun'"),
    ],
)
def test_what_cannot_be_is_said(name, options, message):
    with pytest.raises(RecipeError) as caught:
        made(name, **options)
    assert message in str(caught.value)


def test_an_option_is_named_as_it_was_said():
    with pytest.raises(RecipeError, match=r"^launcher\.nnode: no such option"):
        split(["launcher=torchrun", "launcher.nnode=2"])
    with pytest.raises(RecipeError, match="^launcher: there is no launcher 'ssh'"):
        split(["launcher=ssh"])


def test_a_starter_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r"launcher=deepspeed needs deepspeed, .* pip install 'tunesmith\[deepspeed\]'"
    ):
        start(made("deepspeed"), ["train", "quickstart"], "")


def test_a_script_that_was_changed_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    slurm = made("slurm", setup=("module load cuda",))
    monkeypatch.setenv("PATH", str(tmp_path))
    for text in (None, None, "mine\n", "mine too\n"):
        if text is not None:
            (tmp_path / "tunesmith.sbatch").write_text(text)
        with pytest.raises(RunError, match="there is no program 'sbatch'"):
            start(slurm, ARGUMENTS, "")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {
        "tunesmith.sbatch": slurm.files(ARGUMENTS)["tunesmith.sbatch"],
        "tunesmith.sbatch.1": "mine\n",
        "tunesmith.sbatch.2": "mine too\n",
    }
    said = capsys.readouterr().err
    assert said.count("wrote tunesmith.sbatch\n") == 2
    assert "wrote tunesmith.sbatch; the one that was there is tunesmith.sbatch.2 now\n" in said


def test_a_script_is_there_whatever_happens(tmp_path, monkeypatch):
    def full(*_, **options):
        raise OSError(28, "No space left on device")

    script = tmp_path / "tunesmith.sbatch"
    script.write_text("mine\n")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        start(made("slurm", script=str(script)), ARGUMENTS, "")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"tunesmith.sbatch": "mine\n"}


def test_devices_are_not_counted_where_there_are_none(monkeypatch):
    monkeypatch.setattr(device, "choose", lambda name: device.Device("cpu", "", False))
    assert "say how many processes, as in launcher.nproc_per_node=2" in made("torchrun").problem()
    assert made("torchrun", nproc_per_node=2).problem() is None
    monkeypatch.setattr(device, "choose", lambda name: device.Device("cuda", "", True))
    assert made("torchrun").problem() is None
