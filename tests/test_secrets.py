"""What is secret reaches no word that others read: products, Prefect, logs, errors."""

import io
import logging
from dataclasses import replace

import pytest
from test_export import product  # noqa: F401 - a fixture

from catalog import secrets
from catalog.apart import quiet
from catalog.config import parse_config
from catalog.publication import publish
from catalog.rasters import describe_raster
from catalog.scenes import DemSource, Epoch
from catalog.schema import InputError, LandslideError, StoreError
from catalog.secrets import guard_logs, hidden, redact

PLANTED = "Pl4ntedS3cret"
SIGNED = [
    f"https://host/a.tif?sig={PLANTED}&se=2024",
    f"https://host/a.tif?X-Amz-Credential={PLANTED}%2Fx&X-Amz-Signature={PLANTED}",
    f"https://host/a.tif?AWSAccessKeyId={PLANTED}&Signature={PLANTED}&Expires=1",
    f"https://host/a.tif?unheard_of={PLANTED}",
    f"https://host/a.tif#access_token={PLANTED}",
    f"https://me:{PLANTED}@host/a.tif",
    f"https://{PLANTED}@host/a.tif",
    f"/vsicurl?url=https%3A%2F%2Fhost%2Fa.tif&header.Authorization={PLANTED}",
    f"/vsicurl/https://host/a.tif?token={PLANTED}",
]
WORDS = [
    *SIGNED,
    f"Authorization: Bearer {PLANTED}",
    f"{{'aws_secret_access_key': '{PLANTED}', 'token': \"{PLANTED}\"}}",
    f"password={PLANTED}",
]


@pytest.fixture(autouse=True)
def _nothing_is_known():
    yield
    secrets._known.clear()


@pytest.mark.parametrize("words", WORDS)
def test_redact_hides_what_is_secret(words):
    told = redact(f"{words}: cannot be read (HTTP error for {words})")
    assert PLANTED not in told
    assert "cannot be read" in told
    assert redact(told) == told


@pytest.mark.parametrize(
    "words",
    [
        "https://earthquake.usgs.gov/fdsnws/event/1/query?eventid=us2000h8ty&format=geojson",
        "s3://bucket/a/post.tif: cannot be read; check the credentials (AWS_ACCESS_KEY_ID and others)",
        "landslide probability that counts: 0.38, the model card's",
        "/data/what?/a.tif",
    ],
)
def test_redact_leaves_what_is_not(words):
    assert redact(words) == words


def test_hidden_keeps_the_shape_of_values():
    told = hidden({"post": (SIGNED[0],), "deep": [{"api_key": PLANTED, "n": 3}], "none": None})
    assert told == {"post": ("https://host/a.tif?sig=***&se=***",), "deep": [{"api_key": "***", "n": 3}], "none": None}


@pytest.mark.parametrize("kind", [InputError, StoreError])
def test_errors_hide_secrets_where_they_are_raised(kind):
    with pytest.raises(kind) as told:
        raise kind(f"{SIGNED[0]}: cannot be read")
    assert str(told.value) == "https://host/a.tif?sig=***&se=***: cannot be read"


def test_error_of_a_signed_address_that_cannot_be_read():
    with pytest.raises(InputError) as told:
        describe_raster(f"http://127.0.0.1:9/a.tif?sig={PLANTED}")
    assert PLANTED not in str(told.value)


def config(**given):
    options = {"env": {"THEIR_KEY": f"{PLANTED}-of-the-cluster"}, "n_workers": 2}
    values = {"name": "e", "post": [SIGNED[0]], "dem": SIGNED[5], "cluster": {"address": "a.B", "options": options}}
    return parse_config({**values, "stac": {"url": SIGNED[3], "collection": "c"}, **given})


def test_configuration_is_shown_without_secrets_and_used_with_them():
    made = config()
    assert PLANTED not in repr(made)
    assert PLANTED not in str(made)
    assert PLANTED not in made.model_dump_json()
    assert made.model_dump(mode="json")["cluster"] == {
        "address": "a.B",
        "workers": None,
        "threads": None,
        "options": {},
    }
    assert made.post == (SIGNED[0],)
    assert made.model_dump()["cluster"]["options"]["n_workers"] == 2
    assert parse_config(made.model_dump()) == made
    told = made.model_dump(mode="json", include={"name"})
    assert told == {"name": "e"}


def test_flow_run_is_told_no_secret():
    from flows.detect import detect

    assert PLANTED not in str(detect.serialize_parameters({"config": config()}))


