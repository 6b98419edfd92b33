"""GRPO: reinforce the completions of a group that are better than their siblings.

The second and third leg of the relay, one script: first mathematics, then everything.
(Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300). In the order of the file:

1. Rollout: a prompt is run once for its G completions. A completion that stopped keeps its stop
   token, and is trained on it; one cut off at the limit has none. The noise of a completion is a
   pure function of --seed, step and place, and so are the prompts of a step.
2. Advantage: (reward - group mean) / (group standard deviation + 1e-4). --advantage=mean leaves
   the division out (Dr. GRPO, https://arxiv.org/abs/2503.20783), rloo takes the others' mean.
3. Loss: the mean over a completion's tokens, then over completions (eq. 3), of the clipped ratio
   and, times beta, the k3 estimate of the KL divergence (eq. 4). Tunix's default, k1, has an
   expected gradient of zero. --loss_aggregation, --epsilon_high and --importance: DAPO's token
   mean and asymmetric clip (https://arxiv.org/abs/2503.14476), Dr. GRPO's constant denominator,
   GSPO-token (https://arxiv.org/abs/2507.18071).
4. The reference policy is `trained` from before the loop, the weights this leg started from; KL to
   the untouched base would pull against the leg before.
5. The old policy is the trainer's own forward pass at the rollout's temperature, so at the first of
   the --num_iterations updates of a rollout the ratio is 1.

  python grpo.py --stage=math                            # from runs/sft to runs/math
  python grpo.py --stage=mixed --init_ckpt=runs/math     # 80% other tasks + 20% mathematics

Writes into --out (default runs/math or runs/mixed): run.json, metrics.jsonl, samples.jsonl,
TensorBoard events, actor/<step>/.
Shapes: B prompts, G completions per prompt, P prompt length, T completion length, V vocabulary.
"""

import functools
import math
import time
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.experimental import multihost_utils

import data
import rewards
import sft

# tiny trains all its weights: large steps, wide groups, and a temperature below 1, at which less of
# a step goes into what is right already. Gemma's rate is ten times the 1e-6 usual for all weights.
DEFAULTS = {  # flag: (tiny, Gemma)
  "data": ("synthetic:easy", "gsm8k"),
  "lora_rank": (0, 64),
  "lora_alpha": (0.0, 64.0),
  "learning_rate": (2e-4, 1e-5),
  "batch_size": (32, 4),
  "micro_batch_size": (8, None),
  "num_generations": (8, 4),
  "max_steps": (150, 500),
  "temperature": (0.7, 0.9),
  "max_prompt_length": (32, 256),
  "max_completion_length": (32, 512),
  "beta": (0.04, 0.1),
  "skip_zero_variance": (True, False),
  "eval_every": (10, 50),
}
MIXED_DEFAULTS = {  # where the mixed stage differs
  "data": (
    "synthetic:easy",
    "math=gsm8k,logic=ChilleD/StrategyQA,other=databricks/databricks-dolly-15k",
  ),
  "learning_rate": (1e-4, 1e-5),
  "max_steps": (60, 500),
}
SHOWN = (  # in the terminal
  "reward correct format kl entropy completion_length truncated zero_variance grad_norm "
  "judge/neutral validation_reward validation_correct time/step"
).split()
PARENT = {"math": "runs/sft", "mixed": "runs/math"}  # the leg that a stage starts from


