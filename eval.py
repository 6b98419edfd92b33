"""Evaluation: what each leg of the relay was worth, on the same prompts, and a prompt to try the result.

Greedy by default, as the hackathon's judges sample. For every checkpoint and every task it reports, with n:

  format_exact     one reasoning block, one answer block, nothing else
  format_partial   an answer can be read, the format is not exact; exact ones count too
  exact            the answer equals the gold answer (rows with a gold answer of a verifiable task)
  partial          the answer is within 10% of the gold answer; exact ones count too
  truncated        cut off at --max_completion_length
  length           tokens of a completion, mean

  python eval.py                                            # base and the legs found in runs/
  python eval.py --ckpt=base,runs/sft,runs/math --data=gsm8k --limit=200
  python eval.py --ckpt=runs/mixed --interactive

Writes eval.json and eval_samples.jsonl into the run folder of the last checkpoint named (into --out if only the base is).
"""
from __future__ import annotations

import functools
import json
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
COLUMNS = ("format_exact", "format_partial", "exact", "partial", "truncated", "length")


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
  string("out", "runs/base", "Folder for the results when no run folder is named in --ckpt.")
  # How
  integer("max_prompt_length", None, "Tokens of a prompt; longer ones are dropped and counted." + by_model("max_prompt_length"))
  integer("max_completion_length", None, "Tokens of a completion." + by_model("max_completion_length"))
  integer("batch_size", None, "Prompts decoded at a time." + by_model("batch_size"))
  absl_flags.DEFINE_float("temperature", 0.0, "Sampling temperature; 0 is greedy.", flag_values=fv)
  integer("seed", 0, "Seed of the sample of prompts and of sampling.")
  string("mesh", None, "Devices as fsdp,tp (default: all of them,1).")
  absl_flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Type of the base weights, as in sft.py.", flag_values=fv)
  absl_flags.DEFINE_bool("replicate_base", False, "As in sft.py.", flag_values=fv)
  absl_flags.DEFINE_bool("interactive", False, "Answer questions typed at the terminal, with the last checkpoint.", flag_values=fv)


def judge(completion: sft.Completion, example: data.Example) -> dict[str, Any]:
  """One completion's row: format, exact, partial (None without a gold answer to check), truncated, length."""
  form = rewards.parse(completion.text).format
  return {
      "format_exact": form == "exact", "format_partial": form in ("exact", "partial"),
      "exact": rewards.is_correct(completion.text, example.answer) if example.checkable else None,
      "partial": rewards.is_close(completion.text, example.answer) if example.checkable else None,
      "truncated": completion.truncated, "length": len(completion.ids)}


def summarise(ckpt: str, tasks: list[str], judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows of eval.json: means over all prompts and over those of each task; None where nothing could be checked."""
  rows = []
  for task in ["all", *sorted(set(tasks))]:
    chosen = [j for j, t in zip(judged, tasks) if task in ("all", t)]
    row = {"ckpt": ckpt, "task": task, "n": len(chosen), "n_checked": sum(j["exact"] is not None for j in chosen)}
    for column in COLUMNS:
      values = [j[column] for j in chosen if j[column] is not None]
      row[column] = float(np.mean(values)) if values else None
    rows.append(row)
  return rows


def print_table(rows: list[dict[str, Any]]) -> None:
  tasks = list(dict.fromkeys(r["task"] for r in rows))
  width = max(len(r["ckpt"]) for r in rows)
  for task in tasks:
    print(f"\n{task:{width}}  {'n':>5}  " + "  ".join(f"{c:>14}" for c in COLUMNS))
    for row in (r for r in rows if r["task"] == task):
      cells = ("-" if row[c] is None else f"{row[c]:.1f}" if c == "length" else f"{row[c]:.1%}" for c in COLUMNS)
      print(f"{row['ckpt']:{width}}  {row['n']:>5}  " + "  ".join(f"{c:>14}" for c in cells))


def main(fv: absl_flags.FlagValues) -> None:
  # --- Setup ---
  started = time.time()
  sft.use_compilation_cache()
  if fv.ckpt is None:
    names = ["base"] + [leg for leg in LEGS if (pathlib.Path(leg) / "actor").is_dir()]
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
  if fv.temperature < 0 or fv.limit < 0:
    raise ValueError("--temperature and --limit must not be negative")
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
  rows, samples = [], []
  for name in names:
    take(name)
    completions = []
    for i in tqdm(range(0, len(prompts), fv.batch_size), desc=name, unit="batch"):
      completions += sampler(
          prompts[i:i + fv.batch_size], max_prompt_length=fv.max_prompt_length,
          max_completion_length=fv.max_completion_length, temperature=fv.temperature, seed=fv.seed + i)
    judged = [judge(c, e) for c, e in zip(completions, examples, strict=True)]
    rows += summarise(name, [e.task for e in examples], judged)
    samples += [{"ckpt": name, "task": e.task, "question": e.question, "answer": e.answer, "completion": c.text, **j}
                for c, e, j in zip(completions, examples, judged)]

  # --- Save ---
  out = pathlib.Path(fv.out) if names[-1] == "base" else found[names[-1]][0].parent.parent
  out.mkdir(parents=True, exist_ok=True)
  report = {"model": fv.model, "data": fv.data, "n": len(examples), "seed": fv.seed, "temperature": fv.temperature,
            "max_completion_length": fv.max_completion_length, "minutes": round((time.time() - started) / 60, 2), "rows": rows}
  sft.write_atomically(out / "eval.json", json.dumps(report, indent=2) + "\n")
  sft.write_atomically(out / "eval_samples.jsonl", "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
  print_table(rows)
  print(f"\n{fv.model} on {fv.data}: {len(examples)} prompts, wrote {out}/eval.json and eval_samples.jsonl ({report['minutes']} minutes)")


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
  data.run_script(main, define_flags)
