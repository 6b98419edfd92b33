"""The legs as a user starts them and the mathematics inside, on models of a few weights.

Tests against PyTorch, TRL or the TPU compiler are skipped where these are not installed.
"""

import collections
import fcntl
import importlib.util
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time here is compiling, and simpler code takes a third of it.
os.environ.setdefault(
  "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import qwix
from absl import flags as absl_flags
from flax import nnx, traverse_util
from tunix.rl import algo_core
from tunix.rl import common as rl_common
from tunix.rl.grpo import grpo_learner

import data
import grpo
import sft

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # thousands, of libraries
# A worker makes what these tests share.
legs, in_relay = pytest.mark.xdist_group("legs"), pytest.mark.xdist_group("relay")
REPO = pathlib.Path(sft.__file__).parent
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
G = 3
SMALL = {
  "model_type": "gemma3_text", "vocab_size": 768, "hidden_size": 64, "intermediate_size": 128,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
  "query_pre_attn_scalar": 16, "sliding_window": 64,
}  # fmt: skip
GEMMA2 = SMALL | {"model_type": "gemma2", "num_hidden_layers": 3, "num_key_value_heads": 2}
MODELS = {
  "small": SMALL,  # what is trained here
  "gemma3": SMALL | {"num_hidden_layers": 7, "sliding_window": 8},  # shorter than the texts
  "gemma2": GEMMA2,
  "qkv": GEMMA2 | {"num_key_value_heads": 4},  # one projection for all three
}
SFT_KEYS = {"step", "loss", "learning_rate", "grad_norm", "time/step"}
GRPO_KEYS = SFT_KEYS | set(
  "reward correct format kl clip_fraction entropy rollout_difference completion_length truncated "
  "zero_variance time/rollout time/reward time/reference time/update tokens".split()
)

# --- Helpers ---


def start(cwd, *command, **env):
  """Starts a script, or other Python, as a user does; returns what it printed."""
  command, env = [sys.executable, *map(str, command)], os.environ | env
  done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  return done.stdout


def call(script, *argv):
  """The same without another process."""
  script.main([f"{script.__name__}.py", *map(str, argv)])


def fails(capsys, script, *argv):
  """Calls a script that must end in one line; returns that line and the exit status."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as stopped:
    call(script, *argv)
  lines = [line for line in capsys.readouterr().err.splitlines() if "WARNING" not in line]
  assert len(lines) == 1 and "error:" in lines[0], lines
  return lines[-1], stopped.value.code


def flags(*argv, script=grpo):
  """A script's flags, resolved."""
  fv = absl_flags.FlagValues()
  script.define_flags(fv)
  fv([script.__name__, *argv])
  sft.resolve_flags(fv, script.DEFAULTS, {}, 1)
  return fv


def metrics(run):
  return sft.read_jsonl(run / "metrics.jsonl")


def column(run, name):
  return [record[name] for record in metrics(run)]


def info(run):
  return json.loads((run / "run.json").read_text())


def steps_of(run):
  return [int(path.name) for path in sft.step_folders(run)]


def files_of(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal_runs(got, want, steps):
  """The same metrics, but for the seconds, and the same weights, read without any model."""
  assert column(got, "step") == list(range(1, steps + 1))
  for mine, theirs in zip(metrics(got), metrics(want), strict=True):
    names = {name for name in theirs if not name.startswith("time/")}
    assert {name: mine[name] for name in names} == {name: theirs[name] for name in names}
  paths = [run.absolute() / "actor" / str(steps) / "model_params" for run in (got, want)]
  weights = [ocp.StandardCheckpointer().restore(path) for path in paths]
  jax.tree.map(np.testing.assert_array_equal, *weights)


def assert_close_runs(got, want):
  """The same samples, and losses and gradients but for rounding.

  GRPO's loss is a sum of advantages that cancel, so it is compared on the scale of its terms.
  """
  for mine, theirs in zip(metrics(got), metrics(want), strict=True):
    for name in {"loss", "grad_norm", "entropy", "kl"} & set(theirs):
      room = 1e-4 if "kl" in theirs and name in ("loss", "kl") else 0
      assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=room), (mine["step"], name)
    for name in ("step", "reward", "correct", "tokens"):
      assert mine.get(name) == theirs.get(name), (mine["step"], name)


def norm(tree):
  return float(optax.global_norm(tree))


def difference(a, b):
  return norm(jax.tree.map(jnp.subtract, a, b))


def random_ids(rng, count, low, high):
  return [rng.integers(10, 768, rng.integers(low, high)) for _ in range(count)]


def load_policy(folder, *argv):
  """(policy, trained, frozen) of a model; an adapter, if any, is random."""
  lengths = "--max_prompt_length=32", "--max_completion_length=32"
  fv = flags(f"--model={folder}", "--lora_alpha=8", *lengths, *argv)
  policy, trained, frozen = sft.load_policy(folder, sft.tunix_config(folder, fv), MESH, fv)
  if fv.lora_rank:
    keys = {x.size: jax.random.key(x.size) for x in jax.tree.leaves(trained)}
    trained = jax.tree.map(lambda x: 0.1 * jax.random.normal(keys[x.size], x.shape), trained)
  return policy, trained, frozen


def plain_logits(model, ids):
  """Logits [L, V] of one unpadded sequence, as Tunix's model is called by hand."""
  n = len(ids)
  causal = jnp.tril(jnp.ones((1, n, n), bool))
  return np.asarray(model(jnp.array([ids]), jnp.arange(n)[None], None, causal)[0][0], np.float32)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
  """Models and compiled programs of all tests and of the processes they start."""
  data.CACHE = tmp_path_factory.mktemp("cache")
  os.environ["SHOW_YOUR_WORK_CACHE"] = str(data.CACHE)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
  """MODELS as folders, with random weights."""
  work = tmp_path_factory.mktemp("models")
  return {kind: data.write_random_model(work / kind, config) for kind, config in MODELS.items()}


@pytest.fixture(scope="session")
def adder(tmp_path_factory, folders):
  """A run that has learnt the format of sums, and now and then a sum."""
  work = tmp_path_factory.mktemp("adder")
  rows = []
  for wording in ("What is {} + {}?", "Find {} + {}.", "Add {} and {}.", "{} + {} = ?"):
    for a in range(10):
      for b in range(10):
        row = {"question": wording.format(a, b), "reasoning": f"{a} + {b} = {a + b}."}
        rows.append(row | {"answer": str(a + b), "task": "math"})
  sft.write_jsonl(work / "sums.jsonl", rows)
  adder = types.SimpleNamespace(work=work, run=work / "run", model=folders["small"])
  flags = leg_flags(adder, None, adder.run)
  call(sft, *flags, "--lora_rank=0", "--batch_size=16", "--learning_rate=1e-2", "--max_steps=120")
  return adder


def leg_flags(adder, leg, out):
  """sft: an adapter on the random model. grpo: all weights, from the adder."""
  flags = [f"--model={adder.model}", f"--data={adder.work / 'sums.jsonl'}", f"--out={out}"]
  flags += ["--max_prompt_length=32", "--max_completion_length=32"]
  if leg is None:
    return flags
  flags += ["--batch_size=8", "--max_steps=3", "--save_every_minutes=1e-9"]
  if leg is sft:
    return [*flags, "--lora_rank=4", "--lora_alpha=8", "--learning_rate=1e-2"]
  flags += [f"--init_ckpt={adder.run}", "--num_generations=4", "--eval_prompts=8"]
  return [*flags, "--micro_batch_size=8", "--learning_rate=1e-4", "--beta=0.02"]


@pytest.fixture(scope="session")
def whole(adder):
  """Both legs in one go, on one device, in whole batches."""
  runs = {leg: adder.work / "whole" / leg.__name__ for leg in (sft, grpo)}
  for leg, run in runs.items():
    call(leg, *leg_flags(adder, leg, run))
  return runs


# --- The relay, end to end ---


@pytest.fixture(scope="session")
def relay(tmp_path_factory):
  """The README's commands on a few synthetic problems; JAX_ENABLE_X64 must not matter."""
  cwd = tmp_path_factory.mktemp("relay")
  start(cwd, REPO / "data.py", "--data=synthetic:easy", "--count=1000", "--out=train.jsonl")
  flags = ["--data=train.jsonl", "--validation_fraction=0.3", "--max_steps=2", "--batch_size=8"]
  shown = {"sft": start(cwd, REPO / "sft.py", *flags, JAX_ENABLE_X64="1")}
  for stage in ("math", "mixed"):
    shown[stage] = start(cwd, REPO / "grpo.py", *flags, f"--stage={stage}", JAX_ENABLE_X64="1")
  start(cwd, REPO / "eval.py", "--limit=24")
  return types.SimpleNamespace(cwd=cwd, runs=cwd / "runs", shown=shown, flags=flags)


@in_relay
@pytest.mark.parametrize(
  "leg, parent", [("sft", None), ("math", "runs/sft"), ("mixed", "runs/math")]
)
def test_leg_writes_its_run_folder(relay, leg, parent):
  """run.json, metrics.jsonl, samples.jsonl and actor/<step>, and a line for each step."""
  run, is_grpo = relay.runs / leg, leg != "sft"
  about, records = info(run), metrics(run)
  assert (about["parent"], about["step"]) == (parent, 2)
  assert about["started_from"] == (f"{parent}/actor/2" if parent else "base")
  assert about["finished"] and about["ended_because"] == "max_steps"
  assert {"flags", "versions", "commit"} <= set(about) and about["flags"]["batch_size"] == 8
  assert column(run, "step") == [1, 2]
  for record in records:
    assert (GRPO_KEYS if is_grpo else SFT_KEYS) <= set(record)
    assert np.isfinite(record["loss"]) and record["grad_norm"] > 0
  assert (run / "actor/2/model_params").is_dir() and (run / "actor/2/optimizer_state").is_dir()
  lines = re.findall(r"^step \d/2 .*", relay.shown[leg], re.M)
  assert len(lines) == 2 and ("zero_variance" in lines[0]) == is_grpo
  if is_grpo:  # The reference policy is where the leg starts; rewards are the sum of their parts.
    samples = sft.read_jsonl(run / "samples.jsonl")
    assert abs(records[0]["kl"]) < 1e-6 and records[0]["time/reference"] > 0
    for record in records + samples:
      parts = [value for name, value in record.items() if name.startswith("reward/")]
      assert len(parts) >= 3 and sum(parts) == pytest.approx(record["reward"], abs=1e-6)
    assert {"step", "task", "question", "answer", "completion"} <= set(samples[0])
    assert {row["task"] for row in samples} <= ({"math"} if leg == "math" else set(data.TASKS))


@in_relay
def test_finished_run_started_again_does_nothing(relay, monkeypatch, capsys):
  monkeypatch.chdir(relay.cwd)
  before = files_of(relay.runs)
  call(sft, *relay.flags)
  call(grpo, *relay.flags, "--stage=math")
  assert capsys.readouterr().out.count("is finished: 2 steps") == 2
  assert files_of(relay.runs) == before


@in_relay
def test_script_pasted_into_a_cell_twice(relay, tmp_path):
  """In a real kernel; only the default numbers of steps and prompts are lower."""
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  shutil.copytree(relay.runs / "sft", tmp_path / "runs/sft")
  script = (REPO / "grpo.py").read_text()
  script = re.sub(r'"(max_steps|(micro_)?batch_size)": \(\d+, ', r'"\1": (2, ', script)
  cells = [f"import sys\nsys.path.insert(0, {str(REPO)!r})", script, script]
  cells += ['main(["grpo.py", "--stage=mixed", "--max_steps=2"])']
  cells += ['try: main(["", "--stagge=math"])\nexcept ValueError as e: print("one line:", e)']
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
  resources = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(notebook, resources=resources).execute()
  said = "saved runs/math/actor/2", "is finished", "saved runs/mixed/actor/2", "one line: Unknown"
  for cell, fragment in zip(notebook.cells[1:], said, strict=True):
    text = "".join(out.get("text", "") for out in cell.outputs)
    assert fragment in text, text[-2000:]


# --- One run, other ways to the same numbers ---


MESH_CODE = """
import json, sys, sft, grpo
for leg, argv in json.loads(sys.argv[1]):
  {"sft": sft, "grpo": grpo}[leg].main([leg, *argv])
"""


@legs
def test_mesh_and_micro_batches_change_no_number(adder, whole, tmp_path, capsys):
  """Eight devices for three steps; one device for a fourth, when the learning rate is said.

  A schedule that ends later goes back up; --decay_steps keeps it where it was.
  """
  jobs, runs = [], {leg: tmp_path / leg.__name__ for leg in (sft, grpo)}
  for leg, run in runs.items():
    argv = [*leg_flags(adder, leg, run), "--mesh=2,4", "--micro_batch_size=4"]
    jobs.append((leg.__name__, argv))
  devices = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
  start(tmp_path, "-c", MESH_CODE, json.dumps(jobs), PYTHONPATH=str(REPO), XLA_FLAGS=devices)
  more = "--max_steps=4", "--mesh=1,1", "--micro_batch_size=4"
  for leg, run in runs.items():
    assert_close_runs(run, whole[leg])
    assert min(column(run, "grad_norm")) > 1e-3
    call(leg, *leg_flags(adder, leg, run), *more, *(["--decay_steps=3"] if leg is grpo else []))
    assert column(run, "step") == [1, 2, 3, 4]
  said = "after step 3 was 0.001 and is now 0.0023: --decay_steps=3 keeps it"
  out = capsys.readouterr().out
  assert said in out and out.count("keeps it") == 1
  assert column(runs[grpo], "learning_rate")[3] == pytest.approx(1e-5)


@legs
@pytest.mark.parametrize("leg", [sft, grpo])
def test_stopped_run_goes_on_moved_respelled_and_with_a_damaged_log(
  adder, whole, leg, tmp_path, monkeypatch, capsys
):
  """--max_hours stops it; paths compare as paths; a line that is no JSON is left out and said."""
  call(leg, *leg_flags(adder, leg, tmp_path / "run"), "--max_hours=1e-6")
  about = info(tmp_path / "run")
  assert (about["step"], about["finished"], about["ended_because"]) == (1, False, "max_hours")
  moved = shutil.move(tmp_path / "run", tmp_path / "my run")
  with open(moved / "metrics.jsonl", "ab") as log:
    log.write(b"\0\0\0\n")
  monkeypatch.chdir(adder.work)
  respelled = [f"--out={moved}/", "--data=./sums.jsonl", f"--model={adder.model}/"]
  if leg is grpo:
    respelled.append("--init_ckpt=./run/")
  call(leg, *leg_flags(adder, leg, moved), *respelled)
  said = capsys.readouterr().out
  assert "left out 1 lines that are no JSON" in said
  next_command = re.findall("^next: (.*)", said, re.M)[-1]
  assert f"--init_ckpt={moved}/" in shlex.split(next_command)  # It is quoted.
  assert_equal_runs(moved, whole[leg], 3)


MIXED = "--stage=mixed --math_fraction=0.5 --num_iterations=2 --data={sums},creative={poems}"
INTERRUPTED = {  # leg, steps, flags, signals; the last save is often older than the last step
  "sft": (sft, 60, "", ("SIGKILL", "SIGTERM")),
  "mixed": (grpo, 12, MIXED, ("SIGKILL", "SIGHUP")),
}


@legs
@pytest.mark.parametrize("case", INTERRUPTED)
def test_run_that_is_killed_again_and_again_equals_the_whole(adder, case, tmp_path):
  """The same command gives the same metrics and weights, whenever it was killed."""
  leg, steps, more, kills = INTERRUPTED[case]
  rng, out = random.Random(os.environ.get("KILL_SEED", case)), tmp_path / "killed"
  poems, log = tmp_path / "poems.jsonl", out / "metrics.jsonl"
  sft.write_jsonl(poems, [{"question": f"Rhyme on {i}."} for i in range(60)])
  more = more.format(sums=adder.work / "sums.jsonl", poems=poems).split()
  more += [f"--max_steps={steps}", "--save_every_minutes=0.01"]
  call(leg, *leg_flags(adder, leg, tmp_path / "whole"), *more)
  command = [sys.executable, REPO / f"{leg.__name__}.py", *leg_flags(adder, leg, out), *more]

  def lines():
    return log.read_bytes().count(b"\n") if log.exists() else 0

  for kill in kills:
    target = lines() + rng.randint(1, steps // 4)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and lines() < target:
      time.sleep(0.02)
    time.sleep(rng.random() * 0.3)  # anywhere in a step, or in a save
    process.send_signal(signal.Signals[kill])
    shown = process.communicate()[0]
    assert "Traceback" not in shown and (process.returncode != 0) == (kill == "SIGKILL"), shown
    if kill != "SIGKILL":  # This one lets the step finish, and the run save.
      assert info(out)["ended_because"] == kill and steps_of(out)[-1] == info(out)["step"]
  call(leg, *leg_flags(adder, leg, out), *more)
  assert_equal_runs(out, tmp_path / "whole", steps)


def test_last_two_checkpoints_stay_and_the_best(tmp_path, monkeypatch):
  monkeypatch.setattr(signal, "signal", lambda *_: None)
  run = sft.Run(flags(f"--out={tmp_path}", script=sft), "sft.py", None)
  run.board = types.SimpleNamespace(flush=lambda: None)
  for step, score in enumerate([0.1, 0.9, 0.2, None, 0.3], start=1):
    run.checkpoint(step, {"w": jnp.ones(2)}, {"m": jnp.ones(2)}, score)
  assert steps_of(tmp_path) == [2, 4, 5]


def test_curriculum_orders_mathematics_by_solution_steps():
  """The same prompts, in other places only where they are mathematics."""

  parts = []
  for task in ("math", "creative"):
    reasonings = ["1 + 1 = 2. " * (1 + i % 2) for i in range(20)]
    parts.append(([data.Example(r, "2", r, task, "here", None) for r in reasonings], 0.5))
  fv = flags("--max_steps=8", "--batch_size=4", "--curriculum")
  ordered = grpo.order_prompts(parts, fv)
  fv.curriculum = False
  usual = grpo.order_prompts(parts, fv)
  steps = [len(e.reasoning) for e in ordered if e.task == "math"]
  assert steps == sorted(len(e.reasoning) for e in usual if e.task == "math")
  for e, was in zip(ordered, usual, strict=True):
    assert e.task == was.task and (e == was or e.task == "math")


# --- Adapter ---

JUDGE_CODE = """
import sys
from flax import nnx
import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp, qwix
from tunix.models.gemma3 import model as lib, params_safetensors as params
folder, step = sys.argv[1:]
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
sizes = dict(num_layers=2, num_embed=768, embed_dim=64, hidden_dim=128, num_heads=4)
config = lib.ModelConfig(**sizes, head_dim=16, num_kv_heads=1, sliding_window_size=64)
base = params.create_model_from_safe_tensors(folder, config, mesh, dtype=jnp.float32)
path = ".*q_einsum|.*kv_einsum|.*gate_proj|.*down_proj|.*up_proj|.*attn_vec_einsum"
provider = qwix.LoraProvider(module_path=path, rank=4, alpha=8.0)
model = qwix.apply_lora_to_model(base, provider, **base.get_model_input())
adapter = nnx.state(model, nnx.LoRAParam)
target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), adapter)
nnx.update(model, ocp.StandardCheckpointer().restore(step + "/model_params", target=target))
adapter = dict(nnx.state(model, nnx.LoRAParam).flat_state())
assert len(adapter) == 2 * 6 * 2, list(adapter)
assert all(np.abs(x[...]).max() > 0 for x in adapter.values())
assert not {"data", "sft", "rewards"} & set(sys.modules)
"""


@legs
def test_adapter_restores_with_plain_tunix_and_orbax(folders, whole, tmp_path):
  """As the hackathon's judges do it."""
  start(tmp_path, "-c", JUDGE_CODE, folders["small"], whole[sft] / "actor/3")


# --- Bad input ---

TOO_LONG = "tokens; raise it"
BAD = {  # rule: script, flags after those of a good run, what the one line says, exit status
  "unknown value": (grpo, "--stage=foo", "stage", 2),
  "missing checkpoint": (grpo, "--init_ckpt={work}/none", "none holds no checkpoint", 1),
  "other model": (grpo, "--model=tiny", "--model=tiny, but --init_ckpt is of --model=", 1),
  "other shapes": (grpo, "--model={work}/other/small", "other names or shapes", 1),
  "other flags": (sft, "--out={work}/run", "other flags", 1),
  "mesh": (sft, "--mesh=3,1", "--mesh=3,1: give fsdp,tp with product 1", 1),
  "micro-batch": (sft, "--micro_batch_size=3", "multiple of --micro_batch_size", 1),
  "iterations": (grpo, "--num_iterations=2", "multiple of --num_iterations", 1),
  "stage": (grpo, "--data={work}/poems.jsonl", "name a task, as in --data=math=FILE, or add", 1),
  "no reasoning": (sft, "--data={work}/bare.jsonl", "no reasoning", 1),
  "long prompts": (sft, "--max_prompt_length=4", f"--max_prompt_length=4 {TOO_LONG}", 1),
  "rollouts": (grpo, "--max_prompt_length=4", f"--max_prompt_length=4 {TOO_LONG}", 1),
  "targets": (sft, "--max_completion_length=4", f"--max_completion_length=4 {TOO_LONG}", 1),
  "few rows": (sft, "--batch_size=500", "fewer than --batch_size: lower it", 1),
  "diverged": (sft, "--learning_rate=1e30", "a smaller --learning_rate", 1),
}


@pytest.fixture(scope="session")
def bad(adder):
  """Beside the adder's data, some that are wrong in one way each."""
  poems = [{"question": f"Rhyme on {i}.", "task": "creative"} for i in range(100)]
  sft.write_jsonl(adder.work / "poems.jsonl", poems)
  bare = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(100)]
  sft.write_jsonl(adder.work / "bare.jsonl", bare)
  (adder.work / "other").mkdir()
  data.write_random_model(adder.work / "other/small", SMALL | {"hidden_size": 32})


@legs
@pytest.mark.parametrize("rule", BAD)
def test_bad_input_is_one_line_and_harms_nothing(rule, adder, bad, tmp_path, capsys):
  script, more, fragment, code = BAD[rule]
  before = files_of(adder.run)
  more = more.format(work=adder.work).split()
  line, status = fails(capsys, script, *leg_flags(adder, script, tmp_path), *more)
  assert fragment in line and status == code
  assert files_of(adder.run) == before
  assert steps_of(tmp_path) == ([1] if rule == "diverged" else [])


# Script, of which a run is damaged; folder of the newest step that is gone, or where a file is cut.
DAMAGE = [
  (sft, "model_params/d", True),
  (grpo, "optimizer_state", False),
  (grpo, "model_params", False),
]


@legs
@pytest.mark.parametrize("leg, path, is_cut", DAMAGE)
def test_damaged_checkpoint_is_one_line_that_names_a_whole_one(
  leg, path, is_cut, adder, whole, tmp_path, capsys
):
  run, new = shutil.copytree(whole[leg], tmp_path / "run"), tmp_path / "new"
  if is_cut:
    largest = max((run / "actor/3" / path).iterdir(), key=lambda p: p.stat().st_size)
    os.truncate(largest, 5000)
  else:
    shutil.rmtree(run / "actor/3" / path)
  uses = [["--max_steps=4"]]
  if "model" in path:  # Another run needs only the weights of its parent.
    uses.append([f"--init_ckpt={run}", f"--out={new}"])
  for more in uses:
    line, _ = fails(capsys, leg, *leg_flags(adder, leg, run), *more)
    assert f"{run}/actor/3 is damaged" in line and f"{run}/actor/2 is whole" in line


@legs
def test_second_process_in_a_run_folder_is_one_line(adder, tmp_path, capsys):
  with open(tmp_path / "run.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    line, _ = fails(capsys, sft, *leg_flags(adder, sft, tmp_path))
  assert "is in use by another process" in line


@pytest.mark.parametrize("script", [sft, grpo])
def test_plan_without_the_tpu_compiler_says_what_to_install(script, monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert 'pip install "libtpu==0.0.42.*"' in fails(capsys, script, "--plan")[0]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU")
def test_plan_compiles_rollout_reference_and_update_for_a_tpu(folders, tmp_path):
  """Only config.json is read: no weights, no tokenizer."""
  shutil.copy(folders["small"] / "config.json", tmp_path)
  flags = ["--lora_rank=8", "--batch_size=8", "--micro_batch_size=8", "--num_generations=4"]
  flags += ["--max_prompt_length=32", "--max_completion_length=32", f"--model={tmp_path}"]
  shown = start(tmp_path, REPO / "grpo.py", "--plan", *flags, XLA_FLAGS="")
  fits = re.findall(r"^(\w+): [\d.]+ of 15.75 GiB per chip, fits$", shown, re.M)
  assert fits == ["rollout", "reference", "update"]


# --- Log-probabilities and sampling ---


@pytest.mark.parametrize("kind", ["small", "gemma2"])
def test_logits_equal_those_of_transformers(kind, folders):
  torch = pytest.importorskip("torch")
  import transformers

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    folders[kind], attn_implementation="eager", dtype=torch.float32
  )
  ids = np.random.default_rng(0).integers(10, 768, 40)
  with torch.no_grad():
    want = theirs(torch.tensor(ids[None])).logits[0].numpy()
  policy, trained, frozen = load_policy(folders[kind], "--lora_rank=0")
  got = plain_logits(policy.model(trained, frozen), ids)
  assert np.abs(got - want).max() < 1e-4 * max(1, np.abs(want).max())


@pytest.mark.parametrize("kind, lora_rank", [("gemma3", 4), ("gemma2", 0), ("qkv", 4)])
def test_decoding_padding_and_plain_calls_agree(kind, lora_rank, folders):
  """What the rollout says of its tokens, what the trainer says, and the model called by hand."""
  policy, trained, frozen = load_policy(folders[kind], f"--lora_rank={lora_rank}")
  model, tokenizer = policy.model(trained, frozen), sft.load_tokenizer(folders[kind])
  prompts = [np.random.default_rng(n).integers(10, 768, n).tolist() for n in (3, 20)]
  fv = flags("--max_prompt_length=32", "--max_completion_length=12")
  sampler = grpo.Sampler(policy, tokenizer, MESH, fv)
  for temperature, g in ((0.0, 1), (0.7, 2)):
    drawn = sampler(trained, frozen, prompts, grpo.Decoding(g, temperature), seed=3)
    repeated = [prompt for prompt in prompts for _ in range(g)]
    batch = sft.make_batch(repeated, [c.ids for c in drawn], tokenizer.pad_token_id, fv)
    logps = grpo.make_logps(policy, temperature or 1.0)(trained, frozen, batch)
    for prompt, c, row in zip(repeated, drawn, np.asarray(logps), strict=True):
      logits = plain_logits(model, [*prompt, *c.ids])[len(prompt) - 1 : -1]
      want = np.asarray(jax.nn.log_softmax(logits / (temperature or 1.0)))
      want = want[np.arange(len(c.ids)), c.ids]
      np.testing.assert_allclose(c.logps, want, atol=1e-4)
      np.testing.assert_allclose(row[: len(c.ids)], want, atol=1e-4)
      if temperature == 0:
        assert (logits.argmax(axis=-1) == c.ids).all()


@legs
def test_stop_tokens_are_kept_and_noise_is_the_seeds(adder):
  """It does not depend on how many prompts are sampled at a time."""
  policy, trained, frozen = load_policy(adder.model, "--lora_rank=0")
  trained, _ = sft.restore(sft.find_checkpoint(adder.run)[0], trained)
  tokenizer = sft.load_tokenizer(adder.model)
  prompts = [sft.encode_prompt(tokenizer, f"Add {n} and 5.") for n in range(8)]

  def draw(seed, limit=32, *more):
    fv = flags("--max_prompt_length=32", f"--max_completion_length={limit}", *more)
    sampler = grpo.Sampler(policy, tokenizer, MESH, fv)
    return sampler(trained, frozen, prompts, grpo.Decoding(4, 1.0), seed)

  def texts(completions):
    return [c.text for c in completions]

  usual, cut = draw(0), draw(0, 16)
  assert np.mean([c.truncated for c in usual]) < 0.2 and np.mean([c.truncated for c in cut]) > 0.8
  for c in usual + cut:  # A stop token is the last that is trained on, or is not there.
    assert not set(c.ids[:-1].tolist()) & set(tokenizer.stop_ids)
    assert c.truncated == (c.ids[-1] not in tokenizer.stop_ids)
  target = data.format_target(data.Example("?", "2", "1 + 1 = 2", "math", "here", None))
  assert sft.encode(tokenizer, target)[-1] in tokenizer.stop_ids
  assert texts(draw(0, 32, "--rollout_batch_size=3")) == texts(usual) != texts(draw(1))


@pytest.mark.parametrize("vocabulary", [7, 768, 1000])
def test_tokens_are_drawn_as_often_as_softmax_says(vocabulary):
  n = 20_000
  logits = np.random.default_rng(0).normal(0, 3, vocabulary).astype(np.float32)
  logits[::3] = -np.inf
  keys = jax.random.split(jax.random.key(0), n)
  drawn = jax.jit(grpo.draw_tokens)(keys, jnp.broadcast_to(logits, (n, vocabulary)))
  expected = n * np.exp(logits - np.logaddexp.reduce(logits))
  count = np.bincount(drawn, minlength=vocabulary)
  assert len(count) == vocabulary and not count[expected == 0].any()
  often = expected > 10
  chi_squared = np.sum((count - expected)[often] ** 2 / expected[often])
  assert chi_squared < often.sum() + 4 * np.sqrt(2 * often.sum())


LIKELY = [(None, 1.0, 5), (2, 1.0, 2), (None, 0.75, 3), (3, 0.75, 2), (9, 0.01, 1)]


@pytest.mark.parametrize("top_k, top_p, kept", LIKELY)
def test_likely_tokens_are_the_largest_of_a_given_mass(top_k, top_p, kept):
  logits = jnp.log(jnp.array([[0.1, 0.4, 0.05, 0.25, 0.2]]))
  finite = np.isfinite(grpo.likely(logits, top_k, top_p)[0])
  assert (finite[np.argsort(-logits[0])] == (np.arange(5) < kept)).all()


# --- Step ---


def test_gradient_that_is_not_finite_changes_nothing(folders):
  """And the frozen weights stay the same arrays."""
  policy, trained, frozen = load_policy(folders["small"], "--lora_rank=4")
  optimizer = sft.make_optimizer(lambda step: 0.01)
  opt_state = sft.init_optimizer(optimizer, trained, MESH)
  steps = sft.make_steps(policy, sft.sft_loss, optimizer, trained, opt_state)
  ids = random_ids(np.random.default_rng(0), 4, 9, 12)
  fv = flags("--max_prompt_length=16", "--max_completion_length=16")
  batch = sft.make_batch(ids[:2], ids[2:], 0, fv)
  good, bad = (batch._replace(weights=np.full(2, x, np.float32)) for x in (0.1, np.inf))
  first, kept = jax.tree.map(np.array, (trained, frozen))
  trained, opt_state, _ = sft.train_step(steps, trained, frozen, opt_state, [good, good])
  assert difference(trained, first) > 0.01
  before = jax.tree.map(np.array, (trained, opt_state))
  grads, _ = steps[0](trained, frozen, bad)
  trained, opt_state, size = steps[1](trained, opt_state, grads)
  assert not np.isfinite(size)
  jax.tree.map(np.testing.assert_array_equal, (trained, opt_state, frozen), (*before, kept))
  with pytest.raises(ValueError, match="a smaller --learning_rate"):
    sft.train_step(steps, trained, frozen, opt_state, [good, bad])


def test_weights_below_a_bfloat16_model_follow_adam_in_float64(folders):
  """At 3e-6, where an update of bfloat16 weights would round to nothing."""
  policy, trained, frozen = load_policy(folders["small"], "--lora_rank=4", "--dtype=bfloat16")
  model = policy.model(trained, frozen)
  assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
  assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("bfloat16")}
  rng, optimizer = np.random.default_rng(0), sft.make_optimizer(lambda step: 3e-6)
  start, direction = rng.uniform(-0.07, 0.07, 500), rng.standard_normal(500)
  exact, m, v, weights = start, 0, 0, jnp.array(start, jnp.float32)
  opt_state = sft.init_optimizer(optimizer, weights, MESH)
  _, apply_step = sft.make_steps(policy, None, optimizer, weights, opt_state)
  for t in range(1, 201):
    g = direction + rng.standard_normal(500)
    weights, opt_state, _ = apply_step(weights, opt_state, jnp.array(g, jnp.float32))
    g = g / np.linalg.norm(g)  # clipped
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    exact = exact - 3e-6 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
  assert np.abs(weights - exact).max() < 0.01 * np.abs(exact - start).max()


@pytest.mark.parametrize("how", ["std", "mean", "rloo"])
def test_advantages_of_a_group_that_agrees_are_zero(how):
  advantages = grpo.group_advantages(np.array([0.3] * 4 + [0.0, 0.3, 0.3, 0.9]), 4, how)
  assert np.abs(advantages[:4]).max() < 1e-6 < np.abs(advantages[4:]).max()


# --- An independent loss and gradient: Gemma 3 and the papers' formulas in float64 NumPy ---


def numpy_logps(w, prompt_ids, completion_ids, temperature):
  """Log-probabilities [T] of a completion; `w` are the weights of SMALL by name."""
  ids = np.concatenate([prompt_ids, completion_ids])
  angle = np.arange(len(ids))[:, None, None] / 10_000.0 ** (np.arange(8) / 8)
  cos, sin = np.cos(angle), np.sin(angle)

  def rms_norm(x, name):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1 + w[f"{name}.scale"])

  def rotate(x):
    a, b = x[..., :8], x[..., 8:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

  x = w["embedder.input_embedding"][ids] * np.sqrt(64)
  for i in range(2):
    at, mlp = f"layers.{i}.attn.", f"layers.{i}.mlp."
    h = rms_norm(x, f"layers.{i}.pre_attention_norm")
    query = np.einsum("td,ndh->tnh", h, w[at + "q_einsum.w"])
    query = rotate(rms_norm(query, at + "_query_norm")) / 4
    key, value = np.einsum("td,cndh->ctnh", h, w[at + "kv_einsum.w"])
    key = rotate(rms_norm(key, at + "_key_norm"))
    scores = np.exp(np.einsum("tnh,sh->nts", query, key[:, 0]))
    scores = np.tril(scores)
    h = np.einsum("nts,sh->tnh", scores / scores.sum(-1, keepdims=True), value[:, 0])
    h = np.einsum("tnh,nhd->td", h, w[at + "attn_vec_einsum.w"])
    x = x + rms_norm(h, f"layers.{i}.post_attention_norm")
    h = rms_norm(x, f"layers.{i}.pre_ffw_norm")
    gate = h @ w[mlp + "gate_proj.kernel"]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    h = gelu * (h @ w[mlp + "up_proj.kernel"]) @ w[mlp + "down_proj.kernel"]
    x = x + rms_norm(h, f"layers.{i}.post_ffw_norm")
  logits = rms_norm(x, "final_norm")[len(prompt_ids) - 1 : -1] @ w["embedder.input_embedding"].T
  logits = logits / temperature
  own = logits[np.arange(len(completion_ids)), completion_ids]
  return own - np.log(np.exp(logits).sum(-1))


def numpy_loss(case, logps):
  """The loss of completions in groups of G, of `logps` [T] each, straight from the papers."""
  fv, terms = case.fv, []
  for i, pi in enumerate(logps):
    mu, ref = case.old[i][: len(pi)], case.reference[i][: len(pi)]
    r, group = case.reward[i], case.reward[i // G * G : i // G * G + G]
    if fv.advantage == "std":
      a = (r - group.mean()) / (group.std(ddof=1) + 1e-4)
    elif fv.advantage == "mean":
      a = r - group.mean()
    else:  # rloo
      a = r - (group.sum() - r) / (G - 1)
    ratio = np.exp(pi - mu)
    if fv.importance == "sequence":
      # GSPO's eq. 5; its value and gradient, summed over the tokens, are GSPO-token's.
      ratio = np.full(len(pi), np.exp((pi - mu).mean()))
    clipped = np.clip(ratio, 1 - fv.epsilon, 1 + (fv.epsilon_high or fv.epsilon))
    kl = np.exp(ref - pi) - (ref - pi) - 1
    term = fv.beta * kl - np.minimum(ratio * a, clipped * a)
    if fv.mask_truncated and case.truncated[i] or fv.skip_zero_variance and np.ptp(group) == 0:
      term = 0 * term
    terms.append(term)
  if fv.loss_aggregation == "sequence":
    return np.mean([term.mean() for term in terms])
  total, tokens = sum(term.sum() for term in terms), sum(map(len, terms))
  return total / (tokens if fv.loss_aggregation == "token" else len(terms) * 20)


VARIANTS = {
  "grpo": "",
  "on policy": "",
  "dr. grpo": "--beta=0 --advantage=mean --loss_aggregation=constant",
  "rloo": "--advantage=rloo",
  "dapo": "--beta=0 --epsilon_high=0.4 --loss_aggregation=token --mask_truncated",
  "gspo-token": "--importance=sequence --epsilon=0.05",
  "equal groups left out": "--skip_zero_variance",
}


def grpo_case(folder, variant="grpo", lora_rank=0):
  """A policy; two prompts with G completions each, rewards, other policies; a batch of these."""
  rng = np.random.default_rng(0)
  argv = f"--lora_rank={lora_rank} --num_generations={G} --batch_size=2 --micro_batch_size=2"
  argv += " --max_prompt_length=16 --max_completion_length=20 --temperature=0.9 --beta=0.3"
  case = types.SimpleNamespace(
    fv=flags(f"--model={folder}", *argv.split(), *VARIANTS[variant].split())
  )
  case.prompts = random_ids(rng, 2, 3, 14)
  case.ids = sorted(random_ids(rng, 2 * G, 2, 17), key=len)  # The batch keeps this order.
  case.truncated = [False, True, False, False, True, False]
  case.reward = np.array([0.0, 1.0, 0.2, 0.3, 0.3, 0.3])
  if not case.fv.skip_zero_variance:
    case.reward[3] = 0.9
  rows = zip(case.ids, [""] * 2 * G, case.ids, case.truncated, strict=True)
  rollout = case.prompts, [grpo.Completion(*row) for row in rows], case.reward
  config = sft.tunix_config(folder, case.fv)
  batch = grpo.make_micro_batches(*rollout, config, MESH, 0, case.fv)[0]
  case.policy, case.trained, case.frozen = load_policy(folder, f"--lora_rank={lora_rank}")
  logps = np.asarray(grpo.make_logps(case.policy, 0.9)(case.trained, case.frozen, batch))
  # Away from the policy by token and, for the ratio of a whole completion, by completion.
  case.old = logps + rng.normal(0, 0.15, (2 * G, 1)) + rng.normal(0, 0.3, logps.shape)
  case.reference = logps + rng.normal(0, 0.5, logps.shape)
  old, reference = case.old.astype(np.float32), case.reference.astype(np.float32)
  if variant == "on policy":
    case.old, old = logps, None
  case.batch = batch._replace(old_logps=old, reference_logps=reference)
  return case


def loss_and_gradient(case, batch):
  """The shipped ones: ((loss, metrics), gradient)."""

  def loss(trained):
    return grpo.policy_loss(case.policy.model(trained, case.frozen), batch, case.fv)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(case.trained)


def by_name(tree):
  """{name: float64 array} of nested dicts."""
  arrays = traverse_util.flatten_dict(tree)
  return {".".join(map(str, path)): np.array(x, np.float64) for path, x in arrays.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_equal_float64_numpy(folders, variant):
  case = grpo_case(folders["small"], variant)
  weights = by_name(case.trained)
  prompts = [prompt for prompt in case.prompts for _ in range(G)]

  def forward(w):
    return [numpy_logps(w, *ids, 0.9) for ids in zip(prompts, case.ids, strict=True)]

  (loss, logged), gradient = loss_and_gradient(case, case.batch)
  assert float(loss) == pytest.approx(numpy_loss(case, forward(weights)), rel=1e-4)
  counted = 3 if case.fv.skip_zero_variance else 6
  entropy = -np.mean(np.concatenate(forward(weights)[:counted]))
  assert float(logged["entropy"]) == pytest.approx(entropy, rel=1e-4)
  assert (float(logged["clip_fraction"]) == 0) == (variant == "on policy")
  assert (float(logged["kl"]) == 0) == (case.fv.beta == 0)
  gradient = by_name(gradient)
  assert len(gradient) == 2 * 12 + 2  # tensors of a layer; embedding and final norm
  rng = np.random.default_rng(1)
  for name, g in gradient.items():
    noise, ends = rng.standard_normal(g.shape), []
    # This direction sees an error along the gradient, and across it.
    direction = g / np.linalg.norm(g) + noise / np.linalg.norm(noise)
    for step in (1e-5, -1e-5):
      moved = weights | {name: weights[name] + step * direction}
      ends.append(numpy_loss(case, forward(moved)))
    slope = (ends[0] - ends[1]) / 2e-5
    assert abs((g * direction).sum() - slope) < 1e-4 * np.linalg.norm(g), name


# TRL has no RLOO, and its token mean does not count the tokens of completions that were cut off.
@pytest.mark.parametrize("variant", ["grpo", "on policy", "dr. grpo", "gspo-token"])
def test_loss_and_gradient_equal_those_of_trl(folders, variant):
  torch = pytest.importorskip("torch")
  grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
  import transformers

  case = grpo_case(folders["small"], variant)
  batch, fv = case.batch, case.fv
  (loss, _), gradient = loss_and_gradient(case, batch)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folders["small"], attn_implementation="eager", dtype=torch.float32
  ).eval()

  def logps(model, ids, mask, keep, **kwargs):
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    logps = (logits[:, -keep - 1 : -1] / 0.9).log_softmax(-1)
    return logps.gather(-1, ids[:, -keep:, None])[..., 0], torch.zeros(ids.shape[0], keep), None

  inputs = {"advantages": batch.advantages, "ref_per_token_logps": batch.reference_logps}
  for name in batch._fields[:4]:
    inputs[name] = np.repeat(getattr(batch, name), G if "prompt" in name else 1, axis=0) * 1
  inputs = {name: torch.tensor(x) for name, x in inputs.items()}
  old = batch.old_logps
  inputs["old_per_token_logps"] = None if old is None else torch.tensor(old)
  one = {"num_processes": 1, "gather": lambda x: x, "reduce": lambda x, reduction: x}
  trainer = types.SimpleNamespace(
    _get_per_token_logps_and_entropies=logps, model=model, beta=fv.beta, epsilon_low=fv.epsilon,
    epsilon_high=fv.epsilon, importance_sampling_level=fv.importance, use_vllm=False,
    loss_type={"sequence": "grpo", "constant": "dr_grpo"}[fv.loss_aggregation],
    max_completion_length=20, aux_loss_enabled=False, top_entropy_quantile=1.0,
    off_policy_mask_threshold=None, _entropy_bonus_enabled=False,
    args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None),
    accelerator=types.SimpleNamespace(**one), _metrics={"eval": collections.defaultdict(list)},
  )  # fmt: skip
  theirs = grpo_trainer.GRPOTrainer._compute_loss(trainer, model, inputs)
  theirs.backward()
  want = model.get_input_embeddings().weight.grad.numpy()
  assert float(loss) == pytest.approx(theirs.item(), rel=1e-4, abs=1e-6)
  assert difference(gradient["embedder"]["input_embedding"], want) < 1e-4 * norm(want)


@pytest.mark.parametrize("lora_rank", [4, 0])
@pytest.mark.parametrize("kind", ["small", "gemma2"])
def test_loss_and_gradient_equal_those_of_tunix(kind, lora_rank, folders):
  """Its own model and loss on the same completions; ours with a prompt once or G times."""
  case = grpo_case(folders[kind], lora_rank=lora_rank)
  shared, config = case.batch, sft.tunix_config(folders[kind], case.fv)
  repeated = {name: np.repeat(getattr(shared, name), G, axis=0) for name in shared._fields[:2]}
  repeated = shared._replace(**repeated)
  loader = sft.gemma2_params if kind == "gemma2" else sft.gemma3_params
  stock = loader.create_model_from_safe_tensors(str(folders[kind]), config, MESH, jnp.float32)
  if lora_rank:
    provider = qwix.LoraProvider(module_path=sft.LORA_MODULES, rank=4, alpha=8.0)
    inputs = stock.get_model_input()
    stock = qwix.apply_lora_to_model(stock, provider, rngs=nnx.Rngs(params=0), **inputs)
  graphdef = nnx.split(stock, nnx.LoRAParam if lora_rank else nnx.Param, ...)[0]
  config = grpo_learner.GRPOConfig(num_generations=G, beta=0.3, kl_loss_mode="low_var_kl")
  config.temperature = 0.9
  example = rl_common.TrainExample(
    *repeated[:4], shared.advantages, shared.reference_logps, shared.old_logps
  )

  def theirs(trained):
    stock = nnx.merge(graphdef, trained, case.frozen)
    return algo_core.grpo_loss_fn(stock, example, config, 0, 1)[0]

  loss, gradient = jax.jit(jax.value_and_grad(theirs))(case.trained)
  for batch in (shared, repeated):
    (mine, _), other = loss_and_gradient(case, batch)
    assert float(mine) == pytest.approx(float(loss), rel=1e-5)
    assert difference(other, gradient) < 1e-4 * norm(gradient)
