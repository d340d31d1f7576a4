"""Events to an MQTT broker, with what Home Assistant needs to find the camera by itself.

``TOPIC/events`` gets every event as it happens, ``TOPIC/state`` says who is in the picture now (retained), and
``TOPIC/available`` says ``online`` or ``offline`` (retained, and the broker says it for a process that was killed)."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import select
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import click

from fer_edge import __version__
from fer_edge.console import need_extra, printable, say, shortened
from fer_edge.errors import UsageError

from .events import Event, Summary
from .outputs import Setup
from .pipeline import Step
from .sources import Gap

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

F = TypeVar("F", bound=Callable[..., Any])

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0
"""Seconds between two attempts to reach a broker; each pause is twice the one before."""
CONNECT_TIMEOUT, KEEPALIVE = 5.0, 20
"""Seconds for a connection to stand; and of silence after which both sides ask whether the other is there."""
SESSION = 86400
"""Seconds for which a broker that we have left without a word keeps what it knows of us."""
DISCOVERY = "homeassistant"
"""Where Home Assistant looks for devices, unless it is told otherwise."""


@dataclass(frozen=True)
class Address:
    """A broker, and the topic that everything lies below. ``str`` gives what may be printed."""

    host: str
    port: int
    topic: str
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return printable(f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}")


def parse_address(url: str) -> Address:
    """An address of ``mqtt://[user[:password]@]host[:port]/topic``; ``mqtts`` is TLS. What stands before the host and in the
    topic may be percent-encoded. Raises UsageError, in which the address is not repeated: a password may stand in it."""
    if not url.isprintable() or " " in url:
        raise UsageError("the broker's address has a space or a control character in it; write a space as %20")
    try:
        parts = urlsplit(url)
        port = parts.port
        user, password = (None if part is None else _unquoted(part) for part in (parts.username, parts.password))
        topic = _unquoted(parts.path.removeprefix("/"))
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError:  # a port that is none, an open bracket, bytes that are no text, a host's name that is too long
        raise UsageError(f"the broker's address cannot be read; {_FORM}") from None
    if parts.scheme not in ("mqtt", "mqtts") or not host or port == 0:
        raise UsageError(f"this is no broker's address; {_FORM}")
    _check_topic(topic, url)
    return Address(host, port or (8883 if parts.scheme == "mqtts" else 1883), topic, parts.scheme == "mqtts", user, password)


_FORM = "write mqtt://user@host:1883/topic, with mqtts for TLS; user and port may be left out"


def _unquoted(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8")


def _check_topic(topic: str, url: str) -> None:
    """MQTT 5.0, 4.7: no wildcard may stand in a topic that is written to, and ``$`` begins the broker's own."""
    if "+" in topic or "#" in topic or "#" in url:
        raise UsageError("the topic of an MQTT address has a wildcard (+ or #); name one topic, as mqtt://host/home/door")
    if "?" in url:
        raise UsageError("a question mark ends the topic of an MQTT address; write it as %3F")
    if not topic or "" in topic.split("/") or topic.startswith("$"):
        raise UsageError(
            "an MQTT address ends with a topic of one or more names, the first without $, as mqtt://host/home/door"
        )
    if not topic.isprintable() or len(topic.encode()) > 1000:
        raise UsageError("the topic of an MQTT address is longer than 1000 bytes, or has a control character in it")


def object_id(topic: str) -> str:
    """A name of letters, digits and underscores for a topic, and its own: two topics never share one."""
    plain = re.sub(r"[^a-zA-Z0-9]+", "_", topic).strip("_")[:60]
    own = "" if plain == topic else f"_{hashlib.sha256(topic.encode()).hexdigest()[:8]}"
    return f"fer_edge_{plain}{own}"


