"""accelerate() in two processes: DDP and FSDP2 give the gradients of one process, for families
whose embeddings, layers or heads differ from BERT's."""

import os
import subprocess
import sys
from pathlib import Path

from search_path import search_path

PROCESS = """
import copy
import sys

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import spanbert_fast as sb
from family_cases import inputs_of, model

store, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
HEADS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
}


def gradients(made, inputs):
    made(**inputs).loss.backward()
    named = {name: parameter.grad for name, parameter in made.named_parameters()}
    return {k: g.full_tensor() if hasattr(g, "full_tensor") else g for k, g in named.items()}


def ways(start):
    for checkpointing in (False, True):
        made = sb.accelerate(copy.deepcopy(start))
        if checkpointing:
            made.gradient_checkpointing_enable({"use_reentrant": False})
        yield DistributedDataParallel(made)
    made = sb.accelerate(copy.deepcopy(start))
    encoder = made.base_model
    layers = encoder.transformer if hasattr(encoder, "transformer") else encoder.encoder
    for part in (encoder.embeddings, *layers.layer, made):
        fully_shard(part, mesh=mesh)
    yield made


for family, head in HEADS.items():
    torch.manual_seed(5)
    start = model(family, head).double()
    inputs = inputs_of(start)
    own = {name: value[2 * rank : 2 * rank + 2] for name, value in inputs.items()}
    alone = gradients(copy.deepcopy(start), inputs)
    for made in ways(start):
        got = gradients(made, own)
        for (name, gradient), expected in zip(got.items(), alone.values(), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8, msg=name)
    print(f"{family}: the same gradients three times")
distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": search_path(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, script, f"file://{tmp_path}/store", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        families = ("bert", "roberta", "electra", "distilbert")
        assert output == "".join(f"{f}: the same gradients three times\n" for f in families)
