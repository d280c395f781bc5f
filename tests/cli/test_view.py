from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cli.commands.view import true_labels
from cli.viewer.content import ViewerState
from cli.viewer.server import ViewServer
from cli.viewer.slides import SlideCache
from features.bags.h5 import bag_path, find_bags, read_bag, write_bag
from features.errors import TableError
from features.slides.synthetic import write_slide
from features.visualization.heatmap import ColorScale, apply_colormap
from mil.calibration.priors import balanced
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.browser import needs_browser, open_tab
from tests.cli.running import mil
from tests.fakes import make_bag, write_cohort

HOSTILE = "<img src=x onerror=alert(1)>"
SCALE = ColorScale(palette="viridis", low=0.0, high=100.0, words="percentile")
NEW_0, NEW_1, HOSTILE_0, SEEN_0, GONE_0, WRONG_0 = 0, 1, 2, 3, 5, 6
"""Places of slides in the table."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a table of new, seen and broken patients, and slides of some of them."""
    folder = tmp_path_factory.mktemp("world")
    cohort = read_cohort(write_cohort(folder, n_patients=24, shift=0.7), labelled=True)
    train_run(
        cohort, load_patient_bags(cohort, find_bags(folder / "bags")), folder / "run", n_folds=2,
        n_repeats=1, seed=0, on_head=lambda done, total: None,
        config=TrainConfig(n_members=2, n_components=8, fixed_steps=15),
    )  # fmt: skip
    (folder / "slides").mkdir()
    for seed, name in enumerate(("new_0", "new_1", HOSTILE, "wrong_0")):
        bag = make_bag(name, n_tiles=8, dim=16, seed=seed)
        write_bag(bag_path(folder / "bags", name), bag)
        size = 500 if name == "wrong_0" else bag.meta.width_px0
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        pixels[:448, :448] = (200, 40, 40)
        write_slide(folder / "slides" / f"{name}.tif", pixels)
        np.save(folder / f"{seed}.npy", pixels)
    (folder / "test.csv").write_text(
        f"image_id,patient_id\nnew_0,new\nnew_1,new\n{HOSTILE},<b>{HOSTILE}</b>\n000_0,000\n"
        "000_1,000\ngone_0,gone\nwrong_0,wrong\n"
    )
    (folder / "secret.txt").write_text("secret")
    return folder


def view(world: Path, table: str = "test.csv", *, slides: bool = True) -> ViewerState:
    run = load_bundle(world / "run")
    cohort = read_cohort(world / table, labelled=False)
    prior = balanced(run.classes)
    return ViewerState(
        run, cohort, predict(run, cohort, world / "bags", prior=prior),
        bags=find_bags(world / "bags"), prior=prior,
        paths={path.stem: path for path in (world / "slides").iterdir()} if slides else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[ViewServer]:
    yield from serve(view(world))


@pytest.fixture(scope="module")
def bare(world: Path) -> Iterator[ViewServer]:
    """Without slides."""
    yield from serve(view(world, slides=False))


def serve(viewed: ViewerState) -> Iterator[ViewServer]:
    server = ViewServer(viewed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    viewed.close()


def ask(
    server: ViewServer, path: str, *, host: str | None = None, method: str = "GET"
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def get(server: ViewServer, address: str) -> bytes:
    status, content, _ = ask(server, f"/{server.token}/{address}")
    assert status == 200, (address, status)
    return content


def picture(server: ViewServer, address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(get(server, address))))


def test_without_the_right_token_nothing_is_told(server: ViewServer) -> None:
    wrong = "A" * len(server.token)
    for path in ("/", "/patients.json", f"/{wrong}/", f"/{wrong}/patients.json", "//", "/%C3%A9/",
                 f"/{server.token[:-1]}/", f"/{server.token}x/", "/favicon.ico",
                 f"/?{server.token}", f"/x/{server.token}/"):  # fmt: skip
        status, content, _ = ask(server, path)
        assert (status, content) == (403, b"Forbidden"), path
    assert ask(server, f"/{server.token}/")[0] == 200


def test_a_token_is_long_and_new_each_time(world: Path) -> None:
    tokens = set()
    for _ in range(3):
        server = ViewServer(view(world, slides=False))
        tokens.add(server.token)
        server.server_close()
    assert len(tokens) == 3
    assert min(map(len, tokens)) >= 32


def test_a_foreign_host_is_refused_even_with_the_token(server: ViewServer) -> None:
    path, port = f"/{server.token}/patients.json", server.server_port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}",
                 f"127.0.0.1:{port}.evil.example", "0.0.0.0"):  # noqa: S104  # fmt: skip
        assert ask(server, path, host=host)[0] == 403, host
    assert ask(server, path, host=f"localhost:{port}")[0] == 200


