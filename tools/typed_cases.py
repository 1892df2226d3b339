"""The cases of tools/typed.py: a command, its exit code, and words that its output must have."""

from typing import NamedTuple


class Case(NamedTuple):
    """One row.

    Attributes:
        typed: a line of bash; Python where it begins with "py: ", and with "hf: " Python in a
            process that must not have loaded this package.
        says: a regular expression that one line of the output matches.
        code: the exit code.
    """

    typed: str
    says: str
    code: int = 0


_TRAIN = "--max-seq-length 48 --batch-size 8 --learning-rate 1e-3"
_NER = f"spanbert-fast finetune ner --model model --train ner.conll --dev ner.conll {_TRAIN}"
_CLASSIFY = f"spanbert-fast finetune classify --train c.csv --dev c.csv {_TRAIN} --epochs 1"
_QA = f"spanbert-fast finetune qa --max-query-length 8 --doc-stride 8 {_TRAIN}"
_RELATION = f"spanbert-fast finetune relation --model model {_TRAIN} --epochs 1"
_PRETRAIN = (
    "spanbert-fast pretrain --data text.txt --hidden-size 32 --num-attention-heads 2 "
    "--intermediate-size 64 --vocab-size 200 --max-seq-length 48 --tokens-per-batch 256 "
    "--held-out 0.2"
)
_GO_ON = "spanbert-fast pretrain --data text.txt --init-from model --max-seq-length 48"
_READ = "py: from spanbert_fast.tasks.{} import {} as T; "


def _read(module: str, kind: str, code: str) -> str:
    return _READ.format(module, kind) + code


# A file that several sections need -> the case that makes it, which runs first if it has not yet.
MAKERS = {
    "ner/": f"{_NER} --epochs 20 --output-dir ner",
    "c0/": f"{_CLASSIFY} --model model --output-dir c0",
    "half": "spanbert-fast export model half --to safetensors-bf16",
}

