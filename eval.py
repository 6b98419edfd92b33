"""Evaluation: what each leg of the relay was worth, on the same prompts, and a prompt to try the result.

Greedy by default, as the hackathon's judges sample; --decoding names the other presets. For every checkpoint and every
task, with n and 95% intervals (docs/eval.md says how each is computed):

  format_exact     one reasoning block, one answer block, nothing else
  format_partial   one of the two blocks can be read; exact ones count too
  exact            the answer equals the gold answer (rows with a gold answer of a verifiable task)
  partial          the answer is within 10% of the gold answer; exact ones count too
  exact_in_format  exact, among the completions of exact format
  pass@k, majority with --samples=k: one of k completions is right, their most frequent answer is; pass@1: the share that is
  brier            mean squared difference between confidence and being right, and reliability bins; see answer_confidence
  reward           the reward of rewards.py's router, as in the mixed leg, and its parts, which add up to it
  judge            share of the checklist that --judge finds met, mean over the open-ended rows that it answered for
  judge_failed     share of the open-ended rows that it did not answer for: no reply, or no plain yes or no
  truncated        cut off at --max_completion_length
  length           tokens of a completion, mean
  failures         completions by what went wrong with them; see failure

and the paired differences of every two checkpoints. Prompts that the evaluated runs were trained on are counted and marked.

  python eval.py                                            # base and the legs found in runs/
  python eval.py --data=gsm8k                               # GSM8K's test set, all 1319 problems (long prompts: not for tiny)
  python eval.py --ckpt=base,runs/sft,runs/math --decoding=standard --samples=8
  python eval.py --ckpt=runs/mixed --interactive

Writes eval.json and eval_samples.jsonl into the run folder of the last checkpoint named, or into --out; what an evaluation
before left there goes when this one is complete. The samples are written batch by batch: stopped, by --max_hours or
otherwise, the same command goes on behind the last one.
"""
from __future__ import annotations

import base64
import bisect
import collections
import contextlib
import dataclasses
import functools
import hashlib
import html
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import sys
import textwrap
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
CHUNK = 16  # tokens from one print of --interactive to the next


def define_flags(fv: absl_flags.FlagValues) -> None:
  """Defines this script's flags on `fv`; called only when the file is the program."""
  string = functools.partial(absl_flags.DEFINE_string, flag_values=fv)
  integer = functools.partial(absl_flags.DEFINE_integer, flag_values=fv)
  by_model = functools.partial(sft.default_note, DEFAULTS)
  # What
  string("ckpt", None, "Run or step folders, comma-separated; base is the untouched model (default: base and the legs found in runs/).")
  string("model", None, "As in sft.py (default: the model of the checkpoints, else tiny).")
  string("data", None, "As in sft.py; of a file all rows are used." + by_model("data"))
  integer("limit", 1500, "Prompts evaluated, at most; 0: all (of synthetic data, 1000).")
  integer("samples", 1, "Completions of each prompt, for pass@k and majority vote.")
  string("out", None, "Folder for the results (default: the run folder of the last checkpoint; runs/base if that is the base, or cannot be written).")
  rewards.define_judge_flags(fv)
  # How
  integer("max_prompt_length", None, "Tokens of a prompt; longer ones are dropped and counted." + by_model("max_prompt_length"))
  integer("max_completion_length", None, "Tokens of a completion." + by_model("max_completion_length"))
  integer("batch_size", None, "Completions decoded at a time, but at least --samples." + by_model("batch_size"))
  absl_flags.DEFINE_float("max_hours", 8.5, "Wall time from the start of main; what was decoded by then is kept.", flag_values=fv)
  absl_flags.DEFINE_enum("decoding", "greedy", list(DECODING), "How completions are drawn: " + "; ".join(
      f"{name}: " + ", ".join(f"{k} {v}" for k, v in preset.items()) for name, preset in DECODING.items()) + ".", flag_values=fv)
  absl_flags.DEFINE_float("temperature", None, "Sampling temperature in place of that of --decoding; 0 is greedy.", flag_values=fv)
  integer("seed", 0, "Seed of the sample of prompts and of sampling.")
  string("mesh", None, "Devices as fsdp,tp (default: all of them,1).")
  absl_flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Type of the base weights, as in sft.py.", flag_values=fv)
  absl_flags.DEFINE_bool("replicate_base", False, "As in sft.py.", flag_values=fv)
  string("report", "", "FILE.html: the tables, plots (as FILE-*.png, too) and completions of this evaluation, and the training curves of the runs.")
  string("export", "", "hf:DIR writes the last checkpoint's merged weights in Hugging Face format (in --dtype), kaggle:DIR its Orbax parameters, "
         "each with tokenizer and model card.")
  absl_flags.DEFINE_bool("interactive", False, "Answer questions typed at the terminal, with the last checkpoint.", flag_values=fv)
  string("prompt", "", "A question: prints the last checkpoint's completion, and nothing else on standard output.")
  string("input", "", "A file with a question per line: prints {question, completion} as JSON lines.")


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
  start, end = list(re.finditer(rf"(?<=<answer>)\s*{re.escape(parsed.answer)}\s*(?=</answer>)", completion.text))[-1].span()
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
  votes, right = collections.Counter(), {}
  for sample in group:
    if answer := rewards.parse(sample["completion"]).answer:
      answer = next((other for other in votes if rewards.is_correct(sample["completion"], other)), answer)
      votes[answer] += 1
      right.setdefault(answer, sample["exact"])
  return bool(votes) and right[votes.most_common(1)[0][0]]


