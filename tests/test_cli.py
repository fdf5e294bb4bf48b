"""The command line in this process: what it refuses, and what it prints."""

import json
import logging

import numpy as np
import pytest
import rasterio
from affine import Affine

from flows.cli import main
from flows.terminal import spread_files, terminal_handler


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


def test_models_json_is_plain(run):
    assert "mffenet-lite0" in {row["name"] for row in json.loads(run("models", "--json")[1])}


def test_simulate_shows_how_far_it_is(run, tmp_path):
    status, out, err = run("simulate", "--out", tmp_path / "s", "--size", 192)
    assert (status, out) == (0, f"{tmp_path / 's'}\n")
    assert "post image" in err
    assert "192/192" in err


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
