"""The gallery over HTTP: every route, and everybody who must not get an answer."""

import http.client
import io
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import DataError, PictureError, StoreError
from pocketlens.runtime import Filter, Store, index_folder, load
from pocketlens.runtime.gallery import Gallery, GalleryServer
from pocketlens.runtime.gallery.server import HEADERS
from pocketlens.runtime.gallery.thumbnails import Thumbnails

Change = Callable[[Callable[[Any], Any]], Path]
JSON = {"Content_Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    def refused(self, status: int, words: str) -> None:
        """Check that this is one typed error that speaks of `words`."""
        assert self.status == status, self.body
        assert {"error", "what", "expected", "found", "remedy", "exit_code"} <= set(self.value)
        assert words in " ".join(str(part) for part in self.value.values()), self.value


class Visitor:
    """A browser of few words: it keeps the cookie and says who it is."""

    def __init__(self, server: GalleryServer) -> None:
        self.server = server
        self.host, self.port = server.server_address[:2]
        self.cookie = ""

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        given: dict[str, str | None] = {"Host": self.server.guard.origin.removeprefix("http://")}
        if method == "POST":
            given |= {"Origin": self.server.guard.origin}
        given |= {"Cookie": self.cookie} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None and "Content-Length" not in given:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, f"{path}: {name}"
        return answer

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, asked: object = None, **headers: str | None) -> Answer:
        body = json.dumps({} if asked is None else asked).encode()
        return self.ask("POST", path, body, **{**JSON, **headers})

    def send(self, picture: bytes, **asked: object) -> Answer:
        path = f"/api/search/picture?asked={quote(json.dumps(asked))}"
        return self.ask("POST", path, picture, Content_Type="application/octet-stream")

    def enter(self) -> "Visitor":
        target = urlsplit(self.server.url)
        answer = self.get(f"{target.path}?{target.query}")
        assert answer.status == 200, answer.body
        self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return self


class Place(NamedTuple):
    """A store with the forty pictures of a folder: those below it in the album `below`, one hidden, one somebody's."""

    store: Path
    folder: Path


def _placed(bundle: Path, root: Path, pictures: list[bytes]) -> Place:
    folder, other = root / "pictures", root / "other"
    for index, data in enumerate(pictures):
        path = folder / (f"below/{index:02}.png" if index % 3 == 0 else f"{index:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    other.mkdir()
    (other / "secret.png").write_bytes(pictures[1])
    lens = load(bundle, threads=1)
    with Store.open(root / "store.sqlite", model_version=lens.model_version, dim=lens.dim) as store:
        index_folder(lens, store, folder, batch_size=64)
        store.label([str(folder / f"below/{n:02}.png") for n in range(0, 40, 3)], album="below")
        store.label([str(folder / "02.png")], visibility="hidden")
        index_folder(lens, store, other, tenant="other")
    return Place(root / "store.sqlite", folder)


@contextmanager
def _serving(gallery: Gallery, host: str = "127.0.0.1") -> Iterator[GalleryServer]:
    with gallery, GalleryServer(gallery, host=host) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def place(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes]) -> Place:
    """A store that no test changes."""
    return _placed(bundle_path, tmp_path_factory.mktemp("gallery"), pictures)


@pytest.fixture(scope="module")
def server(bundle_path: Path, place: Place) -> Iterator[GalleryServer]:
    """A server of that store; it was opened by nobody yet or by `visitor`."""
    with _serving(Gallery(load(bundle_path, threads=1), place.store)) as serving:
        yield serving


@pytest.fixture(scope="module")
def visitor(server: GalleryServer) -> Visitor:
    return Visitor(server).enter()


@pytest.fixture
def own_place(bundle_path: Path, tmp_path: Path, pictures: list[bytes]) -> Place:
    """A store that the test may change."""
    return _placed(bundle_path, tmp_path, pictures)


@pytest.fixture
def own_server(bundle_path: Path, own_place: Place) -> Iterator[GalleryServer]:
    with _serving(Gallery(load(bundle_path, threads=1), own_place.store)) as serving:
        yield serving


@pytest.fixture
def own_visitor(own_server: GalleryServer) -> Visitor:
    return Visitor(own_server).enter()


@pytest.fixture
def fresh_server(bundle_path: Path, place: Place) -> Iterator[GalleryServer]:
    """A server whose address nobody has opened, of the store that no test changes."""
    with _serving(Gallery(load(bundle_path, threads=1), place.store)) as serving:
        yield serving


