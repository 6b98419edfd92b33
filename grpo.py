"""GRPO: reward the completions of a group that are better than their siblings, first on mathematics, then on everything.

The second and third leg of the relay, one script (Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300):

1. G completions per prompt, one advantage per completion: (reward - group mean) / (group standard deviation + 1e-4).
   --advantage=mean leaves the division out (Dr. GRPO, https://arxiv.org/abs/2503.20783), rloo takes the mean of the others.
2. The loss is the mean over a completion's tokens, then over completions (eq. 3), with the clipped ratio and, times beta,
   the k3 estimate of the KL divergence (eq. 4). Tunix's default, k1, has an expected gradient of zero.
   --loss_aggregation, --epsilon_high and --importance: token means and asymmetric clip of DAPO
   (https://arxiv.org/abs/2503.14476), constant denominator of Dr. GRPO, GSPO-token (https://arxiv.org/abs/2507.18071).
3. The reference policy is the policy this leg started from, not the untouched base: otherwise the KL term would pull
   against the leg before. With LoRA it shares the base's arrays and is only a frozen copy of the adapter.
4. The old policy is the trainer's own forward pass at the rollout's temperature, so the ratio at the first of the
   --num_iterations updates is 1: exactly with one update, up to rounding with more.
5. A completion that stopped is trained on its stop token; one cut off at the limit has none.
6. Sampling noise is a pure function of --seed and the step; so are the prompts of a step.
7. A prompt is run once for its G completions, in the rollout and, where the model's sliding window allows it, in the update.

  python grpo.py --stage=math                            # from runs/sft to runs/math
  python grpo.py --stage=mixed --init_ckpt=runs/math     # 80% other tasks + 20% mathematics, to runs/mixed

Writes into --out (default runs/math or runs/mixed): run.json, metrics.jsonl, samples.jsonl, actor/<step>/.
Shapes: B prompts, G completions per prompt, P prompt length, T completion length, V vocabulary.
"""
from __future__ import annotations

import dataclasses
import functools
import importlib.util
import time
import types
from typing import Any, Callable, Iterator

from absl import flags as absl_flags
from absl import logging as absl_logging
from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

import sft  # before Tunix's RL modules: they start threads, and sft.py has settled by then what malloc gives those

from tunix.rl import algo_core
from tunix.rl import common as rl_common
from tunix.rl import function_registry
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

import data
import rewards

# Defaults that depend on the model. tiny is trained on all its weights, so its steps are large and its groups wide. On 2640
# validation problems its mathematics leg gained 7 points at temperature 1.0 and 10 at 0.7 (115 steps each): at 1.0 most of a
# step goes into being sure of what is right already. A KL term to the leg's start was worth 3 more, over three seeds.
# Gemma's rate is ten times the 1e-6 that is common for all weights: at 1e-6, 500 steps move an adapter as far as the first
# twelve of the 270M's leg in docs/grpo.md did, to a KL of 0.02.
DEFAULTS = {  # flag: (tiny, Gemma)
    "data": ("synthetic:easy", "gsm8k"),
    "lora_rank": (0, 64),
    "lora_alpha": (0.0, 64.0),
    "learning_rate": (2e-4, 1e-5),
    "batch_size": (32, 4),
    "num_generations": (8, 4),
    "max_steps": (150, 500),
    "temperature": (0.7, 0.9),
    "max_prompt_length": (48, 256),
    "max_completion_length": (48, 512),
    "beta": (0.04, 0.1),
    "skip_zero_variance": (True, False),
    "eval_every": (10, 50),
}
MIXED_DEFAULTS = {  # where the mixed stage differs: mathematics, yes/no reasoning and open-ended requests
    "data": ("synthetic:easy", "math=gsm8k,logic=ChilleD/StrategyQA,other=databricks/databricks-dolly-15k"),
    "learning_rate": (1e-4, 1e-5),  # at 2e-4 the noise of its yes/no rows undid what 40 steps gained
    "max_steps": (60, 500),
}
ADVANTAGES = {
    "std": "the group's mean, in units of its standard deviation",
    "mean": "the group's mean (Dr. GRPO)",
    "rloo": "the mean of the rest of the group (RLOO)"}
AGGREGATIONS = {
    "sequence": "over a completion's tokens, then over completions (GRPO)",
    "token": "over all tokens of the step (DAPO)",
    "constant": "sum over tokens / (completions x --max_completion_length) (Dr. GRPO)"}
ENGINES = {"vllm": ("vllm", "vllm_jax"), "sglang_jax": ("sgl_jax", "sglang_jax")}  # rollout: (package, its name in Tunix's weight mappings)
UPDATE_METRICS = ("kl", "clip_fraction", "entropy", "rollout_difference")  # token means over the update
BEFORE = {"math": "runs/sft", "mixed": "runs/math"}  # the leg that a stage starts from


