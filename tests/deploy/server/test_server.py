"""The server: right answers, limits, what bad clients get, and that others do not notice them."""

import asyncio
import io
import math
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from dual_precision.data.provision.png import encode_png
from dual_precision.deploy import Predictor, amend_metadata, inspect_packed
from dual_precision.deploy.file.packed import PackedFile
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.deploy.server import engines, running
from dual_precision.deploy.server.engines import (
    Answered,
    PlanesEngine,
    PredictorEngine,
    priced_modes,
)
from dual_precision.deploy.server.service import Service, measured
from dual_precision.deploy.server.settings import BudgetSettings, Limits
from dual_precision.deploy.server.sources import PrefixFile, opened_source
from dual_precision.deploy.server.uploads import Refused, decode_upload
from experiments.deploy import serve

PATIENCE = 60  # seconds, after which something hangs
LIMITS = Limits(rows=8, waiting=256, read=1.0, window=0.02)


@pytest.fixture
def server(engine, monkeypatch, start_server):
    monkeypatch.setattr(running, "HEADER_SECONDS", 1.0)
    return start_server(Service(BudgetSettings("latency", 1e4), LIMITS), engine)


CLIENT = httpx.Client(verify=False, timeout=20, limits=httpx.Limits(max_keepalive_connections=0))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def ask(server, body, precision="low"):
    where = f"{server.address}predict?precision={precision}"
    return CLIENT.post(where, content=body)


@pytest.fixture(scope="module")
def predictor(path):
    return Predictor(path, (4,))


@pytest.mark.parametrize("precision", ["low", "high", "auto"])
def test_answers_are_those_of_the_predictor(server, predictor, images, precision):
    found = ask(server, npy(images), precision).json()
    wanted = predictor.predict(images, precision)
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-5, atol=1e-5)
    assert found["classes"] == wanted.argmax(1).tolist()
    np.testing.assert_allclose(np.sum(found["probabilities"], 1), 1, atol=1e-4)
    one = ask(server, encode_png(images[0]), precision).json()
    np.testing.assert_allclose(one["logits"], wanted[:1], rtol=1e-5, atol=1e-5)


def test_a_budget_says_what_it_chose(server, images):
    assert ask(server, npy(images), "budget").json()["mode"] == "high"
    said = CLIENT.get(f"{server.address}metrics").text
    assert 'dual_precision_budget_mode{mode="high"} 1.0' in said
    assert 'dual_precision_requests_total{asked="budget",status="200"} 1.0' in said
    assert CLIENT.get(f"{server.address}healthz").json()["status"] == "complete"


def bomb(png):
    """A PNG that claims to be 60,000 pixels wide, with the right checksum."""
    header = struct.pack(">II", 60_000, 60_000) + png[24:29]
    return png[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + png[33:]


def test_bad_requests(server, images):
    shape = images.shape[1:]
    huge = npy(np.zeros((1, *shape), np.uint8)).replace(b"(1,", b"(9,")
    cases = {
        "no image": (b"hello", 415),
        "nothing": (b"", 415),
        "bomb": (bomb(encode_png(images[0])), 400),
        "cut": (encode_png(images[0])[:-9], 400),
        "floats": (npy(images.astype(np.float32)), 400),
        "another shape": (npy(images[:, 1:]), 400),
        "no rows": (npy(images[:0]), 400),
        "objects": (npy(np.zeros(3, np.uint8)), 400),
        "claims rows": (huge, 413),
        "too many rows": (npy(np.zeros((9, *shape), np.uint8)), 413),
        "too large": (bytes(LIMITS.bytes(shape) + 1), 413),
    }
    for name, (body, status) in cases.items():
        found = ask(server, body)
        assert found.status_code == status, (name, found.text)
        assert found.json()["error"]
    assert ask(server, npy(images), "middle").status_code == 400
    chunks = CLIENT.post(f"{server.address}predict", content=iter([bytes(1 << 16)] * 4))
    assert chunks.status_code == 413, "a body that does not say how long it is"
    assert ask(server, npy(images)).status_code == 200


def test_counts_that_are_no_numbers_are_refused():
    """`True` is equal to 1, and NumPy lets it through as a number of rows."""
    for own in ("(True, 4, 6, 1)", "(2, 4, 6, True)", "(4, 6, True)", "(2.0, 4, 6, 1)"):
        head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {own}, }}"
        head = head.ljust(117) + "\n"
        body = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head.encode() + bytes(48)
        with pytest.raises(Refused) as found:
            decode_upload(body[: 128 + (48 if own[1] == "2" else 24)], (4, 6, 1), 8)
        assert found.value.status == 400, own


