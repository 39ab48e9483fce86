"""The page at `/` in a real browser: a message is typed, and the answer comes piece by piece."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.browser import CHROMIUM, Page, browser
from tests.infer.server.server import Server, served_here
from tests.infer.talkers import LETTERS, SAYS, save_talker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    url = str(tmp_path_factory.mktemp("page") / "store")
    save_talker(url, "talker")
    with served_here(f"{url}#talker", max_tokens=1000) as server:
        yield server


@pytest.fixture
def page(server: Server, tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as page:
        page.tell("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.until("document.title.startsWith('here')")
        yield page


ANSWERS = "[...document.querySelectorAll('.assistant')].map((turn) => turn.textContent)"


def test_a_message_is_answered_as_it_comes_and_the_history_is_sent(server: Server, page: Page) -> None:
    page.value(
        "window.seen = []; new MutationObserver(() => {"
        " const last = [...document.querySelectorAll('.assistant')].pop();"
        " if (last) seen.push(last.textContent.length);"
        " }).observe(document.body, { childList: true, subtree: true });"
        " window.bodies = []; const plain = fetch;"
        " window.fetch = (path, options) => { bodies.push(options.body); return plain(path, options); }; 0"
    )
    page.type_in("<b>hello</b>")
    page.until("!running")
    assert page.value(ANSWERS) == [SAYS]
    assert len(page.value("[...new Set(seen)]")) > 3
    assert page.value("document.querySelector('.user').innerHTML") == "&lt;b&gt;hello&lt;/b&gt;"
    page.value("at('system').value = 'Be kind.'; at('temperature').value = 0")
    page.type_in("letters")
    page.until("running === null")
    assert page.value(ANSWERS) == [SAYS, (LETTERS * 40)[:1000]]
    assert page.value("document.querySelector('.note').textContent") == "The answer reached its limit."
    assert page.value("JSON.parse(bodies[1]).messages.map((one) => one.role + ': ' + one.content)") == [
        "system: Be kind.",
        "user: <b>hello</b>",
        f"assistant: {SAYS}",
        "user: letters",
    ]
    assert page.faults == []


def test_an_answer_is_stopped_and_an_error_shown(server: Server, page: Page) -> None:
    page.type_in("letters")
    page.until(f"{ANSWERS}.join().length > 30")
    page.value("at('send').click()")
    page.until("running === null")
    assert page.value("document.querySelector('.note').textContent") == "Stopped."
    assert server.chat(max_tokens=1).status == 200
    assert server.health()["tokens"] < 3 * 1000
    page.value("at('fresh').click(); at('tokens').value = 2000")
    page.type_in("hello")
    page.until("running === null")
    assert page.value("document.querySelector('.failed').textContent") == (
        "max_tokens cannot be this: found '2000'. Send an integer from 1 to 1000."
    )
    assert page.value(ANSWERS) == [""]


@pytest.mark.parametrize("width", [1280, 420])
def test_it_fits_the_window_and_asks_nobody_else(server: Server, page: Page, width: int) -> None:
    page.tell("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    page.type_in("letters")
    page.until("running === null")
    assert page.value("document.documentElement.scrollWidth") == width
    names = page.value("performance.getEntriesByType('resource').map((one) => one.name)")
    assert {name.split("/")[2] for name in names} == {f"127.0.0.1:{server.port}"}
    assert page.value("fetch('http://example.invalid/').catch(() => 'refused')") == "refused"
    assert "Content Security Policy" in " ".join(page.faults)