def define_flags(fv):
  """This script's flags."""
  string, integer, number, enum, boolean = sft.definers(fv)
  # Stage
  enum("stage", "math", ["math", "mixed"], "The mathematics of --data, or those and all others.")
  string("out", None, "Run folder; the same continues the run (default: runs/math, runs/mixed).")
  string("init_ckpt", None, "Where to start; empty: the base (default: runs/sft, runs/math).")
  number("math_fraction", 0.2, "Of the mixed stage.", upper_bound=1)
  boolean("curriculum", False, "Mathematics by solution steps, laid out for --max_steps.")
  # Reward
  enum("preset", "router", list(rewards.PRESETS), "Which components count, by task.")
  string("reward_weights", "", "Overrides the preset's, as in format=0.3,correctness=0.5.")
  rewards.define_judge_flags(fv)
  # GRPO
  integer("num_generations", None, "G, completions per prompt.", lower_bound=2)
  integer("num_iterations", 1, "mu, optimiser steps on each rollout.")
  number("beta", None, "Weight of the KL divergence; 0: no reference policy.")
  number("epsilon", 0.2, "Clip range of the ratio, below 1 and above.", lower_bound=1e-9)
  number("epsilon_high", None, "Clip range above 1 (default: --epsilon).", lower_bound=1e-9)
  enum("advantage", "std", ["std", "mean", "rloo"], "What a reward is compared with.")
  enum("loss_aggregation", "sequence", ["sequence", "token", "constant"], "Which mean of tokens.")
  enum("importance", "token", ["token", "sequence"], "Ratio by token, or GSPO-token's.")
  boolean("mask_truncated", False, "Leave completions that were cut off out of the loss.")
  boolean("skip_zero_variance", None, "Leave groups with equal rewards out of the update.")
  number("temperature", None, "Of sampling; the loss has it, too.", lower_bound=0.01)
  integer("rollout_batch_size", None, "Prompts sampled at a time (default: all).")
  integer("eval_prompts", 64, "Held-out prompts of a validation; 0: none.", lower_bound=0)
  sft.define_shared_flags(fv, DEFAULTS)
  for name, (tiny, gemma) in MIXED_DEFAULTS.items():
    fv[name].help += f" (mixed: {tiny}, {gemma})"


# --- Rollout ---


# How A [..., rank] and B [rank, ...] multiply to the weight of a projection.
ADAPTER_PRODUCTS = {
  "q_einsum": "dr,rnh->ndh",
  "kv_einsum": "dr,rcnh->cndh",
  "qkv_einsum": "dr,rcnh->cndh",
  "attn_vec_einsum": "nhr,rd->nhd",
}  # of the others: "dr,rf->df"


def merge_adapter(trained, frozen, scale):
  """The frozen weights with scale * A @ B of the trained adapter added to each projection.

  For float32: bfloat16 would round a small adapter away.
  """
  weights, adapter = traverse_util.flatten_dict(frozen), traverse_util.flatten_dict(trained)
  for (*module, name), a in adapter.items():
    if name.endswith("_lora_a"):
      weight = (*module, name.removesuffix("_lora_a"))
      b = adapter[(*module, name.removesuffix("a") + "b")]
      product = jnp.einsum(ADAPTER_PRODUCTS.get(module[-1], "dr,rf->df"), a, b)
      weights[weight] = weights[weight] + scale * product
  return traverse_util.unflatten_dict(weights)


def draw_tokens(keys, logits):
  """Tokens [rows] from softmax(logits [rows, V]), by the inverse of the cumulative distribution.

  It takes one random number a row, by its key; Gumbel noise would take V.
  """
  rows, vocabulary = logits.shape
  block = math.gcd(vocabulary, 512)
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True)).reshape(rows, -1, block)
  sums = jnp.cumsum(jnp.sum(weights, axis=2), axis=1)
  # Rounding never reaches past the last token that has weight.
  drawn = jax.vmap(jax.random.uniform)(keys)[:, None] * sums[:, -1:] * (1 - 1e-6)
  i = jnp.argmax(sums > drawn, axis=1)[:, None]
  before = jnp.where(i > 0, jnp.take_along_axis(sums, jnp.maximum(i - 1, 0), axis=1), 0.0)
  tokens = jnp.cumsum(jnp.take_along_axis(weights, i[..., None], axis=1)[:, 0], axis=1)
  within = jnp.minimum(drawn - before, tokens[:, -1:] * (1 - 1e-6))
  return i[:, 0] * block + jnp.argmax(tokens > within, axis=1)


class Decoding(NamedTuple):
  """How completions are drawn."""

  num_generations: int = 1
  temperature: float = 0.0  # 0 is greedy
  top_k: int | None = None
  top_p: float = 1.0


