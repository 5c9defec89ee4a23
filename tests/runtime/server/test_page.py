"""The page at `/` in a real Chromium: chat, stop, settings, the live view; who can use it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paddock.runtime.server.page import PAGE
from tests.runtime.server.browser import chromium
from tests.runtime.server.serving import Serving

ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"


@pytest.fixture(scope="module")
def desktop(server: Serving) -> Iterator[Any]:
    with chromium(1280, 820) as driver:
        yield driver


@pytest.fixture
def page(desktop: Any, server: Serving) -> Any:
    desktop.get(server.url)
    wait(lambda: text(desktop, "#model") == "demo")
    return desktop


def wait(condition: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def text(driver: Any, selector: str) -> str:
    return str(
        driver.execute_script(
            "return document.querySelector(arguments[0])?.textContent ?? ''", selector
        )
    )


def ask(driver: Any, question: str) -> None:
    find(driver, "#prompt").send_keys(question)
    find(driver, "#prompt").send_keys(ENTER)


def finished(driver: Any, answers: int) -> Callable[[], bool]:
    script = "return document.querySelectorAll('.assistant:not(.live)').length === arguments[0]"
    return lambda: bool(driver.execute_script(script, answers))


def set_value(driver: Any, selector: str, value: str) -> None:
    driver.execute_script(
        "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        selector,
        value,
    )


def test_a_conversation(page: Any, server: Serving) -> None:
    expected = server.ask(
        "/v1/chat/completions",
        {"model": "demo", "messages": [{"role": "user", "content": "What does ls do?"}]},
    )[2]["choices"][0]["message"]["content"]
    ask(page, "What does ls do?")
    wait(finished(page, 1))
    assert text(page, ".assistant .body").strip() == expected.strip()
    assert text(page, ".user .body") == "What does ls do?"
    told = text(page, ".rate-told")
    assert re.fullmatch(r"\d+ tokens · \d+ tokens/s · first after \d+ ms.*", told), told
    assert text(page, "#spoken") == "The model has finished."
    ask(page, "And what does cd do?")
    wait(finished(page, 2))
    assert (
        page.execute_script("return turns.map((turn) => turn.role)")
        == [
            "user",
            "assistant",
        ]
        * 2
    )
    find(page, "#new").click()
    assert page.execute_script("return turns.length") == 0
    assert "Talk with demo" in text(page, ".welcome h2")
    assert page.get_log("browser") == []


def test_stopping_by_button_and_by_key(page: Any, server: Serving) -> None:
    for by_key in (False, True):
        page.execute_script(  # an answer that does not end soon
            "settings = () => ({ max_tokens: 950, ignore_eos: true })"
        )
        find(page, "#new").click()
        ask(page, "Tell me everything about files.")
        wait(lambda: len(text(page, ".live .body")) > 20)
        assert find(page, "#stop").is_displayed()
        assert not find(page, "#send").is_displayed()
        if by_key:
            find(page, "body").send_keys(ESCAPE)
        else:
            find(page, "#stop").click()
        wait(finished(page, 1))
        assert "stopped" in text(page, ".rate-told")
        server.wait_until(running=0, cache_use=0.0)
        assert find(page, "#send").is_displayed()
        assert not find(page, "#stop").is_displayed()


def test_settings_are_sent_once_they_are_touched(page: Any) -> None:
    assert page.execute_script("return settings()") == {}
    set_value(page, "#temperature", "1.5")
    set_value(page, "#top_k", "7")
    set_value(page, "#max_tokens", "5")
    set_value(page, "#stop-at", "END")
    assert page.execute_script("return settings()") == {
        "temperature": 1.5,
        "top_k": 7,
        "max_tokens": 5,
        "stop": ["END"],
    }
    assert text(page, "#temperature-shown") == "1.5"
    ask(page, "Hello")
    wait(finished(page, 1))
    assert text(page, ".rate-told").startswith("5 tokens")
    assert "cut off" in text(page, ".rate-told")
    find(page, "#reset").click()
    assert page.execute_script("return settings()") == {}


def test_errors_are_shown_in_words(page: Any) -> None:
    set_value(page, "#max_tokens", "0")
    ask(page, "Hello")
    wait(finished(page, 1))
    assert "max_tokens" in text(page, ".problem")
    assert find(page, ".problem").get_attribute("role") == "alert"
    page.get_log("browser")  # has the 400 itself


def test_the_live_view_shows_what_the_server_does(page: Any, server: Serving) -> None:
    import threading

    body = {"model": "demo", "prompt": "A", "max_tokens": 900, "ignore_eos": True, "n": 4}
    busy = threading.Thread(target=server.ask, args=("/v1/completions", body))
    busy.start()
    wait(lambda: text(page, "#running") == "4")
    wait(lambda: float(text(page, "#rate").rstrip("k") or 0) > 0)
    assert text(page, "#max-running") == "of 8"
    assert float(text(page, "#cache")) > 0
    assert find(page, "#spark .line").get_attribute("d").startswith("M")
    busy.join()
    wait(lambda: text(page, "#running") == "0")


def test_what_a_model_writes_is_text(page: Any) -> None:
    """Markdown becomes elements; HTML and links never do."""
    written = (
        "# Title\\n\\nSome `code` and **bold** <img src=x onerror=\"document.title='owned'\">\\n\\n"
        "- one\\n- two\\n\\n```sh\\nls <b>-l</b>\\n```\\n[x](javascript:alert(1))"
    )
    found = page.execute_script(
        "const box = document.createElement('div'); document.body.append(box);"
        f"render(box, `{written.replace('`', chr(92) + '`')}`);"
        "return [[...box.querySelectorAll('*')].map((e) => e.tagName), box.textContent]"
    )
    assert set(found[0]) == {"H3", "P", "CODE", "STRONG", "UL", "LI", "PRE"}
    assert "<img src=x" in found[1]
    assert page.title == "demo · Paddock"


def test_it_uses_no_network_but_the_servers(page: Any, server: Serving) -> None:
    ask(page, "Hello")
    wait(finished(page, 1))
    asked = page.execute_script(
        "return performance.getEntriesByType('resource').map((e) => e.name)"
    )
    assert asked
    assert all(name.startswith((server.url, "data:")) for name in asked)
    blocked = page.execute_async_script(
        "const done = arguments[0];"
        "fetch('https://example.org/').then(() => done('reached'), () => done('blocked'))"
    )
    assert blocked == "blocked"
    page.get_log("browser")
    html = PAGE.read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    _, headers, _ = server.ask("/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_control_has_a_name(page: Any) -> None:
    """As a screen reader gets it: Chromium's accessibility tree."""
    ask(page, "Hello")
    wait(finished(page, 1))
    page.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored")
        and node.get("role", {}).get("value")
        in ("button", "textbox", "slider", "spinbutton", "link", "log", "complementary", "img")
    ]
    names = [name for _, name in controls]
    assert all(names), controls
    assert {"Message", "Conversation", "Copy", "Top k"} <= set(names), names
    assert any(name.startswith("Temperature") for name in names), names
    assert {role for role, _ in controls} >= {"button", "textbox", "slider", "spinbutton", "log"}


