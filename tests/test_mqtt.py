"""``watch --mqtt``: real brokers that die and come back, real TLS, and what Home Assistant is told."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import fer_edge
from fer_edge.cli import main

pytest.importorskip("cv2")
pytest.importorskip("paho.mqtt")

from broker import Broker, Consumer, Wire, free_port, until
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from fer_edge.live import mqtt
from fer_edge.live.events import Event, Kind
from fer_edge.live.mqtt import Backlog, Publisher, discovery, object_id, parse_address, state
from fer_edge.live.outputs import Setup

TOPIC = "home/door"
SECRET = "pass word%:@/word"
KILLS = 20


def event(kind: Kind, track: int, label: str | None = "happiness", certain: bool = True) -> Event:
    scores = {label: 0.9, "neutral": 0.1} if label else {}
    return Event(kind, track / 10, track, track, (1.0, 2.0, 30.0, 40.0), label, scores, certain, track / 10)


def publisher(port: int, lines: list[str] | None = None, **settings: Any) -> Publisher:
    tell = [].append if lines is None else lines.append
    return Publisher(parse_address(f"mqtt://127.0.0.1:{port}/{TOPIC}"), tell=tell, **settings)


# Delivery


@dataclass(frozen=True)
class Storm:
    """What came of events that flowed while a broker, or the wire to it, failed KILLS times."""

    sent: list[tuple[str, int]]
    lines: list[str]
    events: list[dict[str, Any]]
    publisher: Publisher

    @property
    def came(self) -> list[tuple[str, int]]:
        return [(line["event"], line["track"]) for line in self.events]

    @property
    def once(self) -> list[tuple[str, int]]:
        """As a consumer sees them that drops what it has seen, by its id."""
        return list({line["id"]: (line["event"], line["track"]) for line in self.events}.values())


def weather(folder: Path, number: int | None, *lines: str, qos: int) -> Storm:
    """Events flow while mosquitto is killed by a signal, or (None) the wire to it cut. The consumer is always back first:
    what happens otherwise is another test's."""
    chance, stop = random.Random(3), threading.Event()
    with (
        Broker(folder, *lines) as broker,
        closing(Wire(broker.port)) as wire,
        Consumer(broker.port, f"{TOPIC}/events", qos=qos) as consumer,
    ):
        sent: list[tuple[str, int]] = []
        said: list[str] = []
        output = publisher(wire.port, said, hold=0.0)

        def flow() -> None:
            track = 0
            while not stop.wait(0.03):
                track += 1
                for kind in ("appear", "change", "end"):
                    output.event(event(kind, track))
                    sent.append((kind, track))
                    time.sleep(0.03)

        thread = threading.Thread(target=flow)
        thread.start()
        for kill in range(KILLS):
            before = output.delivered
            until(lambda before=before: output.delivered > before, what="for events that flow")
            until(lambda: output.waiting <= 1 and len(consumer.messages) >= output.delivered, what="for the consumer")
            time.sleep(chance.uniform(0.0, 0.1))
            if number is None:
                wire.cut()
                continue
            wire.open = False
            broker.kill(number)
            time.sleep(chance.uniform(0.0, 0.2))
            broker.start()
            until(lambda kill=kill: consumer.connections > kill + 1, what="for the consumer to be back")
            wire.open = True
        stop.set()
        thread.join()
        output.close()
        until(lambda: ("end", sent[-1][1]) in came(consumer), what="for the last end")
        return Storm(sent, said, consumer.events(TOPIC), output)


def came(consumer: Consumer) -> list[tuple[str, int]]:
    return [(line["event"], line["track"]) for line in consumer.events(TOPIC)]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


STORMS = {
    "cut": (None, (), 2),
    "ended": (signal.SIGTERM, ("persistence true", "persistence_location {}/"), 2),
    "killed": (signal.SIGKILL, (), 1),
}


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Storm]:
    """Three at once: each waits most of its time."""
    before = descriptors()
    folders = {name: tmp_path_factory.mktemp(name) for name in STORMS}
    with ThreadPoolExecutor() as pool:
        results = {
            name: pool.submit(weather, folders[name], number, *(line.format(folders[name]) for line in lines), qos=qos)
            for name, (number, lines, qos) in STORMS.items()
        }
        done = {name: result.result() for name, result in results.items()}
    gc.collect()  # consumers, which paho's callbacks hold
    until(lambda: descriptors() <= before + 2, what="for descriptors to be given back")  # 60 connections, none left behind
    assert not [thread for thread in threading.enumerate() if thread.name == "mqtt"]
    return done


