"""accelerate() in two processes: DDP and FSDP2 give the gradients of one process."""

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
from transformers.models.bert import modeling_bert as stock

import spanbert_fast as sb
from accelerate_cases import config, inputs_of
from bert_cases import large_init

store, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
torch.manual_seed(5)
start = large_init(stock.BertForSequenceClassification(config())).train().double()
inputs = inputs_of("BertForSequenceClassification")
own = {name: value[2 * rank : 2 * rank + 2] for name, value in inputs.items()}
alone = copy.deepcopy(start)
alone(**inputs).loss.backward()


def check(model):
    for (name, parameter), one in zip(model.named_parameters(), alone.parameters(), strict=True):
        gradient = parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(gradient, one.grad, rtol=1e-8, atol=1e-8, msg=name)


for checkpointing in (False, True):
    model = sb.accelerate(copy.deepcopy(start))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = DistributedDataParallel(model)
    wrapped(**own).loss.backward()
    check(model)
model = sb.accelerate(copy.deepcopy(start))
for part in (model.bert.embeddings, *model.bert.encoder.layer, model):
    fully_shard(part, mesh=mesh)
model(**own).loss.backward()
check(model)
print("the same gradients three times")
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
        assert output == "the same gradients three times\n"
