"""Chromium, driven by the DevTools protocol over two pipes: JSON with a zero byte after each message."""

import base64
import json
import os
import select
import shutil
import signal
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60  # seconds for one answer, on a machine that others share
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
         "--disable-background-networking", "--disable-extensions", "--disable-component-update",
         "--remote-debugging-pipe")  # fmt: skip


def found():
    """The browser's path, or None; where pipes have other names there is none."""
    if os.name != "posix":
        return None
    given = os.environ.get("CROSSDISTILL_BROWSER")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


def _above(descriptor):
    """The same pipe end under a number that the browser's own two, 3 and 4, cannot meet."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


class Chromium:
    """One browser; use it as a context."""

    def __init__(self, profile):
        self.profile, self.number, self.rest, self.events = profile, 0, b"", []

    def __enter__(self):
        reads, writes = [_above(end) for end in os.pipe()], [_above(end) for end in os.pipe()]
        words = [found(), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        quiet = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, one, other) for one, other in
                   ((quiet, 1), (quiet, 2), (writes[0], 3), (reads[1], 4))]  # fmt: skip
        self.process = os.posix_spawn(words[0], words, os.environ, file_actions=actions, setpgroup=0)
        for end in (quiet, writes[0], reads[1]):
            os.close(end)
        self.into, self.out = writes[1], reads[0]
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
        except (OSError, AssertionError):
            os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.into)
        os.close(self.out)

    def call(self, method, session=None, **parameters):
        """Ask for something; what happens meanwhile is added to `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.into, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def wait(self, method, session):
        """Wait for an event."""
        while not any(e["method"] == method and e.get("sessionId") == session for e in self.events):
            self._next()

    def _next(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.out], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self.out, 1 << 20) if ready else b""
            assert more, "the browser is gone" if ready else f"no answer for {PATIENCE} s"
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path, **how):
        """Open a file in a tab of its own."""
        return Tab(self, path, **how)


class Tab:
    """A page that is open."""

    def __init__(self, browser, path, *, width=1280, height=900):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Network", "Runtime", "Log", "Accessibility"):
            self.call(f"{part}.enable")
        self.resize(width, height)
        self.address = path.resolve().as_uri()
        self.call("Page.navigate", url=self.address)
        browser.wait("Page.loadEventFired", self.session)

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def resize(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip

    def media(self, media="", **features):
        """Show the page as in print (`media="print"`), or with features such as `prefers_color_scheme="dark"`."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=named)

    def js(self, expression):
        """The value of an expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key, text="", *, shift=False):
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39}[key]
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def seen(self, method):
        """The parameters of all events of a kind."""
        mine = (e for e in self.browser.events if e.get("sessionId") == self.session)
        return [event["params"] for event in mine if event["method"] == method]

    def complaints(self):
        """What stands in the console as an error, and exceptions."""
        said = [e["entry"]["text"] for e in self.seen("Log.entryAdded") if e["entry"]["level"] == "error"]
        said += [str(e["args"]) for e in self.seen("Runtime.consoleAPICalled") if e["type"] in ("error", "assert")]
        return said + [e["exceptionDetails"]["text"] for e in self.seen("Runtime.exceptionThrown")]

    def tree(self):
        """The accessibility tree, flat: (role, name, properties)."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""),
             {p["name"]: p["value"].get("value") for p in node.get("properties", ())})
            for node in nodes if not node["ignored"]
        ]  # fmt: skip

    def printed(self):
        """The page as a PDF."""
        made = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(made["data"])

    def picture(self, path, *, whole=True):
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))
