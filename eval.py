"""Evaluation: what each leg of the relay was worth, on the same prompts.

Greedy by default, as the judges sample. In this order:

1. Table: means over prompts with 95% intervals, by task and over all. Differences are to the
   checkpoint before, prompt by prompt: what makes a prompt hard cancels out.
2. Report: one HTML file with the table, training curves and some prompts through the legs.
3. Export of the last checkpoint, and its answers.

  python eval.py                                   # base and the legs found in runs/
  python eval.py --ckpt=base,runs/math --data=gsm8k --report=report.html

Writes eval.json and eval_samples.jsonl into the last checkpoint's run folder, or into --out.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import pathlib
import shutil
import sys
import types
from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import flags as absl_flags
from matplotlib.figure import Figure
from scipy import stats

import data
import grpo
import rewards
import sft

LEGS = ("runs/sft", "runs/math", "runs/mixed")
DECODING = {  # the presets of the Tunix demo
  "greedy": grpo.Decoding(),
  "standard": grpo.Decoding(temperature=0.7, top_k=50, top_p=0.95),
  "liberal": grpo.Decoding(temperature=0.85, top_k=2000),
}
MEASURES = "format_exact format_partial exact partial truncated length reward".split()
STYLES = {  # of no shares
  "length": "{:.1f}", "exact_difference": "{:+.1%}",
  "reward": "{:.3f}", "reward_difference": "{:+.3f}",
}  # fmt: skip
CURVES = "reward validation_reward correct format loss validation_loss".split()


def define_flags(fv: absl_flags.FlagValues) -> None:
  string, integer, _, enum, boolean = sft.definers(fv)
  string("ckpt", None, "Run or step folders, base. Default: base and the legs.")
  string("model", None, "Default: the checkpoints', or tiny.")
  string("data", None, "Default: tiny synthetic:easy, Gemma gsm8k.")
  enum("split", "test", ["test", "validation", "train"], "Of a file, test is all rows.")
  integer("limit", 1500, "Prompts, at most; 0: all.", lower_bound=0)
  integer("samples", 1, "Completions per prompt, for pass@k.")
  enum("decoding", None, list(DECODING), "Default: greedy; with --samples, standard.")
  integer("seed", 0, "Of prompts and sampling.", lower_bound=0, upper_bound=2**31 - 1)
  integer("max_prompt_length", None, "Tokens. Default: tiny 32, Gemma 256.")
  integer("max_completion_length", None, "Tokens. Default: tiny 32, Gemma 768.")
  integer("batch_size", 64, "Prompts sampled at a time.")
  enum("dtype", "auto", ["auto", "float32", "bfloat16"], "As in sft.py.")
  string("out", None, "Default: the last run's folder, or runs/base.")
  string("report", "", "FILE.html to write.")
  string("export", "", "hf:FOLDER or kaggle:FOLDER to write.")
  string("prompt", "", "A question to answer.")
  string("input", "", "A file of questions, one a line; prints JSON lines.")
  boolean("interactive", False, "Answer what is typed.")
  boolean("replicate_base", False, "As in sft.py.")


# --- Table ---


def measure(completion: grpo.Completion, example: data.Example) -> dict[str, Any]:
  """What the table averages; exact and partial are None where none can check."""
  text, answer = completion.text, example.answer
  form = rewards.parse(text).format
  return {
    "format_exact": form == "exact",
    "format_partial": form != "none",
    "exact": rewards.is_correct(text, answer) if example.checkable else None,
    "partial": rewards.is_close(text, answer) if example.checkable else None,
    "truncated": completion.truncated,
    "length": len(completion.ids),
    "reward": rewards.score(example.question, text, answer, example.task)["total"],
  }


def interval(values: np.ndarray, name: str, seed: int) -> list[float] | None:
  """95%: Wilson's (1927) for zeros and ones, else from 1000 resamples of the prompts."""
  if name not in STYLES and len(values) and np.isin(values, (0, 1)).all():
    found = stats.binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
  elif len(values) and np.ptp(values) > 0:
    options = dict(n_resamples=1000, method="percentile", rng=seed)
    found = stats.bootstrap((values,), np.mean, **options).confidence_interval
  else:
    return None
  return [float(found.low), float(found.high)]