def measure(group: Sequence[dict[str, Any]]) -> dict[str, tuple[float, int]]:
  """{metric: (sum, number of terms)} over one prompt's completions, as far as a metric applies to them."""
  names = [*COLUMNS, *(key for key in group[0] if key.startswith("reward/"))]
  values = {name: [s[name] for s in group] for name in names}
  values["exact_in_format"] = [s["exact"] if s["format_exact"] else None for s in group]
  values["brier"] = [None if None in (s["exact"], s["confidence"]) else (s["confidence"] - s["exact"]) ** 2 for s in group]
  if len(group) > 1:
    checked, n, right = group[0]["exact"] is not None, len(group), sum(s["exact"] or 0 for s in group)
    for name, value in (("pass@1", right / n), (f"pass@{n}", right > 0), ("majority", checked and majority(group))):
      values[name] = [value if checked else None]
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
    rows; a metric is None where it applies to nothing. With one completion per prompt, or where none or all are, a share has Wilson's interval, of as
    many trials as prompts; every other mean has that of BOOTSTRAP resamples of the prompts. A difference is the mean over prompts, its interval 1.96
    standard errors to either side; for shares of one completion per prompt, or where no prompt differs, with Agresti's and Min's correction, so that
    no difference seen is not taken for certainty.
  """
  rows, measured = [], {ckpt: [measure(group) for group in part] for ckpt, part in groups.items()}
  for ckpt, part in groups.items():
    for task in ["all", *sorted({group[0]["task"] for group in part})]:
      chosen = [i for i, group in enumerate(part) if task in ("all", group[0]["task"])]
      samples = [s for i in chosen for s in part[i]]
      single = len(samples) == len(chosen)
      row = {"ckpt": ckpt, "task": task, "n": len(chosen), "completions": len(samples)}
      draws = np.random.default_rng(seed).multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), size=BOOTSTRAP)
      columns = {name: np.array([measured[ckpt][i][name] for i in chosen]) for name in measured[ckpt][chosen[0]]}  # [prompts, (sum, terms)]
      for name, column in columns.items():
        total, terms = column.sum(axis=0)
        row[name] = row[name + "_interval"] = None
        if terms:
          row[name] = float(total / terms)
          drawn = draws @ column
          share = (name in SHARES or name == "majority" or "@" in name) and (single or total in (0, terms))
          row[name + "_interval"] = wilson(row[name], int((column[:, 1] > 0).sum())) if share else (
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
            pairs, total, squares = len(gain), gain.sum(), (gain ** 2).sum()
            if name in SHARES and (single or not squares):  # half a pair more of each of the four kinds (Agresti and Min 2005)
              pairs, squares = pairs + 2, squares + 1
            half = 1.96 * (max(0.0, squares / pairs - (total / pairs) ** 2) / pairs) ** 0.5
            differences[name] = [float(gain.mean()), float(total / pairs - half), float(total / pairs + half)]
        if "exact" in differences:  # of the last: the checkpoint named before
          row["gain"], row["gain_interval"] = differences["exact"][0], differences["exact"][1:]
      rows.append(row)
  return rows


def shown(name: str, value: float | None) -> str:
  """A metric's value as the tables print it."""
  return "-" if value is None else f"{value:.1f}" if name == "length" else f"{value:.3f}" if name in ("reward", "brier") else f"{value:.1%}"


def shown_columns(rows: list[dict[str, Any]]) -> list[str]:
  """The metrics that the tables show: those that apply to anything, but for the reward's parts."""
  passed = [name for name in rows[0] if name.startswith("pass@") and not name.endswith("_interval")]
  names = ("format_exact", "format_partial", "exact", "partial", "exact_in_format", *passed, "majority", *COLUMNS[4:], "brier")
  return [name for name in names if any(row.get(name) is not None for row in rows)]


def print_table(rows: list[dict[str, Any]]) -> None:
  """Prints one table per task, then intervals and differences of exact and what went wrong."""
  columns = shown_columns(rows)
  width = max(len(r[key]) for r in rows for key in ("ckpt", "task"))
  for task in dict.fromkeys(r["task"] for r in rows):
    chosen = [r for r in rows if r["task"] == task]
    print(f"\n{task:{width}}  {'n':>5}  " + "  ".join(f"{c:>7}" for c in columns))
    for row in chosen:
      print(f"{row['ckpt']:{width}}  {row['n']:>5}  " + "  ".join(f"{shown(c, row[c]):>{max(7, len(c))}}" for c in columns))
    for row in chosen:
      text = []
      if row["exact_interval"]:
        text.append("exact {:.1%} ({:.1%} to {:.1%}), n = {}".format(row["exact"], *row["exact_interval"], row["n_checked"]))
        text += ["{:+.1%} ({:+.1%} to {:+.1%}) to {}".format(*gains["exact"], ckpt) for ckpt, gains in row["differences"].items() if "exact" in gains]
      failed = ", ".join(f"{n} {kind}" for kind, n in row["failures"].items())
      if text or failed:
        print(f"  {row['ckpt']}: " + ", ".join(text) + "; " * bool(text and failed) + failed)


# --- What was seen in training ----------------------------------------------------------------------------------------


