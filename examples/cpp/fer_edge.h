/* fer_edge.h: facial expressions from a fer-edge bundle, for C and whatever can call C.
 *
 * Order of calls
 *   fer_edge_open -> fer_edge_predict, as often as wanted -> fer_edge_close.
 *   Pictures come from anywhere (a camera's buffer will do) or from fer_edge_read_picture.
 *
 * Ownership
 *   - What fer_edge_open gives is the caller's, and goes back by fer_edge_close, once.
 *   - What fer_edge_read_picture gives is the caller's, and goes back by fer_edge_free_picture, once.
 *   - fer_edge_close(NULL) and fer_edge_free_picture(NULL) do nothing.
 *   - Texts that a function returns are the library's: they are never freed by the caller. A label lives as long as its
 *     classifier; an error until the next call of this library on the same thread.
 *   - What the caller hands over (paths, options, pixels, boxes, results) stays the caller's and is not kept: it may be
 *     freed when the call has returned.
 *
 * Errors
 *   A function that fails returns NULL or -1, and fer_edge_error() then says why, in one line of UTF-8. Results are
 *   written by calls that succeed alone. No C++ exception leaves the library.
 *
 * Threads
 *   Every function may be called from any thread, and one classifier by several at once: its predictions then wait for
 *   one another. Only fer_edge_close must be its last call, when no other is running. A process that forks opens its
 *   classifiers after the fork.
 *
 * Versions
 *   FER_EDGE_ABI grows with every change that a binding has to know of; fer_edge_abi() is the library's.
 */
#ifndef FER_EDGE_H
#define FER_EDGE_H

#include <stdint.h>

#if defined(_WIN32)
#define FER_EDGE_API
#else
#define FER_EDGE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FER_EDGE_ABI 1

/* A bundle, open in an engine. */
typedef struct fer_edge_classifier fer_edge_classifier;

/* How a bundle is opened. A field of zero, or no options at all (NULL), is the default. */
typedef struct fer_edge_options {
  const char *precision; /* "int8", "fp16" or "fp32"; NULL: the first of these that the bundle has for OpenVINO */
  const char *labels;    /* a label set of the bundle; NULL: its default */
  const char *device;    /* OpenVINO's name; NULL: "CPU" */
  const char *digest;    /* the only bundle that is taken (`fer-edge info --json` shows it); NULL: any */
  int32_t threads;       /* 0: all processors, up to 4 */
} fer_edge_options;

/* Pixels of 8 bits: gray (channels 1) or red, green, blue (channels 3; OpenCV's order is the other way round, and nothing
 * can tell the two apart). Row y begins at pixels + y * row_bytes; row_bytes 0: rows follow one another without a gap. */
typedef struct fer_edge_picture {
  const uint8_t *pixels;
  int32_t width, height, channels;
  int64_t row_bytes;
} fer_edge_picture;

/* A detector's box in pixels. What is looked at is a square round its centre, as the bundle says; it may leave the
 * picture, whose edge pixels are then repeated. */
typedef struct fer_edge_box {
  double x, y, width, height;
} fer_edge_box;

/* An answer: the best label's index, its score, and whether it counts as certain (1) or not (0). */
typedef struct fer_edge_prediction {
  int32_t label;
  int32_t certain;
  double score;
} fer_edge_prediction;

/* What the device computes of the bundle's golden set, compared with the float reference (see docs/devices.md). */
typedef struct fer_edge_parity {
  double centred_cosine, self_retrieval, top1_agreement, score_difference;
  int32_t finite, repeatable;
} fer_edge_parity;

/* FER_EDGE_ABI of the library. */
FER_EDGE_API int32_t fer_edge_abi(void);

/* Why the last call on this thread failed; "" when it did not. Never NULL. */
FER_EDGE_API const char *fer_edge_error(void);

/* Open a bundle folder: its manifest, label sets, golden set and model are checked against their hashes before anything
 * of them is used. NULL on failure. */
FER_EDGE_API fer_edge_classifier *fer_edge_open(const char *bundle, const fer_edge_options *options);

FER_EDGE_API void fer_edge_close(fer_edge_classifier *classifier);

/* How many labels there are; -1 without a classifier. */
FER_EDGE_API int32_t fer_edge_label_count(const fer_edge_classifier *classifier);

/* A label's name in UTF-8; NULL for an index that there is not. */
FER_EDGE_API const char *fer_edge_label(const fer_edge_classifier *classifier, int32_t index);

/* Classify one face. `box` NULL: the whole picture is taken to be the face. `scores` NULL, or room for fer_edge_label_count
 * numbers: the probability of each label. 0, or -1 on failure. */
FER_EDGE_API int32_t fer_edge_predict(fer_edge_classifier *classifier, const fer_edge_picture *picture, const fer_edge_box *box,
                                      fer_edge_prediction *prediction, double *scores);

/* Run the golden set twice. 0: the device computes the right answer; 1: it does not, and fer_edge_error() says what falls
 * short; -1 on failure. `parity` may be NULL. */
FER_EDGE_API int32_t fer_edge_verify(fer_edge_classifier *classifier, fer_edge_parity *parity);

/* The first picture of a binary PGM or PPM file of 8 bits. NULL on failure. */
FER_EDGE_API fer_edge_picture *fer_edge_read_picture(const char *path);

FER_EDGE_API void fer_edge_free_picture(fer_edge_picture *picture);

#ifdef __cplusplus
}
#endif
#endif