def define_flags(fv: absl_flags.FlagValues) -> None:
  """Defines this script's flags on `fv`; called only when the file is the program."""
  sft.define_shared_flags(fv, DEFAULTS)
  string = functools.partial(absl_flags.DEFINE_string, flag_values=fv)
  integer = functools.partial(absl_flags.DEFINE_integer, flag_values=fv)
  number = functools.partial(absl_flags.DEFINE_float, flag_values=fv)
  by_model = functools.partial(sft.default_note, DEFAULTS)
  # Stage
  absl_flags.DEFINE_enum("stage", "math", ["math", "mixed"],
                         "math: the mathematics rows of --data. mixed: those and all others, by --math_fraction; its defaults: "
                         + ", ".join(f"--{name}={tiny} for tiny, {gemma} for Gemma" for name, (tiny, gemma) in MIXED_DEFAULTS.items()) + ".", flag_values=fv)
  string("init_ckpt", None, "Run or step folder to start from; empty: the untouched base (default: runs/sft for math, runs/math for mixed).")
  string("out", None, "Run folder; the same folder again continues the run (default: runs/math or runs/mixed).")
  number("math_fraction", 0.2, "Share of mathematics in the mixed stage, in [0, 1].")
  absl_flags.DEFINE_bool("curriculum", False, "The run's mathematics from few to many solution steps, instead of in random order; another --max_steps lays it out anew.", flag_values=fv)
  # Reward
  absl_flags.DEFINE_enum("preset", "router", list(rewards.PRESETS), "Reward preset: which components count, by task, and how much.", flag_values=fv)
  string("reward_weights", "", "Overrides the preset's weights, as in format=0.3,correctness=0.5; empty: the preset's own.")
  rewards.define_judge_flags(fv)
  absl_flags.DEFINE_enum("anneal_to", None, list(rewards.PRESETS), "Preset that the reward moves to, linearly over --max_steps, from --preset with its "
                         "--reward_weights (default: it stays).", flag_values=fv)
  # GRPO
  integer("num_generations", None, "G, completions per prompt; at least 2." + by_model("num_generations"))
  integer("num_iterations", 1, "mu, optimiser steps on each rollout.")
  number("beta", None, "Weight of the KL divergence from the reference policy; 0: none, and no reference policy." + by_model("beta"))
  absl_flags.DEFINE_enum("reference", "start", ["start", "base"], "Reference policy: the one that the leg starts from, or the untouched base.", flag_values=fv)
  number("epsilon", 0.2, "Clip range of the probability ratio, below 1 and above.")
  number("epsilon_high", None, "Clip range above 1, if another one, as in DAPO's 0.28 (default: --epsilon).")
  absl_flags.DEFINE_enum("advantage", "std", list(ADVANTAGES), "What a reward is compared with: " + "; ".join(f"{k}: {v}" for k, v in ADVANTAGES.items()) + ".",
                         flag_values=fv)
  absl_flags.DEFINE_enum("loss_aggregation", "sequence", list(AGGREGATIONS), "Which mean of the tokens' losses: "
                         + "; ".join(f"{k}: {v}" for k, v in AGGREGATIONS.items()) + ".", flag_values=fv)
  absl_flags.DEFINE_enum("importance", "token", ["token", "sequence"], "Probability ratio of each token, or of the whole completion (GSPO-token; its "
                         "--epsilon is some 3e-4).", flag_values=fv)
  absl_flags.DEFINE_bool("mask_truncated", False, "Leave completions that were cut off out of the loss; its denominator stays what it was.", flag_values=fv)
  absl_flags.DEFINE_bool("skip_zero_variance", None, "Leave groups with equal rewards out of the update and do not pay for them (in quarters of a "
                         "micro-batch); they have no policy gradient, only a KL term. The loss is still divided by all groups." + by_model("skip_zero_variance"), flag_values=fv)
  number("temperature", None, "Sampling temperature; the loss divides the logits by it too." + by_model("temperature"))
  # Speed: this repository's paths and Tunix's own, for comparison
  absl_flags.DEFINE_enum("rollout", "shared", ["shared", "vanilla", *ENGINES], "shared: one prefill per prompt, stop token kept; vanilla: Tunix's own sampler, with --remat=none; "
                         "vllm, sglang_jax: those engines through Tunix, where it can serve the model.", flag_values=fv)
  absl_flags.DEFINE_enum("loss", "chunked", ["chunked", "stock"], "chunked: log-probabilities of the completions only, the vocabulary in chunks; stock: Tunix's GRPO loss and "
                         "reference pass on prompt and completion, at full length.", flag_values=fv)
  integer("eval_every", None, "Steps between checks of greedy completions on held-out prompts." + by_model("eval_every"))
  integer("eval_prompts", 64, "Held-out prompts in such a check; 0: no checks.")


# --- Rollout ----------------------------------------------------------------------------------------------------------


class SharedPrefillRollout(base_rollout.BaseRollout):
  """Tunix rollout engine around sft.Sampler: one prefill per prompt, stop tokens kept, log-probabilities returned."""

  def __init__(self, *, rollout_actor, tokenizer, mesh, rollout_config, num_generations, max_rows):
    del rollout_config  # comes again with every call
    self._tokenizer, self._num_generations = tokenizer._tokenizer, num_generations  # pylint: disable=protected-access
    self.sampler = sft.Sampler(rollout_actor, self._tokenizer, mesh, max_rows)

  def generate(self, prompts, rollout_config, **kwargs):
    """Completions of prompts that come repeated G times in a row, as Tunix's learner sends them."""
    ids = [sft.encode(self._tokenizer, prompt, bos=True) for prompt in prompts[::self._num_generations]]
    completions = self.sampler(
        ids, max_prompt_length=rollout_config.max_prompt_length, max_completion_length=rollout_config.max_tokens_to_generate, num_generations=self._num_generations,
        temperature=rollout_config.temperature, seed=rollout_config.seed)
    padded, _ = sft.pad(ids, rollout_config.max_prompt_length, self.pad_id(), left=True)
    return base_rollout.RolloutOutput(
        text=[c.text for c in completions], logits=None, tokens=[c.ids for c in completions],
        left_padded_prompt_tokens=np.repeat(padded, self._num_generations, axis=0), logprobs=[c.logps for c in completions])

  def get_per_token_logps(self, prompt_tokens, completion_tokens):
    raise NotImplementedError("the learner takes log-probabilities from the trainer's own forward pass")

  def update_params(self, params, filter_types=None):
    nnx.update(self.sampler.model, params)

  def pad_id(self):
    return self._tokenizer.pad_token_id

  def eos_id(self):
    return self._tokenizer.eos_token_id

  def model(self):
    return self.sampler.model


