"""The report, out of result files."""

import importlib

import pytest


def test_a_gpu_has_its_own_folder_and_section(tmp_path, benchmarks, monkeypatch):
    form, env = benchmarks("results_format"), importlib.import_module("spanbert_fast.commands.env")
    here = env.environment()
    gpu = {**here, "gpus": ["NVIDIA H100 80GB HBM3, sm_90, 80 GiB"]}
    monkeypatch.setattr(env, "environment", lambda: gpu)
    name = form.machine_name("cuda")
    assert name.startswith("nvidia-h100-80gb-hbm3-20")
    checked = [
        {"op": "padding", "case": "bf16-forward", "providers": {"ours": {"passed": True}}},
        {"op": "bias_gelu", "case": "bf16-forward", "providers": {"ours": {"passed": False}}},
        {"op": "all", "case": "compute-sanitizer memcheck", "not_measured": "no time"},
    ]
    form.write_document(tmp_path / name / "check.json", form.document("check", 1, checked, "cuda"))
    text = benchmarks("report").report(tmp_path).read_text()
    of_gpus = text[text.index("## GPUs") :]
    for part in (
        name,
        "NVIDIA H100",
        "| padding bf16-forward | passed |",
        "| ours is wrong |",
        "no time",
    ):
        assert part in of_gpus


def test_cpus_of_one_name_and_other_instructions_have_their_own_folders(benchmarks, monkeypatch):
    form, env = benchmarks("results_format"), importlib.import_module("spanbert_fast.commands.env")
    here = env.environment()
    names = []
    for level in ("avx2", "avx512_bf16"):
        cpu = {**here["cpu"], "model": "AMD EPYC", "isa_level": level}
        monkeypatch.setattr(env, "environment", lambda cpu=cpu: {**here, "cpu": cpu})
        names.append(form.machine_name())
    assert [name.partition("cores-")[2] for name in names] == ["avx2", "avx512-bf16"]


def test_the_report_has_training_and_finetuning(tmp_path, benchmarks):
    folder = tmp_path / "machine"
    folder.mkdir()
    training = {
        "layers": 4, "hidden_size": 768, "seqlen": 512, "lengths": [512], "tokens": 512,
        "dtype": "bf16", "dropout": 0.1, "allocator": "default",
        "providers": {
            "ours": {"median_ms": 10.0, "tokens_per_second": 5e4, "peak_rss_mb": 100.0},
            "hf-sdpa": {"median_ms": 31.0, "tokens_per_second": 2e4, "peak_rss_mb": 300.0},
            "hf-eager-compiled": {"passed": False, "raised": "RuntimeError: no compiler"},
        },
        "not_measured": {"reference": "the time was up"},
        "speedups": {"hf-sdpa": {"median": 3.125, "low": 3.0, "high": 3.2}},
    }  # fmt: skip
    training["commit"] = "0123456789abcdef"  # an older one than the file's
    tuning = {"case": "wnut17", "metric": "f1", "speed_up": 2.5, "peer": "transformers eager"}
    run = {"spanbert_fast": {"dev": {"f1": 50.25}, "seconds": 10.0}}
    run["transformers"] = {"dev": {"f1": 49.5}, "seconds": 30.0}
    form = benchmarks("results_format")
    for name, results in (("training", [training]), ("finetuning", [{**tuning, "runs": run}])):
        form.write_document(folder / f"{name}.json", form.document(name, 2, results))
    text = benchmarks("report").report(tmp_path).read_text()
    figures = (
        "malloc default, commit `0123456789ab`",
        "3.12",
        "failed",
        "300",
        "50.25",
        "49.50",
        "2.50 (transformers eager)",
    )
    for figure in (*figures, "not measured: the time was up"):
        assert figure in text
    pictures = {p.name.removeprefix("machine-") for p in tmp_path.glob("*.png")}
    assert pictures == {"training.png", "memory.png", "finetuning.png"}


def test_families_are_measured_and_reported(tmp_path, benchmarks, capsys):
    common = tmp_path / "common.json"
    common.write_text('{"distilbert": {"stock": 100, "accelerated": 99}}')
    output = tmp_path / "results" / "machine" / "families.json"
    families = benchmarks("bench_families")
    bert = next(family for family in families.FAMILIES if family.name == "bert")
    families.small_model(bert, 1, 64).save_pretrained(tmp_path / "trained")
    options = "--families bert distilbert --layers 1 --hidden-size 64 --batch 3 --seqlen 16"
    options += f" --seconds 0.1 --threads 1 --common-tests {common} --output {output}"
    assert families.main([*options.split(), "--model", str(tmp_path / "trained")]) == 0
    bert, distilbert, trained = benchmarks("results_format").read_document(output)["results"]
    assert trained["family"] == "BERT, trained weights" and trained["hidden_size"] == 64
    for found in (bert, distilbert, trained):
        assert found["same_parameters"] and found["speedups"].keys() == {"fp32", "bf16"}
        assert all(0 < share <= 1 for share in found["share_of_allowed_error"].values())
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith(f"| BERT | {bert['classes']} | not measured | the same |")
    assert printed[3].startswith(f"| DistilBERT | {distilbert['classes']} | 99 of 100 |")
    assert printed[3] in benchmarks("report").report(tmp_path / "results").read_text()


def test_a_broken_result_file_is_named(tmp_path, benchmarks):
    read = benchmarks("results_format").read_document
    path = tmp_path / "x.json"
    for content, message in (("{", "x.json: not JSON"), ('{"a": 1}', "it has no 'benchmark'")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read(path)


def test_a_picture_has_a_dozen_bars_at_most(benchmarks):
    plots = benchmarks("plots")

    def group(heading, count):
        return plots.Group(heading, [plots.Bar(f"{heading}{i}", 1.0 + i, "") for i in range(count)])

    pages = list(plots.pages([group("a", 5), group("b", 7), group("c", 3), group("d", 14)]))
    assert [[(g.heading, len(g.bars)) for g in page] for page in pages] == [
        [("a", 5), ("b", 7)],
        [("c", 3)],
        [("d", 12)],
        [("d", 2)],
    ]
    bars = [bar.name for page in pages for g in page for bar in g.bars]
    assert len(bars) == len(set(bars)) == 29


def test_unlike_cases_have_unlike_headings(tmp_path, benchmarks, monkeypatch):
    """Dropout or none, another dtype, padding or none: no two of them under one heading."""
    plots, report = benchmarks("plots"), benchmarks("report")
    case = {
        "layers": 4, "hidden_size": 768, "seqlen": 512, "lengths": [512, 512], "tokens": 1024,
        "dtype": "bf16", "dropout": 0.1, "allocator": "default",
        "providers": {}, "speedups": {"hf-sdpa": {"median": 2.0}},
    }  # fmt: skip
    others = [
        {"dropout": 0.0},
        {"dtype": "fp32"},
        {"lengths": [512, 100], "tokens": 612},
        {"layers": 12},
        {"allocator": "heap-kept"},
    ]
    drawn = []
    monkeypatch.setattr(plots, "bars", lambda canvas, name, question, groups, *_: drawn.append(
        (question, [g.heading for g in groups])) or "")  # fmt: skip
    cases = [case, *({**case, **other} for other in others)]
    report.of_training(cases, plots.Canvas(tmp_path / "machine", "a CPU"))
    (question, headings), _ = drawn  # the step, then its memory
    assert question == "How much faster is a training step?"
    assert len(set(headings)) == len(cases)
