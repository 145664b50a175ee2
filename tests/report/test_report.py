"""The HTML report of a run, and the figures on it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import plateaulens as pl
from plateaulens.analysis.checkpoint_steps import evenly_spaced
from plateaulens.analysis.checkpoint_traces import CheckpointTraces

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
CURVE = pd.DataFrame({"loss": [3.0, 2.4, 2.05, 2.0, 2.0, 1.9, 1.0, 0.1]}, index=range(0, 80, 10))


def test_dynamics_shades_the_plateau_and_draws_the_levels():
    figure = pl.plots.dynamics(CURVE, pl.find_plateau(CURVE, level=2.0, floor=0.0)).to_dict()
    shapes = figure["layout"]["shapes"]
    assert any((s["type"], s["x0"], s["x1"]) == ("rect", 20, 50) for s in shapes)
    assert {s["y0"] for s in shapes if s["type"] == "line" and s["y0"] == s["y1"]} >= {2.0, 0.0}
    np.testing.assert_array_equal(pl.plots.dynamics(CURVE).data[0].y, CURVE.loss)


def test_maps_have_a_slider_step_per_checkpoint():
    pattern = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 4)).astype("float32")
    batch = pl.tasks.MovingWindowSum(n=2).sample(2, seed=0)
    traces = CheckpointTraces([0, 5, 9], pattern, pattern[:, 0, 0], np.zeros((3, 2, 4), int), batch)
    for figure in (pl.plots.attention_map(traces, head=1), pl.plots.cosine_map(traces)):
        labels = [step["label"] for step in figure.to_dict()["layout"]["sliders"][0]["steps"]]
        assert labels == ["0", "5", "9"] == [frame.name for frame in figure.frames]
    np.testing.assert_array_equal(pl.plots.attention_map(traces, head=1).frames[2].data[0].z, pattern[2, 0, 1])
    with pytest.raises(ValueError, match=r"head must be in 0\.\.1"):
        pl.plots.attention_map(traces, head=2)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = pl.tasks.MovingWindowSum(n=4, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16))
    training = pl.train(model, task, pl.TrainConfig(steps=60, batch_size=16, lr=1e-3))
    folder = tmp_path_factory.mktemp("runs") / "<b>odd & name"
    return pl.write_report(
        pl.record(training, folder, task.sample(16, seed=1), every=20, save_every=20, progress=False)
    )


def test_report_of_a_run_that_the_user_logged(tmp_path: Path):
    """A run without an evaluation batch and with metrics of any name, or a model without a config of ours."""
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16))
    run = pl.Run.create(tmp_path / "run", task=task, model=model, train=pl.TrainConfig(steps=2))
    run.log(0, {"gradient_norm": 1.0})
    run.save(0, model)
    assert "gradient_norm" not in pl.write_report(run).read_text()
    other = pl.Run.create(tmp_path / "bridge", task=task, model=pl.to_tl(model), train=pl.TrainConfig(steps=2))
    other.log(0, {"loss": 1.0})
    other.save(0, model)
    assert "dynamics" in pl.write_report(other).read_text()


def test_report_is_offline_and_escaped(page: Path):
    html = page.read_text()
    assert "<b>odd" not in html.replace("\\u003cb>odd", "")
    tags = re.sub(r"<script>.*?</script>", "", html, flags=re.S)  # plotly.js itself names addresses in its texts
    assert "<script src" not in html and "http" not in tags


def test_report_has_a_grid_of_attention_patched_across_steps(page: Path):
    figure, _ = json.JSONDecoder().raw_decode(page.read_text().partition('"step_grid": ')[2])
    # Steps 0, 20, 40, 60, a gap and the unpatched models.
    assert figure["layout"]["xaxis"]["ticktext"] == ["0", "20", "40", "60", "own"] and len(figure["data"][0]["x"]) == 7
    assert evenly_spaced([0, 5, 9], 8) == [0, 5, 9] and evenly_spaced([*range(0, 210, 10)], 5) == [0, 50, 100, 150, 200]


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and chromedriver are not installed")
@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_renders_in_chromium(page: Path, width: int, height: int, scheme: str, tmp_path: Path):
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        driver.get(page.as_uri())
        WebDriverWait(driver, 60).until(lambda d: d.execute_script("return document.body.dataset.ready === 'yes'"))
        errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not errors
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        ink = driver.execute_script("return document.getElementById('dynamics').layout.font.color")
        assert ink == {"light": "#1c1c1e", "dark": "#ececf0"}[scheme]
        z = "return document.getElementById('attention').data[0].z"
        first = driver.execute_script(z)
        heat = "return document.querySelectorAll('#step_grid .heatmaplayer image').length"
        assert driver.execute_script(heat) == 1
        driver.execute_async_script("Plotly.animate('attention', ['60']).then(arguments[0])")
        assert driver.execute_script(z) != first
    finally:
        driver.quit()
