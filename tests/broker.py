"""A real mosquitto for tests, and a consumer that listens to it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "") -> None:
    """Wait for a condition; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Broker:
    """A mosquitto on a loopback port, that may be killed and started again. ``lines``: of its configuration."""

    def __init__(self, folder: Path, *lines: str) -> None:
        if MOSQUITTO is None:
            pytest.skip("no mosquitto here; Debian's package of that name has it")
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(*lines)
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, *lines: str) -> None:
        """Another configuration, for the next start."""
        common = (f"listener {self.port} 127.0.0.1", "user root", "max_queued_messages 0")
        anonymous = () if any(line.startswith("allow_anonymous") for line in lines) else ("allow_anonymous true",)
        (self.folder / "mosquitto.conf").write_text("\n".join([*common, *lines, *anonymous, ""]))

    def start(self) -> Broker:
        """Start it, and wait until it listens."""
        with (self.folder / "log").open("ab") as log:
            command = [str(MOSQUITTO), "-c", str(self.folder / "mosquitto.conf")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

        def listens() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0

        until(listens, what="for mosquitto")
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class Consumer:
    """Listens to topics, in a session that the broker keeps, and looks for a lost broker all the time."""

    def __init__(self, port: int, *topics: str, qos: int = 2, name: str = "consumer") -> None:
        self.messages: list[MQTTMessage] = []
        self.connections = 0
        self._topics, self._qos = topics, qos
        self._client = Client(CallbackAPIVersion.VERSION2, name, clean_session=False)
        self._client.on_connect, self._client.on_subscribe = self._subscribe, self._count
        self._client.on_message = lambda client, data, message: self.messages.append(message)
        self._client.connect_async("127.0.0.1", port)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._client.reconnect()
            except OSError:
                time.sleep(0.02)
                continue
            while self._client.loop(0.05) == 0 and not self._over.is_set():
                pass

    def _subscribe(self, client: Client, *_: object) -> None:
        client.subscribe([(topic, self._qos) for topic in self._topics])

    def _count(self, *_: object) -> None:
        self.connections += 1

    def __enter__(self) -> Consumer:
        self._thread.start()
        until(lambda: self.connections, what="for a subscription")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._client.disconnect()
        del self._client

    def of(self, topic: str) -> list[bytes]:
        """The payloads of a topic, in the order of their coming."""
        return [bytes(message.payload) for message in list(self.messages) if message.topic == topic]

    def events(self, topic: str) -> list[dict[str, Any]]:
        """The same, of ``TOPIC/events``."""
        return [json.loads(payload) for payload in self.of(f"{topic}/events")]


class Wire:
    """A wire to a port, that can be cut: both ends see the connection closed, and may connect anew.

    ``swallow``: the first byte of packets (MQTT: their kind) that get lost on the way, until somebody sets it to None.
    ``open``: whether it takes connections."""

    def __init__(self, port: int, swallow: int | None = None) -> None:
        self._to, self.swallow, self.swallowed, self.open = port, swallow, 0, True
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                if not self.open:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
            except OSError:  # closed for good
                return
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                if data[0] == self.swallow:
                    self.swallowed += 1
                else:
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """What is on its way is lost."""
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """For good."""
        self._server.shutdown(socket.SHUT_RDWR)  # accept ends
        self._server.close()
        self.cut()
