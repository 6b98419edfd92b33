"""Supervised fine-tuning: teach the model the format <reasoning>…</reasoning><answer>…</answer>.

The first leg of the relay. What it does, and where it differs from the usual recipe:

1. The loss is the mean over target tokens only; the prompt is read, never learnt.
2. Prompts are padded on the left and targets on the right, so the target always starts in the same column and only
   those columns are multiplied with the vocabulary, a chunk of it at a time: [B, P + T, V] logits never exist.
3. Examples of similar length share a batch, and padded lengths come from a short list: little padding, few compiles.
4. LoRA on every projection by default; `--lora_rank=0` trains all weights. Either way the optimiser keeps float32
   master weights, because in bfloat16 an update of learning rate 3e-6 rounds to nothing.
5. A batch is a pure function of (--seed, step), so a run that is started again continues where it stopped.

  python sft.py                                               # tiny model, synthetic data, two CPU cores, minutes
  python sft.py --model=google/gemma-3-1b-it --data=gsm8k     # Kaggle TPU v5e-8

Writes into --out (default runs/sft): run.json, metrics.jsonl, samples.jsonl, actor/<step>/.
Shapes: B examples, P prompt length, T target length, D width, V vocabulary.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from typing import Any, Callable, Iterable, NamedTuple, Sequence

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before Tunix imports it: it warns of a missing PyTorch

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # parameters of glibc's mallopt, in malloc.h


def glibc(function: str, *args: int) -> None:
  """Calls a function of glibc's malloc; other C libraries have none of them."""
  if hasattr(libc := ctypes.CDLL(None), function):
    libc[function](*args)


def keep_freed_memory() -> None:
  """Keeps what a program has freed for its next run; by default malloc takes arrays from the system anew, page by page."""
  glibc("mallopt", M_MMAP_MAX, 0)
  glibc("mallopt", M_TRIM_THRESHOLD, -1)


# A CPU's programs take their temporary arrays from malloc. One heap for all threads holds less than one for each, and has to
# be asked for before there are threads: before Tunix's RL modules and JAX's devices.
if not any(map(importlib.util.find_spec, ("libtpu", "jax_plugins"))):  # no accelerator
  glibc("mallopt", M_ARENA_MAX, 1)

from absl import flags as absl_flags
from flax import nnx
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import qwix
from tunix.models.gemma import model as gemma2_lib
from tunix.models.gemma import params_safetensors as gemma2_params
from tunix.models.gemma3 import model as gemma3_lib
from tunix.models.gemma3 import params_safetensors as gemma3_params
from tunix.sft import peft_trainer

import data
import rewards

# Tunix finds the mesh through this context manager, and jax.set_mesh is not the same to it.
warnings.filterwarnings("ignore", message="`with mesh:`", category=DeprecationWarning)

# The projections that the hackathon's judges restore; another path would be another adapter.
LORA_MODULES = ".*q_einsum|.*kv_einsum|.*gate_proj|.*down_proj|.*up_proj|.*attn_vec_einsum"

# Defaults that depend on the model. tiny is trained from scratch (all weights, a large learning rate, short texts);
# for Gemma: LoRA rank 64 and a tenth of the epoch as warm-up, as in the Tunix demo; 2e-4 is the LoRA paper's rate.
DEFAULTS = {  # flag: (tiny, Gemma)
    "data": ("synthetic:easy", "gsm8k"),
    "lora_rank": (0, 64),
    "lora_alpha": (0.0, 64.0),
    "learning_rate": (4e-3, 2e-4),
    "batch_size": (32, 16),
    "max_steps": (500, 500),
    "max_prompt_length": (48, 256),
    "max_completion_length": (48, 512),
    "eval_every": (125, 100),
}


def define_flags(fv: absl_flags.FlagValues) -> None:
  """Defines this script's flags on `fv`; called only when the file is the program."""
  define_shared_flags(fv, DEFAULTS)
  string = functools.partial(absl_flags.DEFINE_string, flag_values=fv)
  integer = functools.partial(absl_flags.DEFINE_integer, flag_values=fv)
  string("out", "runs/sft", "Run folder. The same folder again continues the run.")
  string("init_ckpt", "", "Run or step folder to start from; empty: the untouched base.")
  absl_flags.DEFINE_bool("train_eos", True, "Learn to stop, too; without it, as an ablation, a target ends before its stop token.", flag_values=fv)
  integer("eval_every", None, "Steps between validation losses and format checks on held-out prompts." + default_note(DEFAULTS, "eval_every"))
  integer("eval_prompts", 32, "Held-out prompts in a format check; 0: no checks, only the loss.")


def default_note(defaults: dict[str, tuple[Any, Any]], name: str) -> str:
  """The end of a help text. -> " (default: 32 for tiny, 16 for Gemma)" """
  return f" (default: {defaults[name][0]} for tiny, {defaults[name][1]} for Gemma)"


def define_shared_flags(fv: absl_flags.FlagValues, defaults: dict[str, tuple[Any, Any]]) -> None:
  """Flags with the same name and meaning in sft.py and grpo.py."""
  string = functools.partial(absl_flags.DEFINE_string, flag_values=fv)
  integer = functools.partial(absl_flags.DEFINE_integer, flag_values=fv)
  number = functools.partial(absl_flags.DEFINE_float, flag_values=fv)
  boolean = functools.partial(absl_flags.DEFINE_bool, flag_values=fv)

  by_model = functools.partial(default_note, defaults)
  # Model
  string("model", "tiny", "tiny, gemma3-270m, a .gguf file, a hub id, kaggle:HANDLE, or a folder in Hugging Face format.")
  absl_flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"],
                         "Type of the base weights; auto: float32 on a CPU, bfloat16 elsewhere.", flag_values=fv)
  string("mesh", None, "Devices as fsdp,tp; their product is the number of devices (default: all of them,1).")
  boolean("replicate_base", False, "Keep the base weights whole on every chip instead of sharding them over fsdp.")
  absl_flags.DEFINE_enum("remat", "auto", ["auto", "none", "block", "decoder"],
                         "Activations recomputed in the backward pass; auto: none on a CPU, decoder elsewhere.", flag_values=fv)
  integer("lora_rank", None, "Rank of the adapter; 0 trains all weights. Inherited from --init_ckpt." + by_model("lora_rank"))
  number("lora_alpha", None, "Scale of the adapter is alpha / rank. Inherited from --init_ckpt." + by_model("lora_alpha"))
  # Data
  string("data", None, "synthetic[:easy], gsm8k, a hub id, a file or folder, or task=source,task=source." + by_model("data"))
  number("validation_fraction", 0.05, "Share of a source held out by hash of the question, in (0, 1); synthetic data has splits of its own.")
  integer("max_prompt_length", None, "Tokens of a prompt; longer ones are dropped and counted." + by_model("max_prompt_length"))
  integer("max_completion_length", None, "Tokens of a completion or target." + by_model("max_completion_length"))
  # Optimisation
  number("learning_rate", None, "Peak learning rate: linear warm-up, then cosine decay to a tenth; an adapter takes about ten times that of all weights "
         "(Schulman et al. 2025, LoRA Without Regret)." + by_model("learning_rate"))
  number("warmup_fraction", 0.1, "Share of the steps spent warming up, in [0, 1).")
  number("weight_decay", 0.0, "AdamW's decoupled weight decay.")
  number("max_grad_norm", 1.0, "Gradients are scaled down to this global norm; 0 leaves them alone.")
  integer("batch_size", None, "Examples (sft) or prompts (grpo) of one optimiser step." + by_model("batch_size"))
  integer("micro_batch_size", None, "Examples or prompts in one forward and backward pass (default: --batch_size).")
  integer("max_steps", None, "Optimiser steps." + by_model("max_steps"))
  number("max_hours", 8.5, "Wall time from the start of main; the run then saves, says how to go on and ends.")
  number("save_every_minutes", 20.0, "Minutes between checkpoints; there is one at the end and at each best validation, too.")
  string("wandb", "", "Weights & Biases project that also gets the metrics; empty: none.")
  integer("seed", 0, "Seed of data order, initialisation and sampling.")
  # Plan
  boolean("plan", False, "Compile the step for --plan_topology, print its memory, FLOPs and bytes per device and what fits into --max_hours, and stop; takes "
          "no TPU and no weights, but libtpu and minutes. Without --micro_batch_size it looks for the largest that fits.")
  string("plan_topology", "v5e:2x4", f"TPU that --plan compiles for, CHIP:SHAPE; CHIP one of {', '.join(CHIPS)}.")


# --- Setup ------------------------------------------------------------------------------------------------------------


def fill_defaults(fv: absl_flags.FlagValues, defaults: dict[str, tuple[Any, Any]]) -> None:
  """Gives every flag of the table that was left open the model's value, and prints those."""
  chosen = [name for name in defaults if fv[name].value is None]
  for name in chosen:
    fv[name].value = defaults[name][fv.model != "tiny"]
  if chosen:
    print("defaults:", *(f"--{name}={fv[name].value}" for name in chosen))


def resolve_flags(fv: absl_flags.FlagValues, defaults: dict[str, tuple[Any, Any]], parent: dict[str, Any], num_devices: int) -> None:
  """Fills what was left open, from the parent run's adapter and from the table of defaults."""
  parent_flags = parent.get("flags", {})
  if parent_flags and pathlib.Path(parent_flags["model"]).name != pathlib.Path(fv.model).name:
    raise ValueError(f"--model={fv.model}, but the checkpoint was trained on --model={parent_flags['model']}: use that model")
  for name in {"lora_rank", "lora_alpha"} & set(parent_flags):
    if fv[name].value is not None and fv[name].value != parent_flags[name]:
      raise ValueError(f"--{name}={fv[name].value}, but the checkpoint has {parent_flags[name]}: leave the flag out")
    fv[name].value = parent_flags[name]
  fill_defaults(fv, defaults)
  if fv.micro_batch_size is None:
    fv.micro_batch_size = fv.batch_size
  if fv.mesh is None:
    fv.mesh = f"{num_devices},1"


def check_flags(fv: absl_flags.FlagValues, problems: Sequence[str] = ()) -> None:
  """Raises one ValueError that names everything wrong with the shared flags, and the `problems` that a script has found itself."""
  problems = list(problems)
  for name in ("batch_size", "micro_batch_size", "max_steps", "max_prompt_length", "max_completion_length", "max_hours",
               "learning_rate", "save_every_minutes", "eval_every"):
    if fv[name].value <= 0:
      problems.append(f"--{name}={fv[name].value} must be positive")
  for name in ("eval_prompts", "weight_decay", "max_grad_norm"):
    if fv[name].value < 0:
      problems.append(f"--{name}={fv[name].value} must not be negative")
  if not 0 <= fv.seed < 2**31:
    problems.append(f"--seed={fv.seed} must lie between 0 and 2**31 - 1")
  if fv.max_steps > 10**6:  # schedule, epochs and prompts are laid out for all of them before the first
    problems.append(f"--max_steps={fv.max_steps} is more than a million: to end by time, use --max_hours")
  if not fv.out:
    problems.append("--out is empty: name a folder")
  if fv.lora_rank > 0 and fv.lora_alpha <= 0:
    problems.append(f"--lora_alpha={fv.lora_alpha} must be positive: with it the adapter does nothing")
  if fv.lora_rank < 0:
    problems.append(f"--lora_rank={fv.lora_rank} must not be negative; 0 trains all weights")
  if fv.micro_batch_size > 0 and fv.batch_size % fv.micro_batch_size:
    problems.append(f"--batch_size={fv.batch_size} is not a multiple of --micro_batch_size={fv.micro_batch_size}")
  if not 0 < fv.validation_fraction < 1:
    problems.append(f"--validation_fraction={fv.validation_fraction} must lie between 0 and 1")
  if not 0 <= fv.warmup_fraction < 1:
    problems.append(f"--warmup_fraction={fv.warmup_fraction} must be at least 0 and below 1")
  if problems:
    raise ValueError("; ".join(problems))