def training_flags(run: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The flags of a run and of the legs before it; ValueError where one of those is gone."""
  while True:
    info = sft.read_run(run)
    yield info["flags"]
    start = pathlib.Path(info.get("started_from", "base"))
    if start.name == "base":
      return
    beside = run.parent.joinpath(*start.parts[-3:])
    if start.parent.parent.parent == pathlib.Path(info["flags"]["out"]).parent and beside.exists():
      start = beside  # a relay's folder may have been renamed since, and another relay have its name
    run = sft.find_step(start).parents[1]


def seen_in_training(questions: Sequence[str], runs: dict[str, pathlib.Path]) -> tuple[dict[str, str], dict[str, str]]:
  """({question: "same" or "shares 13 words"}, {run: why it could not be checked}) of the questions that the runs' training rows give away.

  "same": a training question, case and white space aside. "shares 13 words": it shares a sequence of GRAM words with one.
  """
  grams = lambda text: {tuple(words[i:i + GRAM]) for words in [re.findall(r"\w+", text)] for i in range(len(words) - GRAM + 1)}
  asked, seen, checked, unchecked = {data.normalise(q): q for q in questions}, {}, set(), {}
  asked_grams = collections.defaultdict(set)
  for text, question in asked.items():
    for gram in grams(text):
      asked_grams[gram].add(question)
  for name, run in runs.items():
    try:
      for flags in training_flags(run):
        source = (flags["data"], flags["seed"], flags["validation_fraction"])
        if source in checked:
          continue
        for example in data.load(flags["data"], "train", seed=flags["seed"], validation_fraction=flags["validation_fraction"]):
          text = data.normalise(example.question)
          if text in asked:
            seen[asked[text]] = "same"
          for gram in grams(text) & asked_grams.keys():
            for question in asked_grams[gram]:
              seen.setdefault(question, f"shares {GRAM} words")
        checked.add(source)
    except ValueError as e:
      unchecked[name] = " ".join(str(e).split())
  return seen, unchecked


# --- Report -----------------------------------------------------------------------------------------------------------

PANELS = {  # training curves: metrics of metrics.jsonl
    "loss of supervised steps": ("loss", "validation_loss"), "reward": ("reward", "validation_reward"),
    "parts of the reward": tuple(f"reward/{fn.__name__}" for fn in REWARD_FNS), "correct and format": ("correct", "format", "validation_correct"),
    "KL to the leg's start": ("kl",), "tokens of a completion": ("completion_length",),
    "seconds of a step": ("time/rollout", "time/reward", "time/reference", "time/update", "time/step")}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#1c2530;max-width:1240px;margin:0 auto;padding:0 16px}h1{font-size:24px}h2{font-size:19px;margin-top:36px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:12px}.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,280px),1fr))}img{width:100%;height:auto}.wide{overflow-x:auto}
table{border-spacing:0;font-size:14px;font-variant-numeric:tabular-nums}td{white-space:nowrap;vertical-align:top}th{vertical-align:bottom}td,th{padding:4px 6px;text-align:right;border-bottom:1px solid #dde3ea}
td:first-child,th:first-child{text-align:left;position:sticky;left:0;background:#fff}small{display:block;font-size:12px;color:#64717f}summary{cursor:pointer;font-weight:600;padding:6px 0}
select{font:inherit;margin-right:8px}article{border-top:1px solid #dde3ea;padding:12px 0}article h3{font-size:15px;margin:0 0 8px;white-space:pre-wrap;overflow-wrap:anywhere}
section{background:#f5f7fa;border-radius:6px;padding:8px 10px;min-width:0}section h4{margin:0 0 6px;font-size:14px}pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:13px/1.45 ui-monospace,monospace}
.right,.wrong{border-radius:4px;padding:0 6px;color:#fff;font-weight:500;float:right}.right{background:#2a7d4f}.wrong{background:#b3423a}.reasoning{color:#5b6b7b}.answer{font-weight:700;background:#fff3c4}.tag{color:#9aa7b4}
.parts{display:flex;height:8px;background:#dde3ea;border-radius:4px;overflow:hidden;margin:8px 0 2px}.parts i{background:#4c78a8}.parts i:nth-child(2){background:#f58518}.parts i:nth-child(3){background:#54a24b}.parts i:nth-child(4){background:#b279a2}"""
SCRIPT = """for (const s of document.querySelectorAll("select")) s.onchange = () => { const [task, change] = [...document.querySelectorAll("select")].map(s => s.value);
for (const a of document.querySelectorAll("article")) a.hidden = (task && a.dataset.task != task) || (change && a.dataset.change != change); };"""


def draw_plots(rows: list[dict[str, Any]], runs: dict[str, tuple[int, pathlib.Path]]) -> dict[str, Any]:
  """{title: matplotlib figure}: training curves of the runs, {name: (last step, folder)}, one after the other; then plots of the table."""
  from matplotlib import figure  # imported late: it is slow
  figures, end, logged = {}, 0, []  # logged: [(run, steps before it, records)]
  for name, (step, folder) in runs.items():
    logged.append((name, end, [r for r in sft.read_jsonl(folder / "metrics.jsonl") if r["step"] <= step]))
    end += step

  def new(title: str) -> Any:
    figures[title] = figure.Figure(figsize=(4.6, 3.1), dpi=150, layout="constrained")
    axes = figures[title].subplots()
    figures[title].suptitle(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    return axes

  def explain(title: str) -> None:
    handles, labels = figures[title].axes[0].get_legend_handles_labels()
    columns = 331 // (34 + 4 * max(map(len, labels), default=0))  # a letter is 4 points wide, the figure 331
    figures[title].legend(handles, labels, loc="outside lower center", ncols=max(1, min(4, columns)), fontsize=7, frameon=False)

  for title, keys in PANELS.items():
    curves = {}
    for name, before, records in logged:
      for key in keys:
        points = [(before + r["step"], r[key]) for r in records if r.get(key) is not None and (key != "loss" or "reward" not in r)]
        curves.setdefault(key, []).append(np.array(points, float).reshape(-1, 2))
    curves = {key: parts for key, parts in curves.items() if any(len(part) and part[:, 1].any() for part in parts)}
    axes = new(title) if curves else None
    for i, (key, parts) in enumerate(curves.items()):
      for part in parts:
        window = max(1, len(part) // 25)
        smooth = np.convolve(part[:, 1], np.full(window, 1 / window), "valid") if len(part) else []
        axes.plot(part[window - 1:, 0], smooth, color=f"C{i}", lw=1.4, marker="." if key.startswith("validation") else None)
        axes.plot(*part.T, color=f"C{i}", alpha=0.25, lw=0.6)
      axes.plot([], [], color=f"C{i}", label=key.split("/")[-1].replace("_", " "))
    if axes:
      axes.set_xlabel(textwrap.fill("step, " + ", then ".join(name for name, _, _ in logged), 64), fontsize=8)
      for _, before, _ in logged[1:]:
        axes.axvline(before, color="0.6", lw=0.8, ls=":")
      explain(title)

  ckpts, tasks = (list(dict.fromkeys(r[key] for r in rows if r["exact"] is not None)) for key in ("ckpt", "task"))
  if ckpts:
    axes = new("exact answers by task")
    for i, ckpt in enumerate(ckpts):
      chosen = [r for r in rows if r["ckpt"] == ckpt and r["task"] in tasks]
      values = np.array([r["exact"] or 0.0 for r in chosen])
      reach = [np.clip(r["exact_interval"] or [0, 0], 0, 1) for r in chosen]
      axes.bar(np.arange(len(chosen)) + i / (len(ckpts) + 1), values, 0.9 / (len(ckpts) + 1), label=ckpt, color=f"C{i}",
               yerr=np.maximum(0, [values - [low for low, _ in reach], [high for _, high in reach] - values]), error_kw={"lw": 0.8})
    axes.set_xticks(np.arange(len(tasks)) + 0.5 * (len(ckpts) - 1) / (len(ckpts) + 1), tasks, fontsize=8)
    explain("exact answers by task")
    axes = new("calibration: confidence and being right")
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=":")
    for i, ckpt in enumerate(ckpts):
      bins = np.array([b for r in rows if (r["ckpt"], r["task"]) == (ckpt, "all") for b in r["reliability"] if b[0]], float).reshape(-1, 3)
      axes.plot(bins[:, 1], bins[:, 2], color=f"C{i}", label=ckpt, lw=1)
      axes.scatter(bins[:, 1], bins[:, 2], s=6 + 90 * bins[:, 0] / max(1, bins[:, 0].sum()), color=f"C{i}")
    axes.set_xlabel("mean confidence of a bin (area: its share of completions)", fontsize=8)
    explain("calibration: confidence and being right")
  axes = new("what went wrong, share of completions")
  whole, left = [r for r in rows if r["task"] == "all"], np.zeros(len({r["ckpt"] for r in rows}))
  for kind in dict.fromkeys(kind for r in whole for kind in r["failures"]):
    width = np.array([r["failures"].get(kind, 0) / r["completions"] for r in whole])
    axes.barh([r["ckpt"] for r in whole], width, left=left, label=kind)
    left += width
  axes.invert_yaxis()
  explain("what went wrong, share of completions")
  return figures


def marked(text: str) -> str:
  """A completion as HTML: all of it escaped, tags, reasoning and answer in elements of their own that are always closed."""
  inside, out = "", []
  for piece in re.split(r"(</?(?:reasoning|answer)>)", text):
    tag = re.fullmatch(r"<(/?)(reasoning|answer)>", piece)
    out.append(f'<span class="{"tag" if tag else inside}">{html.escape(piece)}</span>')
    inside = inside if not tag else "" if tag[1] else tag[2]
  return "".join(out)


def write_report(path: pathlib.Path, report: dict[str, Any], groups: dict[str, list[list[dict[str, Any]]]], runs: dict[str, tuple[int, pathlib.Path]],
                 prompts: int = 60) -> None:
  """Writes `path`, an HTML file that needs no other, and its plots as PNG beside it.

  Args:
    report: eval.json.
    groups, runs: as for summarise and draw_plots.
    prompts: how many of them to show, evenly over the tasks, those first whose outcome changed from one checkpoint to another.
  """
  escape, rows, images = html.escape, report["rows"], []
  for title, plot in draw_plots(rows, runs).items():
    image = path.with_name(f"{path.stem}-{re.sub('[^a-z]+', '-', title.lower())}.png")
    plot.savefig(image)
    images.append(f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}">')
  columns, tables = shown_columns(rows), []
  for task in dict.fromkeys(r["task"] for r in rows):
    lines = ["<tr><th>checkpoint<th>n" + "".join(f"<th>{c.replace('_', ' ')}" for c in columns) + "<th>exact, to the row above</tr>"]
    for row in (r for r in rows if r["task"] == task):
      cells = [shown(c, row[c]) + (f"<small>{' – '.join(shown(c, x) for x in row[c + '_interval'])}</small>" if row[c] is not None else "") for c in columns]
      gain = "{:+.1%}<small>{:+.1%} to {:+.1%}</small>".format(row["gain"], *row["gain_interval"]) if "gain" in row else ""
      lines.append(f"<tr><td>{escape(row['ckpt'])}<td>{row['n']}" + "".join(f"<td>{cell}" for cell in cells) + f"<td>{gain}</tr>")
    tables.append(f'<details{" open" * (task == "all")}><summary>{escape(task)}</summary><div class="wide"><table>{"".join(lines)}</table></div></details>')
  ranked, count = [], collections.Counter()
  outcomes = [[group[0]["exact"] for group in same] for same in zip(*groups.values())]
  for changed, i in sorted((len(set(rights)) == 1, i) for i, rights in enumerate(outcomes)):
    task = next(iter(groups.values()))[i][0]["task"]
    ranked.append((count[task], i))
    count[task] += 1
  articles = []
  for _, i in sorted(ranked)[:prompts]:
    samples, rights = [part[i][0] for part in groups.values()], outcomes[i]
    cards = []
    for ckpt, s in zip(groups, samples):
      parts = {k.removeprefix("reward/"): v for k, v in s.items() if k.startswith("reward/") and v}
      badge = f'<span class="{"wrong" if s["failure"] else "right"}">{escape(s["failure"] or ("right" if s["exact"] else "well-formed"))}</span>'
      bar = "".join(f'<i style="width:{v:.1%}" title="{k} {v:.2f}"></i>' for k, v in parts.items())
      cards.append(f'<section><h4>{badge}{escape(ckpt)}</h4><pre>{marked(s["completion"])}</pre><div class="parts">{bar}</div><small>reward '
                   f'{s["reward"]:.2f}{" = " * bool(parts)}{" + ".join(f"{v:.2f} {k}" for k, v in parts.items())}</small></section>')
    change = "gained" if rights[-1] and not rights[0] else "lost" if rights[0] and not rights[-1] else "as before"
    facts = [escape(samples[0]["task"])] + [f"gold answer: {escape(samples[0]['answer'])}"] * bool(samples[0]["answer"]) + [f"<b>seen in training ({samples[0]['seen']})</b>"] * bool(samples[0]["seen"])
    articles.append(f'<article data-task="{escape(samples[0]["task"])}" data-change="{change}"><h3>{escape(samples[0]["question"])}</h3>'
                    f'<small>{", ".join(facts)}</small><div class="grid cards">{"".join(cards)}</div></article>')
  choose = lambda label, values: f'<select aria-label="{label}"><option value="">{label}</option>' + "".join(f"<option>{escape(v)}</option>" for v in values) + "</select>"
  settings = ", ".join(f"{key} {report[key]}" for key in ("decoding", "temperature", "samples", "max_completion_length", "seed"))
  path.write_text(f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(report["model"])} on {escape(report["data"])}</title><style>{STYLE}</style>
<h1>{escape(report["model"])} on {escape(report["data"])}</h1><p>{report["n"]} prompts; {escape(settings)}; small print: 95% intervals; prompts seen in
training: {", ".join(f"{n} ({kind})" for kind, n in report["seen_in_training"].items()) or "none"}.</p>
<h2>Checkpoints</h2>{"".join(tables)}<h2>Plots</h2><div class="grid">{"".join(images)}</div>
<h2>The same prompts</h2><p>{choose("all tasks", sorted(count))}{choose("first to last: all", ["gained", "lost", "as before"])}</p>{"".join(articles)}<script>{SCRIPT}</script></html>
""", encoding="utf-8")


# --- Answers ----------------------------------------------------------------------------------------------------------


def read_questions(path: str) -> list[str]:
  """The lines of a text file that are not blank; ValueError if it cannot be read or has none."""
  try:
    questions = [line.strip() for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
  except (OSError, ValueError) as e:
    raise ValueError(f"--input={path} is not a text file that can be read ({getattr(e, 'strerror', None) or e})") from e
  if not questions:
    raise ValueError(f"--input={path} holds no question: write one per line")
  return questions


def encode_question(tokenizer: Any, question: str, max_prompt_length: int) -> list[int]:
  """Token ids of a question's prompt; ValueError if it is too long."""
  ids = sft.encode(tokenizer, data.format_prompt(question), bos=True)
  if len(ids) > max_prompt_length:
    raise ValueError(f"{question[:60]!r} takes {len(ids)} tokens as a prompt: raise --max_prompt_length={max_prompt_length}")
  return ids


def stream(sampler: sft.Sampler, ids: list[int], *, max_prompt_length: int, max_completion_length: int, seed: int, **drawing: Any) -> Iterator[str]:
  """The completion of one prompt as far as it is known, every CHUNK tokens.

  Each chunk is a call of the sampler that reads again what is there already: more work than one long decode, but no second decoder.
  """
  done, stopped = [], False
  while not stopped and len(done) < max_completion_length:
    chunk = sampler([ids + done], max_prompt_length=max_prompt_length + max_completion_length, max_completion_length=CHUNK, seed=seed + len(done), **drawing)[0]
    done, stopped = (done + chunk.ids.tolist())[:max_completion_length], not chunk.truncated
    # Half a character, or half a tag, waits for its other half.
    text = sampler.tokenizer.decode([i for i in done if i not in sampler.tokenizer.stop_ids], skip_special_tokens=False)
    yield text if stopped or len(done) == max_completion_length else re.sub(r"(</?[a-z]*|\ufffd+)$", "", text)


def styled(text: str) -> str:
  """A completion for a terminal, reasoning dimmed and answer bold; on anything else, as it is."""
  if not sys.stdout.isatty():
    return text
  text = text.replace("\x1b", "")  # no control sequences but these
  for name, code in (("reasoning", 2), ("answer", 1)):
    text = text.replace(f"<{name}>", f"\x1b[{code}m<{name}>").replace(f"</{name}>", f"</{name}>\x1b[0m")
  return text


def interact(sampler: sft.Sampler, **sampling: Any) -> None:
  """Answers questions typed at the terminal, each by itself, until an empty line or end of file."""
  if importlib.util.find_spec("readline"):
    import readline  # pylint: disable=g-import-not-at-top,unused-import # arrow keys bring back earlier lines
  print("A question per line. /reward [GOLD ANSWER] scores the last answer, /history lists all, an empty line ends.")
  history = []
  while True:
    try:
      line = input("> ").strip()
    except EOFError:
      return
    command, _, argument = line.partition(" ")
    if not line:
      return
    if command == "/history":
      for question, text in history:
        print(f"> {question}\n{styled(text)}")
    elif command == "/reward" and history:
      scores = rewards.score(*history[-1], argument or None, "math" if argument else "other")
      print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()), "" if argument else "(as an open-ended request)")
    elif line.startswith("/"):
      print("there is no such command, or nothing to score yet")
    else:
      try:
        ids, text = encode_question(sampler.tokenizer, line, sampling["max_prompt_length"]), ""
      except ValueError as e:
        print(e)
        continue
      for longer in stream(sampler, ids, **sampling):
        print(styled(longer)[len(styled(text)):], end="", flush=True)
        text = longer
      print()
      history.append((line, text))


