"""Supervised fine-tuning: teach a model the format <reasoning>…</reasoning><answer>…</answer>.

The first leg of the relay, and what all legs share. In the order of the file:

1. Policy: `policy, trained, frozen = load_policy(...)`. Trained is a LoRA adapter, or with
   --lora_rank=0 every weight. All that runs on the device is a function of these two pytrees.
   Trained weights are float32: in bfloat16 an update of 3e-6 rounds to nothing.
2. Log-probabilities of the completion tokens only, from the final hidden states, the vocabulary in
   chunks: logits [B, P + T, V] never exist. The prompt is read, never learnt.
3. Batches: prompts padded on the left and completions on the right, to one of three lengths, and
   examples of similar length together: little padding, few compiles.
4. Step: gradients of micro-batches add up to that of the mean over the step's target tokens.
5. Run folder: a batch is a pure function of (--seed, step), and a checkpoint holds weights and
   optimiser, so a run that is killed and started again ends in the same numbers.

  python sft.py                                               # tiny model, two CPU cores, a minute
  python sft.py --model=google/gemma-3-1b-it --data=gsm8k     # Kaggle TPU v5e-8

Writes into --out (default runs/sft): run.json, metrics.jsonl, TensorBoard events, actor/<step>/.
Shapes: B prompts, G completions per prompt (here 1), P prompt length, T completion length,
D width, V vocabulary.
"""

import fcntl
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # It warns of a missing PyTorch.

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import qwix
import tensorboardX
from absl import flags as absl_flags
from absl import logging as absl_logging
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from tunix.models.gemma import model as gemma2_lib
from tunix.models.gemma import params_safetensors as gemma2_params
from tunix.models.gemma3 import model as gemma3_lib
from tunix.models.gemma3 import params_safetensors as gemma3_params

import data

# Tunix finds the mesh through `with mesh:`; jax.set_mesh is not the same to it.
warnings.filterwarnings("ignore", message="`with mesh:`", category=DeprecationWarning)

# The projections that the hackathon's judges restore; another path would be another adapter.
LORA_MODULES = ".*q_einsum|.*kv_einsum|.*gate_proj|.*down_proj|.*up_proj|.*attn_vec_einsum"

# tiny is trained from scratch: all weights, a large learning rate, short texts. For Gemma: LoRA of
# rank 64 as in the Tunix demo, and 2e-4, the learning rate of the LoRA paper.
TOPOLOGY, CHIP_GIB = "v5e:2x4", 15.75  # what --plan compiles for: Kaggle's TPU v5e-8
DEFAULTS = {  # flag: (tiny, Gemma)
  "data": ("synthetic:easy", "gsm8k"),
  "lora_rank": (0, 64),
  "lora_alpha": (0.0, 64.0),
  "learning_rate": (4e-3, 2e-4),
  "batch_size": (32, 16),
  "max_steps": (500, 500),
  "max_prompt_length": (32, 256),
  "max_completion_length": (32, 512),
  "eval_every": (125, 100),
}

SHOWN = ("loss", "grad_norm", "validation_loss", "time/step")  # in the terminal


def definers(fv):
  """absl's DEFINE_string, _integer (from 1 up), _float (from 0 up), _enum and _bool on `fv`."""
  bounds = {"integer": {"lower_bound": 1}, "float": {"lower_bound": 0}}
  kinds = ("string", "integer", "float", "enum", "bool")
  functions = [getattr(absl_flags, f"DEFINE_{kind}") for kind in kinds]
  return [
    functools.partial(function, flag_values=fv, **bounds.get(kind, {}))
    for kind, function in zip(kinds, functions, strict=True)
  ]


def define_flags(fv):
  """This script's flags."""
  string, *_ = definers(fv)
  string("out", "runs/sft", "Run folder; the same folder again continues the run.")
  string("init_ckpt", "", "Run or step folder to start from; empty: the untouched base.")
  define_shared_flags(fv, DEFAULTS)


def define_shared_flags(fv, defaults):
  """Flags with the same name and meaning in sft.py and grpo.py; None is filled from `defaults`."""
  string, integer, number, enum, boolean = definers(fv)
  # Model
  string("model", "tiny", "tiny, gemma3-270m, FILE.gguf, a hub id, kaggle:HANDLE, or a folder.")
  enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Base weights; auto: float32 on a CPU.")
  string("mesh", None, "Devices as fsdp,tp (default: all of them,1).")
  boolean("replicate_base", False, "Keep the base weights whole on every chip, not sharded.")
  enum("remat", "auto", ["auto", "none", "block", "decoder"], "Recomputed; auto: none on a CPU.")
  integer("lora_rank", None, "Rank of the adapter; 0 trains all weights.", lower_bound=0)
  number("lora_alpha", None, "The adapter counts alpha / rank.")
  # Data
  string("data", None, "synthetic[:easy], gsm8k, a hub id, a file or folder, task=source,...")
  number("validation_fraction", 0.05, "Share held out.", lower_bound=1e-9, upper_bound=0.99)
  integer("max_prompt_length", None, "Tokens; longer prompts are left out.")
  integer("max_completion_length", None, "Tokens of a completion or target.")
  # Optimisation
  number("learning_rate", None, "Peak; it decays to a tenth.", lower_bound=1e-12)
  number("warmup_fraction", 0.1, "Share of --decay_steps, below 1.", upper_bound=0.99)
  integer("decay_steps", None, "Steps of the schedule (default: --max_steps).")
  integer("batch_size", None, "Prompts of one optimiser step.")
  integer("micro_batch_size", None, "Prompts of one gradient (default: all).")
  integer("max_steps", None, "Optimiser steps.", upper_bound=10**6)
  integer("eval_every", None, "Steps between validations.")
  number("max_hours", 8.5, "The run then saves, ends and says how to go on.")
  number("save_every_minutes", 20.0, "Minutes between checkpoints.")
  integer("seed", 0, "Of order, initialisation, sampling.", lower_bound=0, upper_bound=2**31 - 1)
  boolean("plan", False, f"Compile for {TOPOLOGY}, print GiB per chip and stop; takes no TPU.")
  for name, (tiny, gemma) in defaults.items():
    fv[name].help += f" (default: {tiny} for tiny, {gemma} for Gemma)"


