"""The page of `regionclip serve` in a real browser, with the keyboard alone and on a phone.

The environment variable REGIONCLIP_SCREENSHOTS names a folder that keeps the screenshots.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from regionclip_jax.reporting.drawing import class_colour
from served import served

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.command,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="needs the programs chromium and chromedriver (Debian: chromium-driver)",
    ),
]

WORDS = ("cat", "remote control", "dog")
DESKTOP, PHONE = (1280, 800), (390, 844)


@pytest.fixture(scope="module")
def url(nano_directory) -> Iterator[str]:
    with served(nano_directory) as (address, _):
        yield address


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """Image of coloured blocks."""
    path = tmp_path_factory.mktemp("photos") / "blocks.png"
    blocks = np.random.default_rng(0).integers(60, 256, (4, 6, 3), np.uint8)
    Image.fromarray(blocks).resize((480, 320), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("REGIONCLIP_SCREENSHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def browser(size: tuple[int, int], url: str, *, phone: bool = False) -> Iterator[webdriver.Chrome]:
    """Open the page in a headless Chromium that may use the clipboard."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    if os.geteuid() == 0:  # Chromium refuses its sandbox to root, as containers have it
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if phone:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_page_load_timeout(60)
        if not phone:
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        permissions = {"permissions": ["clipboardReadWrite"], "origin": url}
        driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
        driver.get(url)
        wait(driver, lambda: "nano" in driver.find_element(By.ID, "about").text)
        yield driver
    finally:
        driver.quit()


def wait(driver: webdriver.Chrome, condition) -> None:
    WebDriverWait(driver, 120).until(lambda _: condition())


def press(driver: webdriver.Chrome, *keys: str) -> None:
    """Press keys at the element that has the focus."""
    driver.switch_to.active_element.send_keys(*keys)


def focused(driver: webdriver.Chrome) -> str:
    return driver.switch_to.active_element.get_attribute("id") or ""


def tab_to(driver: webdriver.Chrome, identifier: str) -> None:
    for _ in range(40):
        if focused(driver) == identifier:
            return
        press(driver, Keys.TAB)
    raise AssertionError(f"Tab does not reach {identifier}")


def rows(driver: webdriver.Chrome) -> list[list[str]]:
    """Return name and score of the rows that are shown."""
    code = """
        const rows = document.querySelectorAll("#list li:not([hidden]) button");
        return [...rows].map((row) => row.innerText.split("\\n"));
    """
    return driver.execute_script(code)


def find(driver: webdriver.Chrome, photo: Path) -> None:
    """Choose an image, type words and press Enter."""
    # The system's dialogue of files is outside of the page; this gives its result.
    driver.find_element(By.ID, "file").send_keys(str(photo))
    wait(driver, lambda: focused(driver) == "words")
    press(driver, ", ".join(WORDS), Keys.ENTER)
    results = driver.find_element(By.ID, "results")
    wait(driver, results.is_displayed)


def pixel(driver: webdriver.Chrome, x: float, y: float) -> tuple[int, ...]:
    """Return the colour of the canvas at a point, in shares of the image."""
    code = """
        const canvas = document.getElementById("boxes");
        const [x, y] = [arguments[0] * canvas.width, arguments[1] * canvas.height];
        return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
    """
    return tuple(driver.execute_script(code, x, y))


