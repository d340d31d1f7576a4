#include "picture.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "errors.hpp"

namespace fer_edge {
namespace {

// As fer_edge/decode.py: of a part that is stretched, and of a file.
constexpr std::int64_t most_pixels = 16'000'000, most_side = 1 << 16;

struct Square {
  std::int64_t left, top, width, height;
};

// fer_edge/image.py, face_corners, shape "square". nearbyint rounds halves to even, as Python's round does.
Square square_of(const fer_edge_box& box, std::int64_t width, std::int64_t height, double scale) {
  char text[160];
  std::snprintf(text, sizeof text, "the box %g,%g,%g,%g", box.x, box.y, box.width, box.height);
  const std::string name = text;
  const auto w = static_cast<double>(width), h = static_cast<double>(height);
  for (const double v : {box.x, box.y, box.width, box.height, box.x + box.width, box.y + box.height})
    if (!std::isfinite(v)) throw Error("a box is four finite numbers");
  if (box.width <= 0 || box.height <= 0 || std::nearbyint(box.x + box.width) <= std::nearbyint(box.x) ||
      std::nearbyint(box.y + box.height) <= std::nearbyint(box.y))
    throw Error(name + " has no area");
  const std::string size = "which is " + std::to_string(width) + " x " + std::to_string(height) + " pixels";
  if (box.x + box.width <= 0 || box.y + box.height <= 0 || box.x >= w || box.y >= h)
    throw Error(name + " lies outside the picture, " + size + "; was it found in another one?");
  const double longest = std::max(box.width, box.height) * scale;
  if (!(longest <= 1e9)) throw Error(name + " is larger than any picture");
  const double side = std::max(1.0, std::nearbyint(longest));
  const double left = std::nearbyint(box.x + box.width / 2 - side / 2), top = std::nearbyint(box.y + box.height / 2 - side / 2);
  if (left >= w || top >= h || left + side <= 0 || top + side <= 0)
    throw Error("the square in " + name + " lies outside the picture, " + size);
  if (side * side > static_cast<double>(most_pixels))
    throw Error("the crop of " + name + " has more than " + std::to_string(most_pixels) + " pixels");
  const auto whole = static_cast<std::int64_t>(side);
  return {static_cast<std::int64_t>(left), static_cast<std::int64_t>(top), whole, whole};
}

// Pillow's weights of the bilinear filter, widened by the scale when it makes smaller (antialiased): src/libImaging/Resample.c,
// precompute_coeffs and normalize_coeffs_8bpc. For each number of the result: where its window begins, and its weights in
// 1 / 2^22.
constexpr int precision_bits = 32 - 8 - 2;

struct Window {
  std::int64_t first = 0;
  std::vector<std::int32_t> weights;
};

std::vector<Window> windows(std::int64_t from, std::size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), widening = std::max(scale, 1.0);
  std::vector<Window> result(to);
  std::vector<double> exact;
  for (std::size_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(centre - widening + 0.5));
    const auto end = std::min(from, static_cast<std::int64_t>(centre + widening + 0.5));
    exact.clear();
    double sum = 0;
    for (std::int64_t x = 0; x < end - first; ++x) {
      const double distance = std::fabs((static_cast<double>(x + first) - centre + 0.5) * (1.0 / widening));
      exact.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
      sum += exact.back();
    }
    result[i].first = first;
    for (const double weight : exact)
      result[i].weights.push_back(static_cast<std::int32_t>(0.5 + (sum != 0 ? weight / sum : weight) * (1 << precision_bits)));
  }
  return result;
}

std::uint8_t rounded(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255)); }