def resolve_flags(fv, defaults, parent, num_devices):
  """Fills flags left open: the adapter's from the parent's run.json, the others from `defaults`."""
  inherited = parent.get("flags", {})
  if inherited and pathlib.Path(inherited["model"]).name != pathlib.Path(fv.model).name:
    raise ValueError(f"--model={fv.model}, but --init_ckpt is of --model={inherited['model']}")
  for name in {"lora_rank", "lora_alpha"} & set(inherited):
    if fv[name].value not in (None, inherited[name]):
      raise ValueError(f"--{name}={fv[name].value}, but --init_ckpt has {inherited[name]}")
    fv[name].value = inherited[name]
  chosen = [name for name in defaults if fv[name].value is None]
  for name in chosen:
    tiny, gemma = defaults[name]
    fv[name].value = tiny if fv.model == "tiny" else gemma
  fv.micro_batch_size = min(fv.micro_batch_size or fv.batch_size, fv.batch_size)
  fv.decay_steps = fv.decay_steps or fv.max_steps
  fv.mesh = fv.mesh or f"{num_devices},1"
  if chosen:
    print("defaults:", *(f"--{name}={fv[name].value}" for name in chosen))


# --- Policy ---


def setup():
  """What every script does first. Of several hosts all compute, and the first one writes."""
  absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax and Tunix warn of what is as it should be.
  jax.config.update("jax_enable_x64", False)
  jax.config.update("jax_compilation_cache_dir", str(data.CACHE / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  is_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  if (address or is_pod) and not jax.distributed.is_initialized():
    numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    jax.distributed.initialize(address, *(n and int(n) for n in numbers))
  if jax.process_index():
    sys.stdout = open(os.devnull, "w")


def make_mesh(fv, rows, devices):
  """The devices as (fsdp, tp) from --mesh; ValueError if a micro-batch's rows do not fit them."""
  try:
    fsdp, tp = (int(n) for n in fv.mesh.split(","))
    mesh = jax.sharding.Mesh(np.array(devices).reshape(fsdp, tp), ("fsdp", "tp"))
  except ValueError:
    raise ValueError(f"--mesh={fv.mesh}: give fsdp,tp with product {len(devices)}") from None
  if fv.batch_size % fv.micro_batch_size:
    raise ValueError(f"--batch_size={fv.batch_size} must be a multiple of --micro_batch_size")
  if rows % fsdp:
    raise ValueError(f"a micro-batch has {rows} rows, no multiple of {fsdp} in --mesh={fv.mesh}")
  return mesh


def spread(batch, mesh):
  """Puts a batch's rows on the mesh's fsdp axis."""
  return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("fsdp")))


def on_cpu():
  return jax.devices()[0].platform == "cpu"


def tunix_config(folder, fv):
  """Tunix's ModelConfig for a folder's config.json; ValueError for what Tunix would run wrongly."""
  c = data.model_config(folder)
  is_gemma2 = c["model_type"] == "gemma2"
  # Tunix's Gemma 2 counts padding as part of the window, which matters once the window is full.
  limit = c["sliding_window"] if is_gemma2 else c["max_position_embeddings"]
  length = fv.max_prompt_length + fv.max_completion_length
  if length > limit:
    raise ValueError(f"--max_prompt_length + --max_completion_length = {length}: at most {limit}")
  layers = c["num_hidden_layers"]
  layer_types = data.layer_types(layers, data.GLOBAL_EVERY[c["model_type"]])
  if c["layer_types"] != layer_types or c["query_pre_attn_scalar"] != c["head_dim"]:
    raise ValueError(f"{folder}: Tunix has no Gemma with such layer_types, query_pre_attn_scalar")
  options = dict(num_layers=layers, num_embed=c["vocab_size"], embed_dim=c["hidden_size"])
  options |= dict(hidden_dim=c["intermediate_size"], num_heads=c["num_attention_heads"])
  options |= dict(num_kv_heads=c["num_key_value_heads"], head_dim=c["head_dim"])
  options |= dict(sliding_window_size=c["sliding_window"])
  if is_gemma2:
    kinds = (gemma2_lib.AttentionType.LOCAL_SLIDING, gemma2_lib.AttentionType.GLOBAL)
    options |= dict(attention_types=tuple(kinds[i % 2] for i in range(layers)))
    options |= dict(use_post_attn_norm=True, use_post_ffw_norm=True)
    options |= dict(final_logit_softcap=c["final_logit_softcapping"])
    config = gemma2_lib.ModelConfig(**options, attn_logits_soft_cap=c["attn_logit_softcapping"])
  else:
    scaling = c.get("rope_scaling") or {}
    options |= dict(global_scale_factor=scaling.get("factor", 1.0))
    options |= dict(local_base_frequency=c["rope_local_base_freq"])
    config = gemma3_lib.ModelConfig(**options, global_base_frequency=c["rope_theta"])
  return set_layout(config, fv)


def set_layout(config, fv):
  """The config with what --replicate_base and --remat say."""
  lib = gemma2_lib if isinstance(config, gemma2_lib.ModelConfig) else gemma3_lib
  remat = fv.remat
  if remat == "auto":
    remat = "none" if on_cpu() else "decoder"
  config.shd_config = lib.ShardingConfig.get_default_sharding(is_sampling=fv.replicate_base)
  config.remat_config = lib.RematConfig[remat.upper()]
  return config


class LoraProvider(qwix.LoraProvider):
  """Qwix's adapter, with [B, L, D] flattened to [B * L, D] before a product on a CPU.

  XLA:CPU transposes both sides of a gradient that sums over two axes, a quarter of its time.
  """

  def dot_general(self, lhs, rhs, dimension_numbers, *args, **kwargs):
    if not on_cpu() or dimension_numbers != (((2,), (0,)), ((), ())):
      return super().dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)
    rows = lhs.reshape(-1, lhs.shape[2])
    out = super().dot_general(rows, rhs, (((1,), (0,)), ((), ())), *args, **kwargs)
    return out.reshape(*lhs.shape[:2], -1)


