"""eval.py: what it counts, its intervals, contamination, report and exports."""

import importlib.util
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
import eval as evaluation  # not the builtin
import grpo
import sft


def completion(text, truncated=False):
  return grpo.Completion(np.zeros(5, np.int32), text, np.zeros(5, np.float32), truncated)


def example(answer, task="math", question="What is 6 * 7?"):
  return data.Example(question, answer, "", task, "test", "easy")


def sample(prompt, exact, reward, task="math", **more):
  row = dict.fromkeys(evaluation.MEASURES, 0.0) | {"prompt": prompt, "task": task}
  return row | {"exact": exact, "partial": exact, "reward": reward, **more}


RIGHT = "<reasoning>6 * 7 = 42.</reasoning><answer>42</answer>"


MEASURED = [  # rule, completion, answer, task, (format_exact, format_partial, exact, partial)
  ("right and in format", RIGHT, "42", "math", (True, True, True, True)),
  ("a block alone is partial", "<answer>42</answer>", "42", "math", (False, True, True, True)),
  ("within 10% is partial", RIGHT, "44", "math", (True, True, False, True)),
  ("far off", RIGHT, "7", "math", (True, True, False, False)),
  ("no block at all", "forty-two", "7", "math", (False, False, False, False)),
  ("what cannot be checked is neither", RIGHT, "a tale", "creative", (True, True, None, None)),
]


@pytest.mark.parametrize("rule, text, answer, task, want", MEASURED)
def test_measures(rule, text, answer, task, want):
  got = evaluation.measure(completion(text), example(answer, task))
  assert tuple(got[name] for name in evaluation.MEASURES[:4]) == want, rule
  assert got["length"] == 5 and 0 <= got["reward"] <= 1 and not got["truncated"]


INTERVALS = [
  ("Wilson's for a share", "exact", [0, 1] * 50, [0.404, 0.596]),
  ("which has a width at 0%", "exact", [0] * 100, [0, 0.037]),
  ("a share of one prompt", "pass@8", [1], [0.207, 1]),
  ("no bootstrap of equal rewards", "reward", [0.5] * 9, None),
  ("nothing to average", "exact", [], None),
  ("no difference is no share", "exact_difference", [0] * 9, None),
  ("a mean of completions is resampled", "exact", [0, 0.5] * 200, [0.226, 0.274]),
]


@pytest.mark.parametrize("rule, name, values, want", INTERVALS)
def test_interval(rule, name, values, want):
  got = evaluation.interval(np.array(values, float), name, seed=0)
  assert got is None if want is None else got == pytest.approx(want, abs=0.004), rule


def test_differences_are_paired_and_by_task():
  a = [sample(i, i < 20, 0.5) for i in range(40)] + [sample(40, None, 0.1, "creative")]
  b = [sample(i, i < 30, 0.5) for i in range(40)] + [sample(40, None, 0.3, "creative")]
  rows = evaluation.summarise({"base": a, "runs/sft": b}, {"runs/sft": 7}, seed=0)
  assert [(r["ckpt"], r["step"], r["task"], r["n"]) for r in rows[3:]] == [
    ("runs/sft", 7, "all", 41), ("runs/sft", 7, "creative", 1), ("runs/sft", 7, "math", 40)
  ]  # fmt: skip
  assert rows[0]["step"] == 0 and "exact_difference" not in rows[0]
  math, creative = rows[5], rows[4]
  assert math["exact_difference"] == 0.25 and creative["exact"] is None
  low, high = math["exact_difference_interval"]
  assert 0.1 < low < 0.25 < high < 0.42  # Unpaired it would reach from 0.03 to 0.46.
  assert creative["reward_difference"] == pytest.approx(0.2)
  table = evaluation.tables(rows)["math: 40 prompts"]
  assert table["runs/sft, step 7"]["exact"].startswith("75.0% (")
  assert table["base, step 0"]["exact_difference"] == "-"


