"""An accelerated model learns as before, in a loop and in the Trainer."""

import torch
from transformers import BertConfig, Trainer, TrainingArguments
from transformers.models.bert import modeling_bert as stock

import spanbert_fast as sb
from accelerate_cases import NO_DROPOUT, SIZES, config
from spanbert_fast.testing import assert_bitwise_equal


def classification_data(count, seed):
    """Sequences of 3 to 24 tokens; the class is whether token 7 occurs more often than token 8."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 25, (count,), generator=draw)
    ids = torch.randint(5, 12, (count, 24), generator=draw)
    mask = (torch.arange(24) < lengths[:, None]).long()
    ids = ids * mask
    ids[:, 0] = 2
    labels = ((ids == 7).sum(1) > (ids == 8).sum(1)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def fine_tune(fast, steps, seed, **fields):
    """(losses, accuracy on held-out data) of a small BERT."""
    torch.manual_seed(seed)
    fields = {"hidden_size": 32, "intermediate_size": 64, **fields}
    model = stock.BertForSequenceClassification(BertConfig(**{**SIZES, **fields})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    if fast:
        sb.accelerate(model)  # accelerated after the optimiser was created
    data, losses = classification_data(steps * 16, seed=100 + seed), []
    for step in range(steps):
        part = {k: v[16 * step : 16 * step + 16] for k, v in data.items()}
        loss = model(**part).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    held_out = classification_data(512, seed=7)
    with torch.no_grad():
        predicted = model.eval()(**held_out).logits.argmax(1)
    return torch.tensor(losses), (predicted == held_out["labels"]).float().mean().item()


def test_the_same_loss_curve_for_50_steps():
    theirs, ours = (fine_tune(fast, 50, seed=3, **NO_DROPOUT) for fast in (False, True))
    # the first loss differs by 2e-7; this grows with the steps, as Adam divides by gradients' sizes
    assert (ours[0] - theirs[0]).abs().max() < 1e-3
    assert (ours[0][:10] - theirs[0][:10]).abs().max() < 1e-5
    assert theirs[0][-10:].mean() < theirs[0][:10].mean() - 0.05, "it learns"


def test_the_same_metric_with_dropout():
    """5 seeds with dropout 0.1: the means differ by less than three of their standard errors."""
    scores = torch.tensor(
        [[fine_tune(fast, 60, seed)[1] for seed in range(5)] for fast in (False, True)]
    )
    mean, error = scores.mean(1), (scores.var(1).sum() / 5).sqrt()
    assert (mean[0] - mean[1]).abs() < 3 * error + 0.01
    assert (mean > 0.7).all(), "both learn"


class Rows(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data["labels"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.data.items()}


def test_trainer_with_checkpointing(tmp_path):
    """Trainer, evaluation, gradient checkpointing, saving and loading its checkpoint."""
    losses = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = stock.BertForSequenceClassification(config())
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(fast)),
            per_device_train_batch_size=16,
            max_steps=6,
            logging_steps=1,
            learning_rate=1e-3,
            gradient_checkpointing=True,
            eval_strategy="steps",
            eval_steps=6,
            save_steps=6,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=sb.accelerate(model) if fast else model,
            args=arguments,
            train_dataset=Rows(classification_data(96, 1)),
            eval_dataset=Rows(classification_data(32, 2)),
            compute_metrics=lambda p: {
                "accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())
            },
        )
        trainer.train()
        history = trainer.state.log_history
        losses.append([h[k] for h in history for k in ("loss", "eval_loss") if k in h])
        assert any("eval_accuracy" in h for h in history)
    assert len(losses[0]) == 7
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=1e-4)
    again = stock.BertForSequenceClassification.from_pretrained(tmp_path / "True/checkpoint-6")
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        assert_bitwise_equal(a, b)