class Policy(NamedTuple):
  """What makes a model of (trained, frozen), nested dicts of arrays; the same for a whole run."""

  graphdef: nnx.GraphDef
  base: nnx.GraphDef  # of a model without an adapter
  dtype: Any  # of the frozen weights
  lora_scale: float  # of A @ B; 0 without an adapter

  def model(self, trained, frozen):
    """The model, with float32 trained weights rounded to the type of the others. Call in jit."""
    trained = jax.tree.map(lambda x: x.astype(self.dtype), trained)
    return nnx.merge(self.graphdef, trained, frozen)


def add_adapter(model, mesh, fv):
  """The model with a fresh LoRA adapter, which changes nothing yet: its B is zero."""
  rules = []
  if fv.lora_rank:
    rules = [qwix.LoraRule(module_path=LORA_MODULES, rank=fv.lora_rank, alpha=fv.lora_alpha)]
  options = {"rngs": nnx.Rngs(params=fv.seed), **model.get_model_input()}
  with mesh:
    return qwix.apply_lora_to_model(model, LoraProvider(rules), **options)


def split_policy(model, base, fv):
  """(policy, trained, frozen) of a model; `base` is its graphdef before it had an adapter."""
  graphdef, trained, frozen = nnx.split(model, nnx.LoRAParam if fv.lora_rank else nnx.Param, ...)
  dtype = model.embedder.input_embedding.get_value().dtype
  scale = fv.lora_alpha / fv.lora_rank if fv.lora_rank else 0.0
  policy = Policy(graphdef, base, dtype, scale)
  return policy, nnx.to_pure_dict(trained), nnx.to_pure_dict(frozen)


def load_policy(folder, config, mesh, fv):
  """(policy, trained, frozen) of a Gemma 2 or 3 in Hugging Face format, on the mesh."""
  loader = gemma2_params if isinstance(config, gemma2_lib.ModelConfig) else gemma3_params
  dtype = fv.dtype
  if dtype == "auto":
    dtype = "float32" if on_cpu() else "bfloat16"
  try:
    model = loader.create_model_from_safe_tensors(str(folder), config, mesh, jnp.dtype(dtype))
  except Exception as e:  # Tunix and safetensors raise classes of their own for damaged files.
    raise ValueError(f"the weights in {folder} do not load: fetch them again ({e})") from e
  base = nnx.graphdef(model)
  policy, trained, frozen = split_policy(add_adapter(model, mesh, fv), base, fv)
  return policy, jax.tree.map(lambda x: x.astype(jnp.float32), trained), frozen


# --- Log-probabilities ---


def final_hidden(model, ids, positions, cache, mask):
  """(final hidden states [B, L, D], new cache). XLA leaves out the unused logits of the model."""
  _, cache = model(ids, positions, cache, mask, output_hidden_states=True)
  return nnx.pop(model, nnx.Intermediate)["all_hidden_states"].get_value()[-1], cache


def prefill(model, ids, mask):
  """(final hidden states [B, P, D], KV cache of P columns) of prompts padded on the left."""
  b, p = ids.shape
  dtype = model.embedder.input_embedding.get_value().dtype
  kv = jnp.zeros((b, p, model.config.num_kv_heads, model.config.head_dim), dtype)
  layer = {"k": kv, "v": kv, "end_index": jnp.zeros((b,), jnp.int32)}
  cache = {f"layer_{i}": dict(layer) for i in range(model.config.num_layers)}
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  attends = jnp.tril(jnp.ones((p, p), bool))[None] & mask[:, None]
  return final_hidden(model, ids, positions, cache, attends)


def grow_cache(cache, num_generations, length):
  """The cache of B prompts for their B * G completions, with `length` more columns."""

  def grow(x):
    x = jnp.repeat(x, num_generations, axis=0)
    return x if x.ndim == 1 else jnp.pad(x, ((0, 0), (0, length), (0, 0), (0, 0)))

  return jax.tree.map(grow, cache)


def cap_logits(model, logits):
  """Logits in float32; Gemma 2 bends them to stay within a cap."""
  cap = getattr(model, "final_logits_softcap", None)
  logits = logits.astype(jnp.float32)
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def token_logps(model, batch, temperature=1.0):
  """Log-probabilities [B * G, T] of the completion tokens; meaningless outside their mask.

  With G > 1 a prompt is run once, and its keys and values serve its G completions.
  """
  prompt_mask, targets, mask = batch.prompt_mask, batch.completion_ids, batch.completion_mask
  (rows, t), (b, p) = targets.shape, prompt_mask.shape
  g = rows // b
  valid = jnp.concatenate([jnp.repeat(prompt_mask, g, axis=0), mask], axis=1)
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  attends = jnp.tril(jnp.ones((p + t, p + t), bool))[None] & valid[:, None]
  if g == 1:
    ids = jnp.concatenate([batch.prompt_ids, targets], axis=1)
    hidden, _ = final_hidden(model, ids, positions, None, attends)
    hidden = hidden[:, p - 1 : -1]  # Position i predicts token i + 1.
  else:
    last, cache = prefill(model, batch.prompt_ids, prompt_mask)
    cache = grow_cache(cache, g, t)
    hidden, _ = final_hidden(model, targets, positions[:, p:], cache, attends[:, p:])
    first = jnp.repeat(last[:, -1:], g, axis=0)  # The end of the prompt predicts token 0.
    hidden = jnp.concatenate([first, hidden[:, :-1]], axis=1)
  own = model.embedder.input_embedding.get_value()[targets]
  logits = jnp.einsum("btd,btd->bt", hidden, own, preferred_element_type=jnp.float32)
  return cap_logits(model, logits) / temperature - logsumexp(model, hidden, temperature)


