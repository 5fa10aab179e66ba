"""The gallery in a real browser: what a person does with it, with a mouse, by keys alone, with a screen reader."""

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from pocketlens.runtime import Store, index_folder, load
from pocketlens.runtime.gallery import Gallery, GalleryServer
from tests.e2e.chromium import Chromium, Page
from tests.e2e.conftest import png
from tests.runtime.conftest import build_bundle

# WCAG 2.2, 1.4.3: relative luminance and contrast ratio of every text that is seen, against the ground it stands on.
CONTRASTS = """
(() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const channel = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  const add = (node, colour, on, what) =>
    found.push([ratio(parse(colour), on), what, node.id || node.className || node.tagName]);
  for (const node of document.querySelectorAll("body, body *")) {
    if (!node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    const filled = node.matches("input:not([type=checkbox]), select") && node.value;
    if (own || filled) add(node, style.color, ground(node), "text");
    if (node.placeholder) add(node, getComputedStyle(node, "::placeholder").color, ground(node), "placeholder");
    if (node.type === "file") {
      const button = getComputedStyle(node, "::file-selector-button");
      add(node, button.color, parse(button.backgroundColor), "file button");
    }
  }
  return found;
})()
"""
# 2.4.7: the outline of what has the focus.
FOCUS = """
(() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  return [style.outlineStyle, parseFloat(style.outlineWidth), node.id || node.className];
})()
"""
NAMED = "[...document.querySelectorAll('.card .name')].map((node) => node.textContent)"


class Shown(NamedTuple):
    """A gallery that is being served, its store and its pictures."""

    server: GalleryServer
    store: Path
    folder: Path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def shown(bundle: Path, folder: Path, tmp_path: Path) -> Iterator[Shown]:
    """Twenty pictures in an album, served with a second bundle to go to."""
    newer = build_bundle(tmp_path / "newer", change=lambda m: msgspec.structs.replace(m, model_version="newer"))
    lens, store_path = load(bundle, threads=1), tmp_path / "store.sqlite"
    with Store.open(store_path, model_version=lens.model_version, dim=lens.dim) as store:
        index_folder(lens, store, folder, album="noise")
    with (
        Gallery(lens, store_path, upgrade=load(newer, threads=1)) as gallery,
        GalleryServer(gallery) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Shown(server, store_path, folder)
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Chromium, shown: Shown) -> Iterator[Page]:
    """The page, opened by the printed address; at the end: nothing went wrong in it and nothing left loopback."""
    opened = browser.page(shown.server.url)
    opened.wait("document.querySelector('#summary').textContent.startsWith('20 indexed')")
    yield opened
    assert not opened.events("Runtime.exceptionThrown")
    origin = shown.server.guard.origin
    asked = [event["request"]["url"] for event in opened.events("Network.requestWillBeSent")]
    assert len(asked) > 5
    # data: is what the browser draws its own controls with.
    assert [url for url in asked if not url.startswith((f"{origin}/", f"blob:{origin}/", "data:image/"))] == []
    opened.send("Page.close")


def _search(page: Page, text: str = "a") -> list[str]:
    page.evaluate(f"document.querySelector('#text').value = {json.dumps(text)}")
    page.evaluate("document.querySelector('#search').requestSubmit()")
    return _answered(page, f"for “{text}”")


def _answered(page: Page, words: str) -> list[str]:
    """Wait until the page says what it found, and return the names of the cards."""
    page.wait(f"document.querySelector('#said').textContent.includes({json.dumps(words)})")
    names: list[str] = page.evaluate(NAMED)
    return names