def addresses(driver: webdriver.Chrome) -> set[str]:
    """Return the addresses that the page asked for."""
    messages = [json.loads(one["message"])["message"] for one in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {one["request"]["url"] for one in sent}


def require_fitting(driver: webdriver.Chrome) -> None:
    """Check that nothing is wider than the window, and that controls are large enough to tap."""
    code = "return [document.documentElement.scrollWidth, innerWidth]"
    needed, width = driver.execute_script(code)
    assert needed <= width
    for element in driver.find_elements(By.CSS_SELECTOR, "button, .button, input[type=range]"):
        if element.is_displayed():
            assert element.size["height"] >= 32, element.get_attribute("outerHTML")


def test_an_image_is_searched_with_the_keyboard_alone(url, photo, screenshots):
    with browser(DESKTOP, url) as driver:
        driver.save_screenshot(str(screenshots / "desktop_empty.png"))
        press(driver, Keys.TAB)
        assert focused(driver) == "file"
        find(driver, photo)
        files = {"image": (photo.name, photo.read_bytes())}
        words = {"words": ", ".join(WORDS)}
        answer = httpx2.post(f"{url}/detect", files=files, data=words, timeout=120).json()
        dataset = answer["dataset"]
        best = dataset["annotations"][0]
        driver.save_screenshot(str(screenshots / "desktop_found.png"))

        # The lowest threshold shows all detections.
        requests = len(driver.execute_script("return performance.getEntriesByType('resource')"))
        tab_to(driver, "threshold")
        press(driver, Keys.HOME)
        names = {category["id"]: category["name"] for category in dataset["categories"]}
        expected = [
            [names[annotation["category_id"]], label]
            for annotation, label in zip(dataset["annotations"], answer["labels"], strict=True)
        ]
        assert len(expected) > 3 and rows(driver) == expected
        label = driver.find_element(By.ID, "boxes").get_attribute("aria-label")
        assert label.startswith(f"Boxes: {expected[0][0]} {expected[0][1]}")

        # A threshold of the keyboard hides some of them.
        scores = np.array([annotation["score"] for annotation in dataset["annotations"]])
        slider = driver.find_element(By.ID, "threshold")
        while len(rows(driver)) == len(scores):
            press(driver, Keys.ARROW_RIGHT)
            assert float(slider.get_attribute("value")) < scores.max()
        threshold = float(slider.get_attribute("value"))
        assert len(rows(driver)) == (scores >= threshold).sum() < len(scores)
        shown = f"{threshold:.0%}, {len(rows(driver))} of {len(scores)}"
        assert slider.get_attribute("aria-valuetext") == shown

        # The focus emphasizes a box in the colour of its class, and shows the score.
        press(driver, Keys.TAB)
        tip = driver.find_element(By.ID, "tip")
        assert tip.is_displayed() and f"score {best['score']:.3f}" in tip.text
        x, y, width, height = best["bbox"]
        colour = class_colour(best["category_id"] - 1)
        inside = ((x + width / 2) / 480, (y + height) / 320 - 0.008)
        assert pixel(driver, *inside) == (*colour, 255)
        driver.save_screenshot(str(screenshots / "desktop_focus.png"))
        press(driver, Keys.ARROW_DOWN)
        assert driver.switch_to.active_element.text.split("\n") == expected[1]
        press(driver, Keys.ESCAPE)
        assert not tip.is_displayed()

        tab_to(driver, "copy")
        press(driver, Keys.ENTER)
        copied = driver.find_element(By.ID, "copy")
        wait(driver, lambda: copied.text == "Copied")
        content = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        kept = [one for one in dataset["annotations"] if one["score"] >= threshold]
        assert json.loads(content) == {**dataset, "annotations": kept}
        assert "Copied" in driver.find_element(By.ID, "status").text
        now = len(driver.execute_script("return performance.getEntriesByType('resource')"))
        assert now == requests  # no request since the detection

        assert all(one.startswith((url, "blob:")) for one in addresses(driver))
        assert driver.get_log("browser") == []


def test_the_page_fits_a_phone_and_a_tap_shows_a_score(url, photo, screenshots):
    with browser(PHONE, url, phone=True) as driver:
        driver.save_screenshot(str(screenshots / "phone_empty.png"))
        require_fitting(driver)
        find(driver, photo)
        driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        slider = driver.find_element(By.ID, "threshold")
        slider.send_keys(Keys.HOME)
        driver.execute_script("scrollTo(0, 0)")
        driver.save_screenshot(str(screenshots / "phone_found.png"))
        require_fitting(driver)
        tip = driver.find_element(By.ID, "tip")
        assert not tip.is_displayed()
        driver.find_element(By.ID, "boxes").click()
        assert tip.is_displayed() and "score 0." in tip.text
        assert len(driver.find_elements(By.CSS_SELECTOR, "#list .active")) == 1
        assert driver.get_log("browser") == []


def test_errors_are_announced_and_the_page_goes_on(url, photo, tmp_path, screenshots):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(photo.read_bytes()[:20])
    with browser(DESKTOP, url) as driver:
        error = driver.find_element(By.ID, "error")
        assert error.get_attribute("role") == "alert" and not error.is_displayed()
        driver.find_element(By.ID, "find").click()
        assert "Choose an image" in error.text and focused(driver) == "file"
        driver.find_element(By.ID, "file").send_keys(str(photo))
        driver.find_element(By.ID, "find").click()
        wait(driver, lambda: "Type what to look for" in error.text)
        assert focused(driver) == "words"
        press(driver, "cat, cat", Keys.ENTER)
        wait(driver, lambda: "'cat' more than once" in error.text)
        driver.save_screenshot(str(screenshots / "desktop_error.png"))
        assert not driver.find_element(By.ID, "results").is_displayed()
        driver.find_element(By.ID, "words").clear()
        driver.find_element(By.ID, "file").send_keys(str(damaged))
        wait(driver, lambda: "cannot show it" in driver.find_element(By.ID, "name").text)
        driver.find_element(By.ID, "words").send_keys("cat", Keys.ENTER)
        wait(driver, lambda: "cannot be decoded" in error.text)
        driver.find_element(By.ID, "words").clear()
        find(driver, photo)
        assert not error.is_displayed()
        # The browser itself notes the two refused requests, and nothing else.
        notes = [entry["message"] for entry in driver.get_log("browser")]
        assert len(notes) == 2 and all("status of 422" in note for note in notes)
