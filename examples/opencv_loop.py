"""Your own OpenCV loop, with faces found, followed and judged in it: python examples/opencv_loop.py VIDEO [DETECTOR] [OUT]

DETECTOR: the face detector's file; without it, the one that ``fer-edge faces fetch`` has installed. OUT: a video with boxes
and labels. For a camera, let OpenCV read it: VIDEO is 0, 1, ..."""

import sys
import time

import cv2

import fer_edge
from fer_edge.live.pipeline import LONGEST, Pipeline
from fer_edge.live.sources import Frame

video, detector, out = (*sys.argv[1:], None, None)[:3]
capture = cv2.VideoCapture(int(video) if video.isdigit() else video)
writer = None
with fer_edge.load() as clf, fer_edge.FaceFinder(detector, longest=LONGEST) as finder:
    pipeline, began, number = Pipeline(clf, finder), time.monotonic(), 0
    while (read := capture.read())[0]:
        picture, now = read[1], time.monotonic()
        frame = Frame(number, now - began, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), now)  # OpenCV gives BGR
        step = pipeline.step(frame)
        for event in step.events:
            print(f"{event.time:.2f} s: face {event.track}: {event.event}, {event.label}")
        for state in step.tracks:
            x, y, w, h = map(round, state.face.box)
            label = state.prediction.label if state.prediction else "?"
            cv2.rectangle(picture, (x, y), (x + w, y + h), (0, 255, 0), 2)
            cv2.putText(picture, f"{state.track} {label}", (x, y - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 255, 0), 2)
        if out is not None:
            size = picture.shape[1], picture.shape[0]
            writer = writer or cv2.VideoWriter(out, cv2.VideoWriter.fourcc(*"mp4v"), 25, size)
            writer.write(picture)
        number += 1
    for event in pipeline.end(time.monotonic() - began, number):
        print(f"{event.time:.2f} s: face {event.track}: {event.event}, {event.label}")
if writer is not None:
    writer.release()