@pytest.mark.parametrize("name", STORMS)
def test_a_broker_that_dies_gets_every_event_once_and_in_order(storms: dict[str, Storm], name: str) -> None:
    """20 times: the wire is cut; the broker ends and keeps its sessions; it is killed and forgets them. A forgetful one may
    bring the event that was on its way twice, with the same id; and QoS 1 at the consumer's side may, too."""
    storm = storms[name]
    assert storm.sent, "events flowed"
    assert storm.once == storm.sent
    if name == "killed":
        repeated = sum(times - 1 for times in Counter(line["id"] for line in storm.events).values())
        assert repeated <= 2 * KILLS
    else:
        assert storm.came == storm.sent
        assert [line for line in storm.events if line["event"] == "end"] == storm.events[2::3]
    assert (storm.publisher.waiting, storm.publisher.dropped) == (0, 0)
    assert storm.publisher.delivered == len(storm.sent)


PUBLISH, PUBREC, PUBREL, PUBCOMP = 0x34, 0x50, 0x62, 0x70  # of QoS 2; MQTT 5.0, 2.1.2


@pytest.mark.parametrize("packet", [PUBLISH, PUBREC, PUBREL, PUBCOMP], ids=["PUBLISH", "PUBREC", "PUBREL", "PUBCOMP"])
@pytest.mark.parametrize("forgets", [False, True], ids=["cut", "killed"])
def test_an_event_whose_packet_was_lost_on_the_way(tmp_path: Path, packet: int, forgets: bool) -> None:
    """Each step of QoS 2 is lost once, with the connection, or with a broker that then has forgotten everything. Only where
    such a broker had passed the event on, and could not say so, does it come twice, with one id."""
    with (
        Broker(tmp_path) as broker,
        closing(Wire(broker.port, packet)) as wire,
        Consumer(broker.port, f"{TOPIC}/events", qos=1) as consumer,
    ):
        output = publisher(wire.port, hold=0.0)
        output.event(event("appear", 1))
        until(lambda: wire.swallowed, what="for the packet")
        time.sleep(0.05)  # what it answers to has arrived, or never will
        if forgets:
            broker.kill()
        wire.swallow = None
        wire.cut()
        if forgets:
            broker.start()
            until(lambda: consumer.connections == 2)
        until(lambda: output.waiting == 0)
        output.event(event("end", 1))
        output.close()
        until(lambda: came(consumer)[-1:] == [("end", 1)])
        twice = forgets and packet == PUBCOMP
        assert came(consumer) == [("appear", 1)] * (1 + twice) + [("end", 1)]
        assert len({line["id"] for line in consumer.events(TOPIC)}) == 2


@pytest.mark.parametrize(
    ("keeps", "number"),
    [(True, signal.SIGTERM), (True, signal.SIGKILL), (False, signal.SIGKILL)],
    ids=["keeps sessions, ended", "keeps sessions, killed", "forgets, killed"],
)
def test_consumers_of_a_broker_that_was_away_may_come_back_later_than_we(tmp_path: Path, keeps: bool, number: int) -> None:
    """One without a session that the broker would keep for it, as Home Assistant is."""
    lines: list[str] = []
    memory = ("persistence true", f"persistence_location {tmp_path}/", "autosave_interval 1", "autosave_on_changes true")
    with Broker(tmp_path, *(memory if keeps else ())) as broker:
        output = publisher(broker.port, lines, hold=1.5)
        output.event(event("appear", 1))
        until(lambda: output.waiting == 0)
        time.sleep(0.1)  # saved
        broker.kill(number)
        output.event(event("end", 1))
        until(lambda: output._restarted, what="for a refused connection or a goodbye")
        broker.start()
        until(lambda: len(lines) == 2, what="for a connection")
        with Consumer(broker.port, f"{TOPIC}/events", name="another") as consumer:
            output.close()
            until(lambda: came(consumer) == [("end", 1)])
    assert "(events waiting: 1)" in lines[1]


def test_a_wire_that_was_cut_makes_no_event_wait(broker: Broker) -> None:
    lines: list[str] = []
    with closing(Wire(broker.port)) as wire, Consumer(broker.port, f"{TOPIC}/events") as consumer:
        output = publisher(wire.port, lines, hold=1000.0)
        until(lambda: f"{TOPIC}/available" in retained(broker, "#"))
        wire.cut()
        output.event(event("appear", 1))
        until(lambda: came(consumer) == [("appear", 1)])
        output.close()


