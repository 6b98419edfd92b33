"""Evaluation: what each leg of the relay was worth, on the same prompts, and a prompt to try the result.

Greedy by default, as the hackathon's judges sample. For every checkpoint and every task it reports, with n:

  format_exact     one reasoning block, one answer block, nothing else
  format_partial   an answer can be read, the format is not exact; exact ones count too
  exact            the answer equals the gold answer (rows with a gold answer of a verifiable task)
  partial          the answer is within 10% of the gold answer; exact ones count too
  reward           the reward of rewards.py's router, as in the mixed leg
  judge            share of the checklist that --judge finds met, mean over the open-ended rows that it answered for
  judge_failed     share of the open-ended rows that it did not answer for: no reply, or no plain yes or no
  truncated        cut off at --max_completion_length
  length           tokens of a completion, mean

Shares of right answers come with their 95% interval (Wilson), and with the difference to the checkpoint named before,
over the same prompts, with its own.

  python eval.py                                            # base and the legs found in runs/
  python eval.py --ckpt=base,runs/sft,runs/math --data=gsm8k --limit=200
  python eval.py --ckpt=runs/mixed --interactive

Writes eval.json and eval_samples.jsonl into the run folder of the last checkpoint named (into --out if only the base is).
The samples are written batch by batch: stopped, by --max_hours or otherwise, the same command goes on behind the last one.
"""
from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import pathlib
import time
from typing import Any

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
COLUMNS = ("format_exact", "format_partial", "exact", "partial", "reward", "judge", "judge_failed", "truncated", "length")


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
  string("out", "runs/base", "Folder for the results when no run folder is named in --ckpt, or it cannot be written.")
  rewards.define_judge_flags(fv)
  # How
  integer("max_prompt_length", None, "Tokens of a prompt; longer ones are dropped and counted." + by_model("max_prompt_length"))
  integer("max_completion_length", None, "Tokens of a completion." + by_model("max_completion_length"))
  integer("batch_size", None, "Prompts decoded at a time." + by_model("batch_size"))
  absl_flags.DEFINE_float("max_hours", 8.5, "Wall time from the start of main; what was decoded by then is kept.", flag_values=fv)
  absl_flags.DEFINE_float("temperature", 0.0, "Sampling temperature; 0 is greedy.", flag_values=fv)
  integer("seed", 0, "Seed of the sample of prompts and of sampling.")
  string("mesh", None, "Devices as fsdp,tp (default: all of them,1).")
  absl_flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Type of the base weights, as in sft.py.", flag_values=fv)
  absl_flags.DEFINE_bool("replicate_base", False, "As in sft.py.", flag_values=fv)
  absl_flags.DEFINE_bool("interactive", False, "Answer questions typed at the terminal, with the last checkpoint.", flag_values=fv)


def grade(completion: sft.Completion, example: data.Example) -> dict[str, Any]:
  """One completion's row: format, exact, partial (None without a gold answer to check), reward, truncated, length."""
  form = rewards.parse(completion.text).format
  return {
      "format_exact": form == "exact", "format_partial": form in ("exact", "partial"),
      "exact": rewards.is_correct(completion.text, example.answer) if example.checkable else None,
      "partial": rewards.is_close(completion.text, example.answer) if example.checkable else None,
      "reward": rewards.score(example.question, completion.text, example.answer, example.task)["total"],
      "truncated": completion.truncated, "length": len(completion.ids)}


def add_verdicts(llm_judge: rewards.Judge | None, samples: list[dict[str, Any]]) -> None:
  """Adds judge and judge_failed to the samples of open-ended prompts, None to the others."""
  opened = [s for s in samples if llm_judge and not rewards.is_checked(s["task"], s["answer"])]
  columns = [[s[key] for s in opened] for key in ("question", "completion", "task")]
  verdicts = llm_judge(*columns, neutral=None) if opened else []
  for sample in samples:
    sample["judge"] = sample["judge_failed"] = None
  for sample, verdict in zip(opened, verdicts, strict=True):
    sample["judge"], sample["judge_failed"] = verdict, verdict is None


def wilson(share: float, n: int) -> list[float]:
  """95% interval of a share of n trials (Wilson 1927). (0.5, 100) -> [0.404, 0.596]"""
  z = 1.96
  centre, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
  return [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]