def discovery(topic: str, model: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """What Home Assistant wants to be told of a device (MQTT integration, "Device discovery payload", since 2024.12): the
    number of faces in the picture, and the expression that most of them show."""
    own = object_id(topic)
    return {
        "device": {
            "identifiers": [own],
            "name": topic,
            "manufacturer": "fer-edge",
            "model": model,
            "sw_version": __version__,
        },
        "origin": {"name": "fer-edge", "sw_version": __version__},
        "components": {
            f"{own}_faces": {
                "platform": "sensor",
                "unique_id": f"{own}_faces",
                "name": "Faces",
                "icon": "mdi:face-recognition",
                "state_class": "measurement",
                "value_template": "{{ value_json.faces }}",
                "json_attributes_topic": f"{topic}/state",
                "json_attributes_template": "{{ {'labels': value_json.labels} | tojson }}",
            },
            f"{own}_expression": {
                "platform": "sensor",
                "unique_id": f"{own}_expression",
                "name": "Expression",
                "icon": "mdi:emoticon-outline",
                "device_class": "enum",
                "options": list(labels),
                "value_template": "{{ value_json.expression }}",
            },
        },
        "state_topic": f"{topic}/state",
        "availability": [{"topic": f"{topic}/available"}],
        "qos": 1,
    }


def state(faces: Mapping[int, Event]) -> dict[str, Any]:
    """Who is in the picture. ``faces``: the last event of each track. ``labels`` counts those whose label is certain, and
    ``expression`` is the commonest of these labels, of equals that of the earlier track; None where there is none."""
    labels = Counter(event.label for event in faces.values() if event.label is not None and event.certain)
    tracks = [{"track": t, "label": e.label, "certain": e.certain, "since": e.since} for t, e in faces.items()]
    expression = labels.most_common(1)[0][0] if labels else None  # a Counter keeps equals in the order of their coming
    return {"faces": len(faces), "expression": expression, "labels": dict(labels), "tracks": tracks}


class Backlog:
    """Events that wait, oldest first, ``limit`` at most. When it is full the oldest ``change`` goes; where there is none,
    the oldest ``appear``; and an ``end`` only when all that wait are ends."""

    def __init__(self, limit: int) -> None:
        self.limit, self.dropped = limit, 0
        self._waiting: dict[str, deque[tuple[int, bytes]]] = {kind: deque() for kind in ("change", "appear", "end")}
        self._count = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, kind: str, payload: bytes) -> None:
        """Put one behind the others. A ``summary`` counts as an end."""
        self._waiting.get(kind, self._waiting["end"]).append((self._count, payload))
        self._count += 1
        if len(self) > self.limit:
            next(waiting for waiting in self._waiting.values() if waiting).popleft()
            self.dropped += 1

    def take(self) -> bytes:
        """The oldest."""
        return min((waiting for waiting in self._waiting.values() if waiting), key=lambda w: w[0]).popleft()[1]