def test_said_once_an_outage_and_when_it_is_over(storms: dict[str, Storm]) -> None:
    lines = storms["ended"].lines
    lost = [line for line in lines if line.endswith("is lost; trying again, events wait")]
    back = [line for line in lines if " is there" in line]
    assert len(lost) == len(back) == KILLS
    assert len(lines) == 2 * KILLS


def test_ids_tell_the_run_and_count(storms: dict[str, Storm]) -> None:
    for storm in storms.values():
        ids = list(dict.fromkeys(line["id"] for line in storm.events))
        assert ids == [f"{storm.publisher.run}-{number}" for number in range(1, len(storm.sent) + 1)]
        assert abs(storm.events[-1]["at"] - time.time()) < 600
    assert len({storm.publisher.run for storm in storms.values()}) == len(storms)


def test_a_broker_that_is_not_there_yet(tmp_path: Path) -> None:
    """watch does not wait for it, one line says so, and what waited arrives in order."""
    broker, lines = Broker(tmp_path).start(), list[str]()
    broker.kill()  # its port is free
    output = publisher(broker.port, lines)
    output.event(event("appear", 1))
    until(lambda: lines)
    output.event(event("end", 1))
    where = f"mqtt: mqtt://127.0.0.1:{broker.port}"
    assert lines == [f"{where} cannot be reached (Connection refused); trying again, events wait"]
    with broker, Consumer(broker.port, f"{TOPIC}/#") as consumer:
        until(lambda: output.waiting == 0)
        output.close()
        until(lambda: len(consumer.events(TOPIC)) == 2)
        assert came(consumer) == [("appear", 1), ("end", 1)]
    assert lines[1:] == [f"{where} is there (events waiting: 2)"]


def test_an_output_without_a_broker_is_bounded_and_says_what_it_dropped(tmp_path: Path) -> None:
    """Changes go first, then appearances; an end only when nothing else is left."""
    port, lines = free_port(), list[str]()
    output = publisher(port, lines, limit=100, patience=0.2)
    for track in range(60):
        for kind in ("appear", "change", "change", "end"):
            output.event(event(kind, track))
    assert (output.waiting, output.dropped) == (100, 140)
    output.close()
    assert lines[-1] == f"mqtt: of 240 events to mqtt://127.0.0.1:{port}: 100 not delivered, 140 dropped"
    assert len(lines) == 2
    assert not output._thread.is_alive()


def test_what_goes_first_when_too_many_wait() -> None:
    backlog = Backlog(4)
    for kind in ("appear", "change", "end", "appear", "change", "end", "end", "end", "summary"):
        backlog.add(kind, kind.encode())
        assert len(backlog) <= 4
    assert (backlog.dropped, [backlog.take() for _ in range(4)]) == (5, [b"end", b"end", b"end", b"summary"])
    backlog = Backlog(3)
    for number, kind in enumerate(("end", "appear", "change", "appear", "end")):
        backlog.add(kind, str(number).encode())
    assert [backlog.take() for _ in range(3)] == [b"0", b"3", b"4"]


