"""Evaluation: what each leg of the relay was worth, on the same prompts, and a prompt to try the result.

Greedy by default, as the hackathon's judges sample; --decoding names the other presets. For every checkpoint and every
task, with n and 95% intervals (docs/eval.md says how each is computed):

  format_exact     one reasoning block, one answer block, nothing else
  format_partial   an answer can be read, the format is not exact; exact ones count too
  exact            the answer equals the gold answer (rows with a gold answer of a verifiable task)
  partial          the answer is within 10% of the gold answer; exact ones count too
  exact_in_format  exact, among the completions of exact format
  pass@k, majority with --samples=k: one of k completions is right, their most frequent answer is; pass@1 is their mean
  brier            mean squared difference between confidence and being right, and reliability bins; see answer_confidence
  reward           the reward of rewards.py's router, as in the mixed leg, and its parts, which add up to it
  judge            share of the checklist that --judge finds met, mean over the open-ended rows that it answered for
  judge_failed     share of the open-ended rows that it did not answer for: no reply, or no plain yes or no
  truncated        cut off at --max_completion_length
  length           tokens of a completion, mean
  failures         completions by what went wrong with them; see failure

and the paired differences of every two checkpoints. Prompts that the evaluated runs were trained on are counted and marked.

  python eval.py                                            # base and the legs found in runs/
  python eval.py --data=gsm8k                               # GSM8K's test set, all 1319 problems
  python eval.py --ckpt=base,runs/sft,runs/math --decoding=standard --samples=8
  python eval.py --ckpt=runs/mixed --interactive

Writes eval.json and eval_samples.jsonl into the run folder of the last checkpoint named (into --out if only the base is).
The samples are written batch by batch: stopped, by --max_hours or otherwise, the same command goes on behind the last one.
"""
from __future__ import annotations

import bisect
import collections
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import time
from typing import Any, Iterator, Sequence

from absl import flags as absl_flags
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

import data
import rewards
import sft

DEFAULTS = {  # flag: (tiny, Gemma)
    "data": ("synthetic:easy", "gsm8k"),
    "max_prompt_length": (48, 256),
    "max_completion_length": (48, 768),
    "batch_size": (256, 64),
}
LEGS = ("runs/sft", "runs/math", "runs/mixed")
DECODING = {  # the Tunix demo's presets; its greedy is top_k 1, which is temperature 0
    "greedy": {"temperature": 0.0, "top_k": None, "top_p": 1.0},
    "standard": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
    "liberal": {"temperature": 0.85, "top_k": 2000, "top_p": 1.0},
}
COLUMNS = ("format_exact", "format_partial", "exact", "partial", "reward", "judge", "judge_failed", "truncated", "length")
SHARES = ("format_exact", "format_partial", "exact", "partial", "exact_in_format", "judge_failed", "truncated")  # means of yes and no
COMPARED = ("exact", "format_exact", "reward", "length")  # what paired differences are given for
REWARD_FNS = rewards.reward_fns("router")
BOOTSTRAP, BINS, GRAM = 1000, 10, 13  # resamples of the prompts, reliability bins, words of a sequence that gives a training question away