def logsumexp(model, hidden, temperature):
  """log of the sum over the vocabulary of exp(logit / temperature), float32 [B, T].

  The vocabulary passes in chunks of log-sum-exp z with a running total Z, as keys do in
  FlashAttention (Dao et al. 2022). The slope is dZ/dh = sum of exp(z - Z) dz/dh over the chunks.
  Where the embedding is frozen, that slope [B, T, D] is all that the backward pass needs, and dz/dh
  is cheapest while a chunk's logits are there: two products with the vocabulary instead of three.
  """
  embedding = model.embedder.input_embedding.get_value()
  # A chunk's logits fit a CPU's cache or a TPU's on-chip memory, or keep a GPU busy.
  count = {"cpu": 2**19, "gpu": 2**26}.get(jax.devices()[0].platform, 2**23)
  limit = count * len(jax.devices()) // math.prod(hidden.shape[:2])
  limit = max(1, min(len(embedding), limit))
  chunk = max(n for n in range(1, limit + 1) if len(embedding) % n == 0)
  chunks = embedding.reshape(-1, chunk, embedding.shape[1])

  def of_chunk(hidden, rows):
    logits = jnp.einsum("btd,vd->btv", hidden, rows, preferred_element_type=jnp.float32)
    return jax.nn.logsumexp(cap_logits(model, logits) / temperature, axis=-1)

  if not jax.tree.leaves(nnx.state(model, nnx.LoRAParam)):  # The embedding is trained, too.
    z = jax.lax.map(jax.checkpoint(lambda rows: of_chunk(hidden, rows)), chunks)
    return jax.nn.logsumexp(z, axis=0)

  def total_and_slope(hidden):
    def add_chunk(so_far, rows):
      total, slope = so_far
      z, pullback = jax.vjp(lambda h: of_chunk(h, rows), hidden)
      new = jnp.logaddexp(total, z)
      kept, added = jnp.exp(total - new)[..., None], jnp.exp(z - new)[..., None]
      return (new, kept * slope + added * pullback(jnp.ones_like(z))[0]), None

    nothing = jnp.full(hidden.shape[:2], -jnp.inf), jnp.zeros(hidden.shape, jnp.float32)
    return jax.lax.scan(add_chunk, nothing, chunks)[0]

  summed = jax.custom_vjp(lambda hidden: total_and_slope(hidden)[0])
  summed.defvjp(total_and_slope, lambda slope, g: ((slope * g[..., None]).astype(hidden.dtype),))
  return summed(hidden)


# --- Batches ---


class Batch(NamedTuple):
  """B prompts, padded on the left, and their B * G completions, padded on the right."""

  prompt_ids: Any  # int32 [B, P]
  prompt_mask: Any  # bool [B, P]
  completion_ids: Any  # int32 [B * G, T]
  completion_mask: Any  # bool [B * G, T]
  weights: Any = None  # float32 [B * G], what each token counts in the step's loss
  # For GRPO, in float32:
  metric_weights: Any = None  # [B * G], what each token counts in the step's metrics
  advantages: Any = None  # [B * G]
  rollout_logps: Any = None  # [B * G, T], as are the next two
  old_logps: Any = None
  reference_logps: Any = None


def load_tokenizer(folder):
  """The folder's Hugging Face tokenizer, with `stop_ids`: the end of a turn and of a text."""
  import transformers  # It is slow to import.

  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
  tokenizer.stop_ids = tuple(sorted({end_of_turn, tokenizer.eos_token_id}))
  return tokenizer


def encode(tokenizer, text):
  """Token ids of `text`; turn markers in it are special tokens."""
  return tokenizer.encode(text, add_special_tokens=False)


def encode_prompt(tokenizer, question):
  return [tokenizer.bos_token_id, *encode(tokenizer, data.format_prompt(question))]


def keep(rows, is_good, why):
  """The rows that are good; prints how many are not and `why`. ValueError when none is left."""
  kept = [row for row in rows if is_good(row)]
  if rows and not kept:
    raise ValueError(f"all {len(rows)} rows were left out: {why}")
  if len(kept) < len(rows):
    print(f"left out {len(rows) - len(kept)} of {len(rows)} rows: {why}")
  return kept