def test_a_jpeg(images):
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, "JPEG")
    assert decode_upload(file.getvalue(), (4, 6, 3), 1).shape == (1, 4, 6, 3)
    with pytest.raises(Refused, match=r"4x6 pixels .*RGB: expected 6x4, RGB.*resize\(\(4, 6\)\)"):
        decode_upload(file.getvalue(), (6, 4, 3), 1)
    for body in (file.getvalue(), encode_png(np.zeros((4, 6, 3), np.uint8))):
        with pytest.raises(Refused, match=r"takes \[4, 6, 2\]: expected an .npy of uint8") as found:
            decode_upload(body, (4, 6, 2), 1)
        assert found.value.status == 415


def test_a_png_with_transparency():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 4), np.uint8)).save(file, "PNG")
    with pytest.raises(Refused, match="RGB with transparency of 8 bits: expected 4x6, RGB of 8 b"):
        decode_upload(file.getvalue(), (4, 6, 3), 1)


@pytest.mark.parametrize(
    "begin", [b"", b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"]
)
def test_a_client_that_hangs_is_hung_up_on(server, begin):
    url = httpx.URL(server.address)
    with socket.create_connection((url.host, url.port), timeout=PATIENCE) as client:
        client.sendall(begin)
        said = b""
        while part := client.recv(1000):
            said += part
    assert (b" 408 " in said) == bool(begin)


class Broken:
    """An engine whose answers are no numbers."""

    def __init__(self, engine):
        self.shape, self.priced = engine.shape, engine.priced
        self.cascade, self.network = None, "broken"

    def answer(self, images, mode):
        return Answered(np.full((len(images), 4), np.nan, np.float32), mode)


def test_what_is_no_number_is_told_and_counted_as_what_it_is(engine, images, start_server):
    service = Service(BudgetSettings("latency", 1e4), LIMITS)
    server = start_server(service, (Broken(engine[0]), {}))
    found = ask(server, npy(images))
    assert found.status_code == 500
    assert "the logits of 'low' are not finite: expected" in found.json()["error"]
    said = CLIENT.get(f"{server.address}metrics").text
    assert 'dual_precision_requests_total{asked="low",status="500"} 1.0' in said
    assert 'status="200"' not in said
    assert 'dual_precision_images_total{asked="low"' not in said


@pytest.fixture(scope="module")
def three(make_path):
    """Three modes, and a cascade of the first two that sends every image on."""
    cascade = ("low", "mid", 1e9)
    return make_path(cascade, low="w2a2", mid="w4a4", high="w8a8")


def test_the_cost_of_a_cascade_is_that_of_its_own_modes(three, images, start_server):
    engine, seconds = measured(PredictorEngine(three, sizes=(4,)))
    server = start_server(Service(BudgetSettings("latency", 1e4), LIMITS), (engine, seconds))
    low, mid, high = (own.bit_operations for own in engine.priced)
    found = ask(server, npy(images), "auto").json()
    assert found["escalated"] == [True] * 3
    assert found["bit_operations"] == low + mid < low + high
    said = CLIENT.get(f"{server.address}metrics").text
    assert f"dual_precision_bit_operations_total {3 * (low + mid)}" in said


def test_what_still_loads_is_told_to_wait(three, images, start_server):
    service = Service(BudgetSettings("latency", 1e4), LIMITS)
    with PackedFile(three) as file:
        priced = priced_modes(file.info)
    service.expect(priced)
    first = PredictorEngine(three, ["low"], (4,))
    server = start_server(service, None)
    assert ask(server, npy(images), "mid").status_code == 503
    service.put(first, {}, complete=False)
    codes = ("low", 200), ("mid", 503), ("high", 503), ("auto", 503), ("budget", 200), ("x", 400)
    for asked, status in codes:
        found = ask(server, npy(images), asked)
        assert found.status_code == status, asked
        assert ("Retry-After" in found.headers) == (status == 503)
    service.failed = "the network cannot be loaded: a stone"
    found = ask(server, npy(images), "mid")
    assert found.json()["error"].startswith(service.failed)
    assert "Retry-After" not in found.headers, "it will never come"


def test_cheap_is_what_the_budget_counts(make_path):
    """The file has fewest weight bits first; w2a8 costs more BitOps than w4a2."""
    with PackedFile(make_path(low="w2a8", high="w4a2")) as file:
        priced = priced_modes(file.info)
    low, high = priced
    assert (low.name, high.name) == ("low", "high")
    assert low.bit_operations > high.bit_operations
    budget = BudgetSettings("bit_operations", high.bit_operations)
    assert budget.ranked(priced) == [high, low]
    assert budget.budget_of(priced).start().choice == 0
    service = Service(budget, LIMITS)
    service.expect(priced)  # the mode that is there first may be above the mean
    with pytest.raises(ValueError, match="expected at least"):
        Service(BudgetSettings("energy", 1e-3), LIMITS).expect(priced)


class Slow:
    """An engine whose batches take a while."""

    def __init__(self, engine):
        self._engine, self.batches = engine, []
        self.shape, self.priced = engine.shape, engine.priced
        self.cascade, self.network = None, "slow"

    def answer(self, images, mode):
        time.sleep(0.2)
        self.batches.append(len(images))
        return self._engine.answer(images, mode)


def test_a_full_line_refuses_and_what_waits_shares_batches(engine, images, start_server):
    slow = Slow(engine[0])
    limits = Limits(rows=8, waiting=12, window=0.05)
    server = start_server(Service(BudgetSettings("latency", 1e4), limits), (slow, {"low": 1.0}))
    with ThreadPoolExecutor(12) as pool:
        found = [*pool.map(lambda _: ask(server, npy(images)), range(12))]
    codes = [answer.status_code for answer in found]
    assert set(codes) == {200, 429}
    refused = next(answer for answer in found if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert max(slow.batches) > 3


class Gated(Slow):
    """An engine that begins a batch and waits until the test lets it go on."""

    def __init__(self, engine):
        super().__init__(engine)
        self.begun, self.gate = threading.Event(), threading.Event()

    def answer(self, images, mode):
        self.begun.set()
        self.gate.wait(20)
        self.batches.append(len(images))
        return self._engine.answer(images, mode)


@pytest.mark.parametrize("gone", ["in line", "computing"])
def test_who_goes_is_not_waited_for(engine, images, start_server, gone):
    gated, service = Gated(engine[0]), Service(BudgetSettings("latency", 1e4), LIMITS)
    service._decide = lambda elapsed: None  # no window takes what was seen
    server = start_server(service, (gated, {}))
    counted = 'dual_precision_requests_total{asked="budget",status="499"} 1.0'
    with ThreadPoolExecutor(1) as pool:
        other = None
        if gone == "in line":
            other = pool.submit(ask, server, npy(images), "low")
            assert gated.begun.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            CLIENT.post(f"{server.address}predict", content=npy(images), timeout=1.0)
        assert gated.begun.wait(20)
        while counted not in CLIENT.get(f"{server.address}metrics").text:
            time.sleep(0.01)
        gated.gate.set()
        assert other is None or other.result().status_code == 200
    assert ask(server, npy(images), "low").status_code == 200
    assert len(gated.batches) == 2, "one in line is not computed"
    assert service.batcher.rows == 0
    assert service._latencies == []


def test_the_budget_takes_trained_modes_and_looks_at_its_own_requests(three):
    twin = three.with_name("trained.safetensors")
    twin.write_bytes(three.read_bytes())
    amend_metadata(twin, {"trained": ["low", "mid"]})
    with PackedFile(twin) as file:
        priced = priced_modes(file.info)
    settings = BudgetSettings("latency", 1e4)
    assert [own.name for own in settings.choices(priced)] == ["low", "mid"]
    assert settings.budget_of(priced).start().choice == 1
    with pytest.raises(ValueError, match=r"\['high'\], none of which was trained"):
        settings.budget_of(priced[2:])

    async def oldest():
        batcher = Service(settings, LIMITS).batcher
        tasks = [asyncio.create_task(batcher.submit(np.zeros((1,)), a)) for a in ("low", "budget")]
        await asyncio.sleep(0)
        assert batcher.oldest("budget") is not None
        tasks[1].cancel()
        await asyncio.sleep(0)
        return batcher.oldest("budget")

    assert asyncio.run(oldest()) is None


class HandClock:
    """A clock that stands still until the test moves it to the end of a window."""

    def __init__(self):
        self.time, self._alarm = 0.0, 0.0

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self._alarm = self.time + seconds
        while self.time < self._alarm:
            await asyncio.sleep(0.001)

    def end_window(self):
        """Returns when the budget has decided, and waits for the end of the next window."""
        self._until_asleep()
        self.time = self._alarm
        self._until_asleep()

    def _until_asleep(self):
        late = time.monotonic() + PATIENCE
        while self._alarm <= self.time:
            assert time.monotonic() < late
            time.sleep(0.001)


def test_a_budget_goes_down_when_it_is_late_and_up_again(engine, images, start_server):
    slow, clock = Slow(engine[0]), HandClock()
    settings = BudgetSettings("latency", 100.0)
    service = Service(settings, Limits(window=0.5), clock.now, clock.sleep)
    server = start_server(service, (slow, {}))
    assert ask(server, npy(images), "budget").json()["mode"] == "high"
    clock.end_window()
    assert ask(server, npy(images), "budget").json()["mode"] == "low"
    chosen = []
    while "high" not in chosen and len(chosen) < 30:  # calm ones; the first has a late answer
        clock.end_window()
        chosen.append(CLIENT.get(f"{server.address}about").json()["chosen"])
    assert chosen[:3] == ["low"] * 3
    assert chosen[-1] == "high"


def test_64_clients_and_one_that_sends_garbage(server, images):
    """The short form of `python -m experiments.benchmark clients`."""
    rng = np.random.default_rng(0)
    wanted = {p: ask(server, npy(images), p).json()["classes"] for p in ("low", "high", "auto")}
    garbage = [rng.bytes(int(rng.integers(1, 2000))) for _ in range(20)]

    def client(number):
        precision = ["low", "high", "auto"][number % 3]
        with httpx.Client(verify=False, timeout=30) as own:
            where = f"{server.address}predict?precision={precision}"
            bodies = garbage if number == 0 else [npy(images)] * 4
            found = [own.post(where, content=body) for body in bodies]
            return precision, number, found

    with ThreadPoolExecutor(64) as pool:
        for precision, number, found in pool.map(client, range(64)):
            if number == 0:
                assert {answer.status_code // 100 for answer in found} == {4}
            else:
                assert [a.status_code for a in found] == [200] * 4
                assert all(a.json()["classes"] == wanted[precision] for a in found)


def test_nothing_answers_before_something_is_there(images, start_server):
    server = start_server(Service(BudgetSettings(), LIMITS), None)
    for found in (CLIENT.get(f"{server.address}healthz"), ask(server, npy(images), "x")):
        assert found.status_code == 503
        assert found.headers["Retry-After"] == "1"
    assert 'asked="unknown",status="503"' in CLIENT.get(f"{server.address}metrics").text


def test_low_comes_from_the_first_part_and_nothing_is_read_twice(path, images):
    read = []
    with opened_source(str(path)) as source:
        fetch = source._fetch

        def counted(count):
            part = fetch(count)
            read.append(len(part))
            return part

        source._fetch = counted
        low = PredictorEngine(source, ["low"], (4,))
        assert sum(read) == inspect_packed(path).bytes_read["low"]
        both = PredictorEngine(source, sizes=(4,))
    assert sum(read) == path.stat().st_size
    np.testing.assert_array_equal(
        low.answer(images, "low").logits, both.answer(images, "low").logits
    )


def test_an_address_without_ranges_is_refused(server):
    with (
        pytest.raises(ValueError, match="gave no range of it"),
        opened_source(f"{server.address}healthz"),
    ):
        pass


def test_a_closed_source_is_read_no_further():
    """A thread that still loads does not keep a server from its end."""
    source = PrefixFile(10, lambda count: b"x" * count)
    assert source.read(4) == b"xxxx"
    source.close()
    with pytest.raises(ValueError, match="nothing more is fetched"):
        source.read(4)


def test_planes(path):
    engine = PlanesEngine(path, (1, 4), (4,))
    images = np.zeros((9, *engine.shape), np.uint8)
    assert [own.name for own in engine.priced] == ["w1a8", "w4a8"]
    for count in (9, 0):
        assert engine.answer(images[:count], "w4a8").logits.shape == (count, 4)
    costs = [own.bit_operations for own in engine.priced]
    assert costs == [costs[0], 4 * costs[0]]
    # Of each output of a layer, whole words of every plane, and one scale.
    kernels = [layer.kernel for layer in inspect_packed(path).layers.values()]
    assert [own.bytes for own in engine.priced] == [
        sum(4 * outputs * (count * math.ceil(inputs / 32) + 1) for inputs, outputs in kernels)
        for count in (1, 4)
    ]
    for wrong in ((8, 2), (99,), ()):
        with pytest.raises(ValueError, match="expected some of 1 to 8"):
            PlanesEngine(path, wrong)
    with pytest.raises(ValueError, match="expected at least one whole number, each 1 or more"):
        PlanesEngine(path, sizes=(0,))


def test_planes_are_of_a_trained_mode(path, tmp_path, monkeypatch):
    """The wider one has weights that nobody has trained, and norms too."""
    twin, asked = tmp_path / "twin.safetensors", []
    twin.write_bytes(path.read_bytes())
    amend_metadata(twin, {"trained": ["low"]})

    def noted(*given, mode):
        asked.append(mode)
        return to_bit_layers(*given, mode=mode)

    monkeypatch.setattr(engines, "to_bit_layers", noted)
    for source in (twin, path):
        PlanesEngine(source, (1,), (4,))
    assert asked == ["low", "high"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_no_loopback_address_answers_to_the_name_of_another(host):
    known = running.allowed_hosts(host)
    assert {"127.0.0.1", "localhost", "[::1]"} <= {*known}
    assert "*" not in known
    assert running.allowed_hosts("0.0.0.0") == running.allowed_hosts("::") == ("*",)


def test_an_address_of_ipv6(start_server):
    try:
        running._listening("::1", 0).close()
    except OSError:
        pytest.skip("no IPv6 here")
    hosts = running.allowed_hosts("::1")
    server = start_server(Service(BudgetSettings(), LIMITS), None, None, "::1", hosts)
    assert server.address.startswith("http://[::1]:")
    where = f"{server.address}about"
    assert CLIENT.get(where).status_code == 503, "it answers"
    assert CLIENT.get(where, headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("text", ["latency", "latency:x", "colour:3", ":", "latency:-1"])
def test_budgets_of_words(text, engine):
    with pytest.raises(ValueError, match=r"expected one such as latency:50|a target above 0"):
        BudgetSettings.parse(text).budget_of(engine[0].priced)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"file": "none.safetensors"}, "No such file"),
        ({"file": "."}, "not a file"),
        ({"rate": -1.0}, "a rate of -1 bytes a second: expected"),
        ({"budget": "latency:-5"}, "a target of -5: expected"),
        ({"planes": ["8", "2"]}, r"planes \[8, 2\]: expected"),
        ({"port": "taken"}, r"cannot listen on 127.0.0.1, port .*expected"),
        # Loading alone shows these: of an address nothing is asked before.
        ({"budget": "energy:0.001"}, r"net.safetensors: .*cannot be loaded: a mean of 0.001"),
        ({"file": "http://127.0.0.1:1/x"}, "http://127.0.0.1:1/x: .*cannot be loaded"),
    ],
)
def test_a_server_of_nothing_ends_with_an_error(path, flags, message, monkeypatch):
    monkeypatch.setattr(serve, "compute_in_calling_thread", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if "port" in flags else 0
        with pytest.raises((ValueError, OSError), match=message):
            serve.serve_command(**{"file": str(path), "samples": False, **flags, "port": port})