def define_flags(fv: absl_flags.FlagValues) -> None:
  """Defines this script's flags on `fv`; called only when the file is the program."""
  string = functools.partial(absl_flags.DEFINE_string, flag_values=fv)
  integer = functools.partial(absl_flags.DEFINE_integer, flag_values=fv)
  by_model = functools.partial(sft.default_note, DEFAULTS)
  # What
  string("ckpt", None, "Run or step folders, comma-separated; base is the untouched model (default: base and the legs found in runs/).")
  string("model", None, "As in sft.py (default: the model of the checkpoints, else tiny).")
  string("data", None, "As in sft.py; of a file all rows are used." + by_model("data"))
  integer("limit", 1500, "Prompts evaluated, at most; 0: all.")
  integer("samples", 1, "Completions of each prompt, for pass@k and majority vote.")
  string("out", "runs/base", "Folder for the results when no run folder is named in --ckpt, or it cannot be written.")
  rewards.define_judge_flags(fv)
  # How
  integer("max_prompt_length", None, "Tokens of a prompt; longer ones are dropped and counted." + by_model("max_prompt_length"))
  integer("max_completion_length", None, "Tokens of a completion." + by_model("max_completion_length"))
  integer("batch_size", None, "Completions decoded at a time." + by_model("batch_size"))
  absl_flags.DEFINE_float("max_hours", 8.5, "Wall time from the start of main; what was decoded by then is kept.", flag_values=fv)
  absl_flags.DEFINE_enum("decoding", "greedy", list(DECODING), "How completions are drawn: " + "; ".join(
      f"{name}: " + ", ".join(f"{k} {v}" for k, v in preset.items()) for name, preset in DECODING.items()) + ".", flag_values=fv)
  absl_flags.DEFINE_float("temperature", None, "Sampling temperature in place of that of --decoding; 0 is greedy.", flag_values=fv)
  integer("seed", 0, "Seed of the sample of prompts and of sampling.")
  string("mesh", None, "Devices as fsdp,tp (default: all of them,1).")
  absl_flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Type of the base weights, as in sft.py.", flag_values=fv)
  absl_flags.DEFINE_bool("replicate_base", False, "As in sft.py.", flag_values=fv)
  absl_flags.DEFINE_bool("interactive", False, "Answer questions typed at the terminal, with the last checkpoint.", flag_values=fv)


# --- One completion ---------------------------------------------------------------------------------------------------


def grade(completion: sft.Completion, example: data.Example, tokenizer: Any) -> dict[str, Any]:
  """One completion's row: what the table averages (None where it does not apply), its confidence and its kind of failure."""
  parsed = rewards.parse(completion.text)
  row = dict(answer=[example.answer], task=[example.task], question=[example.question])
  parts = {f"reward/{fn.__name__}": fn([None], [completion.text], **row)[0] for fn in REWARD_FNS}
  right = rewards.is_correct(completion.text, example.answer) if example.checkable else None
  return {
      "format_exact": parsed.format == "exact", "format_partial": parsed.format in ("exact", "partial"), "exact": right,
      "partial": rewards.is_close(completion.text, example.answer) if example.checkable else None,
      "reward": sum(parts.values()), **parts, "truncated": completion.truncated, "length": len(completion.ids),
      "confidence": answer_confidence(completion, parsed, tokenizer), "failure": failure(completion, parsed, right)}


def answer_confidence(completion: sft.Completion, parsed: rewards.Parsed, tokenizer: Any) -> float | None:
  """How sure a completion is of its answer, in [0, 1]; None without an answer.

  What its reasoning states ("Confidence: 90%"), read as the reward preset composite reads it; else the geometric mean of the
  probabilities of the answer block's tokens, in the distribution at the sampling temperature, before top_k and top_p (greedy:
  at temperature 1).
  """
  if parsed.answer is None:
    return None
  if (stated := rewards.stated_confidence(parsed.reasoning)) is not None:
    return stated
  start, end = list(re.finditer(r"<answer>(.*?)</answer>", completion.text, re.DOTALL))[-1].span(1)
  # Tags need not be tokens of their own, so the block's tokens are found by the length of what they decode to.
  characters = functools.cache(lambda n: len(tokenizer.decode(completion.ids[:n], skip_special_tokens=False)))
  counts = range(len(completion.ids) + 1)
  logps = completion.logps[bisect.bisect_right(counts, start, key=characters) - 1:bisect.bisect_left(counts, end, key=characters)]
  return math.exp(min(0.0, float(logps.mean())))