def test_it_listens_on_this_machine_only(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.startswith(f"http://127.0.0.1:{server.server_port}/{server.token}")


def test_what_is_not_in_the_table_is_not_found(server: ViewServer) -> None:
    for address in (
        "slides/99/8/0_0.jpg", "slides/99/overlays/0/8/0_0.png", "slides/0/overlays/9/8/0_0.png",
        "legends/9.png", "slides/99/tiles/0.png",
        "slides/0/99/0_0.jpg", "slides/0/8/9_9.jpg", "slides/0/tiles/8.png", "patients/7.json",
        "slides/-1/8/0_0.jpg", "slides/new_0/8/0_0.jpg", f"slides/{GONE_0}/8/0_0.jpg",
        f"slides/{GONE_0}/tiles/0.png", f"slides/{SEEN_0}/tiles/0.png", "slides/0", "x",
        "slides/9999999999999999/8/0_0.jpg",
    ):  # fmt: skip
        assert ask(server, f"/{server.token}/{address}")[0] == 404, address


def test_no_path_leads_out(server: ViewServer, world: Path) -> None:
    for address in (
        "../secret.txt", "../../../../etc/passwd", "..%2fsecret.txt", "%2e%2e/secret.txt",
        "openseadragon/../../server.py", "static/viewer.js", "slides/../secret.txt",
        f"slides/{world}/secret.txt", f"/{world}/secret.txt", "viewer.js%00", "viewer.js/",
        "\\..\\secret.txt", "viewer.js?x=../..",
    ):  # fmt: skip
        status, content, _ = ask(server, f"/{server.token}/{address}")
        assert status == 404, address
        assert b"secret" not in content


def test_other_methods_are_refused_and_head_has_no_body(server: ViewServer) -> None:
    path = f"/{server.token}/patients.json"
    assert ask(server, path, method="POST")[0] == 501
    status, content, headers = ask(server, path, method="HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) > 0


def test_every_answer_forbids_foreign_content(server: ViewServer) -> None:
    for path in ("/", f"/{server.token}/", f"/{server.token}/slides/0/8/0_0.jpg"):
        headers = ask(server, path)[2]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_the_page_names_no_other_machine_and_holds_no_script_of_its_own(
    server: ViewServer,
) -> None:
    page = get(server, "").decode()
    scripts = [get(server, name).decode() for name in ("list.js", "pane.js", "viewer.js")]
    styles = [get(server, name).decode() for name in ("style.css", "viewer.css")]
    for text in (page, *scripts, *styles):
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert page.count("<script") == page.count("<script src=") == 4
    assert "style=" not in page
    assert all("innerHTML" not in script for script in scripts)
    assert b"OpenSeadragon" in get(server, "openseadragon.js")


def test_probabilities_are_those_of_infer_and_of_seen_patients_out_of_fold(
    server: ViewServer, world: Path
) -> None:
    data = json.loads(get(server, "patients.json"))
    run: ModelBundle = load_bundle(world / "run")
    cohort = read_cohort(world / "test.csv", labelled=False)
    result = predict(run, cohort, world / "bags", prior=balanced(run.classes))
    assert data["classes"] == list(run.classes)
    for row, prediction in zip(data["patients"], result, strict=True):
        unseen = prediction.out_of_fold
        expected = prediction.probabilities if unseen is None else unseen
        assert row["probabilities"] == expected.tolist()
        assert row["out_of_fold"] == (row["patient_id"] == "000") == (unseen is not None)
    assert data["patients"][3]["status"] == "no bag, so the prior"


def test_a_patient_is_told_with_every_tile_of_every_slide(server: ViewServer, world: Path) -> None:
    data = json.loads(get(server, "patients/0.json"))
    assert [slide["slide_id"] for slide in data["slides"]] == ["new_0", "new_1"]
    for slide in data["slides"]:
        bag = read_bag(bag_path(world / "bags", slide["slide_id"]))
        assert slide["tiles"]["coords_px0"] == bag.coords_px0.tolist()
        assert slide["size_px0"] == [bag.meta.width_px0, bag.meta.height_px0]
        assert slide["has_picture"]
        assert not slide["notes"]
    attention = [a for slide in data["slides"] for a in slide["tiles"]["attention"]]
    assert sum(attention) == pytest.approx(1)
    assert data["n_tiles"] == len(attention) == 16


def test_tiles_of_the_slide_show_its_mean_and_colours_lie_on_them_to_the_pixel(
    server: ViewServer, world: Path
) -> None:
    pixels = np.load(world / "0.npy")
    data = json.loads(get(server, "patients/0.json"))["slides"][0]["tiles"]
    last = 11  # 1,344 px
    for level in (last - 1, last):
        step = 1 << (last - level)
        shown = picture(server, f"slides/{NEW_0}/{level}/0_0.jpg").astype(float)
        small = pixels[: 256 * step, : 256 * step].reshape(256, step, 256, step, 3)
        assert np.abs(shown[:200, :200] - small.mean(axis=(1, 3))[:200, :200]).mean() < 3
        rebuilt = np.full((1344 // step, 1344 // step, 4), 7, np.uint8)
        for row in range(-(-len(rebuilt) // 256)):
            for column in range(-(-len(rebuilt) // 256)):
                part = picture(server, f"slides/{NEW_0}/overlays/2/{level}/{column}_{row}.png")
                height, width = part.shape[:2]
                y, x = row * 256, column * 256
                rebuilt[y : y + height, x : x + width] = part
        expected = np.zeros_like(rebuilt)
        for (x, y), value in zip(data["coords_px0"], data["percentile"], strict=True):
            side = np.s_[y // step : (y + 448) // step, x // step : (x + 448) // step]
            expected[side] = (*apply_colormap(np.array(value), SCALE), 255)
        assert np.array_equal(rebuilt, expected)


def test_a_tile_is_shown_as_it_was_embedded(server: ViewServer) -> None:
    tile = picture(server, f"slides/{NEW_0}/tiles/0.png")
    assert tile.shape == (224, 224, 3)
    assert (tile == (200, 40, 40)).all()


def test_without_slides_overlays_have_a_plain_background(bare: ViewServer) -> None:
    assert json.loads(get(bare, "patients.json"))["with_slides"] is False
    slide = json.loads(get(bare, "patients/0.json"))["slides"][0]
    assert (slide["has_picture"], slide["notes"]) == (False, [])
    ground = picture(bare, f"slides/{NEW_0}/11/0_0.jpg")
    assert len(np.unique(ground.reshape(-1, 3), axis=0)) == 1
    assert picture(bare, f"slides/{NEW_0}/overlays/2/11/0_0.png")[..., 3].all()
    assert ask(bare, f"/{bare.token}/slides/{NEW_0}/tiles/0.png")[0] == 404


def test_what_is_missing_is_said(server: ViewServer) -> None:
    notes = {
        slide["slide_id"]: " ".join(slide["notes"])
        for number in range(5)
        for slide in json.loads(get(server, f"patients/{number}.json"))["slides"]
    }
    assert "no file of that name" in notes["000_0"]
    assert "No overlay: no bag." in notes["gone_0"]
    assert "500 × 500 px; expected 1,344 × 1,344 px" in notes["wrong_0"]
    assert notes[HOSTILE] == ""


def test_a_damaged_slide_is_crossed_out_and_stops_no_other(world: Path, tmp_path: Path) -> None:
    for name in ("new_0", "new_1"):
        (tmp_path / f"{name}.tif").write_bytes((world / "slides" / f"{name}.tif").read_bytes())
    viewed = view(world)
    viewed._paths = {path.stem: path for path in tmp_path.iterdir()}
    content = bytearray((tmp_path / "new_0.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "new_0.tif") as tiff:
        page = tiff.pages.first
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    for start, n_bytes in parts[: len(parts) // 2]:  # without any whole one it is not opened
        content[start : start + n_bytes] = bytes(n_bytes)
    (tmp_path / "new_0.tif").write_bytes(bytes(content))
    for what in (viewed.slide_region(NEW_0, 11, 0, 0), viewed.tile(NEW_0, 0)):
        crossed = np.asarray(Image.open(io.BytesIO(what)))
        assert np.median(crossed) == pytest.approx(120, abs=2)
    healthy = np.asarray(Image.open(io.BytesIO(viewed.tile(NEW_1, 0))))
    assert (healthy == (200, 40, 40)).all()
    viewed.close()


def test_a_bag_that_breaks_meanwhile_is_told_in_one_line(world: Path, tmp_path: Path) -> None:
    viewed = view(world)
    bag = make_bag("new_0", n_tiles=8, dim=8)
    write_bag(bag_path(tmp_path, "new_0"), bag)
    viewed._bags = find_bags(tmp_path)
    server = ViewServer(viewed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    status, content, _ = ask(server, f"/{server.token}/patients/0.json")
    server.shutdown()
    thread.join()
    server.server_close()
    assert status == 500
    assert (
        "made with embeddings of 8 numbers; expected embeddings of 16 numbers"
        in json.loads(content)["error"]
    )


def test_a_slide_that_is_read_from_is_not_closed(world: Path, tmp_path: Path) -> None:
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.tif")
        write_slide(paths[-1], np.full((300, 300, 3), 40 * number, np.uint8))
    cache = SlideCache()
    with cache.borrow(paths[0]) as first:
        for path in paths[1:]:
            with cache.borrow(path):
                pass
        pixels = first.slide.read(level=0, x_px=0, y_px=0, width_px=9, height_px=9)
        assert not pixels.any()
        with cache.borrow(paths[0]) as again:
            assert again is first
    cache.close()


def test_a_slide_in_use_when_the_cache_closes_is_closed_afterwards(
    tmp_path: Path,
) -> None:
    write_slide(tmp_path / "a.tif", np.zeros((300, 300, 3), np.uint8))
    cache, closed = SlideCache(), []
    with cache.borrow(tmp_path / "a.tif") as opened:
        close = opened.slide.close
        opened.slide.close = lambda: closed.append(close())  # type: ignore[method-assign]
        cache.close()
        assert not closed
        assert not opened.slide.read(level=0, x_px=0, y_px=0, width_px=9, height_px=9).any()
    assert len(closed) == 1


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_starts_says_where_and_ends_by_ctrl_c_or_sigterm(
    world: Path, processes: list[subprocess.Popen[str]], sigint_reaches_children: None, number: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "view", str(world / "run"), "--bags", str(world / "bags"),
         "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    processes.append(process)
    assert process.stdout is not None
    line = process.stdout.readline()
    address = line.split(" at ")[1].strip()
    assert line.startswith("24 patients at http://127.0.0.1:")
    port = int(address.split(":")[2].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", address.split(str(port), 1)[1] + "patients.json")
    data = json.loads(connection.getresponse().read())
    assert all(row["out_of_fold"] for row in data["patients"])
    process.send_signal(number)  # with a connection still open
    _, text = process.communicate(timeout=120)
    connection.close()
    assert process.returncode == 0
    assert "Traceback" not in text
    assert "trained on 24 of them" in text
    assert "No slides were given" in text
    assert text.endswith("closed\n")


def test_bad_input_is_told_in_one_line(world: Path, server: ViewServer, tmp_path: Path) -> None:
    good = {"--patients": world / "test.csv", "--bags": world / "bags"}
    cases = {
        ("--bags", tmp_path): "none of its 7 slides has a bag",
        ("--slides", tmp_path / "no"): "no such file or folder",
        ("--patients", tmp_path / "no.csv"): "no.csv",
        ("--port", server.server_port): "cannot be used",
        ("--prior", "nonsense"): "nonsense",
    }
    for (option, value), message in cases.items():
        options = [part for pair in {**good, option: value}.items() for part in pair]
        result = mil("view", world / "run", "--no-browser", *options)
        assert result.exit_code == 1, result.output
        assert message in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_patients_without_a_usable_bag_are_told_of(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ViewServer, "serve_forever", lambda server: None)
    bags = shutil.copytree(world / "bags", tmp_path / "bags")
    (bags / "000_0.h5").write_bytes(b"damaged")
    result = mil("view", world / "run", "--no-browser", "--patients", world / "test.csv",
                 "--bags", bags, "--port", "0")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "warning: 1 patient without a readable slide got the prior" in result.stderr
    assert "000_0.h5" in result.stderr.split("warning: not used: ")[1].splitlines()[0]
    assert "no bag of 'gone_0'" in result.stderr


SETTLED = (
    "typeof panes === 'object' && panes.length > 0 && panes.every(({viewer: {world}}) =>"
    " world.getItemCount() === 2 && [0, 1].every((i) => world.getItemAt(i).getFullyLoaded()))"
)
AT_REST = (
    "panes.every(({viewer: {viewport}}) =>"
    " Math.abs(viewport.getZoom(true) / viewport.getZoom() - 1) < 1e-9"
    " && viewport.getCenter(true).distanceTo(viewport.getCenter()) < 1e-9)"
)


@needs_browser
def test_in_a_browser_slides_zoom_tiles_tell_and_keys_go_from_patient_to_patient(
    server: ViewServer, tmp_path: Path
) -> None:
    with open_tab(tmp_path) as tab:
        tab.send("Page.navigate", url=server.url)
        tab.wait_for(SETTLED)
        before = tab.evaluate("panes[0].viewer.viewport.getZoom(true)")
        tab.evaluate("byId('zoom-in').click()")
        tab.wait_for(f"panes[0].viewer.viewport.getZoom(true) > {1.4 * before} && {AT_REST}")
        tab.wait_for(SETTLED)
        position = tab.evaluate(
            "(() => { const box = panes[0].box.getBoundingClientRect(); const p = panes[0]"
            ".item().imageToViewerElementCoordinates(new OpenSeadragon.Point(700, 500));"
            " return [box.x + p.x, box.y + p.y]; })()"
        )
        tab.click(*position)
        tab.wait_for("!byId('tile').hidden && byId('tile-picture').naturalWidth === 224")
        facts = tab.evaluate("byId('tile-facts').textContent")
        assert facts.endswith("x, px448y, px448")
        bar, shown = tab.evaluate(
            "[panes[0].scaleBar.getBoundingClientRect().width, panes[0].scaleWords.textContent]"
        )
        px_a_tile = tab.evaluate("panes[0].mark.getBoundingClientRect().width")
        um, _, assumed = shown.partition(" µm ")
        assert assumed == "(assumed)"
        assert bar == pytest.approx(float(um) * px_a_tile / (448 * 0.25), rel=0.02)
        tab.press("ArrowDown")
        tab.wait_for("byId('patient').textContent.includes('onerror')")
        tab.wait_for(SETTLED)
        assert tab.evaluate("byId('slides').textContent").startswith(HOSTILE)
        assert tab.evaluate("document.querySelectorAll('img[src=x]').length") == 0
        for _ in range(2):
            tab.press("ArrowDown")
        tab.wait_for("byId('patient').textContent === 'Patient gone' && !panes[0].empty.hidden")
        tab.evaluate("document.querySelectorAll('thead button')[1].click()")
        numbers = tab.evaluate(
            "[...document.querySelectorAll('#rows tr')].map((r) => Number(r.cells[1].textContent))"
        )
        assert numbers == sorted(numbers, reverse=True)
        assert tab.evaluate("panes[0].scale.hidden")
        assert tab.errors == []


@needs_browser
def test_in_a_browser_the_overlay_matches_the_tile_to_the_pixel(
    world: Path, server: ViewServer, tmp_path: Path
) -> None:
    with open_tab(tmp_path) as tab:
        tab.send("Page.navigate", url=server.url)
        tab.wait_for(SETTLED)
        # The first tile is plain red on the slide: its border is seen in both layers. At 1:1.
        tab.evaluate(
            "(() => { setOverlay(2); const item = panes[0].item(); const view = panes[0].viewer"
            ".viewport; view.zoomTo(item.imageToViewportZoom(1), null, true); view.panTo("
            "item.imageToViewportCoordinates(448, 448), true); })()"
        )
        tab.wait_for_frame()  # Until then, the tiles of before are settled.
        tab.wait_for(SETTLED)
        borders = []
        for opacity in (0, 1):
            tab.evaluate(f"panes[0].viewer.world.getItemAt(1).setOpacity({opacity})")
            box = tab.evaluate(
                "(() => { const b = panes[0].box.getBoundingClientRect();"
                " return [b.x, b.y, b.width, b.height].map(Math.round); })()"
            )
            shown = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"), int)
            x, y, width, height = box
            pane = shown[y + 2 : y + height - 2, x + 200 : x + width - 2]
            row = pane[40]
            same = np.abs(row - row[0]).max(axis=1) < 40
            borders.append(int(np.argmin(same)))
        assert borders[0] > 50
        assert borders[0] == pytest.approx(borders[1], abs=1)


def test_overlays_show_what_their_names_say(server: ViewServer) -> None:
    tiles = json.loads(get(server, "patients/0.json"))["slides"][0]["tiles"]
    overlays = json.loads(get(server, "patients.json"))["overlays"]
    assert [each["is_outline"] for each in overlays] == [False, True, False, True]
    last, whole = 11, np.zeros((4, 1344, 1344), bool)
    for number in range(4):
        for row in range(6):
            for column in range(6):
                part = picture(
                    server, f"slides/{NEW_0}/overlays/{number}/{last}/{column}_{row}.png"
                )
                y, x = 256 * row, 256 * column
                whole[number, y : y + part.shape[0], x : x + part.shape[1]] = part[..., 3] > 0
    chosen = {
        0: np.array(tiles["attention"]) * 16 > 1,
        1: np.array(tiles["percentile"]) >= 90,
        3: np.array(tiles["is_unlike"]),
    }
    assert chosen[0].any()
    assert not chosen[0].all()
    for number, is_chosen in chosen.items():
        for (x, y), expected in zip(tiles["coords_px0"], is_chosen.tolist(), strict=True):
            inside = whole[number, y : y + 448, x : x + 448]
            assert inside.any() == expected
            if number and expected:  # an outline leaves the tissue clear
                assert inside.mean() < 0.1
            elif expected:
                assert inside.all()


def test_without_training_tiles_there_is_no_overlay_of_unlike_ones(world: Path) -> None:
    viewed = view(world)
    viewed._run = replace(viewed._run, typicality=None)
    server = ViewServer(viewed)
    server.server_close()
    assert len(json.loads(server.respond("patients.json")[1])["overlays"]) == 3
    patient = json.loads(server.respond("patients/0.json")[1])
    assert patient["slides"][0]["tiles"]["is_unlike"] is None
    with pytest.raises(KeyError):
        server.respond("legends/3.png")
    viewed.close()


def test_true_labels_come_from_the_run_and_from_the_table(world: Path, tmp_path: Path) -> None:
    run = load_bundle(world / "run")
    of_run = true_labels(run, None, {})
    assert len(of_run) == 24
    assert set(of_run.values()) == set(run.classes)
    table = tmp_path / "test.csv"
    table.write_text("image_id,patient_id,diagnosis\nnew_0,new,odd\n")
    assert true_labels(run, table, {}) == of_run
    assert true_labels(run, table, {"label": "diagnosis"}) == {**of_run, "new": "odd"}
    with pytest.raises(TableError, match="diagnose"):
        true_labels(run, table, {"label": "diagnose"})


@needs_browser
def test_in_a_browser_keys_go_through_tiles_overlays_rulers_and_panes(
    server: ViewServer, tmp_path: Path
) -> None:
    with open_tab(tmp_path) as tab:
        tab.send("Page.navigate", url=server.url)
        tab.wait_for(SETTLED)
        ranks = []
        for key in "nnnp":
            tab.press(key)
            tab.wait_for("!byId('tile').hidden")
            ranks.append(tab.evaluate("byId('tile-facts').querySelector('dd').textContent"))
            tab.wait_for(SETTLED)
        assert ranks == [f"{rank} of 16" for rank in (1, 2, 3, 2)]
        assert tab.evaluate("byId('strip-tiles').children.length") == 10
        tab.press("Escape")
        assert tab.evaluate("byId('tile').hidden")
        for expected in (1, 2, 3, -1, 0):
            tab.press("o")
            assert tab.evaluate("byId('overlay').value") == str(expected)
        tab.press("m")
        tab.wait_for(AT_REST)  # The slide still moved towards the tile of before.
        x, y = tab.evaluate(
            "(() => { const b = panes[0].box.getBoundingClientRect(); return [b.x, b.y]; })()"
        )
        tab.drag((x + 200, y + 100), (x + 300, y + 100))
        per_px = tab.evaluate("panes[0].umPerPx0()[0] / panes[0].item().viewportToImageZoom("
                              "panes[0].viewer.viewport.getZoom(true))")  # fmt: skip
        measured = tab.evaluate("panes[0].drawing.textContent")
        assert float(measured.split()[0]) == pytest.approx(100 * per_px, rel=0.02)
        assert "assumed" in measured
        tab.press("Escape")
        assert tab.evaluate("panes[0].drawing.textContent") == ""
        tab.press("s")
        tab.press("ArrowDown")
        tab.wait_for("byId('patient').textContent.includes('onerror')")
        assert tab.evaluate("panes.map((pane) => pane.patient.number)") == [1, 0]
        tab.wait_for(SETTLED)
        x, y = tab.evaluate(
            "(() => { const b = panes[1].box.getBoundingClientRect(); return [b.x, b.y]; })()"
        )
        tab.click(x + 200, y + 60)
        tab.wait_for("byId('patient').textContent === 'Patient new'")
        tab.press("s")
        assert tab.evaluate("panes.length === 1 && panes[0].patient.number === 0")
        tab.press("/")
        assert tab.evaluate("document.activeElement.id") == "filter"
        assert tab.errors == []


@needs_browser
def test_in_a_browser_zooming_out_undoes_zooming_in_and_both_have_an_end(
    server: ViewServer, tmp_path: Path
) -> None:
    seen = (
        "(() => { const v = active.viewer.viewport; const c = v.getCenter(); return ["
        "v.getZoom() / v.getHomeZoom(), c.x, c.y]; })()"
    )
    px_per_px0 = "active.item().viewportToImageZoom(active.viewer.viewport.getZoom())"
    with open_tab(tmp_path) as tab:
        tab.send("Page.navigate", url=server.url)
        tab.wait_for(SETTLED)
        home = tab.evaluate(seen)
        for keys in ("+-", "=-", "++--", "+-+-"):
            for key in keys:  # while the zoom before still moves
                tab.press(key)
            assert tab.evaluate(seen) == pytest.approx(home), keys
        for name in ("zoom-in", "zoom-out"):
            tab.evaluate(f"byId('{name}').click()")
        assert tab.evaluate(seen) == pytest.approx(home)
        for _ in range(9):
            tab.press("-")
        assert tab.evaluate(seen)[0] == pytest.approx(0.9)
        tab.press("+")
        assert tab.evaluate(seen)[0] == pytest.approx(1.35)
        for _ in range(15):
            tab.press("+")
        assert tab.evaluate(px_per_px0) == pytest.approx(4)
        tab.press("-")
        assert tab.evaluate(px_per_px0) == pytest.approx(4 / 1.5)
        assert tab.errors == []


@needs_browser
def test_in_a_browser_on_a_phone_the_facts_of_a_tile_leave_most_of_the_slide_free(
    server: ViewServer, tmp_path: Path
) -> None:
    with open_tab(tmp_path) as tab:
        tab.resize(390, 844)
        tab.send("Page.navigate", url=server.url)
        tab.wait_for(SETTLED)
        tab.press("n")
        tab.wait_for("!byId('tile').hidden && byId('tile-picture').naturalWidth === 224")
        covered, inside = tab.evaluate(
            "(() => { const area = (b) => b.width * b.height; const stage = byId('stage')"
            ".getBoundingClientRect(); const b = byId('tile').getBoundingClientRect(); return ["
            "area(b) / area(stage), b.right <= innerWidth && byId('tile').scrollWidth <="
            " byId('tile').clientWidth]; })()"
        )
        assert covered < 0.25
        assert inside
        tab.evaluate("byId('close').click()")
        assert tab.evaluate("byId('tile').hidden")


@needs_browser
def test_in_a_browser_an_address_leads_back_to_patient_and_place(
    server: ViewServer, tmp_path: Path
) -> None:
    with open_tab(tmp_path) as tab:
        tab.send("Page.navigate", url=f"{server.url}#patient=new&slide=new_1&x=400&y=300&width=600")
        tab.wait_for(SETTLED)
        assert tab.evaluate("active.slide.slide_id") == "new_1"
        assert tab.evaluate("active.place()") == {"x": 400, "y": 300, "width": 600}
        tab.wait_for("location.hash === '#patient=new&slide=new_1&x=400&y=300&width=600'")
        tab.evaluate("location.hash = '#patient=000'")
        tab.wait_for("byId('patient').textContent === 'Patient 000'")
        tab.wait_for("location.hash.includes('slide=000_0')")  # then the slide is open
        tab.evaluate("location.hash = '#patient=nobody'")
        tab.wait_for("byId('findings').textContent.includes('nobody')")


@needs_browser
def test_in_a_browser_a_thousand_patients_are_filtered_and_stepped_through(
    world: Path, tmp_path: Path
) -> None:
    viewed = view(world, slides=False)
    many = [replace(viewed._predictions[4], patient_id=f"many {number}") for number in range(1000)]
    viewed._predictions += many
    viewed._true_labels = {patient.patient_id: "CE" for patient in many[:10]}
    for server in serve(viewed):
        with open_tab(tmp_path) as tab:
            tab.send("Page.navigate", url=server.url)
            tab.wait_for(SETTLED)
            n_all = len(viewed._predictions)
            assert tab.evaluate("list.shown.length") == n_all
            drawn = tab.evaluate("byId('rows').children.length")
            assert drawn < n_all  # the others follow when they are asked for
            for _ in range(n_all // drawn + 1):
                tab.evaluate("byId('list').scrollTop = 1e6; list.drawMore()")
            assert tab.evaluate("byId('rows').children.length") == n_all
            tab.evaluate(
                "byId('filter').value = 'many 99'; byId('filter').dispatchEvent(new Event('input'))"
            )
            assert tab.evaluate("byId('rows').children.length") == 19
            assert tab.evaluate("byId('n-shown').textContent").startswith("19 of 1,0")
            tab.press("ArrowDown")
            assert tab.evaluate("list.chosen") == len(viewed._predictions[:-1000]) + 99
            tab.evaluate("byId('columns').children[1].firstChild.click()")
            assert tab.evaluate("byId('columns').children[1].ariaSort") == "ascending"
            tab.evaluate("byId('filter').value = ''; list.draw()")
            tab.evaluate("openPatient(list.order.at(-2))")  # far below the rows that are drawn
            tab.press("ArrowDown")
            tab.wait_for("list.chosen === list.order.at(-1)")
            assert tab.evaluate("list.rows[list.chosen].isConnected")
            assert tab.errors == []