def test_pass_at_k_is_one_of_k():
  samples = [sample(i // 4, i in (0, 4, 5, 6, 7), 0.0) for i in range(12)]
  row = evaluation.summarise({"a": samples}, {}, seed=0)[0]
  assert row["pass@4"] == pytest.approx(2 / 3) and row["exact"] == pytest.approx(5 / 12)


def test_contamination_goes_back_through_the_legs(tmp_path, monkeypatch):
  rows = {"a": [example("1", question="What is  Q?")], "b": [example("2", question="Other?")]}
  monkeypatch.setattr(data, "load", lambda spec, split, **options: rows[spec])
  for leg, start, spec in (("sft", "base", "a"), ("math", "/gone/runs/sft/actor/9", "b")):
    flags = {"data": spec, "seed": 0, "validation_fraction": 0.05}
    (tmp_path / leg).mkdir()
    (tmp_path / leg / "run.json").write_text(json.dumps({"flags": flags, "started_from": start}))
  both = {data.normalise("what is q?"), data.normalise("other?")}
  assert evaluation.training_questions(tmp_path / "math") == both


def test_report_escapes_what_models_write(tmp_path):
  text = {"question": "1 < 2?", "answer": None, "completion": "<script>alert(1)</script>"}
  samples = {"<b>": [sample(i, None, 0.5, ckpt="<b>", **text) for i in range(3)]}
  report = dict(model="tiny", data="<i>", decoding="greedy", n=3, samples=1)
  report["rows"] = evaluation.summarise(samples, {}, seed=0)
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
  evaluation.write_report(tmp_path / "r.html", report, samples, [tmp_path])
  page = (tmp_path / "r.html").read_text()
  assert "&lt;script&gt;" in page and "data:image/png;base64," in page
  assert not any(tag in page for tag in ("<script", "<b>", "<i>"))


SHAPE = dict(
  vocab_size=768, hidden_size=64, intermediate_size=128, num_hidden_layers=3, head_dim=16,
  num_attention_heads=4, query_pre_attn_scalar=16, sliding_window=64, max_position_embeddings=256,
)  # fmt: skip


@pytest.mark.parametrize(
  "kind, kv_heads, lora_rank", [("gemma3_text", 2, 4), ("gemma2", 2, 0), ("gemma2", 4, 4)]
)
def test_export_has_the_weights_of_the_policy(kind, kv_heads, lora_rank, tmp_path):
  """Logits of the policy, of the export read again, and, with PyTorch, of transformers agree."""
  config = SHAPE | {"model_type": kind, "num_key_value_heads": kv_heads}
  folder = data.write_random_model(tmp_path / "base", config)
  args = types.SimpleNamespace(
    dtype="float32", remat="none", replicate_base=False, lora_rank=lora_rank,
    lora_alpha=2.0 * lora_rank, seed=0, max_prompt_length=40, max_completion_length=8,
    mesh="1,1", batch_size=1, micro_batch_size=1, model=str(folder), export=f"hf:{tmp_path}/hf",
  )  # fmt: skip
  mesh, ids = sft.make_mesh(args, 0, jax.devices()[:1]), np.arange(10, 50)[None]

  def load(folder):
    return sft.load_policy(folder, sft.tunix_config(folder, args), mesh, args)

  def hidden(policy, trained, frozen):
    run = jax.jit(lambda t, f: sft.prefill(policy.model(t, f), jnp.array(ids), ids > 0)[0])
    return np.asarray(run(trained, frozen))

  policy, trained, frozen = load(folder)
  trained = jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), trained)
  tokenizer, want = sft.load_tokenizer(folder), hidden(policy, trained, frozen)
  evaluation.export(args, None, policy, trained, frozen, tokenizer)
  chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi?"}], tokenize=False)
  assert data.format_prompt("Hi?").startswith(chat.removeprefix("<bos>"))
  args.lora_rank = 0
  assert np.abs(hidden(*load(pathlib.Path(tmp_path, "hf"))) - want).max() < 1e-4
  if not importlib.util.find_spec("torch"):
    return
  import torch
  import transformers

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "hf", attn_implementation="eager"
  ).eval()
  with torch.no_grad():
    got = theirs.model(torch.tensor(ids)).last_hidden_state.numpy()
  assert np.abs(got - want).max() < 1e-4
  assert theirs.generation_config.eos_token_id == list(tokenizer.stop_ids)