class Publisher:
    """An output of ``watch`` that publishes. A thread of its own reaches the broker, and ``event`` never waits for it.

    Delivery: QoS 2 in a session that the broker keeps, one event at a time: events arrive exactly once and in order, also
    when the connection or the broker dies, as long as the broker keeps its sessions. A broker that was killed and has
    forgotten us cannot say whether it passed on the one event that was on its way: that one is sent again. Each event has an
    ``id`` by which a consumer can tell (its ``run`` and a count), and ``at``, seconds since 1970.

    Such a broker has forgotten its subscribers too, and what it gets before they are back goes nowhere: events wait ``hold``
    seconds after its return. At most ``limit`` events wait (see Backlog); those that had to go are counted in ``dropped``.

    ``retained``: topic -> payload of what is published with each new connection, and stays. ``patience``: seconds that
    ``close`` waits for what is still on its way."""

    name = "mqtt"

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None = None,
        retained: Mapping[str, bytes] | None = None,
        *,
        limit: int = 10_000,
        hold: float = 12.0,  # Home Assistant asks for a lost broker every 10 s
        patience: float = 10.0,
        tell: Callable[[str], None] = say,
    ) -> None:
        need_extra("paho-mqtt", extra="live")
        self.address, self.hold, self.patience, self._tell = address, hold, patience, tell
        self.run = secrets.token_hex(6)
        self.delivered, self.refused = 0, 0
        self._retained, self._backlog, self._count = dict(retained or {}), Backlog(limit), 0
        self._faces: dict[int, Event] = {}
        self._lock = threading.Lock()  # of what both threads touch: the five lines above and _stale
        self._stale = False
        # What follows is the thread's own.
        self._known, self._connected, self._welcome, self._rejected, self._left = False, False, False, False, False
        self._restarted = False  # the broker itself was away, and so its subscribers are
        self._moving: bytes | None = None
        self._moving_id, self._greeting_id, self._state_id = 0, 0, 0
        self._unanswered: dict[int, str] = {}  # of what stays: the topic
        self._announcements: dict[str, bytes] = {}
        self._qos, self._held_until = 2, 0.0
        self._troubles: set[str] = set()
        self._dropped_before = 0
        self._failure: BaseException | None = None
        self._closing, self._deadline = threading.Event(), float("inf")
        self._client = self._new_client(context)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Events that had to go because too many waited."""
        return self._backlog.dropped

    @property
    def waiting(self) -> int:
        """Events that the broker has not taken yet."""
        with self._lock:
            return len(self._backlog) + (self._moving is not None)

    def event(self, event: Event | Summary) -> None:
        """Queue an event. Raises what the thread has failed with."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            self._count += 1
            line = {**event.to_dict(), "id": f"{self.run}-{self._count}", "at": round(time.time(), 3)}
            self._backlog.add(event.event, json.dumps(line, allow_nan=False).encode())
            if isinstance(event, Event):
                self._faces[event.track] = event
                if event.event == "end":
                    del self._faces[event.track]
                self._stale = True
        self._wake()

    def step(self, step: Step) -> None:
        """Frames are not published."""

    def lost(self, gap: Gap) -> None:
        """The ends of the tracks have said it."""

    def close(self) -> None:
        """Deliver what waits and say ``offline``, for at most ``patience`` seconds (beyond ``hold``, where that runs); then
        give everything back. What could not be delivered is said."""
        if self._closing.is_set():
            return
        self._deadline = max(time.monotonic(), self._held_until) + self.patience
        self._closing.set()
        self._wake()
        try:
            self._thread.join(self._deadline + 2 * CONNECT_TIMEOUT - time.monotonic())
        except KeyboardInterrupt:  # somebody has waited enough: what can go at once goes, and no more
            self._held_until, self._deadline = 0.0, time.monotonic() + 0.5
            self._wake()
            self._thread.join(1.0)
            raise
        finally:
            lost = [(self.waiting, "not delivered"), (self.dropped, "dropped"), (self.refused, "refused by the broker")]
            if any(count for count, _ in lost):
                told = ", ".join(f"{count} {what}" for count, what in lost if count)
                self._say(f"of {self._count} events to {self.address}: {told}")
            if not self._thread.is_alive():
                self._wake_reader.close()
                self._wake_writer.close()
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full: it is awake already
            self._wake_writer.send(b"\0")

    # From here on: the thread.

    def _new_client(self, context: ssl.SSLContext | None) -> Client:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        # An id of this run's own: of an earlier run's session nothing may be taken for ours.
        client = Client(CallbackAPIVersion.VERSION2, f"fer-edge-{self.run}", protocol=MQTTProtocolVersion.MQTTv5)
        client.connect_timeout = CONNECT_TIMEOUT
        if self.address.user is not None:
            client.username_pw_set(self.address.user, self.address.password)
        if context is not None:
            client.tls_set_context(context)
        client.will_set(f"{self.address.topic}/available", b"offline", qos=1, retain=True)
        client.on_connect, client.on_disconnect, client.on_publish = self._on_connect, self._on_disconnect, self._on_publish
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION
        client.connect_async(self.address.host, self.address.port, KEEPALIVE, clean_start=False, properties=properties)
        return client

    def _run(self) -> None:
        try:
            pause = FIRST_PAUSE
            while not self._over():
                try:
                    self._client.reconnect()
                except OSError as error:
                    self._restarted |= isinstance(error, ConnectionRefusedError)
                    self._trouble(*_explained(error, self.address))
                else:
                    self._serve()
                pause = FIRST_PAUSE if self._welcome else min(2 * pause, LONGEST_PAUSE)
                self._welcome = False
                if not self._over():
                    self._pause(pause)
        except BaseException as error:  # raised where the output is used next
            self._failure = error

    def _over(self) -> bool:
        """Whether nothing is left to be tried: all is delivered, and a broker that knows us as online has been told."""
        done = self._left or (self.waiting == 0 and not self._known)
        return self._closing.is_set() and (done or time.monotonic() >= self._deadline)

    def _pause(self, seconds: float) -> None:
        """Sleep, until ``close`` is called or has waited enough."""
        if not self._closing.wait(seconds):
            return
        time.sleep(max(0.0, min(seconds, self._deadline - time.monotonic(), 1.0)))

    def _serve(self) -> None:
        """One connection, until it ends."""
        client = self._client
        while (sock := client.socket()) is not None:
            self._publish()
            if (sock := client.socket()) is None:
                break
            poll, pending = select.poll(), getattr(sock, "pending", int)()  # bytes that TLS has read ahead
            poll.register(self._wake_reader, select.POLLIN)
            poll.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            busy = self._closing.is_set() or time.monotonic() < self._held_until
            ready = dict(poll.poll(0 if pending else 100 if busy else 1000))
            if ready.pop(self._wake_reader.fileno(), 0):
                self._wake_reader.recv(4096)
            if pending or any(events & ~select.POLLOUT for events in ready.values()):
                client.loop_read()
            if client.want_write():
                client.loop_write()
            client.loop_misc()
            if self._rejected:  # some brokers leave it at that; then we ask again later
                self._rejected, self._connected = False, False
                client.disconnect()
            if time.monotonic() > self._deadline + 1.0 and (sock := client.socket()) is not None:
                sock.close()  # of a broker that takes nothing any more
                break

    def _publish(self) -> None:
        """Hand on what may go now."""
        if not self._connected:
            return
        if not self._greeting_id:
            self._greeting_id = self._keep("available", b"online")
        if not self._welcome:
            return
        for where, payload in self._announcements.items():
            self._keep(where, payload)
        self._announcements = {}
        if any(topic in self._retained for topic in self._unanswered.values()):
            return  # alone on the wire: mosquitto 2.0 hangs up over a refusal, which is lost when more has come meanwhile
        with self._lock:
            stale = self._stale and self._state_id not in self._unanswered  # one at a time, and then the newest
            self._stale &= not stale
            now = json.dumps({**state(self._faces), "at": round(time.time(), 3)}).encode() if stale else b""
            if self._moving is None and len(self._backlog) and time.monotonic() >= self._held_until:
                self._moving, self._moving_id = self._backlog.take(), 0
        if stale:
            self._state_id = self._keep("state", now)
        if self._moving is not None and not self._moving_id and time.monotonic() >= self._held_until:
            self._moving_id = self._client.publish(f"{self.address.topic}/events", self._moving, qos=self._qos).mid
        if self._closing.is_set():
            idle = self.waiting == 0 and not self._unanswered and not self._stale
            if idle or time.monotonic() >= self._deadline:
                self._leave()

    def _keep(self, name: str, payload: bytes) -> int:
        """Publish what stays, at a name below our topic or at one of ``retained``; the message's id."""
        topic = name if name in self._retained else f"{self.address.topic}/{name}"
        message = self._client.publish(topic, payload, qos=1, retain=True).mid
        self._unanswered[message] = topic
        return message

    def _leave(self) -> None:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0  # nothing is left behind
        self._keep("available", b"offline")
        self._connected, self._left = False, True
        self._client.disconnect(properties=properties)

    def _on_connect(
        self, client: Client, userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            who = "a client without a user" if self.address.user is None else f"the user {printable(self.address.user)}"
            self._trouble("user", f"refuses {who} ({reason}); look at the user and --mqtt-password-file")
            return
        if not flags.session_present:
            # Left to itself, paho would go on where a broker that remembers stands, and one event would be lost.
            client.drop_out_messages()
            self._unanswered.clear()
            self._moving_id = 0
        if self._known and (self._restarted or not flags.session_present):
            self._held_until = min(time.monotonic() + self.hold, self._deadline - 1.0)
        self._restarted = False
        qos = min(self._qos, getattr(properties, "MaximumQoS", 2))
        if qos == 0:
            self._trouble("user", "offers QoS 0 alone, which nobody answers")
            self._rejected = True
            return
        if qos < self._qos:
            self._say(f"{self.address} offers QoS 1 at most: an event may come twice, with the same id")
        self._qos, self._known, self._connected, self._greeting_id = qos, True, True, 0

    def _welcomed(self) -> None:
        """The broker has taken something of ours."""
        self._welcome, self._announcements = True, dict(self._retained)
        with self._lock:
            self._stale = True
            waiting, dropped = len(self._backlog), self._backlog.dropped - self._dropped_before
            self._dropped_before = self._backlog.dropped
        if self._troubles:
            counts = (("waiting", waiting), ("dropped meanwhile", dropped))
            told = "; ".join(f"events {what}: {count}" for what, count in counts if count)
            self._say(f"{self.address} is there{told and f' ({told})'}")
            self._troubles.clear()

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        connected, self._connected = self._connected, False
        self._restarted |= flags.is_disconnect_packet_from_server and reason.value == 0x8B  # it says that it shuts down
        if connected:
            self._trouble("away", "is lost")
        elif not self._closing.is_set() and not self._troubles:
            cure = "whether it wants a --mqtt-certificate" if self.address.tls else "whether it is TLS (mqtts://)"
            self._trouble("away", f"does not answer as a broker; look at the port, and {cure}")

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        topic, refused = self._unanswered.pop(mid, None), reason.is_failure
        if mid == self._moving_id:
            with self._lock:
                self._moving, self._moving_id = None, 0
            self.refused += refused
            self.delivered += not refused
        elif mid == self._greeting_id:
            self._rejected = refused
            if not refused:
                self._welcomed()
        elif refused and topic in self._retained:
            del self._retained[topic]  # mosquitto 2.0 ends the connection over it, every time
            self._say(f"{self.address} refuses {topic} ({reason}); allow the user to write it, or --mqtt-discovery off")
            return
        if refused:
            self._trouble("topic", f"refuses what we write ({reason}); allow the user to write {self.address.topic}/#")

    def _trouble(self, kind: str, text: str) -> None:
        """Say what is wrong with the broker: each kind once, until it is there again."""
        if kind not in self._troubles:
            self._troubles.add(kind)
            self._say(f"{self.address} {text}; trying again, events wait")

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):  # stderr is gone; the events are not
            self._tell(f"mqtt: {text}")


