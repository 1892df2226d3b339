"""The Hugging Face Trainer for span pre-training: packed batches, exact resume, global means."""

import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from spanbert_fast.data.batches import TokenBudgetBatches
from spanbert_fast.data.blocks import BlockDataset
from spanbert_fast.data.collator import DataCollatorForSpanMasking
from spanbert_fast.data.static_shapes import BatchSizes
from spanbert_fast.training.pretraining.evaluation import HeldOut, held_out_losses
from spanbert_fast.training.whole_checkpoints import WholeCheckpoints


class SpanPretrainingTrainer(WholeCheckpoints):
    """A Trainer with batches of a token budget and losses that are means over global batches.

    The batches of a run depend on the seed alone: micro-batch j of rank r in step s is number
    (s * accumulation + j) * world_size + r of one stream. So two processes with one micro-batch
    each compute the same as one process with two, and a resumed run continues where it stopped.

    Args:
        tokens_per_batch: the most tokens of one micro-batch.
        held_out: the data of `evaluate`; None for no evaluation.
        capture: `CapturedStep`, to launch each forward and backward as one CUDA graph. It needs one
            process, one batch a step, fp32 or bf16, and static shapes in the collator.
        others: as for `transformers.Trainer`; `train_dataset` is a BlockDataset and the collator a
            DataCollatorForSpanMasking with packed output.
    """

    data_collator: DataCollatorForSpanMasking
    train_dataset: BlockDataset

    def __init__(
        self,
        *args,
        tokens_per_batch: int,
        held_out: HeldOut | None = None,
        capture: Callable | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # `compute_loss` returns a share of the global batch
        self.tokens_per_batch = tokens_per_batch
        self.held_out = held_out
        self.capture = capture
        self._captured_step: Callable | None = None
        self._reset_tracked()

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """All batches of this rank in the run, in one pass."""
        shapes = self.data_collator.static_shapes
        batches = TokenBudgetBatches(
            self.train_dataset.lengths,
            tokens_per_batch=self.tokens_per_batch,
            num_batches=self.args.max_steps * self.args.gradient_accumulation_steps,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            max_sequences=None if shapes is None else shapes.max_sequences,
        )
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        """Blocks of the corpus."""
        return len(self.train_dataset)

    # Loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Get the batches, and count the targets of the global batch, by which losses are
        divided."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        sizes = BatchSizes.sum_of(batches)
        self._tokens_and_spans += torch.stack([sizes.tokens, sizes.spans])
        counts = torch.stack([sizes.mlm_targets, sizes.sbo_targets, sizes.tokens])
        if torch.device(device).type == "cuda":
            counts = counts.pin_memory()  # the host does not wait for this copy
        counts = counts.to(device, non_blocking=True)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        # without any target in the global batch, the sum to divide is 0
        mlm, sbo, tokens = counts.clamp(min=1).unbind()
        for batch in batches:
            batch["mlm_denominator"], batch["sbo_denominator"] = mlm, sbo
            batch["pair_denominator"] = tokens
        # a value other than None tells the Trainer that the loss already includes accumulation
        return batches, mlm

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Compute the loss of a micro-batch and add its gradients to the parameters."""
        if self.capture is None:
            return super().training_step(model, inputs, num_items_in_batch)
        if self._captured_step is None:
            self._captured_step = self.capture(model.train(), None, inputs)
        outputs = self._captured_step(inputs)
        self._track(outputs)
        return outputs["loss"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """A micro-batch's share of the global batch's loss."""
        outputs = model(**inputs)
        self._track(outputs)
        # DDP and FSDP average the ranks' gradients, but shares must be added
        loss = outputs.loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    # Metrics

    def _reset_tracked(self) -> None:
        self._tracked: torch.Tensor | None = None
        self._tokens_and_spans = torch.zeros(2, dtype=torch.int64)
        self._tracked_since = time.perf_counter()

    @torch.no_grad()
    def _track(self, outputs) -> None:
        """Add up the figures on the device; the host reads them only when a log line is due."""
        mlm_count, sbo_count = outputs["mlm_count"].double(), outputs["sbo_count"].double()
        step = torch.stack(
            [
                outputs["mlm_loss"].double() * mlm_count,
                mlm_count,
                outputs["sbo_loss"].double() * sbo_count,
                sbo_count,
            ]
        )
        self._tracked = step if self._tracked is None else self._tracked + step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the span losses, counts and speed since the last log line."""
        if "loss" in logs and self._tracked is not None:
            sums = torch.cat([self._tracked, self._tokens_and_spans.to(self._tracked)])
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, "sum")
            mlm_loss, mlm, sbo_loss, sbo, tokens, spans = sums.tolist()
            seconds = time.perf_counter() - self._tracked_since
            logs["mlm_loss"] = mlm_loss / max(mlm, 1)
            logs["sbo_loss"] = sbo_loss / max(sbo, 1)
            logs["tokens_per_second"] = round(tokens / seconds, 1)
            logs["tokens"] = int(tokens)
            logs["masked_tokens"] = int(mlm)
            logs["spans"] = int(spans)
            self._reset_tracked()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Held-out losses and accuracies. Every process measures a share."""
        if self.held_out is None:
            raise ValueError("held_out must be given to the trainer for evaluate(), got None")
        began = time.perf_counter()
        # The processes divide the batches; under FSDP all of them take part in every forward.
        shared = self.args.world_size > 1 and not self.is_fsdp_enabled
        losses = held_out_losses(
            self.model_wrapped if self.is_fsdp_enabled else self.model,
            self.held_out,
            self.args.device,
            autocast=self.accelerator.autocast,
            rank=self.args.process_index if shared else 0,
            world_size=self.args.world_size if shared else 1,
            reduce=self.accelerator.reduce if shared else None,
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in losses.items()}
        self.log(dict(metrics))
        # evaluation does not count as training time
        self._tracked_since += time.perf_counter() - began
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save_checkpoint(self, model, trial) -> None:
        began = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self._tracked_since += time.perf_counter() - began  # saving does not count as training time