def summarise(samples: dict, steps: dict, seed: int) -> list[dict]:
  """The rows of eval.json, from each checkpoint's samples of the same prompts."""
  rows, before = [], None
  for ckpt, its_samples in samples.items():
    groups = pd.DataFrame(its_samples).astype(dict.fromkeys(MEASURES, float)).groupby("prompt")
    table, tasks = groups[MEASURES].mean(), groups["task"].first()  # NaN: it does not apply.
    k = len(its_samples) // len(table)
    if k > 1:
      table[f"pass@{k}"] = groups["exact"].max()
    if before is not None:
      table["exact_difference"] = table["exact"] - before["exact"]
      table["reward_difference"] = table["reward"] - before["reward"]
    for task in ["all", *sorted(set(tasks))]:
      chosen = table if task == "all" else table[tasks == task]
      row = {"ckpt": ckpt, "step": steps.get(ckpt, 0), "task": task, "n": len(chosen)}
      for name in table:
        values = chosen[name].dropna().to_numpy()
        row[name] = float(values.mean()) if len(values) else None
        row[f"{name}_interval"] = interval(values, name, seed)
      rows.append(row)
    before = table
  return rows


def tables(rows: list[dict]) -> dict[str, pd.DataFrame]:
  """{title: the checkpoints side by side}, of all prompts and of each task."""
  found = {}
  for row in rows:
    column = {}
    for name in [name for name in row if row[name] is not None and f"{name}_interval" in row]:
      style, limits = STYLES.get(name, "{:.1%}"), row[f"{name}_interval"]
      column[name] = style.format(row[name])
      if limits:
        column[name] += f" ({style} to {style})".format(*limits)
    table = found.setdefault(f"{row['task']}: {row['n']} prompts", {})
    table[f"{row['ckpt']}, step {row['step']}"] = column
  return {title: pd.DataFrame(table).fillna("-") for title, table in found.items()}


def training_questions(run: pathlib.Path) -> set[str]:
  """What a run, and the legs before it beside it, were trained on, normalised."""
  info = json.loads((run / "run.json").read_text())
  options = {name: info["flags"][name] for name in ("seed", "validation_fraction")}
  rows = data.load(info["flags"]["data"], "train", **options)
  questions = {data.normalise(row.question) for row in rows}
  if info["started_from"] != "base":
    before = pathlib.Path(info["started_from"]).parents[1]
    questions |= training_questions(before if before.exists() else run.parent / before.name)
  return questions


CSS = """body {font-family: sans-serif} img {width: 100%} td, th {padding: 4px 12px}
div {display: inline-block; width: 24%; vertical-align: top} pre {white-space: pre-wrap}"""