def _explained(error: OSError, address: Address) -> tuple[str, str]:
    """(kind, text) of what kept a connection from standing."""
    reason = shortened(error.strerror or str(error), 200)
    if isinstance(error, ssl.SSLCertVerificationError):
        return "tls", f"shows a certificate that is not trusted ({error.verify_message}); --mqtt-ca FILE names its authority"
    if isinstance(error, ssl.SSLError):
        return "tls", f"does not speak TLS with us ({reason}); look at mqtts, the port and --mqtt-certificate"
    return "away", f"cannot be reached ({reason})"


NEEDS = {
    "mqtt_password_file": "mqtt",
    "mqtt_ca": "mqtt",
    "mqtt_certificate": "mqtt",
    "mqtt_discovery": "mqtt",
}


def output_options(command: F) -> F:
    """--mqtt and what belongs to it."""
    path = click.Path(path_type=Path)
    options = (
        click.option(
            "--mqtt", metavar="URL", help="Publish events to a broker: mqtt://user@host:port/topic, or mqtts:// for TLS."
        ),
        click.option("--mqtt-password-file", type=path, help="A file whose first line is the user's password."),
        click.option("--mqtt-ca", type=path, help="The authority of the broker's certificate. Default: the system's."),
        click.option("--mqtt-certificate", type=path, help="A client certificate with its key, in one PEM file."),
        click.option(
            "--mqtt-discovery",
            metavar="PREFIX",
            help=f"Where Home Assistant looks for devices; 'off' for nowhere. Default: {DISCOVERY}.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_output(options: dict[str, Any], setup: Setup) -> Publisher | None:
    """The output that the options ask for, or None. Raises UsageError."""
    url: str | None = options.pop("mqtt")
    given = {name: options.pop(name) for name in NEEDS}
    if url is None:
        return None
    address = parse_address(url)
    if given["mqtt_password_file"] is not None:
        address = _with_password(address, given["mqtt_password_file"])
    context = _tls(address, given["mqtt_ca"], given["mqtt_certificate"])
    prefix = DISCOVERY if given["mqtt_discovery"] is None else given["mqtt_discovery"].strip("/")
    retained = {}
    if prefix != "off":
        if not prefix or not prefix.isprintable() or "+" in prefix or "#" in prefix:
            raise UsageError("--mqtt-discovery is no topic; Home Assistant's own is homeassistant, and 'off' is none")
        said = discovery(address.topic, setup.bundle, setup.labels)
        retained[f"{prefix}/device/{object_id(address.topic)}/config"] = json.dumps(said).encode()
    return Publisher(address, context, retained)


def _with_password(address: Address, file: Path) -> Address:
    if address.user is None:
        raise UsageError(f"{file} is a password without a user; name the user: --mqtt mqtt://user@host/topic")
    if address.password is not None:
        raise UsageError(f"there are two passwords, in the broker's address and in {file}; leave one out")
    try:
        with file.open("rb") as opened:
            password = opened.read(65536).decode("utf-8").split("\n")[0].rstrip("\r")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"the password file {file} cannot be read: {reason}") from None
    if not password:
        raise UsageError(f"the first line of the password file {file} is empty")
    return replace(address, password=password)


def _tls(address: Address, authority: Path | None, certificate: Path | None) -> ssl.SSLContext | None:
    if not address.tls:
        if authority or certificate:
            raise UsageError("--mqtt-ca and --mqtt-certificate go with TLS; write mqtts:// instead of mqtt://")
        return None
    context = ssl.create_default_context()
    for file, load in ((authority, _trust), (certificate, _show)):
        if file is not None:
            context = _loaded(file, load, context)
    return context


def _trust(context: ssl.SSLContext, file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=file)  # this authority alone


def _show(context: ssl.SSLContext, file: Path) -> ssl.SSLContext:
    context.load_cert_chain(file, password=_no_password)
    return context


def _no_password() -> str:
    raise UsageError("the key of --mqtt-certificate has a password; take it off: openssl pkey -in FILE -out FILE2")


def _loaded(file: Path, load: Callable[[ssl.SSLContext, Path], ssl.SSLContext], context: ssl.SSLContext) -> ssl.SSLContext:
    try:
        return load(context, file)
    except ssl.SSLError:
        raise UsageError(f"{file} is no PEM file of certificates; a client's has its certificate and its key") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