def failure(completion: sft.Completion, parsed: rewards.Parsed, right: bool | None) -> str | None:
  """What went wrong with a completion, None if nothing did; the first that is true of

  loop (its end is up to 200 characters at least four times in a row, 40 characters in all), cut off, no tags, unclosed (a tag is opened
  and not closed), malformed (not of exact format for another reason), wrong answer.
  """
  text = completion.text
  missing = {d.removeprefix("no ") for d in parsed.defects if d.startswith("no <")}
  kinds = {
      "loop": any(text.endswith(text[-n:] * max(4, -(-40 // n))) for n in range(1, min(200, len(text) // 4) + 1)),
      "cut off": completion.truncated, "no tags": len(missing) == 4,
      "unclosed": any(f"</{name}>" in missing and f"<{name}>" not in missing for name in ("reasoning", "answer")),
      "malformed": parsed.format != "exact", "wrong answer": right is False}
  return next((kind for kind, found in kinds.items() if found), None)


def add_verdicts(llm_judge: rewards.Judge | None, samples: list[dict[str, Any]]) -> None:
  """Adds judge and judge_failed to the samples of open-ended prompts, None to the others."""
  opened = [s for s in samples if llm_judge and not rewards.is_checked(s["task"], s["answer"])]
  columns = [[s[key] for s in opened] for key in ("question", "completion", "task")]
  verdicts = llm_judge(*columns, neutral=None) if opened else []
  for sample in samples:
    sample["judge"] = sample["judge_failed"] = None
  for sample, verdict in zip(opened, verdicts, strict=True):
    sample["judge"], sample["judge_failed"] = verdict, verdict is None


# --- Many completions -------------------------------------------------------------------------------------------------


def wilson(share: float, n: int) -> list[float]:
  """95% interval of a share of n trials (Wilson 1927). (0.5, 100) -> [0.404, 0.596]"""
  z = 1.96
  centre, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
  return [max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))]


def majority(group: Sequence[dict[str, Any]]) -> bool:
  """Whether the most frequent answer among a prompt's completions is right; of answers equally frequent, the first counts."""
  votes = []  # [an answer, the first sample that gives it, how many do]
  for sample in group:
    answer = rewards.parse(sample["completion"]).answer
    same = next((vote for vote in votes if answer and rewards.is_correct(sample["completion"], vote[0])), None)
    if same:
      same[2] += 1
    elif answer:
      votes.append([answer, sample, 1])
  return bool(votes) and max(votes, key=lambda vote: vote[2])[1]["exact"]


def measure(group: Sequence[dict[str, Any]]) -> dict[str, tuple[float, int]]:
  """{metric: (sum, number of terms)} over one prompt's completions, as far as a metric applies to them."""
  names = [*COLUMNS, *(key for key in group[0] if key.startswith("reward/"))]
  values = {name: [s[name] for s in group] for name in names}
  values["exact_in_format"] = [s["exact"] if s["format_exact"] else None for s in group]
  values["brier"] = [None if None in (s["exact"], s["confidence"]) else (s["confidence"] - s["exact"]) ** 2 for s in group]
  if len(group) > 1:
    checked, n, right = group[0]["exact"] is not None, len(group), sum(s["exact"] or 0 for s in group)
    for k in (1, n):  # unbiased (Chen et al. 2021): the share of the draws of k of the n completions in which one is right
      values[f"pass@{k}"] = [1 - math.comb(n - right, k) / math.comb(n, k) if checked else None]
    values["majority"] = [majority(group) if checked else None]
  known = {name: [v for v in vs if v is not None] for name, vs in values.items()}
  return {name: (float(sum(vs)), len(vs)) for name, vs in known.items()}


def reliability(samples: Sequence[dict[str, Any]]) -> list[list[float | None]]:
  """[completions, their mean confidence, share of right answers] of each of BINS equal bins of confidence from 0 to 1."""
  pairs = np.array([(s["confidence"], s["exact"]) for s in samples if None not in (s["exact"], s["confidence"])], float).reshape(-1, 2)
  chosen = np.minimum((pairs[:, 0] * BINS).astype(int), BINS - 1)
  return [[len(rows), *rows.mean(axis=0).tolist()] if len(rows) else [0, None, None] for rows in (pairs[chosen == i] for i in range(BINS))]


def summarise(groups: dict[str, list[list[dict[str, Any]]]], seed: int) -> list[dict[str, Any]]:
  """Rows of eval.json, checkpoint by checkpoint: the means over all samples and over those of each task, with their intervals.

  Args:
    groups: {checkpoint: the samples of each prompt}; the same prompts in the same order for each.
    seed: of the bootstrap.
  Returns:
    rows; a metric is None where it applies to nothing. With one completion per prompt a share has Wilson's interval; every other mean has that of
    BOOTSTRAP resamples of the prompts. A difference is the mean over prompts and 1.96 of its standard errors.
  """
  rows, measured = [], {ckpt: [measure(group) for group in part] for ckpt, part in groups.items()}
  for ckpt, part in groups.items():
    for task in ["all", *sorted({group[0]["task"] for group in part})]:
      chosen = [i for i, group in enumerate(part) if task in ("all", group[0]["task"])]
      samples = [s for i in chosen for s in part[i]]
      row = {"ckpt": ckpt, "task": task, "n": len(chosen)}
      draws = np.random.default_rng(seed).multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), size=BOOTSTRAP)
      columns = {name: np.array([measured[ckpt][i][name] for i in chosen]) for name in measured[ckpt][chosen[0]]}  # [prompts, (sum, terms)]
      for name, column in columns.items():
        total, terms = column.sum(axis=0)
        row[name] = row[name + "_interval"] = None
        if terms:
          row[name] = float(total / terms)
          drawn = draws @ column
          row[name + "_interval"] = wilson(row[name], int(terms)) if name in SHARES and len(samples) == len(chosen) else (
              np.percentile(drawn[drawn[:, 1] > 0, 0] / drawn[drawn[:, 1] > 0, 1], [2.5, 97.5]).tolist())
      row["n_checked"] = int(columns["exact"][:, 1].sum())
      row["reliability"] = reliability(samples)
      row["failures"] = dict(collections.Counter(s["failure"] for s in samples if s["failure"]).most_common())
      row["differences"] = {}
      for earlier in list(groups)[:list(groups).index(ckpt)]:
        row["differences"][earlier] = differences = {}
        for name in COMPARED:
          theirs = np.array([measured[earlier][i][name] for i in chosen])
          both = (columns[name][:, 1] > 0) & (theirs[:, 1] > 0)
          if both.any():
            gain = columns[name][both, 0] / columns[name][both, 1] - theirs[both, 0] / theirs[both, 1]
            half = 1.96 * gain.std() / len(gain) ** 0.5
            differences[name] = [float(gain.mean()), float(gain.mean() - half), float(gain.mean() + half)]
        if "exact" in differences:  # of the last: the checkpoint named before
          row["gain"], row["gain_interval"] = differences["exact"][0], differences["exact"][1:]
      rows.append(row)
  return rows