def check_engine(engine: str, model: nnx.Module) -> None:
  """Raises ValueError if Tunix cannot hand this model's weights to a rollout engine of ENGINES, or it is not installed."""
  package, backend = ENGINES[engine]
  try:
    model.to_hf_mappings(backend)
  except (AttributeError, RuntimeError) as e:
    raise ValueError(f"--rollout={engine} cannot serve this model: this Tunix has no {backend} weight mapping for {type(model).__name__}; leave the flag out") from e
  if importlib.util.find_spec(package) is None:
    raise ValueError(f"--rollout={engine} needs the package {package}, which is not installed: see its page on how to install it for your accelerator, or leave the flag out")


# --- Update -----------------------------------------------------------------------------------------------------------


def group_advantages(reward: np.ndarray, num_generations: int, advantage: str = "std") -> np.ndarray:
  """Advantages [B * G] of rewards [B * G], group by group; see ADVANTAGES. The standard deviation has ddof 1, plus 1e-4."""
  groups = reward.reshape(-1, num_generations)
  centred = groups - groups.mean(axis=1, keepdims=True)
  if advantage == "std":
    centred /= groups.std(axis=1, ddof=1, keepdims=True) + 1e-4
  elif advantage == "rloo":  # r - mean of the others
    centred *= num_generations / (num_generations - 1)
  return centred.reshape(-1).astype(np.float32)


def token_weight(lengths: np.ndarray, aggregation: str, limit: int, left_out: np.ndarray) -> np.ndarray:
  """What a token of each of a step's completions [B * G] counts in the loss, see AGGREGATIONS; nothing if it is left out."""
  denominator = {"sequence": len(lengths) * np.maximum(1, lengths), "token": max(1, lengths.sum()), "constant": len(lengths) * limit}[aggregation]
  return np.where(left_out, 0.0, 1.0 / denominator).astype(np.float32)


@dataclasses.dataclass(kw_only=True)
class Config(grpo_learner.GRPOConfig):
  """What policy_loss reads beyond Tunix's own fields."""
  epsilon_high: float = 0.2
  importance: str = "token"


def algorithm(fv: absl_flags.FlagValues) -> Config:
  """What the loss needs to know of the flags."""
  return Config(
      policy_loss_fn="stock_grpo" if fv.loss == "stock" else "relay_grpo",
      kl_loss_mode="low_var_kl", loss_algo="gspo-token" if fv.importance == "sequence" else "grpo",  # what Tunix's loss calls k3 and GSPO-token
      num_generations=fv.num_generations, num_iterations=fv.num_iterations, beta=fv.beta,
      epsilon=fv.epsilon, epsilon_high=fv.epsilon_high, importance=fv.importance)


@function_registry.register_policy_loss_fn("relay_grpo")
def policy_loss(model, batch, algo_config, pad_id, eos_id):
  """The loss of one micro-batch, and its metrics.

  batch["weights"] [B * G, T] carries the aggregation over the whole step, times the number of micro-batches, because the
  optimiser averages over those. So the step's loss does not depend on how it was cut.
  """
  del pad_id, eos_id  # the masks are explicit
  mask, share = batch["completion_mask"], batch["shares"]  # share: 1 / tokens in the update, for metrics
  logps = sft.token_logps(model, batch, algo_config.temperature)
  old = batch.get("old_logps", jax.lax.stop_gradient(logps))
  log_ratio = logps - old
  if algo_config.importance == "sequence":  # the value of the completion's mean ratio, the gradient of each token's own
    mean = jnp.sum(log_ratio * mask, axis=1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    log_ratio = jax.lax.stop_gradient(mean) + logps - jax.lax.stop_gradient(logps)
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - algo_config.epsilon, 1 + algo_config.epsilon_high)
  advantage = batch["advantages"][:, None]
  loss = -jnp.minimum(ratio * advantage, clipped * advantage)
  aux = {"entropy": -jnp.sum(logps * share), "clip_fraction": jnp.sum((ratio * advantage > clipped * advantage) * share), "kl": 0.0,
         "rollout_difference": jnp.sum(jnp.abs(old - batch["rollout_logps"]) * share)}
  if algo_config.beta:
    difference = batch["reference_logps"] - logps
    kl = jnp.exp(difference) - difference - 1  # k3, never negative
    loss += algo_config.beta * kl
    aux["kl"] = jnp.sum(kl * share)
  return jnp.sum(jnp.where(mask, loss, 0.0) * batch["weights"]), aux