# --- Export -----------------------------------------------------------------------------------------------------------


def claim_folder(target: str, ckpt: str) -> None:
  """Makes the folder that --export names; ValueError if it cannot be made, or would overwrite something."""
  kind, _, folder = target.partition(":")
  if kind not in ("hf", "kaggle") or not folder:
    raise ValueError(f"--export={target} must be hf:DIR or kaggle:DIR")
  if (kind, ckpt) == ("kaggle", "base"):
    raise ValueError("--export=kaggle: writes a checkpoint's parameters, and base has none: name a run folder in --ckpt")
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    taken = os.listdir(folder)
  except OSError as e:
    raise ValueError(f"--export={target} cannot be written ({e.strerror}): name another folder") from e
  if taken:
    raise ValueError(f"--export={target} would overwrite what is there: name a new or an empty folder")


def merged_tensor(model: nnx.Module, name: str) -> np.ndarray:
  """The weights that data.tensors calls `name`, in float32 and Hugging Face's shape; a projection is base + lora_scale * A @ B."""
  node = lambda path: functools.reduce(lambda at, key: at[int(key)] if key.isdigit() else getattr(at, key), path.split("."), model)

  def merged(path: str, order: tuple[int, ...]) -> np.ndarray:
    """Axes of the inputs, then of the outputs, as `order` has them in the base weight and A @ B has them anyway."""
    module, key = node(path.rpartition(".")[0]), path.rpartition(".")[2]
    read = lambda key: np.asarray(getattr(module, key)[...], np.float32)
    adapted = hasattr(module, key + "_lora_a")
    return read(key).transpose(order) + (model.lora_scale * np.tensordot(read(key + "_lora_a"), read(key + "_lora_b"), 1) if adapted else 0)

  if not name.startswith("model.layers."):
    return np.asarray(node({"model.embed_tokens.weight": "embedder.input_embedding", "model.norm.weight": "final_norm.scale"}[name])[...], np.float32)
  layer, part = re.fullmatch(r"model\.(layers\.\d+)\.(.+)\.weight", name).groups()
  after_attention = "post_attention_norm" if hasattr(node(layer), "post_attention_norm") else "post_attn_norm"  # Gemma 3, Gemma 2
  norms = {"input_layernorm": "pre_attention_norm", "post_attention_layernorm": after_attention, "pre_feedforward_layernorm": "pre_ffw_norm",
           "post_feedforward_layernorm": "post_ffw_norm", "self_attn.q_norm": "attn._query_norm", "self_attn.k_norm": "attn._key_norm"}
  if part in norms:
    return np.asarray(node(f"{layer}.{norms[part]}.scale")[...], np.float32)
  if part.startswith("mlp."):
    return merged(f"{layer}.{part}.kernel", (0, 1)).T
  if part == "self_attn.o_proj":
    weight = merged(f"{layer}.attn.attn_vec_einsum.w", (0, 1, 2))
    return weight.reshape(-1, weight.shape[-1]).T
  if hasattr(node(f"{layer}.attn"), "qkv_einsum"):  # where every head has its own keys and values
    weight = merged(f"{layer}.attn.qkv_einsum.w", (2, 0, 1, 3))[:, "qkv".index(part[10])]
  elif part == "self_attn.q_proj":
    weight = merged(f"{layer}.attn.q_einsum.w", (1, 0, 2))
  else:
    weight = merged(f"{layer}.attn.kv_einsum.w", (2, 0, 1, 3))[:, "kv".index(part[10])]
  return weight.reshape(weight.shape[0], -1).T