def bucket(length, limit):
  """`length` rounded up to a quarter, a half or all of `limit`: few shapes, so few compiles."""
  return next(size for size in (limit // 4, limit // 2, limit) if length <= size)


def pad(rows, length, value, left=False):
  """Rows as one int32 array [B, length], and the places that they fill, bool [B, length]."""
  ids = np.full((len(rows), length), value, np.int32)
  mask = np.zeros((len(rows), length), bool)
  for i, row in enumerate(rows):
    places = slice(length - len(row), None) if left else slice(len(row))
    ids[i, places] = row
    mask[i, places] = True
  return ids, mask


def make_batch(prompts, completions, pad_id, fv):
  """B prompts and B * G completions, lists of token ids, as a Batch of bucketed lengths."""
  p = bucket(max(map(len, prompts)), fv.max_prompt_length)
  t = bucket(max(map(len, completions)), fv.max_completion_length)
  return Batch(*pad(prompts, p, pad_id, left=True), *pad(completions, t, pad_id))


def length_grouped_order(lengths, batch_size, seed, epoch):
  """Indices [steps, batch_size] of one epoch, shuffled batches of rows of similar length.

  Rows that fill no whole batch are left out, other ones in every epoch.
  """
  rng = np.random.default_rng((seed, epoch))
  order = rng.permutation(len(lengths))[: len(lengths) // batch_size * batch_size]
  size = 32 * batch_size
  for start in range(0, len(order), size):
    window = order[start : start + size]
    order[start : start + size] = window[np.argsort(lengths[window], kind="stable")]
  return rng.permutation(order.reshape(-1, batch_size))


# --- Step ---


def make_schedule(flags):
  """Learning rate by step: linear warm-up, then cosine to a tenth of the peak, where it stays."""
  peak, steps = flags["learning_rate"], flags["decay_steps"]
  warmup = int(steps * flags["warmup_fraction"])
  # It starts at one part of the peak: a step at learning rate zero would be paid for nothing.
  return optax.warmup_cosine_decay_schedule(peak / (warmup + 1), peak, warmup, steps, 0.1 * peak)


def make_optimizer(schedule):
  """AdamW without weight decay, on gradients clipped to norm 1."""
  adamw = optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=0.0)
  return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def init_optimizer(optimizer, trained, mesh):
  """The optimiser's state, spread as the weights are; scalars are on every device."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  state = optimizer.init(trained)
  return jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, everywhere), state)


def make_steps(policy, loss_fn, optimizer, trained, opt_state):
  """The two programs of a training step, for loss_fn(model, batch) -> (loss, metrics).

  grad_step(trained, frozen, batch) -> (gradient, metrics) is compiled for each shape of a batch;
  apply_step(trained, opt_state, gradient) -> (trained, opt_state, norm) reuses its inputs' memory,
  and a gradient that is not finite changes nothing. Results are spread as these inputs are.
  """
  weights, state = jax.tree.map(lambda x: x.sharding, (trained, opt_state))

  @functools.partial(jax.jit, out_shardings=(weights, None))
  def grad_step(trained, frozen, batch):
    def loss(trained):
      return loss_fn(policy.model(trained, frozen), batch)

    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    return grads, {"loss": value, **metrics}

  @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(weights, state, None))
  def apply_step(trained, opt_state, grads):
    norm = optax.global_norm(grads)
    # A norm below 1e-7 is rounding noise, as when all groups agree; Adam would scale it up.
    grads = jax.tree.map(lambda x: jnp.where(norm < 1e-7, 0.0, x), grads)
    updates, new_state = optimizer.update(grads, opt_state, trained)
    new_trained = optax.apply_updates(trained, updates)
    is_finite = jnp.isfinite(norm)

    def keep_finite(new, old):
      return jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, old)

    return keep_finite(new_trained, trained), keep_finite(new_state, opt_state), norm

  return grad_step, apply_step


@functools.partial(jax.jit, donate_argnums=0)
def add(total, more):
  return jax.tree.map(jnp.add, total, more)


def train_step(steps, trained, frozen, opt_state, micro_batches):
  """One optimiser step -> (trained, opt_state, metrics summed over the micro-batches).

  Raises ValueError if loss or gradient is not finite.
  """
  grad_step, apply_step = steps
  parts = (grad_step(trained, frozen, batch) for batch in micro_batches)
  grads, metrics = functools.reduce(add, parts)
  trained, opt_state, metrics["grad_norm"] = apply_step(trained, opt_state, grads)
  metrics = {name: float(x) for name, x in metrics.items()}
  loss, norm = metrics["loss"], metrics["grad_norm"]
  if not math.isfinite(loss + norm):
    raise ValueError(
      f"loss {loss}, gradient norm {norm}: go on from a checkpoint before, which is whole, with a "
      "smaller --learning_rate, under another --out"
    )
  return trained, opt_state, metrics


def sft_loss(model, batch):
  """Negative log-likelihood of the targets; the weights make the step's sum its token mean."""
  return -jnp.sum(token_logps(model, batch) * batch.completion_mask * batch.weights[:, None]), {}


# --- Run folder ---


def step_folders(run):
  """Step folders of a run, oldest first. Orbax renames a folder to its number when it is done."""
  steps = [p for p in (run / "actor").glob("*") if p.name.isdigit()]
  return sorted(steps, key=lambda p: int(p.name))


def find_checkpoint(path):
  """(step folder, run.json) of a run folder's newest step, or of the one step folder named."""
  run = pathlib.Path(path)
  steps = step_folders(run)
  if run.parent.name == "actor":
    run, steps = run.parents[1], [run] if run.is_dir() else []
  if not steps or not (run / "run.json").exists():
    raise ValueError(f"{path} holds no checkpoint with a run.json: train that leg, or name another")
  return steps[-1], json.loads((run / "run.json").read_text())


def restore(step_dir, trained, opt_state=None):
  """The checkpoint's weights and, if one is given, optimiser state, in the place of these.

  Raises ValueError for a damaged checkpoint and for one of another model.
  """
  items = {"model_params": as_saved(trained)}
  if opt_state is not None:
    items["optimizer_state"] = opt_state
  if not is_whole(step_dir, items):
    earlier = [p for p in step_folders(step_dir.parents[1]) if int(p.name) < int(step_dir.name)]
    whole = next((p for p in reversed(earlier) if is_whole(p, items)), None)
    cure = f"{whole} is whole: name it, or remove {step_dir} and start the same command again"
    if whole is None:
      cure = "no earlier step is whole: train again under another --out"
    raise ValueError(f"checkpoint {step_dir} is damaged; {cure}")

  def abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

  with ocp.StandardCheckpointer() as checkpointer:
    saved = checkpointer.metadata(step_dir.absolute() / "model_params").item_metadata.tree
    if shapes(saved) != shapes(items["model_params"]):
      raise ValueError(f"{step_dir} has other names or shapes than this --model and --lora_rank")
    for name, item in items.items():
      path = step_dir.absolute() / name
      items[name] = checkpointer.restore(path, jax.tree.map(abstract, item))
  weights = jax.tree.map(lambda _, leaf: leaf["value"], trained, items["model_params"])
  return weights, items.get("optimizer_state")


def shapes(tree):
  """The shape of each array by its path."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {"/".join(str(k.key) for k in path): tuple(x.shape) for path, x in leaves}


def file_sizes(step_dir, items):
  """Bytes of each file of a checkpoint's items."""
  paths = [path for item in items for path in (step_dir / item).rglob("*") if path.is_file()]
  return {str(path.relative_to(step_dir)): path.stat().st_size for path in paths}


def is_whole(step_dir, items):
  """Whether the items' files are those, and as long, as when they were written."""
  sizes = {}
  if (step_dir / "sizes.json").exists():
    sizes = json.loads((step_dir / "sizes.json").read_text())
  found = file_sizes(step_dir, items)
  if not all((step_dir / item).is_dir() for item in items):
    return False
  return all(found.get(name) == size for name, size in sizes.items() if name.split("/")[0] in items)


def as_saved(trained):
  """The tree that Tunix saves and nnx.state gives: each array under a key "value"."""
  return jax.tree.map(lambda x: {"value": x}, trained)


def read_jsonl(path):
  """The records of a file with one JSON object a line; says how many a crash has damaged."""
  records, damaged = [], 0
  for line in path.read_bytes().split(b"\n") if path.exists() else []:
    try:
      records += [json.loads(line)] if line else []
    except ValueError:
      damaged += 1
  if damaged:
    print(f"{path}: left out {damaged} lines that are no JSON")
  return records


def write_jsonl(path, records):
  """Adds a line for each record."""
  if jax.process_index() == 0:
    with open(path, "a", encoding="utf-8") as f:
      f.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def replace_file(path, text):
  """Writes a file that a kill leaves as it was, or as it is to be."""
  if jax.process_index() == 0:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def same_flag(name, old, new):
  """Whether two run.json have the same flag; a path is the same however it is spelled."""

  def paths(spec, cwd):
    parts = [part.rpartition("=") for part in spec.split(",")]
    return [(task, os.path.realpath(os.path.join(cwd, path))) for task, _, path in parts]

  a, b = old["flags"].get(name), new["flags"][name]
  if a == b or name not in ("model", "data", "init_ckpt"):
    return a == b
  return paths(b, new["cwd"]) in (paths(a, new["cwd"]), paths(a, old["cwd"]))


class Run:
  """A run folder. Of its checkpoints the last two stay, and the best by validation.

  Raises ValueError when another process has the folder, or it holds a run with other flags.
  """

  # Where a run lies, how long it may take and on how many devices does not change its numbers.
  FREE = ("out", "mesh", "max_steps", "decay_steps", "max_hours", "save_every_minutes")

  locks = {}  # this process's, by folder

  def __init__(self, fv, script, step_dir):
    self.fv, self.folder, self.started = fv, pathlib.Path(fv.out), time.time()
    self.folder.mkdir(parents=True, exist_ok=True)
    if str(self.folder) in self.locks:  # A cell that failed keeps its Run alive.
      self.locks.pop(str(self.folder)).close()
    self.lock = open(self.folder / f"run.lock{jax.process_index() or ''}", "w")
    self.locks[str(self.folder)] = self.lock
    try:
      fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f"{fv.out} is in use by another process: name another --out") from None
    packages = ("jax", "flax", "google-tunix", "qwix", "optax", "orbax-checkpoint", "transformers")
    versions = {name: importlib.metadata.version(name) for name in packages}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    self.info = {"script": script, "flags": fv.flag_values_dict(), "cwd": os.getcwd()}
    self.info |= {"parent": fv.init_ckpt or None, "started_from": str(step_dir or "base")}
    self.info |= {"step": 0, "finished": False, "ended_because": None, "hours": 0.0}
    self.info |= {"devices": devices, "versions": versions, "commit": commit()}
    self.old_flags = None
    if (self.folder / "run.json").exists():
      old = json.loads((self.folder / "run.json").read_text())
      self.old_flags = old["flags"]
      for name, value in self.info["flags"].items():
        if name not in self.FREE and not same_flag(name, old, self.info):
          text = f"--{name} was {old['flags'].get(name)}, is {value}"
          raise ValueError(f"{fv.out} holds a run with other flags ({text}): name another --out")
      for name in ("parent", "started_from", "step", "finished", "hours"):
        self.info[name] = old[name]
    elif step_folders(self.folder):
      raise ValueError(f"{fv.out} has checkpoints, but no run.json: name another --out")
    keepers = ocp.checkpoint_managers
    best = keepers.BestN(
      get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=keepers.AnyPreservationPolicy([keepers.LatestN(2), best]),
      enable_async_checkpointing=False,
    )
    self.manager = ocp.CheckpointManager(self.folder.absolute() / "actor", options=options)
    self.hours_before, self.longest_step, self.signal = self.info["hours"], None, None
    self.last_save, self.save_seconds = time.time(), 60.0  # A guess, until there was one.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
          signal.signal(number, self.note_signal)

  def is_finished(self):
    if not self.info["finished"] or self.info["step"] < self.fv.max_steps:
      return False
    print(f"{self.folder} is finished: {self.info['step']} steps. A larger --max_steps goes on.")
    return True

  def started_from(self):
    """The step folder that this leg started from; None is the untouched base.

    The leg before may have gone on since, or moved to where --init_ckpt finds it.
    """
    if self.info["started_from"] == "base":
      return None
    steps = find_checkpoint(self.fv.init_ckpt)[0].parent
    path = steps / pathlib.Path(self.info["started_from"]).name
    if not path.exists():
      raise ValueError(f"{path}, where {self.folder} started, is gone: begin with another --out")
    return path

  def resume(self, trained, opt_state):
    """(step, trained, opt_state) of the newest checkpoint; in a new folder (0, as given).

    Forgets what was logged after that step.
    """
    steps = step_folders(self.folder)
    self.first_step = step = int(steps[-1].name) if steps else 0
    if steps:
      trained, opt_state = restore(steps[-1], trained, opt_state)
    if steps and self.old_flags["decay_steps"] != self.fv.decay_steps:
      was, now = (make_schedule(f)(step) for f in (self.old_flags, self.info["flags"]))
      cure = f"--decay_steps={self.old_flags['decay_steps']} keeps it"
      print(f"the learning rate after step {step} was {was:.2g} and is now {now:.2g}: {cure}")
    for name in ("metrics.jsonl", "samples.jsonl"):
      kept = [record for record in read_jsonl(self.folder / name) if record["step"] <= step]
      lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in kept]
      replace_file(self.folder / name, "".join(lines))
    self.board = tensorboardX.SummaryWriter(
      str(self.folder), purge_step=step + 1, write_to_disk=jax.process_index() == 0
    )
    self.save_info(step=step, finished=False)
    self.loop_started = time.time()
    return step, trained, opt_state

  def save_info(self, **info):
    hours = self.hours_before + (time.time() - self.started) / 3600
    self.info.update(info, hours=round(hours, 4))
    replace_file(self.folder / "run.json", json.dumps(self.info, indent=2) + "\n")

  def log(self, record, shown):
    """Adds a step to metrics.jsonl and TensorBoard, and prints those of its values to be shown."""
    step, total = record["step"], self.fv.max_steps
    write_jsonl(self.folder / "metrics.jsonl", [record])
    known = {name: x for name, x in record.items() if x is not None and name != "step"}
    for name, x in known.items():
      self.board.add_scalar(name, x, step)
    fields = [f"{name.removeprefix('time/')} {known[name]:.3g}" for name in shown if name in known]
    seconds = (time.time() - self.loop_started) / (step - self.first_step) * (total - step)
    left = f"left {int(seconds // 3600)}:{int(seconds // 60 % 60):02d}"
    print(f"step {step}/{total}", *fields, left, sep="  ", flush=True)

  def note_signal(self, number, frame):
    """Lets the step finish and the run save; a second Ctrl-C stops at once."""
    name = signal.Signals(number).name
    if name == self.signal == "SIGINT":
      raise KeyboardInterrupt
    self.signal = name
    print(f"{name}: finishing this step, then saving (Ctrl-C twice stops at once)", flush=True)

  def after_step(self, step, seconds, trained, opt_state, score):
    """Saves when it is due. Returns why the run ends here, or None to go on.

    It is "max_hours" when another step like the longest, and a save, would not fit.
    """
    is_first = self.longest_step is None  # It compiles.
    self.longest_step = 0.0 if is_first else max(self.longest_step, seconds)
    left = self.started + 3600 * self.fv.max_hours - time.time()
    reason = self.signal
    if step >= self.fv.max_steps:
      reason = "max_steps"
    elif reason is None and left < self.longest_step + self.save_seconds:
      reason = "max_hours"
    reasons = [None, "max_hours", "SIGHUP", "SIGINT", "SIGTERM", "max_steps"]
    reason = reasons[agree(reasons.index(reason))]
    is_due = agree(time.time() - self.last_save > 60 * self.fv.save_every_minutes)
    if reason or is_due or score is not None:
      self.checkpoint(step, trained, opt_state, score)
    return reason

  def checkpoint(self, step, trained, opt_state, score):
    """Writes actor/<step> as Tunix does, and then run.json."""
    start = time.time()
    items = {"model_params": as_saved(trained), "optimizer_state": opt_state}
    needed = sum(x.nbytes for x in jax.tree.leaves(items))
    if shutil.disk_usage(self.folder).free < 1.1 * needed:
      raise ValueError(f"no room for step {step} in {self.folder}: free {needed / 1e9:.1f} GB")
    saves = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    metrics = None if score is None else {"score": score}
    self.manager.save(step, args=ocp.args.Composite(**saves), metrics=metrics, force=True)
    step_dir = self.folder / "actor" / str(step)
    replace_file(step_dir / "sizes.json", json.dumps(file_sizes(step_dir, items)))
    self.board.flush()
    self.save_info(step=step)
    self.last_save = time.time()
    self.save_seconds = self.last_save - start

  def end(self, ended_because, next_command):
    """Writes how the run ended and prints what to do next."""
    finished = ended_because == "max_steps"
    self.save_info(finished=finished, ended_because=ended_because)
    self.board.close()
    self.lock.close()
    minutes = (time.time() - self.started) / 60
    print(f"saved {self.folder}/actor/{self.info['step']} ({ended_because}, {minutes:.1f} minutes)")
    print("next:", shlex.join(next_command) if finished else "the same command again goes on")