def draw_curves(runs: list[pathlib.Path]) -> bytes:
  """A PNG of the runs' metrics, smoothed."""
  figure = Figure(figsize=(15, 4), layout="constrained")
  for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
    records = pd.DataFrame([{"step": 0}, *sft.read_jsonl(run / "metrics.jsonl")]).set_index("step")
    for name in [name for name in CURVES if name in records]:
      values = records[name].dropna()
      axes.plot(values.rolling(max(1, len(values) // 25), min_periods=1).mean(), label=name)
    axes.set(title=str(run), xlabel="step")
    axes.legend()
  png = io.BytesIO()
  figure.savefig(png, dpi=120)
  return png.getvalue()


def write_report(path: pathlib.Path, report: dict, samples: dict, runs: list) -> None:
  """Writes one HTML file; `report` is eval.json, and `samples` are by checkpoint."""
  title = html.escape(f"{report['model']} on {report['data']}, {report['decoding']}")
  page = [f"<!doctype html><meta charset='utf-8'><style>{CSS}</style><h1>{title}</h1>"]
  for heading, table in tables(report["rows"]).items():
    page.append(f"<h3>{heading} (95% interval)</h3>{table.to_html(border=0)}")
  if runs:
    png = base64.b64encode(draw_curves(runs)).decode()
    page.append(f"<img src='data:image/png;base64,{png}'>")
  for i in range(0, report["n"], -(-report["n"] // 20)):  # evenly spaced
    chosen = [its_samples[i * report["samples"]] for its_samples in samples.values()]
    asked = f"{chosen[0]['question']} (answer: {chosen[0]['answer']})"
    page.append(f"<h3>{html.escape(asked)}</h3>")
    for sample in chosen:
      text = f"{sample['ckpt']}: exact {sample['exact']}, reward {sample['reward']:.2f}\n\n"
      page.append(f"<div><pre>{html.escape(text + sample['completion'])}</pre></div>")
  path.write_text("\n".join(page), encoding="utf-8")


# --- Export and answers ---

TUNIX_NAMES = {  # where Hugging Face's are others; of two, a model has one
  "input_layernorm": ["pre_attention_norm"], "pre_feedforward_layernorm": ["pre_ffw_norm"],
  "post_attention_layernorm": ["post_attention_norm", "post_attn_norm"],
  "post_feedforward_layernorm": ["post_ffw_norm"], "o_proj": ["attn_vec_einsum"],
  "q_norm": ["_query_norm"], "k_norm": ["_key_norm"], "q_proj": ["q_einsum", "qkv_einsum"],
  "k_proj": ["kv_einsum", "qkv_einsum"], "v_proj": ["kv_einsum", "qkv_einsum"],
}  # fmt: skip
MODEL_CARD = """---
license: gemma
---
# A Gemma that shows its work
It answers `<reasoning>...</reasoning><answer>...</answer>`. {weights}; base: {model}, under
the [Gemma Terms of Use](https://ai.google.dev/gemma/terms). See run.json.
"""


def hf_weight(weights: sft.Arrays, name: str) -> np.ndarray:
  """The weight [outputs, inputs] that Hugging Face calls `name`."""
  part = name.split(".")[-2]
  modules = {"embed_tokens": weights["embedder"], "norm": weights["final_norm"]}
  if ".layers." in name:
    layer = weights["layers"][int(name.split(".")[2])]
    modules = layer | layer["attn"] | layer["mlp"]
  module = next(modules[key] for key in TUNIX_NAMES.get(part, [part]) if key in modules)
  weight = np.asarray(*module.values(), np.float32)
  if weight.ndim == 4:  # [2 or 3, heads, inputs, head_dim]: kv or qkv
    weight = weight[{"q": 0, "k": -2, "v": -1}[part[0]]]
  if part in ("q_proj", "k_proj", "v_proj"):
    weight = weight.transpose(1, 0, 2).reshape(weight.shape[1], -1)
  if part == "o_proj":  # [heads, head_dim, outputs]
    weight = weight.reshape(-1, weight.shape[2])
  return weight if part == "embed_tokens" else weight.T


def export(args, step_dir, policy, trained, frozen, tokenizer) -> None:
  """Writes hf:FOLDER, merged weights, or kaggle:FOLDER, Tunix's checkpoint."""
  kind, _, folder = args.export.partition(":")
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  if kind == "kaggle":
    shutil.copytree(step_dir / "model_params", folder / "model_params")
  else:
    weights = trained
    if args.lora_rank:
      weights = grpo.merge_adapter(trained, frozen, policy.lora_scale)
    config = data.model_config(data.resolve_model(args.model))
    config["eos_token_id"] = list(tokenizer.stop_ids)
    data.write_model(folder, config, str(policy.dtype), functools.partial(hf_weight, weights))
  # A chat begins with the instruction, as in training.
  system = "system=" + repr(data.INSTRUCTION + "\n\n")
  tokenizer.chat_template = data.CHAT_TEMPLATE.replace("system=''", system)
  tokenizer.save_pretrained(folder)
  for path in step_dir.parents[1].glob("*.json") if step_dir else []:
    shutil.copy(path, folder)
  card = MODEL_CARD.format(model=args.model, weights=step_dir or "untrained")
  (folder / "README.md").write_text(card, encoding="utf-8")
  print(f"wrote {folder}")


def show(text: str) -> None:
  """Prints a completion; on a terminal reasoning is dim, the answer bold."""
  if sys.stdout.isatty():
    for name, code in (("reasoning", 2), ("answer", 1)):
      text = text.replace(f"<{name}>", f"<{name}>\x1b[{code}m")
      text = text.replace(f"</{name}>", f"\x1b[0m</{name}>")
  print(text)


# --- Main ---


@data.script(define_flags)
def main(fv: absl_flags.FlagValues) -> None:
  # --- Setup ---
  sft.setup()
  legs = [leg for leg in LEGS if sft.step_folders(pathlib.Path(leg))]
  names = list(dict.fromkeys(fv.ckpt.split(","))) if fv.ckpt else ["base", *legs]
  last, kind = names[-1], fv.export.partition(":")[0]
  if kind not in ("", "hf", "kaggle") or (kind == "kaggle" and last == "base"):
    raise ValueError(f"--export={fv.export}: give hf:FOLDER, or a run's kaggle:FOLDER")
  step_dirs, steps, kinds = {}, {}, set()
  for name in [name for name in names if name != "base"]:
    step_dirs[name], info = sft.find_checkpoint(name)
    steps[name], flags = int(step_dirs[name].name), info["flags"]
    kinds.add((flags["model"], flags["lora_rank"], flags["lora_alpha"]))
    if steps[name] != info["step"]:
      print(f"warning: {name}: step {steps[name]}, its last is {info['step']}", file=sys.stderr)
  if len(kinds) > 1:
    raise ValueError(f"several (model, rank, alpha), {kinds}: evaluate one at a time")
  runs = {name: step_dir.parents[1] for name, step_dir in step_dirs.items()}

  args = types.SimpleNamespace(**fv.flag_values_dict(), remat="none")
  args.model, args.lora_rank, args.lora_alpha = kinds.pop() if kinds else ("tiny", 0, 0.0)
  args.model = fv.model or args.model
  args.decoding = fv.decoding or ("greedy" if fv.samples == 1 else "standard")
  is_tiny = args.model == "tiny"
  args.data = fv.data or ("synthetic:easy" if is_tiny else "gsm8k")
  args.max_prompt_length = limit = fv.max_prompt_length or (32 if is_tiny else 256)
  args.max_completion_length = fv.max_completion_length or (32 if is_tiny else 768)
  args.mesh = f"{jax.device_count()},1"
  args.micro_batch_size = args.rollout_batch_size = args.batch_size

  # --- Model ---
  folder = data.resolve_model(args.model)
  tokenizer = sft.load_tokenizer(folder)
  mesh = sft.make_mesh(args, 0, jax.devices())
  policy, base, frozen = sft.load_policy(folder, sft.tunix_config(folder, args), mesh, args)
  sampler = grpo.Sampler(policy, tokenizer, mesh, args)
  decoding = DECODING[args.decoding]

  def restore(name):
    return sft.restore(step_dirs[name], base)[0] if name in step_dirs else base

  def ask(questions):
    ids = [sft.encode_prompt(tokenizer, question) for question in questions]
    if max(map(len, ids)) > limit:
      raise ValueError(f"longer than --max_prompt_length={limit} tokens: raise it")
    return [c.text for c in sampler(restore(last), frozen, ids, decoding, fv.seed)]

  # --- Export and answers ---
  if fv.export:
    export(args, step_dirs.get(last), policy, restore(last), frozen, tokenizer)
  if fv.prompt:
    show(ask([fv.prompt])[0])
  if fv.input:
    lines = pathlib.Path(fv.input).read_text(encoding="utf-8").splitlines()
    questions = [line for line in lines if line.strip()]
    if not questions:
      raise ValueError(f"--input={fv.input} has no question")
    for question, text in zip(questions, ask(questions), strict=True):
      print(json.dumps({"question": question, "completion": text}, ensure_ascii=False))
  if fv.interactive:
    print("A question, or an empty line:")
    while question := sys.stdin.readline().strip():
      show(ask([question])[0])
  if fv.export or fv.prompt or fv.input or fv.interactive:
    return

  # --- Data ---
  rows = data.load(args.data, fv.split, seed=fv.seed, limit=fv.limit or None)
  rows = [(sft.encode_prompt(tokenizer, example.question), example) for example in rows]
  why = f"longer than --max_prompt_length={limit} tokens; raise it"
  rows = sft.keep(rows, lambda row: len(row[0]) <= limit, why)
  questions, seen = {data.normalise(example.question) for _, example in rows}, {}
  for name, run in runs.items():
    try:
      seen[name] = len(questions & training_questions(run))
      print(f"{name}: {seen[name]} of {len(questions)} questions seen in training")
    except (OSError, ValueError) as e:
      print(f"{name}: questions seen in training unknown: {e}")

  # --- Evaluate ---
  out = pathlib.Path(fv.out or runs.get(last, "runs/base"))
  try:
    out.mkdir(parents=True, exist_ok=True)
    (out / "eval_samples.jsonl").write_text("")
    pathlib.Path(fv.report).parent.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise ValueError(f"{e.filename} cannot be written ({e.strerror}): name another --out") from e
  samples, prompts, k = {}, [ids for ids, _ in rows], fv.samples
  decoding = decoding._replace(num_generations=k)
  for name in names:
    print(f"sampling from {name} ...", flush=True)
    completions = sampler(restore(name), frozen, prompts, decoding, fv.seed)
    samples[name] = []
    for i, completion in enumerate(completions):
      example = rows[i // k][1]
      sample = {"ckpt": name, "prompt": i // k, **vars(example), "completion": completion.text}
      samples[name].append(sample | measure(completion, example))
    sft.write_jsonl(out / "eval_samples.jsonl", samples[name])

  # --- Save ---
  report = {**vars(args), "n": len(rows), "steps": steps, "seen_in_training": seen}
  report["rows"] = summarise(samples, steps, fv.seed)
  (out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
  for title, table in tables(report["rows"]).items():
    print(f"\n{title}\n{table.to_string()}")
  if fv.report:
    write_report(pathlib.Path(fv.report), report, samples, list(runs.values()))
  print(f"\nwrote {out}/eval.json")


if __name__ == "__main__":
  main()