class Compilations:
  """Keeps compiled programs on disk, so that the next leg or the same run continued does not compile them again, counts them, and gives back the memory that making them took."""

  def __init__(self):
    self.programs = self.seconds = self.cached = 0
    self._found = False  # the program that is being got was on disk
    jax.config.update("jax_compilation_cache_dir", str(data.CACHE / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.monitoring.register_event_duration_secs_listener(self._note)
    jax.monitoring.register_event_listener(self._note)

  def _note(self, event: str, seconds: float = 0.0, **unused: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      self.cached, self._found = self.cached + 1, True
    elif event == "/jax/core/compile/backend_compile_duration":  # of one that was found, too: then it is the time to load it
      if seconds > 1 and not self._found:  # the many small ones are not worth a word
        self.programs, self.seconds = self.programs + 1, self.seconds + seconds
      self._found = False
      if seconds > 1:
        glibc("malloc_trim", 0)  # it keeps what the compiler freed: 0.9 of the 5.6 GB that a run of the 270M had on a CPU

  def __str__(self) -> str:
    """-> "5 programs compiled in 41 s, 3 from the cache, peak memory 2.9 GB" """
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return f"{self.programs} programs compiled in {self.seconds:.0f} s, {self.cached} from the cache, peak memory {peak / 1e9:.1f} GB"


JOIN_SECONDS = 300  # that processes wait for one another at the start


def start_processes() -> None:
  """Joins the processes of a run on several hosts, if JAX_COORDINATOR_ADDRESS (host:port of process 0) is set; only process 0 prints.

  JAX_NUM_PROCESSES and JAX_PROCESS_ID go with it. A TPU pod that names its workers needs none of them: JAX reads it by itself.
  """
  address, *numbers = (os.environ.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
  if jax.distributed.is_initialized() or address is None and "," not in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
    return
  try:
    count, number = (n and int(n) for n in numbers)
    for left in reversed(range(0 if number is None else JOIN_SECONDS)):  # tried here first: JAX would not raise, but abort with a stack of C++ calls
      host, port = address.rsplit(":", 1)
      try:
        (socket.create_connection((host, int(port)), 5) if number else socket.create_server(("", int(port)))).close()
        break
      except OSError:
        if not left:
          raise
        time.sleep(1)
    jax.distributed.initialize(address, count, number, initialization_timeout=JOIN_SECONDS)
  except (ValueError, LookupError, OSError, OverflowError, RuntimeError) as e:
    raise ValueError(f"JAX_COORDINATOR_ADDRESS={address}, JAX_NUM_PROCESSES={numbers[0]}, JAX_PROCESS_ID={numbers[1]}: {str(e).splitlines()[0]}; on every host "
                     "give host:port of process 0, how many processes there are, and this one's number from 0 up, or none of the three") from e
  if jax.process_index():
    sys.stdout = open(os.devnull, "w", encoding="utf-8")


def agree(number: float) -> float:
  """The largest of the processes' numbers: what they all have to decide alike, but each by its own clock or signals."""
  return float(multihost_utils.process_allgather(np.float32(number)).max())


def spread(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """A batch's rows over the mesh's fsdp axis; every process has all of them and puts those of its own devices there."""
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  if jax.process_count() == 1:
    return jax.device_put(batch, rows)
  return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, rows, lambda index: x[index]), batch)


def make_mesh(spec: str, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """A mesh of all devices (or `devices`) with axes (fsdp, tp) from "8,1"; ValueError if the product is not their number."""
  devices = jax.devices() if devices is None else devices
  try:
    fsdp, tp = (int(x) for x in spec.split(","))
  except ValueError:
    raise ValueError(f"--mesh={spec} must be two numbers, fsdp,tp") from None
  if min(fsdp, tp) < 1:
    raise ValueError(f"--mesh={spec} must be two numbers from 1 up, fsdp,tp")
  if fsdp * tp != len(devices):
    raise ValueError(f"--mesh={spec} needs {fsdp * tp} devices, here are {len(devices)}")
  return jax.sharding.Mesh(np.array(devices).reshape(fsdp, tp), ("fsdp", "tp"))


def find_step(path: str | pathlib.Path) -> pathlib.Path:
  """A run folder's newest complete step, or the one step folder that is named; ValueError if there is none.

  A run that is not there is looked for by its name among what is attached to a Kaggle notebook.
  """
  path = pathlib.Path(path)
  if not path.exists():
    run, step = (path.parents[1], f"actor/{path.name}") if path.name.isdigit() and path.parent.name == "actor" else (path, "")
    mounted = (p / step for depth in range(1, 7) for p in sorted(data.kaggle_input().glob("*/" * depth + run.name)) if (p / (step or "actor")).is_dir())
    if found := next(mounted, None):  # at most input/notebooks/USER/NOTEBOOK/show-your-work/runs/sft
      path = found
      print(f"found {path}")
  if path.name.isdigit() and (path / "model_params").is_dir():
    return path
  # Orbax renames a step's folder into place when it is complete, so every all-digit name is.
  steps = [p for p in (path / "actor").glob("*") if p.name.isdigit() and (p / "model_params").is_dir()]
  if not steps:
    raise ValueError(f"{path} holds no checkpoint (no actor/<step>/model_params): train that leg first, or name another folder")
  return max(steps, key=lambda p: int(p.name))


def find_checkpoint(path: str | pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
  """(step folder, its run.json) of what find_step finds; ValueError if either is missing or damaged."""
  step_dir = find_step(path)
  return step_dir, read_run(step_dir.parent.parent)


def has_checkpoint(path: str | pathlib.Path) -> bool:
  """Whether find_step finds one, quietly."""
  try:
    with contextlib.redirect_stdout(None):
      return bool(find_step(path))
  except ValueError:
    return False


def read_run(folder: pathlib.Path) -> dict[str, Any]:
  """run.json of a run folder; ValueError if it is missing or damaged."""
  path = folder / "run.json"
  try:
    info = json.loads(path.read_text())
    info["flags"]  # pylint: disable=pointless-statement
    return info
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{path} is missing or damaged ({type(e).__name__}); it says which model and rank the checkpoints beside it belong to: "
                     "bring it back, or name another folder") from e


class Run:
  """A run folder: run.json, metrics.jsonl, samples.jsonl, TensorBoard's events where tensorboardX is installed, and checkpoints.

  Of the checkpoints, the last two stay and the best by validation. Raises ValueError when the folder holds a run with
  other flags, so that two runs never mix.
  """

  GROWS = ("max_steps", "max_hours", "save_every_minutes", "wandb")  # flags that may differ when a run continues

  def __init__(self, fv: absl_flags.FlagValues, script: str, parent: pathlib.Path | None):
    self.started, self.parent = time.time(), parent
    self.folder = pathlib.Path(fv.out)
    flags = {name: fv[name].value for name in fv}
    self.info = {"script": script, "flags": flags, "parent": str(parent) if parent else None,
                 "started_from": str(parent) if parent else "base", "finished": False, "ended_because": None, "hours": 0.0,
                 "versions": {"python": sys.version.split()[0], "jax": jax.__version__, **_versions()}, "commit": _commit(),
                 "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
    if (self.folder / "run.json").exists():
      old = read_run(self.folder)
      other = [n for n in flags if n not in self.GROWS and n in old["flags"] and old["flags"][n] != flags[n]]
      if other:
        differ = ", ".join(f"--{n} was {old['flags'][n]}, is {flags[n]}" for n in other)
        raise ValueError(f"{self.folder} holds a run with other flags ({differ}): use its flags, or another --out")
      # What it started from stays: the leg before may have gone on since, but this one's reference policy has not moved.
      self.info = {**old, "flags": flags}
    elif any((self.folder / "actor").glob("[0-9]*")):
      raise ValueError(f"{self.folder} holds checkpoints, but no run.json that says what they are: bring it back, or name another --out")
    self.hours_before = self.info["hours"]
    self.best_step, self.best_score = None, -np.inf
    self.last_save, self.save_seconds = time.time(), 60.0  # a guess, until there was one
    self.board = self.wandb = None
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      write_atomically(self.folder / ".writable", "")
      (self.folder / ".writable").unlink(missing_ok=True)
    except OSError as e:
      raise ValueError(f"--out={self.folder} cannot be written ({e.strerror}): name another folder") from e
    if flags["wandb"] and importlib.util.find_spec("wandb") is None:
      raise ValueError("--wandb needs a package that is not installed: pip install wandb")

  def started_from(self) -> pathlib.Path | None:
    """The step folder this leg started from; None is the untouched base. ValueError if it is gone."""
    if self.info["started_from"] == "base":
      return None
    path = pathlib.Path(self.info["started_from"])
    if not path.exists() and self.parent:  # copied, or attached elsewhere since
      path = self.parent.parent / path.name
    if not path.exists():
      raise ValueError(f"{self.info['started_from']}, where {self.folder} started, is gone: bring it back, or begin again with another --out")
    return path

  def is_finished(self) -> bool:
    if self.info["finished"] and self.info["step"] >= self.info["flags"]["max_steps"]:
      print(f"{self.folder} is finished: {self.info['step']} steps. Nothing to do; a larger --max_steps or another --out starts again.")
      return True
    return False

  def begin(self, step: int, **info: Any) -> None:
    """Forgets what was logged after `step`, the step that was restored, and writes run.json."""
    for name in ("metrics.jsonl", "samples.jsonl"):
      path = self.folder / name
      kept = [record for record in read_jsonl(path) if record["step"] <= step]
      if path.exists():
        write_atomically(path, jsonl(kept))
      for record in kept if name == "metrics.jsonl" else ():
        self.is_best(record)
    self.save(step=step, finished=False, **info)
    if importlib.util.find_spec("tensorboardX") and not jax.process_index():
      import tensorboardX  # pylint: disable=g-import-not-at-top
      self.board = tensorboardX.SummaryWriter(str(self.folder), purge_step=step + 1)
    if self.info["flags"]["wandb"] and not jax.process_index():
      import wandb  # pylint: disable=g-import-not-at-top
      self.wandb = wandb.init(project=self.info["flags"]["wandb"], name=self.folder.name, config=self.info["flags"], resume="allow",
                              id=hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:16])

  def save(self, **info: Any) -> None:
    self.info.update(info, hours=round(self.hours_before + (time.time() - self.started) / 3600, 4))
    write_atomically(self.folder / "run.json", json.dumps(self.info, indent=2) + "\n")

  def log(self, name: str, *records: dict[str, Any]) -> None:
    if jax.process_index():
      return
    try:
      with open(self.folder / name, "a", encoding="utf-8") as f:
        f.write(jsonl(records))
    except OSError as e:
      raise ValueError(f"{self.folder / name} cannot be written ({e.strerror}): make room and start the same command again") from e
    for record in records if name == "metrics.jsonl" else ():
      numbers = {k: v for k, v in record.items() if v is not None and k != "step"}
      for key, value in numbers.items() if self.board else ():
        self.board.add_scalar(key, value, record["step"])
      if self.wandb and record["step"] >= self.wandb.starting_step:  # a killed run may have sent it before
        self.wandb.log(numbers, step=record["step"])

  def close(self) -> None:
    """Tells TensorBoard and Weights & Biases that the run is over; at the end of a script they would notice, in a notebook they would not."""
    if self.board:
      self.board.close()
    if self.wandb:
      self.wandb.finish()

  def is_best(self, record: dict[str, Any]) -> bool:
    """Notes the record's validation, if it has one, and says whether it is the best so far."""
    score = record.get("validation_reward", -record["validation_loss"] if "validation_loss" in record else -np.inf)
    if score <= self.best_score:
      return False
    self.best_step, self.best_score = record["step"], score
    return True

  def __deepcopy__(self, memo: Any) -> Run:
    return self  # Tunix copies its configuration, and Orbax has to ask the run itself

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Orbax's question after every save."""
    del context
    kept = {*sorted(c.step for c in checkpoints)[-2:], self.best_step}
    return [c.step in kept for c in checkpoints]

  def checkpointing_options(self) -> ocp.CheckpointManagerOptions:
    # Orbax never decides by itself when to save: between two micro-batches, or before anybody looked at the loss, is too early.
    return ocp.CheckpointManagerOptions(save_decision_policy=ocp.checkpoint_managers.AnySavePolicy([]), preservation_policy=self,
                                        enable_async_checkpointing=False)

  def checkpoint(self, trainer: peft_trainer.PeftTrainer, **info: Any) -> None:
    """Writes actor/<step> as Tunix's RLCluster does, now, and then run.json."""
    start, step, lora = time.time(), trainer.train_steps, bool(self.info["flags"]["lora_rank"])
    try:
      if trainer.checkpoint_manager.latest_step() != step:
        state = nnx.state(trainer.optimizer), nnx.state(trainer.model, trained_filter(lora))
        needed, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
        if free < 1.1 * needed:  # before Orbax begins: its threads each print their own traceback
          raise OSError(f"{free / 1e6:.0f} MB free, {needed / 1e6:.0f} needed")
        trainer.checkpoint_manager.save(step, trainer.model, trainer.optimizer, save_only_lora_params=lora, force=True,
                                        custom_metadata={"global_step": step, "role": "actor"})
      on_disk = [int(p.name) for p in (self.folder / "actor").iterdir() if p.name.isdigit()]
      self.save(step=step, checkpoints={"last": step, "best": self.best_step if self.best_step in on_disk else None}, **info)
    except Exception as e:  # Orbax raises what its storage raises: OSError, ValueError, XlaRuntimeError
      raise ValueError(f"step {step} could not be saved in {self.folder} ({type(e).__name__}: {str(e).splitlines()[0]}): the checkpoints before it "
                       "are whole; make room and start the same command again") from e
    if self.board:
      self.board.flush()  # a kill loses what is buffered, and a resumed run logs only what comes after its checkpoint
    self.last_save = time.time()
    self.save_seconds = self.last_save - start


class Stop:
  """Why a run should end before its last step: its time is over, SIGTERM, or Ctrl-C.

  A signal lets the step finish and the run save; a second Ctrl-C stops at once. `data.script` takes the handlers away.
  """

  def __init__(self, started: float, max_hours: float):
    self._deadline, self._signal, self._longest = started + 3600 * max_hours, None, 0.0
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, self._note)
      signal.signal(signal.SIGINT, self._note)

  def _note(self, number: int, frame: Any) -> None:
    del frame
    if self._signal == "SIGINT" == signal.Signals(number).name:
      raise KeyboardInterrupt
    self._signal = signal.Signals(number).name
    print(f"{self._signal}: finishing this step, then saving (Ctrl-C once more stops now)", flush=True)

  def reason(self, step_seconds: float, save_seconds: float, first: bool) -> str | None:
    """None to go on; else SIGTERM, SIGINT, or max_hours when another step like the longest so far, and a save, would not fit."""
    self._longest = self._longest if first else max(self._longest, step_seconds)  # the first one compiles
    over, reasons = time.time() + self._longest + save_seconds > self._deadline, (None, "max_hours", "SIGTERM", "SIGINT")
    return reasons[int(agree(reasons.index(self._signal or reasons[over])))]


def jsonl(records: Iterable[dict[str, Any]]) -> str:
  """One JSON object per line."""
  return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a file that jsonl wrote, none if there is no file; a last line that was not written to its end is left out."""
  # Bytes: a text would also be split at U+2028 and others, which stand in JSON as they are, and its end may be half a character.
  return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def write_atomically(path: pathlib.Path, text: str) -> None:
  if jax.process_index():  # one process writes, for all
    return
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text, encoding="utf-8")
  os.replace(temporary, path)


def _versions() -> dict[str, str]:
  import importlib.metadata as metadata  # pylint: disable=g-import-not-at-top
  return {name: metadata.version(name) for name in ("flax", "google-tunix", "qwix", "optax", "orbax-checkpoint", "transformers")}


def _commit() -> str | None:
  if not shutil.which("git"):
    return None
  git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=pathlib.Path(data.__file__).parent, capture_output=True, text=True, check=False)
  return git.stdout.strip() or None


# --- Data -------------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: pathlib.Path) -> Any:
  """The folder's Hugging Face tokenizer, with `stop_ids`: the end of a turn and the end of a text. ValueError if it does not load."""
  import transformers  # imported late: it is slow
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  except Exception as e:  # the tokenizers library raises bare Exceptions for damaged files
    raise ValueError(f"the tokenizer in {folder} does not load ({type(e).__name__}: {' '.join(str(e).split())[:120]}): fetch it again") from e
  tokenizer.stop_ids = tuple(sorted({tokenizer.convert_tokens_to_ids("<end_of_turn>"), tokenizer.eos_token_id}))
  return tokenizer


def encode(tokenizer: Any, text: str, bos: bool = False) -> list[int]:
  """Token ids of `text`; turn markers in it are special tokens, BOS is added only when asked for."""
  return ([tokenizer.bos_token_id] if bos else []) + tokenizer.encode(text, add_special_tokens=False)


def encode_prompts(tokenizer: Any, examples: Sequence[data.Example], max_length: int) -> tuple[list[data.Example], list[list[int]]]:
  """Examples whose prompts fit in `max_length` tokens, and those prompts; says how many were dropped."""
  kept = []
  for example in examples:
    ids = encode(tokenizer, data.format_prompt(example.question), bos=True)
    if len(ids) <= max_length:
      kept.append((example, ids))
  if len(kept) < len(examples):
    print(f"dropped {len(examples) - len(kept)} of {len(examples)} prompts longer than --max_prompt_length={max_length} tokens")
  if examples and not kept:
    raise ValueError(f"no prompt fits in --max_prompt_length={max_length} tokens: raise it")
  return [example for example, _ in kept], [ids for _, ids in kept]


def bucket(length: int, limit: int, parts: int = 4) -> int:
  """`length` rounded up to a multiple of a quarter of `limit`, or another of its parts, but not above it: few shapes, so few compiles."""
  size = -(-limit // parts)
  return min(limit, -(-length // size) * size)


def pad(rows: Sequence[Sequence[int]], length: int, value: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """Rows as one int32 array [B, length], padded on the right or the left, and the places that they fill, bool [B, length]."""
  out, mask = np.full((len(rows), length), value, np.int32), np.zeros((len(rows), length), bool)
  for i, row in enumerate(rows):
    places = slice(length - len(row), None) if left else slice(len(row))
    out[i, places], mask[i, places] = row, True
  return out, mask


def make_batch(prompts: Sequence[list[int]], targets: Sequence[list[int]], pad_id: int, max_prompt: int, max_target: int, parts: tuple[int, int] = (4, 4)) -> dict[str, np.ndarray]:
  """One batch: prompt_ids, prompt_mask [B, P] (padded on the left) and completion_ids, completion_mask [B, T], as long as `bucket` makes them with that many `parts`."""
  p, t = bucket(max(map(len, prompts)), max_prompt, parts[0]), bucket(max(1, *map(len, targets)), max_target, parts[1])
  prompt_ids, prompt_mask = pad(prompts, p, pad_id, left=True)
  completion_ids, completion_mask = pad(targets, t, pad_id)
  return {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": completion_ids, "completion_mask": completion_mask}


def length_grouped_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
  """Indices [steps, batch_size] of one epoch: rows of similar length share a batch, batches come in random order.

  Rows are shuffled, sorted by length within windows of 32 batches, cut into batches and the batches shuffled. A pure
  function of its arguments; the rows that fill no whole batch are left out, other ones in every epoch.
  """
  rng = np.random.default_rng((seed, epoch))
  order = rng.permutation(len(lengths))[:len(lengths) // batch_size * batch_size]
  window = 32 * batch_size
  order = np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in np.split(order, range(window, len(order), window))])
  batches = order.reshape(-1, batch_size)
  return batches[rng.permutation(len(batches))]


# --- Model ------------------------------------------------------------------------------------------------------------


def check_model(folder: pathlib.Path, max_length: int) -> None:
  """Raises ValueError for a model that Tunix would run wrongly with prompts and completions of together `max_length` tokens."""
  c = data.model_config(folder)
  every = data.GLOBAL_EVERY[c["model_type"]]
  if c["layer_types"] != data.layer_types(c["num_hidden_layers"], every):
    raise ValueError(f"{folder}: its layer_types are not the pattern that Tunix has built in (every {every}th layer is global)")
  # Tunix's Gemma 2 compares positions without padding to cache columns with it, which matters once the window is full.
  limit = c["sliding_window"] if c["model_type"] == "gemma2" else c["max_position_embeddings"]
  if max_length > limit:
    raise ValueError(f"--max_prompt_length + --max_completion_length = {max_length} tokens, but {folder} takes {limit}: lower them")
  model_from_config(folder)


def check_memory(folder: pathlib.Path, fv: absl_flags.FlagValues, num_generations: int = 0) -> int:
  """How many completions fit into memory at a time; ValueError if weights, gradients, optimiser and those of one prompt do not.

  An estimate from shapes, so that it is the same whenever a run continues: activations come on top of it, and everything is
  taken to be spread evenly over the devices, but for a replicated base.
  """
  c, devices, on_cpu = data.model_config(folder), jax.device_count(), jax.default_backend() == "cpu"
  size = 4 if fv.dtype == "float32" or fv.dtype == "auto" and on_cpu else 2
  shapes = [shape for _, shape in data.tensors(c).values()]
  weights = sum(map(math.prod, shapes))
  copied = weights - math.prod(shapes[0]) if on_cpu and size == 4 else 0  # all but the embedding, see decoding_weights
  trained = fv.lora_rank * sum(sum(shape) for shape in shapes[1:] if len(shape) == 2) if fv.lora_rank else weights
  cache = 2 * size * (fv.max_prompt_length + fv.max_completion_length) * c["num_hidden_layers"] * c["num_key_value_heads"] * c["head_dim"]
  completion = (cache + 16 * c["vocab_size"]) / devices  # four float32 rows of logits, to draw a token from
  parts = {"base weights": (weights + copied) * size / (1 if fv.replicate_base else devices), "gradients and optimiser": trained * (12 if size == 4 else 14) / devices,
           f"KV cache of {num_generations} completions": num_generations * completion}
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
  if on_cpu:
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / devices
  if limit and sum(parts.values()) > limit:
    raise ValueError(f"this needs at least {sum(parts.values()) / 1e9:.1f} GB per device ({', '.join(f'{k} {v / 1e9:.1f}' for k, v in parts.items())}), here are "
                     f"{limit / 1e9:.1f}: lower {'--num_generations, --max_completion_length or ' * bool(num_generations)}--lora_rank, leave out --replicate_base, or take a smaller --model")
  free = 0.8 * limit - sum(list(parts.values())[:2]) if limit else math.inf
  return max(num_generations, int(min(free / completion, 2**20)))


def model_from_config(folder: pathlib.Path, *, replicate_base: bool = False, remat: str = "none") -> tuple[Any, Any]:
  """(Tunix model config, module that loads it) for a folder's config.json."""
  c = data.model_config(folder)
  lib, params = (gemma2_lib, gemma2_params) if c["model_type"] == "gemma2" else (gemma3_lib, gemma3_params)
  shared = dict(
      num_layers=c["num_hidden_layers"], num_embed=c["vocab_size"], embed_dim=c["hidden_size"], hidden_dim=c["intermediate_size"],
      num_heads=c["num_attention_heads"], num_kv_heads=c["num_key_value_heads"], head_dim=c["head_dim"],
      sliding_window_size=c["sliding_window"],
      shd_config=lib.ShardingConfig.get_default_sharding(is_sampling=replicate_base), remat_config=lib.RematConfig[remat.upper()])
  by_head, by_width = c["head_dim"], c["hidden_size"] // c["num_attention_heads"]
  if c["query_pre_attn_scalar"] != by_head and (lib is gemma2_lib or c["query_pre_attn_scalar"] != by_width):
    raise ValueError(f"{folder}: query_pre_attn_scalar={c['query_pre_attn_scalar']} is not what Tunix computes ({by_head})")
  if lib is gemma2_lib:
    kinds = (lib.AttentionType.LOCAL_SLIDING, lib.AttentionType.GLOBAL)
    return lib.ModelConfig(
        **shared, final_logit_softcap=c["final_logit_softcapping"], attn_logits_soft_cap=c["attn_logit_softcapping"],
        use_post_attn_norm=True, use_post_ffw_norm=True,
        attention_types=tuple(kinds[i % 2] for i in range(c["num_hidden_layers"]))), params
  query = lib.QueryPreAttentionNormalisation
  return lib.ModelConfig(
      **shared, local_base_frequency=c["rope_local_base_freq"], global_base_frequency=c["rope_theta"],
      global_scale_factor=(c.get("rope_scaling") or {}).get("factor", 1.0),
      query_pre_attn_norm=query.BY_ONE_OVER_SQRT_HEAD_DIM if c["query_pre_attn_scalar"] == by_head
      else query.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS), params


def load_model(folder: pathlib.Path, mesh: jax.sharding.Mesh, *, dtype: str = "auto", lora_rank: int = 0, lora_alpha: float = 0.0,
               seed: int = 0, replicate_base: bool = False, remat: str = "auto") -> nnx.Module:
  """A Tunix Gemma 2 or 3 from a Hugging Face folder, on `mesh`, with a fresh LoRA adapter if `lora_rank` > 0.

  A fresh adapter changes nothing (its B is zero). Raises ValueError for a model that Tunix cannot represent.
  """
  on_cpu = jax.default_backend() == "cpu"
  dtype = ("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype
  remat = ("none" if on_cpu else "decoder") if remat == "auto" else remat
  config, params = model_from_config(folder, replicate_base=replicate_base, remat=remat)
  try:
    model = params.create_model_from_safe_tensors(str(folder), config, mesh, dtype=jnp.dtype(dtype))
  except Exception as e:  # Tunix raises bare RuntimeErrors and KeyErrors for damaged files
    raise ValueError(f"the weights in {folder} do not load ({type(e).__name__}: {str(e).splitlines()[0]}): fetch them again") from e
  gc.collect()  # Tunix's loader leaves most of the weights a second time, in reference cycles
  if on_cpu and sum(x.nbytes for x in jax.tree.leaves(nnx.state(model))) < 1e8:
    # Mapping memory anew was a third of tiny's step; a large model's programs would each keep a gigabyte.
    keep_freed_memory()
  return add_adapter(model, mesh, lora_rank, lora_alpha, seed)


def for_cpu() -> bool:
  """Whether what is traced now will run on a CPU; within `compile_cost` it will not."""
  return jax.devices()[0].platform == "cpu"


class LoraProvider(qwix.LoraProvider):
  """Qwix's adapter, with the model's projections as products of matrices, [B * L, D] with [D, F], where a CPU runs them.

  Gradients sum over B and L, and XLA:CPU transposes both sides of a product that sums over two axes, a quarter of the 270M's
  update, and the gradient of one whose result has more than two, some 3%. A TPU does not; there the update of Gemma 3 1B would
  read and write 14% more.
  """

  weights_left = False  # in a decoding step, see decoding_weights

  def dot_general(self, lhs, rhs, dimension_numbers, *args, **kwargs):
    if self.weights_left:
      return left_product(lhs, rhs, dimension_numbers, *args, **kwargs)
    if not for_cpu() or dimension_numbers != (((2,), (0,)), ((), ())):  # [B, L, D] with [D, F]
      return super().dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)
    out = super().dot_general(lhs.reshape(-1, lhs.shape[2]), rhs, (((1,), (0,)), ((), ())), *args, **kwargs)
    return out.reshape(*lhs.shape[:2], -1)

  def einsum(self, spec, *operands, **kwargs):
    if self.weights_left:
      return jnp.einsum(spec, *operands, **kwargs, _dot_general=left_product)
    return super().einsum(spec, *operands, **kwargs, **{"_dot_general": matrix_product} if for_cpu() else {})


def matrix_product(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, *args: Any, **kwargs: Any) -> jax.Array:
  """jax.lax.dot_general, of matrices where it can: [B, L, N, H] with [N, H, D] is [B * L, N * H] with [N * H, D]."""
  summed, (batch, _) = dimension_numbers
  summed = list(zip(*sorted(zip(*summed)))) or [(), ()]  # einsum has them in the order of the letters
  free = [n for x, axes in zip((lhs, rhs), summed) for i, n in enumerate(x.shape) if i not in axes]
  operands = [lhs, rhs]
  for side, (x, axes) in enumerate(zip(operands, summed)):
    first, last = axes == tuple(range(len(axes))), axes == tuple(range(x.ndim - len(axes), x.ndim))
    size = math.prod(x.shape[i] for i in axes)
    if first or last:
      operands[side], summed[side] = x.reshape((size, -1) if first else (-1, size)), (int(not first),)
  if batch or len(summed[0]) != len(summed[1]):
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)
  return jax.lax.dot_general(*operands, (summed, ((), ())), *args, **kwargs).reshape(free)


def left_product(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, *args: Any, **kwargs: Any) -> jax.Array:
  """jax.lax.dot_general of a decoding step's activations with weights or keys, which it makes the left side: [F, D] with [D, rows].

  XLA:CPU packs the right side of a product anew in every step: of weights, for a few rows, in more time than the product takes.
  """
  (left, right), (left_batch, right_batch) = dimension_numbers
  if lhs.size > rhs.size or right_batch and right != (rhs.ndim - 1,):  # weights are left already, or attention's values, which need no packing
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)
  right, left = zip(*sorted(zip(right, left)))  # einsum has them in the order of the letters
  activations = jax.lax.optimization_barrier(lhs)  # or XLA would turn the product round again
  out = jax.lax.optimization_barrier(jax.lax.dot_general(rhs, activations, ((right, left), (right_batch, left_batch)), *args, **kwargs))
  return jnp.moveaxis(out, range(out.ndim - lhs.ndim + len(left) + len(left_batch), out.ndim), range(len(left_batch), lhs.ndim - len(left)))


# Of each projection's weights, the axes that a product with activations sums over.
SUMMED_AXES = {"q_einsum": (1,), "kv_einsum": (2,), "qkv_einsum": (2,), "attn_vec_einsum": (0, 1), "gate_proj": (0,), "up_proj": (0,), "down_proj": (0,)}


def decoding_weights(state: dict[str, Any], lora_scale: float) -> tuple[dict[Any, Any], Callable[[dict[Any, Any]], dict[str, Any]]]:
  """What a CPU decodes with: each projection as [F, D], as left_product takes it, the adapter added; and what makes a model's state of it.

  Call outside the decoding loop and the second function in it, where its axes cancel those of left_product.
  """
  flat = traverse_util.flatten_dict(state)
  orders = {path: (*(i for i in range(x.ndim) if i not in summed), *summed) for path, x in flat.items()
            if path[-1] in ("w", "kernel") and (summed := SUMMED_AXES.get(path[-2]))}

  def laid_out(path, order):
    if not lora_scale:
      return flat[path].transpose(order)
    a, b = (flat[*path[:-1], f"{path[-1]}_lora_{side}"] for side in "ab")  # [D, rank] and [rank, F], D and F perhaps of more axes
    return flat[path].transpose(order) + lora_scale * jnp.tensordot(b, a, (0, -1))

  def to_state(flat_state):
    return traverse_util.unflatten_dict(flat_state | {path: flat_state[path].transpose(np.argsort(order)) for path, order in orders.items()})

  return flat | {path: laid_out(path, order) for path, order in orders.items()}, to_state


def add_adapter(model: nnx.Module, mesh: jax.sharding.Mesh, lora_rank: int, lora_alpha: float, seed: int) -> nnx.Module:
  """The model under LoraProvider, with a fresh LoRA adapter if `lora_rank` > 0, and `lora_scale`, what A @ B is multiplied with."""
  provider = LoraProvider([qwix.LoraRule(module_path=LORA_MODULES, rank=lora_rank, alpha=lora_alpha)] if lora_rank else [])
  with mesh:
    model = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(params=seed), **model.get_model_input())
  model.lora_scale = lora_alpha / lora_rank if lora_rank else 0.0
  return model


def trained_filter(lora_rank: int) -> type[nnx.Variable]:
  """What a leg trains and saves: the adapter, or with rank 0 every weight."""
  return nnx.LoRAParam if lora_rank else nnx.Param


class Arrays:
  """The arrays of a module's variables, all or those that `wanted` picks, to be read and written as a nested dict.

  What nnx.to_pure_dict(nnx.state(module, wanted)) and nnx.update do, too, but they walk through the module at every call; this
  walks once.
  """

  def __init__(self, module: nnx.Module, wanted: Any = nnx.Variable):
    wanted = nnx.filterlib.to_predicate(wanted)
    found = {path: x for path, x in nnx.iter_graph(module) if isinstance(x, nnx.Variable) and wanted(path, x)}
    self._variables, self._tree = jax.tree.flatten(nnx.traversals.unflatten_mapping(found), is_leaf=lambda x: isinstance(x, nnx.Variable))

  def get(self) -> dict[str, Any]:
    return self._tree.unflatten([x.get_raw_value() for x in self._variables])

  def set(self, arrays: dict[str, Any]) -> None:
    for x, array in zip(self._variables, self._tree.flatten_up_to(arrays), strict=True):
      x.set_raw_value(array)


def restore(model: nnx.Module, step_dir: pathlib.Path, lora_rank: int) -> None:
  """Puts the checkpoint's adapter (or all weights) into `model`; ValueError if shapes or names differ."""
  target = nnx.state(model, trained_filter(lora_rank))
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)
  with ocp.StandardCheckpointer() as checkpointer:
    try:
      nnx.update(model, checkpointer.restore(step_dir.absolute() / "model_params", target=abstract))
    except (ValueError, KeyError, FileNotFoundError) as e:
      raise ValueError(f"{step_dir} does not fit: its parameters are not those of this model with --lora_rank={lora_rank}") from e


def cap_logits(model: nnx.Module, logits: jax.Array) -> jax.Array:
  """Logits in float32 as the model's head ends: Gemma 2 bends them to stay within a cap."""
  cap, logits = getattr(model, "final_logits_softcap", None), logits.astype(jnp.float32)
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def decode_logits(model: nnx.Module, hidden: jax.Array) -> jax.Array:
  """Vocabulary logits in float32, [V, rows], of final hidden states [rows, D]: on a CPU in 60% of the time of [rows, V] for a decoding step's few rows."""
  return cap_logits(model, jnp.einsum("vd,rd->vr", model.embedder.input_embedding.get_value(), hidden))


def final_hidden(model: nnx.Module, ids: jax.Array, positions: jax.Array, cache: Any, mask: jax.Array) -> tuple[jax.Array, Any]:
  """(final hidden states [B, L, D], new cache). The model's own logits are not used, so XLA never computes them."""
  _, cache = model(ids, positions, cache, mask, output_hidden_states=True)
  return nnx.pop(model, nnx.Intermediate)["all_hidden_states"].get_value()[-1], cache


def prefill(model: nnx.Module, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, Any]:
  """(final hidden states [B, P, D], KV cache of P columns) of prompts [B, P], padded on the left."""
  b, p = ids.shape
  config = model.config
  kv = jnp.zeros((b, p, config.num_kv_heads, config.head_dim), model.embedder.input_embedding.get_value().dtype)
  cache = {f"layer_{i}": {"k": kv, "v": kv, "end_index": jnp.zeros((b,), jnp.int32)} for i in range(config.num_layers)}
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  return final_hidden(model, ids, positions, cache, jnp.tril(jnp.ones((p, p), bool))[None] & mask[:, None])


def grow_cache(cache: Any, num_generations: int, length: int) -> Any:
  """The cache of B prompts for G completions each [B * G], with `length` more columns."""
  repeat = lambda x: jnp.repeat(x, num_generations, axis=0)
  grow = lambda x: jnp.pad(repeat(x), ((0, 0), (0, length), (0, 0), (0, 0)))
  return {name: {"k": grow(c["k"]), "v": grow(c["v"]), "end_index": repeat(c["end_index"])} for name, c in cache.items()}


def token_logps(model: nnx.Module, batch: Any, temperature: float = 1.0, max_logits: int | None = None) -> jax.Array:
  """Log-probabilities [B * G, T] of the completion tokens under the policy at `temperature`.

  Args:
    model: a policy; call inside jit, split and merged there.
    batch: has prompt_ids, prompt_mask [B, P] (padded left) and completion_ids, completion_mask [B * G, T] (padded right). With
      G > 1 a prompt is run once and its keys and values serve its G completions; see can_share_prompts.
    temperature: logits are divided by it, as the rollout's were.
    max_logits: how many logits a device holds at a time, if not 2^23, 32 MB of a TPU's on-chip memory, 2^19, 2 MB of a CPU's cache, or
      2^26, the fewest that keep a GPU busy.
  Returns:
    float32 [B * G, T]; entries outside the mask are meaningless.
  """
  prompt_mask, targets, mask = batch["prompt_mask"], batch["completion_ids"], batch["completion_mask"]
  (rows, t), (b, p) = targets.shape, prompt_mask.shape
  g = rows // b
  valid = jnp.concatenate([jnp.repeat(prompt_mask, g, axis=0), mask], axis=1)
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  attends = jnp.tril(jnp.ones((p + t, p + t), bool))[None] & valid[:, None]
  if g == 1:
    hidden, _ = final_hidden(model, jnp.concatenate([batch["prompt_ids"], targets], axis=1), positions, None, attends)
    hidden = hidden[:, p - 1:-1]  # position i predicts token i + 1
  else:
    last, cache = prefill(model, batch["prompt_ids"], prompt_mask)
    hidden, _ = final_hidden(model, targets, positions[:, p:], grow_cache(cache, g, t), attends[:, p:])
    hidden = jnp.concatenate([jnp.repeat(last[:, -1:], g, axis=0), hidden[:, :-1]], axis=1)

  own_logits = jnp.einsum("btd,btd->bt", hidden, model.embedder.input_embedding.get_value()[targets], preferred_element_type=jnp.float32)
  return cap_logits(model, own_logits) / temperature - logsumexp(model, hidden, temperature, max_logits)


def logsumexp(model: nnx.Module, hidden: jax.Array, temperature: float, max_logits: int | None) -> jax.Array:
  """log of the sum over the vocabulary of exp(logits / temperature), float32 [B, T], of final hidden states [B, T, D].

  The vocabulary passes in chunks as keys do in FlashAttention (Dao et al. 2022): the logits of a chunk fit into a TPU's on-chip
  memory, and the embedding is read once. A frozen embedding's mean under the policy, which is the slope [B, T, D], is gathered
  on the same way, so that the backward pass has no logits to compute; without a backward pass XLA leaves it out.
  """
  embedding = model.embedder.input_embedding.get_value()
  v, d = embedding.shape
  max_logits = max_logits or {"cpu": 2**19, "gpu": 2**26}.get(jax.devices()[0].platform, 2**23)
  strips = math.gcd(v, 8)  # of each chunk: tp divides the vocabulary among chips, and so divides every chunk
  chunk = max(strips, min(v, max_logits * len(jax.devices()) // math.prod(hidden.shape[:2])))
  while v % chunk or chunk % strips:
    chunk -= 1
  chunks = embedding.reshape(strips, v // chunk, chunk // strips, d)

  def of_chunk(hidden, rows):
    logits = cap_logits(model, jnp.einsum("btd,vd->btv", hidden, rows.reshape(chunk, d), preferred_element_type=jnp.float32))
    return jax.nn.logsumexp(logits / temperature, axis=-1)

  if not jax.tree.leaves(nnx.state(model, nnx.LoRAParam)):  # the embedding is trained, too
    return jax.nn.logsumexp(jax.lax.map(jax.checkpoint(lambda rows: of_chunk(hidden, rows)), jnp.moveaxis(chunks, 1, 0)), axis=0)

  def forward(hidden):
    def add(sums, i):
      rows = jax.lax.dynamic_index_in_dim(chunks, i, axis=1)
      more, pullback = jax.vjp(lambda hidden: of_chunk(hidden, rows), hidden)
      total = jnp.logaddexp(sums[0], more)
      share = lambda part: jnp.exp(part - total)[..., None]
      return (total, share(sums[0]) * sums[1] + share(more) * pullback(jnp.ones_like(more))[0]), None
    nothing = jnp.full(hidden.shape[:2], -jnp.inf), jnp.zeros(hidden.shape, jnp.float32)
    return jax.lax.scan(add, nothing, jnp.arange(v // chunk))[0]

  summed = jax.custom_vjp(lambda hidden: forward(hidden)[0])
  summed.defvjp(forward, lambda slope, gradient: ((slope * gradient[..., None]).astype(hidden.dtype),))
  return summed(hidden)


def can_share_prompts(model: nnx.Module, mesh: jax.sharding.Mesh, batch: Any) -> bool:
  """Whether token_logps may be given each prompt once, for all its completions.

  Tunix's Gemma 3 counts its sliding window in columns from the first of the call, so nothing may fall out of the window;
  and the prompts have to spread over the mesh as the completions do.
  """
  (b, p), t = batch["prompt_ids"].shape, batch["completion_ids"].shape[1]
  return p + t <= model.config.sliding_window_size and b % mesh.shape["fsdp"] == 0


# --- Sampling ---------------------------------------------------------------------------------------------------------


def in_blocks(logits: jax.Array, share: int = 1) -> jax.Array:
  """Logits [V, rows] as blocks of about sqrt(V / share) tokens, [V / block, block, rows], filled up with -inf."""
  vocabulary, rows = logits.shape
  block = 2 ** ((vocabulary // share).bit_length() // 2)
  return jnp.pad(logits, ((0, -vocabulary % block), (0, 0)), constant_values=-jnp.inf).reshape(-1, block, rows)


def draw_tokens(keys: jax.Array, logits: jax.Array) -> jax.Array:
  """Tokens [rows] drawn from softmax(logits [V, rows]), each with its own key [rows].

  Inverts the cumulative distribution, first over blocks of tokens, then in one block: one random number a row, where
  jax.random.categorical takes one for every token of the vocabulary, a third of a decoding step on a CPU.
  """
  blocks = in_blocks(logits)
  weights = jnp.exp(blocks - jnp.max(blocks, axis=(0, 1)))
  below = lambda x, total: jnp.minimum(x, total * (1 - 1e-6))  # rounding never reaches past the last token that has weight
  sums = jnp.cumsum(jnp.sum(weights, axis=1), axis=0)
  drawn = below(jax.vmap(jax.random.uniform)(keys) * sums[-1], sums[-1])
  i = jnp.argmax(sums > drawn, axis=0)
  before = jnp.where(i > 0, jnp.take_along_axis(sums, jnp.maximum(i - 1, 0)[None], axis=0)[0], 0.0)
  tokens = jnp.cumsum(jnp.take_along_axis(weights, i[None, None], axis=0)[0], axis=0)
  return i * blocks.shape[1] + jnp.argmax(tokens > below(drawn - before, tokens[-1]), axis=0)


def most_likely(logits: jax.Array) -> jax.Array:
  """The first of the largest logits [V, rows] of each row: argmax, in two steps for the tenth of the time that one takes a CPU."""
  blocks = in_blocks(logits)
  i = jnp.argmax(jnp.max(blocks, axis=1), axis=0)
  return i * blocks.shape[1] + jnp.argmax(jnp.take_along_axis(blocks, i[None, None], axis=0)[0], axis=0)


def largest(logits: jax.Array, k: int) -> jax.Array:
  """The k largest logits [rows, k] of [V, rows], in falling order; a CPU takes them from the k blocks with the largest maxima, in a tenth of the time."""
  blocks = in_blocks(logits, k)
  if for_cpu() and len(blocks) > k:
    i = jax.lax.top_k(jnp.max(blocks, axis=1).T, k)[1]
    logits = jnp.take_along_axis(blocks, i.T[:, None], axis=0).reshape(-1, logits.shape[1])
  return jax.lax.top_k(logits.T, k)[0]


def likely(logits: jax.Array, top_k: int | None, top_p: float) -> jax.Array:
  """Logits [V, rows] with -inf for all but the `top_k` largest of a row and, of those, the fewest that hold a probability of `top_p`."""
  if top_k is None and top_p == 1:
    return logits
  top = largest(logits, min(top_k or len(logits), len(logits)))
  probabilities = jax.nn.softmax(top, axis=-1)
  kept = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
  return jnp.where(logits < jnp.min(jnp.where(kept, top, jnp.inf), axis=-1), -jnp.inf, logits)


def _sample(graphdef, state, prompt_ids, prompt_mask, keys, temperature, *, num_generations, max_new_tokens, greedy, top_k, top_p, stop_ids, pad_id):
  """Prefills B prompts once, copies their caches to G completions each, and decodes until all have stopped.

  Args:
    prompt_ids, prompt_mask: [B, P], padded on the left.
    keys: [B * G], the noise of each completion.
  Returns:
    ids [B * G, T] padded with pad_id, lengths [B * G] (the stop token counts), log-probabilities [B * G, T] of what was drawn.
  """
  rows = prompt_ids.shape[0] * num_generations
  model = nnx.merge(graphdef, state)
  hidden, cache = prefill(model, prompt_ids, prompt_mask)
  logits = jnp.repeat(decode_logits(model, hidden[:, -1]), num_generations, axis=1)
  cache = grow_cache(cache, num_generations, max_new_tokens)
  prompt_mask = jnp.repeat(prompt_mask, num_generations, axis=0)
  next_position = jnp.sum(prompt_mask, axis=1, keepdims=True)

  def draw(t, logits):
    logits = logits if greedy else logits * (1 / temperature)  # a quotient XLA:CPU would write out once more
    token = most_likely(logits) if greedy else draw_tokens(jax.vmap(functools.partial(jax.random.fold_in, data=t))(keys), likely(logits, top_k, top_p))
    return token, jnp.take_along_axis(logits, token[None], axis=0)[0] - jax.nn.logsumexp(logits, axis=0)

  # Carried without the axis of a single key-value head, or XLA:CPU would write the whole cache anew in every step.
  pack = functools.partial(jax.tree.map, lambda x: x.squeeze(2) if x.ndim == 4 and x.shape[2] == 1 else x)
  unpack = functools.partial(jax.tree.map, lambda x: x[:, :, None] if x.ndim == 3 else x)

  to_state = lambda state: state
  if left := for_cpu() and hidden.dtype == jnp.float32:  # in bfloat16 a weight would round its adapter away
    state, to_state = decoding_weights(state, model.lora_scale)
    state = jax.lax.optimization_barrier(state)  # or XLA would move that into the loop

  def step(carry):
    t, cache, logits, done, ids, lengths, logps = carry
    token, logp = draw(t, logits)
    token = jnp.where(done, pad_id, token)
    ids, logps = ids.at[:, t].set(token), logps.at[:, t].set(jnp.where(done, 0.0, logp))
    lengths = lengths + ~done
    done = done | jnp.isin(token, jnp.array(stop_ids))
    valid = jnp.concatenate([prompt_mask, jnp.broadcast_to(jnp.arange(max_new_tokens) <= t, (rows, max_new_tokens))], axis=1)
    # Merged here, because a module from outside the loop cannot be used at the loop's trace level.
    model = nnx.merge(graphdef, to_state(state))
    LoraProvider.weights_left = left
    try:
      hidden, cache = final_hidden(model, token[:, None], next_position + t, unpack(cache), valid[:, None])
    finally:
      LoraProvider.weights_left = False
    return t + 1, pack(cache), decode_logits(model, hidden[:, -1]), done, ids, lengths, logps

  carry = (0, pack(cache), logits, jnp.zeros(rows, bool), jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
           jnp.zeros(rows, jnp.int32), jnp.zeros((rows, max_new_tokens), jnp.float32))
  carry = jax.lax.while_loop(lambda c: (c[0] < max_new_tokens) & ~c[3].all(), step, carry)
  return carry[4], carry[5], carry[6]


class Completion(NamedTuple):
  """One sampled completion."""
  ids: np.ndarray  # int32 [length], with the stop token if it was reached
  text: str        # decoded, without the stop token
  logps: np.ndarray  # float32 [length], at the sampling temperature, before top_k and top_p
  truncated: bool  # cut off at the length limit


class Sampler:
  """Samples completions from `model` as its weights are at each call."""

  def __init__(self, model: nnx.Module, tokenizer: Any, mesh: jax.sharding.Mesh, max_rows: int = 2**20):
    """At most `max_rows` completions at a time, as check_memory counts them."""
    self.model, self.tokenizer, self.mesh, self.max_rows, self.weights = model, tokenizer, mesh, max_rows, Arrays(model)
    # Closed over, because Tunix's model configs, and so the graph definition, cannot be hashed as a static argument.
    self._sample = jax.jit(
        functools.partial(_sample, nnx.graphdef(model), stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_token_id),
        static_argnames=("num_generations", "max_new_tokens", "greedy", "top_k", "top_p"))

  def __call__(self, prompts: Sequence[list[int]], *, max_prompt_length: int, max_completion_length: int, num_generations: int = 1,
               temperature: float = 0.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0) -> list[Completion]:
    """`num_generations` completions of each prompt, prompt by prompt; temperature 0 is greedy; top_k and top_p as in `likely`.

    The noise is a pure function of `seed` and of a completion's place. Rows are spread over the mesh's fsdp axis.
    """
    devices = self.mesh.shape["fsdp"]
    calls = -(-len(prompts) * num_generations // self.max_rows)
    size = -(-len(prompts) // calls // devices) * devices  # prompts of a call
    # Rows beyond the last repeat the first prompt and are thrown away.
    padded = list(prompts) + [prompts[0]] * (-len(prompts) % size)
    p = bucket(max(map(len, padded)), max_prompt_length)
    ids, mask = pad(padded, p, self.tokenizer.pad_token_id, left=True)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(padded) * num_generations))
    # Arrays alone, so that every merge makes variables of its own: with rematerialisation those of an outer trace cannot be used in the loop.
    state = self.weights.get()
    completions = []
    for start in range(0, len(padded), size):
      part = slice(start, start + size)
      arrays = spread((ids[part], mask[part], keys[start * num_generations:(start + size) * num_generations]), self.mesh)
      with self.mesh:
        out = self._sample(state, *arrays, temperature or 1.0, num_generations=num_generations,
                           max_new_tokens=max_completion_length, greedy=temperature == 0, top_k=top_k, top_p=top_p)
      for row, length, logp in zip(*multihost_utils.process_allgather(out, tiled=True)):
        row, stopped = row[:length], row[length - 1] in self.tokenizer.stop_ids
        text = self.tokenizer.decode(row[:-1] if stopped else row, skip_special_tokens=False)
        completions.append(Completion(row, text, logp[:length], not stopped))
    return completions[: len(prompts) * num_generations]


def ask(sampler: Sampler, prompts: Sequence[str], *, max_completion_length: int, max_prompt_length: int = 2048, batch_size: int = 32) -> list[str | None]:
  """The greedy reply of the sampler's model to each prompt, None for a prompt that is too long: what a rewards.Judge asks with --judge=self."""
  ids = [encode(sampler.tokenizer, data.format_prompt(prompt), bos=True) for prompt in prompts]
  fit = [i for i, x in enumerate(ids) if len(x) <= max_prompt_length]
  replies = [None] * len(prompts)
  for start in range(0, len(fit), batch_size):
    chosen = fit[start:start + batch_size]
    rows = [ids[i] for i in chosen] + [ids[chosen[0]]] * (batch_size - len(chosen))  # always as many rows: one compile
    completions = sampler(rows, max_prompt_length=max_prompt_length, max_completion_length=max_completion_length)
    for i, completion in zip(chosen, completions):
      replies[i] = completion.text
  return replies


# --- Train ------------------------------------------------------------------------------------------------------------


class MasterState(NamedTuple):
  master: Any  # float32 copy of the trained weights, or () if they are float32 themselves
  inner: Any
  grad_norm: jax.Array  # global norm of the whole step's gradient, before clipping


def with_float32_master(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Runs `inner` on float32 master weights and moments, whatever the type of the trained weights.

  In bfloat16 a step of 3e-6 on a weight of 0.05 rounds to nothing. The emitted update takes the stored weight to the
  rounded master. A gradient that is not finite changes nothing: not the weights, not the moments.
  """
  float32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def init(params):
    kept = () if all(x.dtype == jnp.float32 for x in jax.tree.leaves(params)) else float32(params)
    return MasterState(kept, inner.init(float32(params)), jnp.zeros((), jnp.float32))

  def update(grads, state, params=None):
    grads = float32(grads)
    norm = optax.global_norm(grads)
    # Rounding noise, as when all groups of a GRPO step agree: Adam would scale it up to a whole step.
    grads = jax.tree.map(lambda x: jnp.where(norm < 1e-7, 0.0, x), grads)
    master = state.master if jax.tree.leaves(state.master) else params
    updates, new_inner = inner.update(grads, state.inner, master)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(norm), a, b), new, old)
    new_master = keep(optax.apply_updates(master, updates), master)
    updates = jax.tree.map(lambda m, x: m - x.astype(jnp.float32), new_master, params)
    return updates, MasterState(new_master if jax.tree.leaves(state.master) else (), keep(new_inner, state.inner), norm)

  return optax.GradientTransformation(init, update)


def make_optimizer(fv: absl_flags.FlagValues) -> tuple[optax.GradientTransformation, Callable[[int], float]]:
  """(AdamW with clipping on float32 masters, its learning-rate schedule: warm-up, then cosine to a tenth)."""
  warmup = int(fv.max_steps * fv.warmup_fraction)
  # From one part of the peak, not from zero: a step at learning rate zero is a step paid for nothing.
  schedule = optax.warmup_cosine_decay_schedule(fv.learning_rate / (warmup + 1), fv.learning_rate, warmup, fv.max_steps, 0.1 * fv.learning_rate)
  adamw = optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=fv.weight_decay)
  clip = optax.clip_by_global_norm(fv.max_grad_norm) if fv.max_grad_norm else optax.identity()
  return with_float32_master(optax.chain(clip, adamw)), schedule


def jit_train_step(trainer: peft_trainer.PeftTrainer, lora_rank: int) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
  """Compiles Tunix's train step as two programs: the gradient, once for each shape of a batch, and the optimiser's step, once.

  Neither hands back the frozen weights; Tunix's nnx.jit does, a copy of them for every micro-batch. Tunix takes the step from
  create_train_step_fn as it is when `train` is told to skip its own jit. Call once the loss is set.

  Returns:
    functions that lower the gradient of a batch and the optimiser's step, for the plan.
  """
  train_step, model, optimizer, wanted = trainer.create_train_step_fn(), trainer.model, trainer.optimizer, trained_filter(lora_rank)
  graphdefs = nnx.graphdef(model), nnx.graphdef(optimizer)
  trained, frozen, state = Arrays(model, wanted), Arrays(model, nnx.Not(wanted)), Arrays(optimizer)

  @functools.partial(jax.jit, out_shardings=(None, jax.tree.map(lambda x: x.sharding, trained.get())))
  def gradient(trained, frozen, batch):
    kept = types.SimpleNamespace(update=lambda _, grads: setattr(kept, "grads", grads))  # in the optimiser's place
    return train_step(nnx.merge(graphdefs[0], trained, frozen), kept, batch), nnx.to_pure_dict(kept.grads)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def apply(trained, state, frozen, grads):
    model, slope, optimizer = nnx.merge(graphdefs[0], trained, frozen), nnx.merge(graphdefs[0], grads, frozen), nnx.merge(graphdefs[1], state)
    optimizer.update(model, nnx.state(slope, wanted))  # which takes gradients as variables, not as arrays
    return nnx.to_pure_dict(nnx.state(model, wanted)), nnx.to_pure_dict(nnx.state(optimizer))

  def step(batch):
    weights, fixed = trained.get(), frozen.get()
    out, grads = gradient(weights, fixed, batch)
    new_trained, new_state = apply(weights, state.get(), fixed, grads)
    trained.set(new_trained)
    state.set(new_state)
    return out

  def lower_apply():
    return apply.lower(trained.get(), state.get(), frozen.get(), trained.get())  # gradients are shaped and spread like what is trained

  trainer.create_train_step_fn = lambda: step
  return lambda batch: gradient.lower(trained.get(), frozen.get(), batch), lower_apply


def update(trainer: peft_trainer.PeftTrainer, micro_batches: Sequence[Any], train: Callable[[list[Any]], None] | None = None) -> dict[str, float]:
  """One optimiser step of Tunix's trainer (by `train`, default its own), after jit_train_step; returns its metrics, averaged over the micro-batches.

  ValueError if the loss or the gradient is not finite; the weights are then unchanged.
  """
  (train or functools.partial(trainer.train, skip_jit=True))(list(micro_batches))
  # Tunix logs a step while the next one runs; the step just done is in this buffer.
  buffer = trainer._prev_buffered_train_metrics  # pylint: disable=protected-access
  metrics = {"loss": float(buffer.loss)}
  for name, (values, _) in buffer.additional_metrics.items():
    metrics[name] = float(np.mean([np.asarray(v) for v in values]))
  state = trainer.optimizer.opt_state
  state = getattr(state, "inner_opt_state", state)  # inside MultiSteps when gradients are accumulated
  metrics["grad_norm"] = float(np.asarray(state.grad_norm[...]))
  if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
    raise ValueError(f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']} at step {trainer.train_steps}: the checkpoints before "
                     "it are whole; go on from one with a smaller --learning_rate or --max_grad_norm, under another --out")
  return metrics


def sft_loss(model: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
  """Negative log-likelihood of the target tokens, weighted so that a whole step's micro-batches average to its token mean."""
  return -jnp.sum(token_logps(model, batch) * batch["weights"])


# --- Plan -------------------------------------------------------------------------------------------------------------

# Of one JAX device (a chip; a v4 has two): peak bfloat16 FLOP/s and HBM bytes/s as https://cloud.google.com/tpu/docs publishes
# them, and the HBM in GiB that libtpu's compiler lets a program have.
CHIPS = {"v4": (137.5e12, 614e9, 15.25), "v5e": (197e12, 819e9, 15.75), "v5p": (459e12, 2765e9, 95.74), "v6e": (918e12, 1640e9, 31.25)}


class Cost(NamedTuple):
  """What the compiler says of a program, per device."""
  hbm: float  # bytes of arguments, results and temporaries together
  flops: float
  bytes: float  # read from HBM and written to it


def topology_devices(name: str) -> list[Any]:
  """The devices of a TPU topology such as v5e:2x4, good for compiling only; ValueError if it is unknown or libtpu is missing."""
  if name.split(":")[0] not in CHIPS:
    raise ValueError(f"--plan_topology={name} must be CHIP:SHAPE with CHIP one of {', '.join(CHIPS)}, as in v5e:2x4")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError('--plan needs the TPU compiler, though no TPU: pip install "libtpu==0.0.42.*"')
  # libtpu reads these when it is loaded; without them it looks for the machine's own TPU first, and lets one process at a time compile.
  os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-8", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
  from jax.experimental import topologies  # pylint: disable=g-import-not-at-top
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
  except (RuntimeError, NotImplementedError) as e:
    raise ValueError(f"--plan_topology={name}: {str(e).splitlines()[0]}") from e


def abstract_trainer(fv: absl_flags.FlagValues, mesh: jax.sharding.Mesh) -> peft_trainer.PeftTrainer:
  """Tunix's trainer with the model and optimiser that this run would have, as shapes and shardings without values."""
  config, _ = model_from_config(data.config_folder(fv.model), replicate_base=fv.replicate_base, remat="decoder" if fv.remat == "auto" else fv.remat)
  # The trainer is made inside eval_shape, where its optimiser's state costs nothing, and then given what came out.
  dtype, num_micro, made = jnp.dtype("bfloat16" if fv.dtype == "auto" else fv.dtype), fv.batch_size // fv.micro_batch_size, []

  def make():
    model = (gemma2_lib.Gemma if isinstance(config, gemma2_lib.ModelConfig) else gemma3_lib.Gemma3)(config, rngs=nnx.Rngs(params=0))
    nnx.update(model, jax.tree.map(lambda x: x.astype(dtype), nnx.state(model)))
    made.append(peft_trainer.PeftTrainer(add_adapter(model, mesh, fv.lora_rank, fv.lora_alpha, fv.seed), make_optimizer(fv)[0], peft_trainer.TrainingConfig(
        eval_every_n_steps=10**9, gradient_accumulation_steps=num_micro if num_micro > 1 else None)))
    return made[0].model, made[0].optimizer

  nodes = nnx.eval_shape(make)
  made[0].model, made[0].optimizer = nodes
  for node in nodes:
    state = nnx.state(node)
    nnx.update(node, jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, nnx.get_named_sharding(state, mesh)))
  return made[0]


def abstract_batch(fv: absl_flags.FlagValues, mesh: jax.sharding.Mesh, rows: int, **more: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a batch of full length, spread over fsdp: make_batch's, and float32 [rows, *shape] for each name in `more`."""
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)
  sides = {"prompt": fv.max_prompt_length, "completion": fv.max_completion_length}
  return ({f"{side}_ids": array(jnp.int32, n) for side, n in sides.items()} | {f"{side}_mask": array(bool, n) for side, n in sides.items()}
          | {name: array(jnp.float32, *shape) for name, shape in more.items()})


def hbm_bytes(blocks: dict[str, str], entry: str) -> float:
  """Bytes that a computation's instructions, its loops apart, read from and write to HBM. XLA's own count takes on-chip arrays, S(n) in their layout, for memory."""
  size = lambda shape: sum(math.prod(map(int, filter(None, dims.split(",")))) * int((re.search(r"\d+", dtype) or "8")[0]) / 8
                           for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\](?!\{[^}]*S\()", shape))
  on_chip = re.compile(r"S\(\d\)")
  instruction, arguments = r"%(\S+) = (.*?) ([a-z][a-z-]*)\((.*?)\)(.*)", lambda args: re.findall(r"%([\w.-]+)", args)

  def slices(shape, op, i, rest):
    """(shape, operation) of the slices that an instruction takes of its operand i, or None if it takes more."""
    if op != "fusion":
      return [(shape, op)] if i == 0 and re.fullmatch("gather|(dynamic-)?(update-)?slice", op) else None
    fused = blocks[re.search(r"calls=%([\w.-]+)", rest)[1]]
    parameter = re.search(rf"%(\S+) = .* parameter\({i}\)", fused)[1]
    found = [slices(shape, op, k, rest) for _, shape, op, args, rest in re.findall(instruction, fused)
             for k, argument in enumerate(arguments(args)) if argument == parameter]
    return None if None in found else sum(found, [])

  shapes, total = {}, 0.0
  for name, shape, op, args, rest in re.findall(instruction, blocks[entry]):
    shapes[name], results = shape, re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)
    if op.endswith("-start"):  # both ends of a copy, one of them perhaps the whole that a slice is taken from
      total += min(size(on_chip.sub("", x)) for x in results[:2]) * sum(not on_chip.search(x) for x in results[:2])
    elif not re.fullmatch("parameter|constant|tuple|get-tuple-element|bitcast|custom-call|while|.*-done", op):  # custom-call: buffers' names and views
      operands = [shapes[x] for x in arguments(args)]
      for k, j in re.findall(r"\{(\d+)\}: \((\d+), \{\}\)", rest) if op == "fusion" else []:  # handed through while a collective is under way
        results[int(k)] = operands[int(j)] = ""
      for j in range(len(operands)):  # of what is only sliced the slices count, of what is updated in place nothing
        if size(operands[j]) and (used := slices(shape, op, j, rest)):
          operands[j] = " ".join(on_chip.sub("", part) for part, kind in used if "update" not in kind)
          results = [result for result in results if (result, "dynamic-update-slice") not in used]
      total += sum(map(size, results + operands))
  return total


def program_cost(hlo: str) -> np.ndarray:
  """(FLOPs, bytes of HBM) of one device's program. XLA counts a loop's body once; this as often as the loop's condition says."""
  from jaxlib import _hlo, _jax  # pylint: disable=g-import-not-at-top
  client, hlo = jax.local_devices(backend="cpu")[0].client, re.sub(r" stack_frame_id=\d+", "", hlo)
  blocks = {m[1]: m[0].removeprefix("ENTRY ") for m in re.finditer(r"^(?:ENTRY )?%(\S+) \(.*?^}", hlo, re.M | re.S)}

  def cost(entry):
    reached, new = {}, {entry}  # the computation and those it calls: parsing all of them for every loop would take an hour
    while new:
      reached |= {name: blocks[name] for name in new}
      new = {name for block in map(blocks.get, new) for name in re.findall(r"%([\w.-]+)", block) if name in blocks} - set(reached)
    module = "\n\n".join(["HloModule part", *(block for name, block in reversed(reached.items()) if name != entry), "ENTRY " + blocks[entry]])
    properties = _jax.hlo_module_cost_analysis(client, _hlo.hlo_module_from_text(module))
    total = np.array([properties["flops"], hbm_bytes(blocks, entry)])
    for condition, body in re.findall(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)", blocks[entry]):
      trips = max(map(int, re.findall(r" = [su]32\[\]\S* constant\((\d+)\)", blocks[condition])))
      total = total + np.array([trips - 1, trips]) * cost(body)  # XLA's FLOPs have the body once already
    return total

  return cost(re.search(r"^ENTRY %(\S+)", hlo, re.M)[1])


def compile_cost(name: str, lower: Callable[[], Any], mesh: jax.sharding.Mesh) -> Cost:
  """Lowers as on the mesh's own devices, compiles and says how long that took. A program that does not fit has no FLOPs and bytes."""
  print(f"compiling {name} ...", end=" ", flush=True)
  start, devices = time.time(), jax.devices
  jax.devices = lambda *args: list(mesh.devices.flat)  # Tunix leaves activations' shardings out where the first device is a CPU
  try:
    with mesh:
      lowered = lower()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    hbm = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    cost = Cost(hbm, *program_cost(compiled.as_text()))
  except jax.errors.JaxRuntimeError as e:
    used = re.search(r"Used ([\d.]+)G of|\(([\d.]+)G\) exceeds", str(e))
    if "RESOURCE_EXHAUSTED" not in str(e) or not used:
      raise
    cost = Cost(float(used[1] or used[2]) * 2**30, math.nan, math.nan)
  finally:
    jax.devices = devices
  print(f"{time.time() - start:.0f} s, {cost.hbm / 2**30:.2f} GiB", flush=True)
  return cost


def bytes_per_device(tree: Any) -> int:
  """HBM that sharded arrays take on each device."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def plan(fv: absl_flags.FlagValues, mesh: jax.sharding.Mesh, search: bool, rows_per_example: int, phases: Callable[[], dict[str, tuple]]) -> None:
  """Compiles a step's programs for the mesh and prints what they cost, what fits into --max_hours, and the flags to use.

  Args:
    search: look for the largest --micro_batch_size that fits instead of taking the flag's.
    rows_per_example: completions of one example or prompt.
    phases: for the flags as they are then, {phase: (lowers its program, rows, runs in a step, bytes in HBM beside its own)}.
  """
  check_model(data.config_folder(fv.model), fv.max_prompt_length + fv.max_completion_length)
  flops_per_second, bytes_per_second, limit = CHIPS[fv.plan_topology.split(":")[0]]
  limit *= 2**30
  fsdp, costs = mesh.shape["fsdp"], {}

  def update_bytes(size):
    fv.micro_batch_size = size
    lower, rows, _, beside = phases()["update"]
    costs[size] = compile_cost(f"update of {size} x {rows_per_example} ({rows // fsdp} rows per fsdp shard)", lower, mesh)
    return costs[size].hbm + beside

  sizes = [n for n in range(1, fv.batch_size + 1) if fv.batch_size % n == 0 and n * rows_per_example % fsdp == 0] if search else [fv.micro_batch_size]
  used = {size: update_bytes(size) for size in sizes[:2]}
  if len(used) == 2:  # memory grows in proportion to the rows: try what the line through both allows, then less until it compiles
    slope = (used[sizes[1]] - used[sizes[0]]) / (sizes[1] - sizes[0])
    for size in reversed([n for n in sizes[2:] if used[sizes[0]] + slope * (n - sizes[0]) <= limit]):
      used[size] = update_bytes(size)
      if used[size] <= limit:
        break
  fit = [size for size in used if used[size] <= limit]
  if not fit:
    raise ValueError(f"an update of {min(used)} examples needs {min(used.values()) / 2**30:.1f} of {limit / 2**30:.2f} GiB: take a smaller --micro_batch_size, "
                     "--remat=decoder, shorter lengths, another --mesh or no --replicate_base")
  fv.micro_batch_size = max(fit)
  lines, seconds = [], 0.0
  for name, (lower, rows, runs, beside) in phases().items():
    cost = costs[fv.micro_batch_size] if name == "update" else compile_cost(name, lower, mesh)
    if not cost.hbm + beside <= limit:
      raise ValueError(f"the {name} of {rows} rows needs {(cost.hbm + beside) / 2**30:.1f} of {limit / 2**30:.2f} GiB: lower --batch_size or --num_generations, "
                       "or take another --mesh")
    bound = max(cost.flops / flops_per_second, cost.bytes / bytes_per_second)
    seconds += runs * bound
    lines.append(f"{name:10} {rows / fsdp:10.0f} {(cost.hbm + beside) / 2**30:9.2f} {cost.flops / 1e12:8.2f} {cost.bytes / 1e9:8.1f} {cost.bytes / 1e9 / rows * mesh.size:12.2f}"
                 f" {bound:8.3f} {'FLOPs' if bound == cost.flops / flops_per_second else 'bytes'} x {runs}")
  print(f"{fv.model} on {fv.plan_topology}, {limit / 2**30} GiB a device, mesh {dict(mesh.shape)}{', base on every device' * fv.replicate_base}, remat {fv.remat}; "
        f"{fv.batch_size} x {rows_per_example} rows of {fv.max_prompt_length} + {fv.max_completion_length} tokens a step")
  print("per device rows/shard   HBM GiB   TFLOP       GB   GB/row total  seconds at least, and what bounds them x runs in a step", *lines, sep="\n")
  steps = int(fv.max_hours * 3600 / seconds)
  print(f"at most, in {fv.max_hours} hours: {steps} steps, {steps * fv.batch_size * rows_per_example * fv.max_completion_length:,} completion tokens ({seconds:.2f} s a step)")
  print(f"flags: --mesh={fv.mesh}{' --replicate_base' * fv.replicate_base} --remat={fv.remat} --batch_size={fv.batch_size} --micro_batch_size={fv.micro_batch_size} "
        f"--max_prompt_length={fv.max_prompt_length} --max_completion_length={fv.max_completion_length}")


def plan_phases(fv: absl_flags.FlagValues, mesh: jax.sharding.Mesh) -> dict[str, tuple[Callable[[], Any], int, int, int]]:
  """The phases of a step here, for `plan`."""
  trainer = abstract_trainer(fv, mesh).with_loss_fn(sft_loss).with_gen_model_input_fn(lambda batch: {"batch": batch})
  batch = abstract_batch(fv, mesh, fv.micro_batch_size, weights=(fv.max_completion_length,))
  lower_gradient, lower_apply = jit_train_step(trainer, fv.lora_rank)
  _, frozen = nnx.state(trainer.model, trained_filter(fv.lora_rank), ...)
  num_micro = fv.batch_size // fv.micro_batch_size
  return {"update": (lambda: lower_gradient(batch), fv.micro_batch_size, num_micro, bytes_per_device(nnx.state(trainer.optimizer))),
          "optimiser": (lower_apply, fv.micro_batch_size, num_micro, bytes_per_device(frozen))}


# --- Main -------------------------------------------------------------------------------------------------------------


def step_line(step: int, max_steps: int, record: dict[str, float], eta: float) -> str:
  """One terminal line: fields in the record's order, then the time left."""
  fields = "  ".join(f"{k.removeprefix('time/')} {v:.3g}" for k, v in record.items() if k != "step" and v is not None)
  return f"step {step}/{max_steps}  {fields}  left {int(eta // 3600)}:{int(eta % 3600 // 60):02d}:{int(eta % 60):02d}"


@data.script(define_flags)
def main(fv: absl_flags.FlagValues) -> None:
  # --- Setup ---
  started = time.time()
  if not fv.plan:
    start_processes()
  parent_dir, parent = find_checkpoint(fv.init_ckpt) if fv.init_ckpt else (None, {})
  devices, search = topology_devices(fv.plan_topology) if fv.plan else jax.devices(), fv.micro_batch_size is None
  resolve_flags(fv, DEFAULTS, parent, len(devices))
  check_flags(fv)
  mesh = make_mesh(fv.mesh, devices)
  if fv.micro_batch_size % mesh.shape["fsdp"]:
    raise ValueError(f"--micro_batch_size={fv.micro_batch_size} is not a multiple of the mesh's fsdp size {mesh.shape['fsdp']}")
  if fv.plan:
    return plan(fv, mesh, search, 1, lambda: plan_phases(fv, mesh))
  compilations = Compilations()
  run = Run(fv, "sft.py", parent_dir)
  if run.is_finished():
    return
  start = run.started_from()

  # --- Data ---
  folder = data.resolve_model(fv.model)
  check_model(folder, fv.max_prompt_length + fv.max_completion_length)
  check_memory(folder, fv)
  tokenizer = load_tokenizer(folder)
  sets = {}
  for split in ("train", "validation"):
    examples = data.load(fv.data, split, seed=fv.seed, validation_fraction=fv.validation_fraction)
    complete = [e for e in examples if e.reasoning and e.answer]
    if len(complete) < len(examples):
      print(f"{split}: left out {len(examples) - len(complete)} of {len(examples)} examples without reasoning or answer")
    examples, prompts = encode_prompts(tokenizer, complete, fv.max_prompt_length)
    targets = [encode(tokenizer, data.format_target(e))[:None if fv.train_eos else -1] for e in examples]
    fits = [i for i, x in enumerate(targets) if len(x) <= fv.max_completion_length]
    if len(fits) < len(targets):
      print(f"{split}: dropped {len(targets) - len(fits)} targets longer than --max_completion_length={fv.max_completion_length} tokens")
    sets[split] = [(examples[i], prompts[i], targets[i]) for i in fits]
    if len(fits) < fv.batch_size:
      raise ValueError(f"{split} has {len(fits)} usable examples, fewer than --batch_size={fv.batch_size}: "
                       "use more data, a smaller batch or another --validation_fraction")
  train, validation = sets["train"], sets["validation"]
  lengths = np.array([len(p) + len(t) for _, p, t in train])
  steps_per_epoch = len(train) // fv.batch_size
  num_micro = fv.batch_size // fv.micro_batch_size

  def micro_batches(rows: Sequence[tuple[data.Example, list[int], list[int]]]) -> list[dict[str, np.ndarray]]:
    tokens = sum(len(t) for _, _, t in rows)
    out = []
    for i in range(0, len(rows), fv.micro_batch_size):
      part = rows[i:i + fv.micro_batch_size]
      batch = make_batch([p for _, p, _ in part], [t for _, _, t in part], tokenizer.pad_token_id,
                         fv.max_prompt_length, fv.max_completion_length)
      batch["weights"] = batch["completion_mask"].astype(np.float32) * (len(rows) // fv.micro_batch_size) / tokens
      out.append(batch)
    return out

  # --- Model ---
  model = load_model(folder, mesh, dtype=fv.dtype, lora_rank=fv.lora_rank, lora_alpha=fv.lora_alpha, seed=fv.seed,
                     replicate_base=fv.replicate_base, remat=fv.remat)
  if start:
    restore(model, start, fv.lora_rank)
  optimizer, schedule = make_optimizer(fv)
  with mesh:
    trainer = peft_trainer.PeftTrainer(model, optimizer, peft_trainer.TrainingConfig(
        eval_every_n_steps=10**9, gradient_accumulation_steps=num_micro if num_micro > 1 else None,
        checkpoint_root_directory=str(run.folder.absolute() / "actor"), checkpointing_options=run.checkpointing_options()))
  trainer.with_loss_fn(sft_loss).with_gen_model_input_fn(lambda batch: {"batch": batch})
  jit_train_step(trainer, fv.lora_rank)
  trainer.is_managed_externally = True  # this loop, not Tunix's, decides when to stop, save and log
  first = trainer.train_steps
  run.begin(first, batch={"examples_per_step": fv.batch_size, "micro_batches": num_micro, "examples": len(train),
                          "epochs": round(fv.max_steps / steps_per_epoch, 2)})
  trained = sum(x.size for x in jax.tree.leaves(nnx.state(model, trained_filter(fv.lora_rank))))
  print(f"sft: {fv.model}, {trained:,} trained parameters, {len(train)} examples, step {first} to {fv.max_steps} "
        f"({fv.batch_size} examples = {num_micro} micro-batches of {fv.micro_batch_size}), mesh {dict(mesh.shape)}")

  graphdef = nnx.graphdef(model)
  eval_loss = jax.jit(lambda weights, batch: sft_loss(nnx.merge(graphdef, weights), batch))
  sampler = Sampler(model, tokenizer, mesh)

  def validate(step: int) -> dict[str, float]:
    """Token-mean loss on about 64 held-out examples, and format and accuracy of greedy completions of a few prompts."""
    whole_batches = max(1, min(64, len(validation)) // fv.batch_size) * fv.batch_size
    rows = sorted(validation[:whole_batches], key=lambda r: len(r[1]) + len(r[2]))
    total = tokens = 0
    with mesh:
      for i in range(0, len(rows), fv.batch_size):
        part = rows[i:i + fv.batch_size]
        count = sum(len(t) for _, _, t in part)
        total += count * np.mean([float(eval_loss(sampler.weights.get(), b)) for b in spread(micro_batches(part), mesh)])
        tokens += count
    shown = validation[:fv.eval_prompts]
    if not shown:
      return {"validation_loss": float(total / tokens)}
    completions = sampler([p for _, p, _ in shown], max_prompt_length=fv.max_prompt_length, max_completion_length=fv.max_completion_length)
    formats = [rewards.parse(c.text).format for c in completions]
    correct = [rewards.is_correct(c.text, e.answer) for c, (e, _, _) in zip(completions, shown)]
    run.log("samples.jsonl", *({"step": step, "task": e.task, "question": e.question, "answer": e.answer, "completion": c.text,
                                "format": form, "correct": ok}
                               for c, (e, _, _), form, ok in list(zip(completions, shown, formats, correct))[:8]))
    return {"validation_loss": float(total / tokens), "format": float(np.mean([form == "exact" for form in formats])),
            "correct": float(np.mean(correct))}

  # --- Train ---
  ended_because, stop = "max_steps", Stop(started, fv.max_hours)
  step_end = time.time()
  epoch, order = -1, None
  for step in range(first, fv.max_steps):
    if step // steps_per_epoch != epoch:
      epoch = step // steps_per_epoch
      order = length_grouped_order(lengths, fv.batch_size, fv.seed, epoch)
    # Longest first within a step, so that micro-batches are as alike as the batch allows.
    rows = sorted((train[i] for i in order[step % steps_per_epoch]), key=lambda r: -len(r[1]) - len(r[2]))
    with mesh:
      metrics = update(trainer, spread(micro_batches(rows), mesh))
    record = {"step": step + 1, "loss": metrics["loss"], "learning_rate": float(schedule(step)), "grad_norm": metrics["grad_norm"]}
    if (step + 1) % fv.eval_every == 0 or step + 1 == fv.max_steps:
      record.update(validate(step + 1))
    now = time.time()
    record["time/step"], step_end = now - step_end, now
    run.log("metrics.jsonl", record)
    print(step_line(step + 1, fv.max_steps, record, (now - started) / (step + 1 - first) * (fv.max_steps - step - 1)), flush=True)
    if agree(run.is_best(record) or now - run.last_save > fv.save_every_minutes * 60):
      run.checkpoint(trainer)
    reason = stop.reason(record["time/step"], run.save_seconds, first=step == first)
    if reason and step + 1 < fv.max_steps:
      ended_because = reason
      break

  # --- Save ---
  run.checkpoint(trainer, finished=ended_because == "max_steps", ended_because=ended_because)
  trainer.close()
  run.close()
  print(f"saved {run.folder}/actor/{trainer.train_steps} ({ended_because}, {(time.time() - started) / 60:.1f} minutes; {compilations})")
  print(f"next: python grpo.py --stage=math --model={fv.model} --init_ckpt={run.folder}" if ended_because == "max_steps" else
        "next: the same command again continues this run")


if __name__ == "__main__":
  main()
