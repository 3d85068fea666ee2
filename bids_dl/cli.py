"""The command line: arguments become a `Config`, which one of the two levels runs; problems become exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from bids_dl import config as configuration
from bids_dl import zoo
from bids_dl.errors import (
    DISK_FULL,
    BidsDLError,
    MissingInputError,
    OutputError,
    UnknownLevelError,
    UsageError,
    no_room,
)

LEVELS = ("participant", "group")
DESCRIPTION = "Deep learning for neuroimaging, from a BIDS dataset to an evaluated, explained, reusable model."
EPILOG = """\
examples:
  bids_dl /data /out participant                 extract every feature the data allow
  bids_dl /data /out group                       train, validate, fuse and explain models
  bids_dl /data /out group --test-dataset /out2  the same, and judge them on another dataset
  bids_dl /new /out2 participant --bundle /out/group/bundles/NAME    apply a trained model
  bids_dl --describe models.mlp                  a method's options

exit codes: 0 done; 1 some participants or models failed and are listed; 16 invalid BIDS;
17 unknown level; 18 nothing selected; 64 usage; 65 bad data; 66 missing input; 73 output; 74 disk
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that exits with 64, since BIDS reserves argparse's own 2."""

    def error(self, message: str) -> NoReturn:
        """Print one sentence and leave with the usage code."""
        flag = message.removeprefix("unrecognized arguments: ").split()[0]
        hint = zoo.nearest(flag, self._option_string_actions) if message.startswith("unrecognized") else ""
        raise UsageError(f"{message}. {hint}".strip())


def package_version() -> str:
    """Return the installed version."""
    return metadata.version("bids_dl")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"bids_dl {package_version()}")
        parser.exit(0)