def test_a_broker_that_does_not_answer_holds_nobody_up() -> None:
    """It takes the connection, and says nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        output = publisher(server.getsockname()[1], patience=0.3)
        for track in range(1000):
            output.event(event("appear", track))
        assert output.waiting == 1000
        output.close()
        assert not output._thread.is_alive()


# What stays


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as broker:
        yield broker


def retained(broker: Broker, *topics: str) -> dict[str, bytes]:
    """What a late consumer finds."""
    with Consumer(broker.port, *topics, "done", name="late") as late:
        late._client.publish("done", b"", qos=2)
        until(lambda: late.of("done"))
        return {message.topic: bytes(message.payload) for message in late.messages if message.retain}


def test_a_late_consumer_is_told_who_is_there(broker: Broker) -> None:
    output = publisher(broker.port, retained={"found/here": b"{}"})
    output.event(event("appear", 1, "neutral"))
    output.event(event("appear", 2, None))
    output.event(event("change", 1))
    until(lambda: output.waiting == 0)
    until(lambda: b"happiness" in retained(broker, "#").get(f"{TOPIC}/state", b""))
    stays = retained(broker, "#")
    assert stays.keys() == {f"{TOPIC}/state", f"{TOPIC}/available", "found/here"}
    assert stays[f"{TOPIC}/available"] == b"online"
    now = json.loads(stays[f"{TOPIC}/state"])
    assert (now["faces"], now["expression"], now["labels"]) == (2, "happiness", {"happiness": 1})
    assert [(t["track"], t["label"]) for t in now["tracks"]] == [(1, "happiness"), (2, None)]
    output.event(event("end", 1))
    output.event(event("end", 2))
    output.close()
    stays = retained(broker, "#")
    assert stays[f"{TOPIC}/available"] == b"offline"
    assert json.loads(stays[f"{TOPIC}/state"])["faces"] == 0
    again = Client(CallbackAPIVersion.VERSION2, f"fer-edge-{output.run}", clean_session=False)
    sessions: list[bool] = []
    again.on_connect = lambda client, data, flags, reason, properties: sessions.append(flags.session_present)
    again.connect("127.0.0.1", broker.port)
    while not sessions:
        again.loop(0.1)
    again.disconnect()
    assert sessions == [False], "nothing is left at the broker"


def test_a_forgetful_broker_is_told_again_what_stays(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        output = publisher(broker.port, hold=0.1, retained={"found/here": b"{}"})
        output.event(event("appear", 1))
        until(lambda: output.waiting == 0)
        broker.kill()
        broker.start()
        until(lambda: len(retained(broker, "#")) == 3)
        output.close()


def test_what_a_state_says() -> None:
    faces = {1: event("appear", 1, "sadness"), 2: event("appear", 2), 3: event("change", 3), 4: event("appear", 4, None)}
    assert state(faces)["expression"] == "happiness"
    assert state(faces)["labels"] == {"sadness": 1, "happiness": 2}
    equals = {1: event("appear", 1, "sadness"), 2: event("appear", 2)}
    assert state(equals)["expression"] == "sadness"
    assert state({1: event("appear", 1, certain=False)})["expression"] is None
    assert state({}) == {"faces": 0, "expression": None, "labels": {}, "tracks": []}


KILLED = """
import sys, time
from fer_edge.live.mqtt import Publisher, parse_address
output = Publisher(parse_address(sys.argv[1]))
time.sleep(60)
"""


def test_the_last_will_of_a_process_that_is_killed(broker: Broker) -> None:
    with Consumer(broker.port, f"{TOPIC}/available") as consumer:
        url = f"mqtt://127.0.0.1:{broker.port}/{TOPIC}"
        process = subprocess.Popen([sys.executable, "-c", KILLED, url])
        until(lambda: consumer.of(f"{TOPIC}/available") == [b"online"])
        process.kill()
        process.wait()
        until(lambda: consumer.of(f"{TOPIC}/available") == [b"online", b"offline"])
    assert retained(broker, "#")[f"{TOPIC}/available"] == b"offline"


# Who may


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, the broker's certificate and key, a client's, and an authority that nobody knows."""
    trustme = pytest.importorskip("trustme")
    folder = tmp_path_factory.mktemp("authority")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "stranger.pem"))
    for name, certificate in (
        ("server", ca.issue_cert("127.0.0.1")),
        ("client", ca.issue_cert("camera@door", common_name="camera")),
    ):
        certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}-both.pem"))
    return folder


SETUP = Setup("clip", True, ("happiness", "neutral"), "two", "default", "ab12", "openvino", "CPU", "int8", "yunet")


def opened(url: str, **given: Any) -> Publisher:
    output = mqtt.open_output({"mqtt": url, **dict.fromkeys(mqtt.NEEDS), **given}, SETUP)
    assert output is not None
    return output


def tls(folder: Path) -> list[str]:
    return [f"cafile {folder / 'ca.pem'}", f"certfile {folder / 'server.pem'}", f"keyfile {folder / 'server.key'}"]