def _ids(store_path: Path, tenant: str, visibility: str = "visible") -> list[int]:
    with Store.open(store_path, create=False) as store:
        unit = np.eye(1, store.dim, dtype=np.float32)[0]
        wanted = Filter(tenant=tenant, visibility=(visibility,))
        return [hit.id for hit in store.search(unit, k=100, filter=wanted)]


def test_the_address_opens_once_and_the_cookie_is_for_this_page_alone(fresh_server: GalleryServer) -> None:
    target = urlsplit(fresh_server.url)
    address = f"{target.path}?{target.query}"
    stranger = Visitor(fresh_server)
    first = stranger.get(address)
    cookie = first.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert b"url=/" in first.body
    stranger.get(address).refused(403, "used already")
    # The browser that has the cookie may come by again.
    stranger.cookie = cookie.partition(";")[0]
    assert stranger.get(address).status == 200
    assert stranger.get("/").status == 200


def test_a_wrong_token_opens_nothing(fresh_server: GalleryServer) -> None:
    for token in ("", "wrong", "%ff%00", "%C3%A9", "%ED%B2%80"):
        answer = Visitor(fresh_server).get(f"/open?token={token}")
        answer.refused(403, "another one")
        assert "Set-Cookie" not in answer.headers
    assert Visitor(fresh_server).enter().get("/").status == 200  # it did not cost the right one its turn