def summarise(ckpt: str, samples: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows of eval.json: means over all samples and over those of each task; None where nothing could be checked.

  `before` are the samples of the checkpoint named before, of the same prompts in the same order, or none.
  """
  rows = []
  for task in ["all", *sorted({s["task"] for s in samples})]:
    chosen = [i for i, s in enumerate(samples) if task in ("all", s["task"])]
    row = {"ckpt": ckpt, "task": task, "n": len(chosen)}
    for column in COLUMNS:
      values = [samples[i][column] for i in chosen if samples[i][column] is not None]
      row[column] = float(np.mean(values)) if values else None
    checked = [i for i in chosen if samples[i]["exact"] is not None]
    row["n_checked"] = len(checked)
    row["exact_interval"] = wilson(row["exact"], len(checked)) if checked else None
    if checked and before:
      gain = np.array([float(samples[i]["exact"]) - before[i]["exact"] for i in checked])
      half = 1.96 * gain.std() / len(gain) ** 0.5
      row["gain"], row["gain_interval"] = gain.mean(), [gain.mean() - half, gain.mean() + half]
    rows.append(row)
  return rows


def print_table(rows: list[dict[str, Any]]) -> None:
  tasks = list(dict.fromkeys(r["task"] for r in rows))
  columns = [c for c in COLUMNS if not c.startswith("judge") or any(r[c] is not None for r in rows)]
  width = max(len(r["ckpt"]) for r in rows)
  for task in tasks:
    print(f"\n{task:{width}}  {'n':>5}  " + "  ".join(f"{c:>14}" for c in columns))
    for row in (r for r in rows if r["task"] == task):
      cells = ("-" if row[c] is None else f"{row[c]:.1f}" if c == "length" else f"{row[c]:.3f}" if c == "reward" else f"{row[c]:.1%}" for c in columns)
      print(f"{row['ckpt']:{width}}  {row['n']:>5}  " + "  ".join(f"{c:>14}" for c in cells))
    for row in (r for r in rows if r["task"] == task and r["exact_interval"]):
      text = "{}: exact {:.1%} ({:.1%} to {:.1%}), n = {}".format(row["ckpt"], row["exact"], *row["exact_interval"], row["n_checked"])
      print("  " + text + (", {:+.1%} ({:+.1%} to {:+.1%}) to the row above".format(row["gain"], *row["gain_interval"]) if "gain" in row else ""))


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
  for name in ("max_hours", *DEFAULTS):
    if name != "data" and fv[name].value <= 0:
      raise ValueError(f"--{name}={fv[name].value} must be positive")
  if fv.temperature < 0 or fv.limit < 0:
    raise ValueError("--temperature and --limit must not be negative")
  if not 0 <= fv.seed < 2**31:
    raise ValueError(f"--seed={fv.seed} must lie between 0 and 2**31 - 1")
  llm_judge = rewards.make_judge(fv.judge, fv.judge_model, fv.judge_rubric)
  mesh = sft.make_mesh(fv.mesh or f"{jax.device_count()},1")
  adapters = {(info["flags"]["lora_rank"], info["flags"]["lora_alpha"]) for _, info in found.values()}
  if len(adapters) > 1:
    raise ValueError(f"the checkpoints have different (rank, alpha) {sorted(adapters)}: evaluate one kind at a time")
  rank, alpha = adapters.pop() if adapters else (0, 0.0)
  out = pathlib.Path(fv.out) if names[-1] == "base" else found[names[-1]][0].parent.parent
  if not os.access(out, os.W_OK) and out.exists():  # as what is attached to a Kaggle notebook is
    out = pathlib.Path(fv.out)
  if not fv.interactive:
    out.mkdir(parents=True, exist_ok=True)

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
  samples_file, stop = out / "eval_samples.jsonl", sft.Stop(started, fv.max_hours)
  # What a completion depends on, but for the prompts of its batch; samples of other settings are of no use.
  settings = json.dumps([fv.model, fv.dtype, fv.max_completion_length, fv.temperature, fv.seed])
  identity = {name: hashlib.sha256(f"{settings} {found[name][0] if name in found else name}".encode()).hexdigest()[:12] for name in names}
  decoded = read_samples(samples_file, set(identity.values()))
  sft.write_atomically(samples_file, sft.jsonl(s for batch in decoded.values() for s in batch))
  by_ckpt = {}
  for name in names:
    take(name)
    by_ckpt[name] = []
    for i in tqdm(range(0, len(prompts), fv.batch_size), desc=name, unit="batch"):
      part, batch_start = examples[i:i + fv.batch_size], time.time()
      batch = identity[name] + " " + hashlib.sha256(json.dumps([i, *(e.question for e in part)]).encode()).hexdigest()[:12]
      if len(decoded.get(batch, ())) != len(part):
        completions = sampler(prompts[i:i + fv.batch_size], max_prompt_length=fv.max_prompt_length,
                              max_completion_length=fv.max_completion_length, temperature=fv.temperature, seed=fv.seed + i)
        decoded[batch] = [{"ckpt": name, "batch": batch, "task": e.task, "question": e.question, "answer": e.answer, "completion": c.text,
                           **grade(c, e)} for c, e in zip(completions, part, strict=True)]
        with open(samples_file, "a", encoding="utf-8") as f:
          f.write(sft.jsonl(decoded[batch]))
        reason = stop.reason(time.time() - batch_start, 5.0, first=not i)
        if reason and not (name == names[-1] and i + fv.batch_size >= len(prompts)):
          print(f"stopped ({reason}); what was decoded is in {samples_file}, and the same command goes on from there")
          return
      by_ckpt[name] += decoded[batch]

  # --- Save ---
  if fv.judge == "self":
    take("base")
    llm_judge.ask = functools.partial(sft.ask, sampler, max_completion_length=fv.max_completion_length)
  rows, before = [], []
  for name, samples in by_ckpt.items():
    add_verdicts(llm_judge, samples)
    rows += summarise(name, samples, before)
    before = samples
  samples = [s for part in by_ckpt.values() for s in part]
  report = {"model": fv.model, "data": fv.data, "n": len(examples), "seed": fv.seed, "temperature": fv.temperature,
            "max_completion_length": fv.max_completion_length, "minutes": round((time.time() - started) / 60, 2), "rows": rows}
  sft.write_atomically(out / "eval.json", json.dumps(report, indent=2) + "\n")
  sft.write_atomically(samples_file, sft.jsonl(samples))
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
