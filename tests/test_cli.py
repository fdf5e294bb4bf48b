"""The command line in this process: what it refuses, and what it prints."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from affine import Affine

from catalog.schema import InputError
from flows.cli import app, main
from flows.terminal import print_end, progress, progress_lines, spread_files, terminal_handler
from models import MODELS


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit status, standard output and standard error of a command."""

    def command(*words):
        monkeypatch.setattr("sys.argv", ["landslidenet", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return command


def refused(run, *words):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    return " ".join(err.split())


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "post.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 40, "width": 40, "dtype": "uint8", "crs": "EPSG:32654"}
    with rasterio.open(path, "w", **profile, transform=Affine(10, 0, 583_200, 0, -10, 4_737_000)) as out:
        out.write(np.random.default_rng(0).integers(20, 200, (3, 40, 40), dtype=np.uint8))
    return path


@pytest.mark.parametrize(
    ("words", "spread"),
    [
        ("--post a b --pre c", "--post a --post b --pre c"),
        ("--post=a b --dem d", "--post=a --post b --dem d"),
        ("--pre-mask a b run.yml", "--pre-mask a --pre-mask b run.yml"),
        ("run.yaml --post a b", "run.yaml --post a --post b"),
        ("--post a --dem d run.yaml", "--post a --dem d run.yaml"),
        ("--post a --json -- run.cfg", "--post a --json -- run.cfg"),
        ("--mask a b --post c d", "--mask a --mask b --post c --post d"),
    ],
)
def test_file_options_take_every_word_up_to_the_next(words, spread):
    assert spread_files(words.split()) == spread.split()


def test_detect_takes_several_files_after_one_flag(run, picture, tmp_path):
    assert "second.tif: the file does not exist" in refused(
        run, "detect", "--name", "x", "--post", picture, tmp_path / "second.tif", "--sensor", "rgb8"
    )


def test_detect_takes_a_configuration_after_the_files(run, picture, tmp_path):
    (tmp_path / "run.yaml").write_text("name: x\nsensor: worldview\n")
    assert "got `worldview`" in refused(run, "detect", "--post", picture, tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\npost: {}\nblock: 1000", "1000 px; expected a power of two"),
        ("post: {}", "pass --name EVENT_ID or --event"),
        ("name: x\npost: {}\ncluster: 7", "`cluster`"),
        ("name: x\npost: {}\nevent: missing.json", "event missing.json: cannot be read"),
        ("name: x\npost: {}\nimagery: 1", "unknown key `imagery`"),
        ("name: x\npost: {}\npost_time: soon", "no time; expected e.g. 2018-09-11"),
        ("name: x\npost: {}\nout: {}/out", "--out"),
        ("- a", "expected keys and values"),
        ("a: [", "expected a YAML file"),
        ("\x00\x81", "expected a YAML file"),
    ],
)
def test_detect_of_a_bad_configuration_is_one_message(run, picture, tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.replace("{}", str(picture)).encode("latin-1"))
    assert message in refused(run, "detect", path)


def test_detect_flags_win_over_the_file(run, picture, tmp_path):
    (tmp_path / "run.yaml").write_text(f"name: x\npost: {picture}\nblock: 1000\n")
    assert "300 px; expected a power of two" in refused(run, "detect", tmp_path / "run.yaml", "--block", "300")


def test_detect_of_a_bad_time_is_one_message(run, picture):
    assert "(got 'yesterday')" in refused(run, "detect", "--post", picture, "--name", "x", "--post-time", "yesterday")


def test_detect_that_could_not_write_its_product_says_so_first(run, picture):
    words = ("detect", "--post", picture, "--name", "x", "--root", picture.parent)
    assert "--out" in refused(run, *words, "--out", picture / "out")


@pytest.mark.parametrize("flag", ["--truth", "--valid", "--aoi"])
def test_evaluate_of_a_missing_file_is_one_message(run, picture, flag):
    words = {"--truth": picture, flag: "missing.tif"}
    said = refused(run, "evaluate", picture, *(word for pair in words.items() for word in pair))
    assert f"{flag.strip('-')} missing.tif" in said


def test_models_fit_a_terminal_of_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("models")
    assert max(map(len, out.splitlines())) <= 80
    assert "mffenet-resnet101 " in out
    assert "bands: " in out


def test_models_json_lists_the_registry(run):
    assert [row["name"] for row in json.loads(run("models", "--json")[1])] == list(MODELS)


def test_simulate_shows_how_far_it_is(run, tmp_path):
    status, out, err = run("simulate", "--out", tmp_path / "s", "--size", 192)
    assert (status, out) == (0, f"{tmp_path / 's'}\n")
    assert "post image: 192/192" in err


def test_progress_is_followed_inside_only():
    from tasks import artifacts

    heard = []
    with artifacts.following(lambda *told: heard.append(told)):
        artifacts._follow("Ingest", 1, 2)
    artifacts._follow("Ingest", 2, 2)
    assert heard == [("Ingest", 1, 2)]


@pytest.mark.parametrize(
    ("level", "where", "shown"),
    [
        ("INFO", "site-packages/prefect/task_engine.py", False),
        ("WARNING", "site-packages/prefect/task_engine.py", True),
        ("INFO", "flows/train.py", True),
    ],
)
def test_terminal_shows_what_a_flow_says_and_troubles_of_prefect(level, where, shown):
    record = logging.LogRecord("prefect.task_runs", logging.getLevelName(level), f"/x/{where}", 1, "Finished", (), None)
    assert bool(terminal_handler().filter(record)) == shown


@pytest.mark.parametrize(("event_id", "told"), [("xnone", "has no event.json"), ("../etc", "event id '../etc'")])
def test_respond_to_an_event_that_is_not_known_is_refused_before_anything_starts(event_id, told, run, tmp_path):
    (tmp_path / "policy.yaml").write_text(f"state: {tmp_path / 'state'}\n")
    assert told in refused(run, "respond", event_id, "--policy", tmp_path / "policy.yaml")
    assert not (tmp_path / "state").exists()


def test_up_with_a_policy_that_does_not_fit_is_refused(run, tmp_path):
    (tmp_path / "policy.yaml").write_text("retention: {store_days: 0}\n")
    told = refused(run, "up", "--policy", tmp_path / "policy.yaml", "--home", tmp_path / "home")
    assert "`retention.store_days`" in told
    assert not (tmp_path / "home").exists()


# --- answers at once -------------------------------------------------------------------------------------------------

COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
NETWORKS_AND_ENGINES = ("torch", "timm", "prefect", "distributed")
LIBRARIES = ("dask", "xarray", "geopandas", "pandas", "rasterio", "scipy", "matplotlib", "zarr", "fsspec")
MISTAKES = [
    [], ["--version"], ["--nonsense"], ["nonsense"], *([name, "--help"] for name in COMMANDS),
    *([name, "--nonsense"] for name in COMMANDS),
    ["detect"], ["detect", "--name", "x"], ["detect", "--post", "a.tif"], ["detect", "missing.yaml"],
    ["detect", "--name", "x", "--post", "a.tif", "--threshold", "7"], ["detect", "--gsd", "wide"],
    ["detect", "--post", "a.tif", "--event", "missing.json"],
    ["adapt", "missing.yaml"], ["adapt", "missing.tif"],
    ["train"], ["train", "--steps", "0"], ["average"], ["average", "a"],
    ["watch", "--policy", "missing.yaml"], ["up", "--policy", "missing.yaml"], ["respond", "x", "--policy", "no.yaml"],
]  # fmt: skip
"""What can be answered from the arguments alone."""
MISSING_FILES = [
    ["detect", "--name", "x", "--post", "missing.tif"],
    ["detect", "--name", "x", "--post", "picture.tif", "--sensor", "rgb8", "--dem", "missing.tif"],
    ["detect", "--name", "x", "--post", "picture.tif", "--sensor", "unheard-of"],
    ["adapt", "missing.tif", "--tiles", "missing"],
    ["evaluate", "missing", "--truth", "missing.gpkg"], ["evaluate", "picture.tif", "--truth", "missing.gpkg"],
    ["train", "--tiles", "missing", "--out", "out"], ["average", "a", "b", "--tiles", "missing", "--out", "out"],
    ["respond", "us1"], ["respond", "../x"], ["respond", "a b", "--event", "event.json", "--aoi", "missing.geojson"],
    ["respond", "us1", "--event", "event.json"],
]  # fmt: skip
PROBE = """
import contextlib, io, json, sys, time
from flows.cli import main
told = []
for words in json.loads(sys.argv.pop(1)):
    sys.argv[1:] = words
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
            status = None
        except SystemExit as ended:
            status = ended.code
    told.append([words, status, sorted({name.partition(".")[0] for name in sys.modules}), said.getvalue()])
print(json.dumps([time.process_time(), told]))
"""


def answers(cases, folder):
    """CPU seconds of a fresh process that is given these command lines, and of each words, status, modules, text."""
    words = [sys.executable, "-c", PROBE, json.dumps(cases)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(done.stdout)


def test_a_mistake_in_the_arguments_is_answered_at_once(tmp_path):
    cpu_s, told = answers(MISTAKES, tmp_path)
    for words, status, modules, text in told:
        assert status in (0, 2), (words, text)
        assert not {*NETWORKS_AND_ENGINES, *LIBRARIES} & set(modules), words
        assert "Traceback" not in text
    assert cpu_s < 5  # of all of them; 1.3 where it was written


def test_a_missing_file_is_answered_without_networks_and_engines(picture):
    picture.rename(picture.with_name("picture.tif"))
    (picture.parent / "event.json").write_text('{"id": "us1"}')
    _, told = answers(MISSING_FILES, picture.parent)
    for words, status, modules, text in told:
        assert status == 2, (words, text)
        assert text.startswith("error: "), (words, text)
        assert not {*NETWORKS_AND_ENGINES} & set(modules), words


WATCHING = ["watch_earthquakes", "watch_imagery", "housekeeping", "alert", "respond"]


def test_the_flows_that_watch_load_no_networks_and_engines():
    code = f"import sys; from flows import {', '.join(WATCHING)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {f"flows.{name}" for name in WATCHING} <= set(loaded)
    assert not {"torch", "timm", "distributed", "skimage", "matplotlib"} & set(loaded)


# --- manners ---------------------------------------------------------------------------------------------------------


def test_version_is_the_installed_one(run):
    status, out, _ = run("--version")
    assert status == 0
    assert out.split()[0] == "landslidenet"
    assert out.split()[1][0].isdigit()


def complete(run, monkeypatch, *words):
    for name, value in {
        "_LANDSLIDENET_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return run()[1].split()


def test_shell_completion_knows_commands_and_options(run, monkeypatch):
    assert complete(run, monkeypatch, "landslidenet", "det") == ["detect"]
    assert set(complete(run, monkeypatch, "landslidenet", "detect", "--pre-")) == {"--pre-mask", "--pre-time"}


def test_shell_completion_can_be_installed(run):
    assert {"--install-completion", "--show-completion"} <= set(run("--help")[1].split())


def test_progress_in_a_file_is_a_few_lines_of_plain_text(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as follow:
        for done in range(1501):
            follow("Inference", done, 1500)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1].endswith("Inference: 1500/1500")
    assert all(line.isprintable() for line in lines)


def test_progress_lines_of_something_tiny_say_its_end(capsys):
    follow = progress_lines()
    follow("Ingest post", 1, 1)
    follow("Ingest post", 1, 1)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("told", "warned"), [((), 1), (("the sun is low",), 0)])
def test_the_end_says_count_area_range_what_was_not_seen_and_where(capsys, tmp_path, told, warned):
    head = {
        "count": 3, "by_confidence": {"high": 2, "medium": 1, "low": 0},
        "area_m2": 1.5e6, "area_range_m2": [1.2e6, 1.8e6], "observed_m2": 75e6, "scene_m2": 100e6,
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps({"headline": head, "warnings": ["the sun is low"]}))
    print_end(tmp_path, told=told)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("the sun is low") == warned
    for part in ("3 landslides (confidence: 2 high, 1 medium, 0 low)", "1.500 km2; 1.200 to 1.800 with each outline",
                 "not seen: 25.000 km2 of 100.000 km2 (25%)", f"report: {tmp_path / 'report.html'}"):  # fmt: skip
        assert part in err


@pytest.mark.parametrize(
    ("error", "where", "shown"),
    [
        (InputError("no pixel"), "site-packages/prefect/flow_engine.py", False),
        (None, "site-packages/prefect/task_engine.py", False),
        (KeyError("bug"), "site-packages/prefect/flow_engine.py", True),
        (OSError("disk"), "site-packages/prefect/runner.py", True),
    ],
)
def test_terminal_leaves_what_ended_a_run_to_the_command(error, where, shown):
    told = (type(error), error, None) if error else None
    record = logging.LogRecord("prefect.flow_runs", logging.ERROR, f"/x/{where}", 1, "Encountered", (), told)
    assert bool(terminal_handler().filter(record)) == shown


@pytest.mark.parametrize(
    ("message", "shown"),
    [("Worker process still alive after 4.0 seconds, killing", False), ("Worker process 7 was killed by 9", True)],
)
def test_terminal_does_not_show_how_late_a_worker_ended(message, shown):
    record = logging.LogRecord("distributed.nanny", logging.WARNING, "/x/nanny.py", 1, message, (), None)
    assert bool(terminal_handler().filter(record)) == shown