def print_table(rows: list[dict[str, Any]]) -> None:
  """Prints one table per task, then intervals and differences of exact and what went wrong."""
  passed = [name for name in rows[0] if name.startswith("pass@") and not name.endswith("_interval")]
  columns = [c for c in ("format_exact", "format_partial", "exact", "partial", "exact_in_format", *passed, "majority", *COLUMNS[4:], "brier")
             if any(r.get(c) is not None for r in rows)]
  width = max(len(r[key]) for r in rows for key in ("ckpt", "task"))
  for task in dict.fromkeys(r["task"] for r in rows):
    chosen = [r for r in rows if r["task"] == task]
    print(f"\n{task:{width}}  {'n':>5}  " + "  ".join(f"{c:>7}" for c in columns))
    for row in chosen:
      cells = ("-" if row[c] is None else f"{row[c]:.1f}" if c == "length" else f"{row[c]:.3f}" if c in ("reward", "brier") else f"{row[c]:.1%}" for c in columns)
      print(f"{row['ckpt']:{width}}  {row['n']:>5}  " + "  ".join(f"{text:>{max(7, len(c))}}" for c, text in zip(columns, cells)))
    for row in chosen:
      text = []
      if row["exact_interval"]:
        text.append("exact {:.1%} ({:.1%} to {:.1%}), n = {}".format(row["exact"], *row["exact_interval"], row["n_checked"]))
        text += ["{:+.1%} ({:+.1%} to {:+.1%}) to {}".format(*gains["exact"], ckpt) for ckpt, gains in row["differences"].items() if "exact" in gains]
      failed = ", ".join(f"{n} {kind}" for kind, n in row["failures"].items())
      if text or failed:
        print(f"  {row['ckpt']}: " + ", ".join(text) + "; " * bool(text and failed) + failed)