def export(target: str, model: nnx.Module, base: str, source: pathlib.Path, tokenizer: Any, ckpt: str, step_dir: pathlib.Path | None,
           max_new_tokens: int) -> None:
  """Writes what --export names: `hf:DIR`, merged weights as transformers loads them, or `kaggle:DIR`, the Orbax parameters of the checkpoint.

  Both get the tokenizer, with a chat template that puts the instruction before the first question, config.json and a model card.

  Args:
    model: with the checkpoint's weights.
    base, source: --model and its folder.
    ckpt, step_dir: the checkpoint's name and its step folder, None for the base.
    max_new_tokens: of generation_config.json.
  """
  kind, folder = target.partition(":")[0], pathlib.Path(target.partition(":")[2])
  run, report = step_dir and step_dir.parent.parent, step_dir and evaluation_of(step_dir)
  for name in ("config.json", "tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"):
    if (source / name).exists():
      shutil.copy(source / name, folder)
  saved = json.loads((source / "tokenizer_config.json").read_text()) if (source / "tokenizer_config.json").exists() else {}
  template = data.CHAT_TEMPLATE.replace("system=''", "system=" + repr(data.INSTRUCTION + "\n\n"))
  (folder / "tokenizer_config.json").write_text(json.dumps(saved | {"chat_template": template}, indent=2) + "\n")
  card = model_card(ckpt, run, kind, base, report)
  (folder / "README.md").write_text(card, encoding="utf-8")
  if kind == "kaggle":
    for name in ("run.json", *["eval.json"] * bool(report)):
      shutil.copy(run / name, folder)
    shutil.copytree(step_dir / "model_params", folder / "model_params", dirs_exist_ok=True)
    (folder / "model-instance-metadata.json").write_text(json.dumps({
        "ownerSlug": "INSERT_OWNER_SLUG_HERE", "modelSlug": "INSERT_EXISTING_MODEL_SLUG_HERE", "instanceSlug": "show-your-work", "framework": "flax",
        "overview": "Gemma that reasons in the open: an Orbax checkpoint of Tunix", "usage": card, "licenseName": "Gemma", "fineTunable": True,
        "trainingData": sorted({flags["data"] for flags in legs(run)})}, indent=2) + "\n")
    print(f'wrote {folder}; kagglehub.model_upload("USER/MODEL/flax/VARIATION", "{folder}", license_name="Gemma") publishes it')
    return
  dtype = str(jax.tree.leaves(nnx.state(model, nnx.Param))[0].dtype)
  data.write_model(folder, data.model_config(source), dtype, lambda name: [merged_tensor(model, name)])
  (folder / "generation_config.json").write_text(json.dumps({
      "bos_token_id": tokenizer.bos_token_id, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_token_id, "do_sample": False,
      "max_new_tokens": max_new_tokens}, indent=2) + "\n")
  print(f"wrote {folder} ({dtype}): transformers' AutoModelForCausalLM.from_pretrained loads it")


