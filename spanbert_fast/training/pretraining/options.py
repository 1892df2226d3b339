"""The options of a pre-training run. The run keeps them in its directory, to be resumed."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from spanbert_fast.data.text_files import MOST_LINE_BYTES
from spanbert_fast.errors import DataError, UsageError
from spanbert_fast.schema import check, rules_of, whole
from spanbert_fast.training.options import check_precision, refuse_without_effect
from spanbert_fast.training.pretraining.recipes import Recipe, recipe_named
from spanbert_fast.training.run_files import OPTIONS, read_object, was_started

# options that do not change the numbers that a run computes
_MAY_CHANGE_ON_RESUME = {"save_steps", "save_total_limit", "logging_steps", "num_workers"}
# fields of transformers.TrainingArguments -> the option that stands for them
_OPTION_OF = {
    "bf16": "precision",
    "fp16": "precision",
    "data_seed": "seed",
    "dataloader_num_workers": "num_workers",
    "num_train_epochs": "max_steps",
    "per_device_train_batch_size": "tokens_per_batch",
}
_LAST_WEIGHTS = "a run ends with its last weights, and the losses at each evaluation are in its log"
_WITHOUT_EFFECT = {
    "load_best_model_at_end": _LAST_WEIGHTS,
    "metric_for_best_model": _LAST_WEIGHTS,
    "greater_is_better": _LAST_WEIGHTS,
    "label_smoothing_factor": "the losses are those of the span objectives",
    "per_device_eval_batch_size": "batches hold a number of tokens: --tokens-per-batch",
}


@dataclass(frozen=True)
class PretrainOptions:
    """All options of a pre-training run.

        >>> PretrainOptions("runs/new", recipe_name="small").recipe.max_steps
        100000

    Attributes:
        output_dir: the directory of the run.
        recipe_name: the preset.
        overrides: values that replace those of the preset.
        data: files, dataset directories or prepared shards; empty for the embedded corpus.
        max_line_bytes: the limit of a line of the data; see `load_documents`.
        tokenizer: directory of a fast tokenizer. None takes that of the data or of the checkpoint;
            if there is none, the run trains a WordPiece one.
        words: what counts as a word in spans; see `prepare`. None for "tokenizer", or for the
            choice with which prepared data were made.
        init_from: checkpoint to start from.
        seed: decides the first weights, the order of the data, the masks and the dropout.
        held_out: share of the text that is held out for evaluation.
        precision: "fp32", autocast in "bf16" or "fp16", or "auto" for the fastest on the device.
        weights_dtype: dtype of the weights in training, however a checkpoint is stored: "fp32",
            or "bf16", which takes half the memory and loses small updates.
        max_minutes: choose max_steps, up to the recipe's, so that training takes this long on this
            machine; None for the recipe's. The number is found once, when the run begins.
        static_shapes: fill every training batch up to the sizes of `StaticShapes`.
        cuda_graph: launch each forward and backward as one CUDA graph; needs static_shapes.
        save_steps, logging_steps: 0 for a tenth and a hundredth of the run.
        save_total_limit: number of checkpoints to keep.
        eval_steps: steps between evaluations; 0 to evaluate only before and after the run.
        num_workers: processes that make batches beside the training process.
        training_arguments: further fields of transformers.TrainingArguments.
    """

    output_dir: str
    recipe_name: str = "tiny"
    overrides: dict = field(default_factory=dict)
    data: tuple[str, ...] = ()
    max_line_bytes: int = MOST_LINE_BYTES
    tokenizer: str | None = None
    words: str | None = None
    init_from: str | None = None
    seed: int = 0
    held_out: float = 0.02
    precision: str = "auto"
    weights_dtype: str = "fp32"
    max_minutes: float | None = None
    static_shapes: bool = False
    cuda_graph: bool = False
    save_steps: int = 0
    logging_steps: int = 0
    save_total_limit: int = 2
    eval_steps: int = 0
    num_workers: int = 0
    training_arguments: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.precision, self.weights_dtype)
        if not 0 < self.held_out < 1:
            raise UsageError(f"--held-out must be in (0, 1), got {self.held_out}")
        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise UsageError(f"--max-minutes must be above 0 and finite, got {self.max_minutes}")
        if self.max_minutes is not None and "max_steps" in self.overrides:
            raise UsageError("--max-minutes chooses the steps: give it or --max-steps, got both")
        if self.max_line_bytes < 1:
            raise UsageError(f"--max-line-bytes must be at least 1, got {self.max_line_bytes}")
        for name in ("save_steps", "logging_steps", "eval_steps", "num_workers", "seed"):
            if getattr(self, name) < 0:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} must be 0 or more, got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise UsageError(f"--seed must be below 2**32, got {self.seed}")
        own = {f.name for cls in (PretrainOptions, Recipe) for f in dataclasses.fields(cls)}
        for name in self.training_arguments:
            option = _OPTION_OF.get(name, name)
            if option in own:
                option = "--" + option.replace("_", "-")
                raise UsageError(f"--set {name}: give {option} instead, which the run goes by")
        refuse_without_effect(self.training_arguments, _WITHOUT_EFFECT)
        if self.save_total_limit < 1:
            raise UsageError(f"--save-total-limit must be at least 1, got {self.save_total_limit}")
        if self.init_from is not None:
            sizes = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
            given = sorted((sizes | {"vocab_size"}) & set(self.overrides))
            if given:
                option = "--" + given[0].replace("_", "-")
                raise UsageError(
                    f"{option} cannot be given with --init-from: the checkpoint has its own"
                )
        if self.cuda_graph:
            self._check_cuda_graph()

    def _check_cuda_graph(self) -> None:
        if not self.static_shapes:
            raise UsageError("--cuda-graph needs --static-shapes, got it alone")
        if self.precision == "fp16":  # the host changes the loss scale of fp16
            raise UsageError("--precision must be auto, fp32 or bf16 with --cuda-graph, got fp16")
        accumulation = self.recipe.gradient_accumulation_steps
        if accumulation != 1:
            raise UsageError(
                f"--gradient-accumulation-steps must be 1 with --cuda-graph, got {accumulation}"
            )
        # with these, the host acts within a step: it gathers shards or restores a generator
        for name in ("fsdp", "deepspeed", "gradient_checkpointing"):
            if self.training_arguments.get(name):
                raise UsageError(
                    f"--set {name} cannot be given with --cuda-graph, got "
                    f"{self.training_arguments[name]}"
                )

    @property
    def recipe(self) -> Recipe:
        """The preset with the user's values. In a warm start the learning rate rises over a tenth
        of the run's steps, unless the user chose otherwise."""
        recipe = recipe_named(self.recipe_name).override(**self.overrides)
        if self.init_from is not None and "warmup_steps" not in self.overrides:
            recipe = recipe.override(warmup_steps=recipe.max_steps // 10)
        return recipe

    def steps_between(self, name: str) -> int:
        """save_steps or logging_steps; 0 is replaced by its default."""
        given = getattr(self, name)
        parts, most = {"save_steps": (10, 10_000), "logging_steps": (100, 100)}[name]
        return given or max(1, min(most, self.recipe.max_steps // parts))

    def to_json(self, world_size: int) -> dict:
        """The content of the run's options.json."""
        return {**dataclasses.asdict(self), "data": list(self.data), "world_size": world_size}


def resumed_options(output_dir: str, given: dict, world_size: int) -> PretrainOptions:
    """The options that a run was started with, for `--resume`.

    Args:
        output_dir: the run's directory.
        given: options given with --resume. They must equal the run's, unless they do not change
            what is computed.
        world_size: number of processes now; with accumulation they must give the same global batch.

    Raises:
        UsageError: there is no run, or an option differs from the run's.
    """
    run = Path(output_dir)
    if not was_started(run):
        raise UsageError(f"--output-dir {output_dir} holds no run to resume")
    rules = rules_of(PretrainOptions)
    saved = read_object(run / OPTIONS, rules, all_of_them=False)
    check(run / OPTIONS, saved, {"world_size": whole(1, 1 << 20), "data": rules["data"]})
    of_recipe = rules_of(Recipe)
    overrides = check(run / OPTIONS, saved.get("overrides", {}), of_recipe, all_of_them=False)
    unknown = sorted(overrides.keys() - of_recipe)
    if unknown:
        raise DataError(f"{run / OPTIONS}: overrides must be those of a recipe, got {unknown[0]!r}")
    old_world_size = saved["world_size"]
    saved = {**{k: v for k, v in saved.items() if k in rules}, "output_dir": output_dir}
    saved["data"] = tuple(saved["data"])
    old = PretrainOptions(**saved)
    changed = dict(given)
    overrides = changed.pop("overrides", {})
    for name, value in overrides.items():
        if name != "gradient_accumulation_steps":
            _require_same(name, value, getattr(old.recipe, name))
    for name, value in changed.items():
        if name == "max_minutes" or (name == "precision" and value == "auto"):
            continue  # the value that was found when the run began stays
        if name not in _MAY_CHANGE_ON_RESUME:
            _require_same("recipe" if name == "recipe_name" else name, value, getattr(old, name))
    accumulation = overrides.get(
        "gradient_accumulation_steps", old.recipe.gradient_accumulation_steps
    )
    before = old_world_size * old.recipe.gradient_accumulation_steps
    if world_size * accumulation != before:
        raise UsageError(
            f"--resume needs the run's global batch of {before} micro-batches, got {world_size} "
            f"processes with --gradient-accumulation-steps {accumulation}"
        )
    return dataclasses.replace(
        old,
        overrides={**old.overrides, "gradient_accumulation_steps": accumulation},
        **{name: value for name, value in changed.items() if name in _MAY_CHANGE_ON_RESUME},
    )


def _require_same(name: str, given, saved) -> None:
    if given != saved:
        option = "--" + name.replace("_", "-")
        raise UsageError(
            f"{option} {given} differs from the run's {saved}: a resumed run keeps its options"
        )
