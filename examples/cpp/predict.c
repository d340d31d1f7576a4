/* fer-edge-predict: a bundle, a picture, a detector's boxes -> labels and scores. In C, over fer_edge.h alone. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fer_edge.h"

static const char *usage =
    "usage: fer-edge-predict BUNDLE PICTURE [--box X,Y,W,H]... [--raw W,H,CHANNELS] [--labels SET] [--precision P]\n"
    "                        [--device D] [--threads N] [--digest SHA256]\n"
    "       fer-edge-predict BUNDLE --verify [--precision P] [--device D] [--threads N]\n"
    "PICTURE: binary PGM or PPM of 8 bits; with --raw its bare bytes, gray (1 channel) or RGB (3). Without a box the whole\n"
    "picture is taken to be a face. Example: fer-edge-predict fer_edge/default face.ppm --box 168,56,112,112\n";

enum { MOST_BOXES = 256 };

typedef struct request {
  const char *bundle, *picture;
  fer_edge_options options;
  fer_edge_box boxes[MOST_BOXES];
  int count, verify;
  int raw[3];
} request;

static int fail(const char *message) {
  fprintf(stderr, "error: %s\n", message);
  return 2;
}

/* `count` numbers with commas between them; 0 when `text` is anything else. */
static int numbers(const char *text, double *values, int count) {
  char *end = NULL;
  for (int i = 0; i < count; i++) {
    values[i] = strtod(text, &end);
    if (end == text || *end != (i + 1 < count ? ',' : '\0')) return 0;
    text = end + 1;
  }
  return 1;
}

static int whole(double value, double most) { return value >= 0 && value <= most && value == (double)(int)value; }

/* 0, or 2 when the arguments are no request. */
static int parse(int count, char **arguments, request *asked) {
  for (int i = 1; i < count; i++) {
    const char *name = arguments[i];
    double values[4];
    if (strcmp(name, "--verify") == 0) {
      asked->verify = 1;
      continue;
    }
    if (strncmp(name, "--", 2) != 0) {
      if (asked->picture != NULL) return fail("one bundle and one picture are wanted");
      *(asked->bundle == NULL ? &asked->bundle : &asked->picture) = name;
      continue;
    }
    const char *value = ++i < count ? arguments[i] : NULL;
    if (value == NULL) return fail("an option lacks its value");
    if (strcmp(name, "--labels") == 0) {
      asked->options.labels = value;
    } else if (strcmp(name, "--precision") == 0) {
      asked->options.precision = value;
    } else if (strcmp(name, "--device") == 0) {
      asked->options.device = value;
    } else if (strcmp(name, "--digest") == 0) {
      asked->options.digest = value;
    } else if (strcmp(name, "--threads") == 0) {
      if (!numbers(value, values, 1) || !whole(values[0], 1024) || values[0] < 1) return fail("--threads is a number from 1 to 1024");
      asked->options.threads = (int32_t)values[0];
    } else if (strcmp(name, "--box") == 0) {
      if (!numbers(value, values, 4)) return fail("--box is four numbers: X,Y,W,H");
      if (asked->count == MOST_BOXES) return fail("at most 256 boxes are taken");
      asked->boxes[asked->count++] = (fer_edge_box){values[0], values[1], values[2], values[3]};
    } else if (strcmp(name, "--raw") == 0) {
      if (!numbers(value, values, 3) || !whole(values[0], 65536) || !whole(values[1], 65536) || !(values[2] == 1 || values[2] == 3))
        return fail("--raw is WIDTH,HEIGHT,CHANNELS, and the channels are 1 or 3");
      for (int k = 0; k < 3; k++) asked->raw[k] = (int)values[k];
    } else {
      fprintf(stderr, "error: no option %s\n%s", name, usage);
      return 2;
    }
  }
  if (asked->bundle == NULL || (asked->picture == NULL) != asked->verify) {
    fputs(usage, stderr);
    return 2;
  }
  return 0;
}

/* The bytes of a picture as a camera gives them; NULL, with a message on stderr, when the file has another length. */
static uint8_t *read_raw(const char *path, size_t length) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    fprintf(stderr, "error: %s cannot be opened: %s\n", path, strerror(errno));
    return NULL;
  }
  uint8_t *pixels = malloc(length + 1);
  size_t got = pixels == NULL ? 0 : fread(pixels, 1, length + 1, file);
  fclose(file);
  if (got == length && length > 0) return pixels;
  fprintf(stderr, "error: %s does not have the %zu bytes that --raw says\n", path, length);
  free(pixels);
  return NULL;
}

static int classify(fer_edge_classifier *classifier, const fer_edge_picture *picture, const fer_edge_box *box) {
  int32_t count = fer_edge_label_count(classifier);
  double *scores = calloc((size_t)count, sizeof *scores);
  fer_edge_prediction best;
  if (scores == NULL || fer_edge_predict(classifier, picture, box, &best, scores) != 0) {
    free(scores);
    return fail(fer_edge_error());
  }
  printf("%s %.1f%%%s\n", fer_edge_label(classifier, best.label), 100 * best.score, best.certain ? "" : ", not certain");
  for (int32_t k = 0; k < count; k++) printf("  %-16s %.6f\n", fer_edge_label(classifier, k), scores[k]);
  free(scores);
  return 0;
}

static int classify_all(fer_edge_classifier *classifier, const request *asked) {
  int status = 0;
  fer_edge_picture *file = NULL;
  uint8_t *raw = NULL;
  fer_edge_picture picture = {0};
  if (asked->raw[2] != 0) {
    raw = read_raw(asked->picture, (size_t)asked->raw[0] * (size_t)asked->raw[1] * (size_t)asked->raw[2]);
    if (raw == NULL) return 2;
    picture = (fer_edge_picture){raw, asked->raw[0], asked->raw[1], asked->raw[2], 0};
  } else {
    file = fer_edge_read_picture(asked->picture);
    if (file == NULL) return fail(fer_edge_error());
    picture = *file;
  }
  if (asked->count == 0) status = classify(classifier, &picture, NULL);
  for (int i = 0; i < asked->count && status == 0; i++) status = classify(classifier, &picture, &asked->boxes[i]);
  fer_edge_free_picture(file);
  free(raw);
  return status;
}

static int verify(fer_edge_classifier *classifier) {
  fer_edge_parity parity;
  int32_t status = fer_edge_verify(classifier, &parity);
  if (status < 0) return fail(fer_edge_error());
  printf("centred cosine %.6f, self retrieval %.4f, top-1 agreement %.4f, score difference %.6f: %s\n", parity.centred_cosine,
         parity.self_retrieval, parity.top1_agreement, parity.score_difference, status == 0 ? "good" : fer_edge_error());
  return status;
}

int main(int count, char **arguments) {
  request asked = {0};
  int status = parse(count, arguments, &asked);
  if (status != 0) return status;
  fer_edge_classifier *classifier = fer_edge_open(asked.bundle, &asked.options);
  if (classifier == NULL) return fail(fer_edge_error());
  status = asked.verify ? verify(classifier) : classify_all(classifier, &asked);
  fer_edge_close(classifier);
  return status;
}