def legs(run: pathlib.Path | None) -> list[dict[str, Any]]:
  """The flags of a run and of the legs before it that can still be found, the first leg first."""
  found = []
  try:
    found.extend(training_flags(run) if run else ())
  except ValueError as e:
    print(f"the model card names the last legs only: {e}")
  return found[::-1]


def evaluation_of(step_dir: pathlib.Path) -> dict[str, Any] | None:
  """The run's eval.json, if it is of this step: the run may have gone on since."""
  path = step_dir.parent.parent / "eval.json"
  report = json.loads(path.read_text()) if path.exists() else {}
  return report if report.get("step") == int(step_dir.name) else None


def model_card(ckpt: str, run: pathlib.Path | None, kind: str, base: str, report: dict[str, Any] | None) -> str:
  """README.md of an export: what it is, how it is asked, what it was trained on, with which flags, and what its eval.json `report` says of it."""
  table = "Not evaluated yet: `python eval.py`, then export to another folder."
  if report:
    between = lambda row, name: " ({:.1%} to {:.1%})".format(*row[name + "_interval"]) if row.get(name + "_interval") else ""
    share = lambda row, name: shown(name, row[name]) + between(row, name)
    table = "\n".join([
        f"{report['n']} prompts of {report['data']}, {report['samples']} completions each at temperature {report['temperature']:g}, 95% intervals.", "",
        "| checkpoint | task | n | exact answer | exact format | within 10% |", "|---|---|---|---|---|---|", *(
            f"| {r['ckpt']} | {r['task']} | {r['n']} | {share(r, 'exact')} | {share(r, 'format_exact')} | {share(r, 'partial')} |" for r in report["rows"])])
  trained = "\n".join(f"- `{flags['out']}`, on {flags['data']}: `{' '.join(f'--{k}={v}' for k, v in flags.items() if v is not None)}`" for flags in legs(run))
  use = {"hf": """```python
import transformers
tokenizer, model = (cls.from_pretrained("FOLDER") for cls in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM))
question = [{"role": "user", "content": "What is 12 * 7?"}]
ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids)[0]))
```""", "kaggle": """`model_params` is an Orbax checkpoint over the base's weights (the adapter, or with `lora_rank` 0 all weights):
`orbax.checkpoint.StandardCheckpointer().restore(path, target=nnx.state(model, nnx.LoRAParam))`, with a Tunix model and an adapter of
the rank and alpha that run.json names. A plain `restore(path)` gives the arrays."""}[kind]
  return f"""---
license: gemma
tags: [gemma, reasoning, grpo]
---
# {ckpt}: a Gemma that shows its work

Answers come as `<reasoning>…</reasoning><answer>…</answer>`. Base model: {base}. Gemma is provided under and subject to the
[Gemma Terms of Use](https://ai.google.dev/gemma/terms).

{use}

## Training

{trained or "None: these are the base's weights."}

## Results

{table}
"""


