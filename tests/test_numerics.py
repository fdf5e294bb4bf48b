import os
import shutil
from typing import get_args

import numpy as np
import pytest
import torch

from catalog import config
from models import adaptation, cards, numerics, training
from models.cards import find_weights, load_card, load_network
from models.numerics import Numerics, agree, best_mode, choose_mode, choose_numerics
from models.predictor import Predictor, load_predictor
from models.training import predict_margins

BF16_HERE = best_mode("cpu") == "bf16"


@pytest.fixture
def network():
    return load_network(find_weights("mffenet-lite0"), load_card(find_weights("mffenet-lite0")))


def _predictor(**how):
    weights = find_weights("mffenet-lite0")
    card = load_card(weights)
    return Predictor(load_network(weights, card), card, device="cpu", numerics=Numerics(**how))


def _windows(count=1, size=128):
    rng = np.random.default_rng(0)
    blocks = rng.integers(20, 160, (count, size // 16, size // 16, 3)).repeat(16, axis=1).repeat(16, axis=2)
    return (blocks + rng.integers(0, 40, blocks.shape)).astype(np.uint8)


@pytest.mark.parametrize("limit", ["AVX2", "avx512_core", "AVX512_CORE_VNNI"])
def test_numerics_without_bf16_instructions_are_fp32(monkeypatch, limit):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert best_mode("cpu") == "fp32"
    assert choose_mode("auto", "cpu") == "fp32"
    assert choose_numerics("auto", "cpu").mode == "fp32"
    assert training.TrainConfig().mode == adaptation.AdaptConfig().mode == best_mode()


@pytest.mark.skipif(not os.path.isfile("/proc/cpuinfo"), reason="Linux tells its CPU's instructions")
def test_numerics_follow_what_the_cpu_says(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with open("/proc/cpuinfo") as told:
        flags = set(told.read().replace("\n", " ").split())
    assert best_mode("cpu") == ("bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32")


def test_numerics_are_what_was_asked_for():
    assert [choose_mode(told, "cpu") for told in ("fp32", "bf16")] == ["fp32", "bf16"]
    with pytest.raises(ValueError, match="precision: got 'fp8'; expected one of auto, fp32, bf16"):
        choose_mode("fp8", "cpu")


def test_numerics_of_an_emulated_mode_are_left_to_torch(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert choose_numerics("bf16", "cpu") == Numerics("bf16", "torch")


def test_numerics_of_machines_that_differ_are_what_all_can_do():
    fast, slow = Numerics("bf16", "openvino"), Numerics("fp32", "torch")
    assert agree([fast, fast]) == fast
    assert agree([fast, slow]) == slow
    assert agree([]) == slow


def test_numerics_of_a_run_and_of_the_networks_are_the_same_choice():
    assert get_args(config.Precision) == get_args(numerics.Precision)


def test_predictor_in_fp32_is_the_plain_network(network):
    windows = _windows()
    with torch.inference_mode():
        inputs = training.normalise_images(torch.from_numpy(windows).permute(0, 3, 1, 2))
        logits = network(inputs.contiguous(memory_format=torch.channels_last))
    calibration = load_card(find_weights("mffenet-lite0")).calibration
    plain = torch.sigmoid(calibration.log_odds(logits[:, 1] - logits[:, 0])).numpy()
    np.testing.assert_allclose(_predictor(mode="fp32").predict_windows(windows), plain, atol=1e-6)


@pytest.mark.parametrize("size", [128, 150])
def test_predictor_by_openvino_gives_what_torch_gives(size):
    pytest.importorskip("openvino")
    windows = _windows(2, 160)[:, :size, :size]
    ours = _predictor(mode="fp32", engine="openvino").predict_windows(windows)
    np.testing.assert_allclose(ours, _predictor(mode="fp32").predict_windows(windows), atol=5e-6)


def test_openvino_converts_a_network_once_and_on_a_small_image(monkeypatch):
    pytest.importorskip("openvino")
    traced, trace = [], torch.jit.trace
    told = lambda net, images, **more: traced.append(images) or trace(net, images, **more)  # noqa: E731
    monkeypatch.setattr(torch.jit, "trace", told)
    predictor = _predictor(mode="fp32", engine="openvino")
    for size in (96, 128):
        assert predictor.predict_windows(_windows(1, 128)[:, :size, :size]).shape == (1, size, size)
    (images,) = traced
    assert images.shape == (1, 3, 64, 64)


def test_predictor_by_openvino_is_the_same_with_any_threads(monkeypatch):
    pytest.importorskip("openvino")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(_predictor(mode="fp32", engine="openvino").predict_windows(_windows()))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)


@pytest.mark.skipif(not BF16_HERE, reason="bfloat16 would be emulated on this CPU")
def test_predictor_in_bf16_is_near_fp32_but_not_the_same():
    exact, rough = (_predictor(mode=mode).predict_windows(_windows()) for mode in ("fp32", "bf16"))
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_predictor_by_openvino_on_a_gpu_is_refused(network):
    with pytest.raises(ValueError, match="got device 'cuda'; expected cpu"):
        Predictor(
            network, load_card(find_weights("mffenet-lite0")), device="cuda", numerics=Numerics("fp32", "openvino")
        )


def test_predictor_is_another_in_another_mode():
    first, second = (load_predictor(device="cpu", numerics=Numerics(mode)) for mode in ("fp32", "bf16"))
    assert first is not second
    assert (first.numerics.mode, second.numerics.mode) == ("fp32", "bf16")


def test_margins_are_computed_in_the_mode_that_is_asked_for(network):
    images = _windows().astype(np.float32)
    exact, rough = (predict_margins(network, images, magnify=1, mode=mode) for mode in ("fp32", "bf16"))
    assert not np.array_equal(exact, rough)
    np.testing.assert_array_equal(exact, predict_margins(network, images, magnify=1, mode="fp32"))


def test_trainings_in_two_modes_are_two_trainings():
    from models.augment import Tiles

    tiles = Tiles(_windows(), np.zeros((1, 128, 128), np.uint8), gsd_m=np.array(10.0))
    assert len({training.identify(tiles, training.TrainConfig(mode=mode)) for mode in ("fp32", "bf16")}) == 2


def test_weights_are_hashed_once_while_they_stay_as_they_are(tmp_path):
    source = find_weights("mffenet-lite0")
    for path in (source, source.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    weights = tmp_path / source.name
    load_card(weights)
    hashed = cards._digest_while.cache_info().misses
    for _ in range(3):
        load_card(weights)
    assert cards._digest_while.cache_info().misses == hashed
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ValueError, match="weights hash is"):
        load_card(weights)
