// A bundle folder: what of it an engine needs, read once and checked against its hashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fer_edge {

struct Input {
  std::size_t height = 0, width = 0, channels = 0;  // channels: 3 (rgb) or 1 (gray)
  double scale = 1.0;                               // of the square, in longer sides of the box
};

// A label set compiled to constants: K rows of D numbers, one after the other.
struct LabelSet {
  std::vector<std::string> labels;
  std::vector<float> constants;
  double logit_scale = 1.0, temperature = 1.0, threshold = 0.0, least_length = 0.0;
};

// A few face crops and the float reference's features of them.
struct Golden {
  std::size_t count = 0;
  std::vector<std::uint8_t> crops;
  std::vector<float> features;
  std::map<std::string, double> bars;  // what the precision has to reach
};

struct Bundle {
  std::string folder, precision;
  Input input;
  std::size_t feature_dim = 0;
  std::size_t graph_labels = 0;  // how many logits the model has: the default label set's
  LabelSet labels;
  Golden golden;
  std::string model, weights;  // OpenVINO's .xml and .bin
};

// Read a bundle. Empty `precision`: int8, fp16 or fp32, the first that there is; empty `labels`: the default set; empty
// `digest`: any. What was hashed is what is returned. Throws Error.
Bundle read_bundle(const std::string& folder, const std::string& precision, const std::string& labels, const std::string& digest);

}  // namespace fer_edge
