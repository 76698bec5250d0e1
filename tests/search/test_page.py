"""The page, in a real browser: views, edits, undo, a reload, two analysts."""

import asyncio
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from dual_precision.search.edits import Edit
from dual_precision.search.evolve import Settings, front_of
from dual_precision.search.page import shown
from dual_precision.search.page.server import Worker, open_server
from dual_precision.search.session import Session, read_events, replay
from dual_precision.search.space import Space

CHOICES = tuple(f"w{w}a{a}" for w in range(1, 5) for a in range(1, 5))
NAMES = ("stage2_conv", "block1/conv1", "block1/conv2", "stage3_conv")
SPACE = Space("low", NAMES, (CHOICES,) * 4, (1_000_000, 2_000_000, 2_000_000, 1_000_000), 10**7)
WAIT = 60  # seconds, on a busy machine
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the libraries that serve and drive
]

# Bokeh's widgets stand in shadow roots: all elements, wherever they are.
FIND = """
const found = [], walk = (root) => { for (const e of root.querySelectorAll('*')) {
  if (e.matches(arguments[0]) && (!arguments[1] || e.textContent.trim() === arguments[1]))
    found.push(e);
  if (e.shadowRoot) walk(e.shadowRoot); } };
walk(document); return found[0];
"""
# Clicks an element that nothing covers, in one step: a pointer that is pressed and released in two
# loses its click where the page is laid out anew between them.
CLICK = """
const e = arguments[0], box = e.getBoundingClientRect();
const top = e.getRootNode().elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
if (!e.contains(top))
  throw new Error(e.textContent + ' is covered by ' + (top ? top.outerHTML : 'nothing'));
e.click();
"""
# Where a point of a figure is on the screen.
PLACE = """
const find = (view) => { if (view.model.name === arguments[0]) return view;
  for (const child of view.child_views || []) { const f = find(child); if (f) return f; } };
const view = find([...Bokeh.index][0]), frame = view.frame, box = view.canvas_view.el
  .getBoundingClientRect();
return [box.x + frame.x_scale.compute(arguments[1]), box.y + frame.y_scale.compute(arguments[2])];
"""
# Milliseconds between frames while the pointer runs over the candidates.
FRAMES = """
const done = arguments[arguments.length - 1], times = [];
const find = (view) => { if (view.model.name === 'projection') return view;
  for (const child of view.child_views || []) { const f = find(child); if (f) return f; } };
const view = find([...Bokeh.index][0]), target = view.canvas_view.events_el, n = 60;
const box = target.getBoundingClientRect();
const step = (now) => { times.push(now);
  if (times.length > n) return done(times.slice(1).map((t, i) => t - times[i]));
  const x = box.x + box.width * (0.2 + 0.6 * times.length / n), y = box.y + box.height / 2;
  target.dispatchEvent(new PointerEvent('pointermove',
    {clientX: x, clientY: y, bubbles: true, pointerType: 'mouse'}));
  requestAnimationFrame(step); };
requestAnimationFrame(step);
"""
TEXT = "return Bokeh.documents[0].get_model_by_name(arguments[0]).text"


def score(space, candidate):
    parts = zip((3, 9, 2, 5), candidate, strict=True)
    return 60 + sum(k * (int(t[1]) * int(t[3])) ** 0.3 for k, t in parts)


def slow_score(space, candidate):
    time.sleep(0.005)
    return score(space, candidate)


def train(space):
    time.sleep(0.3)
    return [0.5, 0.25]


@pytest.fixture
def page(tmp_path):
    """(worker, address) of a search that goes on, served beside the test."""
    pytest.importorskip("bokeh", reason="the page needs the extra [pages]")
    about = {"losses": [2, 1]}
    path = tmp_path / "session.jsonl"
    session = Session(path, SPACE, Settings(), about, slow_score, train)
    worker, ready, box = Worker(session, 1000), threading.Event(), []

    def serve():
        asyncio.set_event_loop(asyncio.new_event_loop())
        server = open_server(worker, 0)
        server.start()
        box.append(server)
        ready.set()
        server.io_loop.start()
        server.stop()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(WAIT)
    yield worker, f"http://127.0.0.1:{box[0].port}/"
    if worker._thread.is_alive():
        worker.stop()
    box[0].io_loop.add_callback(box[0].io_loop.stop)
    thread.join(WAIT)


