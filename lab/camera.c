/* A camera for boxes that have none: a library that a process preloads, and /dev/video9 answers as a Video4Linux driver.

   cc -shared -fPIC -o camera.so camera.c -ldl; FOLDER=... LD_PRELOAD=camera.so python ...

   It has 320 x 240, 640 x 480 and 1280 x 720, raw (YUYV) and MJPEG, 30 frames a second, raw 1280 x 720 only 10, and takes the
   nearest to what it is asked for, as drivers do. FOLDER has WIDTHxHEIGHT.jpg for MJPEG. A raw frame is of one gray, which
   grows. With a file "busy" in FOLDER another program has it, without "plugged" it is gone, with "stalled" it waits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BUFFERS 8
#define ROOM (4u << 20)

static int camera = -1, queue[BUFFERS], queued, first;
static unsigned wide = 640, high = 480, format = V4L2_PIX_FMT_YUYV, rate = 30, number;
static unsigned char *memory;
static struct timespec due;

static int there(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("FOLDER"), name);
    return access(path, F_OK) == 0;
}

static int refuse(int why) {
    errno = why;
    return -1;
}

static int open_camera(void) {
    if (!there("plugged")) return refuse(ENOENT);
    camera = memfd_create("camera", 0);
    if (camera < 0 || ftruncate(camera, BUFFERS * ROOM)) return refuse(ENOMEM);
    memory = mmap(0, BUFFERS * ROOM, PROT_READ | PROT_WRITE, MAP_SHARED, camera, 0);
    queued = first = number = 0;
    return camera;
}

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        unsigned mode = va_arg(rest, unsigned);                                        \
        va_end(rest);                                                                  \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);                 \
        return strcmp(path, "/dev/video9") ? real(path, flags, mode) : open_camera();  \
    }
OPEN(open)
OPEN(open64)

static void set_format(struct v4l2_pix_format *asked) {
    wide = asked->width >= 1280 ? 1280 : asked->width >= 640 ? 640 : 320;
    high = wide == 1280 ? 720 : wide == 640 ? 480 : 240;
    format = asked->pixelformat == V4L2_PIX_FMT_MJPEG ? V4L2_PIX_FMT_MJPEG : V4L2_PIX_FMT_YUYV;
}

static unsigned fill(unsigned char *place) {
    char path[4096];
    if (format == V4L2_PIX_FMT_YUYV) {
        for (unsigned i = 0; i < wide * high; i++) place[2 * i] = 16 + number % 200, place[2 * i + 1] = 128;
        return wide * high * 2;
    }
    snprintf(path, sizeof path, "%s/%ux%u.jpg", getenv("FOLDER"), wide, high);
    FILE *file = fopen(path, "rb");
    unsigned count = fread(place, 1, ROOM, file);
    fclose(file);
    return count;
}

static int next_frame(struct v4l2_buffer *buffer) {
    due.tv_nsec += 1000000000 / rate;
    if (due.tv_nsec >= 1000000000) due.tv_nsec -= 1000000000, due.tv_sec++;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, 0);
    while (there("stalled")) usleep(10000), clock_gettime(CLOCK_MONOTONIC, &due);
    if (!there("plugged")) return refuse(ENODEV);
    if (!queued) return refuse(EAGAIN);
    buffer->index = queue[first];
    first = (first + 1) % BUFFERS, queued--;
    buffer->bytesused = fill(memory + buffer->index * ROOM);
    buffer->length = ROOM;
    buffer->flags = 0;
    gettimeofday(&buffer->timestamp, 0);
    number++;
    return 0;
}

static int answer(unsigned request, void *argument) {
    switch (request) {
    case (unsigned)VIDIOC_QUERYCAP: {
        struct v4l2_capability *capability = argument;
        capability->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    }
    case (unsigned)VIDIOC_ENUMINPUT:
        ((struct v4l2_input *)argument)->std = 0;
        return ((struct v4l2_input *)argument)->index ? refuse(EINVAL) : 0;
    case (unsigned)VIDIOC_G_INPUT:
        *(int *)argument = 0;
        return 0;
    case (unsigned)VIDIOC_S_FMT:
        if (there("busy")) return refuse(EBUSY);
        set_format(&((struct v4l2_format *)argument)->fmt.pix); /* fall through */
    case (unsigned)VIDIOC_G_FMT: {
        struct v4l2_pix_format *told = &((struct v4l2_format *)argument)->fmt.pix;
        told->width = wide, told->height = high, told->pixelformat = format;
        told->field = V4L2_FIELD_NONE, told->bytesperline = wide * 2, told->sizeimage = wide * high * 2;
        return 0;
    }
    case (unsigned)VIDIOC_S_PARM:
    case (unsigned)VIDIOC_G_PARM: {
        struct v4l2_captureparm *told = &((struct v4l2_streamparm *)argument)->parm.capture;
        unsigned most = format == V4L2_PIX_FMT_YUYV && wide == 1280 ? 10 : 30;
        if (request == (unsigned)VIDIOC_S_PARM && told->timeperframe.numerator)
            rate = told->timeperframe.denominator / told->timeperframe.numerator;
        rate = rate > most ? most : rate;
        told->capability = V4L2_CAP_TIMEPERFRAME;
        told->timeperframe.numerator = 1, told->timeperframe.denominator = rate;
        return 0;
    }
    case (unsigned)VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *asked = argument;
        asked->count = asked->count > BUFFERS ? BUFFERS : asked->count;
        return 0;
    }
    case (unsigned)VIDIOC_QUERYBUF: {
        struct v4l2_buffer *buffer = argument;
        buffer->length = ROOM, buffer->m.offset = buffer->index * ROOM;
        return 0;
    }
    case (unsigned)VIDIOC_QBUF:
        queue[(first + queued++) % BUFFERS] = ((struct v4l2_buffer *)argument)->index;
        return 0;
    case (unsigned)VIDIOC_DQBUF:
        return next_frame(argument);
    case (unsigned)VIDIOC_STREAMON:
        clock_gettime(CLOCK_MONOTONIC, &due); /* fall through */
    case (unsigned)VIDIOC_STREAMOFF:
        return 0;
    default:
        return refuse(EINVAL);
    }
}

int ioctl(int descriptor, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    return descriptor == camera && camera >= 0 ? answer((unsigned)request, argument) : real(descriptor, request, argument);
}