# --- Main -------------------------------------------------------------------------------------------------------------


@data.script(define_flags)
def main(fv: absl_flags.FlagValues) -> None:
  with contextlib.redirect_stdout(sys.stderr if fv.prompt or fv.input else sys.stdout):  # answers have standard output to themselves
    answers = evaluate(fv)
  for answer in answers or ():
    print(answer, flush=True)


def evaluate(fv: absl_flags.FlagValues) -> Iterator[str] | None:
  """Does what the flags say, in order; returns the answers of --prompt or --input, which are decoded as they are taken."""
  # --- Setup ---
  started = time.time()
  sft.Compilations()
  if "JAX_COORDINATOR_ADDRESS" in os.environ or jax.process_count() > 1:
    raise ValueError("evaluation runs in one process: start it on one host, without JAX_COORDINATOR_ADDRESS")
  if fv.ckpt is None:
    names = ["base"] + [leg for leg in LEGS if sft.has_checkpoint(leg)]
  else:
    names = list(dict.fromkeys(name.strip() for name in fv.ckpt.split(",") if name.strip()))
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
  drawing = DECODING[fv.decoding] | ({} if fv.temperature is None else {"temperature": fv.temperature})
  if drawing["temperature"] < 0 or fv.limit < 0:
    raise ValueError("--temperature and --limit must not be negative")
  if not 0 <= fv.seed < 2**31:
    raise ValueError(f"--seed={fv.seed} must lie between 0 and 2**31 - 1")
  if fv.samples < 1:
    raise ValueError(f"--samples={fv.samples} must be positive")
  if fv.samples > 1 and not drawing["temperature"]:
    raise ValueError(f"--samples={fv.samples} greedy completions of a prompt are all the same: add --decoding=standard")
  if fv.report and not (pathlib.Path(fv.report).suffix == ".html" and os.access(pathlib.Path(fv.report).parent, os.W_OK)):
    raise ValueError(f"--report={fv.report} must be a .html file in a folder that exists and can be written")
  if fv.report and importlib.util.find_spec("matplotlib") is None:
    raise ValueError("--report takes a package that is missing here: pip install matplotlib")
  asked = [name for name in ("export", "prompt", "input", "interactive") if fv[name].value]
  if len(asked) > 1:
    raise ValueError(f"--{' and --'.join(asked)} are different things to do: one at a time")
  if fv.export:
    claim_folder(fv.export, names[-1])
  llm_judge = rewards.make_judge(fv.judge, fv.judge_model, fv.judge_rubric)
  mesh = sft.make_mesh(fv.mesh or f"{jax.device_count()},1")
  adapters = {(info["flags"]["lora_rank"], info["flags"]["lora_alpha"]) for _, info in found.values()}
  if len(adapters) > 1:
    raise ValueError(f"the checkpoints have different (rank, alpha) {sorted(adapters)}: evaluate one kind at a time")
  rank, alpha = adapters.pop() if adapters else (0, 0.0)
  run = found[names[-1]][0].parent.parent if names[-1] in found else None
  # What is attached to a Kaggle notebook cannot be written.
  out = pathlib.Path(fv.out or (run if run and os.access(run, os.W_OK) else "runs/base"))
  if not asked:
    out.mkdir(parents=True, exist_ok=True)

  # --- Data ---
  questions = [fv.prompt] if fv.prompt else read_questions(fv.input) if fv.input else []
  examples = [] if asked else data.load(fv.data, "test", seed=fv.seed, limit=fv.limit or None)
  folder = data.resolve_model(fv.model)
  sft.check_model(folder, fv.max_prompt_length + fv.max_completion_length)
  tokenizer = sft.load_tokenizer(folder)
  prompts = [encode_question(tokenizer, question, fv.max_prompt_length) for question in questions]
  if examples:
    examples, prompts = sft.encode_prompts(tokenizer, examples, fv.max_prompt_length)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of a batch are alike: little padding
    examples, prompts = [examples[i] for i in by_length], [prompts[i] for i in by_length]
  seen, unchecked = seen_in_training([e.question for e in examples], {name: step.parents[1] for name, (step, _) in found.items()} if examples else {})
  for name, why in unchecked.items():
    print(f"{name}: not known which prompts it was trained on ({why})")
  for kind, n in sorted(collections.Counter(seen.values()).items()):
    some = " | ".join(question[:80] for question in seen if seen[question] == kind)[:240]
    print(f"seen in training ({kind}): {n} of {len(examples)} prompts: {some}")

  # --- Model ---
  model = sft.load_model(folder, mesh, dtype=fv.dtype, lora_rank=rank, lora_alpha=alpha, replicate_base=fv.replicate_base)
  untouched = jax.tree.map(jnp.copy, nnx.state(model, sft.trained_filter(rank))) if found else nnx.State({})

  def take(name: str) -> None:
    nnx.update(model, untouched) if name == "base" else sft.restore(model, found[name][0], rank)  # pylint: disable=expression-not-assigned

  if asked:
    take(names[-1])
  if fv.export:
    return export(fv.export, model, fv.model, folder, tokenizer, names[-1], found.get(names[-1], (None,))[0], fv.max_completion_length)
  if jax.default_backend() == "cpu":
    sft.keep_freed_memory()  # one program runs here; each step of it would take a packed copy of the keys from the system, layer by layer
  sampler = sft.Sampler(model, tokenizer, mesh)
  sampling = dict(max_prompt_length=fv.max_prompt_length, max_completion_length=fv.max_completion_length, seed=fv.seed, **drawing)
  if fv.interactive:
    return interact(sampler, **sampling)
  if questions:
    texts = (c.text for i in tqdm(range(0, len(prompts), fv.batch_size), unit="batch", disable=len(prompts) == 1)
             for c in sampler(prompts[i:i + fv.batch_size], **sampling))
    return texts if fv.prompt else (json.dumps({"question": q, "completion": text}, ensure_ascii=False) for q, text in zip(questions, texts))

  # --- Evaluate ---
  samples_file, stop = out / "eval_samples.jsonl", sft.Stop(started, fv.max_hours)
  # What a sample depends on, but for its batch: Orbax notes in a step when it was written, whatever its folder is called now.
  settings = [fv.model, fv.dtype, fv.max_completion_length, drawing, fv.samples, fv.seed, pathlib.Path(rewards.__file__).read_text(encoding="utf-8")]
  written = lambda path: path.read_text() if path.exists() else str(path)
  weights = {name: written(found[name][0] / "_CHECKPOINT_METADATA") if name in found else "base" for name in names}
  decoded, earlier = collections.defaultdict(list), sft.read_jsonl(samples_file)
  sft.write_atomically(samples_file, sft.jsonl(earlier))
  for sample in earlier:
    decoded[sample.get("batch")].append(sample)
  by_ckpt, per_batch = {name: [] for name in names}, max(1, fv.batch_size // fv.samples)
  steps = [(name, i) for name in names for i in range(0, len(prompts), per_batch)]
  for name, i in (bar := tqdm(steps, unit="batch")):
    bar.set_description(name)
    if not i:
      take(name)
    part, batch_start = examples[i:i + per_batch], time.time()
    batch = hashlib.sha256(json.dumps([settings, weights[name], i, *map(dataclasses.astuple, part)]).encode()).hexdigest()[:12]
    if len(decoded.get(batch, ())) != len(part) * fv.samples:
      completions = sampler(prompts[i:i + per_batch], num_generations=fv.samples, **sampling | {"seed": fv.seed + i})
      rows = [e for e in part for _ in range(fv.samples)]
      decoded[batch] = [{"ckpt": name, "batch": batch, "task": e.task, "question": e.question, "answer": e.answer, "completion": c.text,
                         **grade(c, e, tokenizer)} for c, e in zip(completions, rows, strict=True)]
      with open(samples_file, "a", encoding="utf-8") as f:
        f.write(sft.jsonl(decoded[batch]))
      reason = stop.reason(time.time() - batch_start, 5.0, first=not i)
      if reason and (name, i) != steps[-1]:
        bar.close()
        print(f"stopped ({reason}); what was decoded is in {samples_file}, and the same command goes on from there")
        return
    samples = [sample | {"ckpt": name} for sample in decoded[batch]]  # it may have had another name when they were decoded
    by_ckpt[name] += [samples[j:j + fv.samples] for j in range(0, len(samples), fv.samples)]

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
  report = {"model": fv.model, "step": run and int(found[names[-1]][0].name), "data": fv.data, "n": len(examples), "seed": fv.seed, "decoding": fv.decoding, **drawing, "samples": fv.samples,
            "max_completion_length": fv.max_completion_length, "seen_in_training": collections.Counter(seen.values()), "not_checked": unchecked,
            "minutes": round((time.time() - started) / 60, 2), "rows": rows}
  sft.write_atomically(out / "eval.json", json.dumps(report, indent=2) + "\n")
  sft.write_atomically(samples_file, sft.jsonl(s for groups in by_ckpt.values() for group in groups for s in group))
  print_table(rows)
  if fv.report:
    write_report(pathlib.Path(fv.report), report, by_ckpt, {name: (int(step.name), step.parent.parent) for name, (step, _) in found.items()})
    print(f"\nwrote {fv.report}")
  if llm_judge:
    print("\njudge: " + ", ".join(f"{n} {name}" for name, n in llm_judge.take_counts().items()))
  print(f"\n{fv.model} on {fv.data}: {len(examples)} prompts, wrote {out}/eval.json and eval_samples.jsonl ({report['minutes']} minutes)")


if __name__ == "__main__":
  main()