def _click(page: Page, selector: str) -> None:
    page.wait(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
    page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def test_words_a_picture_and_likeness_find_pictures(page: Page, shown: Shown) -> None:
    assert len(_search(page, "two red balls")) == 20
    assert page.evaluate("document.querySelector('.card .caption, .card .name').textContent")
    assert "% sure" in page.evaluate("document.querySelector('.card .sure').textContent")
    page.wait("[...document.querySelectorAll('.card img')].some(image => image.naturalWidth > 0)")
    page.evaluate("document.querySelector('#text').value = ''")
    page.choose_files("#picture", [shown.folder / "07.png"])
    assert _answered(page, "like the given picture")[0] == "07.png"
    assert page.wait("document.querySelector('#chosen-image').naturalWidth") == 12
    _click(page, ".card:first-child .row button:first-child")
    alike = _answered(page, "pictures like ")
    assert "07.png" not in alike
    assert len(alike) == 19
    assert page.evaluate("document.activeElement.id") == "results-heading"


def test_a_picture_can_be_dropped_and_what_is_no_picture_is_said(page: Page) -> None:
    drop = """
    (() => {
      const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
      const held = new DataTransfer();
      held.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true }));
    })()
    """
    page.evaluate(drop % base64.b64encode(png(3)).decode())
    assert _answered(page, "like the given picture")[0] == "03.png"
    page.evaluate(drop % base64.b64encode(b"Dear diary, no picture at all.").decode())
    page.wait("document.querySelector('#failure').textContent.includes('expected')")
    assert page.evaluate("document.querySelector('#failure').getAttribute('role')") == "alert"


def test_a_search_is_narrowed_on_the_page(page: Page) -> None:
    page.evaluate("document.querySelector('#k').value = '12'")
    assert len(_search(page, "b")) == 12
    page.evaluate("document.querySelector('#album').value = 'nothing'")
    page.evaluate("document.querySelector('#search').requestSubmit()")
    page.wait("document.querySelector('#said').textContent.startsWith('Nothing found')")
    assert page.evaluate("document.querySelectorAll('.card').length") == 0
    assert "noise" in page.evaluate("[...document.querySelector('#albums').options].map(o => o.value)")


def test_deletion_shows_a_receipt_and_the_row_is_gone(page: Page, shown: Shown) -> None:
    first, second, *_ = _search(page)
    _click(page, ".card:first-child .row button:last-child")
    assert first in page.wait("document.querySelector('#erase').open && document.querySelector('#erase').innerText")
    _click(page, "#erase-yes")
    text = page.wait("document.querySelector('#receipt').open && document.querySelector('#receipt').innerText")
    assert "1 file and 1 row are gone" in text
    assert "0 of " in text
    _click(page, "#receipt [data-close].main")
    page.wait("document.querySelector('#summary').textContent.startsWith('19 indexed')")
    assert first not in page.evaluate(NAMED)
    assert second in page.evaluate("document.activeElement.closest('.card').innerText")
    assert first not in _search(page, "c")
    with Store.open(shown.store, create=False) as store:
        assert len(store) == 19
        assert str(shown.folder / first) not in store.known(shown.folder)
    assert (shown.folder / first).exists()


def test_an_album_is_deleted_as_a_whole(page: Page, shown: Shown) -> None:
    _search(page)
    _click(page, "#narrow summary")
    page.evaluate("document.querySelector('#album').value = 'noise'")
    _click(page, "#erase-album")
    _click(page, "#erase-yes")
    assert "20 files" in page.wait("document.querySelector('#receipt-text').textContent")
    _click(page, "#receipt [data-close].main")
    page.wait("document.querySelector('#summary').textContent.startsWith('0 indexed')")
    assert page.evaluate("document.querySelectorAll('.card').length") == 0


def test_keys_alone_do_everything_and_the_focus_is_always_seen(page: Page, shown: Shown) -> None:
    seen = []

    def tab(until: str) -> None:
        for _ in range(30):
            page.press("Tab")
            style, width, what = page.evaluate(FOCUS)
            seen.append(what)
            assert style != "none", what
            assert width >= 2, what
            if page.evaluate(f"document.activeElement.matches({json.dumps(until)})"):
                return
        pytest.fail(f"no way to {until} by Tab: {seen}")

    page.evaluate("document.body.focus()")
    tab("#text")
    assert "skip" in seen
    page.type("red")
    page.press("Enter")
    names = _answered(page, "for “red”")
    tab(".card .open")
    page.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert names[1] in page.evaluate("document.activeElement.closest('.card').innerText")
    page.press("End", "Home", "ArrowDown", "ArrowUp")
    assert names[0] in page.evaluate("document.activeElement.closest('.card').innerText")
    page.press("Enter")
    page.wait("document.querySelector('#details').open")
    tab("#details-erase")
    page.press("Escape")
    page.wait("!document.querySelector('#details').open")
    assert page.evaluate("document.activeElement.matches('.card:first-child .open')")
    page.press("Delete")
    page.wait("document.querySelector('#erase').open")
    page.press("Enter")  # "Keep" has the focus: a slip deletes nothing
    page.wait("!document.querySelector('#erase').open")
    assert len(page.evaluate(NAMED)) == 20
    page.press("Delete")
    page.wait("document.querySelector('#erase').open")
    page.press("Tab", shift=True)
    assert page.evaluate("document.activeElement.id") == "erase-yes"
    page.press("Enter")
    page.wait("document.querySelector('#receipt').open")
    page.press("Enter")
    page.wait("!document.querySelector('#receipt').open && document.activeElement.matches('.card:first-child .open')")
    assert page.evaluate(NAMED) == names[1:]
    tab(".card .row button:first-child")
    page.press(" ")
    assert len(_answered(page, "pictures like ")) == 18


def test_everything_that_can_be_operated_has_a_name(page: Page) -> None:
    _search(page)
    _click(page, "#narrow summary")
    controls = page.controls()
    assert len(controls) > 60
    assert [role for role, name in controls if not name.strip()] == []
    names = [name for role, name in controls if role == "button" and name.startswith("Open ")]
    assert len(names) == 20
    for opener, dialog in (
        ("#open-model", "model"),
        (".card .open", "details"),
        (".card .row button:last-child", "erase"),
    ):
        _click(page, opener)
        page.wait(f"document.querySelector('#{dialog}').open")
        assert [role for role, name in page.controls() if not name.strip()] == []
        assert ("dialog", page.evaluate(f"document.querySelector('#{dialog} h2').textContent")) in page.controls()
        page.evaluate(f"document.querySelector('#{dialog}').close()")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("[...document.querySelectorAll('img')].every(image => image.alt)")
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(n => n.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    regions = page.evaluate("[...document.querySelectorAll('[role=status], [role=alert]')].map(n => n.id)")
    assert {"said", "failure", "model-said", "model-failure"} <= set(regions)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colour_schemes(page: Page, scheme: str) -> None:
    page.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    _search(page)
    _click(page, "#narrow summary")
    page.evaluate("document.querySelector('#text').value = ''")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.partition("(")[2].partition(",")[0])
    assert red < 64 if scheme == "dark" else red > 192
    _readable(page)
    page.evaluate("document.documentElement.style.setProperty('--quiet', '#777777')")
    assert any(ratio < 4.5 for ratio, *_ in page.evaluate(CONTRASTS))  # the check itself would notice
    page.evaluate("document.documentElement.style.removeProperty('--quiet')")
    page.evaluate("document.querySelector('#search').requestSubmit()")
    page.wait("!document.querySelector('#failure').hidden")
    _readable(page)
    for opener, dialog in (
        ("#open-model", "model"),
        (".card .open", "details"),
        (".card .row button:last-child", "erase"),
    ):
        _click(page, opener)
        page.wait(f"document.querySelector('#{dialog}').open")
        _readable(page)
        page.evaluate(f"document.querySelector('#{dialog}').close()")
    still = "[...document.querySelectorAll('*')].every(n => getComputedStyle(n).transitionProperty === 'none' || "
    assert page.evaluate(still + "getComputedStyle(n).transitionDuration === '0s')")


def _readable(page: Page) -> None:
    found = page.evaluate(CONTRASTS)
    assert len(found) > 20
    assert [(round(ratio, 2), what, where) for ratio, what, where in found if ratio < 4.5] == []


def test_a_screen_of_320_pixels_is_enough(page: Page) -> None:
    page.resize(320, 640)
    _search(page)
    _click(page, "#narrow summary")
    for opener, dialog in ((None, None), ("#open-model", "model"), (".card .open", "details")):
        if opener is not None:
            _click(page, opener)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        if dialog is not None:
            box = page.evaluate(
                f"(({{left, right}}) => [left, right])(document.querySelector('#{dialog}').getBoundingClientRect())"
            )
            assert 0 <= box[0] < box[1] <= 320
            page.evaluate(f"document.querySelector('#{dialog}').close()")
    # WCAG 2.2, 2.5.8: 24 by 24 CSS pixels; a tick box has its label beside it.
    small = page.evaluate(
        "[...document.querySelectorAll('button, input:not([type=checkbox]), select')].filter(n => n.checkVisibility())"
        ".filter(n => Math.min(n.getBoundingClientRect().width, n.getBoundingClientRect().height) < 24).length"
    )
    assert small == 0


def test_a_model_is_upgraded_from_the_page(page: Page, shown: Shown) -> None:
    _search(page)
    _click(page, "#open-model")
    _click(page, "[data-path=start]")
    _click(page, "[data-path=switch]")  # is offered when every file has its rows
    page.wait("document.querySelector('#summary').textContent.includes('newer')")
    assert page.evaluate("document.querySelector('#model').contains(document.activeElement)")
    _click(page, "[data-path=rollback]")
    page.wait("!document.querySelector('#summary').textContent.includes('newer')")
    _click(page, "[data-path=rollback]")
    page.wait("document.querySelector('#summary').textContent.includes('newer')")
    _click(page, "[data-path=finish]")
    page.wait("!document.querySelector('[data-path=rollback]')")
    page.evaluate("document.querySelector('#model').close()")
    assert len(_search(page, "again")) == 20
    with Store.open(shown.store, create=False) as store:
        assert store.upgrade.status().active == "newer"
        assert store.upgrade.status().previous is None


def test_the_browser_is_kept_from_asking_anybody_else(page: Page) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        address = f"http://127.0.0.1:{other.getsockname()[1]}"
        tries = f"""
        (async () => {{
          const image = new Image();
          const ended = (thing) =>
            new Promise((done) => {{ thing.onload = () => done("loaded"); thing.onerror = () => done("kept"); }});
          const drawn = ended(image);
          image.src = "{address}/image.png";
          const script = document.createElement("script");
          const ran = ended(script);
          try {{ script.src = "{address}/script.js"; document.head.append(script); }} catch {{ script.onerror(); }}
          const asked = await fetch("{address}/").then(() => "asked", () => "kept");
          return [await drawn, await ran, asked];
        }})()
        """
        assert page.evaluate(tries) == ["kept", "kept", "kept"]
        with pytest.raises(BlockingIOError):
            other.accept()
    violated = page.evaluate(
        "(() => { try { document.body.innerHTML = '<p>'; return ''; } catch (e) { return e.name; } })()"
    )
    assert violated == "TypeError"  # trusted types: no text becomes markup
    # The tries themselves are the only requests that may be named; they were never sent.
    failed = {event["requestId"] for event in page.events("Network.loadingFailed")}
    events = page._browser.events
    events[:] = [e for e in events if e.get("params", {}).get("requestId") not in failed]


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"elsewhere")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_another_page_of_this_machine_gets_nothing(browser: Chromium, page: Page, shown: Shown) -> None:
    _search(page)
    origin = shown.server.guard.origin
    tries = f"""
    (async () => {{
      const image = new Image();
      const drawn = new Promise((done) => {{
        image.onload = () => done("drawn");
        image.onerror = () => done("kept");
      }});
      image.src = "{origin}/thumbnails/1";
      const read = await fetch("{origin}/api/status", {{ credentials: "include" }}).then(() => "read", () => "kept");
      const erased = await fetch("{origin}/api/erase", {{ method: "POST", mode: "no-cors", credentials: "include",
        body: '{{"album": "noise"}}' }}).then(() => "sent", () => "kept");
      return [await drawn, read, erased];
    }})()
    """
    # Another port of the same address is the same site: the browser sends the cookie along, and we have to say no.
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stranger = browser.page(f"http://127.0.0.1:{other.server_port}/")
        stranger.wait("document.body.textContent === 'elsewhere'")
        assert stranger.evaluate(tries) == ["kept", "kept", "kept"]
        stranger.send("Page.close")
        other.shutdown()
        thread.join()
    with Store.open(shown.store, create=False) as store:
        assert len(store) == 20


def test_the_command_prints_the_address_and_ends_at_ctrl_c(bundle: Path, shown: Shown) -> None:
    # As on a terminal: whoever runs the tests in the background may have them ignore SIGINT.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from pocketlens.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "gallery", "--bundle", bundle, "--store", shown.store, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            with urllib.request.urlopen(json.loads(running.stdout.readline())["url"]) as answer:
                assert answer.status == 200
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert b"Interrupted" in err
