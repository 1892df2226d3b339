"""The files that tools/typed.py needs: data as other programs write it, scripts, a Hub cache."""

import json
import shutil
import sys
import unicodedata
from pathlib import Path

COMMIT = "0" * 40

READY = """
import spanbert_fast as sb
from transformers import TrainerCallback
from datasets import Dataset
from spanbert_fast.tasks.ner import Sentence
from spanbert_fast.training import FinetuneOptions, PretrainOptions, finetune, pretrain

class Steps(TrainerCallback):
    seen = 0
    def on_step_end(self, *args, **kwargs):
        Steps.seen += 1

documents = Dataset.from_dict({"text": open("text.txt").read().split("\\n\\n")})
model = sb.SpanBertForPreTraining.from_pretrained("model")
options = PretrainOptions(output_dir="ready", tokenizer="model", held_out=0.2,
                          overrides={"max_steps": 2, "warmup_steps": 1, "max_seq_length": 48})
pretrain(options, callbacks=[Steps()], model=model, documents=documents)
rows = [Sentence(str(i), f"row {i}", ["met", "Mary"], ["O", "B-PER"]) for i in range(8)]
options = FinetuneOptions(task="ner", model="model", train=None, dev=None, output_dir="ready2",
                          epochs=1, task_options={"max_seq_length": 48})
result = finetune(options, data={"train": rows, "dev": rows})
print(f"seen {Steps.seen} steps; {result['dev']}; {result.model_dir}")
"""
EVALUATE = """
import spanbert_fast as sb
from transformers import AutoTokenizer, EarlyStoppingCallback, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("model")
rows = [{"input_ids": tokenizer(t).input_ids} for t in open("text.txt").read().split("\\n\\n")]
trainer = Trainer(
    model=sb.SpanBertForPreTraining.from_pretrained("model"),
    args=TrainingArguments(
        output_dir="own", label_names=["mlm_targets"], max_steps=2, eval_strategy="steps",
        eval_steps=1, save_steps=1, load_best_model_at_end=True, remove_unused_columns=False,
        report_to="none", use_cpu=True,
    ),
    train_dataset=rows[:300], eval_dataset=rows[300:],
    data_collator=sb.DataCollatorForSpanMasking(tokenizer, seed=1),
    callbacks=[EarlyStoppingCallback(2)],
)
trainer.train()
print("eval_loss", trainer.evaluate()["eval_loss"])
"""
MYPY = """[mypy]
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*,transformers.*,numpy.*,huggingface_hub.*,safetensors.*,tokenizers.*]
follow_imports = skip
follow_imports_for_stubs = true
"""
RUN = """output-dir: p5
data: text.txt
hidden_size: 32
num-attention-heads: 2
intermediate_size: 64
vocab_size: 200
max_seq_length: 48
tokens_per_batch: 256
max_steps: 2
warmup_steps: 1
held_out: 0.2
"""


def write_files(folder: Path, model: Path) -> None:
    """Write every file that the cases name into an empty folder."""
    _texts(folder)
    _scripts(folder)
    _checkpoints(folder, model)
    for name, target in (
        ("models--somebody--spanbert", model),
        ("datasets--somebody--texts", None),
    ):
        root = folder / "hub" / name
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        (root / "snapshots").mkdir()
        place = (target or folder / "texts").resolve()
        (root / "snapshots" / COMMIT).symlink_to(place, target_is_directory=True)


def _texts(folder: Path) -> None:
    words = "the value of a function is a list of items and the index is a number".split()
    lines = [" ".join(words[i % 7 :] + words[: i % 5]) + "." for i in range(400)]
    rows = ["they O\nmet O\nMary B-PER\n", "in O\nOslo B-LOC\n", "Ann B-PER\nLee I-PER\nran O\n"]
    sentence = '{}\t"The <e1>{}</e1> left the <e2>{}</e2>."\n{}\nComment:\n\n'
    relations = ("Cause-Effect(e1,e2)", "Other", "Part-Whole(e2,e1)")
    pair = {"token": ["Ann", "left", "Oslo"], "subj_start": 0, "subj_end": 0, "obj_start": 2,
            "obj_end": 2, "subj_type": "Public Person", "obj_type": "City"}  # fmt: skip
    cafe = unicodedata.normalize("NFD", "caf\u00e9")
    context = f"the {cafe} is in the index"
    files = {
        "text.txt": "\n\n".join(lines) + "\n",
        "ner.conll": "\n".join(rows * 8),
        "ner.json": '{"tokens": ["a"], "ner_tags": [0]}\n',
        "odd.conll": "# id 7\nabout O\n10\u00a0000 U-NUM\nNew B-LOC\nYork L-LOC\n\n# next\n1 O\n",
        "c.csv": "text, label\n" + "good, 1\nbad, -1\n" * 12,
        "d.csv": "text,label\n" + "good,yes\nbad,no\n" * 12,
        "nan.csv": "text,label\na,1\nb,nan\n",
        "null.jsonl": '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n',
        "semeval.txt": "".join(
            sentence.format(i + 1, "fire", "house", relations[i % 3]) for i in range(6)
        ),
        "tacred.json": json.dumps(
            [{**pair, "id": i, "relation": ("left", "no_relation")[i % 2]} for i in range(8)]
        ),
        "q.jsonl": "".join(
            json.dumps({"id": i, "context": context, "question": "Where?",
                        "answers.text": [cafe], "answers.answer_start": [4]}) + "\n"
            for i in range(8)
        ),
        "texts/train.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in lines),
    }  # fmt: skip
    (folder / "texts").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _scripts(folder: Path) -> None:
    (folder / "ready.py").write_text(READY)
    (folder / "evaluate.py").write_text(EVALUATE)
    (folder / "run.yaml").write_text(RUN)
    (folder / "use.py").write_text("import spanbert_fast as sb\n\nsb.SpanBertForPretraining\n")
    (folder / "mypy.ini").write_text(MYPY)
    examples = Path(__file__).resolve().parent.parent / "examples"
    (folder / "examples").symlink_to(examples, target_is_directory=True)
    (folder / "bin").mkdir()
    for name, module in (("python", ""), ("spanbert-fast", "-m spanbert_fast")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        script.chmod(0o755)


def _checkpoints(folder: Path, model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    (folder / "model").symlink_to(model, target_is_directory=True)
    shutil.copytree(model, folder / "uncased")
    path = folder / "uncased" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"] |= {"lowercase": True, "strip_accents": True}
    path.write_text(json.dumps(content), encoding="utf-8")
    # as versions before the model type "bert" wrote it: both heads in one file
    old = folder / "old"
    old.mkdir()
    weights = [load_file(model / f"{name}.safetensors") for name in ("model", "span_boundary")]
    save_file(weights[0] | weights[1], old / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "spanbert", "architectures": ["SpanBertForPreTraining"]}
    (old / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, old / name)
