"""An RTSP server on loopback, by GStreamer: run by the system's Python, which has python3-gi.

python3 rtsp_server.py PORT [USER PASSWORD]: a ball that moves, 320 x 240, 30 a second, H.264, at /ball; it says "ready" when
it listens. python3 rtsp_server.py try: whether it could, by the exit status."""

# mypy: ignore-errors

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PICTURES = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=30/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)

Gst.init(None)
port, *account = sys.argv[1:]
if port == "try":
    sys.exit(not all(map(Gst.ElementFactory.find, ("videotestsrc", "x264enc", "rtph264pay"))))
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(PICTURES)
factory.set_shared(True)
if account:
    user, password = account
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    factory.add_role_from_structure(
        Gst.Structure.from_string("user,media.factory.access=true,media.factory.construct=true")[0]
    )
server.get_mount_points().add_factory("/ball", factory)
if server.attach(None) == 0:
    sys.exit(f"port {port} is taken")
print("ready", flush=True)
GLib.MainLoop().run()