def test_tls_with_an_authority_of_ones_own(authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The broker wants a client's certificate, and takes its name for the user."""
    with Broker(tmp_path, *tls(authority), "require_certificate true", "use_identity_as_username true") as broker:
        url = f"mqtts://127.0.0.1:{broker.port}/{TOPIC}"
        output = opened(url, mqtt_ca=authority / "ca.pem", mqtt_certificate=authority / "client-both.pem")
        output.event(event("appear", 1))
        until(lambda: output.delivered == 1)
        output.close()
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")  # paho of itself, after a failed handshake
@pytest.mark.parametrize(
    "given", [{"mqtt_ca": "stranger.pem"}, {}, {"mqtt_ca": "ca.pem"}], ids=["stranger", "system", "client"]
)
def test_a_certificate_that_is_refused(
    given: dict[str, str], authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker's, because of an authority that we do not know; ours, because there is none."""
    with Broker(tmp_path, *tls(authority), "require_certificate true") as broker:
        url = f"mqtts://127.0.0.1:{broker.port}/{TOPIC}"
        output = opened(url, **{name: authority / file for name, file in given.items()})
        output.event(event("appear", 1))
        said: list[str] = []
        until(lambda: said.extend(capsys.readouterr().err.splitlines()) or said)
        output.patience = 0.1
        output.close()
        assert output.delivered == 0
    assert said[0].startswith(f"mqtt: mqtts://127.0.0.1:{broker.port} ")
    assert ("--mqtt-certificate" if given.get("mqtt_ca") == "ca.pem" else "--mqtt-ca FILE names its authority") in said[0]


def password_file(folder: Path, password: str) -> str:
    """mosquitto's, with the user ada."""
    file = folder / "users"
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("no mosquitto_passwd here")
    subprocess.run([tool, "-b", "-c", str(file), "ada", password], check=True)
    return f"password_file {file}"


def test_a_password_that_is_wrong_until_it_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once, with the cure and without the password, and tried again: brokers are set up after cameras."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    broker = Broker(tmp_path / "broker", "allow_anonymous false", password_file(tmp_path, "another"))
    with broker:
        url = f"mqtt://ada@127.0.0.1:{broker.port}/{TOPIC}"
        output = opened(url, mqtt_password_file=tmp_path / "secret")
        output.event(event("appear", 1))
        said: list[str] = []
        until(lambda: said.extend(capsys.readouterr().err.splitlines()) or said)
        assert said == [
            f"mqtt: mqtt://127.0.0.1:{broker.port} refuses the user ada (Not authorized); "
            "look at the user and --mqtt-password-file; trying again, events wait"
        ]
        password_file(tmp_path, SECRET)
        assert broker.process is not None
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: output.delivered == 1)
        output.close()
    assert SECRET not in capsys.readouterr().err
    assert SECRET not in repr(output.address) + str(output.address)


def test_a_topic_that_may_not_be_written_until_it_may(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("topic read #\n")
    lines: list[str] = []
    with Broker(tmp_path / "broker", f"acl_file {tmp_path / 'rules'}") as broker:
        output = publisher(broker.port, lines)
        output.event(event("appear", 1))
        until(lambda: lines)
        assert lines[0].endswith(f"(Not authorized); allow the user to write {TOPIC}/#; trying again, events wait")
        (tmp_path / "rules").write_text(f"topic read #\ntopic write {TOPIC}/#\n")
        assert broker.process is not None
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: output.delivered == 1)
        output.close()
    assert lines[1:] == [f"mqtt: mqtt://127.0.0.1:{broker.port} is there (events waiting: 1)"]


def test_a_broker_that_keeps_home_assistants_topics_for_others(tmp_path: Path) -> None:
    """It is said, and everything else goes on."""
    (tmp_path / "rules").write_text(f"topic read #\ntopic write {TOPIC}/#\n")
    lines: list[str] = []
    with Broker(tmp_path / "broker", f"acl_file {tmp_path / 'rules'}") as broker:
        output = publisher(broker.port, lines, retained={"homeassistant/x": b"{}"})
        output.event(event("appear", 1))
        until(lambda: output.delivered == 1)
        until(lambda: any("homeassistant/x" in line for line in lines))
        output.close()
    assert sum("refuses homeassistant/x (Not authorized)" in line for line in lines) == 1


# Home Assistant


def test_home_assistant_is_told_all_that_its_documentation_wants() -> None:
    """MQTT integration, "Device discovery payload": device and origin are mandatory, with identifiers and a name; each
    component has a platform and a unique_id; an enum has options, and no unit or state class."""
    told = discovery("home/door", "default", ("happiness", "neutral"))
    assert all((told["device"]["identifiers"], told["device"]["name"], told["origin"]["name"]))
    assert told["availability"] == [{"topic": "home/door/available"}]
    assert told["state_topic"] == "home/door/state"
    faces, expression = told["components"].values()
    for key, component in told["components"].items():
        assert component["platform"] == "sensor"
        assert component["unique_id"] == key
        assert component["name"]
    assert expression["device_class"] == "enum"
    assert expression["options"] == ["happiness", "neutral"]
    assert not {"state_class", "unit_of_measurement"} & expression.keys()
    assert faces["state_class"] == "measurement"


def test_templates_of_the_discovery_read_the_state() -> None:
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment()
    environment.filters["tojson"] = json.dumps  # as Home Assistant's own filter
    now = state({1: event("appear", 1), 2: event("appear", 2, None)})
    faces, expression = discovery("home/door", "default", ("happiness",))["components"].values()

    def rendered(template: str, value: dict[str, Any]) -> str:
        return str(environment.from_string(template).render(value_json=value))

    assert rendered(faces["value_template"], now) == "2"
    assert json.loads(rendered(faces["json_attributes_template"], now)) == {"labels": {"happiness": 1}}
    assert rendered(expression["value_template"], now) == "happiness"
    assert rendered(expression["value_template"], state({})) == "None", "which Home Assistant shows as unknown"


def test_names_for_home_assistant_are_valid_and_differ() -> None:
    topics = ["door", "home/door", "home_door", "home door", "hömé/door", "HOME/door", "/", "x" * 500]
    names = [object_id(topic) for topic in topics]
    assert len(set(names)) == len(topics)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in names)
    assert object_id("door") == "fer_edge_door"


