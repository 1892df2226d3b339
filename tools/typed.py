"""What a user types -> what happens: real commands, each in a clean process, as a Markdown table.

    python tools/typed.py [--model runs/first/model] [--only WORD] [--output FILE]

Needs a checkpoint of `spanbert-fast pretrain`. Nothing is downloaded: the Hub is offline, and its
cache, which is made here, holds the model as somebody/spanbert.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMIT = "0" * 40
SB = "spanbert-fast"
WITH_TRANSFORMERS = """import sys; from transformers import *; {code}
assert not any(m.startswith('spanbert_fast') for m in sys.modules)"""

TRAIN = "--max-seq-length 48 --batch-size 8 --learning-rate 1e-3 --epochs 1"
NER = f"{SB} finetune ner --model MODEL --train ner.conll --dev ner.conll {TRAIN}"
CLASSIFY = f"{SB} finetune classify --train c.csv --dev c.csv {TRAIN}"
SHORT = (
    f"{SB} pretrain --data text.txt --recipe tiny --hidden-size 32 --num-attention-heads 2 "
    "--intermediate-size 64 --vocab-size 200 --max-seq-length 48 --tokens-per-batch 256 "
    "--held-out 0.2"
)

# (what is typed, in a folder with the files of `write_files`); Python begins with "py: ", Python
# with transformers alone with "hf: "
CASES = [
    f"{SB} --help",
    f"{SB} pretrain --help",
    f"{SB} finetune ner --help",
    "py: import spanbert_fast as sb, sys; sb.ops, sb.nn, sb.models, sb.data; print(sb.ops.OPS[:2])",
    "py: import spanbert_fast as sb; sb.SpanBertForPretraining",
    "hf: print(type(AutoModel.from_pretrained('MODEL')).__name__)",
    "hf: print(type(AutoModelForMaskedLM.from_pretrained('MODEL')).__name__)",
    "hf: print(pipeline('fill-mask', model='MODEL')('The [MASK] is.')[0]['token_str'])",
    "hf: print(len(pipeline('feature-extraction', model='MODEL')('The value.')[0]))",
    "py: from sentence_transformers import SentenceTransformer as S; "
    "print(S('MODEL').encode(['a value']).shape)",
    f"{SB} export MODEL as-bert --to bert",
    f"{SB} export MODEL half --to safetensors-bf16",
    f"{SB} export MODEL onnx --to onnx",
    f"{SB} fill 'The [MASK] is.' --model somebody/spanbert --top-k 1",
    f"{SB} fill 'The [MASK] is.' --model nobody/nothing",
    f"{SB} finetune --output-dir ner qa",
    f"{SB} finetune qa --output-dir ner",
    f"{NER} --output-dir ner",
    f"{SB} finetune ner --output-dir ner --resume",
    f"{NER} --output-dir ner2 --set neftune_noise_alpha=5",
    f"{NER} --output-dir ner2 --set load_best_model_at_end=false",
    f"{SB} finetune ner --config ner/options.json --output-dir ner3 --profile 1",
    f"{SB} predict ner ner/model ner.conll --precision bf16",
    f"{SB} finetune ner --model MODEL --train ner.json --dev ner.conll --output-dir ner4",
    "hf: print(pipeline('token-classification', model='ner/model')('Mary met Ann')[:1])",
    f"{CLASSIFY} --model ner/model --output-dir c1",
    f"{CLASSIFY} --model c1/model --output-dir c2",
    "py: import spanbert_fast.pipelines; from transformers import pipeline; "
    "print(pipeline('question-answering', model='MODEL')(question='Who?', context='Ann is.', "
    "max_query_length=8, doc_stride=4).keys())",
    f"{SHORT} --max-steps 4 --output-dir p1",
    f"{SHORT} --max-steps 4 --output-dir p1 --resume",
    f"{SB} pretrain --config p1/options.json --output-dir p2 --max-steps 2",
    f"{SB} pretrain --config run.yaml --learning-rate 1e-4",
    f"{SHORT} --data hf://somebody/texts --max-steps 2 --output-dir p3",
    f"{SHORT} --max-steps 4 --output-dir p4 --learning-rate 1e30 --warmup-steps 0 "
    "--logging-steps 1 --max-grad-norm 1e30",
    "py: sys.argv = ['', 'MODEL', 'toy']; exec(open('EXAMPLES/toy_task.py').read())",
    "python EXAMPLES/pipeline.py ner/model",
    "python EXAMPLES/trainer.py MODEL out text.txt --steps 2",
    "python EXAMPLES/drop_in_loop.py --model MODEL --steps 20",
]


def write_files(folder: Path, model: Path) -> None:
    """The data of the cases, and a cache of the Hub."""
    rows = ["they O\nmet O\nMary B-PER\n", "in O\nOslo B-LOC\n", "Ann B-PER\nLee I-PER\nran O\n"]
    (folder / "ner.conll").write_text("\n".join(rows * 8))
    (folder / "ner.json").write_text('{"tokens": ["a"], "ner_tags": [0]}\n')
    (folder / "c.csv").write_text("text, label\n" + "good, 1\nbad, -1\n" * 12)
    words = "the value of a function is a list of items and the index is a number".split()
    lines = [" ".join(words[i % 7 :] + words[: i % 5]) + "." for i in range(400)]
    (folder / "text.txt").write_text("\n\n".join(lines) + "\n")
    (folder / "run.yaml").write_text(
        "output-dir: p5\ndata: text.txt\nhidden_size: 32\nnum-attention-heads: 2\n"
        "intermediate_size: 64\nvocab_size: 200\nmax_seq_length: 48\ntokens_per_batch: 256\n"
        "max_steps: 2\nwarmup_steps: 1\nheld_out: 0.2\n"
    )
    texts = folder / "texts"
    texts.mkdir()
    (texts / "train.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in lines))
    for name, target in (
        ("models--somebody--spanbert", model),
        ("datasets--somebody--texts", texts),
    ):
        root = folder / "hub" / name
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        (root / "snapshots").mkdir()
        (root / "snapshots" / COMMIT).symlink_to(target.resolve(), target_is_directory=True)


def run(typed: str, folder: Path, model: Path) -> tuple[int, str, float]:
    """(exit code, the last line that was printed, seconds)."""
    examples = Path(__file__).resolve().parent.parent / "examples"
    text = typed.replace("MODEL", str(model)).replace("EXAMPLES", str(examples))
    if text.startswith(("py: ", "hf: ")):
        code = text[4:]
        code = (
            WITH_TRANSFORMERS.format(code=code) if text.startswith("hf: ") else "import sys;" + code
        )
        command = [sys.executable, "-c", code]
    else:
        text = text.replace(f"{SB} ", f"{sys.executable} -m spanbert_fast ", 1)
        text = text.replace("python ", f"{sys.executable} ", 1) if typed[:6] == "python" else text
        command = ["bash", "-c", text]
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    seconds = time.perf_counter() - began
    said = done.stdout if done.returncode == 0 and done.stdout.strip() else done.stderr
    lines = [line for line in said.splitlines() if line.strip()] or [""]
    report = "LOAD REPORT; " if "LOAD REPORT" in done.stdout + done.stderr else ""
    line = lines[0] if "--help" in typed else lines[-1]
    return done.returncode, report + line.strip().replace(str(model), "MODEL"), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/first/model"))
    parser.add_argument("--only", default="", help="cases that have this in them")
    parser.add_argument("--output", type=Path, help="write the table there, too")
    options = parser.parse_args()
    rows = ["| what is typed | exit | what happens | s |", "|---|---:|---|---:|"]
    print("\n".join(rows))
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = Path(scratch), options.model.resolve()
        write_files(folder, model)
        for typed in CASES:
            if options.only in typed:
                code, line, seconds = run(typed, folder, model)
                line = line.replace("|", "\\|").replace(scratch, ".")
                shown = typed.replace("|", "\\|").removeprefix("py: ").removeprefix("hf: ")
                kind = "transformers alone: " if typed.startswith("hf: ") else ""
                rows.append(f"| {kind}`{shown}` | {code} | {line[:220]} | {seconds:.1f} |")
                print(rows[-1], flush=True)
                if options.output is not None:
                    options.output.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
