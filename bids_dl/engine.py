"""nipype runs both levels: tasks with their order become one cached, resumable graph. The only file that knows nipype."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bids_dl.config import Config
from bids_dl.derivatives import remove, write_text
from bids_dl.errors import MissingInputError, UsageError

LOG = logging.getLogger("bids_dl")
VERSION = metadata.version("bids_dl")


@dataclass(frozen=True)
class Task:
    """One step: a function named ``module:function``, its JSON arguments, and the tasks whose results it waits for.

    ``redo`` runs it even where the cache says that it is done, for outputs that have gone missing. ``despite`` runs it even
    where some of those that it waits for have failed: it makes do without them.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    after: Sequence[str] = ()
    redo: bool = False
    memory_gb: float = 0.25
    stamp: str = field(default="", compare=False)
    despite: bool = False


USUALLY: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""How Python meets the signals that end a run, unless whoever started it wants otherwise (``nohup``)."""
FAILED = "_failed"
"""Key of a result that says why there is none."""


def call(step: str, arguments: str, stamp: str, upstream: list[object], caught: bool, despite: bool) -> object:
    """Run in a worker: import the function, hand it its arguments; its result is plain JSON data.

    A failure is ``caught`` where some other task runs despite it: then it is the result, as is that of one to wait for.
    """
    import importlib
    import json
    import traceback

    if not despite and any(isinstance(one, dict) and "_failed" in one for one in upstream):
        return {"_failed": ""}
    module, _, name = step.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**json.loads(arguments))
    except Exception:
        if not caught:
            raise
        return {"_failed": traceback.format_exc()}


def run(config: Config, name: str, tasks: Sequence[Task], *, unit: str = "step") -> dict[str, Any]:
    """Run tasks in their order, several at once, skipping what an earlier run finished.

    Returns
    -------
    dict
        Result of each task that ended well; a task that failed, or waited for one and does not run despite it, is
        missing. The reason of a failure is in the crash files of ``OUTPUT_DIR/logs``.
    """
    if config.run.clean_workdir:
        remove([config.work / name])
    _settings(config)
    workflow, nodes = _graph(config, name, tasks)
    if config.run.write_graph:
        workflow.write_graph(dotfilename=str(config.out / "logs" / f"{name}.dot"), graph2use="flat", format="svg")
    graph = None
    with _stoppable(), _progress(len(tasks), name, unit) as advance:
        try:
            graph = workflow.run(**_plugin(config, advance))
        except RuntimeError as problem:
            LOG.debug("nipype ended with: %s", problem)
    return _results(config, graph, nodes, tasks)


@contextmanager
def _stoppable() -> Iterator[None]:
    """End the run at Ctrl-C, which a terminal tells everybody, and at what ``timeout`` and schedulers tell this process alone.

    Workers inherit how a signal is met: they wait until this process ends them, then clean up, and none is left behind.
    """
    main = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() == main:
            logging.getLogger("concurrent.futures").disabled = True  # that its workers end is no news then
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)

    met = [number for number, usual in USUALLY.items() if signal.getsignal(number) == usual]
    for number in met:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in met:
            signal.signal(number, USUALLY[number])


def _settings(config: Config) -> None:
    """Quiet nipype, point its crash files into the output, and let small steps not wait for polling."""
    from nipype import config as nipype_config
    from nipype import logging as nipype_logging

    level = "WARNING" if config.run.verbose < 2 else "INFO"
    nipype_config.update_config({
        "execution": {
            "crashdump_dir": str(config.out / "logs"), "crashfile_format": "txt", "check_version": "false",
            "poll_sleep_duration": "0.05", "hash_method": "content", "create_report": "false",
            "remove_unnecessary_outputs": "false",
            "stop_on_first_crash": str(config.run.stop_on_first_crash).lower(), "stop_on_unknown_version": "false",
        },
        "logging": {"workflow_level": level, "interface_level": level, "log_to_file": "false"},
        "monitoring": {"enabled": str(config.run.resource_monitor).lower(), "sample_frequency": "1"},
    })  # fmt: skip
    nipype_logging.update_logging(nipype_config)
    if config.run.resource_monitor:
        nipype_config.enable_resource_monitor()
    if config.run.verbose < 2:
        for logger in ("nipype.workflow", "nipype.interface", "nipype.utils"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)


def _graph(config: Config, name: str, tasks: Sequence[Task]) -> tuple[Any, dict[str, Any]]:
    from nipype import Function, Merge, Node, Workflow

    workflow = Workflow(name, base_dir=str(config.work))
    nodes: dict[str, Any] = {}
    caught = {before for task in tasks if task.despite for before in task.after}
    for task in tasks:
        interface = Function(function=call, output_names=["result"])
        node = Node(interface, task.name, overwrite=task.redo or None, mem_gb=task.memory_gb)
        node.base_dir = str(config.work)
        node.inputs.step = task.function
        node.inputs.arguments = _arguments(task)
        node.inputs.stamp = _stamp(task)
        node.inputs.upstream = []
        node.inputs.caught = task.name in caught and not config.run.stop_on_first_crash
        node.inputs.despite = task.despite
        workflow.add_nodes([node])
        if task.after:
            merge = Node(Merge(len(task.after)), f"{task.name}_waits", run_without_submitting=True)
            for position, before in enumerate(task.after, 1):
                workflow.connect(nodes[before], "result", merge, f"in{position}")
            workflow.connect(merge, "out", node, "upstream")
        nodes[task.name] = node
    return workflow, nodes


def n_processes(config: Config) -> int:
    """Processes at once: as asked, else the cores this process may use."""
    return config.run.nprocs or len(os.sched_getaffinity(0))


def _plugin(config: Config, advance: Callable[..., None]) -> dict[str, Any]:
    """Choose nipype's engine: the user's settings, several processes, or none."""
    if config.run.use_plugin:
        return _user_plugin(Path(config.run.use_plugin))
    if n_processes(config) == 1:
        return {"plugin": "Linear", "plugin_args": {"status_callback": advance}}
    arguments: dict[str, Any] = {
        "n_procs": n_processes(config),
        "raise_insufficient": False,
        "status_callback": advance,
    }
    if config.run.mem_mb:
        arguments["memory_gb"] = config.run.mem_mb / 1024
    return {"plugin": "MultiProc", "plugin_args": arguments}


def _user_plugin(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise MissingInputError(f"the plugin file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as problem:
        raise UsageError(f"{path} is not YAML: {problem}.") from problem
    if not isinstance(content, dict) or "plugin" not in content:
        raise UsageError(f"{path} needs a line 'plugin: NAME', and 'plugin_args' where the plugin takes some.")
    os.environ.setdefault("LOGNAME", "bids_dl")
    return {"plugin": content["plugin"], "plugin_args": content.get("plugin_args", {})}


SAID_EVERY_S = 60.0
"""Seconds between two lines of progress where there is no terminal for a bar."""


class _progress:
    """Show a bar on a terminal; elsewhere, in the log of a cluster or a container, say a line a minute at most.

    From the first task on the garbage collector passes over what is there: MultiProc runs it for each task, over the objects of
    all tasks, which took most of the time of a thousand small ones.
    """

    def __init__(self, total: int, name: str, unit: str) -> None:
        from tqdm import tqdm

        self.total, self.name, self.n, self.said = total, name, 0, time.monotonic()
        self.bar = tqdm(total=total, desc=name, unit=unit, disable=not sys.stderr.isatty())
        self.has_begun = False

    def __enter__(self) -> Callable[..., None]:
        return self._advance

    def _advance(self, node: Any, status: str) -> None:
        if not self.has_begun:
            gc.freeze()
            self.has_begun = True
        if status not in {"end", "exception"} or node.name.endswith("_waits"):
            return
        self.n += 1
        self.bar.update()
        if self.bar.disable and self.n < self.total and time.monotonic() - self.said >= SAID_EVERY_S:
            self.said = time.monotonic()
            LOG.info("%s: %d of %d steps are done.", self.name, self.n, self.total)

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        self.bar.close()


def _results(config: Config, graph: Any, nodes: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """Read what each node left behind; one that failed, or did not run this time, has no result."""
    ran = {node.name: node for node in graph.nodes()} if graph is not None else nodes
    found: dict[str, Any] = {}
    failed = set()
    for task in tasks:
        try:
            result = ran[task.name].result
            if not _is_of(task, result.inputs):
                continue
            said = result.outputs.result
        except Exception as problem:  # a node that never ran raises whatever its cache reader meets
            LOG.debug("%s left no result: %s", task.name, problem)
            continue
        if isinstance(said, dict) and FAILED in said:
            failed.add(task.name)
            if said[FAILED]:
                write_text(crash_path(config, task.name), said[FAILED])
        elif all(before in found or (task.despite and before in failed) for before in task.after):
            found[task.name] = said
            crash_path(config, task.name).unlink(missing_ok=True)
    return found


def crash_path(config: Config, name: str) -> Path:
    """Name the file that says why a task failed which others run despite."""
    return config.out / "logs" / f"crash-{name}.txt"


def _is_of(task: Task, inputs: Mapping[str, Any]) -> bool:
    """Tell whether a stored result came from these arguments, not from those of an earlier run."""
    return inputs["stamp"] == _stamp(task) and bool(json.loads(inputs["arguments"]) == json.loads(_arguments(task)))


def _stamp(task: Task) -> str:
    """Add the version of this program to a task's stamp: what another version made is not taken for its result."""
    return f"{VERSION} {task.stamp}"


def _arguments(task: Task) -> str:
    return json.dumps(task.arguments, sort_keys=True)