def agree(number):
  """The largest of all hosts' numbers: they decide alike, each with its own clock and signals."""
  return int(multihost_utils.process_allgather(np.int32(number)).max())


def commit():
  """The commit of these scripts, if they are in a git repository."""
  folder = shlex.quote(str(pathlib.Path(data.__file__).parent))
  text = subprocess.getoutput(f"git -C {folder} rev-parse HEAD")
  return text if len(text) == 40 else None


# --- Plan ---


def plan_devices():
  """The chips of TOPOLOGY, good for compiling only; ValueError where libtpu is missing."""
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError('--plan needs the TPU compiler: pip install "libtpu==0.0.42.*"')
  # libtpu reads these when it is loaded; without them it looks for the machine's own TPU.
  os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
  os.environ.update(TPU_ACCELERATOR_TYPE="v5litepod-8", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
  from jax.experimental import topologies

  return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices


def plan_policy(mesh, fv):
  """(policy, trained, frozen) as load_policy gives them, but shapes only; and Tunix's config."""
  name = pathlib.Path(fv.model).name  # google/gemma-3-1b-it is Tunix's gemma3_1b_it.
  lib = gemma2_lib if name.startswith("gemma-2") else gemma3_lib
  preset = getattr(lib.ModelConfig, name.replace("-", "", 1).replace("-", "_"), None)
  config = set_layout(preset(), fv) if preset else tunix_config(data.resolve_model(fv.model), fv)
  make = gemma2_lib.Gemma if isinstance(config, gemma2_lib.ModelConfig) else gemma3_lib.Gemma3
  dtype = jnp.dtype("bfloat16" if fv.dtype == "auto" else fv.dtype)

  def make_model():
    model = make(config, rngs=nnx.Rngs(params=0))
    nnx.update(model, jax.tree.map(lambda x: x.astype(dtype), nnx.state(model)))
    return model

  def shape(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  model = nnx.eval_shape(lambda: add_adapter(make_model(), mesh, fv))
  state = nnx.state(model)
  nnx.update(model, jax.tree.map(shape, state, nnx.get_named_sharding(state, mesh)))
  base = nnx.graphdef(nnx.eval_shape(make_model))
  policy, trained, frozen = split_policy(model, base, fv)
  return policy, jax.tree.map(lambda x: x.update(dtype=jnp.float32), trained), frozen, config


def plan(fv, mesh, make_programs):
  """Compiles for TOPOLOGY what a step runs, and prints its GiB per chip and whether that fits.

  make_programs(policy, trained, frozen, config) -> {name: (program, arrays)}; a program takes
  trained, frozen and the arrays, whose rows are spread over fsdp.
  """
  # Tunix shards no activations where the first device is a CPU.
  with mock.patch.object(jax, "devices", lambda *_: list(mesh.devices.flat)), mesh:
    policy, trained, frozen, config = plan_policy(mesh, fv)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    beside = 0  # the reference policy and AdamW's two moments
    for x in 3 * jax.tree.leaves(trained):
      beside += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for name, (program, arrays) in make_programs(policy, trained, frozen, config).items():
      shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in jax.tree.leaves(arrays)
      ]
      shapes = jax.tree.unflatten(jax.tree.structure(arrays), shapes)
      try:
        memory = program.lower(trained, frozen, *shapes).compile().memory_analysis()
      except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
          raise
        print(f"{name}: does not fit: {str(e).splitlines()[0]}", flush=True)
        continue
      used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + beside
      used += memory.output_size_in_bytes - memory.alias_size_in_bytes
      verdict = "fits" if used / 2**30 < CHIP_GIB else "does not fit"
      print(f"{name}: {used / 2**30:.2f} of {CHIP_GIB} GiB per chip, {verdict}", flush=True)


# --- Main ---


@data.script(define_flags)
def main(fv):
  # --- Setup ---
  setup()
  step_dir, parent = find_checkpoint(fv.init_ckpt) if fv.init_ckpt else (None, {})
  devices = plan_devices() if fv.plan else jax.devices()
  resolve_flags(fv, DEFAULTS, parent, len(devices))
  mesh = make_mesh(fv, fv.micro_batch_size, devices)
  schedule = make_schedule(fv.flag_values_dict())
  optimizer = make_optimizer(schedule)
  if fv.plan:
    rows = [[0] * fv.max_prompt_length], [[0] * fv.max_completion_length]
    batch = make_batch(*(row * fv.micro_batch_size for row in rows), 0, fv)
    batch = batch._replace(weights=np.ones(fv.micro_batch_size, np.float32))

    def programs(policy, trained, *_):
      return {"update": (make_steps(policy, sft_loss, optimizer, trained, ())[0], (batch,))}

    return plan(fv, mesh, programs)
  run = Run(fv, "sft.py", step_dir)
  if run.is_finished():
    return
  start_dir = run.started_from()

  # --- Data ---
  folder = data.resolve_model(fv.model)
  config = tunix_config(folder, fv)
  tokenizer = load_tokenizer(folder)

  def load(split):
    """(prompt, target) of the split's examples, as token ids."""
    rows = data.load(fv.data, split, seed=fv.seed, validation_fraction=fv.validation_fraction)
    rows = keep(rows, lambda e: e.reasoning and e.answer, f"{split}: no reasoning or answer")
    prompts = [encode_prompt(tokenizer, e.question) for e in rows]
    targets = [encode(tokenizer, data.format_target(e)) for e in rows]
    rows = list(zip(prompts, targets, strict=True))
    for i, flag in enumerate(("max_prompt_length", "max_completion_length")):
      limit = fv[flag].value
      why = f"{split}: longer than --{flag}={limit} tokens; raise it"
      rows = keep(rows, lambda row, i=i, limit=limit: len(row[i]) <= limit, why)
    return rows

  train, validation = load("train"), load("validation")[:64]
  if len(train) < fv.batch_size:
    raise ValueError(f"{len(train)} examples to train on are fewer than --batch_size: lower it")

  def micro_batches(rows):
    """Batches of --micro_batch_size rows, whose losses add up to the mean over all tokens."""
    size = fv.micro_batch_size
    for i in range(0, len(rows), size):
      part = rows[i : i + size]
      part += [(part[0][0], [])] * (size - len(part))  # Rows without a target count nothing.
      batch = make_batch(*zip(*part, strict=True), tokenizer.pad_token_id, fv)
      weights = np.full(size, 1 / sum(len(target) for _, target in rows), np.float32)
      yield spread(batch._replace(weights=weights), mesh)

  # --- Model ---
  policy, trained, frozen = load_policy(folder, config, mesh, fv)
  if start_dir:
    trained, _ = restore(start_dir, trained)
  first, trained, opt_state = run.resume(trained, init_optimizer(optimizer, trained, mesh))
  steps = make_steps(policy, sft_loss, optimizer, trained, opt_state)

  @jax.jit
  def eval_loss(trained, frozen, batch):
    return sft_loss(policy.model(trained, frozen), batch)[0]

  size = sum(x.size for x in jax.tree.leaves(trained))
  print(f"sft: {fv.model}, {size:,} trained parameters, {len(train)} examples, mesh {fv.mesh}")

  # --- Train ---
  lengths = np.array([len(prompt) + len(target) for prompt, target in train])
  steps_per_epoch = len(train) // fv.batch_size
  epoch, order, reason = None, None, "max_steps"
  for step in range(first + 1, fv.max_steps + 1):
    start = time.time()
    if (step - 1) // steps_per_epoch != epoch:
      epoch = (step - 1) // steps_per_epoch
      order = length_grouped_order(lengths, fv.batch_size, fv.seed, epoch)
    chosen = order[(step - 1) % steps_per_epoch]
    rows = [train[i] for i in chosen[np.argsort(lengths[chosen], kind="stable")]]
    state = trained, frozen, opt_state
    with mesh:
      trained, opt_state, metrics = train_step(steps, *state, micro_batches(rows))
    record = {"step": step, "learning_rate": float(schedule(step - 1)), **metrics}
    score = None
    if step % fv.eval_every == 0 or step == fv.max_steps:
      with mesh:
        losses = [float(eval_loss(trained, frozen, batch)) for batch in micro_batches(validation)]
      record["validation_loss"] = sum(losses)
      score = -sum(losses)
    record["time/step"] = time.time() - start
    run.log(record, SHOWN)
    reason = run.after_step(step, record["time/step"], trained, opt_state, score)
    if reason:
      break

  # --- Save ---
  next_flags = ["--stage=math", f"--model={fv.model}", f"--init_ckpt={fv.out}"]
  run.end(reason, ["python", "grpo.py", *next_flags])


if __name__ == "__main__":
  main()