def test_a_named_secret_is_used_and_its_name_is_said(monkeypatch):
    monkeypatch.setenv("LANDSLIDENET_SECRET_SIG", f"{PLANTED}/+=")
    named = "https://host/a.tif?sig=${LANDSLIDENET_SECRET_SIG}"
    made = config(post=[named], cluster={"address": "a.B", "options": {"auth": "${LANDSLIDENET_SECRET_SIG}"}})
    assert made.post == (f"https://host/a.tif?sig={PLANTED}/+=",)
    assert made.cluster.options == {"auth": f"{PLANTED}/+="}
    assert made.model_dump(mode="json")["post"] == [named]
    assert str(InputError(f"no answer of {made.post[0]}")) == f"no answer of {named}"
    assert redact(f"GET /x/{PLANTED}%2F%2B%3D") == "GET /x/${LANDSLIDENET_SECRET_SIG}"


@pytest.mark.parametrize("value", [None, "", "short"])
def test_a_named_secret_that_is_not_there_is_refused(monkeypatch, value):
    monkeypatch.delenv("LANDSLIDENET_SECRET_SIG", raising=False)
    if value is not None:
        monkeypatch.setenv("LANDSLIDENET_SECRET_SIG", value)
    with pytest.raises(InputError, match=rf"SECRET_SIG.* has {len(value or '')} characters .* set the variable where"):
        config(post=["https://host/a.tif?sig=${LANDSLIDENET_SECRET_SIG}"])


def test_no_other_variable_can_be_named(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    with pytest.raises(InputError, match="environment variable"):
        config(post=["https://host/${AWS_SECRET_ACCESS_KEY}/a.tif"])


@pytest.mark.parametrize(
    "given", [{"post": "https://host/a.tif?sig=***"}, {"cluster": {"options": {"deep": [{"auth": "***"}]}}}]
)
def test_what_was_hidden_is_not_taken_for_a_value(given):
    with pytest.raises(InputError, match="a part was hidden when the run was stored; .* name the secret"):
        config(**given)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OSError(5, "no answer", SIGNED[0]), OSError), (ValueError(f"auth {SIGNED[5]}"), LandslideError)],
)
def test_words_of_others_are_said_without_secrets(error, kind):
    with pytest.raises(kind, match=rf"{type(error).__name__}: .*\*\*\*") as told, quiet():
        raise error
    assert PLANTED not in str(told.value)
    assert told.value.__cause__ is None


def test_errors_without_a_secret_pass_as_they_are():
    error = KeyError("red")
    with pytest.raises(KeyError) as told, quiet():
        raise error
    assert told.value is error


def test_wrong_configuration_is_told_without_secrets():
    with pytest.raises(InputError) as told:
        config(cluster={"address": "a.B", "options": f"token {PLANTED}-and-more"})
    assert PLANTED not in str(told.value)


def test_options_of_a_cluster_are_hidden_wherever_they_stand():
    config()
    assert PLANTED not in str(InputError(f"cluster: it said that {PLANTED}-of-the-cluster is no key"))


def test_what_workers_log_of_their_jobs_holds_no_address():
    epoch = Epoch("post", "rgb8", ({"id": "a", "assets": {"red": {"href": SIGNED[0]}}},), (SIGNED[1],))
    assert PLANTED not in repr(epoch)
    assert PLANTED not in repr(DemSource(SIGNED[0], 10.0, None, False, "ab"))


def test_logs_hide_secrets_also_in_tracebacks():
    before = logging.getLogRecordFactory()
    stream = io.StringIO()
    handler, log = logging.StreamHandler(stream), logging.getLogger("of.somebody")
    log.addHandler(handler)
    try:
        guard_logs()
        guard_logs()
        log.warning("reading %s with %r", SIGNED[0], {"token": PLANTED})
        try:
            raise OSError(f"no answer of {SIGNED[5]}")
        except OSError:
            log.exception("failed")
    finally:
        log.removeHandler(handler)
        logging.setLogRecordFactory(before)
    told = stream.getvalue()
    assert PLANTED not in told
    assert "Traceback" in told
    assert "reading https://host/a.tif?sig=***" in told


def test_product_holds_no_secret(product, tmp_path):  # noqa: F811
    planted = replace(
        product,
        config=config().model_dump() | {"event": None},
        provenance={**product.provenance, "inputs": [{"role": "post", "path": SIGNED[0]}], "token": PLANTED},
        used=[f"post-event imagery: {SIGNED[0]}"],
        not_used=[f"a DEM: {SIGNED[5]}"],
        warnings=[f"{SIGNED[1]}: its time is not known"],
        model_card={**product.model_card, "origin": {"labels": SIGNED[2]}},
    )
    folder = publish(planted, tmp_path / "out", closing=lambda: {"last": SIGNED[4]})
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path.name for path in files if PLANTED.encode() in path.read_bytes()] == []