// One row of the part, in the artefact's colours; edge pixels are repeated on the left and right.
void read_row(const fer_edge_picture& picture, std::int64_t y, const Square& part, std::size_t channels, std::vector<std::uint8_t>& row) {
  const std::int64_t pitch = picture.row_bytes != 0 ? picture.row_bytes : std::int64_t{picture.width} * picture.channels;
  const std::uint8_t* source = picture.pixels + y * pitch;
  for (std::int64_t i = 0; i < part.width; ++i) {
    const std::uint8_t* pixel = source + std::clamp<std::int64_t>(part.left + i, 0, picture.width - 1) * picture.channels;
    std::uint8_t* target = row.data() + static_cast<std::size_t>(i) * channels;
    if (channels == 1) {
      // Pillow's L of RGB (src/libImaging/Convert.c, L24): ITU-R 601-2 in 16 bits.
      target[0] = picture.channels == 1
                      ? pixel[0]
                      : static_cast<std::uint8_t>((pixel[0] * 19595u + pixel[1] * 38470u + pixel[2] * 7471u + 0x8000u) >> 16);
    } else {
      for (std::size_t c = 0; c < 3; ++c) target[c] = pixel[picture.channels == 1 ? 0 : c];
    }
  }
}

using Row = std::vector<std::uint8_t>;

// A row, made as wide as the input; as it is where `columns` are none.
void stretch_across(const Row& row, const std::vector<Window>& columns, std::size_t channels, std::uint8_t* target) {
  if (columns.empty()) std::copy(row.begin(), row.end(), target);
  for (std::size_t x = 0; x < columns.size(); ++x) {
    const Window& window = columns[x];
    for (std::size_t c = 0; c < channels; ++c) {
      std::int32_t sum = 1 << (precision_bits - 1);
      const std::uint8_t* source = row.data() + static_cast<std::size_t>(window.first) * channels + c;
      for (std::size_t i = 0; i < window.weights.size(); ++i) sum += source[i * channels] * window.weights[i];
      target[x * channels + c] = rounded(sum);
    }
  }
}

// One row of the result from the rows under a window; `row_at` gives the row at a place.
template <typename RowAt>
void stretch_down(const Window& window, const RowAt& row_at, std::vector<std::int32_t>& sums, std::uint8_t* target) {
  std::fill(sums.begin(), sums.end(), 1 << (precision_bits - 1));
  for (std::size_t i = 0; i < window.weights.size(); ++i) {
    const std::uint8_t* source = row_at(window.first + static_cast<std::int64_t>(i));
    for (std::size_t x = 0; x < sums.size(); ++x) sums[x] += source[x] * window.weights[i];
  }
  std::transform(sums.begin(), sums.end(), target, rounded);
}

// Two passes, each rounded to 8 bits, and neither where nothing changes: Pillow's ImagingResampleInner. Its version 13 begins
// with the columns where the height shrinks by more than twice what the width does; before, rows always came first.
std::vector<std::uint8_t> stretched(const fer_edge_picture& picture, const Square& part, const Input& input) {
  const std::size_t channels = input.channels, wide = input.width * channels;
  const auto high = static_cast<std::int64_t>(input.height);
  const std::int64_t less_width = part.width - static_cast<std::int64_t>(input.width), less_height = part.height - high;
  const std::vector<Window> columns = less_width != 0 ? windows(part.width, input.width) : std::vector<Window>{};
  const std::vector<Window> rows = less_height != 0 ? windows(part.height, input.height) : std::vector<Window>{};
  // Rows of the picture that the part shows; beyond them the first and the last are repeated.
  const std::int64_t first = std::clamp<std::int64_t>(part.top, 0, picture.height - 1);
  const std::int64_t last = std::clamp<std::int64_t>(part.top + part.height - 1, 0, picture.height - 1);
  const auto source_row = [&](std::int64_t y) { return std::clamp(part.top + y, first, last); };
  Row row(static_cast<std::size_t>(part.width) * channels);
  std::vector<std::uint8_t> result(input.height * wide);

  if (less_height > 0 && less_height > 2 * less_width) {
    Row sum(row.size());
    std::vector<std::int32_t> sums(row.size());
    const auto row_at = [&](std::int64_t y) {
      read_row(picture, source_row(y), part, channels, row);
      return row.data();
    };
    for (std::size_t y = 0; y < input.height; ++y) {
      stretch_down(rows[y], row_at, sums, sum.data());
      stretch_across(sum, columns, channels, result.data() + y * wide);
    }
    return result;
  }

  Row narrow(static_cast<std::size_t>(last - first + 1) * wide);
  for (std::int64_t y = first; y <= last; ++y) {
    read_row(picture, y, part, channels, row);
    stretch_across(row, columns, channels, narrow.data() + static_cast<std::size_t>(y - first) * wide);
  }
  const auto row_at = [&](std::int64_t y) { return narrow.data() + static_cast<std::size_t>(source_row(y) - first) * wide; };
  std::vector<std::int32_t> sums(wide);
  for (std::size_t y = 0; y < input.height; ++y) {
    std::uint8_t* target = result.data() + y * wide;
    if (rows.empty())
      std::copy_n(row_at(static_cast<std::int64_t>(y)), wide, target);
    else
      stretch_down(rows[y], row_at, sums, target);
  }
  return result;
}