ROUTES = [
    ("GET", "/"),
    ("GET", "/main.js"),
    ("GET", "/api/status"),
    ("GET", "/thumbnails/1"),
    ("GET", "/previews/1"),
    *(("POST", f"/api/{name}") for name in ("search", "search/picture", "like", "erase")),
    *(("POST", f"/api/upgrade/{name}") for name in ("start", "stop", "cancel", "switch", "rollback", "finish")),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nobody_gets_in_without_the_session_or_from_elsewhere(visitor: Visitor, method: str, path: str) -> None:
    body = b"{}" if method == "POST" else None
    name, _, session = visitor.cookie.partition("=")
    for cookie in (None, "", f"{name}=", f"{name}={session}x", f"other={session}", f"{name}=é"):
        visitor.ask(method, path, body, Cookie=cookie).refused(403, "session")
    port = visitor.port
    for host in ("evil.example", f"evil.example:{port}", f"localhost:{port}", "127.0.0.1", "127.0.0.1:1", "", None):
        visitor.ask(method, path, body, Host=host).refused(421, "Host")
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", "http://127.0.0.1:1", ""):
        visitor.ask(method, path, body, Origin=origin).refused(403, "Origin")
    if method == "POST":
        visitor.ask(method, path, body, Origin=None).refused(403, "Origin")
    for site in ("cross-site", "same-site"):
        visitor.ask(method, path, body, Sec_Fetch_Site=site).refused(403, "page")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/gallery.html",
        "/page/",
        "/../server.py",
        "/%2e%2e/server.py",
        "/main.js/",
        "/thumbnails/",
        "/thumbnails/../1",
        "/thumbnails/-1",
        "/thumbnails/1.5",
        "/thumbnails/1?path=/etc/passwd",
        "/thumbnails//etc/passwd",
        "/thumbnails/%2fetc%2fpasswd",
        "/thumbnails/" + "9" * 19,
        "/thumbnails/٣".encode().decode("latin-1"),
        "http://127.0.0.1/etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_page(visitor: Visitor, path: str) -> None:
    visitor.get(quote(path, safe="/%?=:")).refused(404, "address")


def test_other_methods_and_broken_requests_are_typed_errors(server: GalleryServer, visitor: Visitor) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        answer = visitor.ask(method, "/")
        assert answer.status == 501
    assert "Server" in answer.headers
    assert "Python" not in answer.headers["Server"]
    with socket.create_connection(server.server_address[:2]) as connection:
        connection.sendall(b"GET /\xff\xfe HTTP/9.9\r\n\r\n")
        answered = connection.makefile("rb").read()
    assert b'"error": "DataError"' in answered
    assert b"Invalid HTTP version" in answered


def test_every_file_of_the_page_is_served_with_its_type(visitor: Visitor) -> None:
    types = {"/": "text/html", "/gallery.css": "text/css", "/main.js": "text/javascript", "/icon.svg": "image/svg+xml"}
    for path, wanted in types.items():
        answer = visitor.get(path)
        assert answer.status == 200
        assert answer.headers.get_content_type() == wanted
    folder = Path(__file__).parents[2] / "runtime" / "gallery" / "page"
    for file in folder.iterdir():
        path = "/" if file.suffix == ".html" else f"/{file.name}"
        assert visitor.get(path).body == file.read_bytes()
        # No address of another server: the page works offline, and nobody learns that it was opened.
        outside = re.findall(r"[a-z]+://[^\s\"']+", file.read_text(encoding="utf-8"))
        assert set(outside) <= {"http://www.w3.org/2000/svg"}, file  # the name of SVG, which nothing loads


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("img-src") == "'self' blob:"
    assert set(policy.values()) <= {"'none'", "'self'", "'script'"}
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_status_tells_what_is_shown(visitor: Visitor, bundle_path: Path) -> None:
    status = visitor.get("/api/status").value
    lens = load(bundle_path, threads=1)
    assert (status["model_version"], status["rows"], status["captions"]) == (lens.model_version, 41, True)
    assert status["max_picture_bytes"] == lens.bundle.manifest.preprocess.max_bytes
    assert status["upgrade"]["target"] is None
    assert status["upgrade"]["running"] is False


def test_searches_answer_as_the_command_line_does(
    visitor: Visitor, bundle_path: Path, place: Place, pictures: list[bytes]
) -> None:
    lens = load(bundle_path, threads=1)
    hits = visitor.post("/api/search", {"text": "a cat", "k": 5}).value
    with Store.open(place.store, create=False) as store:
        wanted = store.search(lens.embed_text("a cat"), k=5)
    assert [hit["id"] for hit in hits] == [hit.id for hit in wanted]
    assert hits[0]["confidence"] == wanted[0].confidence
    found = visitor.send(pictures[7], k=1).value
    assert (found[0]["name"], found[0]["folder"]) == ("07.png", str(place.folder))
    assert found[0]["score"] > 0.999
    alike = visitor.post("/api/like", {"id": found[0]["id"], "k": 3}).value
    assert found[0]["id"] not in [hit["id"] for hit in alike]
    assert len(alike) == 3
    hybrid = visitor.post("/api/search", {"text": hits[0]["caption"], "hybrid": True, "unlike": "zebra", "k": 3})
    assert hybrid.value[0]["fused"] is not None


def test_a_search_is_narrowed_by_folder_album_and_time(visitor: Visitor, place: Place) -> None:
    below = visitor.post("/api/search", {"text": "a", "k": 100, "folder": f"{place.folder}/below/"}).value
    album = visitor.post("/api/search", {"text": "a", "k": 100, "album": "below"}).value
    assert {hit["path"] for hit in below} == {hit["path"] for hit in album}
    assert len(below) == 14
    assert visitor.post("/api/search", {"text": "a", "taken_from": 0}).value == []
    everything = visitor.post("/api/search", {"text": "a", "k": 200}).value
    assert len(everything) == 39  # neither the hidden picture nor the other tenant's


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/search", b""),
        ("/api/search", b"{"),
        ("/api/search", b"[]"),
        ("/api/search", b"\xff\xfe"),
        ("/api/search", b'{"text": 3}'),
        ("/api/search", b'{"text": "a", "path": "/etc/passwd"}'),
        ("/api/search", b'{"text": "a", "k": 0}'),
        ("/api/search", b'{"text": "a", "k": 201}'),
        ("/api/search", b'{"text": "' + b"a" * 3_000 + b'"}'),
        ("/api/like", b"{}"),
        ("/api/like", b'{"id": "1"}'),
        ("/api/like", b'{"id": -1}'),
        ("/api/like", b'{"id": 9223372036854775808}'),
        ("/api/erase", b'{"path": "/etc/passwd"}'),
        ("/api/erase", b'{"tenant": ""}'),
        ("/api/upgrade/start", b'{"bundle": "/tmp"}'),
    ],
)
def test_a_question_of_another_shape_is_refused(visitor: Visitor, path: str, body: bytes) -> None:
    visitor.ask("POST", path, body, **JSON).refused(400, "JSON")


def test_types_and_lengths_are_checked_before_anything_is_read(visitor: Visitor) -> None:
    for content_type in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded", None):
        visitor.post("/api/search", {"text": "a"}, Content_Type=content_type).refused(415, "type")
        picture = visitor.ask("POST", "/api/search/picture", b"", Content_Type=content_type)
        picture.refused(415, "type")
    for length in ("-1", "1e3", "", "9" * 16):
        visitor.ask("POST", "/api/search", b"", Content_Length=length, **JSON).refused(411, "length")
    visitor.post("/api/search", {"text": "a"}, Transfer_Encoding="chunked").refused(411, "length")
    visitor.post("/api/search", None, Content_Length=str(64 * 2**10 + 1)).refused(413, "at most")
    most = visitor.get("/api/status").value["max_picture_bytes"]
    types = {"Content_Type": "application/octet-stream"}
    visitor.ask("POST", "/api/search/picture", None, Content_Length=str(most + 1), **types).refused(413, "smaller")


