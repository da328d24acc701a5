"""The report of 500 answers in a real browser: it renders, says nothing on the console, and stays small."""

import base64
import random
import re
import shutil
import subprocess

import pytest

from test.bags.walks import jpeg, picture
from vlm_spec_decode.bags.report import write_report
from vlm_spec_decode.bags.score import compared, summary

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def rows(count, cells=("autoregressive / wifi / a", "hybrid / wifi / a")):
    rng = random.Random(0)
    for number in range(count):
        cell = cells[number % len(cells)]
        text = "i see a <b>red</b> chair ahead . turn ( 10 ) forward ( 1.0 )"
        numbers = ("drafted", "accepted", "target_passes", "uplink_bytes", "downlink_bytes", "image_bytes")
        yield {key: rng.randrange(1, 9) for key in numbers} | {
            "bag": "walk", "question": 1 + number // len(cells), "at_s": number / 2, "cell": cell,
            "instruction": "go to the 'red' chair", "history": ["turn(20)"], "label": ["forward(1)"],
            "executed": {"forward_m": 0.8, "left_m": 0.0, "turn_deg": -12.0},
            "error": "" if number % 50 else "ActionParseError: </script>", "text": text,
            "token_ids": [1] * 15, "fates": "at" * 7 + "t", "same_actions": number % 7 > 0,
            "target": "t 1", "draft": "d 2", "rule": "coupled", "temperature": 0.0, "seed": 0,
            "same_way": None, "same_tokens": None, "off_m": 0.1, "off_deg": None, "declines": None,
            "first_action_s": 0.5, "total_s": 1.0 + rng.random(), "gpu_s": 0.3,
        }  # fmt: skip


@pytest.fixture
def page(tmp_path):
    found = list(rows(500))
    names = list(dict.fromkeys(row["cell"] for row in found))
    cells = {name: [row for row in found if row["cell"] == name] for name in names}
    first, second = names
    changes = {second: {"total_s": compared(cells[first], cells[second], "total_s")}}
    profiles = {"link": {"name": "wifi", "up_mbps": 40.0}, "profile": {"name": "a", "draft_s": 0.1}}
    document = {
        "schema": "vsd.replay/1",
        "digest": "0",
        "bags": ["walk"],
        "faults": {"walk": {"time going backwards": 2}},
        "deadline_s": 1.5,
        "cells": {name: summary(part, 1.5, 0.001) for name, part in cells.items()},
        "compared_with": first,
        "compared": changes,
        "compared_with_run": {"folder": "out/<monday>", "cells": changes},
        "settings": {"cells": [profiles], "plan": {"every_s": 1.0, "horizon_s": 2.0}},
        "price_per_gpu_s": 0.001,
    }
    frame = base64.b64encode(jpeg(picture(200, 112))).decode()
    thumbs = {f"walk/{number}": frame for number in range(1, 251)}
    write_report(tmp_path / "report.html", document, found, thumbs)
    return tmp_path / "report.html"


def test_the_page_holds_everything_itself_and_is_small(page):
    text = page.read_text()
    assert page.stat().st_size < 5 * 2**20
    assert not re.findall(r'(?:src|href)=["\']?(?!data:)[a-z/]', text.split("<script")[0])
    assert "time going backwards" in text
    assert text.count("<li>target t 1, draft d 2, rule coupled, temperature 0.0, seed 0") == 1
    assert "Compared with out/&lt;monday&gt;" in text
    assert "label: forward(1); the robot then: 0.8 m ahead, 12° turned right" in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_browser_renders_it_and_its_timeline_without_a_word_of_complaint(page, tmp_path):
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    # By itself it would look for Google's hosts, which is nothing of ours.
    options += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    options += ["--disable-sync", "--disable-quic"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]
    shown = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=100)
    assert "CONSOLE" not in shown.stderr
    says = re.search(r'<p class="tokens" id="says">(.*?)</p>', shown.stdout, re.DOTALL).group(1)
    assert says.count("<span") == 15
    assert "&lt;b&gt;red&lt;/b&gt;" in says
    assert re.search(r'<img id="pic"[^>]*src="data:image/jpeg', shown.stdout)
    assert shown.stdout.count("<i style") == 500