@pytest.mark.parametrize(("prefix", "topic"), [(None, "homeassistant"), ("own/place", "own/place"), ("off", None)])
def test_discovery_is_where_it_is_wanted(broker: Broker, prefix: str | None, topic: str | None) -> None:
    output = opened(f"mqtt://127.0.0.1:{broker.port}/door", mqtt_discovery=prefix)
    output.event(event("appear", 1))
    until(lambda: output.delivered == 1)
    output.close()
    stays = retained(broker, "#")
    config = f"{topic}/device/fer_edge_door/config"
    assert stays.keys() == {"door/available", "door/state"} | ({config} if topic else set())
    if topic:
        assert json.loads(stays[config]) == discovery("door", "default", ("happiness", "neutral"))


# The command


def test_addresses() -> None:
    plain = parse_address("mqtt://broker/home/door")
    assert (plain.host, plain.port, plain.topic, plain.tls, plain.user) == ("broker", 1883, "home/door", False, None)
    full = parse_address("mqtts://ada:p%40ss%2F@[::1]:9000/front%20door%3F")
    assert (full.host, full.port, full.topic, full.tls) == ("::1", 9000, "front door?", True)
    assert (full.user, full.password) == ("ada", "p@ss/")
    assert str(full) == "mqtts://[::1]:9000"
    assert parse_address("mqtts://broker/x").port == 8883


