"""Looks at the dashboard of a gateway of its own in headless Chromium. Its argument is a folder for screenshots."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

from playwright.sync_api import expect, sync_playwright

SHOTS = pathlib.Path(sys.argv[1])
PATIENCE = 30_000


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Gateway:
    def __init__(self, *flags):
        self.url = f"http://127.0.0.1:{free_port()}"
        admin = f"127.0.0.1:{free_port()}"
        listen = self.url.removeprefix("http://")
        command = ["inferq", "gateway", "--listen", listen, "--admin", admin, "--log", "warn", *flags]
        self.process = subprocess.Popen(command)
        end = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{admin}/readyz")
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, "the gateway is not ready"
                time.sleep(0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def post(self, path, body, kind="application/json"):
        request = urllib.request.Request(self.url + path, data=body, headers={"content-type": kind})
        return json.load(urllib.request.urlopen(request))

    def job(self, **body):
        return self.post("/v1/jobs", json.dumps({"url": "/v1/chat/completions", "body": {"model": "echo", **body}}).encode())



def user(text):
    return [{"role": "user", "content": text}]


def fill(gateway):
    for number in range(400):
        gateway.job(messages=user(f"text {number}"))
    for name in ["<b>first</b>", "second"]:
        gateway.job(messages=user(name), temperature=9)
    line = lambda number: json.dumps(
        {
            "custom_id": f"r-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "echo", "messages": user(f"row {number}")},
        }
    )
    rows = "\n".join(line(number) for number in range(2000))
    part = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    form = part.format("purpose", "", "batch") + part.format("file", '; filename="in.jsonl"', rows) + "--b--\r\n"
    file = gateway.post("/v1/files", form.encode(), "multipart/form-data; boundary=b")
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return gateway.post("/v1/batches", json.dumps(asked).encode())["id"]


def no_sideways(page, name):
    wide = page.evaluate("document.scrollingElement.scrollWidth > window.innerWidth")
    assert not wide, f"{name}: the page scrolls sideways"


def look(browser, gateway, batch):
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
    page.goto(gateway.url)
    expect(page.locator("#link")).to_contain_text("live", timeout=PATIENCE)
    expect(page.locator("#queues tbody tr")).to_have_count(6)
    expect(page.locator("#workers tbody tr")).to_have_count(2)
    expect(page.locator("#workers tbody tr").first).to_contain_text(re.compile(r"cpu\s*\d+\s*\d+\.\d"))
    row = page.locator(f"#batches tr[data-key={batch}]")
    expect(row).to_contain_text("in progress", timeout=PATIENCE)
    expect(row.locator("button")).to_have_count(2)
    expect(page.locator("#dead tbody tr")).to_have_count(2, timeout=PATIENCE)
    page.wait_for_timeout(2500)
    page.screenshot(path=SHOTS / "wide-light.png", full_page=True)
    no_sideways(page, "wide")

    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    phone.goto(gateway.url)
    expect(phone.locator("#link")).to_contain_text("live", timeout=PATIENCE)
    expect(phone.locator("#dead tbody tr")).to_have_count(2, timeout=PATIENCE)
    phone.screenshot(path=SHOTS / "phone-dark.png", full_page=True)
    no_sideways(phone, "phone")
    back = phone.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(20, 23, 26)", back

    # By keyboard alone: to the first letter's buttons, and what one asked.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the queues"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Show":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#letter-body")).to_contain_text("temperature", timeout=PATIENCE)
    page.screenshot(path=SHOTS / "letter.png")
    page.keyboard.press("Escape")
    expect(page.locator("#letter")).not_to_be_visible()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "Replay"
    page.keyboard.press("Enter")
    # It fails again, as a new letter.
    expect(page.locator("#dead tbody button[aria-busy=true]")).to_have_count(0, timeout=PATIENCE)
    expect(page.locator("#dead tbody tr")).to_have_count(2, timeout=PATIENCE)

    with page.expect_download() as download:
        row.locator("button", has_text="output").click()
    first = pathlib.Path(download.value.path()).read_text().splitlines()[0]
    assert json.loads(first)["response"]["status_code"] == 200
    assert not troubles, troubles


def locked(browser):
    made = subprocess.run(["inferq", "keys", "create", "--name", "me", "--operator"], check=True, capture_output=True, text=True)
    with Gateway() as gateway:
        page = browser.new_page(viewport={"width": 800, "height": 600})
        page.goto(gateway.url)
        expect(page.locator("#secret")).to_be_focused(timeout=PATIENCE)
        page.keyboard.type("sk-inferq-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#refused")).to_contain_text("not known", timeout=PATIENCE)
        page.screenshot(path=SHOTS / "locked.png")
        page.locator("#secret").fill(made.stdout.strip())
        page.keyboard.press("Enter")
        expect(page.locator("#link")).to_contain_text("live", timeout=PATIENCE)


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    with Gateway("--keys", "off", "--show-payloads") as gateway:
        look(browser, gateway, fill(gateway))
    locked(browser)
    browser.close()
print(f"ok, screenshots in {SHOTS}")