def test_the_keyboard_reaches_everything(page: Any) -> None:
    reached = set()
    page.execute_script("document.activeElement.blur()")
    for _ in range(40):
        page.switch_to.active_element.send_keys(TAB)
        focused = page.execute_script(
            "const e = document.activeElement;"
            "if (e === document.body) return ['', true];"
            "const shown = getComputedStyle(e).outlineStyle !== 'none' || e.id === 'prompt';"
            "return [e.id || e.className || e.textContent, shown]"
        )
        assert focused[1], f"{focused[0]} does not show that it is focused"
        reached.add(focused[0])
    assert {"skip", "new", "theme", "log", "prompt", "temperature", "top_k", "reset"} <= reached


CONTRAST = """
const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const behind = (e) => { for (; e; e = e.parentElement) {
  const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c;
} return [255, 255, 255]; };
const worst = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest('svg, script, style') || e.disabled) continue;
  const [a, b] = [parse(getComputedStyle(e).color), behind(e)].map((c) => luminance(c.slice(0, 3)));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) worst.push(`${e.tagName}.${e.className} ${e.textContent}: ${ratio}`);
}
return worst"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(server: Serving, dark: bool, tmp_path: Path) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for all text."""
    with chromium(1280, 820, dark=dark) as driver:
        driver.get(server.url)
        wait(lambda: text(driver, "#model") == "demo")
        assert driver.execute_script(CONTRAST) == []
        ask(driver, "Hello")
        wait(finished(driver, 1))
        assert driver.execute_script(CONTRAST) == []
        theme = "return document.documentElement.dataset.theme"
        assert driver.execute_script(theme) == ("dark" if dark else "light")
        find(driver, "#theme").click()
        assert driver.execute_script(theme) == ("light" if dark else "dark")
        assert driver.execute_script(CONTRAST) == []
        driver.save_screenshot(str(tmp_path / "page.png"))
        assert (tmp_path / "page.png").stat().st_size > 10_000


def test_it_works_on_a_phone(server: Serving) -> None:
    with chromium(390, 844) as driver:
        driver.get(server.url)
        wait(lambda: text(driver, "#model") == "demo")
        ask(driver, "What does ls do?")
        wait(finished(driver, 1))
        fits = "return document.documentElement.scrollWidth <= innerWidth"
        assert driver.execute_script(fits)
        panel = find(driver, "#panel")
        assert not panel.is_displayed()
        find(driver, "#open-panel").click()
        wait(panel.is_displayed)
        assert driver.execute_script(fits)
        find(driver, "body").send_keys(ESCAPE)
        wait(lambda: not panel.is_displayed())
        sizes = driver.execute_script(
            "return ['send', 'new', 'theme', 'open-panel'].map((id) => {"
            "const box = document.getElementById(id).getBoundingClientRect();"
            "return Math.min(box.width, box.height) })"
        )
        assert min(sizes) >= 32, sizes
        ask(driver, "What does cat do? " * 20)
        wait(finished(driver, 2))
        # The narrowest page that WCAG 2.2 asks for (1.4.10), and lower than what was said.
        small = {"width": 320, "height": 400, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", small)
        size = "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight]"
        wait(lambda: driver.execute_script(size) == [320, 400], 10)
        assert text(driver, "#model") == "demo"
        assert find(driver, "#model").size["width"] > 10


def test_a_browser_gives_the_key_as_a_password(
    environment: dict[str, str], server_home: Path
) -> None:
    key = "a-key-for-the-page"
    with (
        Serving(environment | {"PADDOCK_API_KEY": key}, server_home, "demo") as locked,
        chromium(1000, 700) as driver,
    ):
        driver.get(locked.url.replace("http://", f"http://me:{key}@"))
        # The page's own requests are made without the name in their address, as a person's are.
        wait(lambda: text(driver, "#model") == "demo")
        ask(driver, "Hello")
        wait(finished(driver, 1))
        assert text(driver, ".assistant .body").strip()


def test_it_can_be_left_out(environment: dict[str, str], server_home: Path) -> None:
    with Serving(environment, server_home, "demo", "server.page=false") as bare:
        assert bare.ask("/")[0] == 404
        assert bare.ask("/v1/models")[0] == 200