WRONG = {
    "mqtt://ada:hidden@/door": "this is no broker's address",
    "http://ada:hidden@broker/door": "this is no broker's address",
    "ada:hidden@broker/door": "this is no broker's address",
    "mqtt://ada:hidden@broker:0/door": "this is no broker's address",
    "mqtt://ada:hidden@broker:70000/door": "the broker's address cannot be read",
    "mqtt://ada:hidden@broker:x/door": "the broker's address cannot be read",
    "mqtt://ada:hidden@[::1/door": "the broker's address cannot be read",
    f"mqtt://ada:hidden@{'x' * 80}/door": "the broker's address cannot be read",
    "mqtt://ada:hidden@broker/%ff": "the broker's address cannot be read",
    "mqtt://ada:hidden@broker": "an MQTT address ends with a topic",
    "mqtt://ada:hidden@broker/": "an MQTT address ends with a topic",
    "mqtt://ada:hidden@broker/home//door": "an MQTT address ends with a topic",
    "mqtt://ada:hidden@broker/home/": "an MQTT address ends with a topic",
    "mqtt://ada:hidden@broker/$SYS/door": "an MQTT address ends with a topic",
    "mqtt://ada:hidden@broker/home/#": "has a wildcard",
    "mqtt://ada:hidden@broker/home/%23": "has a wildcard",
    "mqtt://ada:hidden@broker/+/door": "has a wildcard",
    "mqtt://ada:hidden@broker/door?x=1": "a question mark",
    "mqtt://ada:hidden@broker/a%00b": "a control character",
    "mqtt://ada:hidden@broker/" + "x" * 1001: "longer than 1000 bytes",
    "mqtt://ada:hidden@broker/front door": "write a space as %20",
    "mqtt://ada:hidden@broker/do\nor": "a space or a control character",
}


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address_is_one_line_without_its_password(url: str) -> None:
    with pytest.raises(fer_edge.UsageError) as error:
        parse_address(url)
    assert WRONG[url] in str(error.value)
    assert "hidden" not in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_options(tmp_path: Path, authority: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", authority / "client.key", "-out", tmp_path / "locked"],
        check=True,
    )
    (tmp_path / "locked").write_bytes((tmp_path / "locked").read_bytes() + (authority / "client.pem").read_bytes())
    plain, user, secure = "mqtt://broker/door", "mqtt://ada@broker/door", "mqtts://broker/door"
    wrong: list[tuple[str, str, object, str]] = [
        (plain, "mqtt_password_file", tmp_path / "empty", "is a password without a user"),
        ("mqtt://ada:x@broker/door", "mqtt_password_file", tmp_path / "empty", "two passwords"),
        (user, "mqtt_password_file", tmp_path / "none", "none cannot be read: No such file"),
        (user, "mqtt_password_file", tmp_path, "cannot be read: Is a directory"),
        (user, "mqtt_password_file", tmp_path / "empty", "is empty"),
        (user, "mqtt_password_file", tmp_path / "bytes", "it is no text"),
        (plain, "mqtt_ca", authority / "ca.pem", "write mqtts:// instead of mqtt://"),
        (secure, "mqtt_ca", tmp_path / "none", "none cannot be read: No such file"),
        (secure, "mqtt_ca", tmp_path / "bytes", "is no PEM file"),
        (secure, "mqtt_ca", tmp_path, "cannot be read"),
        (secure, "mqtt_certificate", authority / "client.pem", "is no PEM file"),
        (secure, "mqtt_certificate", tmp_path / "locked", "has a password; take it off"),
        (plain, "mqtt_discovery", "home/#", "--mqtt-discovery is no topic"),
        (plain, "mqtt_discovery", "/", "--mqtt-discovery is no topic"),
    ]
    for url, name, value, text in wrong:
        with pytest.raises(fer_edge.UsageError) as error:
            opened(url, **{name: value})
        assert text in str(error.value)
        assert "\n" not in str(error.value)
    assert not [thread for thread in threading.enumerate() if thread.name == "mqtt"], "nothing has begun"


def test_an_option_without_a_broker_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["watch", "clip.mp4", "--mqtt-ca", "ca.pem"])
    assert end.value.code == 2
    assert "--mqtt-ca goes with --mqtt" in capsys.readouterr().err


@pytest.fixture(scope="module")
def detector(data: Path) -> Path:
    """The face detector's file."""
    file = data.parent / "models" / "face_detection_yunet_2023mar.onnx"
    if not file.is_file():
        pytest.skip(f"no face detector at {file}")
    return file