@pytest.mark.parametrize(
    ("data", "kind"), [(b"", "empty"), (b"Dear diary, no picture." * 9, "unknown_type"), (None, "corrupt")]
)
def test_what_is_no_picture_is_refused_in_the_usual_words(
    visitor: Visitor, bundle_path: Path, data: bytes | None, kind: str, pictures: list[bytes]
) -> None:
    sent = pictures[0][: len(pictures[0]) // 2] if data is None else data
    answer = visitor.send(sent)
    assert answer.status == 422
    with pytest.raises(PictureError) as refusal:
        load(bundle_path, threads=1).embed_image(sent)
    assert answer.value == refusal.value.fields()
    assert answer.value["kind"] == kind


def test_an_empty_search_is_refused_with_what_to_do(visitor: Visitor) -> None:
    visitor.post("/api/search", {"text": "  "}).refused(409, "Say what to look for.")


def test_pictures_are_drawn_small_and_bare(own_visitor: Visitor) -> None:
    picture = Image.radial_gradient("L").convert("RGB").resize((3000, 1000))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    hit = own_visitor.post("/api/search", {"text": "a", "k": 1}).value[0]
    picture.save(hit["path"], "JPEG", exif=exif)
    for kind, width in (("thumbnails", 320), ("previews", 1280)):
        answer = own_visitor.get(f"/{kind}/{hit['id']}")
        assert answer.headers["Content-Type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.body)) as small:
            assert small.size == (width, round(width / 3))
            assert not small.getexif()
        assert b"taken at home" not in answer.body


def test_only_rows_that_a_search_would_show_are_drawn_or_erased(visitor: Visitor, place: Place) -> None:
    others, hidden = _ids(place.store, "other"), _ids(place.store, "", "hidden")
    assert len(others) == len(hidden) == 1
    for row in (*others, *hidden, 0, 10**17):
        visitor.get(f"/thumbnails/{row}").refused(409, f"row {row}")
        visitor.post("/api/like", {"id": row}).refused(409, f"row {row}")
        visitor.post("/api/erase", {"id": row}).refused(409, f"row {row}")
    assert (_ids(place.store, "other"), _ids(place.store, "", "hidden")) == (others, hidden)


def test_a_row_whose_file_became_a_link_or_went_away_is_not_drawn(own_visitor: Visitor, tmp_path: Path) -> None:
    first, second, third = own_visitor.post("/api/search", {"text": "a", "k": 3}).value
    elsewhere = tmp_path / "elsewhere.png"
    os.rename(first["path"], elsewhere)
    os.symlink(elsewhere, first["path"])
    answer = own_visitor.get(f"/thumbnails/{first['id']}")
    answer.refused(422, "a link")
    assert answer.value["kind"] == "not_a_file"
    os.unlink(second["path"])
    own_visitor.get(f"/thumbnails/{second['id']}").refused(404, "missing")
    Path(third["path"]).write_text("no longer a picture")
    own_visitor.get(f"/thumbnails/{third['id']}").refused(422, "unknown_type")


def test_deletion_gives_a_receipt_and_forgets_the_small_copies(
    own_visitor: Visitor, own_server: GalleryServer, own_place: Place
) -> None:
    hit = own_visitor.post("/api/search", {"text": "a", "k": 1}).value[0]
    assert own_visitor.get(f"/thumbnails/{hit['id']}").status == 200
    receipt = own_visitor.post("/api/erase", {"id": hit["id"]}).value
    assert (receipt["scope"], receipt["files"], receipt["residues"]) == ("file", 1, 0)
    assert receipt["patterns"] > 0
    own_visitor.get(f"/thumbnails/{hit['id']}").refused(409, "row")
    assert own_server.gallery._thumbnails.bytes_kept == 0
    assert Path(hit["path"]).exists()
    receipt = own_visitor.post("/api/erase", {"album": "below"}).value
    assert receipt["files"] in {13, 14}  # 14, or one fewer where the first was of the album
    assert own_visitor.post("/api/search", {"text": "a", "album": "below"}).value == []
    assert len(_ids(own_place.store, "other")) == 1
    own_visitor.post("/api/erase", {}).refused(409, "neither")
    own_visitor.post("/api/erase", {"id": 1, "album": "below"}).refused(409, "both")


def test_small_copies_take_no_more_memory_than_allowed(bundle_path: Path, folder: Path) -> None:
    spec = load(bundle_path, threads=1).bundle.manifest.preprocess
    one = len(Thumbnails(spec).jpeg(str(folder / "01.png"), 320))
    kept = Thumbnails(spec, cache_bytes=3 * one + one // 2)
    for number in (1, 2, 4, 5, 7, 8, 10):
        kept.jpeg(str(folder / f"{number:02}.png"), 320)
    assert 2 * one < kept.bytes_kept <= 3 * one + one // 2
    before = kept.jpeg(str(folder / "10.png"), 320)
    (folder / "10.png").write_bytes((folder / "11.png").read_bytes() + b" ")
    assert kept.jpeg(str(folder / "10.png"), 320) != before  # another file under the same name
    kept.forget()
    assert kept.bytes_kept == 0


def _upgraded(visitor: Visitor) -> dict[str, Any]:
    """Look until the upgrade has ended, as the page does."""
    while True:
        upgrade: dict[str, Any] = visitor.get("/api/status").value["upgrade"]
        if not upgrade["running"]:
            return upgrade


def test_a_model_is_upgraded_switched_and_rolled_back(
    bundle_path: Path, rebuilt: Change, own_place: Place, pictures: list[bytes]
) -> None:
    old = load(bundle_path, threads=1)
    new = load(rebuilt(lambda m: msgspec.structs.replace(m, model_version="newer")), threads=1)
    with _serving(Gallery(old, own_place.store, upgrade=new)) as serving:
        visitor = Visitor(serving).enter()
        visitor.post("/api/upgrade/switch").refused(409, "no upgrade")
        visitor.post("/api/upgrade/rollback").refused(409, "none")
        begun = visitor.post("/api/upgrade/start").value["upgrade"]
        assert (begun["active"], begun["shadow"], begun["target"]) == (old.model_version, "newer", "newer")
        assert visitor.post("/api/upgrade/stop").value["upgrade"]["running"] is False
        assert visitor.post("/api/upgrade/cancel").value["upgrade"]["shadow"] is None
        visitor.post("/api/upgrade/start")
        filled = _upgraded(visitor)
        assert (filled["filled"], filled["done"], filled["error"]) == (True, 41, None)
        assert visitor.get("/api/status").value["model_version"] == old.model_version
        switched = visitor.post("/api/upgrade/switch").value
        assert (switched["model_version"], switched["upgrade"]["previous"]) == ("newer", old.model_version)
        assert visitor.send(pictures[7], k=1).value[0]["name"] == "07.png"
        visitor.post("/api/upgrade/start").refused(409, "newer")
        assert visitor.post("/api/upgrade/rollback").value["model_version"] == old.model_version
        # Another process switches: the next answer comes from the version that answers then.
        with Store.open(own_place.store, create=False) as store:
            store.upgrade.roll_back()
            assert store.upgrade.status().active == "newer"
            store.upgrade.finish()
        assert visitor.send(pictures[7], k=1).value[0]["name"] == "07.png"
        assert visitor.get("/api/status").value["model_version"] == "newer"


def test_without_a_second_bundle_there_is_no_upgrade(visitor: Visitor) -> None:
    for name in ("start", "stop", "cancel", "switch"):
        visitor.post(f"/api/upgrade/{name}").refused(409, "--upgrade-to")
    assert visitor.post("/api/upgrade/finish").status == 200  # nothing to remove


def test_a_store_of_another_model_is_refused(rebuilt: Change, place: Place) -> None:
    other = load(rebuilt(lambda m: msgspec.structs.replace(m, model_version="else")), threads=1)
    with pytest.raises(StoreError, match="model version else"):
        Gallery(other, place.store)


def test_only_loopback_is_served_and_a_taken_port_is_a_typed_error(server: GalleryServer) -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "localhost", ""):
        with pytest.raises(DataError, match="another one"):
            GalleryServer(server.gallery, host=host)
    with pytest.raises(DataError, match="nobody listens"):
        GalleryServer(server.gallery, port=server.server_port)


def test_the_other_loopback_address_works_too(bundle_path: Path, place: Place) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with _serving(Gallery(load(bundle_path, threads=1), place.store), host="::1") as second:
        assert second.url.startswith("http://[::1]:")
        assert Visitor(second).enter().get("/").status == 200
