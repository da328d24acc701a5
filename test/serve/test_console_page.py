"""The console in a real Chromium: what a person sees, stop, keys and pad, a replay, accessibility."""

import contextlib
import socket
import threading
import time
from urllib.parse import quote

import pytest

from test.serve.console_rig import BROWSER, VIEWER, SlowRobot, rig, wait_for
from vlm_spec_decode.core.errors import RobotError
from vlm_spec_decode.core.token_fates import TokenPiece
from vlm_spec_decode.serve.access import AccessKeys, make_key

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 780}
PIECES = (
    TokenPiece("i see ", "accepted"),
    TokenPiece("a red ball . ", "corrected"),
    TokenPiece("forward", "drafted"),
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def served():
    with rig(["ahead. forward(0.3) "], ["there. done()"]) as made:
        yield made


def opened(browser, link, size=DESKTOP, scheme="light", touch=False):
    """Return a connected page, which fails the test if it complains about itself."""
    context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=touch)
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.faults = []
    page.on("console", lambda told: told.type in {"error", "warning"} and page.faults.append(told.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(link)
    page.wait_for_selector("#chip-page.good")
    return page


def test_a_person_commands_a_mission_sees_it_and_plays_it_again(browser, served):
    page, other = opened(browser, served.link()), opened(browser, served.link(VIEWER))
    assert "token" not in page.url
    page.reload()
    page.wait_for_selector("#chip-page.good")  # the tab keeps its token
    page.wait_for_selector("#video-note", state="hidden")
    page.fill("#instruction", "go to the red ball")
    page.press("#instruction", "Enter")
    page.wait_for_selector("#decision:not([hidden])")
    assert page.inner_text("#plan") == "forward(0.3)"
    assert "at x 0.0 m" in page.get_attribute("#map", "aria-label")
    assert served.speed_mps == 0
    page.click("#approve")
    wait_for(lambda: served.speed_mps > 0.05)
    page.click("#approve")  # the second answer's plan
    page.wait_for_selector("#missions td:text('done')")
    for each in (page, other):
        assert "done" in each.inner_text("#status-line")
        assert "there. done()" in each.inner_text("#tokens")
        assert "go to the red ball" in each.inner_text("#log")
    assert other.is_disabled("#approve")
    assert other.is_disabled("#instruct button[type=submit]")
    page.click("#missions button")
    page.select_option("#replay-speed", "5")
    page.wait_for_selector("#replay-play:text('Play')")
    assert "there. done()" in page.inner_text("#tokens")
    page.click("#replay-end")
    assert page.is_hidden("#replay-bar")
    page.press("#instruction", "ArrowUp")
    assert page.input_value("#instruction") == "go to the red ball"
    assert page.faults == other.faults == []


ASKS = ["red chair , blue chair . do you mean the red or the blue chair ? ask()"]


@pytest.mark.parametrize("way", ["button", "text"])
def test_a_person_replies_to_what_the_robot_asks(browser, way):
    with rig(ASKS, ["ahead . forward(0.2) ", "done()"]) as served:
        page, viewer = opened(browser, served.link(), PHONE), opened(browser, served.link(VIEWER))
        page.uncheck("#approve-first")
        page.fill("#instruction", "go to the chair")
        page.press("#instruction", "Enter")
        for each in (page, viewer):
            each.wait_for_selector("#asked:not([hidden])")
            assert each.inner_text("#question") == "The robot asks: do you mean the red or the blue chair ?"
            assert each.locator("#choices button").all_inner_texts() == ["the red", "the blue chair"]
        assert all(each.is_disabled() for each in viewer.locator("#asked button, #asked input").all())
        page.fill("#reply", " ")
        page.press("#reply", "Enter")  # no word: nothing is sent
        assert page.is_visible("#asked")
        if way == "button":
            page.click("#choices button >> nth=1")
        else:
            page.fill("#reply", "the blue one please")
            page.press("#reply", "Enter")
        page.wait_for_selector("#missions td:text('done')")
        word = {"button": "the blue chair", "text": "the blue one please"}[way]
        assert served.engine.seen[1].instruction == f"go to the chair . {word}"
        for each in (page, viewer):
            assert each.is_hidden("#asked")
            assert f"reply '{word}'" in each.inner_text("#log")
        assert page.faults == viewer.faults == []


def test_every_token_is_told_by_colour_line_and_word(browser, served):
    page = opened(browser, served.link())
    served.edge.state.on_tokens(1, PIECES)
    page.wait_for_selector("#tokens .drafted")
    styles = set()
    for piece in PIECES:
        span = page.locator(f"#tokens .{piece.fate}")
        assert span.text_content() == piece.text
        assert span.get_attribute("title") == piece.fate
        look = "one => [getComputedStyle(one).textDecorationStyle, getComputedStyle(one).color].join()"
        styles.add(span.evaluate(look))
    assert len({style.partition(",")[0] for style in styles}) == len(PIECES)


def test_space_and_escape_stop_and_a_text_field_keeps_its_spaces(browser, served):
    page = opened(browser, served.link())
    page.fill("#instruction", "go")
    page.press("#instruction", "Space")
    assert page.input_value("#instruction") == "go "
    assert not served.robot.is_stopped
    page.press("#instruction", "Escape")
    wait_for(lambda: served.robot.is_stopped)
    page.wait_for_selector("#stop.engaged")
    assert page.inner_text("#stop") == "STOPPED"
    page.click("#release")
    wait_for(lambda: not served.robot.is_stopped)
    page.wait_for_selector("#release", state="hidden")
    # With the focus where a click has left it, or a keyboard has put it, the space bar stops all the same.
    page.check("#queue-up")
    page.click("#zoom-in")
    page.keyboard.press("Space")
    wait_for(lambda: served.robot.is_stopped)
    assert page.is_checked("#queue-up")
    served.robot.release()
    page.focus("#zoom-in")
    page.keyboard.press("Space")
    wait_for(lambda: served.robot.is_stopped)
    served.robot.release()
    page.click("#stop")
    wait_for(lambda: served.robot.is_stopped)


@pytest.mark.parametrize("way", ["pointer", "space", "enter", "no web socket", "no request"])
def test_one_button_stops_all_robots(browser, way):
    second = SlowRobot("second")
    with rig(["done()"], others=(second,)) as served:
        page = opened(browser, served.link(VIEWER), PHONE)
        button = page.get_by_role("button", name="STOP ALL ROBOTS")
        assert button.bounding_box()["height"] >= 44
        if way == "no web socket":
            page.evaluate("WebSocket.prototype.send = () => {}")
        elif way == "no request":
            page.route("**/api/stop*", lambda route: route.abort())
        if way in {"space", "enter"}:
            button.focus()
            page.keyboard.press(way.title())
        else:
            button.click()
        wait_for(lambda: served.robot.is_stopped and second.stops, 3.0)
        page.wait_for_selector("#banner:text('All robots were stopped')")
        assert "second: stopped" in page.inner_text("#banner")
        time.sleep(0.3)  # so long a request of its own may still be on its way
        stops = second.stops
        page.keyboard.press("Escape")  # the other stops are for the robot that is shown
        page.focus("#zoom-in")
        page.keyboard.press("Space")
        page.click("#stop")
        page.wait_for_selector("#stop:text('STOPPED')")
        assert second.stops == stops
        if way == "pointer":
            served.robot.release()
            page.wait_for_selector("#banner", state="hidden")
        assert page.faults == [] or way == "no request"


def test_a_stop_that_has_not_reached_every_robot_is_told_and_one_robot_has_no_button_for_all(browser, served):
    page = opened(browser, served.link(), PHONE)
    assert page.is_hidden("#stop-all")
    second = SlowRobot("second")
    second.fault = RobotError("no locomotion_node answers")
    with rig(["done()"], others=(second,)) as both:
        page = opened(browser, both.link(), PHONE)
        page.click("#stop-all")
        page.wait_for_selector("#banner:text('not have reached every robot: fake: stands')")
        assert "second: no locomotion_node answers" in page.inner_text("#banner")
        page.wait_for_selector("#stop.engaged")  # that this one stands takes nothing back
        assert "second: no locomotion_node answers" in page.inner_text("#banner")
        second.fault = None
        page.click("#stop-all")
        page.wait_for_selector("#banner:text('All robots were stopped')")
        assert "every robot" not in page.inner_text("#banner")
        page.select_option("#robots", "second")
        page.wait_for_selector("h1:text('second')")
        assert page.is_visible("#stop-all")


def test_the_stop_works_without_the_web_socket(browser, served):
    page = opened(browser, served.link())
    page.evaluate("WebSocket.prototype.send = () => {}")
    page.keyboard.press("Space")
    wait_for(lambda: served.robot.is_stopped, 3.0)


def test_hold_to_drive_by_pointer_and_keys_and_a_page_that_dies_lets_go(browser, served):
    page = opened(browser, served.link())
    box = page.locator("#pad button", has_text="ahead").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    wait_for(lambda: served.speed_mps > 0.1)
    page.mouse.up()
    wait_for(lambda: served.speed_mps < 0.01 and served.robot.source == "none", 2.0)
    page.keyboard.down("w")
    time.sleep(0.2)
    assert served.robot.source == "none"  # keys drive only when the box is ticked
    page.keyboard.up("w")
    page.check("#key-drive")
    page.keyboard.down("w")
    wait_for(lambda: served.speed_mps > 0.1)
    served.stops_s.clear()
    began_s = time.monotonic()
    page.close()
    wait_for(lambda: served.stops_s, 2.0)
    assert served.stops_s[0] - began_s < 0.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_and_the_stop_is_on_screen(browser, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    with rig(["ahead. forward(0.3) "], ["there. done()"], others=(SlowRobot("second"),)) as served:
        look_through(axe, browser, served, size, scheme)


def look_through(axe, browser, served, size, scheme):
    """Bring a page to each of its views, and ask axe about it; several robots show all that there is."""
    page = opened(browser, served.link(), size, scheme)
    served.edge.state.on_tokens(1, PIECES)
    page.wait_for_selector("#tokens .drafted")
    views = {"live": lambda: None}

    def propose():
        page.fill("#instruction", "go to the red ball")
        page.press("#instruction", "Enter")
        page.wait_for_selector("#decision:not([hidden])")

    def end():
        page.keyboard.press("Escape")
        page.wait_for_selector("#stop.engaged")
        page.wait_for_selector("#release:not([hidden])")

    def replay():
        page.click("#missions button")
        page.wait_for_selector("#replay-bar:not([hidden])")

    def lose():
        page.evaluate("sessionStorage.clear()")
        page.goto(served.server.url)
        page.reload()
        page.wait_for_selector("#token-form:not([hidden])")

    views |= {"a plan waits": propose, "stopped": end, "replay": replay, "no token": lose}
    found = {}
    for name, reach in views.items():
        reach()
        stop = page.locator("#stop").bounding_box()
        assert 0 <= stop["y"] <= stop["y"] + stop["height"] <= size["height"], name
        assert stop["height"] >= 44
        assert page.is_visible("#stop-all") == (name != "no token"), name
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name}: {wide} px beyond the screen"
        violations = axe.run(page).response["violations"]
        found |= {f"{name}: {each['id']}": each["nodes"][0]["html"] for each in violations}
    assert found == {}


class Link:
    """A proxy in front of a console. It can be dead without closing anything, as a radio link is."""

    def __init__(self, port):
        self.is_dead, self.target, self.kept = False, port, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.is_dead:
                    self.kept.append(near)  # open, and never answered
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self.pump, args=(one, other), daemon=True).start()

    def pump(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if not self.is_dead:
                    other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_a_dead_link_is_told_and_a_live_one_is_found_again(browser, served):
    link = Link(served.port)
    page = opened(browser, served.link().replace(str(served.port), str(link.port)))
    page.wait_for_selector("#video-note", state="hidden")
    link.is_dead = True
    began_s = time.monotonic()
    page.wait_for_selector("#chip-page.bad")
    assert time.monotonic() - began_s < 5.0
    assert "Offline" in page.inner_text("#banner")
    assert page.inner_text("#video-note") == "Not connected: an old picture"
    assert page.is_disabled("#instruct button[type=submit]")
    assert page.is_enabled("#stop")
    page.keyboard.press("Space")
    page.wait_for_selector("#stop:text('STOPPING')")
    page.wait_for_selector("#banner:text('may not have reached')")
    assert not served.robot.is_stopped
    link.is_dead = False
    page.wait_for_selector("#chip-page.good")
    page.wait_for_selector("#video-note", state="hidden")
    assert "Offline" not in page.inner_text("#banner")
    page.keyboard.press("Space")
    wait_for(lambda: served.robot.is_stopped)
    page.wait_for_selector("#stop.engaged")
    assert page.inner_text("#banner") == "The emergency stop is engaged: nothing moves the robot."


def test_a_page_that_never_had_a_connection_stops_all_the_same(browser, served):
    context = browser.new_context(viewport=PHONE)
    context.route("**/api/robots", lambda route: route.abort())
    page = context.new_page()
    page.goto(served.link())
    page.wait_for_selector("#chip-page.bad")
    page.click("#stop")
    wait_for(lambda: served.robot.is_stopped, 3.0)
    page.wait_for_selector("#command-note:text('Stopped')")


def test_a_token_as_openssl_writes_it_opens_the_page(browser):
    token = "a+b/c==/0123456789+/=="
    with rig(["done()"], keys=AccessKeys([make_key("odd", token, ("command",))])) as served:
        page = opened(browser, f"{served.server.url}/#token={quote(token, safe='')}")
        page.wait_for_selector("#video-note", state="hidden")
        assert "command" in page.inner_text("#chip-may")
        assert page.faults == []


def test_the_page_and_its_stop_are_drawn_while_its_scripts_are_still_on_their_way(browser, served):
    page = browser.new_context(viewport=PHONE).new_page()
    held = []

    def hold(route):
        held.append(route)

    page.route("**/static/*", hold)
    page.goto(served.link(), wait_until="commit")
    painted = "performance.getEntriesByName('first-contentful-paint').length"
    wait_for(lambda: page.evaluate(painted))
    assert held
    stop = page.locator("#stop")
    box = stop.bounding_box()
    assert box["y"] + box["height"] <= PHONE["height"]
    assert box["height"] >= 44
    red = "one => getComputedStyle(one).backgroundColor"
    assert stop.evaluate(red) == "rgb(179, 38, 30)"
    assert page.inner_text("#chip-page") == "page connecting"
    assert page.is_hidden("#decision")
    page.unroute("**/static/*")  # which also lets those go on that were held
    page.wait_for_selector("#chip-page.good")


SEEN = {
    "a keyboard over the page": ((390, 410, 0, 0), True),
    "a keyboard, and the page moved up": ((390, 410, 0, 60), True),
    "magnified": ((195, 390, 100, 200), True),
    "nothing in the way": ((390, 780, 0, 0), False),
}
"""The visual viewport: width, height, left, top in px of the layout; whether only the button has room."""


def test_the_stop_is_seen_above_a_keyboard_and_in_a_magnified_part(browser, served):
    context = browser.new_context(viewport=PHONE)
    context.add_init_script(
        "window.faked = new EventTarget();"
        "Object.assign(faked, { width: 390, height: 780, offsetLeft: 0, offsetTop: 0 });"
        "Object.defineProperty(window, 'visualViewport', { value: window.faked });"
    )
    page = context.new_page()
    page.goto(served.link())
    page.wait_for_selector("#chip-page.good")
    page.focus("#instruction")
    for what, ((width, height, left, top), is_low) in SEEN.items():
        size = f"{{ width: {width}, height: {height}, offsetLeft: {left}, offsetTop: {top} }}"
        page.evaluate(f"Object.assign(faked, {size}); faked.dispatchEvent(new Event('resize'))")
        stop = page.locator("#stop").bounding_box()
        assert left <= stop["x"] <= stop["x"] + stop["width"] <= left + width, what
        assert top <= stop["y"] <= stop["y"] + stop["height"] <= top + height, what
        assert stop["height"] >= 44
        assert page.is_hidden("#stop-help") == is_low, what
        page.click("#stop")
        wait_for(lambda: served.robot.is_stopped)
        served.robot.release()