@pytest.fixture
def browser():
    """Headless Chromium that reaches nothing but this machine."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the test needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1340,900",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--disable-gpu",
    ):  # fmt: skip
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=driver)
    found = webdriver.Chrome(options=options, service=service)
    found.set_script_timeout(WAIT)
    yield found
    found.quit()


def wait_for(check):
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError(f"nothing after {WAIT} s")


def text_of(browser, name):
    return browser.execute_script(TEXT, name)


def click(browser, label):
    element = wait_for(lambda: browser.execute_script(FIND, "button", label))
    browser.execute_script(CLICK, element)


def click_at(browser, name, x, y):
    from selenium.webdriver.common.action_chains import ActionChains

    px, py = browser.execute_script(PLACE, name, x, y)
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(round(px), round(py))
    actions.w3c_actions.pointer_action.click()
    actions.perform()


def brush(browser, name, first, second):
    from selenium.webdriver.common.action_chains import ActionChains

    (x0, y0), (x1, y1) = (browser.execute_script(PLACE, name, *p) for p in (first, second))
    actions = ActionChains(browser)
    pointer = actions.w3c_actions.pointer_action
    pointer.move_to_location(round(x0), round(y0))
    pointer.pointer_down()
    pointer.move_to_location(round((x0 + x1) / 2), round((y0 + y1) / 2))
    pointer.move_to_location(round(x1), round(y1))
    pointer.pointer_up()
    actions.perform()


def open_page(browser, address):
    browser.get(address)
    ready = "return !!(window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle)"
    wait_for(lambda: browser.execute_script(ready))


def picture(browser, name):
    """Kept where SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def place_of(text):
    """Row of an alternative in the graph."""
    return sorted(CHOICES, key=lambda t: (int(t[1]) * int(t[3]), t)).index(text)


def timed(what, act, check):
    """Acts, waits for what it shows, and prints the seconds."""
    start = time.perf_counter()
    act()
    wait_for(check)
    print(f"{what}: {time.perf_counter() - start:.3f} s")


def test_the_front_goes_through_the_rows_of_its_blocks(tmp_path):
    """A block that was added keeps its row after undo, so that those above it keep theirs."""
    session = Session(tmp_path / "log", SPACE, Settings(), {}, score)
    session.run(30)
    session.edit(Edit("add", "stage2_conv", "w2a5"))
    blocks = shown.all_blocks([], session.state)
    session.undo()
    session.edit(Edit("cut", "stage2_conv", "w4a4", next="w4a3"))
    state, blocks = session.state, shown.all_blocks(blocks, session.state)
    assert ("stage2_conv", "w2a5") not in state.space.blocks
    columns = shown.block_columns(state, blocks, set())
    rows = dict(zip(blocks, columns["y"], strict=True))
    lines = shown.path_columns(state, blocks)
    front = [one.candidate for one in front_of(state.evaluated)]
    for candidate, drawn in zip(front, lines["ys"], strict=False):
        assert drawn == [rows[block] for block in zip(NAMES, candidate, strict=True)]
    assert lines["ys"][len(front) :] == [[rows[NAMES[0], "w4a4"], rows[NAMES[1], "w4a3"]]]