def likely(logits, top_k, top_p):
  """Logits [rows, V], -inf but for the top_k largest and, of those, the fewest that hold top_p."""
  if top_k is None and top_p == 1:
    return logits
  top = jax.lax.top_k(logits, min(top_k or logits.shape[1], logits.shape[1]))[0]
  probabilities = jax.nn.softmax(top, axis=-1)
  kept = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
  smallest = jnp.min(jnp.where(kept, top, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < smallest, -jnp.inf, logits)


def sample(policy, trained, frozen, prompts, prompt_mask, noise, *, decoding, limit, tokenizer):
  """Runs prompts once, copies their caches to G completions each, and decodes.

  Args:
    prompts, prompt_mask: [B, P], padded on the left.
    noise: int32 [B * G, 2], seed and place of each completion, which its tokens are drawn by.
    limit: T; decoding ends before, when all completions have stopped.
  Returns:
    ids [B * G, T]; lengths [B * G], with the stop token; and log-probabilities [B * G, T] of what
    was drawn, at the temperature, before top_k and top_p.
  """
  g = decoding.num_generations
  keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(n[0]), n[1]))(noise)
  rows = len(prompts) * g
  model = policy.model(trained, frozen)
  hidden, cache = sft.prefill(model, prompts, prompt_mask)
  cache = sft.grow_cache(cache, g, limit)
  prompt_mask = jnp.repeat(prompt_mask, g, axis=0)
  next_position = jnp.sum(prompt_mask, axis=1, keepdims=True)
  is_merged = policy.dtype == jnp.float32 and policy.lora_scale
  if is_merged:
    # The barrier keeps XLA from merging once more in every step.
    frozen = jax.lax.optimization_barrier(merge_adapter(trained, frozen, policy.lora_scale))

  def draw(t, logits):
    if decoding.temperature == 0:
      return jnp.argmax(logits, axis=1)
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
    return draw_tokens(step_keys, likely(logits, decoding.top_k, decoding.top_p))

  def step(carry):
    t, cache, hidden, done, ids, lengths, logps = carry
    model = nnx.merge(policy.base, frozen) if is_merged else policy.model(trained, frozen)
    embedding = model.embedder.input_embedding.get_value()
    logits = sft.cap_logits(model, jnp.einsum("rd,vd->rv", hidden, embedding))
    logits = logits / (decoding.temperature or 1.0)
    token = draw(t, logits)
    logp = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    logp = jnp.where(done, 0.0, logp - jax.nn.logsumexp(logits, axis=1))
    token = jnp.where(done, tokenizer.pad_token_id, token)
    ids, logps, lengths = ids.at[:, t].set(token), logps.at[:, t].set(logp), lengths + ~done
    done = done | jnp.isin(token, jnp.array(tokenizer.stop_ids))
    new = jnp.broadcast_to(jnp.arange(limit) <= t, (rows, limit))
    valid = jnp.concatenate([prompt_mask, new], axis=1)[:, None]
    places = next_position + t
    hidden, cache = sft.final_hidden(model, token[:, None], places, unpack(cache), valid)
    return t + 1, pack(cache), hidden[:, -1], done, ids, lengths, logps

  # A single key-value head is carried without its axis: XLA:CPU would copy the cache otherwise.
  def pack(cache):
    return jax.tree.map(lambda x: x[:, :, 0] if x.ndim == 4 and x.shape[2] == 1 else x, cache)

  def unpack(cache):
    return jax.tree.map(lambda x: x[:, :, None] if x.ndim == 3 else x, cache)

  ids = jnp.full((rows, limit), tokenizer.pad_token_id, jnp.int32)
  nothing = jnp.zeros(rows, bool), ids, jnp.zeros(rows, jnp.int32), jnp.zeros((rows, limit))
  carry = 0, pack(cache), jnp.repeat(hidden[:, -1], g, axis=0), *nothing
  carry = jax.lax.while_loop(lambda c: (c[0] < limit) & ~c[3].all(), step, carry)
  return carry[4:]


class Completion(NamedTuple):
  """One sampled completion."""

  ids: np.ndarray  # int32 [length], with the stop token if it was reached
  text: str  # without the stop token
  logps: np.ndarray  # float32 [length], see `sample`
  truncated: bool  # cut off at the length limit


