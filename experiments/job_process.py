"""One job of a sweep in a process of its own, so that whatever ends it ends nothing else.

A sweep of several processes (hydra/launcher=joblib) has workers that wait: each starts a new process for every job,
with the device and the memory settings of that job in its environment before JAX is imported, and starts the next when
it has ended, however it has ended. joblib would stop the whole sweep when a worker is killed, and its workers, which
run job after job, would keep the device and the memory of the first.

The configuration goes through the process's standard input. Its other end stays open as long as the worker lives: where
it closes, the job is asked to stop. What the job prints goes to `job.log` in its folder.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from experiments import ROOT, interruption, streams, sweep_devices, sweeps
from experiments.sweeps import Job

LOG = "job.log"
STOP = "stop"
SECONDS_TO_STOP = 20.0
_SECONDS_BETWEEN_LOOKS = 0.2
_EXPECTED_CODES = (0, 130, 143)


@dataclass(frozen=True)
class Crew:
    """The processes of one sweep, and what they share.

    Attributes:
        place: a folder for this sweep alone, where they leave signs for each other.
        leader: the process that the user started.
        settings: of devices and memory.
        threads: variables that number the threads of libraries, as the user set them; joblib sets its own.
    """

    place: Path
    leader: int
    settings: sweep_devices.SweepConfig
    threads: Mapping[str, str]

    @property
    def stop_code(self) -> int:
        """Exit code of a sweep that was asked to stop; 0 as long as it was not."""
        try:
            return int((self.place / STOP).read_text() or 0)
        except FileNotFoundError:
            return 0

    def listen(self) -> None:
        """Has signals that ask to stop stop every job: it saves, and no other begins. A second Ctrl-C stops at once."""
        for number in interruption.SIGNALS:
            signal.signal(number, self._come)

    def _come(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self.leader:
            if number == signal.SIGTERM and not self.stop_code:
                (self.place / STOP).write_text(str(128 + number))
            return  # Ctrl-C reaches all processes; the leader decides.
        if self.stop_code and number == signal.SIGINT:
            raise KeyboardInterrupt
        (self.place / STOP).write_text(str(128 + number))
        streams.say_at_once("stopping: every job saves what it has")


def run(job: Job, crew: Crew, request: Mapping[str, Any]) -> None:
    """Runs a job in a new process and waits for its end.

    Args:
        job: which.
        crew: that this process belongs to.
        request: JSON values: `name` of the entry point, `config` as YAML, `logging` and `verbose` of Hydra.
    """
    if os.getpid() != crew.leader:
        crew.listen()
    if crew.stop_code:
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    asked = {
        **request,
        "number": job.number,
        "overrides": list(job.overrides),
        "folder": str(job.folder),
    }
    with (
        sweep_devices.slot(crew.place, job.number) as number,
        (job.folder / LOG).open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "experiments.job_process"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(crew, number),
            process_group=0,  # Ctrl-C is for the leader.
        ) as process,
    ):
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It is gone already; its exit code says how.
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        code = _wait(process, crew)
    if code not in _EXPECTED_CODES:
        _note_end(job, crew, code)
    state, why = sweeps.outcome(job)
    streams.say(f"job {job.number} {state}{': ' if why else ''}{why}")


def main() -> None:
    """Runs the job that standard input asks for."""
    from experiments import command_line, schema

    with command_line.reported_errors():
        asked = json.loads(_first_line(0))
        threading.Thread(target=_stop_when_alone, args=(0,), daemon=True).start()
        name = asked["name"]
        config = schema.from_yaml(asked["config"], schema.SCHEMAS[name])
        command_line.log_as(asked["logging"], asked["verbose"])
        job = Job(asked["number"], tuple(asked["overrides"]), Path(asked["folder"]))
        sweeps.attempt(job, config, importlib.import_module(f"experiments.{name}").job)


def _environment(crew: Crew, slot: int) -> dict[str, str]:
    """The variables of a job: the worker's, without joblib's numbers of threads, with the job's device."""
    kept = {name: value for name, value in os.environ.items() if name not in sweep_devices.THREADS}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {
        **kept,
        **crew.threads,
        **sweep_devices.variables(crew.settings, slot, kept),
        "PYTHONPATH": path,
    }


def _wait(process: "subprocess.Popen[bytes]", crew: Crew) -> int:
    """Waits for the end of a job; passes on that the sweep is to stop, and ends what does not."""
    waited = 0.0
    while True:
        try:
            return process.wait(_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            pass
        except BaseException:
            process.kill()
            raise
        if crew.stop_code:
            if not waited:
                process.terminate()
            waited += _SECONDS_BETWEEN_LOOKS
            if waited > SECONDS_TO_STOP:
                process.kill()


def _note_end(job: Job, crew: Crew, code: int) -> None:
    """Notes in the job's folder how its process ended, as it could not do so itself."""
    if code > 0:
        sweeps.record(
            job, sweeps.FAILED, f"its process ended with code {code}; {LOG} in its folder may say why"
        )
    elif crew.stop_code:
        sweeps.record(job, sweeps.INTERRUPTED, "it was asked to stop")
    else:
        name = signal.Signals(-code).name
        remark = "; was it out of memory?" if -code == signal.SIGKILL else ""
        sweeps.record(job, sweeps.KILLED, f"its process was ended by {name}{remark}")


def _first_line(handle: int) -> bytes:
    """Reads without a buffer, so that the thread that goes on reading holds no lock when the process ends."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(handle, 1)
        if not byte:
            raise SystemExit("nobody asks for a job; this module is started by a sweep")
        line += byte
    return bytes(line)


def _stop_when_alone(handle: int) -> None:
    """Has the job stop, and save, when the worker that waits for it is gone."""
    while os.read(handle, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    interruption.run_process(main)