def test_an_analyst_steers(page, browser):
    worker, address = page
    session = worker.session
    open_page(browser, address)
    worker.start()
    wait_for(lambda: len(session.state.evaluated) > 120)
    click(browser, "pause")
    wait_for(lambda: session.state.paused)
    wait_for(lambda: "paused" in text_of(browser, "status"))
    # A: a click shows the block, the button removes it, undo brings it back.
    place = place_of("w2a2")
    click_at(browser, "graph", 1, place)
    wait_for(lambda: "block1/conv1 w2a2" in text_of(browser, "properties"))
    click(browser, "remove")
    wait_for(lambda: "removed" in text_of(browser, "properties"))
    assert "w2a2" not in session.state.space.alternatives[1]
    click(browser, "remove")
    wait_for(lambda: "no longer" in text_of(browser, "message"))
    # C: what is brushed is marked in the graph.
    columns = shown.candidate_columns(shown.shown_candidates(session.state))
    low, high = ((min(columns[n]), max(columns[n])) for n in ("px", "py"))
    brush(browser, "projection", (low[0], high[0]), (sum(low) / 2 + 0.2, high[1]))
    wait_for(lambda: "union of" in text_of(browser, "common"))
    wait_for(lambda: "union of 0" not in text_of(browser, "common"))
    picture(browser, "search")
    element = browser.execute_script(FIND, ".bk-btn", "intersection")
    element.click()
    wait_for(lambda: "intersection of" in text_of(browser, "common"))
    # A reload loses nothing; undo is there after it.
    open_page(browser, address)
    wait_for(lambda: "1 edits" in text_of(browser, "status"))
    click(browser, "undo")
    wait_for(lambda: session.state.space == SPACE)
    click(browser, "go on")
    done = len(session.state.evaluated)
    wait_for(lambda: len(session.state.evaluated) > done)
    worker.stop()
    assert replay(read_events(session.path))[-1] == session.state
    errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not [e for e in errors if "favicon" not in e["message"]]


def test_two_analysts_on_one_session(page, browser):
    worker, address = page
    session = worker.session
    open_page(browser, address)
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    open_page(browser, address)
    place = place_of("w4a4")
    click_at(browser, "graph", 0, place)
    wait_for(lambda: "stage2_conv w4a4" in text_of(browser, "properties"))
    click(browser, "remove")
    wait_for(lambda: "w4a4" not in session.state.space.alternatives[0])
    browser.switch_to.window(first)
    wait_for(lambda: "remove stage2_conv w4a4" in text_of(browser, "status"))
    assert "analyst 2: remove" in text_of(browser, "status")
    assert "You are analyst 1" in text_of(browser, "status")
    click_at(browser, "graph", 0, place)
    wait_for(lambda: "stage2_conv w4a4" in text_of(browser, "properties"))
    click(browser, "remove")
    wait_for(lambda: "no longer" in text_of(browser, "message"))
    assert len(session.state.history) == 1


def test_a_thousand_candidates(page, browser):
    """`-s` prints how long the browser takes; it goes on to answer."""
    worker, address = page
    session = worker.session
    session._evaluate = score
    session.run(1000)
    worker.evaluations = 0  # it stands still
    timed("opened", lambda: open_page(browser, address), lambda: True)
    worker.start()
    wait_for(lambda: "1000 of" in text_of(browser, "status"))
    click_at(browser, "graph", 1, place_of("w2a2"))
    wait_for(lambda: "block1/conv1 w2a2" in text_of(browser, "properties"))
    timed(
        "an edit",
        lambda: click(browser, "remove"),
        lambda: "removed" in text_of(browser, "properties"),
    )
    timed(
        "undo",
        lambda: click(browser, "undo"),
        lambda: "in the space" in text_of(browser, "properties"),
    )
    columns = shown.candidate_columns(shown.shown_candidates(session.state))
    low, high = ((min(columns[n]), max(columns[n])) for n in ("px", "py"))
    edge = [0.03 * (most - least) for least, most in (low, high)]  # a point is not cut off
    corners = [(low[i] + s * edge[0], high[i] + s * edge[1]) for i, s in ((0, -1), (1, 1))]
    timed(
        "a brush",
        lambda: brush(browser, "projection", *corners),
        lambda: f"<b>union of {len(columns['px'])}</b>" in text_of(browser, "common"),
    )
    picture(browser, "thousand")
    frames = browser.execute_async_script(FRAMES)
    print(f"frames while it is hovered: longest {max(frames):.0f} ms")
    # D: training on makes new losses, and what was evaluated before grey.
    click(browser, "train on")
    wait_for(lambda: "trained on" in text_of(browser, "status"))
    assert session.state.losses == (2, 1, 0.5, 0.25)
    assert (len(session.state.evaluated), len(session.state.before)) == (0, 1000)
    shown_losses = "return Bokeh.documents[0].get_model_by_name('losses').data.loss.length"
    wait_for(lambda: browser.execute_script(shown_losses) == 4)
    worker.evaluations = 10
    wait_for(lambda: len(session.state.evaluated) == 10)
    wait_for(lambda: "10 of 10 candidates" in text_of(browser, "status"))
    picture(browser, "trained")