class Sampler:
  """Samples completions from a policy (trained, frozen)."""

  def __init__(self, policy, tokenizer, mesh, fv):
    """Lengths are the flags'; at most --rollout_batch_size prompts are run at a time."""
    self.tokenizer, self.mesh, self.fv = tokenizer, mesh, fv
    options = dict(limit=fv.max_completion_length, tokenizer=tokenizer)
    self.sample = jax.jit(functools.partial(sample, policy, **options), static_argnames="decoding")

  def __call__(self, trained, frozen, prompts, decoding, seed=0):
    """The completions of each prompt, prompt by prompt; a pure function of `seed` and place."""
    g, shards = decoding.num_generations, self.mesh.shape["fsdp"]
    size = min(len(prompts), self.fv.rollout_batch_size or len(prompts))
    size = -(-size // shards) * shards
    padded = list(prompts) + [prompts[0]] * (-len(prompts) % size)  # Thrown away at the end.
    length = sft.bucket(max(map(len, padded)), self.fv.max_prompt_length)
    ids, mask = sft.pad(padded, length, self.tokenizer.pad_token_id, left=True)
    noise = np.array([(seed, place) for place in range(len(padded) * g)], np.int32)
    completions = []
    for i in range(0, len(padded), size):
      batch = ids[i : i + size], mask[i : i + size], noise[i * g : (i + size) * g]
      with self.mesh:
        batch = sft.spread(batch, self.mesh)
        out = self.sample(trained, frozen, *batch, decoding=decoding)
      for row, n, logps in zip(*multihost_utils.process_allgather(out, tiled=True), strict=True):
        stopped = bool(row[n - 1] in self.tokenizer.stop_ids)
        text = self.tokenizer.decode(row[: n - stopped], skip_special_tokens=False)
        completions.append(Completion(row[:n], text, logps[:n], not stopped))
    return completions[: len(prompts) * g]


# --- Reward and advantage ---


def ask(sampler, trained, frozen, questions):
  """A policy's greedy replies to a judge's questions; None where one is too long."""
  ids = [sft.encode_prompt(sampler.tokenizer, question) for question in questions]
  fits = [len(x) <= sampler.fv.max_prompt_length for x in ids]
  short = [x for x, is_short in zip(ids, fits, strict=True) if is_short]
  if not short:
    return [None] * len(ids)
  short += short[:1] * (-len(short) % sampler.fv.rollout_batch_size)  # One shape, one compile.
  replies = iter(sampler(trained, frozen, short, Decoding()))
  return [next(replies).text if is_short else None for is_short in fits]


def grade(reward_fns, completions, examples):
  """Of one completion per example: (weighted reward components [rows] by name, metrics)."""
  texts = [c.text for c in completions]
  prompts = [data.format_prompt(e.question) for e in examples]
  columns = {name: [getattr(e, name) for e in examples] for name in ("answer", "task", "question")}
  components = {f.__name__: np.array(f(prompts, texts, **columns)) for f in reward_fns}
  pairs = [(text, e) for text, e in zip(texts, examples, strict=True) if e.checkable]
  correct = [rewards.is_correct(text, e.answer, e.question) for text, e in pairs]
  lengths = [len(c.ids) for c in completions]
  metrics = {
    "reward": float(sum(components.values()).mean()),
    **{f"reward/{name}": float(x.mean()) for name, x in components.items()},
    "correct": float(np.mean(correct)) if correct else None,
    "format": float(np.mean([rewards.parse(text).format == "exact" for text in texts])),
    "completion_length": float(np.mean(lengths)),
    "truncated": float(np.mean([c.truncated for c in completions])),
    "tokens": sum(lengths),
  }
  return components, metrics


def group_advantages(reward, num_generations, how="std"):
  """Advantages [B * G] of rewards [B * G], group by group; `how` as --advantage."""
  groups = reward.reshape(-1, num_generations)
  advantages = groups - groups.mean(axis=1, keepdims=True)
  if how == "std":
    advantages /= groups.std(axis=1, ddof=1, keepdims=True) + 1e-4
  elif how == "rloo":  # r - mean of the others
    advantages *= num_generations / (num_generations - 1)
  return advantages.reshape(-1).astype(np.float32)


def agreeing_groups(reward, num_generations):
  """Whether all rewards of a group are equal, bool [B]: it then has no policy gradient."""
  return np.ptp(reward.reshape(-1, num_generations), axis=1) == 0


def token_weight(lengths, aggregation, limit):
  """What each token of the step's completions [B * G] counts in the loss, a mean over:"""
  if aggregation == "sequence":  # a completion's tokens, then completions (GRPO)
    return 1.0 / (len(lengths) * np.maximum(1, lengths))
  if aggregation == "token":  # all tokens of the step (DAPO)
    return np.full(len(lengths), 1.0 / max(1, lengths.sum()))
  return np.full(len(lengths), 1.0 / (len(lengths) * limit))  # as if all were cut off (Dr. GRPO)


def can_share_prompts(config, mesh, batch):
  """Whether sft.token_logps may be given each prompt once, for all its completions.

  Tunix's Gemma 3 counts its sliding window in columns of the call, so all columns have to fit it;
  and the prompts have to spread over the mesh as the completions do.
  """
  (b, p), t = batch.prompt_ids.shape, batch.completion_ids.shape[1]
  return p + t <= config.sliding_window_size and b % mesh.shape["fsdp"] == 0


def make_micro_batches(prompts, completions, reward, config, mesh, pad_id, fv):
  """A step's rollout, B prompts and B * G completions, as batches of --micro_batch_size prompts.

  With --skip_zero_variance, groups of equal rewards, which have no policy gradient, are left out;
  some may fill the last batch and count nothing. The loss is divided by all groups all the same.
  """
  g, size = fv.num_generations, fv.micro_batch_size
  lengths = np.array([len(c.ids) for c in completions])
  equal = agreeing_groups(reward, g)
  groups = np.arange(len(prompts))
  counted = np.ones(len(completions), bool)
  if fv.skip_zero_variance:
    full = max(1, -(-int((~equal).sum()) // size))
    groups = np.argsort(equal, kind="stable")[: full * size]  # Those that differ come first.
    counted = np.repeat(~equal, g)
  weight = counted * token_weight(lengths, fv.loss_aggregation, fv.max_completion_length)
  if fv.mask_truncated:
    weight *= [not c.truncated for c in completions]
  metric_weight = counted / max(1, lengths[counted].sum())
  advantages = group_advantages(reward, g, fv.advantage)
  # Groups of similar length share a batch.
  groups = groups[np.argsort(lengths.reshape(-1, g).max(axis=1)[groups], kind="stable")]
  batches = []
  for chosen in groups.reshape(-1, size):
    rows = (chosen[:, None] * g + np.arange(g)).reshape(-1)
    ids = [prompts[i] for i in chosen], [completions[i].ids for i in rows]
    batch = sft.make_batch(*ids, pad_id, fv)
    rollout_logps = np.zeros(batch.completion_mask.shape, np.float32)
    rollout_logps[batch.completion_mask] = np.concatenate([completions[i].logps for i in rows])
    if not can_share_prompts(config, mesh, batch):
      prompt_ids, prompt_mask = (np.repeat(x, g, axis=0) for x in batch[:2])
      batch = batch._replace(prompt_ids=prompt_ids, prompt_mask=prompt_mask)
    batch = batch._replace(
      weights=weight[rows].astype(np.float32),
      metric_weights=metric_weight[rows].astype(np.float32),
      advantages=advantages[rows],
      rollout_logps=rollout_logps,
    )
    batches.append(batch)
  return batches


# --- Loss ---


def policy_loss(model, batch, fv):
  """A micro-batch's part of the step's loss, and of its token-mean metrics.

  The weights carry the mean over the whole step, so the parts add up to it however it was cut.
  """
  mask = batch.completion_mask
  logps = sft.token_logps(model, batch, fv.temperature)
  old = jax.lax.stop_gradient(logps) if batch.old_logps is None else batch.old_logps
  log_ratio = logps - old
  if fv.importance == "sequence":  # the completion's mean ratio, with each token's own gradient
    mean = jnp.mean(log_ratio, axis=1, keepdims=True, where=mask)
    log_ratio = jax.lax.stop_gradient(mean - logps) + logps
  ratio = jnp.exp(log_ratio)
  epsilon_high = fv.epsilon if fv.epsilon_high is None else fv.epsilon_high
  clipped = jnp.clip(ratio, 1 - fv.epsilon, 1 + epsilon_high)
  advantage = batch.advantages[:, None]
  loss = -jnp.minimum(ratio * advantage, clipped * advantage)
  kl = jnp.zeros_like(loss)
  if fv.beta:
    difference = batch.reference_logps - logps
    kl = jnp.exp(difference) - difference - 1  # k3, never negative (Schulman 2020)
    loss += fv.beta * kl
  metrics = {
    "kl": kl,
    "clip_fraction": ratio * advantage > clipped * advantage,
    "entropy": -logps,
    "rollout_difference": jnp.abs(old - batch.rollout_logps),
  }
  share = mask * batch.metric_weights[:, None]
  metrics = {name: jnp.sum(x * share) for name, x in metrics.items()}
  return jnp.sum(jnp.where(mask, loss, 0.0) * batch.weights[:, None]), metrics


# --- Main ---


def load_examples(tokenizer, fv, split):
  """[(examples, share)] of mathematics and, in the mixed stage, of the rest; prompts that fit.

  Raises ValueError if --data has no rows for the stage.
  """
  examples = data.load(fv.data, split, seed=fv.seed, validation_fraction=fv.validation_fraction)
  limit = fv.max_prompt_length
  why = f"{split}: longer than --max_prompt_length={limit} tokens; raise it"

  def fits(example):
    return len(sft.encode_prompt(tokenizer, example.question)) <= limit

  maths = [e for e in examples if e.task == "math" and e.answer]
  parts = [(maths, 1.0)]
  if fv.stage == "mixed":
    others = [e for e in examples if e.task != "math"]
    parts = [(maths, fv.math_fraction), (others, 1 - fv.math_fraction)]
  parts = [(rows, share) for rows, share in parts if share]
  if not all(rows for rows, _ in parts):
    raise ValueError(
      f"--data={fv.data} has {len(maths)} {split} rows of mathematics with an answer, and "
      f"{len(examples)} in all; --stage={fv.stage} needs more: name a task, as in "
      "--data=math=FILE, or add a source"
    )
  return [(sft.keep(rows, fits, why), share) for rows, share in parts]


def order_prompts(parts, fv):
  """The prompts of the whole run, --batch_size for each rollout: a function of the flags."""
  needed = fv.max_steps // fv.num_iterations * fv.batch_size
  planned, number = [], 0
  while len(planned) < needed:
    one_pass = data.mixture(parts, fv.seed + 1000 * number)
    if len(one_pass) < fv.batch_size:
      raise ValueError(f"--data has {len(one_pass)} prompts, fewer than --batch_size: lower it")
    planned += one_pass[: len(one_pass) // fv.batch_size * fv.batch_size]
    number += 1
  planned = planned[:needed]
  if fv.curriculum:
    maths = [e for e in planned if e.task == "math"]
    maths = iter(sorted(maths, key=lambda e: (e.reasoning or "").count("=")))
    planned = [next(maths) if e.task == "math" else e for e in planned]
  return planned


def make_logps(policy, temperature):
  """sft.token_logps as a program, for the policies that stay fixed during the updates."""

  @jax.jit
  def logps(trained, frozen, batch):
    return sft.token_logps(policy.model(trained, frozen), batch, temperature)

  return logps


def plan_programs(fv, mesh, loss_fn, optimizer, policy, trained, frozen, config):
  """What a step runs, at its largest shapes, for sft.plan."""
  g, t, p = fv.num_generations, fv.max_completion_length, fv.max_prompt_length
  completion = Completion(np.zeros(t, np.int32), "", np.zeros(t, np.float32), True)
  completions, reward = [completion] * (fv.batch_size * g), np.arange(fv.batch_size * g)
  prompts = [[0] * p] * fv.batch_size
  batch = make_micro_batches(prompts, completions, reward, config, mesh, 0, fv)[0]
  batch = batch._replace(reference_logps=batch.rollout_logps, old_logps=batch.rollout_logps)
  shards = mesh.shape["fsdp"]
  size = -(-(fv.rollout_batch_size or fv.batch_size) // shards) * shards
  noise = np.zeros((size * g, 2), np.int32)
  tokenizer = types.SimpleNamespace(stop_ids=(0, 1), pad_token_id=0)
  options = dict(decoding=Decoding(g, fv.temperature), limit=t, tokenizer=tokenizer)
  rollout = jax.jit(functools.partial(sample, policy, **options))
  return {
    "rollout": (rollout, (*sft.pad(prompts[:1] * size, p, 0), noise)),
    "reference": (make_logps(policy, fv.temperature), (batch,)),
    "update": (sft.make_steps(policy, loss_fn, optimizer, trained, ())[0], (batch,)),
  }


@data.script(define_flags)
def main(fv):
  # --- Setup ---
  sft.setup()
  if fv.init_ckpt is None:
    fv.init_ckpt = "" if fv.plan else PARENT[fv.stage]
  fv.out = fv.out or f"runs/{fv.stage}"
  step_dir, parent = sft.find_checkpoint(fv.init_ckpt) if fv.init_ckpt else (None, {})
  devices = sft.plan_devices() if fv.plan else jax.devices()
  defaults = DEFAULTS | MIXED_DEFAULTS if fv.stage == "mixed" else DEFAULTS
  sft.resolve_flags(fv, defaults, parent, len(devices))
  if fv.max_steps % fv.num_iterations:
    raise ValueError(f"--max_steps={fv.max_steps} must be a multiple of --num_iterations")
  mesh = sft.make_mesh(fv, fv.micro_batch_size * fv.num_generations, devices)
  judge = rewards.make_judge(fv.judge, fv.judge_model, fv.judge_rubric)
  reward_fns = rewards.reward_fns(fv.preset, rewards.parse_weights(fv.reward_weights), judge)
  schedule = sft.make_schedule(fv.flag_values_dict())
  optimizer = sft.make_optimizer(schedule)
  loss_fn = functools.partial(policy_loss, fv=fv)
  if fv.plan:
    programs = functools.partial(plan_programs, fv, mesh, loss_fn, optimizer)
    return sft.plan(fv, mesh, programs)
  run = sft.Run(fv, "grpo.py", step_dir)
  if run.is_finished():
    return
  start_dir = run.started_from()

  # --- Data ---
  folder = data.resolve_model(fv.model)
  config = sft.tunix_config(folder, fv)
  tokenizer = sft.load_tokenizer(folder)
  planned = order_prompts(load_examples(tokenizer, fv, "train"), fv)
  validation = []
  if fv.eval_prompts:
    validation = data.mixture(load_examples(tokenizer, fv, "validation"), fv.seed)
    validation = validation[: fv.eval_prompts]
  held_out = [sft.encode_prompt(tokenizer, e.question) for e in validation]

  # --- Model ---
  policy, trained, frozen = sft.load_policy(folder, config, mesh, fv)
  if start_dir:
    trained, _ = sft.restore(start_dir, trained)
  reference = jax.tree.map(jnp.copy, trained)  # apply_step reuses the memory of `trained`.
  opt_state = sft.init_optimizer(optimizer, trained, mesh)
  first, trained, opt_state = run.resume(trained, opt_state)
  steps = sft.make_steps(policy, loss_fn, optimizer, trained, opt_state)
  logps = make_logps(policy, fv.temperature)
  sampler = Sampler(policy, tokenizer, mesh, fv)
  if fv.judge == "self":
    limits = dict(max_prompt_length=2048, rollout_batch_size=32)
    limits = types.SimpleNamespace(max_completion_length=fv.max_completion_length, **limits)
    judge_sampler = Sampler(policy, tokenizer, mesh, limits)
    judge.ask = functools.partial(ask, judge_sampler, reference, frozen)
  print(
    f"grpo {fv.stage}: {fv.model} from {run.info['started_from']}, {fv.batch_size} prompts x "
    f"{fv.num_generations} completions a step, mesh {fv.mesh}"
  )

  # --- Train ---
  step, reason = first, None if first < fv.max_steps else "max_steps"
  while reason is None:
    # Rollout: its prompts and noise are a function of the flags and its number.
    times = [time.time()]
    number = step // fv.num_iterations
    examples = planned[number * fv.batch_size : (number + 1) * fv.batch_size]
    prompts = [sft.encode_prompt(tokenizer, e.question) for e in examples]
    decoding = Decoding(fv.num_generations, fv.temperature)
    seed = (fv.seed * 1_000_003 + number) % 2**31
    completions = sampler(trained, frozen, prompts, decoding, seed)
    times.append(time.time())

    # Reward
    rows = [e for e in examples for _ in range(fv.num_generations)]
    components, metrics = grade(reward_fns, completions, rows)
    reward = sum(components.values())
    metrics["zero_variance"] = float(agreeing_groups(reward, fv.num_generations).mean())
    if judge:
      metrics |= {f"judge/{name}": n for name, n in judge.take_counts().items()}
    times.append(time.time())

    # Advantage, and the log-probabilities that stay fixed during the updates
    pad_id = tokenizer.pad_token_id
    batches = make_micro_batches(prompts, completions, reward, config, mesh, pad_id, fv)
    batches = [sft.spread(batch, mesh) for batch in batches]
    with mesh:
      if fv.num_iterations > 1:
        batches = [b._replace(old_logps=logps(trained, frozen, b)) for b in batches]
      if fv.beta:
        batches = [b._replace(reference_logps=logps(reference, frozen, b)) for b in batches]
    jax.block_until_ready(batches)
    times.append(time.time())

    # Update
    records = []
    for iteration in range(fv.num_iterations):
      start = time.time()
      with mesh:
        updated = sft.train_step(steps, trained, frozen, opt_state, batches)
      trained, opt_state, update_metrics = updated
      step += 1
      record = {"step": step, "learning_rate": float(schedule(step - 1))}
      record |= update_metrics | metrics
      for i, name in enumerate(("rollout", "reward", "reference")):
        record[f"time/{name}"] = 0.0 if iteration else times[i + 1] - times[i]
      record["time/update"] = time.time() - start
      record["time/step"] = time.time() - (start if iteration else times[0])
      records.append(record)

    # Validate, log
    is_due = step % fv.eval_every < fv.num_iterations or step == fv.max_steps
    score = None
    if validation and is_due:
      greedy = sampler(trained, frozen, held_out, Decoding())
      _, held_out_metrics = grade(reward_fns, greedy, validation)
      score = held_out_metrics["reward"]
      records[-1] |= {"validation_reward": score}
      records[-1] |= {"validation_correct": held_out_metrics["correct"]}
      if judge:
        judge.take_counts()  # A step's record counts its own rollout only.
    for record in records:
      run.log(record, SHOWN)
    if is_due or number == 0:
      for i in range(min(2 * fv.num_generations, len(rows))):
        shown = {"step": step, "task": rows[i].task, "question": rows[i].question}
        shown |= {"answer": rows[i].answer, "completion": completions[i].text}
        shown |= {"truncated": completions[i].truncated, "reward": float(reward[i])}
        shown |= {f"reward/{name}": float(x[i]) for name, x in components.items()}
        sft.write_jsonl(run.folder / "samples.jsonl", [shown])

    # Save and stop, between rollouts only: in between, the rollout's policy would be lost.
    reason = run.after_step(step, time.time() - times[0], trained, opt_state, score)

  # --- Save ---
  command = ["eval.py", "--ckpt=base," + fv.out]
  if fv.stage == "math":
    command = ["grpo.py", "--stage=mixed", f"--model={fv.model}", f"--init_ckpt={fv.out}"]
  run.end(reason, ["python", *command])


if __name__ == "__main__":
  main()