SECTIONS: dict[str, list[Case]] = {
    "Start": [
        Case("spanbert-fast --help", "^usage: spanbert-fast COMMAND"),
        Case("spanbert-fast pretrain --help", "^usage: spanbert-fast pretrain"),
        Case("spanbert-fast finetune ner --help", "^usage: spanbert-fast finetune ner"),
        Case("py: import spanbert_fast; print(len(sys.modules) < 300)", "^True"),
        Case("spanbert-fast completion bash", "AUTOMATICALLY GENERATED|^complete "),
    ],
    "Names and types": [
        Case(
            "py: import spanbert_fast as sb; print(sb.ops.OPS[0], sb.nn.TransformerLayer.__name__, "
            "sb.models.SpanBertModel.__name__, sb.data.batches.__name__)",
            "TransformerLayer SpanBertModel",
        ),
        Case(
            "py: import spanbert_fast as sb; sb.SpanBertForPretraining",
            "Did you mean: 'SpanBertForPreTraining'",
            1,
        ),
        Case("python -m mypy use.py", 'no attribute "SpanBertForPretraining"', 1),
    ],
    "A checkpoint in a process with transformers alone": [
        Case("hf: print(type(AutoModel.from_pretrained('model')).__name__)", "^BertModel"),
        Case(
            "hf: print(type(AutoModelForMaskedLM.from_pretrained('model')).__name__)",
            "^BertForMaskedLM",
        ),
        Case(
            "hf: print(len(pipeline('fill-mask', model='model')('The [MASK] is.')))",
            "^5",
        ),
        Case(
            "hf: print(len(pipeline('feature-extraction', model='model')('The value.')[0]))",
            "^[3-9]",
        ),
        Case(
            "hf: from sentence_transformers import SentenceTransformer as S; "
            "print(S('model').encode(['a value']).shape)",
            r"^\(1, \d+\)",
        ),
        Case(MAKERS["ner/"], "^model: ner/model"),
        Case(
            "hf: print(pipeline('token-classification', model='ner/model', "
            "aggregation_strategy='simple')('they met Mary')[0]['entity_group'])",
            "^PER",
        ),
        Case(MAKERS["c0/"], "^model: c0/model"),
        Case(
            "hf: print(pipeline('text-classification', model='c0/model')('good')[0]['label'])",
            "^-?1",
        ),
        Case(
            "py: import spanbert_fast as sb; m, info = sb.SpanBertForPreTraining.from_pretrained("
            "'model', output_loading_info=True); print(sorted(map(len, info.values())))",
            r"^\[0(, 0)*\]",
        ),
        Case(
            "py: import spanbert_fast as sb; m, info = sb.SpanBertForPreTraining.from_pretrained("
            "'old', output_loading_info=True); print(sorted(map(len, info.values())))",
            r"^\[0(, 0)*\]",
        ),
    ],
    "export": [
        Case("spanbert-fast export old new --to bert", "BertForMaskedLM, outputs elsewhere"),
        Case("spanbert-fast export model same", "BertForMaskedLM, outputs elsewhere differ by"),
        Case(MAKERS["half"], "outputs elsewhere differ"),
        Case("spanbert-fast export model fp16 --to safetensors-fp16", "outputs elsewhere differ"),
        Case("spanbert-fast export model onnx --to onnx", "outputs elsewhere differ by"),
        Case(
            "hf: RobertaForMaskedLM(RobertaConfig(vocab_size=99, hidden_size=32, "
            "num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, "
            "max_position_embeddings=40)).save_pretrained('roberta'); print('saved')",
            "saved",
        ),
        Case("spanbert-fast export roberta r1 --to as-loaded", "RobertaForMaskedLM, outputs"),
        Case("spanbert-fast export roberta r2 --to bert", "is no BERT but of the type roberta", 2),
        Case("spanbert-fast export roberta r3 --to onnx", "RobertaForMaskedLM, outputs elsewhere"),
        Case("spanbert-fast fill 'The [MASK] is.' --model half --top-k 1", "The .+ is"),
    ],
    "Starting checkpoints": [
        Case(
            f"{_CLASSIFY} --model half --output-dir c1",
            "the weights come in bfloat16 and are trained in fp32",
        ),
        Case(
            f"{_CLASSIFY} --model half --weights-dtype bf16 --output-dir c2",
            "an update below 1/512 of its weight is lost",
        ),
        Case(f"{_CLASSIFY} --model c0/model --output-dir c3", "of the same labels, and is gone on"),
        Case(
            f"spanbert-fast finetune classify --train d.csv --dev d.csv {_TRAIN} --epochs 1 "
            "--model c0/model --output-dir c4 --max-train 12",
            "its head is of another task",
        ),
        Case(f"{_CLASSIFY} --model ner/model --output-dir c5", "its head is of another task"),
        Case(
            f"{_CLASSIFY} --regression --model c0/model --output-dir c6",
            "its head is of another task",
        ),
        Case(f"{_CLASSIFY} --model c6/model --output-dir c7", "its head is of another task"),
        Case("grep 'Made by' c4/model/README.md", "from .c0/model"),
        Case("grep 'were used' c4/model/README.md", "Only 12 examples of train were used"),
    ],
    "Names of the Hub, and its data sets": [
        Case("spanbert-fast fill 'The [MASK] is.' --model somebody/spanbert --top-k 1", "The .+"),
        Case(
            "spanbert-fast fill 'The [MASK] is.' --model nobody/nothing",
            "there is no directory .*nobody/nothing; the cache .* HF_HUB_OFFLINE is set",
            2,
        ),
        Case(f"{_CLASSIFY} --model somebody/spanbert --output-dir c8", "^model: c8/model"),
        Case(
            f"{_GO_ON.replace('model', 'somebody/spanbert')} --tokenizer somebody/spanbert "
            "--max-steps 20 --output-dir p1",
            "^checkpoint: p1/model",
        ),
        Case("grep warmup_steps p1/model/README.md", "2"),
        Case(
            f"{_PRETRAIN} --data hf://somebody/texts --max-steps 2 --output-dir p2",
            "^checkpoint: p2/model",
        ),
        Case(
            f"{_PRETRAIN} --data hf://somebody/texts/default:train[:50%] --max-steps 2 "
            "--output-dir p3",
            "^checkpoint: p3/model",
        ),
        Case(
            f"{_PRETRAIN} --data hf://nobody/texts --max-steps 2 --output-dir p4",
            "hf://nobody/texts:train: cannot be read",
            2,
        ),
    ],
    "Runs": [
        Case("spanbert-fast pretrain --config run.yaml --learning-rate 1e-4", "^checkpoint: p5"),
        Case("grep -A3 learning_rate p5/options.json", "0.0001"),
        Case(
            "spanbert-fast pretrain --config p5/options.json --output-dir p6 --max-steps 2",
            "^checkpoint: p6/model",
        ),
        Case("spanbert-fast finetune --output-dir ner qa", "TASK must come first", 2),
        Case("spanbert-fast finetune qa --output-dir ner", "--model must be given", 2),
        Case("spanbert-fast finetune ner --output-dir ner/ --resume", "is finished: nothing is"),
        Case("spanbert-fast pretrain --output-dir p5 --resume", "is finished: nothing is trained"),
        Case(f"{_NER} --epochs 1 --output-dir n2 --set neftune_noise_alpha=5", "has no effect", 2),
        Case(
            f"{_NER} --epochs 1 --output-dir n2 --set load_best_model_at_end=false",
            "has no effect",
            2,
        ),
        Case(
            "spanbert-fast finetune ner --config ner/options.json --output-dir n3 --epochs 2 "
            "--patience 1 --profile 1",
            "aten::|spanbert_fast::",
        ),
        Case("grep -A4 EarlyStopping n3/checkpoint-*/trainer_state.json", "EarlyStopping"),
        Case(
            f"{_PRETRAIN} --max-steps 4 --output-dir p7 --learning-rate 1e30 --warmup-steps 0 "
            "--logging-steps 1 --max-grad-norm 1e30",
            "the loss is nan after step 2; the last good checkpoint is p7/checkpoint-1",
            1,
        ),
        Case("spanbert-fast predict ner ner/model ner.conll --precision bf16", "^f1 +[0-9.]+"),
        Case("spanbert-fast prepare --data text.txt --output-dir sh --vocab-size 200", "sh"),
        Case("python ready.py", "seen 2 steps; .*'f1'"),
        Case("python evaluate.py", "eval_loss [0-9.]+"),
    ],
    "Pipelines": [
        Case(
            "py: import spanbert_fast.pipelines; from transformers import pipeline; "
            "print(pipeline('question-answering', model='model')(question='Who?', "
            "context='Ann is. ' * 900, max_query_length=8, doc_stride=64).keys())",
            r"dict_keys\(\['score', 'start', 'end', 'answer'\]\)",
        ),
        Case(
            "py: from spanbert_fast.pipelines import pipeline; "
            "found = pipeline('token-classification', model='ner/model')('they met Mary . ' * 900);"
            "print(len(found), found[-1]['end'] > 12000)",
            "True$",
        ),
    ],
    "Examples": [
        Case("python examples/toy_task.py model toy", "% right; the model is in toy/model"),
        Case("python examples/pipeline.py ner/model", "."),
        Case("python examples/pipeline.py c0/model ner/model", "."),
        Case("python examples/trainer.py model out text.txt --steps 2", "."),
        Case("python examples/drop_in_loop.py --model model --steps 20", "^accuracy"),
        Case("python examples/coreference.py", "written: coreference.html"),
    ],
    "The notebook": [
        Case(
            "py: import json; names = {}; [exec(''.join(c['source']), names) for c in "
            "json.load(open('examples/tour.ipynb'))['cells'] if c['cell_type'] == 'code']",
            "accelerated",
        ),
    ],
    "Data as people have it": [
        Case(
            _read(
                "classify",
                "Classification",
                "t = T(); t.learn(t.read('c.csv').items); print(t.labels)",
            ),
            r"\['-1', '1'\]",
        ),  # fmt: skip
        Case(
            "spanbert-fast finetune classify --train null.jsonl --dev c.csv --model model "
            "--output-dir d1",
            "null.jsonl:2: has no label",
            1,
        ),
        Case(
            "spanbert-fast finetune classify --train nan.csv --dev c.csv --model model "
            "--output-dir d1",
            r"nan.csv:3: the label is missing \(nan\)",
            1,
        ),
        Case(
            f"{_RELATION} --train semeval.txt --dev semeval.txt --max-train 2 --output-dir d2",
            "^model: d2/model",
        ),
        Case(f"{_RELATION} --train tacred.json --dev tacred.json --output-dir d3", "^model: d3"),
        Case(
            f"{_QA} --train q.jsonl --dev q.jsonl --model uncased --epochs 60 --output-dir d4",
            "^dev +exact +100",
        ),
        Case("spanbert-fast predict qa d4/model q.jsonl", "^total +8$"),
        Case(
            _read(
                "ner",
                "NamedEntities",
                "t = T(); s = t.read('odd.conll').items[0]; print(s.words, s.tags)",
            ),
            r"'10\\xa0000', .*'B-LOC', 'I-LOC'",
        ),  # fmt: skip
        Case(
            "spanbert-fast finetune ner --model model --train ner.json --dev ner.conll "
            "--output-dir d5",
            "ner.json:1: is JSON; ner reads columns",
            1,
        ),
    ],
}