# --- What was seen in training ----------------------------------------------------------------------------------------


def training_flags(info: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """The flags of a run and of the legs before it; ValueError where one of those is gone."""
  while True:
    yield info["flags"]
    if info.get("started_from", "base") == "base":
      return
    info = sft.find_checkpoint(info["started_from"])[1]


def seen_in_training(questions: Sequence[str], runs: dict[str, dict[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
  """({question: "same" or "13 words"}, {run: why it could not be checked}) of the questions that the runs' training rows give away.

  "same": a training question, case and white space aside. "13 words": it shares a sequence of GRAM words with one.
  """
  grams = lambda text: {tuple(words[i:i + GRAM]) for words in [re.findall(r"\w+", text)] for i in range(len(words) - GRAM + 1)}
  asked, seen, checked, unchecked = {data.normalise(q): q for q in questions}, {}, set(), {}
  asked_grams = collections.defaultdict(set)
  for text, question in asked.items():
    for gram in grams(text):
      asked_grams[gram].add(question)
  for name, info in runs.items():
    try:
      for flags in training_flags(info):
        source = (flags["data"], flags["seed"], flags["validation_fraction"])
        if source in checked:
          continue
        for example in data.load(flags["data"], "train", seed=flags["seed"], validation_fraction=flags["validation_fraction"]):
          text = data.normalise(example.question)
          if text in asked:
            seen[asked[text]] = "same"
          for gram in grams(text) & asked_grams.keys():
            for question in asked_grams[gram]:
              seen.setdefault(question, f"{GRAM} words")
        checked.add(source)
    except ValueError as e:
      unchecked[name] = " ".join(str(e).split())
  return seen, unchecked


# --- Main -------------------------------------------------------------------------------------------------------------


@data.script(define_flags)
def main(fv: absl_flags.FlagValues) -> None:
  # --- Setup ---
  started = time.time()
  sft.use_compilation_cache()
  if fv.ckpt is None:
    names = ["base"] + [leg for leg in LEGS if sft.has_checkpoint(leg)]
  else:
    names = [name.strip() for name in fv.ckpt.split(",") if name.strip()]
  if not names:
    raise ValueError("--ckpt names no checkpoint: give run folders, or base")
  found = {name: sft.find_checkpoint(name) for name in names if name != "base"}
  models = {info["flags"]["model"] for _, info in found.values()} | ({fv.model} if fv.model else set())
  if len({pathlib.Path(m).name for m in models}) > 1:
    raise ValueError(f"the checkpoints and --model name different models ({', '.join(sorted(models))}): evaluate one at a time")
  fv.model = fv.model or (models.pop() if models else "tiny")
  sft.fill_defaults(fv, DEFAULTS)
  for name in DEFAULTS:
    if name != "data" and fv[name].value <= 0:
      raise ValueError(f"--{name}={fv[name].value} must be positive")
  drawing = DECODING[fv.decoding] | ({} if fv.temperature is None else {"temperature": fv.temperature})
  if drawing["temperature"] < 0 or fv.limit < 0:
    raise ValueError("--temperature and --limit must not be negative")
  if fv.samples < 1:
    raise ValueError(f"--samples={fv.samples} must be positive")
  if fv.samples > 1 and not drawing["temperature"]:
    raise ValueError(f"--samples={fv.samples} greedy completions of a prompt are all the same: add --decoding=standard")
  llm_judge = rewards.make_judge(fv.judge, fv.judge_model, fv.judge_rubric)
  mesh = sft.make_mesh(fv.mesh or f"{jax.device_count()},1")
  adapters = {(info["flags"]["lora_rank"], info["flags"]["lora_alpha"]) for _, info in found.values()}
  if len(adapters) > 1:
    raise ValueError(f"the checkpoints have different (rank, alpha) {sorted(adapters)}: evaluate one kind at a time")
  rank, alpha = adapters.pop() if adapters else (0, 0.0)

  # --- Data ---
  examples = [] if fv.interactive else data.load(fv.data, "test", seed=fv.seed, limit=fv.limit or None)
  folder = data.resolve_model(fv.model)
  sft.check_model(folder, fv.max_prompt_length + fv.max_completion_length)
  tokenizer = sft.load_tokenizer(folder)
  prompts = []
  if examples:
    examples, prompts = sft.encode_prompts(tokenizer, examples, fv.max_prompt_length)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of a batch are alike: little padding
    examples, prompts = [examples[i] for i in by_length], [prompts[i] for i in by_length]
  seen, unchecked = seen_in_training([e.question for e in examples], {name: info for name, (_, info) in found.items()} if examples else {})
  for name, why in unchecked.items():
    print(f"{name}: not known which prompts it was trained on ({why})")
  for kind, n in sorted(collections.Counter(seen.values()).items()):
    some = " | ".join(question[:80] for question in seen if seen[question] == kind)[:240]
    print(f"seen in training ({kind}): {n} of {len(examples)} prompts: {some}")

  # --- Model ---
  model = sft.load_model(folder, mesh, dtype=fv.dtype, lora_rank=rank, lora_alpha=alpha, replicate_base=fv.replicate_base)
  untouched = jax.tree.map(jnp.copy, nnx.state(model, sft.trained_filter(rank)))

  def take(name: str) -> None:
    nnx.update(model, untouched) if name == "base" else sft.restore(model, found[name][0], rank)  # pylint: disable=expression-not-assigned

  sampler = sft.Sampler(model, tokenizer, mesh)
  if fv.interactive:
    take(names[-1])
    return interact(sampler, fv)

  # --- Evaluate ---
  out = pathlib.Path(fv.out) if names[-1] == "base" else found[names[-1]][0].parent.parent
  if not os.access(out, os.W_OK) and out.exists():  # as what is attached to a Kaggle notebook is
    out = pathlib.Path(fv.out)
  out.mkdir(parents=True, exist_ok=True)
  samples_file, stop = out / "eval_samples.jsonl", sft.Stop(started, fv.max_hours)
  # What a completion depends on, but for the prompts of its batch; samples of other settings are of no use.
  settings = json.dumps([fv.model, fv.dtype, fv.max_completion_length, drawing, fv.samples, fv.seed])
  identity = {name: hashlib.sha256(f"{settings} {found[name][0] if name in found else name}".encode()).hexdigest()[:12] for name in names}
  decoded = read_samples(samples_file, set(identity.values()))
  sft.write_atomically(samples_file, "".join(json.dumps(s, ensure_ascii=False) + "\n" for batch in decoded.values() for s in batch))
  by_ckpt, per_batch = {name: [] for name in names}, max(1, fv.batch_size // fv.samples)
  steps = [(name, i) for name in names for i in range(0, len(prompts), per_batch)]
  for name, i in (bar := tqdm(steps, unit="batch")):
    bar.set_description(name)
    if not i:
      take(name)
    part, batch_start = examples[i:i + per_batch], time.time()
    batch = identity[name] + " " + hashlib.sha256(json.dumps([i, *(e.question for e in part)]).encode()).hexdigest()[:12]
    if len(decoded.get(batch, ())) != len(part) * fv.samples:
      completions = sampler(prompts[i:i + per_batch], max_prompt_length=fv.max_prompt_length, max_completion_length=fv.max_completion_length,
                            num_generations=fv.samples, seed=fv.seed + i, **drawing)
      rows = [e for e in part for _ in range(fv.samples)]
      decoded[batch] = [{"ckpt": name, "batch": batch, "task": e.task, "question": e.question, "answer": e.answer, "completion": c.text,
                         **grade(c, e, tokenizer)} for c, e in zip(completions, rows, strict=True)]
      with open(samples_file, "a", encoding="utf-8") as f:
        f.writelines(json.dumps(s, ensure_ascii=False) + "\n" for s in decoded[batch])
      reason = stop.reason(time.time() - batch_start, 5.0, first=not i)
      if reason and (name, i) != steps[-1]:
        bar.close()
        print(f"stopped ({reason}); what was decoded is in {samples_file}, and the same command goes on from there")
        return
    by_ckpt[name] += [decoded[batch][j:j + fv.samples] for j in range(0, len(decoded[batch]), fv.samples)]

  # --- Save ---
  if fv.judge == "self":
    take("base")
    llm_judge.ask = functools.partial(sft.ask, sampler, max_completion_length=fv.max_completion_length)
  for groups in by_ckpt.values():
    samples = [s for group in groups for s in group]
    add_verdicts(llm_judge, samples)
    for sample in samples:
      sample["seen"] = seen.get(sample["question"])
  rows = summarise(by_ckpt, fv.seed)
  report = {"model": fv.model, "data": fv.data, "n": len(examples), "seed": fv.seed, "decoding": fv.decoding, **drawing, "samples": fv.samples,
            "max_completion_length": fv.max_completion_length, "seen_in_training": collections.Counter(seen.values()), "not_checked": unchecked,
            "minutes": round((time.time() - started) / 60, 2), "rows": rows}
  sft.write_atomically(out / "eval.json", json.dumps(report, indent=2) + "\n")
  sft.write_atomically(samples_file, "".join(json.dumps(s, ensure_ascii=False) + "\n" for groups in by_ckpt.values() for group in groups for s in group))
  print_table(rows)
  if llm_judge:
    print("\njudge: " + ", ".join(f"{n} {name}" for name, n in llm_judge.take_counts().items()))
  print(f"\n{fv.model} on {fv.data}: {len(examples)} prompts, wrote {out}/eval.json and eval_samples.jsonl ({report['minutes']} minutes)")


def read_samples(path: pathlib.Path, identities: set[str]) -> dict[str, list[dict[str, Any]]]:
  """Samples of earlier, stopped evaluations by batch; those of other settings and a half-written line are left out."""
  batches = collections.defaultdict(list)
  for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
    sample = json.loads(line) if line.endswith("\n") else {}
    if sample.get("batch", "").split(" ")[0] in identities:
      batches[sample["batch"]].append(sample)
  return batches


def interact(sampler: sft.Sampler, fv: absl_flags.FlagValues) -> None:
  """Reads questions until an empty line or end of file; prints the completion of each."""
  print("A question per line; an empty line ends.")
  while True:
    try:
      question = input("> ").strip()
    except EOFError:
      return
    if not question:
      return
    ids = sft.encode(sampler.tokenizer, data.format_prompt(question), bos=True)
    if len(ids) > fv.max_prompt_length:
      print(f"({len(ids)} tokens; --max_prompt_length={fv.max_prompt_length})")
      continue
    print(sampler([ids], max_prompt_length=fv.max_prompt_length, max_completion_length=fv.max_completion_length, temperature=fv.temperature, seed=fv.seed)[0].text)


if __name__ == "__main__":
  main()
