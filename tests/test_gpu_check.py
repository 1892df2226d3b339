"""benchmarks/gpu_check.py on a CPU: the order of steps, the results that are kept, and that every
step can run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
H200 = {"name": "NVIDIA H200", "chip": 90, "memory": 139 << 30}


@pytest.fixture
def check(load):
    return load("gpu_check")


@pytest.fixture
def place(load, tmp_path):
    found = load("gpu_plan").Place(tmp_path / "out", tmp_path / "site", tmp_path / "work")
    for folder in (found.out, found.work):
        folder.mkdir()
    return found


def step(load, name, code, seconds=20, **more):
    """A step that runs a few lines of Python."""
    return load("gpu_plan").Step(name, 1, seconds, (sys.executable, "-c", code), **more)


@pytest.fixture
def run(check, place, monkeypatch):
    """Run main with these steps in place of the plan; returns the exit code and the results."""
    monkeypatch.setattr(check, "put_together", lambda site, tuned: None)
    monkeypatch.setattr(check, "facts", lambda python, tiny: {"name": "cpu"})

    def main(steps, *arguments):
        monkeypatch.setattr(check, "plan", lambda *unused: [s._replace() for s in steps])
        monkeypatch.setattr(check, "Place", lambda *unused: place)
        code = check.main(["--tiny", "--out", str(place.out), *arguments])
        return code, json.loads((place.out / "gpu_check.json").read_text())

    return main


def outcomes(content):
    return {record["name"]: record["outcome"] for record in content["results"]}


def test_the_plan_proves_before_it_measures(load):
    plan, place = load("gpu_plan").plan, load("gpu_plan").Place(*map(Path, ("out", "site", "work")))
    steps = plan(place, H200, tiny=False)
    assert [s.name for s in steps] == [
        "build", "races", "steps", "tests", "memcheck", "racecheck", "ceilings", "host_cost",
        "training", "training_base", "ops", "tune", "training_tuned", "training_compiled",
    ]  # fmt: skip
    assert [s.part for s in steps] == sorted(s.part for s in steps)
    again = 20  # seconds of the build step if the extension exists already
    for part in (1, 2, 3):
        limits = [s.seconds for s in steps if s.part == part]
        assert sum(limits) + again * (part > 1) <= 580, part
    names = [s.name for s in steps]
    for s in steps:
        assert all(names.index(need) < names.index(s.name) for need in s.needs)
    tiny = plan(place, {"chip": 0, "memory": 0}, tiny=True)
    assert {s.name for s in steps} - {s.name for s in tiny} == {"tune", "training_tuned"}


def test_nine_kernels_are_tuned(load):
    pytest.importorskip("triton")
    targets = load("tune").TARGETS
    assert len(load("gpu_plan").TUNED_KERNELS) == 9
    assert set(load("gpu_plan").TUNED_KERNELS) <= set(targets)


@pytest.mark.parametrize("tiny", [True, False])
def test_every_script_takes_its_options(load, monkeypatch, tiny):
    """The scripts parse the options themselves; each stops before it would begin to work."""
    gpu_plan = load("gpu_plan")
    steps = gpu_plan.plan(gpu_plan.Place(*map(Path, ("out", "site", "work"))), H200, tiny)
    parsed = []

    class Parsed(Exception):
        pass

    def stop(parser, arguments):
        parsed.append(parser.parse_known_args(arguments))
        raise Parsed

    for s in steps:
        command = list(s.command)
        if "pytest" in command:
            continue
        if s.program:
            assert command[:4] == [s.program, "--tool", s.name, "--error-exitcode"]
            command = command[5:]
        script = Path(command[1])
        assert command[0] == sys.executable and script.parent == BENCHMARKS and script.exists()
        module = load(script.stem)
        with monkeypatch.context() as patch, pytest.raises(Parsed):
            patch.setattr("argparse.ArgumentParser.parse_args", lambda p, a: stop(p, a))
            module.main(command[2:])
        assert parsed[-1][1] == [], s.name


def test_marked_tests_need_no_datasets(load):
    """Bare GPU images lack that library, so collecting these files must not import it."""
    files = load("gpu_plan").marked_tests()
    assert "tests/test_captured_step.py" in files
    code = (
        "import sys; sys.modules['datasets'] = None; import pytest; "
        "sys.exit(pytest.main(['-q', '--collect-only', '-m', 'gpu', '-p', 'no:cacheprovider', "
        "*sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_step_that_fails_does_not_stop_the_rest(load, run, place, capsys):
    steps = [
        step(load, "good", "print('fine')"),
        step(load, "bad", "print('the reason'); raise SystemExit(5)"),
        step(load, "slow", "import time; print('begun', flush=True); time.sleep(60)", seconds=10),
        step(load, "behind", "print('last')", needs=("bad", "slow")),
        step(load, "long", "print('never')", seconds=10_000),
        step(load, "blocked", "print('never')", needs=("bad", "long")),
        step(load, "elsewhere", "print('never')", program="no-such-program"),
    ]
    code, content = run(steps, "--seconds", "600")
    assert code == 1
    assert outcomes(content) == {
        "good": "passed",
        "bad": "failed: exit code 5",
        "slow": "cut after 10 s",
        "behind": "passed",
        "elsewhere": "not here: no-such-program is not on the PATH",
    }
    printed = {r["name"]: r["printed"] for r in content["results"]}
    assert printed["slow"] == "begun\n" and "the reason" in printed["bad"]
    log = (place.out / "log.txt").read_text()
    assert log.index("===== good: passed") < log.index("===== bad: failed") < log.index("last")
    assert "not passed: bad, slow" in (output := capsys.readouterr().out)
    assert "left: needs 10000 s" in output and "left: waits for long\n" in output


def test_what_has_ended_is_not_run_again(load, run, place, tmp_path):
    mark = f"open({str(tmp_path / 'runs')!r}, 'a').write(NAME + ' ')"
    steps = [
        step(load, name, mark.replace("NAME", repr(name)), always=name == "build", seconds=seconds)
        for name, seconds in (("build", 20), ("one", 20), ("two", 40))
    ]
    code, content = run(steps, "--seconds", "44")
    assert code == 3 and outcomes(content) == {"build": "passed", "one": "passed"}
    code, content = run(steps)
    assert code == 0 and list(outcomes(content)) == ["one", "build", "two"]
    assert run(steps)[0] == 0, "nothing is left"
    assert (tmp_path / "runs").read_text().split() == ["build", "one", "build", "two"]
    run(steps, "--steps", "one")
    assert (tmp_path / "runs").read_text().split()[4:] == ["build", "one"]
    with pytest.raises(SystemExit, match="no such step: three"):
        run(steps, "--steps", "three")


def test_parts(load, run):
    steps = [step(load, f"s{k}", "pass")._replace(part=k) for k in (1, 2, 3)]
    assert list(outcomes(run(steps, "--part", "1")[1])) == ["s1"]
    assert list(outcomes(run(steps, "--part", "2")[1])) == ["s1", "s2"]
    code, content = run(steps)
    assert code == 0 and list(outcomes(content)) == ["s1", "s2", "s3"]


def test_another_machine_goes_on(load, run, place, tmp_path):
    steps = [step(load, "one", "pass"), step(load, "two", "pass")]
    run(steps[:1])
    earlier = tmp_path / "earlier"
    shutil.move(place.out, earlier)
    (earlier / "extension-abc.so").write_bytes(b"built")
    code, content = run(steps, "--earlier", str(earlier))
    assert code == 0 and list(outcomes(content)) == ["one", "two"]
    assert (place.out / "extension-abc.so").read_bytes() == b"built"


def test_results_of_another_gpu_are_refused(check, run, load, monkeypatch):
    run([step(load, "one", "pass")])
    monkeypatch.setattr(check, "facts", lambda python, tiny: H200)
    with pytest.raises(SystemExit, match="is of cpu, this is NVIDIA H200"):
        run([step(load, "one", "pass")])


def test_what_a_step_writes_is_kept_however_it_ends(load, run, place):
    write = f"import os, pathlib; pathlib.Path({str(place.work)!r}, NAME).write_text(TEXT); "
    found = {"benchmark": "training", "results": [1]}

    def writes(name, text, rest="", **more):
        code = write.replace("NAME", repr(f"{name}.json")).replace("TEXT", repr(text)) + rest
        return step(load, name, code, writes=name, **more)

    _, content = run(
        [
            writes("training", json.dumps(found), "os.kill(os.getpid(), 9)"),
            writes("tuned", '[{"kernel": "pad"}]', "raise SystemExit(1)"),
            writes("environment", '{"gpus": []}'),
            writes("ops", '{"half'),
        ]
    )
    assert content["documents"] == {"training": found}
    assert content["tuned"] == [{"kernel": "pad"}] and content["environment"] == {"gpus": []}


def test_tuned_tiles_are_in_force_for_what_needs_them(check, place, load):
    check.put_together(place.site, None)
    kernels = place.site / "spanbert_fast/kernels"
    assert (kernels / "tuned.json").read_text() == (ROOT / "kernels/tuned.json").read_text()
    check.put_together(place.site, [{"kernel": "pad"}])
    assert json.loads((kernels / "tuned.json").read_text()) == [{"kernel": "pad"}]
    code = "import spanbert_fast as s, spanbert_fast.kernels as k; print(s.__file__, *k.__path__)"
    check.put_together(place.site, None)
    how, _, printed = check.run(step(load, "import", code), place, 60)
    assert how == "passed" and printed.splitlines()[-1].count(str(place.site)) == 2, printed


def test_a_run_that_is_ended_takes_its_step_along(tmp_path):
    """After SIGTERM in a step, earlier results are kept and no process is left behind."""
    child = tmp_path / "child"
    code = (
        "import json, os, pathlib, sys; sys.path.append(sys.argv[1]); import gpu_check as g;"
        "from gpu_plan import Place, Step;"
        "g.put_together = lambda *unused: None;"
        "g.facts = lambda *unused: {'name': 'cpu'};"
        "run = lambda name, code: Step(name, 1, 60, (sys.executable, '-c', code));"
        "g.plan = lambda *unused: [run('one', 'pass'), run('two', sys.argv[3])];"
        "folder = pathlib.Path(sys.argv[2]); work = folder / 'work';"
        "g.Place = lambda *unused: Place(folder, folder / 'site', work);"
        "sys.exit(g.main(['--tiny', '--out', str(folder)]))"
    )
    sleeper = (
        f"import os, time; open({str(child)!r} + '.part', 'w').write(str(os.getpid())); "
        f"os.rename({str(child)!r} + '.part', {str(child)!r}); time.sleep(120)"
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(BENCHMARKS), str(out), sleeper],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    for _ in range(600):
        if child.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert outcomes(json.loads((out / "gpu_check.json").read_text())) == {"one": "passed"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)


def test_without_a_gpu_there_is_one_line(check, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check, "facts", lambda python, tiny: None)
    assert check.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