class _Descriptor(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print((Path(__file__).parent / "descriptor.json").read_text(encoding="utf-8"), end="")
        parser.exit(0)


class _Describe(argparse.Action):
    """Print the methods of a zoo, or the options of one method."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, value: Any, *__: Any) -> None:
        folder, _dot, name = str(value).partition(".")
        if folder not in zoo.ENTRY:
            raise UsageError(f"'{folder}' is no kind of method; {zoo.nearest(folder, zoo.ENTRY)}")
        for method in [name] if name else zoo.names(folder):
            print(f"{folder}.{method}: {zoo.summary(folder, method).replace(']_', ']')}")
            for mark, paper in zoo.references(folder, method).items():
                print(f"    [{mark}] {paper}")
            for option, default in zoo.options(folder, method).items():
                print(f"    {option} = {json.dumps(default)}")
        parser.exit(0)


def build_parser() -> Parser:
    """Build the parser. Each option's ``dest`` is the dotted key of the configuration that it sets."""
    parser = Parser(
        prog="bids_dl", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument("bids_dir", metavar="BIDS_DIR", help="a BIDS dataset, raw or derivative")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="where results go; created if missing")
    parser.add_argument("analysis_level", metavar="{participant,group}", help="which level to run")
    for add in (_selection, _method_choice, _performance, _other):
        add(parser)
    return parser


def _add(group: argparse._ArgumentGroup, *flags: str, **options: Any) -> None:
    """Add a flag under its spellings with ``-`` and with ``_``; only the first spelling is shown in the help."""
    group.add_argument(*flags, **options)
    hidden = [flag.replace("-", "_").replace("__", "--", 1) for flag in flags if "-" in flag[2:]]
    if hidden:
        group.add_argument(*hidden, **{**options, "help": argparse.SUPPRESS})


def _selection(parser: Parser) -> None:
    group = parser.add_argument_group("what to look at")
    label = {"nargs": "+", "metavar": "LABEL"}
    _add(group, "--participant-label", dest="select.participant_label", help="with or without sub-", **label)
    _add(group, "--session-label", dest="select.session_label", help="with or without ses-", **label)
    _add(group, "-t", "--task-id", dest="select.task_id", help="tasks of functional scans", **label)
    _add(group, "--bids-filter-file", dest="select.bids_filter", type=_json_file, metavar="FILE",
         help='JSON of entities a query, e.g. {"bold": {"task": "rest"}}')  # fmt: skip
    _add(group, "-d", "--derivatives", "--datasets", dest="select.derivatives", nargs="+", metavar="NAME=PATH",
         help="derivative datasets (those in BIDS_DIR/derivatives are found unaided)")  # fmt: skip
    _add(group, "--no-derivatives", dest="select.no_derivatives", action="store_true",
         help="do not look in BIDS_DIR/derivatives")  # fmt: skip
    _add(group, "--raw-only", dest="select.raw_only", action="store_true",
         help="prepare every raw scan here, though derivatives are present")  # fmt: skip
    _add(group, "--bids-database-dir", dest="select.bids_database_dir", metavar="DIR",
         help="keep the dataset's index here and use it again")  # fmt: skip
    _add(group, "--skip-bids-validation", dest="select.skip_bids_validation", action="store_true",
         help="do not check that the dataset is valid BIDS")  # fmt: skip


def _method_choice(parser: Parser) -> None:
    group = parser.add_argument_group("what to do (every option, and more, can stand in the configuration file)")
    names = {"nargs": "+", "metavar": "NAME"}
    for folder in configuration.ZOOS[1:]:  # which preparations run follows from the features
        _add(group, f"--{folder}", dest=f"{folder}.names", help=f"from: {', '.join(zoo.names(folder))}", **names)
    _add(group, "--atlas", dest="features.timeseries.atlas", nargs="+", metavar="NAME|PATH",
         help="atlases of regions, each a name, a NIfTI file or a BIDS atlas folder")  # fmt: skip
    _add(group, "--target", dest="targets.names", nargs="+", metavar="COLUMN", help="what to predict")
    _add(group, "--covariates", dest="targets.covariates", nargs="+", metavar="COLUMN", help="the confounds")
    _add(group, "--bundle", dest="bundles", nargs="+", metavar="PATH", help="apply trained models (participant level)")
    _add(group, "--test-dataset", dest="test_dataset", metavar="DIR",
         help="judge the models once on another dataset: its OUTPUT_DIR of the participant level (group level)")  # fmt: skip
    _add(group, "--learning-curve", dest="metrics.learning_curve", action="store_const", const=(0.125, 0.25, 0.5),
         help="train on an eighth, a quarter and half of the participants too, and say what more would bring")  # fmt: skip
    _add(group, "--config-file", dest="config_file", type=Path, metavar="FILE", help="TOML; flags win over it")


def _performance(parser: Parser) -> None:
    group = parser.add_argument_group("how to run")
    _add(group, "--nprocs", dest="run.nprocs", type=int, metavar="N", help="processes at once (default: all cores)")
    _add(
        group,
        "--omp-nthreads",
        dest="run.omp_nthreads",
        type=int,
        metavar="N",
        help="threads a process (default: cores / nprocs)",
    )
    _add(group, "--mem-mb", dest="run.mem_mb", type=int, metavar="MB", help="memory that may be used")
    _add(
        group, "--use-plugin", dest="run.use_plugin", metavar="FILE", help="nipype plugin settings (YAML), for clusters"
    )
    _add(
        group,
        "-w",
        "--work-dir",
        dest="run.work_dir",
        metavar="DIR",
        help="intermediate files (default: OUTPUT_DIR/work)",
    )
    for name, text in (
        ("clean-workdir", "empty the work folder first"),
        ("write-graph", "write the graph of steps"),
        ("stop-on-first-crash", "do not go on after a failure"),
        ("resource-monitor", "record time and memory of each step"),
        ("overwrite", "replace results of another configuration"),
    ):
        _add(group, f"--{name}", dest=f"run.{name.replace('-', '_')}", action="store_true", help=text)
    _add(
        group, "--device", dest="run.device", choices=("auto", "cpu", "cuda"), help="where networks run (default: auto)"
    )
    _add(group, "--random-seed", dest="random_seed", type=int, metavar="N", help="same seed, same results (default: 0)")


def _other(parser: Parser) -> None:
    group = parser.add_argument_group("other")
    for name, text in (
        ("reports-only", "make the reports anew from what lies in OUTPUT_DIR"),
        ("boilerplate-only", "write the methods text and stop"),
        ("dry-run", "say what would be done and stop"),
    ):
        _add(group, f"--{name}", dest=name.replace("-", "_"), action="store_true", help=text)
    _add(group, "-v", "--verbose", dest="run.verbose", action="count", help="say more; twice: everything")
    group.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    group.add_argument("--bids-exec-spec", action=_Descriptor, nargs=0, help="print the Boutiques descriptor and exit")
    group.add_argument("--describe", action=_Describe, metavar="KIND[.NAME]", help="print methods and options and exit")


def _json_file(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise MissingInputError(f"the filter file {path} cannot be read: {problem.strerror}.") from problem
    except ValueError as problem:
        raise UsageError(f"the filter file {path} is not JSON: {problem}.") from problem


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _pairs(values: Sequence[str]) -> dict[str, str]:
    """Read NAME=PATH pairs; a lone path is named by its folder."""
    pairs = [value.partition("=")[::2] if "=" in value else (Path(value).name, value) for value in values]
    return {name: str(Path(path).resolve()) for name, path in pairs}


def parse(arguments: Sequence[str]) -> tuple[configuration.Config, set[str]]:
    """Read the arguments and the configuration file.

    Returns
    -------
    tuple
        The configuration, and which of ``reports_only``, ``boilerplate_only``, ``dry_run`` were asked for.

    Raises
    ------
    BidsDLError
        With the exit code that fits.
    """
    flat = vars(build_parser().parse_args(arguments))
    modes = {mode for mode in ("reports_only", "boilerplate_only", "dry_run") if flat.pop(mode, False)}
    file = flat.pop("config_file", None)
    if "select.derivatives" in flat:
        flat["select.derivatives"] = _pairs(flat["select.derivatives"])
    if len(atlases := flat.get("features.timeseries.atlas", ())) == 1:
        flat["features.timeseries.atlas"] = atlases[0]
    given = configuration.merge(configuration.read_toml(file) if file else {}, _nested(flat))
    config = configuration.absolute(configuration.from_mapping(given))
    if config.analysis_level not in LEVELS:
        raise UnknownLevelError(f"unknown analysis level '{config.analysis_level}'; choose participant or group.")
    return config, modes


def check_folders(config: configuration.Config) -> None:
    """Refuse folders that cannot be read, or where writing would harm the dataset.

    Raises
    ------
    MissingInputError, OutputError
        Naming the folder.
    """
    if not config.bids.exists():
        raise MissingInputError(f"the dataset folder {config.bids} does not exist.")
    if not config.bids.is_dir():
        raise MissingInputError(f"{config.bids} is a file; give the folder that holds dataset_description.json.")
    if config.out == config.bids:
        raise OutputError(
            f"the output folder is the dataset itself ({config.bids}); choose another, e.g. {config.bids / 'derivatives' / 'bids_dl'}."
        )
    if config.run.work_dir and Path(config.run.work_dir).resolve().is_relative_to(config.bids):
        raise OutputError(f"the work folder {config.run.work_dir} lies inside the dataset; choose one outside it.")
    for bundle in config.bundles:
        if not Path(bundle).is_dir():
            raise MissingInputError(f"the bundle {bundle} does not exist; give a folder of OUTPUT_DIR/group/bundles.")
    _refuse_unwritable("output", config.out)
    _refuse_unwritable("work", config.work)
    if config.select.bids_database_dir:
        _refuse_unwritable("index", Path(config.select.bids_database_dir))


def _refuse_unwritable(what: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".bids_dl_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        if problem.errno in DISK_FULL:
            raise
        raise OutputError(f"cannot write to the {what} folder {folder}: {problem.strerror}.") from problem


SPINS = "1000"
"""How often a thread of OpenMP asks for work before it sleeps. Where cores are shared, its own 300,000 keep the others from theirs."""


def quiet_environment(config: configuration.Config) -> None:
    """Point every library's cache below the work folder, and set the threads, before anything heavy is imported."""
    home = config.work / "home"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("MPLCONFIGDIR", "TORCH_HOME", "XDG_CACHE_HOME", "NILEARN_DATA", "NUMBA_CACHE_DIR", "XDG_CONFIG_HOME"):
        os.environ[name] = str(home / name.lower())
    os.environ.setdefault("TEMPLATEFLOW_HOME", str(Path("~/.cache/templateflow").expanduser()))
    if not os.access(Path("~").expanduser(), os.W_OK):
        os.environ["HOME"] = str(home)
    os.environ.update(NIPYPE_NO_ET="1", NO_ET="1", TEMPLATEFLOW_AUTOUPDATE="0")
    cores = len(os.sched_getaffinity(0))
    threads = config.run.omp_nthreads or max(1, cores // (config.run.nprocs or cores))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = str(threads)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own; what is large asks for more (threads.py)
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    config, modes = parse(arguments)
    check_folders(config)
    quiet_environment(config)
    if config.analysis_level == "participant":
        from bids_dl import participant as level
    else:
        from bids_dl import group as level  # type: ignore[no-redef]
    return level.run(config, frozenset(modes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script: one sentence and an exit code for whatever a person can mend."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except BidsDLError as problem:
        print(f"bids_dl: {problem}", file=sys.stderr)
        return problem.exit_code
    except BrokenPipeError:  # whoever reads what is printed has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as problem:
        print(f"bids_dl: {no_room(problem)}; free space and run again: what is finished is kept.", file=sys.stderr)
        return 74
    except KeyboardInterrupt:
        print("bids_dl: stopped; run the same command again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
