"""The runner on cases of its own: deadlines, deaths, and what is written down of them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from benchmarks.gpu import collect, settings, speed
from benchmarks.gpu.runner import DEATHS, Job, Run, Step, run_steps, work_through
from benchmarks.gpu.workers import Worker

SLEEP = "import time; time.sleep(3600)"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.runner.BUILD", tmp_path)
    (tmp_path / "log").mkdir()
    made = Run(settings.rehearsal(tmp_path / "out"), 60.0, "first")
    yield made
    made.close()


def begin(actions):
    """Measure by doing what the case says."""

    def measure(case):
        actions[case["do"]](case)
        return {"verdict": "right"}

    return measure


def job(actions, *names, kind="test"):
    return Job(kind, [{"what": i, "do": name} for i, name in enumerate(names)], partial(begin, actions))


def verdicts(run, kind="test"):
    return [line["verdict"] for line in run.journal.lines if line["kind"] == kind]


def nothing(case):
    pass


def crash(case):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(case):
    time.sleep(3600)


def fail(case):
    raise ValueError("a reason\nand more")


ACTIONS = {"nothing": nothing, "crash": crash, "hang": hang, "fail": fail}


def test_a_death_costs_its_own_case_alone(run):
    work_through(run, [job(ACTIONS, "nothing", "crash", "nothing", "fail", "hang", "nothing")], silence=1.0)
    assert verdicts(run) == ["right", "dead", "right", "failed", "hung", "right"]
    crashed, failed = run.journal.lines[1], run.journal.lines[3]
    assert crashed["why"] == "killed by SIGSEGV"
    assert "last words" in crashed["tail"]
    assert failed["error"] == "ValueError: a reason"
    assert collect.read(run.settings.out / "first.jsonl") == run.journal.lines


def test_a_job_whose_processes_keep_dying_is_given_up(run):
    work_through(run, [job(ACTIONS, *["crash"] * DEATHS, "nothing", "nothing"), job(ACTIONS, "nothing")], parallel=2)
    assert sorted(verdicts(run)) == sorted(["dead"] * DEATHS + ["not run"] * 2 + ["right"])


def test_a_case_that_says_itself_that_it_is_the_last_does_not_cost_the_next_one(run):
    def start():
        def measure(case):
            if case["what"] == 0:
                return {"verdict": "dead"}
            if case["what"] == 1 and not os.path.exists(run.settings.out / "died"):
                (run.settings.out / "died").touch()
                os._exit(1)
            return {"verdict": "right"}

        return measure

    work_through(run, [Job("test", [{"what": i} for i in range(3)], start)])
    assert verdicts(run) == ["dead", "right", "right"]


def test_what_there_is_no_time_for_is_not_run(run):
    def slow(run):
        work_through(run, [job(ACTIONS, "nothing", "hang", "nothing")], silence=60.0)

    steps = [
        Step("slow", slow, 2.0),
        Step("late", slow, 2.5),
        Step("broken", lambda run: 1 / 0, 20.0),
        Step("quick", lambda run: work_through(run, [job(ACTIONS, "nothing", kind="quick")]), 30.0),
    ]
    run_steps(run, steps)
    assert verdicts(run) == ["right", "not run", "not run"]
    told = {line["step"]: line for line in run.journal.lines if line["kind"] == "step"}
    assert [told[step.name]["verdict"] for step in steps] == ["right", "not run", "failed", "right"]
    assert told["late"]["why"] == "no time"
    assert told["broken"]["error"].startswith("ZeroDivisionError")
    assert verdicts(run, "quick") == ["right"]


def test_a_child_is_killed_with_all_that_it_started(run):
    def main(pipe):
        there = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
        beside = subprocess.Popen([sys.executable, "-c", SLEEP])
        pipe.send([there.pid, beside.pid])
        time.sleep(3600)

    child = run.child("starts others", main)
    pids = [child.pid, *child.receive(time.monotonic() + 20)]
    run.end(child)
    deadline = time.monotonic() + 10
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(lives, pids))


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_torch_compile_that_is_not_ready_in_time_is_given_up(run, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.workers.serve", lambda variant, settings, pipe: time.sleep(3600))
    worker = Worker(run, "compile")
    worker.begin(True, 4, 60.0)
    run.facts["workers"] = {"compile": worker}
    run.until = time.monotonic() + 0.5
    speed.wait_for_compiling(run)
    assert run.facts["workers"] == {}
    assert verdicts(run, "outcome") == ["not run"]
    assert not lives(worker.child.pid)


def test_without_a_gpu_it_ends_at_once_and_says_so(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "first", "--out", str(tmp_path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    lines = collect.read(tmp_path / "first.jsonl")
    steps = [line for line in lines if line["kind"] == "step"][1:]
    assert {(line["verdict"], line["why"]) for line in steps} == {("not run", "this machine has no GPU that works")}
    assert "to mend:\n  dead: machine: exit code 1" in (tmp_path / "first.txt").read_text()


def test_a_run_that_is_told_to_stop_still_sums_up(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "first", "smoke", "--rehearse", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "smoke: until" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate()
    assert "no time" in rest
    assert (tmp_path / "first.txt").read_text() in rest