// A number of a PNM header, behind white space and comments; -1 for anything else.
std::int64_t header_number(std::istream& file) {
  int c = file.get();
  while (c == ' ' || (c >= '\t' && c <= '\r') || c == '#') {
    if (c == '#')
      while (c != '\n' && c != '\r' && c != EOF) c = file.get();
    else
      c = file.get();
  }
  std::int64_t value = -1;
  for (; c >= '0' && c <= '9'; c = file.get()) {
    value = std::max<std::int64_t>(value, 0) * 10 + (c - '0');
    if (value > most_pixels) return -1;
  }
  return c == ' ' || (c >= '\t' && c <= '\r') ? value : -1;  // one white space ends it
}

}  // namespace

Pixels read_pnm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path + " cannot be opened");
  char magic[2] = {};
  file.read(magic, 2);
  if (magic[0] != 'P' || (magic[1] != '5' && magic[1] != '6')) throw Error(path + " is no binary PGM (P5) or PPM (P6) file");
  const std::int64_t width = header_number(file), height = header_number(file), largest = header_number(file);
  if (width < 1 || height < 1 || largest != 255) throw Error(path + " is no picture of 8 bits: its header is broken, or its largest value is not 255");
  if (width > most_pixels / height) throw Error(path + " is too large: at most " + std::to_string(most_pixels) + " pixels are read");
  Pixels pixels;
  pixels.width = static_cast<std::int32_t>(width);
  pixels.height = static_cast<std::int32_t>(height);
  pixels.channels = magic[1] == '6' ? 3 : 1;
  // Row by row: a header's lie takes no memory before the pixels are there.
  const std::size_t row = static_cast<std::size_t>(width) * static_cast<std::size_t>(pixels.channels);
  for (std::int64_t y = 0; y < height; ++y) {
    pixels.values.resize(pixels.values.size() + row);
    if (!file.read(reinterpret_cast<char*>(pixels.values.data()) + pixels.values.size() - row, static_cast<std::streamsize>(row)))
      throw Error(path + " is cut short");
  }
  return pixels;
}

std::vector<std::uint8_t> to_input(const fer_edge_picture& picture, const fer_edge_box* box, const Input& input) {
  if (picture.pixels == nullptr || picture.width < 1 || picture.height < 1) throw Error("the picture has no pixels");
  if (picture.channels != 1 && picture.channels != 3) throw Error("a picture has 1 channel (gray) or 3 (red, green, blue)");
  const std::int64_t width = picture.width, height = picture.height;
  if (picture.row_bytes != 0 && picture.row_bytes < width * picture.channels) throw Error("row_bytes is less than a row has");
  if (box == nullptr && (width * height > most_pixels || std::max(width, height) > most_side))
    throw Error("the picture has " + std::to_string(width) + " x " + std::to_string(height) + " pixels, too many for a face: give a box");
  const Square part = box == nullptr ? Square{0, 0, width, height} : square_of(*box, width, height, input.scale);
  return stretched(picture, part, input);
}

}  // namespace fer_edge
