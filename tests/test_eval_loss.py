"""SpanBertForPreTraining in a user's Trainer: eval_loss, early stopping, the best weights."""

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from bert_cases import SIZES, large_init
from finetune_cases import sentences
from spanbert_fast.config import SpanBertConfig
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.data.tokenizer import train_wordpiece
from spanbert_fast.models import SpanBertForPreTraining
from spanbert_fast.testing import assert_bitwise_equal


def test_the_trainer_s_own_evaluation(tmp_path):
    text = sentences(60, 0).replace("\t", " ")
    tokenizer = train_wordpiece([text] * 2, SIZES["vocab_size"])
    rows = [{"input_ids": tokenizer(line).input_ids[:30]} for line in text.split("\n\n")]
    torch.manual_seed(0)
    model = large_init(SpanBertForPreTraining(SpanBertConfig(**SIZES)))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            label_names=["mlm_targets"],
            per_device_train_batch_size=10,
            per_device_eval_batch_size=4,
            max_steps=6,
            learning_rate=1.0,  # a rate at which every step makes the model worse
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=rows[:40],
        eval_dataset=rows[40:],
        data_collator=DataCollatorForSpanMasking(tokenizer, seed=1),
        callbacks=[EarlyStoppingCallback(2)],
    )
    before = trainer.evaluate()["eval_loss"]
    assert before > 1
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == min(best + 3, 6) and len(losses) < 6
    again = SpanBertForPreTraining.from_pretrained(tmp_path / f"checkpoint-{best + 1}")
    for name in ("cls.span_boundary.bias", "bert.embeddings.word_embeddings.weight"):
        assert_bitwise_equal(model.state_dict()[name], again.state_dict()[name], name)