def test_what_watch_sees_is_what_the_broker_gets(
    broker: Broker, data: Path, detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clip, from decoding to a consumer: the lines of --json and no others, each with its id."""
    clip = data / "scenes" / "videos" / "head-pose-face-detection-female.gif"
    if not clip.is_file():
        pytest.skip(f"no clip at {clip}")
    with Consumer(broker.port, "home/#", "homeassistant/#") as consumer:
        url = f"mqtt://ada:{quote(SECRET, safe='')}@127.0.0.1:{broker.port}/{TOPIC}"
        with pytest.raises(SystemExit) as end:
            main(["watch", str(clip), "--detector", str(detector), "--threads", "1", "--json", "--mqtt", url])
        assert end.value.code == 0
        until(lambda: consumer.of(f"{TOPIC}/available")[-1:] == [b"offline"])
        events = consumer.events(TOPIC)
        assert json.loads(consumer.of(f"{TOPIC}/state")[-1])["faces"] == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["event"] == "appear"
    assert [line["event"] for line in lines[-2:]] == ["end", "summary"]
    assert [{name: line[name] for name in line if name not in ("id", "at")} for line in events] == lines
    (config,) = [m for m in consumer.messages if m.topic.startswith("homeassistant/device/") and m.topic.endswith("/config")]
    with fer_edge.load() as clf:
        labels, name = clf.labels, clf.bundle.manifest.name
    assert json.loads(config.payload) == discovery(TOPIC, name, labels)
    everything = out + err + "".join(f"{m.topic} {m.payload!r}" for m in consumer.messages)
    assert SECRET not in everything
    assert quote(SECRET, safe="") not in everything


def ended(detector: Path, clip: Path, url: str, ready: Callable[[], Any]) -> tuple[int, list[dict[str, Any]], str]:
    """A watch of ``clip`` that SIGTERM ends when ``ready``: (status, lines of stdout, stderr)."""
    command = [sys.executable, "-m", "fer_edge", "watch", str(clip), "--detector", str(detector), "--threads", "1", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--mqtt", url], text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            until(ready)
            process.terminate()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, [json.loads(line) for line in (first + out).splitlines()], err


@pytest.fixture(scope="module")
def long_clip(data: Path) -> Path:
    clip = data / "scenes" / "videos" / "WolfgangLanger_Pexels.mp4"
    if not clip.is_file():
        pytest.skip(f"no clip at {clip}")
    return clip


def test_a_watch_that_is_ended_says_its_last_words(broker: Broker, detector: Path, long_clip: Path) -> None:
    """To the broker; and, where there is none, to standard error, after the five seconds that a signal leaves. Both at
    once, for they wait."""
    port = free_port()
    nobody = f"mqtt://127.0.0.1:{port}"
    with Consumer(broker.port, "home/#") as consumer, ThreadPoolExecutor() as pool:
        url = f"mqtt://127.0.0.1:{broker.port}/{TOPIC}"
        there = pool.submit(ended, detector, long_clip, url, lambda: consumer.events(TOPIC))
        away = pool.submit(ended, detector, long_clip, f"{nobody}/x", lambda: True)
        status, lines, err = there.result()
        until(lambda: consumer.of(f"{TOPIC}/available")[-1:] == [b"offline"])
        told = [(line["event"], line.get("track")) for line in consumer.events(TOPIC)]
    assert told == [(line["event"], line.get("track")) for line in lines]
    assert [event for event, _ in told[-2:]] == ["end", "summary"]
    assert (status, err) == (143, "Terminated.\n")
    status, lines, err = away.result()
    assert err.splitlines() == [
        f"mqtt: {nobody} cannot be reached (Connection refused); trying again, events wait",
        f"mqtt: of {len(lines)} events to {nobody}: {len(lines)} not delivered",
        "Terminated.",
    ]
    assert status == 143


# The examples


def test_the_automations_speak_of_what_there_is(root: Path) -> None:
    """YAML; topics and sensors of the address in its head; fields of an event; labels of the default bundle."""
    yaml = pytest.importorskip("yaml")
    text = (root / "examples" / "home_assistant.yaml").read_text()
    smile, gone = yaml.safe_load(text)["automation"]
    assert f"--mqtt mqtt://BROKER/{TOPIC}" in text
    sensors = [f"sensor.home_door_{c['name'].lower()}" for c in discovery(TOPIC, "", ())["components"].values()]
    assert smile["triggers"][0]["entity_id"] == sensors[1]
    assert sensors[0] in smile["actions"][0]["data"]["message"]
    with fer_edge.load() as clf:
        assert smile["triggers"][0]["to"] in clf.labels
    assert gone["triggers"][0]["topic"] == f"{TOPIC}/events"
    assert gone["triggers"][0]["payload"] == "end"
    fields = {*event("end", 1).to_dict(), "id", "at"}
    used = re.findall(r"payload_json\.(\w+)", text)
    assert used
    assert set(used) <= fields


def test_the_unit_starts_a_command_that_there_is(root: Path, tmp_path: Path) -> None:
    """Its options are ours, orderly ends are successes; and systemd itself finds nothing to say."""
    from fer_edge.live.cli import watch as command

    text = (root / "examples" / "fer-edge-watch.service").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    program, name, *arguments = shlex.split(settings["ExecStart"])
    assert (Path(program).name, name) == ("fer-edge", "watch")
    given = command.make_context(name, arguments).params
    assert parse_address(given["mqtt"]).topic == TOPIC
    assert settings["SuccessExitStatus"].split() == ["130", "143"]
    assert settings["Restart"] == "on-failure"
    if shutil.which("systemd-analyze"):
        (tmp_path / "fer-edge-watch.service").write_text(text.replace(program, sys.executable))
        tool = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "fer-edge-watch.service")]
        done = subprocess.run(tool, capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