@function_registry.register_policy_loss_fn("stock_grpo")
def stock_loss(model, batch, algo_config, pad_id, eos_id):
  """Tunix's own GRPO loss of a micro-batch, with the metrics that it has."""
  example = rl_common.TrainExample(
      **{name: batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")},
      ref_per_token_logps=batch.get("reference_logps"), old_per_token_logps=batch.get("old_logps"))
  loss, aux = algo_core.grpo_loss_fn(model, example, algo_config, pad_id, eos_id)
  return loss, {"kl": aux["kl"], "clip_fraction": aux["pg_clipfrac"], "entropy": aux["entropy"]}


def jit_logps(model: nnx.Module, temperature: float) -> Callable[[dict[str, Any], Any], jax.Array]:
  """sft.token_logps of (arrays of such a model, batch), jitted."""
  graphdef = nnx.graphdef(model)
  return jax.jit(lambda weights, batch: sft.token_logps(nnx.merge(graphdef, weights), batch, temperature))


def grade(reward_fns: list[Any], completions: list[str], examples: list[data.Example]) -> tuple[dict[str, np.ndarray], list[bool]]:
  """(weighted reward components [rows] by name, whether right, of the rows that can be checked) of one completion per example."""
  prompts = [data.format_prompt(e.question) for e in examples]
  columns = dict(answer=[e.answer for e in examples], task=[e.task for e in examples], question=[e.question for e in examples])
  parts = {fn.__name__: np.array(fn(prompts, completions, **columns)) for fn in reward_fns}
  return parts, [rewards.is_correct(text, e.answer) for text, e in zip(completions, examples, strict=True) if e.checkable]


def blend(parts: dict[str, np.ndarray], others: dict[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
  """Reward components (1 - share) x `parts` + share x `others`, by name; a name that only one of them has counts as 0 in the other."""
  return {name: (1 - share) * parts.get(name, 0.0) + share * others.get(name, 0.0) for name in {**parts, **others}}


class Learner(grpo_learner.GRPOLearner):
  """Tunix's GRPO learner with an explicit loop: rollout, reward, update, and one record per optimiser step."""

  def __init__(self, *args, reference, mesh, fv, llm_judge, final_fns, **kwargs):
    super().__init__(*args, **kwargs)
    self._update_metrics = UPDATE_METRICS[:-1] if fv.loss == "stock" else UPDATE_METRICS
    self.rl_cluster.actor_trainer.with_rl_metrics_to_log({name: np.mean for name in self._update_metrics})
    sft.jit_train_step(self.rl_cluster.actor_trainer, fv.lora_rank)
    self._mesh, self._fv, self._llm_judge, self._final_fns = mesh, fv, llm_judge, final_fns
    policy = self.rl_cluster.actor_trainer.model
    self._policy, self._reference = sft.Arrays(policy), reference and sft.Arrays(reference)
    # Groups of a shortened micro-batch: a quarter, half, three quarters or all, as far as they spread over the mesh.
    quarters = sorted({-(-fv.micro_batch_size * i // 4) for i in (1, 2, 3, 4)})
    self._kept_sizes = [n for n in quarters if n * fv.num_generations % mesh.shape["fsdp"] == 0]
    self._jitted_logps = jit_logps(policy, fv.temperature)

  def _logps(self, weights: sft.Arrays, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Log-probabilities [B * G, T] of a micro-batch's completions under the policy or the reference, without gradients."""
    inputs = sft.spread({k: batch[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}, self._mesh)
    with self._mesh:
      return multihost_utils.process_allgather(self._jitted_logps(weights.get(), inputs), tiled=True)

  def _micro_batch_rows(self, equal: np.ndarray) -> list[np.ndarray]:
    """Rows of each micro-batch, without the groups in `equal` [B] under --skip_zero_variance, but for some that fill it up."""
    skip, g, num_micro = self._fv.skip_zero_variance, self._fv.num_generations, self._fv.batch_size // self._fv.micro_batch_size
    # Groups that teach something come first; dealt round, so that every micro-batch has its share of them.
    order = np.argsort(equal, kind="stable") if skip else np.arange(len(equal))
    micro_batches = [order[i::num_micro] for i in range(num_micro)]
    if skip:
      micro_batches = [groups[:next(n for n in self._kept_sizes if n >= (~equal[groups]).sum())] for groups in micro_batches]
    return [(groups[:, None] * g + np.arange(g)).reshape(-1) for groups in micro_batches]

  def _generate_and_compute_advantage(self, training_input: dict[str, Any], mode=rl_cluster.Mode.TRAIN):
    """Rollout and reward of one batch.

    Args:
      training_input: {"examples": B examples, "prompt_ids": their B prompts, "seed": int, "progress": share of the run in [0, 1]}.
    Returns:
      (micro-batches ready for the update, the record's reward metrics, one sample dict per completion).
    """
    fv, g, stock = self._fv, self._fv.num_generations, self._fv.loss == "stock"
    start = time.time()
    self.rl_cluster.cluster_config.rollout_config.seed = training_input["seed"]
    rows = [e for e in training_input["examples"] for _ in range(g)]
    prompts = [data.format_prompt(e.question) for e in rows]
    out = self.rl_cluster.generate(prompts, mode=mode, micro_batch_size=len(prompts))
    lengths = np.array([len(x) for x in out.tokens])
    stop_ids = self.rl_cluster.tokenizer._tokenizer.stop_ids  # pylint: disable=protected-access
    truncated = np.array([len(x) == fv.max_completion_length and x[-1] not in stop_ids for x in out.tokens])  # Tunix's sampler cuts the stop token off
    rolled = time.time()

    parts, correct = grade(self.reward_manager.reward_fns, out.text, rows)
    if self._final_fns:
      final_parts, _ = grade(self._final_fns, out.text, rows)
      parts = blend(parts, final_parts, training_input["progress"])
    reward = sum(parts.values())
    exact = [rewards.parse(text).format == "exact" for text in out.text]
    rewarded = time.time()

    advantages = group_advantages(reward, g, fv.advantage)
    equal = np.ptp(reward.reshape(-1, g), axis=1) == 0  # groups without a policy gradient
    skipped = np.repeat(equal & fv.skip_zero_variance, g)
    weight = token_weight(lengths, fv.loss_aggregation, fv.max_completion_length, skipped | truncated & fv.mask_truncated)
    share = ~skipped / max(1, lengths[~skipped].sum())
    chosen = self._micro_batch_rows(equal)
    batches = []
    for i in chosen:
      batch = sft.make_batch([training_input["prompt_ids"][j // g] for j in i[::g]], [out.tokens[j] for j in i],
                             self.rl_cluster.rollout.pad_id(), fv.max_prompt_length, fv.max_completion_length, parts=(1, 1) if stock else (2, 4))
      if stock or not sft.can_share_prompts(self.rl_cluster.actor_trainer.model, self._mesh, batch):
        batch.update({name: np.repeat(batch[name], g, axis=0) for name in ("prompt_ids", "prompt_mask")})
      mask = batch["completion_mask"].astype(np.float32)
      batch["advantages"] = advantages[i]
      batch["weights"] = mask * weight[i, None] * len(chosen)
      batch["shares"] = mask * share[i, None].astype(np.float32) * len(chosen)
      batch["rollout_logps"] = np.zeros_like(mask)
      batch["rollout_logps"][batch["completion_mask"]] = np.concatenate([out.logprobs[j] for j in i])
      if fv.beta and stock:
        batch["reference_logps"] = np.asarray(self.rl_cluster.get_ref_per_token_logps(
            batch["prompt_ids"], batch["completion_ids"], self.rl_cluster.rollout.pad_id(), self.rl_cluster.rollout.eos_id()))
      elif fv.beta:
        batch["reference_logps"] = self._logps(self._reference, batch)
      if fv.num_iterations > 1:
        batch["old_logps"] = self._logps(self._policy, batch)
      batches.append(batch)
    record = {
        "reward": float(reward.mean()), **{f"reward/{name}": float(x.mean()) for name, x in parts.items()},
        "correct": float(np.mean(correct)) if correct else None, "format": float(np.mean(exact)),
        "completion_length": float(lengths.mean()), "truncated": float(truncated.mean()),
        "zero_variance": float(equal.mean()), "tokens": int(lengths.sum()),
        **({f"judge/{name}": n for name, n in self._llm_judge.take_counts().items()} if self._llm_judge else {}),
        "time/rollout": rolled - start, "time/reward": rewarded - rolled, "time/reference": time.time() - rewarded}
    samples = [{"task": e.task, "question": e.question, "answer": e.answer, "completion": text, "reward": float(r), "advantage": float(a),
                **{f"reward/{name}": float(x[i]) for name, x in parts.items()}, "truncated": bool(truncated[i])}
               for i, (e, text, r, a) in enumerate(zip(rows, out.text, reward, advantages))]
    return batches, record, samples

  def train(self, batches: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yields (record, samples) after every optimiser step; mu steps share a rollout, and only the first has its samples."""
    trainer = self.rl_cluster.actor_trainer
    step_end = time.time()
    for training_input in batches:
      micro_batches, rewarded, samples = self._generate_and_compute_advantage(training_input)
      for iteration in range(self.algo_config.num_iterations):
        start = time.time()
        metrics = sft.update(trainer, sft.spread(micro_batches, self._mesh), lambda x: self.rl_cluster.update_actor(x, None, skip_jit=True))
        now = time.time()
        record = {"step": trainer.train_steps, "loss": metrics["loss"], "grad_norm": metrics["grad_norm"],
                  **{k: v for k, v in rewarded.items() if not k.startswith("time/")},
                  **{name: metrics[name] for name in self._update_metrics},
                  **{k: v if iteration == 0 else 0.0 for k, v in rewarded.items() if k.startswith("time/")},
                  "time/update": now - start, "time/step": now - step_end}
        step_end = now
        yield record, samples if iteration == 0 else []
      if self.should_sync_weights:  # an engine has weights of its own; the other rollouts decode with the trainer's
        self.rl_cluster.sync_weights()


# --- Plan -------------------------------------------------------------------------------------------------------------


def plan_phases(fv: absl_flags.FlagValues, mesh: jax.sharding.Mesh) -> dict[str, tuple[Callable[[], Any], int, int, int]]:
  """A step's programs for `sft.plan`: those that Sampler, Learner._logps and Tunix's trainer jit, at their largest shapes."""
  g, t, num_micro = fv.num_generations, fv.max_completion_length, fv.batch_size // fv.micro_batch_size
  config = algorithm(fv)
  config.temperature = fv.temperature  # Tunix's learner takes it from the rollout
  trainer = sft.abstract_trainer(fv, mesh).with_loss_fn(
      lambda model, batch: (stock_loss if fv.loss == "stock" else policy_loss)(model, batch, config, 0, 1), has_aux=True)
  trainer.with_gen_model_input_fn(lambda batch: {"batch": batch})
  model = trainer.model
  batch = sft.abstract_batch(fv, mesh, fv.micro_batch_size * g, advantages=(), **{name: (t,) for name in (
      "weights", "shares", "rollout_logps", *["reference_logps"] * bool(fv.beta), *["old_logps"] * (fv.num_iterations > 1))})
  once = batch | {name: x for name, x in sft.abstract_batch(fv, mesh, fv.micro_batch_size).items() if name.startswith("prompt")}
  if fv.loss != "stock" and sft.can_share_prompts(model, mesh, once):
    batch = once
  prompts = sft.abstract_batch(fv, mesh, -(-fv.batch_size // mesh.shape["fsdp"]) * mesh.shape["fsdp"])
  sampler = sft.Sampler(model, types.SimpleNamespace(stop_ids=(0, 1), pad_token_id=0), mesh)
  trained, frozen = map(sft.bytes_per_device, nnx.state(model, sft.trained_filter(fv.lora_rank), ...))
  reference, optimizer = trained if fv.beta else 0, sft.bytes_per_device(nnx.state(trainer.optimizer))
  passes = (fv.beta > 0 and fv.loss != "stock") + (fv.num_iterations > 1)  # Tunix's own reference pass is not lowered
  inputs = {name: batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
  rows = prompts["prompt_ids"].shape[0] * g
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  rollout = lambda: sampler._sample.lower(  # pylint: disable=protected-access
      sampler.weights.get(), prompts["prompt_ids"], prompts["prompt_mask"],
      jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=prompts["prompt_ids"].sharding), 1.0,
      num_generations=g, max_new_tokens=t, greedy=False, top_k=None, top_p=1.0)
  lower_gradient, lower_apply = sft.jit_train_step(trainer, fv.lora_rank)
  return {
      "rollout": (rollout, rows, 1, reference + optimizer),
      **({"reference": (lambda: jit_logps(model, fv.temperature).lower(sampler.weights.get(), inputs), fv.micro_batch_size * g, passes * num_micro, reference + optimizer)} if passes else {}),
      "update": (lambda: lower_gradient(batch), fv.micro_batch_size * g, fv.num_iterations * num_micro, reference + optimizer),
      "optimiser": (lower_apply, fv.micro_batch_size * g, fv.num_iterations * num_micro, reference + frozen)}


# --- Main -------------------------------------------------------------------------------------------------------------


def load_examples(fv: absl_flags.FlagValues, split: str) -> list[tuple[list[data.Example], float]]:
  """(examples, share) parts of the stage; ValueError if --data has no rows for it."""
  examples = data.load(fv.data, split, seed=fv.seed, validation_fraction=fv.validation_fraction)
  maths = [e for e in examples if e.task == "math" and e.answer]
  others = [e for e in examples if e.task != "math"]
  parts = [(maths, 1.0)] if fv.stage == "math" else [(maths, fv.math_fraction), (others, 1 - fv.math_fraction)]
  for rows, share in parts:
    if share and not rows:
      kind = "mathematics with an answer" if rows is maths else "tasks other than mathematics"
      raise ValueError(f"--data={fv.data} has no {split} rows of {kind}, which --stage={fv.stage} needs: add a source"
                       + ", raise --validation_fraction or take --eval_prompts=0" * (split == "validation"))
  return [(rows, share) for rows, share in parts if share]


@data.script(define_flags)
def main(fv: absl_flags.FlagValues) -> None:
  # --- Setup ---
  started = time.time()
  absl_logging.set_verbosity(absl_logging.ERROR)  # Tunix warns of every device that is not a TPU
  if not fv.plan:
    sft.start_processes()
  fv.init_ckpt = ("" if fv.plan else BEFORE[fv.stage]) if fv.init_ckpt is None else fv.init_ckpt
  fv.out = fv.out or f"runs/{fv.stage}"
  parent_dir, parent = sft.find_checkpoint(fv.init_ckpt) if fv.init_ckpt else (None, {})
  devices, search = sft.topology_devices(fv.plan_topology) if fv.plan else jax.devices(), fv.micro_batch_size is None
  sft.resolve_flags(fv, DEFAULTS | (MIXED_DEFAULTS if fv.stage == "mixed" else {}), parent, len(devices))
  fv.epsilon_high = fv.epsilon if fv.epsilon_high is None else fv.epsilon_high
  if fv.rollout == "vanilla" and fv.remat == "auto":
    fv.remat = "none"
    print("defaults: --remat=none, because of --rollout=vanilla")
  sft.check_flags(fv, [problem for wrong, problem in (
      (fv.num_generations < 2, f"--num_generations={fv.num_generations} must be at least 2: an advantage compares a group"),
      (fv.num_iterations < 1 or fv.max_steps % max(1, fv.num_iterations), f"--max_steps={fv.max_steps} must be a multiple of --num_iterations={fv.num_iterations}"),
      (not 0 <= fv.math_fraction <= 1, f"--math_fraction={fv.math_fraction} must lie in [0, 1]"),
      (fv.temperature <= 0, f"--temperature={fv.temperature} must be above 0"), (fv.beta < 0, f"--beta={fv.beta} must not be negative"),
      (fv.loss == "stock" and (fv.skip_zero_variance or fv.mask_truncated or fv.loss_aggregation != "sequence"),
       "--loss=stock knows --loss_aggregation=sequence only: add --noskip_zero_variance, and leave out --mask_truncated"),
      (fv.rollout == "vanilla" and fv.remat != "none", f"--rollout=vanilla, Tunix's sampler, fails with --remat={fv.remat}: leave it out"),
      (jax.distributed.is_initialized() and (fv.judge or fv.rollout != "shared" or fv.loss == "stock"),
       "several processes know --rollout=shared and --loss=chunked only, and no --judge"),
      (min(fv.epsilon, fv.epsilon_high) <= 0, f"--epsilon={fv.epsilon} and --epsilon_high={fv.epsilon_high} must be above 0")) if wrong])
  llm_judge = rewards.make_judge(fv.judge, fv.judge_model, fv.judge_rubric)
  reward_fns = rewards.reward_fns(fv.preset, rewards.parse_weights(fv.reward_weights), llm_judge)
  final_fns = rewards.reward_fns(fv.anneal_to, None, llm_judge) if fv.anneal_to else []
  mesh = sft.make_mesh(fv.mesh, devices)
  if fv.micro_batch_size * fv.num_generations % mesh.shape["fsdp"]:
    raise ValueError(f"--micro_batch_size={fv.micro_batch_size} x --num_generations={fv.num_generations} is not a multiple of the "
                     f"mesh's fsdp size {mesh.shape['fsdp']}")
  if fv.plan:
    return sft.plan(fv, mesh, search, fv.num_generations, lambda: plan_phases(fv, mesh))
  compilations = sft.Compilations()
  run = sft.Run(fv, "grpo.py", parent_dir)
  if run.is_finished():
    return
  start = run.started_from()

  # --- Data ---
  parts, held_out = load_examples(fv, "train"), load_examples(fv, "validation") if fv.eval_prompts else []
  folder = data.resolve_model(fv.model)
  sft.check_model(folder, fv.max_prompt_length + fv.max_completion_length)
  max_rows = sft.check_memory(folder, fv, fv.num_generations)
  tokenizer = sft.load_tokenizer(folder)
  fits = lambda parts: [(sft.encode_prompts(tokenizer, rows, fv.max_prompt_length)[0], share) for rows, share in parts]
  parts = fits(parts)
  checked = data.mixture(fits(held_out), fv.seed)[:fv.eval_prompts] if held_out else []
  pass_rows = len(data.mixture(parts, fv.seed))
  num_rollouts, rollouts_per_pass = fv.max_steps // fv.num_iterations, pass_rows // fv.batch_size
  if not rollouts_per_pass:
    raise ValueError(f"--data={fv.data} gives {pass_rows} prompts for --stage={fv.stage}, fewer than --batch_size={fv.batch_size}")
  planned = []  # the prompts of the whole run, in order
  for number in range(-(-num_rollouts // rollouts_per_pass)):
    planned += data.mixture(parts, fv.seed + 1000 * number)[:rollouts_per_pass * fv.batch_size]
  planned = planned[:num_rollouts * fv.batch_size]
  if fv.curriculum:
    places = [i for i, e in enumerate(planned) if e.task == "math"]
    for i, example in zip(places, sorted((planned[i] for i in places), key=data.solution_steps)):
      planned[i] = example

  def batches(first_rollout: int) -> Iterator[dict[str, Any]]:
    """Batches from `first_rollout` on; the prompts and the noise of each are a pure function of the flags and its number."""
    for rollout in range(first_rollout, num_rollouts):
      examples = planned[rollout * fv.batch_size:(rollout + 1) * fv.batch_size]
      yield {"examples": examples, "seed": (fv.seed * 1_000_003 + rollout) % 2**31, "progress": rollout / max(1, num_rollouts - 1),
             "prompt_ids": [sft.encode(tokenizer, data.format_prompt(e.question), bos=True) for e in examples]}

  # --- Model ---
  model = sft.load_model(folder, mesh, dtype=fv.dtype, lora_rank=fv.lora_rank, lora_alpha=fv.lora_alpha, seed=fv.seed,
                         replicate_base=fv.replicate_base, remat=fv.remat)
  if fv.rollout in ENGINES:
    check_engine(fv.rollout, model)
  if start and fv.reference == "start":
    sft.restore(model, start, fv.lora_rank)
  reference = None
  if fv.beta or fv.judge == "self":  # before the cluster restores a resumed run's weights: the reference is where the leg started
    graphdef, trained, rest = nnx.split(model, sft.trained_filter(fv.lora_rank), ...)
    reference = nnx.merge(graphdef, jax.tree.map(jnp.copy, trained), rest)
  if start and fv.reference == "base":
    sft.restore(model, start, fv.lora_rank)
  if fv.judge == "self":
    llm_judge.ask = functools.partial(sft.ask, sft.Sampler(reference, tokenizer, mesh), max_completion_length=fv.max_completion_length)
  optimizer, schedule = sft.make_optimizer(fv)
  role = rl_cluster.Role
  cluster = rl_cluster.RLCluster(
      actor=model, reference=reference, tokenizer=tokenizer,
      cluster_config=rl_cluster.ClusterConfig(
          role_to_mesh={role.ACTOR: mesh, role.REFERENCE: mesh, role.ROLLOUT: mesh},
          rollout_engine=fv.rollout if fv.rollout != "shared" else
          functools.partial(SharedPrefillRollout, num_generations=fv.num_generations, max_rows=max_rows),
          training_config=rl_cluster.RLTrainingConfig(
              actor_optimizer=optimizer, eval_every_n_steps=10**9, max_steps=fv.max_steps, mini_batch_size=fv.batch_size,
              train_micro_batch_size=fv.micro_batch_size if fv.micro_batch_size < fv.batch_size else None,
              checkpoint_root_directory=str(run.folder.absolute()), checkpointing_options=run.checkpointing_options()),
          rollout_config=base_rollout.RolloutConfig(
              max_tokens_to_generate=fv.max_completion_length, max_prompt_length=fv.max_prompt_length, temperature=fv.temperature,
              kv_cache_size=fv.max_prompt_length + fv.max_completion_length + 8, return_logprobs=True,  # both for the other engines
              rollout_vllm_model_version=str(folder), rollout_sglang_jax_model_version=str(folder),
              top_p=1.0, top_k=None, eos_tokens=list(tokenizer.stop_ids))))
  cluster._anchor_policy_state = None  # one more copy of all weights, for a method that is not used here  # pylint: disable=protected-access
  learner = Learner(
      rl_cluster=cluster, reward_fns=reward_fns, reference=reference, mesh=mesh, fv=fv, llm_judge=llm_judge, final_fns=final_fns,
      algo_config=algorithm(fv))
  trainer = cluster.actor_trainer
  first = trainer.train_steps
  run.begin(first, batch={
      "prompts_per_step": fv.batch_size, "completions_per_step": fv.batch_size * fv.num_generations,
      "micro_batches": fv.batch_size // fv.micro_batch_size, "prompts": pass_rows})
  print(f"grpo {fv.stage}: {fv.model} from {run.info['started_from']}, {pass_rows} prompts a pass, step {first} to {fv.max_steps} "
        f"({fv.batch_size} prompts x {fv.num_generations} completions), mesh {dict(mesh.shape)}")

  sampler = sft.Sampler(trainer.model, tokenizer, mesh, max_rows)

  def validate() -> dict[str, float]:
    """Reward, correctness and format of greedy completions on held-out prompts."""
    ids = [sft.encode(tokenizer, data.format_prompt(e.question), bos=True) for e in checked]
    texts = [c.text for c in sampler(ids, max_prompt_length=fv.max_prompt_length,
                                     max_completion_length=fv.max_completion_length)]
    parts, correct = grade(final_fns or reward_fns, texts, checked)
    if llm_judge:
      llm_judge.take_counts()  # a step's record counts its own rollout
    return {"validation_reward": float(np.mean(sum(parts.values()))),
            "validation_correct": float(np.mean(correct)) if correct else None}

  # --- Train ---
  ended_because, stop = "max_steps", sft.Stop(started, fv.max_hours)
  rollout_start = time.time()
  for record, samples in learner.train(batches(first // fv.num_iterations)):
    step = record["step"]
    record = {"step": step, "loss": record.pop("loss"), "learning_rate": float(schedule(step - 1)), **record}
    whole = step % fv.num_iterations == 0  # between two updates of one rollout there is nothing to save: its policy would be lost
    if checked and whole and (step % fv.eval_every < fv.num_iterations or step == fv.max_steps):
      record.update(validate())
    run.log("metrics.jsonl", record)
    if step % fv.eval_every in (0, 1) and samples:
      run.log("samples.jsonl", *({"step": step, **s} for s in samples[:2 * fv.num_generations]))
    now = time.time()
    shown = {k: record[k] for k in ("reward", "correct", "format", "kl", "entropy", "completion_length", "truncated", "grad_norm",
                                    "judge/neutral", "validation_reward", "validation_correct", "time/step") if record.get(k) is not None}
    print(sft.step_line(step, fv.max_steps, shown, (now - started) / (step - first) * (fv.max_steps - step)), flush=True)
    if not whole:
      continue
    if sft.agree(run.is_best(record) or now - run.last_save > fv.save_every_minutes * 60):
      run.checkpoint(trainer)
    reason = stop.reason(now - rollout_start, run.save_seconds, first=step == first + fv.num_iterations)
    rollout_start = now
    if reason and step < fv.max_steps:
      ended_because = reason
      break

  # --- Save ---
  run.checkpoint(trainer, finished=ended_because == "max_steps", ended_because=ended_because)
  cluster.close()
  run.close()
  print(f"saved {run.folder}/actor/{trainer.train_steps} ({ended_because}, {(time.time() - started) / 60:.1f} minutes; {compilations})")
  after = f"python grpo.py --stage=mixed --model={fv.model} --init_ckpt={run.folder}" if fv.stage == "math" else "python eval.py" + f" --ckpt=base,{run.folder}" * (fv.out != "runs/mixed")
  print(f"next: {after}" if ended_because == "max_steps" else "next: the same command again continues this run")


if __name__ == "__main__":
  main()
