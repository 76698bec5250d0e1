"""The page in headless Chromium: it shows both modes of an image, switches, and plots."""

import shutil

import numpy as np
import pytest

from dual_precision.deploy.server.app import Samples
from dual_precision.deploy.server.engines import PredictorEngine
from dual_precision.deploy.server.service import Service
from dual_precision.deploy.server.settings import BudgetSettings, Limits

webdriver = pytest.importorskip("selenium.webdriver", reason="no Selenium: the extra [pages]")
ENTER = "\ue007"  # of WebDriver
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BROWSER or not DRIVER, reason="no chromium and chromium-driver: the packages of Debian"
    ),
]


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1080,1150")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    own = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    own.implicitly_wait(20)
    yield own
    own.quit()


def test_both_modes_of_a_sample(browser, engine, images, start_server):
    samples = Samples(images, np.arange(3), [f"name {i}" for i in range(10)])
    engine, seconds = engine
    service = Service(BudgetSettings("latency", 1e4), Limits(window=0.1))
    server = start_server(service, (engine, seconds), samples)
    browser.get(server.address)
    browser.find_element("css selector", "#samples button:nth-child(2)").send_keys(ENTER)
    for mode in ("low", "high"):
        card = browser.find_element("css selector", f".mode.{mode}")
        wanted = engine.answer(images[1:2], mode).logits.argmax()
        assert card.get_attribute("data-class") == str(wanted)
        assert "BitOps" in card.text
    assert browser.find_element("id", "truth").text == "it is: name 1"
    browser.find_element("css selector", "input[value=low]").click()
    assert browser.find_element("css selector", ".mode.switch[data-mode=low]")
    assert browser.find_element("css selector", "#plot polyline")
    assert "budget: 10,000 ms, 95th percentile" in browser.find_element("id", "about").text
    assert not [row for row in browser.get_log("browser") if row["level"] == "SEVERE"]


def says(browser, name, text):
    """Waits until an element has the text."""
    where = f"//*[@id='{name}' and contains(., \"{text}\")]"
    return browser.find_element("xpath", where)


def test_a_page_whose_server_still_loads_and_then_goes_away(
    browser, path, engine, images, start_server
):
    service = Service(BudgetSettings("latency", 1e4), Limits(window=0.1))
    server = start_server(service, None, Samples(images, np.arange(3), []))
    browser.get(server.address)
    says(browser, "about", "the network is loading")
    service.put(PredictorEngine(path, ["low"], (4,)), {}, complete=False)
    browser.find_element("css selector", "#samples button").click()
    assert browser.find_element("css selector", ".mode.low")
    says(browser, "error", "'high' is loading")
    says(browser, "about", "the rest of the file is loading")
    service.put(*engine, complete=True)
    assert browser.find_element("css selector", ".mode.high"), "of itself, once it is there"
    assert browser.find_element("id", "error").text == ""
    server.stop()
    says(browser, "about", "the server does not answer")
    browser.find_element("css selector", "#samples button").click()
    says(browser, "error", "the server does not answer")
