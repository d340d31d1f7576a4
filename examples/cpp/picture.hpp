// From a picture and a detector's box to what an artefact takes, to the bit as fer_edge/image.py with Pillow does it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "fer_edge.h"

namespace fer_edge {

struct Pixels {
  std::int32_t width = 0, height = 0, channels = 0;
  std::vector<std::uint8_t> values;
};

// A binary PGM (P5) or PPM (P6) file of 8 bits. Throws Error.
Pixels read_pnm(const std::string& path);

// The face crop: height x width x channels numbers. `box` null: the whole picture. Throws Error.
std::vector<std::uint8_t> to_input(const fer_edge_picture& picture, const fer_edge_box* box, const Input& input);

}  // namespace fer_edge
